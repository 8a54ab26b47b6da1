from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.clip_scope import open_clip_scope
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, K


def checkpoint(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    state = {
        "pre_b": torch.randn(D_IN, generator=generator),
        "enc": torch.randn(D_IN, D_SAE, generator=generator),
        "dec": torch.randn(D_SAE, D_IN, generator=generator),
    }
    return {"k": K, "n_features": D_SAE, "d_in": D_IN, "model_state_dict": state} | changes


def clip_scope_codes(held: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLIP-Scope's own arithmetic (clipscope/sae.py), with the negative ones of the K largest masked."""
    state = held["model_state_dict"]
    z = (torch.from_numpy(x) - state["pre_b"].float()) @ state["enc"].float()
    values, indices = z.topk(held["k"], dim=-1)
    latent = torch.zeros_like(z).scatter_(-1, indices, values.clamp(min=0))
    return latent.numpy(), (latent @ state["dec"].float() + state["pre_b"].float()).numpy()


def test_clip_scope_checkpoint_encodes_as_clip_scope(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "22_resid" / "1200013184.pt"
    path.parent.mkdir()
    torch.save(checkpoint(), path)
    weights = open_sae(path)
    check_source(weights, x, *clip_scope_codes(checkpoint(), x))
    assert weights.config.hook_name == "blocks.22.hook_resid_post"
    assert weights.config.model_name == "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    assert weights.config.k == K
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before version 1\.6"):
        open_sae(path)


def test_half_precision_and_given_names(tmp_path: Path, x: np.ndarray) -> None:
    held = checkpoint()
    held["model_state_dict"] = {name: tensor.bfloat16() for name, tensor in held["model_state_dict"].items()}
    torch.save(held, tmp_path / "a.pt")
    weights = open_clip_scope(tmp_path / "a.pt", hook_name="blocks.3.hook_resid_post", model_name="mine")
    check_source(weights, x, *clip_scope_codes(held, x))
    assert (weights.config.dtype, weights.config.hook_name, weights.config.model_name) == (
        "bfloat16",
        "blocks.3.hook_resid_post",
        "mine",
    )


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (torch.zeros(3), "it holds StoredArray"),
        ({"indices": torch.zeros(3)}, "it holds indices"),
        (checkpoint(d_in=D_IN + 1), r"d_in=17"),
        (checkpoint(k=torch.tensor(K)), "int, int, StoredArray, dict"),
        (checkpoint(model_state_dict=[]), "int, int, int, list"),
        (checkpoint(k=D_SAE + 1), "larger than its d_sae"),
        (checkpoint(model_state_dict={"pre_b": torch.zeros(D_IN)}), "lacks enc, dec; .* enc, dec, this one pre_b$"),
    ],
)
def test_other_contents(tmp_path: Path, held: Any, message: str) -> None:
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        open_sae(tmp_path / "a.pt")


def test_damaged_missing_and_pickled_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(MissingError, match=r"a\.pt"):
        open_clip_scope(path)
    torch.save(checkpoint(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"a\.pt") as raised:
            open_sae(path)
        assert "\n" not in str(raised.value)
    torch.save({"k": Path("/")}, path)  # an object that only unpickling makes
    with pytest.raises(IntegrityError, match=r"a\.pt"):
        open_sae(path)
