"""Sums per class and the ranking of units, against numpy on the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels.class_sums import ClassSums, ranked


def codes_of(n: int, k: int, d_sae: int, seed: int, *, is_signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows of up to k units, some slots empty: index and value 0 there."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.choice(d_sae, size=k, replace=False) for _ in range(n)]).astype(np.uint16)
    values = rng.choice([0.25, 0.5, 1.5, 2.0, 3.75], size=(n, k)).astype(np.float16)
    if is_signed:
        values *= rng.choice([-1, 1], size=(n, k)).astype(np.float16)
    empty = rng.random((n, k)) < 0.3
    indices[empty], values[empty] = 0, 0
    return indices, values


def dense_of(indices: np.ndarray, values: np.ndarray, d_sae: int) -> np.ndarray:
    dense = np.zeros((len(indices), d_sae))
    for row in range(len(indices)):
        for unit, value in zip(indices[row], values[row], strict=True):
            dense[row, unit] += value
    return dense


def scores_of(dense: np.ndarray, y: np.ndarray, *, normalised: bool) -> np.ndarray:
    if normalised:
        mean = np.abs(dense).sum(axis=0) / ((dense != 0).sum(axis=0) + 1e-6)
        dense = dense / (mean + 1e-6)
    return np.abs(dense[y == 1].mean(axis=0) - dense[y == 0].mean(axis=0))


def sums_of(indices: np.ndarray, values: np.ndarray, y: np.ndarray, d_sae: int, step: int) -> ClassSums:
    sums = ClassSums.empty(d_sae)
    for start in range(0, len(y), step):
        rows = slice(start, start + step)
        sums.add(indices[rows], values[rows], y[rows])
    return sums


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_scores_are_those_of_the_dense_matrix(is_signed: bool, normalised: bool) -> None:
    indices, values = codes_of(60, 5, 40, seed=3, is_signed=is_signed)
    y = np.arange(60) % 3 % 2
    sums = sums_of(indices, values, y, 40, 60)
    dense = dense_of(indices, values, 40)
    expected = scores_of(dense, y, normalised=normalised)
    np.testing.assert_allclose(sums.scores(normalised=normalised), expected, rtol=1e-12, atol=1e-15)
    assert sums.nonzero.tolist() == (dense != 0).sum(axis=0).tolist()
    assert sums.n.tolist() == [int((y == 0).sum()), int(y.sum())]


@given(n=st.integers(2, 30), step=st.integers(1, 31), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_neither_blocks_nor_the_order_of_rows_matter(n: int, step: int, seed: int) -> None:
    indices, values = codes_of(n, 4, 12, seed)
    y = np.arange(n) % 2
    order = np.random.default_rng(seed).permutation(n)
    first = sums_of(indices, values, y, 12, n)
    second = sums_of(indices[order], values[order], y[order], 12, step)
    assert np.array_equal(first.scores(normalised=True), second.scores(normalised=True))
    assert np.array_equal(first.scores(normalised=False), second.scores(normalised=False))


def test_bfloat16_patterns_are_numbers() -> None:
    values = np.array([[1.5], [2.0]], np.float32)
    patterns = (values.view(np.uint32) >> 16).astype(np.uint16)
    indices = np.array([[1], [1]], np.uint16)
    y = np.array([0, 1])
    assert sums_of(indices, patterns, y, 3, 2).sums.tolist() == sums_of(indices, values, y, 3, 2).sums.tolist()


def test_a_unit_that_is_never_active_scores_nothing() -> None:
    sums = ClassSums.empty(3)
    sums.add(np.array([[2], [0]]), np.array([[1.0], [0.0]]), np.array([1, 0]))
    assert sums.scores(normalised=True)[:2].tolist() == [0, 0]
    assert sums.scores(normalised=True)[2] == pytest.approx(1, abs=1e-5)


@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=30), data=st.data())
def test_the_best_come_first_and_equal_ones_by_their_place(scores: list[float], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:limit]
    assert ranked(np.array(scores), limit).tolist() == expected
