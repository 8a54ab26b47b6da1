"""Ranges of row numbers: ascending, disjoint, none empty and none touching the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts and stops, each (m,)."""


def merged(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Ranges:
    """Return ascending, disjoint ranges without empty ones, joined where one begins where another ends.

    Examples
    --------
    >>> merged(np.array([0, 4, 4, 9]), np.array([4, 4, 6, 12]))
    (array([0, 9]), array([ 6, 12]))
    """
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    apart = starts[1:] != stops[:-1]
    return starts[np.append(True, apart)[: len(starts)]], stops[np.append(apart, True)[: len(stops)]]


def runs(numbers: NDArray[np.int64]) -> Ranges:
    """Return the ranges that cover ascending numbers.

    Examples
    --------
    >>> runs(np.array([3, 4, 5, 8]))
    (array([3, 8]), array([6, 9]))
    """
    return merged(numbers, numbers + 1)


def part(
    starts: NDArray[np.int64], stops: NDArray[np.int64], before: NDArray[np.int64], first: int, last: int
) -> Ranges:
    """Return the ranges of the numbers `first` to `last`, counted within the ranges.

    Parameters
    ----------
    starts, stops : (m,) int64
    before : (m + 1,) int64
        How many numbers lie in the ranges before each, and in all.
    first, last : int
        Half open: `last` is not in the part.
    """
    if first >= last:
        return starts[:0], stops[:0]
    low = int(np.searchsorted(before, first, side="right")) - 1
    high = int(np.searchsorted(before, last, side="left"))
    starts, stops = starts[low:high].copy(), stops[low:high].copy()
    starts[0] += first - before[low]
    stops[-1] -= before[high] - last
    return starts, stops
