"""Pairs of units that are correlated, from joint sums of sparse codes: exact, and never an array of all pairs.

Row by row of the product of two sparse matrices (Gustavson 1978, "Two fast algorithms for sparse matrices:
multiplication and permuted transposition", ACM TOMS 4(3)): for a unit of a, each of its rows adds the entries of that
row of b to one row of sums. It costs as many additions as there are pairs of entries in a row, and memory for one row
of sums for each thread, whatever the number of pairs.

Sums are float64, added in the order of rows of a, so that threads and blocks of units leave the bits as they are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.early_loads import ask_for
from saestore.kernels.entry_orders import RowMajor, UnitMajor, sort_rows, unit_major
from saestore.kernels.pair_rules import Ends, Found, Moments, Rule, TooManyPairs

__all__ = [
    "Found",
    "Moments",
    "RowMajor",
    "Rule",
    "TooManyPairs",
    "UnitMajor",
    "found_pairs",
    "sort_rows",
    "unit_major",
]

_SLACK = 1 - 1e-12
"""What compiled code picks is a little more than the rule keeps, by more than rounding: r itself decides."""

_BLOCK_BITS = 6  # sums are looked at in blocks of 64 units, those without an entry not at all
_BLOCK = 1 << _BLOCK_BITS
_CHUNKS = 256  # shares of the work: never more or fewer with the number of threads, so that errors are the same
_SPARE_PAIRS = 1 << 16
_AHEAD = 16  # rows of b that are asked for before their turn
_LONGEST_ASKED = 256  # entries of a row that are asked for: after these the processor has seen where it goes
_LINE = 64  # bytes of a cache line


def found_pairs(
    a: UnitMajor,
    places_a: NDArray[np.integer[Any]],
    b: RowMajor,
    moments_a: Moments,
    moments_b: Moments,
    rule: Rule,
    *,
    limit: int,
    order: NDArray[np.integer[Any]] | None = None,
    mask_a: NDArray[np.bool_] | None = None,
    mask_b: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Found:
    """Return the pairs that a rule keeps, of some units of one end with all units of another or the same.

    Parameters
    ----------
    a : UnitMajor
        Entries of m units of the first end.
    places_a : (m,) integers
        Their places among all units of that end, ascending.
    b : RowMajor
        Entries of the other end, over the same N rows.
    moments_a, moments_b : Moments
        Of all units of each end.
    rule : Rule
    limit : int
        Pairs that may be found.
    order : (N,) integers, optional
        Row r of a meets row ``order[r]`` of b: a permutation makes a null without true pairs.
    mask_a, mask_b : (units of the end,) bool, optional
        Units that take part; those that are dead or constant never do.
    device : str
        Where sums are made: compiled code on ``"cpu"``, torch on others.
    threads : int, optional
        On the CPU; as many as there are cores.

    Raises
    ------
    TooManyPairs
        More than `limit` pairs are kept.
    ValueError
        The ends are not over the same rows, or places do not ascend.
    """
    _check(a, places_a, b, moments_a, moments_b, order)
    ends = Ends.of(places_a, moments_a, moments_b, mask_a, mask_b)
    if order is not None:
        a = UnitMajor(a.pointers, order.astype(np.uint32)[a.rows], a.values)
    if device == "cpu":
        parts = _on_cpu(a, places_a, b, ends, rule, limit, threads or os.cpu_count() or 1)
    else:
        from saestore.kernels.coactivation_torch import pairs_on

        parts = pairs_on(a, places_a, b, ends, rule, device=device)
    return _gathered(parts, limit)


def _check(
    a: UnitMajor,
    places_a: NDArray[np.integer[Any]],
    b: RowMajor,
    moments_a: Moments,
    moments_b: Moments,
    order: NDArray[np.integer[Any]] | None,
) -> None:
    """Compiled code reads what rows and places point to, so that wrong ones must not get there."""
    n = b.n_rows
    if not moments_a.n == moments_b.n == n:
        raise ValueError(f"sums over {moments_a.n} and {moments_b.n} rows are not those of {n} rows")
    if len(a.rows) and int(a.rows.max()) >= n:
        raise ValueError(f"a row of the first end is not below {n}")
    if len(places_a) != len(a.pointers) - 1 or (np.diff(places_a.astype(np.int64)) <= 0).any():
        raise ValueError(f"{len(places_a)} places do not ascend, or are not those of {len(a.pointers) - 1} units")
    if len(moments_b.active) != b.n_units:
        raise ValueError(f"sums of {len(moments_b.active)} units are not those of {b.n_units} units")
    if order is not None and (len(order) != n or (n and not 0 <= int(order.min()) <= int(order.max()) < n)):
        raise ValueError(f"an order of {len(order)} rows is not one of {n} rows")


def _gathered(parts: Iterator[tuple[Found, int]], limit: int) -> Found:
    """Join parts, each with the number of units done by then."""
    kept: list[Found] = []
    count = 0
    for part, units_done in parts:
        kept.append(part)
        count += len(part.r)
        if count > limit:
            raise TooManyPairs(kept, units_done)
    return Found.joined(kept)


@dataclass(frozen=True)
class _Scratch:
    """What one thread adds up and picks.

    sums, counts : (d,)
        Zeros between units; d is a whole number of blocks.
    seen : (d / 64,) uint8
        Which blocks have an entry.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int32]
    seen: NDArray[np.uint8]
    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    products: NDArray[np.float64]
    n_ab: NDArray[np.int64]

    @classmethod
    def of(cls, d: int) -> _Scratch:
        room = d + _SPARE_PAIRS  # so that the pairs of at least one unit always fit
        return cls(
            np.zeros(d),
            np.zeros(d, dtype=np.int32),
            np.zeros(d >> _BLOCK_BITS, dtype=np.uint8),
            np.empty(room, dtype=np.uint32),
            np.empty(room, dtype=np.uint32),
            np.empty(room),
            np.empty(room, dtype=np.int64),
        )


def _on_cpu(
    a: UnitMajor,
    places_a: NDArray[np.integer[Any]],
    b: RowMajor,
    ends: Ends,
    rule: Rule,
    limit: int,
    threads: int,
) -> Iterator[tuple[Found, int]]:
    """Find pairs share by share, in order; shares are begun a few ahead of the one that is waited for."""
    d = -(-b.n_units // _BLOCK) * _BLOCK
    scan = _scanner(a, places_a, b, ends, rule, d)
    spare: SimpleQueue[_Scratch] = SimpleQueue()
    for _ in range(threads):
        spare.put(_Scratch.of(d))

    def work(first: int, stop: int) -> list[tuple[Found, int]]:
        with _borrowed(spare) as scratch:
            parts: list[tuple[Found, int]] = []
            count = 0
            while first < stop and count <= limit:
                first, picked = scan(first, stop, scratch)
                parts.append((_kept(scratch, picked, places_a, ends, rule), first))
                count += len(parts[-1][0].r)
            return parts

    with ThreadPoolExecutor(threads, thread_name_prefix="saestore-pairs") as pool:
        ahead: deque[Future[list[tuple[Found, int]]]] = deque()
        try:
            for first, stop in pairwise(_chunks(a.pointers)):
                ahead.append(pool.submit(work, first, stop))
                if len(ahead) > 2 * threads:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _borrowed(spare: SimpleQueue[_Scratch]) -> Iterator[_Scratch]:
    scratch = spare.get()
    try:
        yield scratch
    finally:
        spare.put(scratch)


def _chunks(pointers: NDArray[np.int64]) -> list[int]:
    """Where to cut units into shares of about as much work: their entries, and the look at their sums."""
    work = pointers + np.arange(len(pointers))
    inner = np.searchsorted(work, np.linspace(0, work[-1], _CHUNKS + 1)[1:-1])
    return sorted({0, *inner.tolist(), len(pointers) - 1})


def _scanner(
    a: UnitMajor, places_a: NDArray[np.integer[Any]], b: RowMajor, ends: Ends, rule: Rule, d: int
) -> Callable[[int, int, _Scratch], tuple[int, int]]:
    """Return what scans the units `first:stop` until its scratch is full: the first unit not done, and the pairs."""
    padding = d - b.n_units
    mean_b, deviation_b = (
        np.pad(ends.mean_b, (0, padding)),
        np.pad(ends.deviation_b, (0, padding), constant_values=np.inf),
    )
    active_b = np.pad(ends.active_b, (0, padding))
    ratio_b = np.abs(mean_b) / deviation_b
    takes_part_b = np.flatnonzero(np.isfinite(deviation_b))
    steepest = takes_part_b[np.argsort(-ratio_b[takes_part_b], kind="stable")]
    first_b = places_a.astype(np.int64) + 1 if rule.within else np.zeros(len(places_a), dtype=np.int64)
    lowest = ends.n * ends.deviation_a * rule.min_r * _SLACK
    takes_part = ends.deviation_a > 0
    line = _LINE // b.units.itemsize, _LINE // b.values.itemsize

    def scan(first: int, stop: int, scratch: _Scratch) -> tuple[int, int]:
        done, picked = _scan(
            first,
            stop,
            (a.pointers, a.rows, a.values),
            (takes_part, first_b, ends.sum_a, lowest, ends.active_a),
            (b.pointers, b.units, b.values),
            line,
            (mean_b, deviation_b, active_b),
            (ratio_b[steepest], steepest),
            ends.n,
            rule.min_support,
            (scratch.sums, scratch.counts, scratch.seen),
            (scratch.a, scratch.b, scratch.products, scratch.n_ab),
        )
        return int(done), int(picked)

    return scan


def _kept(scratch: _Scratch, picked: int, places_a: NDArray[np.integer[Any]], ends: Ends, rule: Rule) -> Found:
    """Take out what the rule keeps of the picked pairs."""
    a, b = scratch.a[:picked], scratch.b[:picked]
    r = ends.correlation(a, b, scratch.products[:picked])
    kept = np.abs(r) >= rule.min_r
    return Found(places_a[a[kept]].astype(np.uint32), b[kept], r[kept], scratch.n_ab[:picked][kept])


@numba.njit(nogil=True, cache=True)
def _scan(
    first: int,
    stop: int,
    entries_a: Any,
    units_a: Any,
    entries_b: Any,
    line: Any,
    units_b: Any,
    ratios_b: Any,
    n: int,
    min_support: int,
    scratch: Any,
    picked: Any,
) -> Any:
    takes_part, first_b = units_a[0], units_a[1]
    sums, counts, seen = scratch
    count = 0
    for unit in range(first, stop):
        if not takes_part[unit]:
            continue
        if count + len(sums) > len(picked[0]):
            return unit, count
        _add_products(unit, entries_a, entries_b, line, first_b[unit], sums, counts, seen)
        before = count
        count = _pick_unseen(unit, units_a, units_b, ratios_b, n, min_support, seen, picked, count)
        out_of_order = count > before
        count = _pick_seen(unit, units_a, units_b, n, min_support, sums, counts, seen, picked, count)
        if out_of_order:
            others, products, together = picked[1][before:count], picked[2][before:count], picked[3][before:count]
            order = np.argsort(others)
            others[:], products[:], together[:] = others[order], products[order], together[order]
    return stop, count


@numba.njit(nogil=True, cache=True)
def _add_products(
    unit: int, entries_a: Any, entries_b: Any, line: Any, first_b: int, sums: Any, counts: Any, seen: Any
) -> None:
    """Add a unit's products with the units of b from `first_b` on."""
    pointers_a, rows, values_a = entries_a
    pointers, units, values = entries_b
    stop = pointers_a[unit + 1]
    for place in range(pointers_a[unit], stop):
        if place + 2 * _AHEAD < stop:
            ask_for(pointers, np.int64(rows[place + 2 * _AHEAD]))
        if place + _AHEAD < stop:
            row = np.int64(rows[place + _AHEAD])
            low, high = pointers[row], pointers[row + 1]
            for entry in range(low, min(high, low + _LONGEST_ASKED), line[0]):
                ask_for(units, entry)
            for entry in range(low, min(high, low + _LONGEST_ASKED), line[1]):
                ask_for(values, entry)
            ask_for(units, high - 1)
            ask_for(values, high - 1)
        row, x = np.int64(rows[place]), np.float64(values_a[place])
        low, high = pointers[row], pointers[row + 1]
        while low < high and units[low] < first_b:
            low += 1
        for entry in range(low, high):
            other = np.int64(units[entry])
            sums[other] += x * np.float64(values[entry])
            counts[other] += 1
            seen[other >> _BLOCK_BITS] = 1


@numba.njit(nogil=True, cache=True)
def _pick_unseen(
    unit: int, units_a: Any, units_b: Any, ratios_b: Any, n: int, min_support: int, seen: Any, picked: Any, count: int
) -> int:
    """Pick pairs that are never active together, in blocks that were not seen, by descending |mean| / deviation of b.

    For these r is -mean_a mean_b / (d_a d_b), so that the first pair below the threshold ends the search: mostly the
    very first.
    """
    first_b, sum_a, lowest, active_a = units_a[1][unit], units_a[2][unit], units_a[3][unit], units_a[4][unit]
    ratios, steepest = ratios_b
    for place in range(len(ratios)):
        if abs(sum_a) * ratios[place] < lowest:
            break
        other = steepest[place]
        if other < first_b or seen[other >> _BLOCK_BITS]:
            continue
        if _supported(0, active_a, units_b[2][other], n, min_support):
            _put(picked, count, unit, other, 0.0, 0)
            count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _pick_seen(
    unit: int,
    units_a: Any,
    units_b: Any,
    n: int,
    min_support: int,
    sums: Any,
    counts: Any,
    seen: Any,
    picked: Any,
    count: int,
) -> int:
    """Pick pairs in blocks that were seen, active together or not, and clear these."""
    first_b, sum_a, lowest, active_a = units_a[1][unit], units_a[2][unit], units_a[3][unit], units_a[4][unit]
    mean_b, deviation_b, active_b = units_b
    for block in range(first_b >> _BLOCK_BITS, len(seen)):
        if not seen[block]:
            continue
        low = block << _BLOCK_BITS
        high = low + _BLOCK
        # Without a branch, which makes vectors of it.
        block_sums, block_means, block_deviations = sums[low:high], mean_b[low:high], deviation_b[low:high]
        reached = 0
        for place in range(_BLOCK):
            reached += abs(block_sums[place] - sum_a * block_means[place]) >= lowest * block_deviations[place]
        if reached:
            for other in range(max(low, first_b), high):
                if abs(sums[other] - sum_a * mean_b[other]) >= lowest * deviation_b[other] and _supported(
                    counts[other], active_a, active_b[other], n, min_support
                ):
                    _put(picked, count, unit, other, sums[other], counts[other])
                    count += 1
        sums[low:high] = 0
        counts[low:high] = 0
        seen[block] = 0
    return count


@numba.njit(nogil=True, inline="always")
def _supported(n_ab: int, n_a: int, n_b: int, n: int, min_support: int) -> Any:
    return n_ab >= min_support or np.float64(n_a) * np.float64(n_b) / n >= min_support


@numba.njit(nogil=True, inline="always")
def _put(picked: Any, count: int, unit: int, other: int, product: float, n_ab: int) -> None:
    a, b, products, counts = picked
    a[count], b[count], products[count], counts[count] = unit, other, product, n_ab
