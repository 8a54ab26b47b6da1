"""A lake, rows for it, small shards, and a watch on which SAEs are loaded, for the tests of encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saestore.encoding import plan as encode_plan
from saestore.lake import Lake

D_IN, D_SAE = 16, 64


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(5).normal(size=(300, D_IN)) * 3 + 0.5).astype(np.float32)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SAEs that encoders are made of, in order."""
    from saestore.encoding.encoder import Encoder

    loaded: list[str] = []
    real = Encoder.__init__

    def counted(self: Any, weights: Any, **options: Any) -> None:
        loaded.append(weights.name)
        real(self, weights, **options)

    monkeypatch.setattr(Encoder, "__init__", counted)
    return loaded


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes in shards of 64 rows and chunks of 32."""
    monkeypatch.setattr(encode_plan, "_SHARD_ROWS", 64)
    monkeypatch.setattr(encode_plan, "CHUNK_ROWS", 32)
