from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.sparsify import open_sparsify
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, K

CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}


def tensors(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    held = {
        "encoder.weight": torch.randn(D_SAE, D_IN, generator=generator) * 0.3,
        "encoder.bias": torch.randn(D_SAE, generator=generator) * 0.3,
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
        "W_skip": torch.randn(D_IN, D_IN, generator=generator) * 0.3,
    } | {name.replace("_weight", ".weight").replace("_bias", ".bias"): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def write(folder: Path, *, held: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {name: value for name, value in (CONFIG | changes).items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    held = tensors(**({} if config.get("skip_connection") else {"W_skip": None})) if held is None else held
    save_file(held, folder / "sae.safetensors")
    return folder


def sparsify_codes(x: np.ndarray, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """The arithmetic of sparsify's SparseCoder: encode, decode and the skip connection of forward."""
    held, config, rows = tensors(), CONFIG | changes, torch.from_numpy(x)
    centred = rows if config["transcode"] else rows - held["b_dec"]
    pre = torch.relu(torch.nn.functional.linear(centred, held["encoder.weight"], held["encoder.bias"]))
    values, units = torch.topk(pre, config["k"], dim=-1, sorted=False)
    codes = torch.zeros_like(pre).scatter_(-1, units, values)
    x_hat = torch.nn.functional.embedding_bag(units, held["W_dec"], mode="sum", per_sample_weights=values)
    x_hat = x_hat + held["b_dec"]
    if config["skip_connection"]:
        x_hat = x_hat + rows @ held["W_skip"].mT
    return codes.numpy(), x_hat.numpy()


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "topk"),
        ({"normalize_decoder": False, "multi_topk": True}, "topk"),
        ({"num_latents": D_SAE, "expansion_factor": 32}, "topk"),
        ({"k": D_SAE - 4}, "topk"),
        ({"transcode": True}, "topk_transcoder"),
        ({"transcode": True, "skip_connection": True}, "topk_skip_transcoder"),
    ],
)
def test_folder_encodes_as_sparsify(tmp_path: Path, x: np.ndarray, changes: dict[str, Any], architecture: str) -> None:
    folder = write(tmp_path / "run" / "layers.12", **changes)
    for source in (folder, folder / "sae.safetensors"):
        weights = open_sae(source)
        check_source(weights, x, *sparsify_codes(x, **changes))
        assert weights.config.architecture == architecture


def test_configuration_of_an_older_version_lacks_fields(tmp_path: Path, x: np.ndarray) -> None:
    folder = write(tmp_path / "layers.3", activation=None, transcode=None, skip_connection=None, signed=False)
    check_source(open_sae(folder), x, *sparsify_codes(x))


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.12", "blocks.12.hook_resid_post"),
        ("layers.12.mlp", "blocks.12.hook_mlp_out"),
        ("layers.0.self_attn", "blocks.0.hook_attn_out"),
        ("h.3", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.5.mlp", "blocks.5.hook_mlp_out"),
        ("embed_tokens", "hook_embed"),
        ("layers.2.mlp.act", None),
        ("mine", None),
        ("patch_16", None),
        ("epoch_10", None),
        ("batch_64", None),
        ("depth.4", None),
        ("transformer.h.4.attn", "blocks.4.hook_attn_out"),
        ("my_embed_tokens", None),
        ("model.embed_tokens", "hook_embed"),
    ],
)
def test_hook_comes_from_the_folder_name(tmp_path: Path, name: str, hook: str | None) -> None:
    assert open_sae(write(tmp_path / "sae" / name)).config.hook_name == hook
    assert open_sae(tmp_path / "sae" / name, hook_name="mine").config.hook_name == "mine"
    config = open_sae(write(tmp_path / "transcoder" / name, transcode=True)).config
    assert (config.hook_name, config.hook_name_out) == (None, hook)


def test_model_comes_from_the_configuration_of_the_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.1")
    assert open_sae(folder).config.model_name is None
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    assert open_sae(folder).config.model_name == "EleutherAI/pythia-160m"
    assert open_sae(folder, model_name="mine").config.model_name == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "groupmax"}, "activation='groupmax'"),
        ({"signed": True}, "signed"),
        ({"skip_connection": True}, "skip_connection without transcode"),
        ({"k": D_SAE + 1}, "larger than its d_sae"),
        ({"k": None}, "has no k"),
        ({"d_in": None}, "has no d_in"),
        ({"d_in": 8}, r"W_enc .*\(d_in=8"),
        ({"num_latents": "64"}, "d_sae='64'"),
        ({"held": tensors(encoder_weight=None, W_skip=None)}, "lacks W_enc"),
        ({"held": tensors(W_dec=None, W_skip=None)}, "lacks W_dec"),
        ({"held": tensors(W_dec=torch.zeros(D_IN, D_SAE), W_skip=None)}, r"W_dec .* \(16, 64\)"),
        ({"held": tensors()}, "holds W_skip, but .* does not say skip_connection"),
        ({"held": tensors(), "transcode": True}, "holds W_skip, but .* does not say skip_connection"),
        ({"held": tensors(W_skip=None), "transcode": True, "skip_connection": True}, "lacks W_skip"),
    ],
)
def test_wrong_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_sae(write(tmp_path / "layers.1", **changes))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.1")
    weights = folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"sae\.safetensors"):
        open_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(MissingError, match=r"cfg\.json"):
        open_sae(folder)
    with pytest.raises(MissingError, match=r"cfg\.json"):
        open_sparsify(tmp_path / "nowhere")
