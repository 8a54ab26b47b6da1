"""What earlier code computed, where that differs from what is right; only for comparison with its results.

It is asked for by name (`legacy=True`), recorded in what is stored, and never the default.

References
----------
The repository BrachioLab/SuperActivators, `scripts/pretrained_saes/postprocess_sae_activations.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.unit_figures import UnitFigures, lifetime_sparseness
from saestore.codes import Codes
from saestore.layout import POSITION_TYPES

ITEMS_PER_SAMPLE = 256
"""Rows that every sample is taken to have, texts too."""

_LIST_LENGTH, _CUT_LENGTH = 2000, 1000
_READ_ENTRIES = 1 << 21


@dataclass(frozen=True)
class Span:
    """Rows that earlier code counted as those of a split.

    start, stop : the rows that exist of them
    counted : how many it took them to be, also where there are fewer
    """

    start: int
    stop: int
    counted: int


def split_span(samples: NDArray[np.int64], sample_type: str, n_rows: int) -> Span:
    """Return the rows from the first to the last sample of a split, whatever lies between, 256 for each position type.

    Parameters
    ----------
    samples : (m,) int64
        Places of the samples of the split, at least one.
    n_rows : int
        Rows of the axis.
    """
    first, stop = int(samples.min()), int(samples.max()) + 1
    per_sample = ITEMS_PER_SAMPLE if sample_type in POSITION_TYPES else 1
    return Span(min(first * per_sample, n_rows), min(stop * per_sample, n_rows), (stop - first) * per_sample)


def p99_place(count: int) -> int:
    """Return which of the values in descending order earlier code took for the 99th percentile, counted from 0.

    It kept a list of the values of a unit, cut to the 1,000 largest whenever it was longer than 2,000, so that the
    place depends on the number of values: the length of the list at the end is n = m up to 2,000 values, else
    1,000 + (m - 2,001) mod 1,001, and the place min(floor(0.01 n), n - 1).
    """
    length = count
    if count > _LIST_LENGTH:
        length = _CUT_LENGTH + (count - _LIST_LENGTH - 1) % (_LIST_LENGTH - _CUT_LENGTH + 1)
    return min(length // 100, length - 1)


def span_figures(codes: Codes, span: Span, *, special: bool) -> UnitFigures:
    """Return the figures of units over a span of rows, from the postings; values of 0 and below do not count.

    Raises
    ------
    MissingError, HoleError, IntegrityError
        There are no postings, some were never built, or they are damaged.
    """
    units, postings = codes.kept_units, codes.postings
    count = np.zeros(units.size, dtype=np.int64)
    sums, sum_squares = np.zeros(units.size), np.zeros(units.size)
    p99 = np.full(units.size, np.nan, dtype=np.float32)
    for part, found in postings.blocks(units, _READ_ENTRIES):
        place = np.repeat(np.arange(part.start, part.stop), np.diff(found.offsets))
        held = (found.rows >= span.start) & (found.rows < span.stop) & (found.values > 0)
        if not special:
            held[held] = ~codes.axis.special(found.rows[held])
        place, values = place[held], found.values[held]
        order = np.lexsort((-values, place))
        place, values = place[order], values[order]
        distinct, first, counts = np.unique(place, return_index=True, return_counts=True)
        count[distinct] = counts
        p99[distinct] = values[first + [p99_place(n) for n in counts.tolist()]] if distinct.size else 0
        sums += np.bincount(place, values, units.size)
        sum_squares += np.bincount(place, values.astype(np.float64) ** 2, units.size)
    return UnitFigures(
        rows=span.counted,
        units=units,
        count=count,
        fraction=count / span.counted,
        p99=p99,
        selectivity=lifetime_sparseness(sums, sum_squares, span.counted),
    )


def column_order(active: Iterable[int], *removed: Collection[int]) -> list[int]:
    """Return the units of the columns of files of pruned codes that earlier code wrote, column by column.

    Their unit mapping says that the units ascend, but the columns follow the iteration order of a Python set, from
    which the units that each criterion removed were taken out: the order is that of CPython.

    Parameters
    ----------
    active : iterable of int
        All active units, ascending.
    removed : collections of int
        Those that were removed, one collection for each step: by activity, then by strength.
    """
    kept = {int(unit) for unit in active}
    for units in removed:
        kept -= {int(unit) for unit in units}
    return list(kept)
