"""Statistics of units from their postings, block by block, over rows that are marked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from saestore.cuts import cuts, unit_shares
from saestore.kernels.unit_stats import Entries, RowMarks, UnitTally, tally_long, tally_units
from saestore.postings import Postings
from saestore.prefetch import prefetch, together

if TYPE_CHECKING:
    from saestore.selection import Selection

MOST_ENTRIES = 1 << 21
"""Entries that are held at a time, where there is memory for them; larger blocks are no faster."""

_ROWS_AT_ONCE = 1 << 22


def tally(
    postings: Postings,
    units: range,
    rows: RowMarks,
    percentiles: Sequence[float],
    *,
    block_entries: int = MOST_ENTRIES,
    advance: Callable[[int], None] | None = None,
) -> UnitTally:
    """Return the statistics of consecutive units.

    Parameters
    ----------
    postings : Postings
    units : range
        Original unit ids.
    rows : RowMarks
        Which rows count, and what they belong to.
    percentiles : sequence of float
        Ascending, as parts of one.
    block_entries : int
        Entries that are held at a time.
    advance : callable, optional
        Called with the number of entries that were done.

    Raises
    ------
    HoleError, IntegrityError
        Some of the postings were never written, or are damaged.
    """
    postings.check_complete()
    step = advance or _silent
    counts = postings.counts[units.start : units.stop]
    result = UnitTally.empty(len(counts), rows.n_splits, percentiles)
    blocks = list(pairwise((units.start + cuts(counts, block_entries)).tolist()))
    long = [start for start, stop in blocks if stop - start == 1 and counts[start - units.start] > block_entries]
    long_ones = set(long)
    short = [block for block in blocks if block[0] not in long_ones]
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="saestore-tally") as pool:
        for (start, _), parts in prefetch(lambda block: _entries(postings, *block), short):
            first = start - units.start
            work = [
                pool.submit(tally_units, parts, rows, result, units=share, first=first)
                for share in unit_shares(np.sum([part.edges for part in parts], axis=0), threads)
            ]
            for part in work:
                part.result()
            step(sum(len(part.gaps) for part in parts))
    for unit in long:
        _tally_one(postings, unit, rows, result, unit - units.start, block_entries)
        step(int(counts[unit - units.start]))
    return result


def marks_of(selection: Selection) -> RowMarks:
    """Return marks that let the rows of a selection count, all in one split."""
    axis = selection.axis
    n = len(axis.samples)
    offsets = np.arange(n + 1) if axis.positions is None else axis.positions.offsets
    marks = RowMarks.of(np.zeros(n, dtype=np.int64), 1, offsets)
    for start in range(0, axis.n_rows, _ROWS_AT_ONCE):
        marks.leave_out(start, ~selection.mask(start, min(start + _ROWS_AT_ONCE, axis.n_rows)))
    return marks


def counted(rows: RowMarks) -> list[tuple[int, int]]:
    """Return the counted rows, and the samples that have one, of all rows and of each split.

    They are what the statistics say of a unit that is active in every row.
    """

    def everywhere() -> Iterator[Entries]:
        for start in range(0, len(rows.marks), _ROWS_AT_ONCE):
            n = min(_ROWS_AT_ONCE, len(rows.marks) - start)
            yield Entries(np.ones(n, dtype=np.uint32), np.ones(n, dtype=np.float16), np.array([0, n]), start - 1)

    result = UnitTally.empty(1, rows.n_splits, ())
    tally_long(everywhere, rows, result, place=0)
    columns = [result.columns(split) for split in (None, *range(rows.n_splits))]
    return [(int(each["count"][0]), int(each["samples"][0])) for each in columns]


def _tally_one(
    postings: Postings, unit: int, rows: RowMarks, result: UnitTally, place: int, block_entries: int
) -> None:
    """Take in a unit whose entries are more than a block."""

    def pieces() -> Iterator[Entries]:
        for segment in postings.segments:
            start, stop = segment.indptr[unit : unit + 2].tolist()
            row = segment.first_row
            for first in range(start, stop, block_entries):
                last = min(first + block_entries, stop)
                gaps, values = together(lambda name: segment.group.read(name, first, last), ("row_gaps", "values"))  # noqa: B023
                yield Entries(gaps, values, np.array([0, last - first]), row)
                row += int(gaps.sum(dtype=np.int64))

    tally_long(pieces, rows, result, place=place)


def _entries(postings: Postings, start: int, stop: int) -> list[Entries]:
    """Read the entries of the units `start:stop`, segment by segment."""
    parts = []
    for segment in postings.segments:
        edges = segment.indptr[start : stop + 1]
        first, last = int(edges[0]), int(edges[-1])
        gaps, values = together(lambda name: segment.group.read(name, first, last), ("row_gaps", "values"))  # noqa: B023
        parts.append(Entries(gaps, values, edges - first, segment.first_row))
    return parts


def _silent(count: int) -> None:
    """Nobody counts."""
