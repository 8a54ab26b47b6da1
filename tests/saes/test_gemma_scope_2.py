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
from saestore.saes.gemma_scope_2 import open_gemma_scope_2
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, Hub, assert_same_place, load_with_saelens, make_sae, oracle

REPO = "google/gemma-scope-2-4b-pt"


def write(folder: Path, sae: Any, *, raw: dict[str, Any] | None = None, **changes: torch.Tensor | None) -> Path:
    """Write an SAE of SAELens as Gemma Scope 2 does: lower-case names, and the skip connection transposed."""
    tensors = {name.lower(): tensor.detach() for name, tensor in sae.named_parameters()}
    if "w_skip" in tensors:
        tensors["affine_skip_connection"] = tensors.pop("w_skip").T
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in (tensors | changes).items() if tensor is not None}
    save_file(kept, folder / "params.safetensors")
    if raw is not None:
        (folder / "config.json").write_text(json.dumps(raw))
    return folder / "params.safetensors"


def sae_for(architecture: str) -> Any:
    options = {"apply_b_dec_to_input": False} if architecture == "jumprelu" else {}
    return make_sae(architecture, d_sae=16_384, **options)


@pytest.mark.parametrize(
    ("architecture", "repo", "folder"),
    [
        ("jumprelu", REPO, "resid_post/layer_17_width_16k_l0_medium"),
        ("jumprelu", "google/gemma-scope-2-270m-pt", "mlp_out_all/layer_3_width_16k_l0_big"),
        ("jumprelu", "google/gemma-scope-2-12b-it", "attn_out/layer_5_width_16k_l0_small"),
        ("jumprelu_transcoder", REPO, "transcoder/layer_17_width_16k_l0_small"),
        ("jumprelu_skip_transcoder", REPO, "transcoder_all/layer_9_width_16k_l0_big_affine"),
    ],
)
def test_file_is_read_as_saelens_reads_it(hub: Hub, x: np.ndarray, architecture: str, repo: str, folder: str) -> None:
    path = write(hub.root / repo / folder, sae_for(architecture))
    theirs = load_with_saelens(repo, folder, "gemma_3")
    for source in (path, path.parent):
        weights = open_sae(source)
        check_source(weights, x, *oracle(theirs, x))
        assert weights.config.architecture == architecture == theirs.cfg.architecture()
        assert_same_place(weights.config, theirs)
        assert weights.config.hook_name_out == theirs.cfg.metadata.get("hook_name_out")


def test_configuration_names_the_model_and_the_kind(hub: Hub, x: np.ndarray) -> None:
    raw = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-it",
        "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output",
        "affine_connection": True,
    }
    folder = "transcoder/layer_4_width_16k_l0_small_affine"
    sae = sae_for("jumprelu_skip_transcoder")
    path = write(hub.root / REPO / folder, sae, raw=raw)
    theirs = load_with_saelens(REPO, folder, "gemma_3")
    weights = open_sae(path)
    check_source(weights, x, *oracle(theirs, x))
    assert_same_place(weights.config, theirs, "hook_name_out")
    assert weights.config.model_name == "google/gemma-3-1b-it"

    elsewhere = write(hub.root / "mine", sae_for("jumprelu_transcoder"), raw=raw | {"affine_connection": False})
    assert open_sae(elsewhere).config.architecture == "jumprelu_transcoder"
    for out in (None, raw["hf_hook_point_in"]):
        told = raw | {"affine_connection": False, "hf_hook_point_out": out}
        plain = write(hub.root / "plain", make_sae("jumprelu", apply_b_dec_to_input=False), raw=told)
        assert open_sae(plain).config.architecture == "jumprelu"


def test_nothing_is_guessed_where_the_folders_say_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "mine", make_sae("jumprelu", apply_b_dec_to_input=False))
    config = open_sae(path).config
    assert (config.architecture, config.hook_name, config.model_name) == ("jumprelu", None, None)
    config = open_sae(path, hook_name="blocks.1.hook_mlp_out", model_name="other").config
    assert (config.hook_name, config.model_name) == ("blocks.1.hook_mlp_out", "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "lacks threshold"),
        ({"w_enc": torch.zeros(D_IN)}, r"w_enc .*expected \(d_in, d_sae\)"),
        ({"w_dec": torch.zeros(D_SAE, 3, D_IN)}, "cross-layer"),
        ({"w_dec": torch.zeros(D_SAE, D_IN - 1)}, "W_dec .* has shape"),
        ({"b_enc": torch.zeros(3)}, r"b_enc .* \(3,\)"),
        ({"b_enc": torch.zeros(D_SAE, dtype=torch.int64)}, "I64"),
        ({"raw": {"architecture": "topk"}}, "'topk'"),
        ({"raw": {}}, "has no architecture"),
        ({"raw": {"architecture": "jump_relu", "model_name": 3}}, "model_name=3"),
        ({"raw": {"architecture": "jump_relu", "affine_connection": True}}, "affine_connection"),
    ],
)
def test_wrong_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, make_sae("jumprelu", apply_b_dec_to_input=False), **changes)
    with pytest.raises(InputError, match=message) as raised:
        open_sae(path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_other_width_missing_and_damaged(tmp_path: Path) -> None:
    sae = make_sae("jumprelu", apply_b_dec_to_input=False)
    with pytest.raises(InputError, match="width_16k"):
        open_sae(write(tmp_path / "resid_post" / "layer_1_width_16k_l0_big", sae))
    with pytest.raises(MissingError, match=r"params\.safetensors"):
        open_gemma_scope_2(tmp_path / "nowhere")
    path = write(tmp_path / "cut", sae)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"params\.safetensors"):
        open_sae(path)
