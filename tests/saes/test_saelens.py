from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.config import DENSE
from saestore.saes.saelens import open_saelens
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_OUT, D_SAE, K, make_sae, oracle

ARCHITECTURES = [
    ("standard", {}),
    ("jumprelu", {}),
    ("gated", {}),
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": D_SAE - 4}),  # more slots than active units: the ReLU decides
    ("abstopk", {}),
    ("abstopk", {"rescale_acts_by_decoder_norm": True}),
]
TRANSCODERS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_saelens_folder_encodes_and_decodes_as_saelens(
    tmp_path: Path,
    x: np.ndarray,
    architecture: str,
    options: dict,
    normalize_activations: str,
    apply_b_dec_to_input: bool,
) -> None:
    sae = make_sae(
        architecture,
        normalize_activations=normalize_activations,
        apply_b_dec_to_input=apply_b_dec_to_input,
        **options,
    )
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.hook_name == "blocks.3.hook_resid_post"
    assert weights.config.model_name == "tiny"


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoder_folder_encodes_and_decodes_as_saelens(
    tmp_path: Path, x: np.ndarray, architecture: str, normalize_activations: str
) -> None:
    sae = make_sae(architecture, normalize_activations=normalize_activations)
    sae.cfg.metadata.hook_name_out = "blocks.3.hook_mlp_out"
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.d_out == D_OUT
    assert weights.config.hook_name_out == "blocks.3.hook_mlp_out"


def test_every_architecture_of_saelens_is_covered() -> None:
    from sae_lens.registry import SAE_CLASS_REGISTRY

    assert {architecture for architecture, _ in ARCHITECTURES} | {*TRANSCODERS, *DENSE} == set(SAE_CLASS_REGISTRY)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_read_as_float32(tmp_path: Path, dtype: str) -> None:
    sae = make_sae("jumprelu", dtype=dtype)
    sae.save_model(tmp_path)
    weights = open_sae(tmp_path)
    assert weights.config.dtype == dtype
    np.testing.assert_array_equal(weights.rows("W_enc", slice(2, 9)), sae.W_enc[:, 2:9].T.detach().float().numpy())
    np.testing.assert_array_equal(weights.vector("threshold"), sae.threshold.detach().float().numpy())


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "abstopk"])
def test_hook_z_sae_takes_flat_rows(tmp_path: Path, x: np.ndarray, architecture: str) -> None:
    sae = make_sae(architecture, reshape_activations="none")
    sae.cfg.reshape_activations = "hook_z"
    sae.cfg.metadata.hook_name = "blocks.3.attn.hook_z"
    sae.cfg.metadata.hook_head_index = 2
    sae.save_model(tmp_path)
    reloaded = SAE.load_from_disk(tmp_path)
    by_head = torch.from_numpy(x.reshape(len(x), 4, D_IN // 4))
    with torch.no_grad():
        codes = reloaded.encode(by_head)
        x_hat = reloaded.decode(codes).reshape(len(x), D_IN)
    weights = open_sae(tmp_path)
    check_source(weights, x, codes.numpy(), x_hat.numpy())
    assert weights.config.reshape_activations == "hook_z"
    assert weights.config.hook_head_index == 2


def test_trained_folder_of_training_class_is_read(tmp_path: Path, x: np.ndarray) -> None:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    sae.save_model(tmp_path)
    check_source(open_sae(tmp_path), x, *oracle(sae, x))


@pytest.mark.parametrize(
    "old",
    [
        {"architecture": "standard", "activation_fn_str": "relu", "hook_point": "blocks.1.hook_mlp_out"},
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "hook_name": "h"},
        {"architecture": "jumprelu", "normalize_activations": False, "apply_b_dec_to_input": False, "hook_name": "h"},
    ],
)
def test_configuration_from_before_saelens_6(tmp_path: Path, x: np.ndarray, old: dict) -> None:
    architecture = "jumprelu" if old["architecture"] == "jumprelu" else "standard"
    make_sae(architecture).save_model(tmp_path)
    raw = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small", **old}
    (tmp_path / "cfg.json").write_text(json.dumps(raw))
    sae = SAE.load_from_disk(tmp_path)
    weights = open_sae(tmp_path)
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.hook_name == sae.cfg.metadata.hook_name
    assert weights.config.model_name == "gpt2-small"
    assert weights.config.prepend_bos is True


@pytest.mark.parametrize("architecture", [*dict(ARCHITECTURES), *TRANSCODERS])
def test_given_norm_scaling_factor_is_folded_as_saelens_folds_it(
    tmp_path: Path, x: np.ndarray, architecture: str
) -> None:
    sae = make_sae(architecture, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    with pytest.raises(InputError, match="fold_activation_norm_scaling_factor"):
        open_sae(tmp_path)
    sae.fold_activation_norm_scaling_factor(0.37)
    weights = open_sae(tmp_path, norm_scaling_factor=0.37)
    check_source(weights, x, *oracle(sae, x))

    folded = tmp_path / "folded"
    sae.save_model(folded)
    with pytest.raises(InputError, match="leave it out"):
        open_sae(folded, norm_scaling_factor=0.37)


def test_what_a_factor_gives_is_no_longer_of_the_stored_precision(tmp_path: Path) -> None:
    make_sae("gated", dtype="bfloat16", normalize_activations="expected_average_only_in").save_model(tmp_path)
    assert open_sae(tmp_path, norm_scaling_factor=0.37).config.dtype == "float32"
    with pytest.raises(InputError, match="above 0"):
        open_sae(tmp_path, norm_scaling_factor=0)
    for factor in (float("inf"), float("nan")):
        with pytest.raises(InputError, match="expected a finite number above 0"):
            open_sae(tmp_path, norm_scaling_factor=factor)


def test_hash_follows_the_numbers_not_the_place(tmp_path: Path) -> None:
    make_sae("topk").save_model(tmp_path / "a")
    make_sae("topk").save_model(tmp_path / "b")
    make_sae("topk", seed=1).save_model(tmp_path / "c")
    make_sae("topk", k=K + 1).save_model(tmp_path / "d")
    a, b, c, d = (open_sae(tmp_path / name, hook_name=name).content_hash() for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_numbers_that_are_not_finite_are_refused_when_hashed(tmp_path: Path, name: str, value: float) -> None:
    sae = make_sae("jumprelu")
    getattr(sae, name).data.flatten()[5] = value
    sae.save_model(tmp_path)
    if (name, value) == ("threshold", torch.inf):  # a unit that never fires
        open_sae(tmp_path).content_hash()
    else:
        with pytest.raises(IntegrityError, match=rf"{name} .* NaN or infinity"):
            open_sae(tmp_path).content_hash()


def test_tensors_of_another_architecture_are_refused(tmp_path: Path) -> None:
    for architecture, told, name in (
        ("jumprelu", "standard", "threshold"),
        ("skip_transcoder", "transcoder", "W_skip"),
        ("gated", "standard", "b_gate"),
    ):
        folder = tmp_path / architecture
        make_sae(architecture).save_model(folder)
        config, file = folder / "cfg.json", folder / "sae_weights.safetensors"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"architecture": told}))
        if architecture == "gated":
            save_file({**load_file(file), "b_enc": torch.zeros(D_SAE)}, file)
        with pytest.raises(InputError, match=rf"holds {name}, which a {told} SAE does not have"):
            open_sae(folder)


def test_scaling_factor_of_old_files_is_nothing_where_it_is_one(tmp_path: Path, x: np.ndarray) -> None:
    sae = make_sae("standard")
    sae.save_model(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    ones = torch.ones(D_SAE)
    save_file({**load_file(file), "scaling_factor": ones}, file)
    check_source(open_sae(tmp_path), x, *oracle(sae, x))
    save_file({**load_file(file), "scaling_factor": ones * 2}, file)
    with pytest.raises(InputError, match="scaling_factor other than 1"):
        open_sae(tmp_path)


def test_truncated_and_damaged_weights(topk_folder: Path) -> None:
    file = topk_folder / "sae_weights.safetensors"
    whole = file.read_bytes()
    weights = open_sae(topk_folder)
    for content in (whole[:-100], whole[:5], b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:]):
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"sae_weights\.safetensors"):
            open_sae(topk_folder)
    file.write_bytes(whole[: len(whole) // 2])  # cut off after it was opened
    with pytest.raises(IntegrityError, match="changed or replaced after it was opened"):
        weights.content_hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_sae": D_SAE * 2}, r"shape \(16, 64\).*d_sae=128"),
        ({"d_in": "16"}, "d_in='16'"),
        ({"k": D_SAE + 1}, "larger than its d_sae"),
        ({"k": None}, "needs k"),
        ({"architecture": "clt"}, "known: standard, jumprelu"),
        ({"architecture": "batchtopk"}, "save_inference_model"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": "z_score"}, "known: none, layer_norm, constant_norm_rescale"),
        ({"normalize_activations": None}, r"normalisation None .* is unknown; known: none, layer_norm"),
        ({"normalize_activations": "constant_scalar_rescale"}, "known: none, layer_norm"),
        ({"reshape_activations": "hook_q"}, "known: none, hook_z"),
        ({"architecture": "transcoder", "apply_b_dec_to_input": False}, "d_out=0"),
        ({"architecture": "transcoder", "d_out": D_OUT}, "apply_b_dec_to_input .* set it to false"),
        ({"metadata": {}, "activation_fn": "tanh-relu"}, "activation 'tanh-relu'"),
        ({"metadata": [1]}, r"metadata=\[1\] .* expected a JSON object"),
        ({"metadata": {"hook_name": 3}, "sae_lens_version": "6.0.0"}, "hook_name=3 .* expected a text or null"),
        ({"metadata": {"prepend_bos": "no"}, "sae_lens_version": "6.0.0"}, "prepend_bos='no'"),
        ({"metadata": {"context_size": True}, "sae_lens_version": "6.0.0"}, "context_size=True"),
        ({"metadata": {}, "activation_fn_kwargs": [1]}, r"activation_fn_kwargs=\[1\]"),
        ({"normalize_activations": ["none"]}, r"normalization=\['none'\]"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input='false' .* expected true or false"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input=None .* expected true or false"),
        ({"rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm='false'"),
        (
            {"architecture": "temporal", "bottleneck_factor": 8, "apply_b_dec_to_input": "false"},
            "apply_b_dec_to_input='false'",
        ),
        ({"d_in": float("nan")}, "is not JSON .*NaN"),
    ],
)
def test_unusable_configurations(topk_folder: Path, change: dict, message: str) -> None:
    path = topk_folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as raised:
        open_saelens(topk_folder)
    assert "\n" not in str(raised.value)


def test_configuration_without_an_architecture(topk_folder: Path) -> None:
    path = topk_folder / "cfg.json"
    raw = json.loads(path.read_text())
    del raw["architecture"]
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"names no architecture; add it"):
        open_saelens(topk_folder)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_configuration_that_is_no_json_object(topk_folder: Path, content: str) -> None:
    (topk_folder / "cfg.json").write_text(content)
    with pytest.raises(InputError, match=r"cfg\.json"):
        open_sae(topk_folder)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_missing_file(topk_folder: Path, name: str) -> None:
    (topk_folder / name).unlink()
    with pytest.raises(MissingError, match=name):
        open_sae(topk_folder)


def test_reading_a_folder_needs_neither_torch_nor_saelens(topk_folder: Path) -> None:
    program = (
        "import sys; from saestore.saes import open_sae; w = open_sae(sys.argv[1]);"
        "assert w.rows('W_enc', slice(0, 3)).shape == (3, 16); w.vector('b_dec'); w.content_hash();"
        "loaded = {'torch', 'sae_lens', 'safetensors', 'transformers', 'numba'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program, str(topk_folder)], check=True)
