"""Entries of codes by rows and by units, as whole arrays in memory, and the way from one to the other."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_SHORT = 64  # rows of so many entries are sorted by insertion


@dataclass(frozen=True)
class RowMajor:
    """Entries of all rows of one end of a graph, each row in the order of its units.

    pointers : (N + 1,) int64
        The entries of row r are `pointers[r]:pointers[r + 1]`.
    units : (e,) uint16 or uint32
        Places among the chosen units, ascending in each row without repeats: see `sort_rows`.
    values : (e,) float32
        None of them 0.
    n_units : int
        Chosen units.

    Raises
    ------
    ValueError
        The arrays do not belong together, or the units of a row do not ascend or are not below `n_units`.
    """

    pointers: NDArray[np.int64]
    units: NDArray[Any]
    values: NDArray[np.float32]
    n_units: int

    def __post_init__(self) -> None:
        fits = len(self.pointers) > 0 and self.pointers[0] == 0 and (np.diff(self.pointers) >= 0).all()
        if not fits or not self.pointers[-1] == len(self.units) == len(self.values):
            raise ValueError(f"{len(self.units)} units and {len(self.values)} values are not what the pointers say")
        if not _ascend(self.pointers, self.units, self.n_units):
            raise ValueError(f"the units of a row are not ascending numbers below {self.n_units}")

    @property
    def n_rows(self) -> int:
        """Rows, those without entries too."""
        return len(self.pointers) - 1


@dataclass(frozen=True)
class UnitMajor:
    """Entries of m consecutive units.

    pointers : (m + 1,) int64
        The entries of the i-th unit are `pointers[i]:pointers[i + 1]`.
    rows : (e,) uint32
        Ascending in each unit.
    values : (e,) float32
    """

    pointers: NDArray[np.int64]
    rows: NDArray[np.uint32]
    values: NDArray[np.float32]


def sort_rows(pointers: NDArray[np.int64], units: NDArray[Any], values: NDArray[np.float32]) -> None:
    """Sort the entries of each row by unit, in place.

    Parameters
    ----------
    pointers : (N + 1,) int64
    units : (e,) uint16 or uint32
    values : (e,) float32
    """
    edges = _shares(pointers)
    with ThreadPoolExecutor(len(edges) - 1, thread_name_prefix="saestore-rows") as pool:
        list(pool.map(lambda share: _sort(pointers, units, values, *share), pairwise(edges)))


def unit_major(rows: RowMajor, first_unit: int, stop_unit: int) -> UnitMajor:
    """Return the entries of the units `first_unit:stop_unit`, sorted by counting: two passes over all entries.

    Memory beyond the result: 8 bytes for each unit and core.
    """
    edges = _shares(rows.pointers)
    spans = list(pairwise(edges))
    n_units = stop_unit - first_unit
    with ThreadPoolExecutor(len(spans), thread_name_prefix="saestore-units") as pool:

        def count(span: tuple[int, int]) -> NDArray[np.int64]:
            counts = np.zeros(n_units, dtype=np.int64)
            _count(rows.units[rows.pointers[span[0]] : rows.pointers[span[1]]], first_unit, counts)
            return counts

        counts = np.array(list(pool.map(count, spans)))
        pointers = np.append(0, np.cumsum(counts.sum(axis=0)))
        # Where each share of the rows puts its next entry of each unit: after those of the shares before it.
        cursors = pointers[:-1] + np.cumsum(counts, axis=0) - counts
        result = UnitMajor(pointers, np.empty(pointers[-1], dtype=np.uint32), np.empty(pointers[-1], dtype=np.float32))

        def place(share: tuple[NDArray[np.int64], tuple[int, int]]) -> None:
            cursor, span = share
            _place(rows.pointers, rows.units, rows.values, *span, first_unit, cursor, result.rows, result.values)

        list(pool.map(place, zip(cursors, spans, strict=True)))
    return result


def _shares(pointers: NDArray[np.int64]) -> list[int]:
    """Where to cut rows into shares of about as many entries, one for each core."""
    inner = np.searchsorted(pointers, np.linspace(0, pointers[-1], (os.cpu_count() or 1) + 1)[1:-1])
    return [0, *np.minimum(inner, len(pointers) - 1).tolist(), len(pointers) - 1]


@numba.njit(nogil=True, cache=True)
def _ascend(pointers: Any, units: Any, n_units: int) -> bool:
    for row in range(len(pointers) - 1):
        before = np.int64(-1)
        for place in range(pointers[row], pointers[row + 1]):
            unit = np.int64(units[place])
            if unit <= before:
                return False
            before = unit
        if before >= n_units:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _sort(pointers: Any, units: Any, values: Any, first: int, stop: int) -> None:
    for row in range(first, stop):
        low, high = pointers[row], pointers[row + 1]
        if high - low > _SHORT:
            order = np.argsort(units[low:high])
            units[low:high] = units[low:high][order]
            values[low:high] = values[low:high][order]
            continue
        for place in range(low + 1, high):
            unit, value = units[place], values[place]
            free = place
            while free > low and units[free - 1] > unit:
                units[free], values[free] = units[free - 1], values[free - 1]
                free -= 1
            units[free], values[free] = unit, value


@numba.njit(nogil=True, cache=True)
def _count(units: Any, first_unit: int, counts: Any) -> None:
    for place in range(len(units)):
        unit = np.int64(units[place]) - first_unit
        if 0 <= unit < len(counts):
            counts[unit] += 1


@numba.njit(nogil=True, cache=True)
def _place(
    pointers: Any,
    units: Any,
    values: Any,
    first: int,
    stop: int,
    first_unit: int,
    cursors: Any,
    out_rows: Any,
    out_values: Any,
) -> None:
    for row in range(first, stop):
        for place in range(pointers[row], pointers[row + 1]):
            unit = np.int64(units[place]) - first_unit
            if 0 <= unit < len(cursors):
                target = cursors[unit]
                out_rows[target] = row
                out_values[target] = values[place]
                cursors[unit] = target + 1
