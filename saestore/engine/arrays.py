"""Dask arrays over blocks that are read when they are computed: how they are cut, and what their graphs read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore.cuts import cuts
from saestore.rows import Grid

if TYPE_CHECKING:
    import dask.array

    DaskArray = dask.array.Array

Places = slice | NDArray[np.int64]

BLOCK_BYTES = 128 << 20
"""The most that a block takes when it is computed."""


@dataclass(frozen=True)
class LazyMatrix:
    """A matrix that is read where it is indexed; with a picklable reader it can be sent to other processes.

    read : function of rows and columns
        Both are slices of step 1 or arrays of places; returns the block, of two axes.
    """

    read: Callable[[Places, Places], Any]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    ndim: int = 2

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        block = self.read(*(as_places(part, length) for part, length in zip(key, self.shape, strict=True)))
        if not any(isinstance(part, int | np.integer) for part in key):
            return block
        return block[tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in key)]


def lazy_array(matrix: LazyMatrix, chunks: tuple[Iterable[int], Iterable[int]], meta: Any) -> DaskArray:
    """Return a Dask array of the blocks of a matrix; slices of it are handed down to the reader.

    Parameters
    ----------
    chunks : rows of each block, columns of each block
    meta : array
        An empty block.
    """
    import dask.array

    cut = tuple(tuple(int(length) for length in lengths) for lengths in chunks)
    array: DaskArray = dask.array.from_array(matrix, chunks=cut, name=False, asarray=False, meta=meta)
    return array


def dense_chunk_rows(grid: Grid, row_bytes: int) -> int:
    """Return the rows of a Dask chunk of at most 128 MiB that does not straddle stored chunks.

    It is a shard where that fits, else a whole number of stored chunks that divides the shard, else a part of one.
    """

    def largest(whole: int, piece: int) -> int | None:
        pieces = whole // piece
        fitting = BLOCK_BYTES // (row_bytes * piece)
        return next((n * piece for n in range(min(pieces, fitting), 0, -1) if pieces % n == 0), None)

    rows = largest(grid.shard_rows, grid.chunk_rows) or largest(grid.chunk_rows, 1) or 1
    return min(rows, grid.rows)


def row_chunks(rows: Places, chunk_rows: int) -> NDArray[np.int64]:
    """Return how many of some rows go into each chunk, so that chunks end where stored ones of `chunk_rows` end.

    Parameters
    ----------
    rows : slice of step 1, or (n,) int64
        Rows of the stored axis, ascending.
    chunk_rows : int
        The most rows in a chunk. Where rows lie far apart, a chunk has those of several stored ones.
    """
    if isinstance(rows, slice):
        ends = np.arange(rows.start - rows.start % chunk_rows + chunk_rows, rows.stop, chunk_rows) - rows.start
        lengths: NDArray[np.int64] = np.diff(ends, prepend=0, append=rows.stop - rows.start)
        return lengths
    if not len(rows):
        return np.zeros(1, dtype=np.int64)
    ends = np.append(np.flatnonzero(np.diff(rows // chunk_rows)) + 1, len(rows))
    edges = np.append(0, ends)[cuts(np.diff(ends, prepend=0), chunk_rows)]
    lengths = np.diff(edges)
    return lengths


def as_places(key: Any, length: int) -> Places:
    """Return an indexer of one axis as a slice of step 1, or as places."""
    if isinstance(key, int | np.integer):
        place = int(key) + (length if key < 0 else 0)
        if not 0 <= place < length:
            raise IndexError(f"index {key} is out of bounds for an axis of {length}")
        return slice(place, place + 1)
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    places = np.asarray(key, dtype=np.int64)
    outside = (places < -length) | (places >= length)
    if outside.any():
        raise IndexError(f"index {places[outside][0]} is out of bounds for an axis of {length}")
    return cast("NDArray[np.int64]", np.where(places < 0, places + length, places))


def count(places: Places) -> int:
    """Return how many places there are."""
    return places.stop - places.start if isinstance(places, slice) else math.prod(places.shape)
