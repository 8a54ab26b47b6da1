"""Small random SAEs made by SAELens' own classes, the oracle of every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: SAE readers have no oracle")

import torch  # noqa: E402

D_IN, D_SAE, K = 16, 64, 7


def make_sae(architecture: str, *, seed: int = 0, dtype: str = "float32", **options: Any) -> Any:
    """Return a SAELens inference SAE with random weights of every parameter it has."""
    if architecture == "topk":
        options.setdefault("k", K)
    cls, config_cls = sae_lens.registry.get_sae_class(architecture)
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="tiny", hook_name="blocks.3.hook_resid_post", prepend_bos=True)
    shape = {"d_in": options.pop("d_in", D_IN), "d_sae": options.pop("d_sae", D_SAE)}
    sae = cls(config_cls(**shape, dtype=dtype, metadata=metadata, **options))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else D_IN**-0.5)
        if name == "threshold":
            values += 0.2  # a few stay negative, where the ReLU decides
        parameter.data = values.to(parameter.dtype)
    return sae


def oracle(sae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return SAELens' own codes and reconstructions of rows x."""
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        return codes.float().numpy(), sae.decode(codes).float().numpy()


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(5).normal(size=(50, D_IN)) * 3 + 0.5).astype(np.float32)


@pytest.fixture
def topk_folder(tmp_path: Path) -> Path:
    make_sae("topk").save_model(tmp_path / "topk")
    return tmp_path / "topk"
