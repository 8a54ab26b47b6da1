"""Statistics of units from their entries in the postings: one pass for the sums, then the percentiles of its values.

What is added up is added per unit in the order of its rows, so that results depend neither on how the entries are cut
nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.order_statistics import (
    GROUP_BITS,
    MAX_GROUPS,
    select_long,
    select_short,
    word_dtype,
)
from saestore.kernels.quantize import as_float32

NOT_COUNTED = np.uint32(0xFFFF_FFFF)
"""The mark of rows that no statistic counts."""

_RUN = 256  # entries whose marks are looked up together, so that no branch waits for memory


@dataclass(frozen=True)
class RowMarks:
    """Which sample and which split each row belongs to. The rows of a sample that are counted are of one split.

    marks : (n,) uint32
        The number of the sample above two bits for that of the split, or `NOT_COUNTED`: one look-up without a search
        for each entry.
    """

    marks: NDArray[np.uint32]
    n_splits: int

    @classmethod
    def of(cls, split: NDArray[np.integer[Any]], n_splits: int, offsets: NDArray[np.int64]) -> RowMarks:
        """Mark the rows of samples.

        Parameters
        ----------
        split : (n_samples,) integers
            Below `n_splits`, which is 4 at most.
        offsets : (n_samples + 1,) int64
            First row of each sample, and the number of rows.
        """
        assert n_splits <= MAX_GROUPS
        assert len(split) < NOT_COUNTED >> GROUP_BITS
        marks = np.arange(len(split), dtype=np.uint32) << np.uint32(GROUP_BITS) | split.astype(np.uint32)
        return cls(np.repeat(marks, np.diff(offsets)), n_splits)

    def leave_out(self, start: int, rows: NDArray[np.bool_]) -> None:
        """Do not count some of the rows from `start` on."""
        self.marks[start : start + len(rows)][rows] = NOT_COUNTED


@dataclass(frozen=True)
class Entries:
    """Entries of consecutive units, from one segment of the postings.

    gaps : (e,) uint32
        The first row of each unit, counted from `first_row`, and the distance of each further row from the one before.
    values : (e,) float16, float32, or uint16 (the bit patterns of bfloat16)
    edges : (m + 1,) int64
        The entries of the i-th unit are `edges[i]:edges[i + 1]`.
    """

    gaps: NDArray[np.uint32]
    values: NDArray[Any]
    edges: NDArray[np.int64]
    first_row: int


@dataclass(frozen=True)
class UnitTally:
    """Statistics of m units so far, of each of s splits; see `columns`.

    order : (m, s + 1, p + 2) float32
        Minimum, percentiles and maximum, of each split and of all rows.
    last_sample : (m,) int64
        Of the last counted row.
    """

    count: NDArray[np.int64]
    samples: NDArray[np.int64]
    sum: NDArray[np.float64]
    sum_squares: NDArray[np.float64]
    first_row: NDArray[np.int64]
    last_row: NDArray[np.int64]
    order: NDArray[np.float32]
    last_sample: NDArray[np.int64]
    levels: NDArray[np.float64]

    @classmethod
    def empty(cls, m: int, n_splits: int, percentiles: Sequence[float]) -> UnitTally:
        """Return the statistics of units without entries; `percentiles` are ascending, as parts of one."""
        shape = m, n_splits
        return cls(
            count=np.zeros(shape, dtype=np.int64),
            samples=np.zeros(shape, dtype=np.int64),
            sum=np.zeros(shape, dtype=np.float64),
            sum_squares=np.zeros(shape, dtype=np.float64),
            first_row=np.full(shape, -1, dtype=np.int64),
            last_row=np.full(shape, -1, dtype=np.int64),
            order=np.full((m, n_splits + 1, len(percentiles) + 2), np.nan, dtype=np.float32),
            last_sample=np.full(m, -1, dtype=np.int64),
            levels=np.array([0.0, *percentiles, 1.0]),
        )

    def columns(self, split: int | None) -> dict[str, NDArray[Any]]:
        """Return the statistics of one split, or of all counted rows.

        Returns
        -------
        mapping
            `count` and `samples` (m,) int64, active rows and samples with one; `sum` and `sum_squares` (m,) float64,
            those of all rows being the sums of the splits; `max` and `min` (m,) float32, of the active rows, NaN where
            there is none; `first_row` and `last_row` (m,) int64, -1 where there is none; `percentiles` (m, p) float32.
        """
        place = self.count.shape[1] if split is None else split
        order = self.order[:, place]
        totals = {name: getattr(self, name) for name in ("count", "samples", "sum", "sum_squares")}
        # Split by split: what numpy's own sum would do with an axis may depend on its version.
        merged = {name: _one_by_one(each) if split is None else each[:, split] for name, each in totals.items()}
        if split is None:
            first = np.where(self.first_row < 0, np.iinfo(np.int64).max, self.first_row).min(axis=1)
            rows = np.where(merged["count"] > 0, first, -1), self.last_row.max(axis=1)
        else:
            rows = self.first_row[:, split], self.last_row[:, split]
        return merged | {
            "max": order[:, -1],
            "min": order[:, 0],
            "first_row": rows[0],
            "last_row": rows[1],
            "percentiles": order[:, 1:-1],
        }


def tally_units(parts: Sequence[Entries], rows: RowMarks, tally: UnitTally, *, units: range, first: int) -> None:
    """Take in all entries of some units.

    Threads may share the work by taking different units.

    Parameters
    ----------
    parts : sequence of Entries
        Of the same consecutive units, from each segment in the order of rows.
    units : range
        Which of these units this call takes.
    first : int
        Place in `tally` of the first of all units of `parts`; nothing has been taken in for those of `units`.

    Raises
    ------
    IndexError
        An entry is of a row that does not exist.
    """
    if not units:
        return
    inside = slice(units.start, units.stop)
    lengths = np.sum([np.diff(part.edges)[inside] for part in parts], axis=0, dtype=np.int64)
    edges = np.append(0, np.cumsum(lengths))
    stored = parts[0].values.dtype
    words = np.empty(edges[-1], dtype=word_dtype(stored))
    ends = edges[:-1].copy()
    for part in parts:
        _take_in(part, rows, tally, units, first + units.start, words, ends)
    places = slice(first + units.start, first + units.stop)
    counts = tally.count[places]
    keys = select_short(words, edges, ends, counts, tally.levels)
    _set_order(tally, places, keys, counts, stored)


def tally_long(read: Callable[[], Iterable[Entries]], rows: RowMarks, tally: UnitTally, *, place: int) -> None:
    """Take in all entries of one unit that has too many to be held at once.

    Parameters
    ----------
    read : callable
        Gives the entries of this unit alone, in pieces and in the order of rows; called again for values of 32 bits.
    place : int
        Place of the unit in `tally`.

    Raises
    ------
    IndexError
        An entry is of a row that does not exist.
    """
    stored = np.dtype(np.float32)

    def words_of(target: UnitTally, at: int) -> Iterator[NDArray[Any]]:
        nonlocal stored
        for part in read():
            stored = part.values.dtype
            words = np.empty(len(part.gaps), dtype=word_dtype(stored))
            ends = np.zeros(1, dtype=np.int64)
            _take_in(part, rows, target, range(1), at, words, ends)
            yield words[: ends[0]]

    # A second time the words alone are wanted.
    targets = iter([(tally, place), (UnitTally.empty(1, rows.n_splits, ()), 0)])
    keys = select_long(lambda: words_of(*next(targets)), tally.count[place], tally.levels)
    _set_order(tally, slice(place, place + 1), keys[None], tally.count[place : place + 1], stored)


def _take_in(
    part: Entries,
    rows: RowMarks,
    tally: UnitTally,
    units: range,
    first: int,
    words: NDArray[Any],
    ends: NDArray[np.int64],
) -> None:
    places = slice(first, first + len(units))
    size = part.values.dtype.itemsize
    taken = _tally(
        part.gaps,
        np.ascontiguousarray(part.values).view(f"u{size}"),
        _numbers(part.values.dtype),
        1 << (8 * size - 1),
        part.edges[units.start : units.stop + 1],
        part.first_row,
        rows.marks,
        tally.count[places],
        tally.samples[places],
        tally.sum[places],
        tally.sum_squares[places],
        tally.first_row[places],
        tally.last_row[places],
        tally.last_sample[places],
        words,
        ends,
    )
    if not taken:
        raise IndexError(f"a row is not below {len(rows.marks)}")


def _set_order(
    tally: UnitTally, places: slice, keys: NDArray[np.int64], counts: NDArray[np.int64], stored: np.dtype[Any]
) -> None:
    held = np.column_stack([counts, counts.sum(axis=1)]) > 0
    tally.order[places] = np.where(held[..., None], _numbers_of(keys, stored), np.float32(np.nan))


def _one_by_one(splits: NDArray[Any]) -> NDArray[Any]:
    total = splits[:, 0].copy()
    for column in range(1, splits.shape[1]):
        total += splits[:, column]
    return total


def _numbers_of(keys: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Return the numbers that keys of stored values stand for; see `_order_key`."""
    top = 1 << (8 * dtype.itemsize - 1)
    bits = np.where(keys & top, keys ^ top, ~keys & (2 * top - 1))
    return as_float32(bits.astype(f"u{dtype.itemsize}").view(dtype))


@lru_cache(maxsize=4)
def _numbers(dtype: np.dtype[Any]) -> NDArray[np.float32] | None:
    """Return the number of each pattern of 16 bits; None where patterns are float32 themselves."""
    return as_float32(np.arange(1 << 16, dtype=np.uint16).view(dtype)) if dtype.itemsize == 2 else None


@numba.njit(nogil=True, inline="always")
def _order_key(pattern: Any, top: int) -> Any:
    """Return a number that sorts as the value with these bits does; `top` is the bit of its sign."""
    bits = np.int64(pattern)
    return bits ^ (2 * top - 1) if bits & top else bits | top


@numba.njit(nogil=True, cache=True)
def _tally(
    gaps: Any,
    bits: Any,
    numbers: Any,
    top: int,
    edges: Any,
    first_row: int,
    marks: Any,
    count: Any,
    samples: Any,
    total: Any,
    squares: Any,
    first: Any,
    last: Any,
    last_sample: Any,
    words: Any,
    ends: Any,
) -> bool:
    groups = count.shape[1]
    # Of the unit at hand: count, samples, first and last row, sum and sum of squares. One small table is found faster.
    numbers_of_group = np.empty((MAX_GROUPS, 4), dtype=np.int64)
    sums_of_group = np.empty((MAX_GROUPS, 2), dtype=np.float64)
    rows = np.empty(_RUN, dtype=np.int64)
    marked = np.empty(_RUN, dtype=np.uint32)
    for unit in range(len(edges) - 1):
        row = np.int64(first_row)
        previous = last_sample[unit]
        place = ends[unit]
        for g in range(groups):
            numbers_of_group[g, 0] = count[unit, g]
            numbers_of_group[g, 1] = samples[unit, g]
            numbers_of_group[g, 2] = first[unit, g]
            numbers_of_group[g, 3] = last[unit, g]
            sums_of_group[g, 0] = total[unit, g]
            sums_of_group[g, 1] = squares[unit, g]
        for start in range(edges[unit], edges[unit + 1], _RUN):
            n = min(_RUN, edges[unit + 1] - start)
            for j in range(n):
                row += np.int64(gaps[start + j])
                rows[j] = row
            if row >= len(marks):
                return False
            for j in range(n):
                marked[j] = marks[np.uint64(rows[j])]
            for j in range(n):
                mark = marked[j]
                if mark == NOT_COUNTED:
                    continue
                sample = np.int64(mark >> GROUP_BITS)
                group = np.uint64(mark & (MAX_GROUPS - 1))
                pattern = bits[start + j]
                if numbers is None:
                    value = np.float64(np.uint32(pattern).view(np.float32))
                else:
                    value = np.float64(numbers[pattern])
                numbers_of_group[group, 1] += sample != previous
                previous = sample
                if numbers_of_group[group, 0] == 0:
                    numbers_of_group[group, 2] = rows[j]
                numbers_of_group[group, 0] += 1
                numbers_of_group[group, 3] = rows[j]
                sums_of_group[group, 0] += value
                sums_of_group[group, 1] += value * value
                words[place] = (_order_key(pattern, top) << GROUP_BITS) | np.int64(group)
                place += 1
        for g in range(groups):
            count[unit, g] = numbers_of_group[g, 0]
            samples[unit, g] = numbers_of_group[g, 1]
            first[unit, g] = numbers_of_group[g, 2]
            last[unit, g] = numbers_of_group[g, 3]
            total[unit, g] = sums_of_group[g, 0]
            squares[unit, g] = sums_of_group[g, 1]
        last_sample[unit] = previous
        ends[unit] = place
    return True
