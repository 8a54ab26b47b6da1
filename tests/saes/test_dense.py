"""Architectures that SAELens itself encodes: the class that is built, what it is built from, and its decoder."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEConfig as SAELensConfig

from saestore.errors import DependencyError, InputError
from saestore.kernels.normalize import denormalize, normalize
from saestore.saes import SAEWeights, open_sae
from saestore.saes.decoder import decoder_rule
from saestore.saes.dense import saelens_model
from saestore.saes.lake import open_lake_sae, write_sae
from saestore.saes.weights import decoder_norms, matrix_widths, other_axes, other_shapes, saelens_options
from saestore.storage import open_storage
from tests.saes.conftest import D_IN, D_SAE, make_sae

NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]
TEMPORAL = {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 9}
SAMPLE = 10

DENSE_SAES = [
    ("matching_pursuit", {}),
    ("matching_pursuit", {"apply_b_dec_to_input": False, "max_iterations": 5}),
    ("matching_pursuit", {"stop_on_duplicate_support": False, "residual_threshold": 2.5}),
    ("matching_pursuit", {"stop_on_duplicate_support": False, "residual_threshold": 0.0, "max_iterations": 6}),
    ("temporal", TEMPORAL),
    ("temporal", {**TEMPORAL, "tied_weights": False, "n_attn_layers": 2, "apply_b_dec_to_input": False}),
    ("temporal", {**TEMPORAL, "sae_diff_type": "relu", "apply_b_dec_to_input": False}),
    ("temporal", {**TEMPORAL, "kval_topk": None}),
]


def dense_sae(architecture: str, **options: Any) -> Any:
    """A random SAE of SAELens' class; the pursuit's units have length 1, since it would not end otherwise."""
    sae = make_sae(architecture, **options)
    if architecture == "matching_pursuit":
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
    return sae


def own_codes(sae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAELens' codes and reconstructions of rows x: of a temporal SAE, of samples of ten rows."""
    with torch.no_grad():
        rows = torch.from_numpy(x)
        codes = sae.encode(rows.reshape(-1, SAMPLE, D_IN) if sae.cfg.architecture() == "temporal" else rows)
        return codes.reshape(len(x), -1).numpy(), sae.decode(codes).reshape(x.shape).numpy()


def model_codes(weights: SAEWeights, x: np.ndarray) -> np.ndarray:
    """The codes of the class that is built from the weights."""
    model: Any = saelens_model(weights, "cpu")
    rows, _ = normalize(torch.from_numpy(x), weights.config.normalization)
    is_temporal = weights.config.architecture == "temporal"
    codes: torch.Tensor = model.encode(rows.reshape(-1, SAMPLE, D_IN) if is_temporal else rows)
    return codes.reshape(len(x), -1).numpy()


def decoded(weights: SAEWeights, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The decoder rule in numpy."""
    config, rule = weights.config, decoder_rule(weights.config)
    x_hat = codes @ weights.rows("W_dec", slice(0, config.d_sae))
    x_hat = (x_hat + weights.vector("b_dec") * rule.adds_b_dec) / rule.factor
    _, state = normalize(torch.from_numpy(x), config.normalization)
    return denormalize(torch.from_numpy(x_hat), state).numpy() if rule.undoes_normalization else x_hat


def check(weights: SAEWeights, sae: Any, x: np.ndarray) -> None:
    codes, x_hat = own_codes(sae, x)
    assert 0 < (codes > 0).sum() < codes.size
    ours = model_codes(weights, x)
    np.testing.assert_array_equal(ours > 0, codes > 0)
    np.testing.assert_allclose(ours, codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded(weights, x, ours), x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize(("architecture", "options"), DENSE_SAES)
def test_folder_and_lake_give_the_class_that_saelens_builds(
    tmp_path: Path, x: np.ndarray, architecture: str, options: dict, normalize_activations: str
) -> None:
    sae = dense_sae(architecture, normalize_activations=normalize_activations, **options)
    sae.save_model(tmp_path / "sae")
    source = open_sae(tmp_path / "sae")
    check(source, sae, x)
    assert source.config.normalization == normalize_activations
    assert source.config.hook_name == "blocks.3.hook_resid_post"

    storage = open_storage(tmp_path / "lake")
    write_sae(storage, "s", source, quiet=True)
    stored = open_lake_sae(storage, "s")
    check(stored, sae, x)
    assert stored.config == source.config
    assert stored.content_hash() == source.content_hash()
    np.testing.assert_array_equal(stored.vector("decoder_norms"), decoder_norms(source))
    for name in other_shapes(source.config):
        np.testing.assert_array_equal(stored.vector(name), source.vector(name))


@pytest.mark.parametrize("tied_weights", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_factor_of_a_temporal_sae(
    tmp_path: Path, x: np.ndarray, tied_weights: bool, apply_b_dec_to_input: bool
) -> None:
    sae = dense_sae(
        "temporal",
        **TEMPORAL,
        tied_weights=tied_weights,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations="constant_scalar_rescale",
        activation_normalization_factor=0.31,
    )
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    check(weights, sae, x)
    rule = decoder_rule(weights.config)
    assert (rule.factor, rule.is_partial) == (0.31, True)
    assert rule.adds_b_dec == (apply_b_dec_to_input or not tied_weights)
    assert weights.config.normalization == "none"


def test_decoder_rule_of_the_other_architectures(tmp_path: Path, x: np.ndarray) -> None:
    for architecture in ("standard", "transcoder"):
        sae = make_sae(architecture, normalize_activations="layer_norm", d_sae=32)
        sae.save_model(tmp_path / architecture)
        with torch.no_grad():
            codes = sae.encode(torch.from_numpy(x))
            x_hat = sae.decode(codes)
        weights = open_sae(tmp_path / architecture)
        np.testing.assert_allclose(decoded(weights, x, codes.numpy()), x_hat.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_attn_layers", [1, 3])
@pytest.mark.parametrize(("n_heads", "bottleneck_factor"), [(1, 1), (4, 16), (8, 2), (3, 7)])
@pytest.mark.parametrize("tied_weights", [True, False])
def test_shapes_are_those_of_the_class(
    tmp_path: Path, n_attn_layers: int, n_heads: int, bottleneck_factor: int, tied_weights: bool
) -> None:
    sae = make_sae(
        "temporal",
        d_sae=2 * n_heads * bottleneck_factor,
        n_heads=n_heads,
        bottleneck_factor=bottleneck_factor,
        n_attn_layers=n_attn_layers,
        tied_weights=tied_weights,
    )
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    theirs = {name: tuple(parameter.shape) for name, parameter in sae.state_dict().items()}
    assert other_shapes(weights.config) == {
        name: shape for name, shape in theirs.items() if name not in ("W_enc", "W_dec")
    }
    assert set(matrix_widths(weights.config)) == {"W_enc", "W_dec"} & set(theirs)
    for axes, shape in zip(other_axes(weights.config).values(), other_shapes(weights.config).values(), strict=True):
        assert len(axes) == len(shape)  # no axis twice, which xarray would refuse


def test_attention_weights_lie_in_the_lake_with_the_names_of_their_axes(tmp_path: Path) -> None:
    import xarray as xr

    sae = dense_sae("temporal", **TEMPORAL)
    sae.save_model(tmp_path / "sae")
    write_sae(open_storage(tmp_path / "lake"), "s", open_sae(tmp_path / "sae"), quiet=True)
    group = xr.open_zarr(tmp_path / "lake/saes/s", consolidated=False)
    for name, parameter in sae.state_dict().items():
        np.testing.assert_array_equal(group[name], parameter)
    assert group["attn_layers.0.k_ctx.weight"].sizes == {"key": D_SAE // 4, "unit": D_SAE}
    assert group["attn_layers.0.c_proj.weight"].sizes == {"unit": D_SAE, "value": D_SAE}


@pytest.mark.parametrize("architecture", ["matching_pursuit", "temporal"])
def test_unset_fields_have_saelens_defaults_and_are_recorded(tmp_path: Path, architecture: str) -> None:
    d_sae = 512  # a multiple of the default heads x bottleneck
    sae = make_sae(architecture, d_sae=d_sae)
    sae.save_model(tmp_path)
    path = tmp_path / "cfg.json"
    kept = ("architecture", "d_in", "d_sae", "metadata")
    path.write_text(json.dumps({name: json.loads(path.read_text())[name] for name in kept}))
    options = saelens_options(open_sae(tmp_path).config)
    shared = {field.name for field in dataclasses.fields(SAELensConfig)}
    theirs = {field.name: getattr(sae.cfg, field.name) for field in dataclasses.fields(sae.cfg)}
    assert {name: options[name] for name in theirs if name not in shared} == {
        name: value for name, value in theirs.items() if name not in shared
    }
    assert options["apply_b_dec_to_input"] is True
    assert set(options) - set(theirs) == {"architecture"}


def test_hash_follows_what_the_codes_depend_on(tmp_path: Path) -> None:
    sae = dense_sae("matching_pursuit")
    sae.save_model(tmp_path)
    path = tmp_path / "cfg.json"
    raw = json.loads(path.read_text())

    def content_hash(**changes: Any) -> str:
        path.write_text(json.dumps({**raw, **changes}))
        return open_sae(tmp_path).content_hash()

    same = content_hash()
    for changes in ({"device": "cuda"}, {"decoder_init_norm": 0.1}, {"metadata": {"sae_lens_version": "6.1"}}):
        assert content_hash(**changes) == same
    for changes in ({"residual_threshold": 0.5}, {"max_iterations": 3}, {"normalize_activations": "layer_norm"}):
        assert content_hash(**changes) != same


def test_scaling_of_inputs_is_folded_as_saelens_folds_it(tmp_path: Path, x: np.ndarray) -> None:
    options = {"residual_threshold": 2.0, "stop_on_duplicate_support": False}
    sae = dense_sae("matching_pursuit", normalize_activations="expected_average_only_in", **options)
    sae.save_model(tmp_path)
    with pytest.raises(InputError, match="fold_activation_norm_scaling_factor"):
        open_sae(tmp_path)
    sae.fold_activation_norm_scaling_factor(0.37)
    weights = open_sae(tmp_path, norm_scaling_factor=0.37)
    check(weights, sae, x)
    assert saelens_options(weights.config)["residual_threshold"] == sae.cfg.residual_threshold


def test_hook_z_sae_takes_flat_rows(tmp_path: Path, x: np.ndarray) -> None:
    sae = dense_sae("matching_pursuit")
    sae.cfg.reshape_activations = "hook_z"
    sae.cfg.metadata.hook_name = "blocks.3.attn.hook_z"
    sae.save_model(tmp_path)
    with torch.no_grad():
        codes = SAE.load_from_disk(tmp_path).encode(torch.from_numpy(x.reshape(len(x), 4, D_IN // 4)))
    weights = open_sae(tmp_path)
    assert weights.config.reshape_activations == "hook_z"
    np.testing.assert_allclose(model_codes(weights, x), codes.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_are_encoded_as_float32(tmp_path: Path, x: np.ndarray, dtype: str) -> None:
    sae = dense_sae("temporal", dtype=dtype, **TEMPORAL)
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    assert weights.config.dtype == dtype
    check(weights, SAE.load_from_disk(tmp_path, dtype="float32"), x)


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("matching_pursuit", {"residual_threshold": "small"}, "residual_threshold='small' .* expected a number"),
        ("matching_pursuit", {"max_iterations": 0}, "max_iterations=0 .* or null"),
        ("matching_pursuit", {"stop_on_duplicate_support": None}, "expected true or false"),
        ("matching_pursuit", {"normalize_activations": "covariance_whitening"}, "cannot be folded .* train it without"),
        ("matching_pursuit", {"normalize_activations": "constant_scalar_rescale"}, "known: none, layer_norm"),
        ("matching_pursuit", {"normalize_activations": "l2"}, "known: none, layer_norm"),
        ("matching_pursuit", {"d_sae": 32}, r"W_dec .* shape \(64, 16\)"),
        ("temporal", {"normalize_activations": "covariance_whitening"}, "cannot be folded .* train it without"),
        ("temporal", {"normalize_activations": "expected_average_only_in"}, "constant_scalar_rescale"),
        ("temporal", {"normalize_activations": "l2"}, "known: none, layer_norm"),
        ("temporal", {"sae_diff_type": "jumprelu"}, "sae_diff_type='jumprelu' .* expected relu or topk"),
        ("temporal", {"n_heads": 5}, r"d_sae=64 .* not divisible by bottleneck_factor x n_heads = 20"),
        ("temporal", {"kval_topk": 65}, "kval_topk=65 .* larger than its d_sae=64"),
        ("temporal", {"kval_topk": 2.5}, "kval_topk=2.5"),
        ("temporal", {"activation_normalization_factor": 0}, "a number above 0"),
        ("temporal", {"d_sae": None}, "d_sae=None"),
        ("temporal", {"n_attn_layers": 2}, r"lacks attn_layers\.1\.k_ctx\.weight"),
        ("temporal", {"bottleneck_factor": 8}, r"attn_layers\.0\.k_ctx\.weight .* shape \(16, 64\)"),
        ("temporal", {"tied_weights": False}, "lacks W_enc"),
    ],
)
def test_unusable_configurations(tmp_path: Path, architecture: str, change: dict, message: str) -> None:
    dense_sae(architecture, **(TEMPORAL if architecture == "temporal" else {})).save_model(tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as raised:
        open_sae(tmp_path)
    assert "\n" not in str(raised.value)


def test_scaling_of_a_temporal_sae_cannot_be_folded(tmp_path: Path) -> None:
    dense_sae("temporal", normalize_activations="expected_average_only_in", **TEMPORAL).save_model(tmp_path)
    with pytest.raises(InputError, match="set normalize_activations to 'constant_scalar_rescale'"):
        open_sae(tmp_path, norm_scaling_factor=0.37)


def test_missing_saelens_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense_sae("matching_pursuit").save_model(tmp_path)
    weights = open_sae(tmp_path)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(DependencyError, match=r"pip install 'saestore\[sae\]'") as raised:
        saelens_model(weights, "cpu")
    assert "\n" not in str(raised.value)


def test_reading_needs_neither_torch_nor_saelens(tmp_path: Path) -> None:
    dense_sae("temporal", **TEMPORAL).save_model(tmp_path / "sae")
    program = (
        "import sys; from saestore.saes import open_sae; from saestore.storage import open_storage;"
        "from saestore.saes.lake import open_lake_sae, write_sae; folder = sys.argv[1];"
        "storage = open_storage(folder + '/lake');"
        "write_sae(storage, 's', open_sae(folder + '/sae'), quiet=True);"
        "assert open_lake_sae(storage, 's').vector('attn_layers.0.v_ctx.weight').shape == (64, 64);"
        "loaded = {'torch', 'sae_lens', 'safetensors', 'transformers'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
