"""One number per sample and unit from the rows of a sample: how rows of positions are joined to rows of samples.

A sample is its selected rows. Rows where a unit is not active are zeros and take part: the mean is over all selected
rows of the sample, and the maximum of a unit that is only negative there is 0 if it is inactive in some row. The
maximum is by value and not by magnitude, of signed codes too.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reduction = Literal["max", "mean", "sum", "count", "last"]
"""Maximum, mean and sum over the selected rows; rows where the unit is active; value in the last selected row."""


def reduce_entries(
    places: NDArray[np.integer[Any]],
    units: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
    offsets: NDArray[np.int64],
    how: Reduction,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Reduce entries of codes to one per sample and unit.

    Parameters
    ----------
    places : (n,) int
        Where units are active: numbers of selected rows, counted among the selected rows.
    units : (n,) int
        The units; a pair of row and unit occurs once.
    values : (n,) float
        Their activations there, not 0.
    offsets : (n_samples + 1,) int64
        The first selected row of each sample, counted in the same way, and the number of selected rows.
    how : {"max", "mean", "sum", "count", "last"}

    Returns
    -------
    samples, units : (m,) int64
        Ascending pairs.
    values : (m,) float32
        The reduced activations, none of them 0 unless positive and negative ones cancel. Sums are made in float64.
    """
    if how == "last":
        ends = offsets[1:][offsets[1:] > offsets[:-1]]  # of samples with rows
        kept = np.isin(places, ends - 1)
        places, units, values = places[kept], units[kept], values[kept]
    of_sample = np.searchsorted(offsets, places, side="right") - 1
    order = np.lexsort((places, units, of_sample))
    samples: NDArray[np.int64] = of_sample[order].astype(np.int64)
    of_unit: NDArray[np.int64] = units[order].astype(np.int64)
    if not len(order):
        return samples, of_unit, np.empty(0, np.float32)
    first = np.flatnonzero(np.append(True, (samples[1:] != samples[:-1]) | (of_unit[1:] != of_unit[:-1])))
    active = np.diff(np.append(first, len(order)))
    rows = np.diff(offsets)[samples[first]]
    ordered = values[order].astype(np.float64)
    if how == "count":
        reduced = active.astype(np.float64)
    elif how == "max":
        reduced = np.maximum.reduceat(ordered, first)
        reduced = np.where(active < rows, np.maximum(reduced, 0), reduced)
    else:
        reduced = np.add.reduceat(ordered, first)
        if how == "mean":
            reduced /= rows
    held = reduced != 0 if how == "max" else np.ones(len(first), dtype=bool)
    return samples[first][held], of_unit[first][held], reduced[held].astype(np.float32)
