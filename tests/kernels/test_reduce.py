"""Reductions of entries against Python's own numbers."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore.kernels.reduce import Reduction, reduce_entries

KINDS = get_args(Reduction)


def one_sample(column: list[float], how: str) -> float:
    """By the definition, with Python's numbers."""
    if how == "count":
        return sum(value != 0 for value in column)
    return {"max": max(column), "sum": sum(column), "mean": sum(column) / len(column), "last": column[-1]}[how]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    lengths = draw(st.lists(st.integers(0, 4), max_size=6))
    value = st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.25, 3.0, -0.5])
    units = draw(st.integers(0, 3))
    numbers = draw(st.lists(value, min_size=sum(lengths) * units, max_size=sum(lengths) * units))
    return np.array(numbers, dtype=np.float32).reshape(sum(lengths), units), lengths


@pytest.mark.parametrize("how", KINDS)
@given(known=blocks(), seed=st.integers(0, 100))
def test_entries_in_any_order_give_the_definition(
    how: Reduction, known: tuple[np.ndarray, list[int]], seed: int
) -> None:
    block, lengths = known
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places, units = np.nonzero(block)
    order = np.random.default_rng(seed).permutation(len(places))
    places, units = places[order], units[order]
    samples, of_units, values = reduce_entries(places, units, block[places, units], offsets, how)
    assert list(zip(samples.tolist(), of_units.tolist(), strict=True)) == sorted(
        set(zip(samples.tolist(), of_units.tolist(), strict=True))
    )
    dense = np.zeros((len(lengths), block.shape[1]))
    dense[samples, of_units] = values
    expected = [
        [one_sample(block[start:stop, unit].tolist(), how) if stop > start else 0 for unit in range(block.shape[1])]
        for start, stop in itertools.pairwise(offsets)
    ]
    np.testing.assert_allclose(dense, np.reshape(expected, dense.shape), rtol=1e-6)


def test_sums_are_made_in_double_precision() -> None:
    n = 20_001
    values = np.full(n, 0.1, np.float32)
    units, offsets = np.zeros(n, np.int64), np.array([0, n])
    found = reduce_entries(np.arange(n), units, values, offsets, "sum")[2]
    assert found[0] == np.float32(values.astype(np.float64).sum())
