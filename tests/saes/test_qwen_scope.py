from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.qwen_scope import open_qwen_scope
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, Hub, assert_same_place, load_with_saelens, oracle

D_SAE = 32 * 1024
REPO = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"


def state(**changes: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    held = {
        "W_enc": torch.randn(D_SAE, D_IN, generator=generator),
        "W_dec": torch.randn(D_IN, D_SAE, generator=generator),
        "b_enc": torch.randn(D_SAE, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
    } | changes
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def write(path: Path, held: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state() if held is None else held, path)
    return path


def test_file_is_read_as_saelens_reads_it(hub: Hub, x: np.ndarray) -> None:
    path = write(hub.root / REPO / "layer7.sae.pt")
    theirs = load_with_saelens(REPO, path.name, "qwen_scope", d_in=D_IN)
    weights = open_sae(path)
    check_source(weights, x, *oracle(theirs, x))
    assert weights.config.k == theirs.cfg.k == 50
    assert_same_place(weights.config, theirs)
    config = open_sae(path, hook_name="blocks.1.hook_mlp_out", model_name="other").config
    assert (config.hook_name, config.model_name) == ("blocks.1.hook_mlp_out", "other")


def test_layer_of_a_renamed_file_is_not_guessed(tmp_path: Path) -> None:
    config = open_sae(write(tmp_path / REPO / "sae.pt")).config
    assert (config.hook_name, config.model_name) == (None, "Qwen/Qwen3-1.7B-Base")
    path = write(tmp_path / "mine" / "sae.pt")
    assert open_qwen_scope(path, repo_id=REPO).config.k == 50
    with pytest.raises(InputError, match=r"K of .*sae\.pt is unknown.*SAE-Res-"):
        open_sae(path)


@pytest.mark.parametrize(
    ("repo", "held", "message"),
    [
        (REPO, {}, "lacks W_enc, W_dec, b_enc, b_dec; .* this one no tensors by name"),
        (REPO, torch.zeros(3), "lacks W_enc"),
        (REPO, state(b_dec=None), "lacks b_dec; .* this one W_dec, W_enc, b_enc$"),
        (REPO, state(W_enc=torch.zeros(4)), r"expected \(d_sae, d_in\)"),
        (REPO, state(W_dec=torch.zeros(D_SAE, D_IN)), "W_dec .* has shape"),
        (REPO.replace("W32K", "W64K"), state(), "W64K"),
        (REPO.replace("L0_50", "L0_99999"), state(), "larger than its d_sae"),
    ],
)
def test_wrong_files(tmp_path: Path, repo: str, held: Any, message: str) -> None:
    path = write(tmp_path / repo / "layer0.sae.pt", held)
    with pytest.raises(InputError, match=message) as raised:
        open_sae(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / REPO / "layer0.sae.pt"
    with pytest.raises(MissingError, match=r"layer0\.sae\.pt"):
        open_qwen_scope(path)
    write(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(IntegrityError, match=r"layer0\.sae\.pt"):
        open_sae(path)
