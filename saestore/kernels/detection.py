"""Detection of concepts in samples: a unit fires in a sample where its largest value there reaches a threshold."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.thresholds import sort_key


def confusion(
    edges: NDArray[np.int64],
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    counted: NDArray[np.bool_],
    sample_of_row: NDArray[np.uint32],
    labels: NDArray[np.uint8],
    thresholds: NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Count in how many samples units fire, those that have each concept and those that have not.

    Parameters
    ----------
    edges : (m + 1,) int64
        Unit i has the entries `edges[i]:edges[i + 1]`.
    rows, values : (e,)
        Where each unit is active, ascending rows; values that are not positive never fire.
    counted : (n,) bool
        Rows that are looked at.
    sample_of_row : (n,) uint32
        Rows of a sample follow each other.
    labels : (c, samples) uint8
        1 where a sample has a concept, 0 where it has not; other samples are not counted for the concept.
    thresholds : (m, c, p) float32
        Along p not ascending.

    Returns
    -------
    (true positives, false positives)
        (m, c, p) int32 each.

    References
    ----------
    docs/concepts.md
    """
    shape = thresholds.shape
    tp, fp = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    longest = int(np.diff(edges).max(initial=0))
    _confusion(
        edges, rows, values, counted, sample_of_row, labels, thresholds, np.empty(longest, dtype=np.uint64), tp, fp
    )
    return tp, fp


@numba.njit(nogil=True, cache=True)
def _confusion(
    edges: Any,
    rows: Any,
    values: Any,
    counted: Any,
    sample_of_row: Any,
    labels: Any,
    thresholds: Any,
    keys: Any,
    tp: Any,
    fp: Any,
) -> None:
    _, concepts, levels = thresholds.shape
    for unit in range(len(edges) - 1):
        held = 0
        last = np.int64(-1)
        most = np.float32(0)
        for entry in range(edges[unit], edges[unit + 1]):
            value = values[entry]
            if value <= 0 or not counted[rows[entry]]:
                continue
            sample = np.int64(sample_of_row[rows[entry]])
            if sample != last:
                if last >= 0:
                    keys[held] = sort_key(most, last)  # type: ignore[arg-type]
                    held += 1
                last, most = sample, value
            elif value > most:
                most = value
        if last >= 0:
            keys[held] = sort_key(most, last)  # type: ignore[arg-type]
            held += 1
        ordered = keys[:held]
        ordered.sort()
        for c in range(concepts):
            place = held
            hits = misses = 0
            for p in range(levels):
                threshold = thresholds[unit, c, p]
                while place > 0 and _value_of(ordered[place - 1]) >= threshold:
                    place -= 1
                    label = labels[c, np.int64(ordered[place] & np.uint64(0xFFFFFFFF))]
                    hits += label == 1
                    misses += label == 0
                tp[unit, c, p] = hits
                fp[unit, c, p] = misses


@numba.njit(nogil=True, inline="always")
def _value_of(key: Any) -> Any:
    return np.uint32(key >> np.uint64(32)).view(np.float32)
