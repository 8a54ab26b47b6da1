"""Streaming quality sums against scikit-learn's R² and plain numpy, for any split of the rows."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from saestore.kernels import quality
from saestore.kernels.quality import QualitySums


def case(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # A mean far larger than the spread, as residual streams have.
    x = (rng.standard_normal((n, 5)) + np.array([1000, -3000, 0, 5, 1e4])).astype(np.float32)
    values = np.where(rng.random((n, 3)) < 0.3, 0, rng.choice([-1, 1], (n, 3)) * (rng.random((n, 3)) + 0.1)).astype(
        np.float16
    )
    return {
        "x": x,
        "x_hat": (x + 0.3 * rng.standard_normal((n, 5))).astype(np.float32),
        "indices": np.where(values == 0, 0, rng.integers(0, 30, (n, 3))).astype(np.uint16),
        "values": values,
        "l0": rng.integers(0, 9, n).astype(np.uint32),
    }


@settings(deadline=None, max_examples=50)
@given(n=st.integers(2, 60), cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 1000))
def test_any_split(n: int, cuts: list[int], seed: int) -> None:
    data = case(n, seed)
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    parts = [slice(a, b) for a, b in pairwise(edges)]
    merged = QualitySums.empty(5, 30)
    added = QualitySums.empty(5, 30)
    for part in parts:
        block = {name: array[part] for name, array in data.items()}
        merged = merged.merge(QualitySums.empty(5, 30).add(**block))
        added = added.add(**block)
    want = r2_score(data["x"].astype(np.float64), data["x_hat"], multioutput="variance_weighted")
    alive = set(data["indices"][data["values"] != 0].tolist())
    for sums in (merged, added):
        assert sums.rows == n
        assert sums.explained_variance == pytest.approx(want, rel=1e-9)
        assert sums.mean_l0 == pytest.approx(data["l0"].mean())
        assert sums.dead_units.tolist() == [unit for unit in range(30) if unit not in alive]


def test_long_blocks_are_walked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = case(50)
    whole = QualitySums.empty(5, 30).add(**data)
    monkeypatch.setattr(quality, "_ROWS", 7)
    assert QualitySums.empty(5, 30).add(**data).explained_variance == pytest.approx(whole.explained_variance, rel=1e-12)


def test_rows_without_variance() -> None:
    flat = {**case(4), "x": np.ones((4, 5), np.float32), "x_hat": np.ones((4, 5), np.float32)}
    assert QualitySums.empty(5, 30).add(**flat).explained_variance == 1.0
    flat["x_hat"] = np.zeros((4, 5), np.float32)
    assert QualitySums.empty(5, 30).add(**flat).explained_variance == 0.0


def test_no_rows() -> None:
    none = QualitySums.empty(5, 30)
    assert math.isnan(none.explained_variance)
    assert math.isnan(none.mean_l0)
    assert len(none.dead_units) == 30
