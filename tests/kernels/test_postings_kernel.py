"""The counting sort of codes against a stable argsort, for any cutting of rows, units and places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saestore.kernels.postings import count_units, place_entries, split_entries


def random_codes(n: int, k: int, d_sae: int, dtype: str, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Codes with distinct units in a row, empty slots and negative values."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.choice(d_sae, k, replace=False) for _ in range(n)]).astype(np.uint16)
    values = rng.choice([0, 0.5, -1.25, 3], (n, k)).astype(np.float32)
    if dtype == "bfloat16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(dtype)
    indices[values == 0] = 0
    return indices, stored


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 5),
    dtype=st.sampled_from(["float16", "float32", "bfloat16"]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_entries_are_those_of_a_stable_sort(n: int, k: int, dtype: str, seed: int, data: st.DataObject) -> None:
    d_sae, first_row = 12, 1_000
    indices, values = random_codes(n, k, d_sae, dtype, seed)
    counts = np.zeros(d_sae, np.int64)
    cut = data.draw(st.integers(0, n))
    for part in (slice(0, cut), slice(cut, n)):
        count_units(indices[part], values[part], counts)
    filled = values.reshape(-1) != 0
    units, rows = indices.reshape(-1)[filled], np.repeat(np.arange(n), k)[filled]
    order = np.argsort(units, kind="stable")
    assert counts.tolist() == np.bincount(units, minlength=d_sae).tolist()

    begin = data.draw(st.integers(0, len(order)))
    end = data.draw(st.integers(begin, len(order)))
    cursors = np.stack([np.append(0, np.cumsum(counts))[:-1], np.full(d_sae, first_row)], axis=1)
    entries = np.full(end - begin, 2**64 - 1, np.uint64)
    share = data.draw(st.integers(0, d_sae))
    for part in (slice(0, cut), slice(cut, n)):
        for of_units in (range(share), range(share, d_sae)):
            place_entries(indices[part], values[part], first_row + part.start, cursors, of_units, begin, entries)
    gaps, found = split_entries(entries, values.dtype)
    expected_rows = rows[order]
    first = np.append(True, np.diff(units[order]) != 0)[: len(order)]
    expected_gaps = np.where(first, expected_rows, np.diff(expected_rows, prepend=0))
    assert gaps.tolist() == expected_gaps[begin:end].tolist()
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values.reshape(-1)[filled][order][begin:end])


def test_a_unit_beyond_the_width_is_an_error_and_not_a_write_out_of_bounds() -> None:
    with pytest.raises(IndexError, match="not below 4"):
        count_units(np.array([[9]], np.uint16), np.array([[1.0]], np.float16), np.zeros(4, np.int64))
