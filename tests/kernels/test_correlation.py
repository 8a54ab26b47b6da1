"""Correlation of dense columns against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels.correlation import DenseSums


def ends(n: int, a: int, b: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 1))
    x, y = (rng.normal(size=(n, width)) + common * rng.normal(size=width) for width in (a, b))
    return x, y


def summed(x: np.ndarray, y: np.ndarray, block: int) -> DenseSums:
    sums = DenseSums(x.shape[1], y.shape[1])
    for first in range(0, len(x), block):
        sums.add(x[first : first + block], y[first : first + block])
    return sums


def expected(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    both = np.corrcoef(x.astype(np.float64), y.astype(np.float64), rowvar=False)
    return both[: x.shape[1], x.shape[1] :]


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 80),
    block=st.integers(1, 90),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    seed=st.integers(0, 2**20),
)
def test_correlations_are_those_of_numpy_for_any_blocks(n: int, block: int, dtype: str, seed: int) -> None:
    x, y = (each.astype(dtype) for each in ends(n, 3, 5, seed))
    sums = summed(x, y, block)
    assert sums.n == n
    np.testing.assert_allclose(sums.r(), expected(x, y), atol=1e-9)
    assert sums.usable_a.tolist() == [True] * 3
    assert sums.usable_b.tolist() == [True] * 5


@pytest.mark.parametrize("block", [1, 100, 5_000])
def test_large_means_do_not_swallow_small_deviations(block: int) -> None:
    x, y = ends(2_000, 4, 4, 1)
    x, y = (x + np.array([1e3, -1e3, 1e5, 0])).astype(np.float32), (y + 1e3).astype(np.float32)
    np.testing.assert_allclose(summed(x, y, block).r(), expected(x, y), atol=1e-8)


def test_constant_columns_correlate_with_nothing_and_are_named() -> None:
    x, y = ends(50, 4, 3, 2)
    x[:, 1], x[:, 2], y[:, 0] = 0, 0.1, -1e4
    sums = summed(x, y, 7)
    assert sums.usable_a.tolist() == [True, False, False, True]
    assert sums.usable_b.tolist() == [False, True, True]
    right = expected(x[:, [0, 3]], y[:, 1:])
    np.testing.assert_allclose(sums.r()[[0, 3], 1:], right, atol=1e-12)
    assert not sums.r()[[1, 2]].any()
    assert not sums.r()[:, 0].any()


def test_a_column_that_varies_after_its_first_block_is_not_constant() -> None:
    x = np.full((40, 1), 5.0)
    x[35:] = 6
    y = np.arange(40.0)[:, None]
    sums = summed(x, y, 10)
    assert sums.usable_a.tolist() == [True]
    np.testing.assert_allclose(sums.r(), expected(x, y), atol=1e-12)


def test_correlations_stay_within_one() -> None:
    x = np.random.default_rng(0).normal(size=(33, 1)) @ np.array([[0.1, 3.0, -7.0]])
    r = summed(x, x, 5).r()
    assert np.abs(r).max() <= 1
    np.testing.assert_allclose(r, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)


def test_no_rows_and_one_row_have_no_correlations() -> None:
    sums = DenseSums(2, 3)
    assert sums.r().tolist() == np.zeros((2, 3)).tolist()
    sums.add(np.ones((1, 2)), np.ones((1, 3)))
    sums.add(np.ones((0, 2)), np.ones((0, 3)))
    assert sums.n == 1
    assert sums.r().tolist() == np.zeros((2, 3)).tolist()
    assert not sums.usable_a.any()


def test_inputs_are_left_as_they_are() -> None:
    x, y = ends(10, 2, 2, 3)
    before = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    summed(x, y, 4)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("shapes", [((4, 2), (5, 3)), ((4, 3), (4, 3))])
def test_blocks_that_do_not_fit_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not rows of 2 and 3 columns"):
        DenseSums(2, 3).add(np.ones(shapes[0]), np.ones(shapes[1]))
