from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.saev import open_saev
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, K

FIRST: dict[str, Any] = {"d_vit": D_IN, "exp_factor": 4, "sparsity_coeff": 4e-4, "n_reinit_samples": 10, "seed": 0}
BY_CLASS = {"d_vit": D_IN, "exp_factor": 4, "seed": 0}


def header(activation: str, schema: int = 5, **params: Any) -> dict[str, Any]:
    cfg = {"d_model": D_IN, "d_sae": D_SAE, "activation": {"cls": activation, "params": params}}
    return {"schema": schema, "cfg": cfg, "commit": "unknown", "lib": "0.2"}


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    w_dec = torch.randn(D_SAE, D_IN, generator=generator) * 0.3
    return {
        "W_dec": w_dec,
        "b_dec": torch.randn(D_IN, generator=generator),
        "W_enc": w_dec.T,  # a view of the other matrix, as saev begins
        "b_enc": torch.randn(D_SAE, generator=generator) * 0.3,
    } | changes


def write(path: Path, line: Any, held: Any = None) -> Path:
    with open(path, "wb") as file:
        file.write((json.dumps(line) + "\n").encode())
        torch.save(state() if held is None else held, file)
    return path


def saev_codes(x: np.ndarray, act: str, *, subtract: bool = False, threshold: float = 0.0) -> tuple[Any, Any]:
    """saev's own arithmetic outside training, with the negative ones of the K largest masked."""
    held, rows = state(), torch.from_numpy(x)
    h = (rows - held["b_dec"] if subtract else rows) @ held["W_enc"] + held["b_enc"]
    if act == "TopK":
        mask = torch.zeros_like(h).scatter(-1, h.topk(K, dim=-1).indices, 1.0)
        f = (mask * h).clamp(min=0)
    else:
        f = torch.where(h > max(threshold, 0.0), h, torch.zeros_like(h))
    return f.numpy(), (f @ held["W_dec"] + held["b_dec"]).numpy()


@pytest.mark.parametrize(
    ("line", "act", "subtract"),
    [
        (FIRST, "Relu", True),
        ({"schema": 1, "cls": "Relu", "cfg": BY_CLASS}, "Relu", False),
        ({"schema": 1, "cls": "TopK", "cfg": BY_CLASS | {"top_k": K}}, "TopK", False),
        (header("Relu", 1) | {"cls": "SparseAutoencoderConfig"}, "Relu", False),
        (header("Relu", 2), "Relu", False),
        (header("TopK", 3, top_k=K), "TopK", False),
        (header("TopK", 5, top_k=K, key="top-k"), "TopK", False),
    ],
)
def test_checkpoint_encodes_as_saev(tmp_path: Path, x: np.ndarray, line: Any, act: str, subtract: bool) -> None:
    weights = open_sae(write(tmp_path / "sae.pt", line))
    check_source(weights, x, *saev_codes(x, act, subtract=subtract))
    assert weights.config.hook_name is None


@pytest.mark.parametrize("threshold", [0.8, 0.0, -0.5])
def test_batch_topk_compares_with_its_threshold(tmp_path: Path, x: np.ndarray, threshold: float) -> None:
    held = state(**{"activation.threshold": torch.tensor(threshold)})
    weights = open_sae(write(tmp_path / "sae.pt", header("BatchTopK", top_k=K), held), hook_name="a", model_name="b")
    check_source(weights, x, *saev_codes(x, "BatchTopK", threshold=threshold))
    assert (weights.config.hook_name, weights.config.model_name) == ("a", "b")


@pytest.mark.parametrize(
    ("line", "held", "message"),
    [
        (header("BatchTopK", top_k=K), None, r"without activation\.threshold"),
        (header("JumpRelu"), None, "'JumpRelu'.*known: Relu"),
        (header("Relu", schema=9), None, "schema 9"),
        (header("TopK", top_k=D_SAE + 1), None, "larger than its d_sae"),
        (header("TopK"), None, r"no cfg\.activation\.params\.top_k"),
        ({"schema": 2, "cfg": 3}, None, "no d_vit"),
        (FIRST | {"d_vit": 8}, None, r"W_enc .*\(d_in=8"),
        ({"d_vit": D_IN}, None, "no exp_factor"),
        ([1], None, "holds a list"),
        (FIRST, {"W_enc": torch.zeros(D_IN, D_SAE)}, "lacks W_dec, b_enc, b_dec"),
        (FIRST, torch.zeros(3), "lacks W_enc"),
        (FIRST, state(b_enc=torch.zeros(3)), r"b_enc .* \(3,\)"),
    ],
)
def test_wrong_files(tmp_path: Path, line: Any, held: Any, message: str) -> None:
    path = write(tmp_path / "sae.pt", line, held)
    with pytest.raises(InputError, match=message) as raised:
        open_saev(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"sae\.pt"):
        open_saev(tmp_path / "sae.pt")
    path = write(tmp_path / "sae.pt", FIRST)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"sae\.pt"):
        open_sae(path)
    path.write_bytes(b"{" * 100)
    with pytest.raises(InputError, match="is not JSON"):
        open_sae(path)
