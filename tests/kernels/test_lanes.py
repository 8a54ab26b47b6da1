"""Vectors in compiled code against numpy, for every width."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from saestore.kernels.lanes import bits, exp, fabs, lane, larger, load, of, smaller, store, total

WIDTHS = [1, 2, 4, 8]


@numba.njit
def applied(x: Any, y: Any, out: Any) -> Any:
    a, b = of(x), of(y)
    n = len(x)
    store(out, 0, a + b)
    store(out, n, a - 2.0)
    store(out, 2 * n, 3.0 * a)
    store(out, 3 * n, a / b)
    store(out, 4 * n, larger(a, b))
    store(out, 5 * n, smaller(a, 0.5))
    store(out, 6 * n, fabs(a))
    store(out, 7 * n, load(out, n, a))
    return total(a), lane(a, n - 1), bits((a > b) & (b < 1.0))


@numba.njit
def exponentials(x: Any, out: Any) -> None:
    for place in range(len(x)):
        store(out, place, exp(of((x[place],))))


@pytest.mark.parametrize("width", WIDTHS)
def test_operators_act_on_every_lane(width: int) -> None:
    rng = np.random.default_rng(width)
    x, y = rng.normal(size=(2, width)) * 2
    out = np.zeros(8 * width)
    summed, last, mask = applied(tuple(x), tuple(y), out)
    expected = [x + y, x - 2, 3 * x, x / y, np.maximum(x, y), np.minimum(x, 0.5), np.abs(x), x - 2]
    assert out.reshape(8, width).tolist() == np.array(expected).tolist()
    assert summed == pytest.approx(x.sum(), abs=1e-12)
    assert last == x[-1]
    assert mask == sum(1 << place for place in range(width) if x[place] > y[place] and y[place] < 1)


def test_arrays_are_read_and_written_from_an_index_on() -> None:
    @numba.njit
    def move(array: Any) -> None:
        store(array, 5, load(array, 1, of((0.0, 0.0))))

    array = np.arange(8.0)
    move(array)
    assert array.tolist() == [0, 1, 2, 3, 4, 1, 2, 7]


def test_the_exponential_is_exact_to_a_few_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-700, 700, 20_000), rng.normal(size=20_000), [0.0, -0.0, 1e-300, 708.0, -708.0]])
    out = np.zeros_like(x)
    exponentials(x, out)
    assert np.abs(out / np.exp(x) - 1).max() < 4 * np.finfo(float).eps
    assert out[-5:-2].tolist() == [1, 1, 1]


def test_beyond_its_range_the_exponential_is_that_of_the_bound() -> None:
    out = np.zeros(6)
    exponentials(np.array([709.0, np.inf, -709.0, -np.inf, 708.0, -708.0]), out)
    assert (out[:2] == out[4]).all()
    assert (out[2:4] == out[5]).all()
    assert 0 < out[5] < 1e-300 < 1e300 < out[4] < np.inf
