"""Thresholds of concepts: exact quantiles of a unit's active values over the rows that have a concept.

A threshold at percentile p is the (1 - p) quantile with linear interpolation (numpy's `linear`) of the values with
which the unit is active where the concept is: a part p of these is at or above it. Where the unit is never active
there, nothing can be learned and the threshold is infinite: it never fires.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

NEVER = np.float32(np.inf)
"""The threshold of a unit that is never active where the concept is."""


def thresholds(
    edges: NDArray[np.int64],
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    counted: NDArray[np.bool_],
    list_of_row: NDArray[np.uint32] | None,
    indptr: NDArray[np.int64],
    members: NDArray[np.uint32],
    n_concepts: int,
    percentiles: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Return the thresholds of units, and on how many rows each rests.

    Parameters
    ----------
    edges : (m + 1,) int64
        Unit i has the entries `edges[i]:edges[i + 1]`.
    rows, values : (e,)
        Where each unit is active; values that are not positive do not count.
    counted : (n,) bool
        Rows that may be learned from.
    list_of_row : (n,) uint32, optional
        The number of the list of concepts of each row (its sample's); its own number where there is none.
    indptr, members : (l + 1,) int64, (c,) uint32
        List j has the concepts `members[indptr[j]:indptr[j + 1]]`.
    percentiles : (p,) float64
        Parts of one.

    Returns
    -------
    (thresholds, n_pos)
        (m, n_concepts + 1, p) float32, infinite where there is nothing to learn from, and (m, n_concepts + 1) uint32,
        the active rows; the last concept is that of all counted rows.

    References
    ----------
    docs/concepts.md
    """
    m = len(edges) - 1
    found = np.full((m, n_concepts + 1, len(percentiles)), NEVER, dtype=np.float32)
    n_pos = np.zeros((m, n_concepts + 1), dtype=np.uint32)
    longest = int(np.diff(edges).max(initial=0))
    own = np.empty(0, dtype=np.uint32) if list_of_row is None else list_of_row
    _thresholds(
        edges,
        rows,
        values,
        counted,
        list_of_row is None,
        own,
        indptr,
        members,
        percentiles,
        np.empty(longest, dtype=np.uint64),
        found,
        n_pos,
    )
    return found, n_pos


@numba.njit(nogil=True, inline="always")
def quantile(ascending: Any, level: float) -> float:
    """Return a quantile as numpy's `linear` method rounds it."""
    place = (len(ascending) - 1) * level
    low = int(np.floor(place))
    part = place - low
    a = np.float64(ascending[low])
    if part == 0.0:
        return a
    b = np.float64(ascending[low + 1])
    step = b - a
    return b - step * (1.0 - part) if part >= 0.5 else a + step * part


@numba.njit(nogil=True, inline="always")
def sort_key(value: Any, place: int) -> Any:
    """Return a number that sorts as a positive value and then its place do."""
    return np.uint64(np.float32(value).view(np.uint32)) << np.uint64(32) | np.uint64(place)


@numba.njit(nogil=True, cache=True)
def _thresholds(
    edges: Any,
    rows: Any,
    values: Any,
    counted: Any,
    own_lists: bool,
    list_of_row: Any,
    indptr: Any,
    members: Any,
    percentiles: Any,
    keys: Any,
    found: Any,
    n_pos: Any,
) -> None:
    concepts = found.shape[1] - 1
    starts = np.empty(concepts + 1, dtype=np.int64)
    fills = np.empty(concepts, dtype=np.int64)
    bucket = np.empty(0, dtype=np.float32)
    whole = np.empty(len(keys), dtype=np.float32)
    for unit in range(len(edges) - 1):
        held = 0
        for entry in range(edges[unit], edges[unit + 1]):
            if values[entry] > 0 and counted[rows[entry]]:
                keys[held] = sort_key(values[entry], entry - edges[unit])
                held += 1
        if not held:
            continue
        ordered = keys[:held]
        ordered.sort()
        starts[:] = 0
        for j in range(held):
            row = rows[edges[unit] + np.int64(ordered[j] & np.uint64(0xFFFFFFFF))]
            one = row if own_lists else np.int64(list_of_row[row])
            for member in range(indptr[one], indptr[one + 1]):
                starts[members[member] + 1] += 1
        for c in range(concepts):
            n_pos[unit, c] = starts[c + 1]
            starts[c + 1] += starts[c]
            fills[c] = starts[c]
        n_pos[unit, concepts] = held
        if starts[concepts] > len(bucket):
            bucket = np.empty(2 * starts[concepts], dtype=np.float32)
        for j in range(held):
            entry = edges[unit] + np.int64(ordered[j] & np.uint64(0xFFFFFFFF))
            whole[j] = values[entry]
            row = rows[entry]
            one = row if own_lists else np.int64(list_of_row[row])
            for member in range(indptr[one], indptr[one + 1]):
                c = members[member]
                bucket[fills[c]] = values[entry]
                fills[c] += 1
        for c in range(concepts + 1):
            part = whole[:held] if c == concepts else bucket[starts[c] : starts[c + 1]]
            if len(part):
                for p in range(len(percentiles)):
                    found[unit, c, p] = np.float32(quantile(part, 1.0 - percentiles[p]))
