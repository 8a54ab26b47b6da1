from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.llama_scope import open_llama_scope
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, Hub, assert_same_place, load_with_saelens, oracle

RELEASE, SAE_ID = "llama_scope_lxr_8x", "l0r_8x"
FOLDER = "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x"
REGISTRY_FACTOR = 58.935251798561154
HYPERPARAMS: dict[str, Any] = {
    "d_model": D_IN,
    "d_sae": D_SAE,
    "hook_point_in": "blocks.0.hook_resid_post",
    "jump_relu_threshold": 0.75,
    "dataset_average_activation_norm": {"in": 12.5, "out": 12.5},
}


def write(folder: Path, *, hyperparams: dict[str, Any] | None = None, **changes: torch.Tensor | None) -> Path:
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "encoder.weight": torch.randn(D_SAE, D_IN, generator=generator).bfloat16() / 4,
        "encoder.bias": torch.randn(D_SAE, generator=generator).bfloat16() / 4,
        "decoder.weight": torch.randn(D_IN, D_SAE, generator=generator).bfloat16(),
        "decoder.bias": torch.randn(D_IN, generator=generator).bfloat16(),
    }
    renamed = {name.replace("_", "."): tensor for name, tensor in changes.items()}
    (folder / "checkpoints").mkdir(parents=True)
    kept = {name: tensor for name, tensor in (tensors | renamed).items() if tensor is not None}
    save_file(kept, folder / "checkpoints" / "final.safetensors")
    merged = {name: value for name, value in (HYPERPARAMS | (hyperparams or {})).items() if value is not None}
    (folder / "hyperparams.json").write_text(json.dumps(merged))
    return folder


def test_folder_with_the_registry_factor_is_read_as_saelens_reads_it(hub: Hub, x: np.ndarray) -> None:
    folder = write(hub.root / FOLDER)
    theirs = load_with_saelens(RELEASE, SAE_ID, "llama_scope")
    weights = open_sae(folder, norm_scaling_factor=REGISTRY_FACTOR)
    small = x / 20  # the registry's factor is made for activations of another norm than that of HYPERPARAMS
    check_source(weights, small, *oracle(theirs, small))
    assert_same_place(weights.config, theirs)
    assert weights.config.apply_b_dec_to_input is False
    assert weights.config.dtype == "float32", "folded numbers do not fit bfloat16"
    assert open_sae(f"{RELEASE}:{SAE_ID}").content_hash() == weights.content_hash()


def test_factor_of_the_hyperparams_is_the_default(hub: Hub, x: np.ndarray) -> None:
    folder = write(hub.root / FOLDER)
    factor = math.sqrt(D_IN) / 12.5
    theirs = load_with_saelens(RELEASE, SAE_ID, "llama_scope", normalize_activations="none")
    theirs.fold_activation_norm_scaling_factor(factor)
    for source in (folder, folder / "hyperparams.json", folder / "checkpoints" / "final.safetensors"):
        check_source(open_sae(source), x, *oracle(theirs, x))
    config = open_sae(folder, hook_name="blocks.1.hook_mlp_out", model_name="other").config
    assert (config.hook_name, config.model_name) == ("blocks.1.hook_mlp_out", "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparams": {"d_model": None}}, "has no d_model"),
        ({"hyperparams": {"d_model": True}}, "d_model=True"),
        ({"hyperparams": {"d_sae": 32}}, r"W_enc .* d_sae=32"),
        ({"hyperparams": {"d_sae": -2}}, "d_sae=-2"),
        ({"hyperparams": {"d_model": -2}}, "d_model=-2"),
        ({"hyperparams": {"jump_relu_threshold": "0.5"}}, "expected a number"),
        ({"hyperparams": {"dataset_average_activation_norm": {"out": 1}}}, r"dataset_average_activation_norm\.in"),
        ({"hyperparams": {"dataset_average_activation_norm": {"in": 0}}}, "above 0"),
        ({"hyperparams": {"dataset_average_activation_norm": {"in": math.inf}}}, "is not JSON .*Infinity"),
        ({"hyperparams": {"jump_relu_threshold": math.nan}}, "is not JSON .*NaN"),
        ({"hyperparams": {"jump_relu_threshold": 10**400}}, "jump_relu_threshold=inf; expected a number"),
        ({"decoder_bias": None}, r"lacks decoder\.bias"),
        ({"decoder_weight": torch.zeros(D_SAE, D_IN)}, "W_dec .* has shape"),
    ],
)
def test_wrong_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_sae(write(tmp_path / "a", **changes))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_bad_factor_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    with pytest.raises(InputError, match="norm_scaling_factor=-1"):
        open_sae(folder, norm_scaling_factor=-1.0)
    weights = folder / "checkpoints" / "final.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"final\.safetensors"):
        open_sae(folder)
    weights.unlink()
    with pytest.raises(MissingError, match=r"checkpoints/final\.safetensors"):
        open_sae(folder)
    with pytest.raises(MissingError, match=r"hyperparams\.json"):
        open_llama_scope(tmp_path / "nowhere")
    (folder / "hyperparams.json").write_text("[1]")
    write(tmp_path / "b")
    (tmp_path / "b" / "hyperparams.json").write_text("[1]")
    with pytest.raises(InputError, match="holds a list"):
        open_sae(tmp_path / "b")
    (tmp_path / "b" / "hyperparams.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        open_sae(tmp_path / "b")
