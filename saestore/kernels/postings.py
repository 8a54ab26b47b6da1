"""From rows to units: a counting sort of codes, in one pass over the rows for the counts and one for each part.

Rows of a unit are kept as gaps: of the first entry the distance from a first row, of each further one that from the row
before.
Gaps are small where rows are large, which compresses better, and a cumulative sum gives the rows back.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

ENTRY_BYTES = 8
"""Bytes of an entry while it is being sorted."""


def count_units(indices: NDArray[Any], values: NDArray[Any], counts: NDArray[np.int64]) -> None:
    """Add the number of filled slots of each unit to `counts`.

    Parameters
    ----------
    indices, values : (n, k)
        Codes as stored: unsigned units, and values of 2 or 4 bytes whose slots are empty where they are 0.
    counts : (d_sae,) int64
        Changed in place.

    Raises
    ------
    IndexError
        A unit is not below d_sae.
    """
    bits, magnitude = _patterns(values)
    if not _count(np.ascontiguousarray(indices).reshape(-1), bits.reshape(-1), magnitude, counts):
        raise IndexError(f"a unit is not below {len(counts)}")


def place_entries(
    indices: NDArray[Any],
    values: NDArray[Any],
    first_row: int,
    cursors: NDArray[np.int64],
    units: range,
    begin: int,
    entries: NDArray[np.uint64],
) -> None:
    """Put the filled slots of consecutive rows where they belong in the order of (unit, row).

    Parameters
    ----------
    indices, values : (n, k)
        Codes as stored.
    first_row : int
        Number of the first of these rows; rows must come in order, from call to call too.
    cursors : (d_sae, 2) int64
        For each unit the place of its next entry, and the row of its last one (a first row before that). Changed in
        place.
    units : range
        Units that this call takes; others are passed over, so that threads can share the work without locks.
    begin : int
        Place of `entries[0]` in the order of all entries.
    entries : (m,) uint64
        Receives the entries of the places `begin:begin + m`: the gap in the upper half, the bits of the value in the
        lower. Entries with other places are counted only.
    """
    bits, magnitude = _patterns(values)
    _place(indices, bits, magnitude, first_row, cursors, units.start, units.stop, begin, entries)


def split_entries(entries: NDArray[np.uint64], dtype: np.dtype[Any]) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Return gaps and values of sorted entries, the values in their stored dtype."""
    ordered = entries.astype("<u8", copy=False)
    gaps = ordered.view("<u4")[1::2]
    values = ordered.view(f"<u{dtype.itemsize}")[:: 8 // dtype.itemsize]
    return np.ascontiguousarray(gaps), np.ascontiguousarray(values).view(dtype)


def _patterns(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the bits of values as unsigned numbers, and the mask of all bits but the sign's."""
    size = values.dtype.itemsize
    return np.ascontiguousarray(values).view(f"u{size}"), (1 << (8 * size - 1)) - 1


@numba.njit(nogil=True, cache=True)
def _count(indices: Any, bits: Any, magnitude: int, counts: Any) -> bool:
    for slot in range(len(indices)):
        if bits[slot] & magnitude:
            unit = indices[slot]
            if unit >= len(counts):
                return False
            counts[unit] += 1
    return True


@numba.njit(nogil=True, cache=True)
def _place(
    indices: Any,
    bits: Any,
    magnitude: int,
    first_row: int,
    cursors: Any,
    low: int,
    high: int,
    begin: int,
    entries: Any,
) -> None:
    for i in range(indices.shape[0]):
        row = first_row + i
        for slot in range(indices.shape[1]):
            unit = np.int64(indices[i, slot])
            pattern = bits[i, slot]
            if low <= unit < high and pattern & magnitude:
                place = cursors[unit, 0] - begin
                if 0 <= place < len(entries):
                    entries[place] = np.uint64(row - cursors[unit, 1]) << np.uint64(32) | np.uint64(pattern)
                cursors[unit, 0] += 1
                cursors[unit, 1] = row
