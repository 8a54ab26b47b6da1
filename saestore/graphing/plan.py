"""The plan of a graph: how units are cut into blocks so that the entries of both fit the memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saestore.budget import readable_bytes
from saestore.cuts import cuts
from saestore.errors import BudgetError

_POINTER_BYTES = 8
_SCRATCH_BYTES = 40  # of a unit of b and a thread: sums, counts and found pairs
_READING_BYTES = 192 << 20  # blocks of rows while they are read and taken apart; measured
_SHARES = 16  # tasks of a pair of blocks at least, so that little is lost when a run is stopped


@dataclass(frozen=True)
class Blocks:
    """Blocks of the units of both ends of a pair.

    a, b : (blocks + 1,) int64, the first unit of each block, and how many there are
    bytes : the most that entries of a block of each, and the sums, take
    scans : how often an end is read
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    bytes: int
    scans: int


def plan_blocks(
    active_a: NDArray[np.int64], active_b: NDArray[np.int64], n_rows: int, budget: int, *, within: bool
) -> Blocks:
    """Cut the units of a pair of ends of codes so that an end is read as seldom as the memory allows.

    Entries of a block of b lie in memory by rows; those of a block of a too, until they are sorted by units.

    Parameters
    ----------
    active_a, active_b : (units of the end,) int64
        Entries of each unit.
    n_rows : int
    budget : int
        Bytes.
    within : bool
        Both are the same end.

    Raises
    ------
    BudgetError
        The pointers of so many rows alone do not fit, or one unit does not.
    """
    threads = os.cpu_count() or 1
    rows_b, rows_a = _entry_bytes(len(active_b)), _entry_bytes(len(active_a))
    best: Blocks | None = None
    for count in range(1, 65):
        edges_b = _cut(active_b, count)
        widest = max(stop - first for first, stop in pairwise(edges_b.tolist()))
        held_b = _largest(active_b, edges_b) * rows_b + _POINTER_BYTES * (n_rows + 1)
        fixed = held_b + threads * widest * _SCRATCH_BYTES + _READING_BYTES
        if within and len(edges_b) == 2:
            per_entry, pointers = 8, 0  # sorted from the rows that are there
        else:
            per_entry, pointers = rows_a + 8, _POINTER_BYTES * (n_rows + 1)
        left = budget - fixed - pointers
        if left <= 0:
            continue
        edges_a = cuts(active_a * per_entry + 2 * _POINTER_BYTES, left)
        needed = fixed + pointers + _largest(active_a, edges_a) * per_entry
        if needed > budget:
            continue
        found = Blocks(edges_a, edges_b, needed, (len(edges_b) - 1) * len(edges_a))
        if best is None or found.scans < best.scans:
            best = found
    if best is None:
        least = (
            2 * _POINTER_BYTES * (n_rows + 1) + _READING_BYTES + threads * (len(active_b) // 64 + 1) * _SCRATCH_BYTES
        )
        raise BudgetError(
            f"a graph over {n_rows:,} rows needs more than {readable_bytes(max(least, budget))}; give more --memory, "
            "fewer rows (--where, --split), or join rows to samples (--pooling)"
        )
    return best


def shares(active: NDArray[np.int64], first: int, stop: int) -> list[tuple[int, int]]:
    """Cut a block of units into tasks of about as many entries."""
    edges = first + _cut(active[first:stop], _SHARES)
    return list(pairwise(edges.tolist()))


def dense_bytes(widths: Sequence[int], products: int, block_rows: int) -> int:
    """Return what blocks of rows of the columns of all ends take, and so many products of them with correlations."""
    return 2 * 8 * products + 3 * 8 * max(widths) ** 2 + 4 * 8 * block_rows * sum(widths)


def _entry_bytes(units: int) -> int:
    return 4 + (2 if units <= 1 << 16 else 4)


def _cut(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Cut units into so many parts at most, of about as many entries."""
    before = np.append(0, np.cumsum(sizes + 1))
    edges = np.searchsorted(before, np.linspace(0, before[-1], count + 1))
    edges[0], edges[-1] = 0, len(sizes)
    return np.unique(edges)


def _largest(sizes: NDArray[np.int64], edges: NDArray[np.int64]) -> int:
    return max(int(sizes[first:stop].sum()) for first, stop in pairwise(edges.tolist()))
