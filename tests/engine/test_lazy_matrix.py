"""Cutting rows and units into Dask chunks, and reading what is indexed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore.engine.arrays import LazyMatrix, cuts, lazy_array, row_chunks


@given(sizes=st.lists(st.integers(0, 9), max_size=20), most=st.integers(1, 20))
def test_cuts_make_as_few_parts_as_fit(sizes: list[int], most: int) -> None:
    expected, held = [0], 0
    for place, size in enumerate(sizes):
        if place > expected[-1] and held + size > most:
            expected.append(place)
            held = 0
        held += size
    assert cuts(np.array(sizes, dtype=np.int64), most).tolist() == expected + [len(sizes)] * bool(sizes)


@given(start=st.integers(0, 30), n=st.integers(0, 40), chunk=st.integers(1, 9))
def test_chunks_of_a_range_end_where_stored_ones_end(start: int, n: int, chunk: int) -> None:
    lengths = row_chunks(slice(start, start + n), chunk)
    assert lengths.sum() == n
    assert all((start + end) % chunk == 0 for end in np.cumsum(lengths)[:-1])
    assert (lengths <= chunk).all()


@given(rows=st.sets(st.integers(0, 100)), chunk=st.integers(1, 9))
def test_chunks_of_chosen_rows_never_share_a_stored_one(rows: set[int], chunk: int) -> None:
    chosen = np.array(sorted(rows), dtype=np.int64)
    lengths = row_chunks(chosen, chunk)
    assert lengths.sum() == len(chosen)
    assert (lengths <= chunk).all()
    for end in np.cumsum(lengths)[:-1]:
        assert chosen[end - 1] // chunk != chosen[end] // chunk


@pytest.fixture
def seen() -> list[tuple[Any, Any]]:
    return []


@pytest.fixture
def matrix(seen: list[tuple[Any, Any]]) -> LazyMatrix:
    numbers = np.arange(60, dtype=np.float32).reshape(10, 6)

    def read(rows: Any, columns: Any) -> np.ndarray:
        seen.append((rows, columns))
        return numbers[rows][:, columns]

    return LazyMatrix(read, (10, 6), np.dtype(np.float32))


@pytest.mark.parametrize(
    "key",
    [
        (slice(2, 9), slice(None)),
        (slice(None, None, 3), 4),
        (-1, slice(1, 3)),
        ([3, 1, 3], slice(None)),
        (slice(0, 0), [5, -6]),
        (7, 5),
    ],
    ids=str,
)
def test_indexing_agrees_with_numpy(matrix: LazyMatrix, key: Any) -> None:
    numbers = np.arange(60, dtype=np.float32).reshape(10, 6)
    np.testing.assert_array_equal(matrix[key], numbers[key])
    array = lazy_array(matrix, ([4, 4, 2], [6]), np.empty((0, 0), np.float32))
    np.testing.assert_array_equal(array[key].compute(scheduler="sync"), numbers[key])


@pytest.mark.parametrize("key", [(10, 0), (slice(None), [6]), ([-11], 0)], ids=str)
def test_what_lies_outside_is_refused(matrix: LazyMatrix, key: Any) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        matrix[key]


def test_a_slice_of_the_dask_array_is_all_that_is_read(matrix: LazyMatrix, seen: list[tuple[Any, Any]]) -> None:
    array = lazy_array(matrix, ([4, 4, 2], [6]), np.empty((0, 0), np.float32))
    assert seen == []
    assert array[5:7, 2].compute(scheduler="sync").tolist() == [32, 38]
    assert seen == [(slice(5, 7), slice(2, 3))]
