"""Single units as baselines: the unit whose score of samples detects a concept best, chosen from the postings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore.analysis.counted_rows import CountedRows
from saestore.analysis.pairs import BLOCK_ENTRIES, ENTRY_BYTES
from saestore.analysis.truth import Truth
from saestore.budget import require_memory
from saestore.codes import Codes
from saestore.cuts import unit_shares
from saestore.kernels.baselines import REDUCTIONS, BestUnits, SampleReduction, best_units, counts_at, unit_scores
from saestore.postings import UnitEntries
from saestore.progress import Progress


def choose_units(
    codes: Codes,
    truth: Truth,
    deciding: CountedRows,
    reporting: CountedRows,
    reductions: Sequence[SampleReduction],
    percentiles: NDArray[np.float64],
    *,
    budget: int,
    quiet: bool,
) -> tuple[BestUnits, NDArray[np.int64]]:
    """Choose unit and percentile for each reduction and concept on one split, and count once on another.

    Parameters
    ----------
    codes : Codes
        Of a view, its units alone are candidates.
    truth : Truth
        Which samples have which of its c concepts.
    deciding, reporting : CountedRows
        Rows of the split that decides, and of the one that is only reported.
    reductions : sequence of str
        How a sample's rows become one number.
    percentiles : (p,) float64
        Ascending, as parts of one.
    budget : int
        Bytes that this process may use.
    quiet : bool
        Show no progress.

    Returns
    -------
    (best, counts)
        With original ids of units, and TP, FP, FN, TN on the second split, (reductions, concepts, 4).

    Raises
    ------
    BudgetError
        The unit with the most entries does not fit the memory.
    MissingError, HoleError
        The codes have no postings, or not of all rows.
    """
    units, postings = codes.kept_units, codes.postings
    postings.check_complete()
    counts = postings.counts[units]
    most = int(counts.max(initial=0))
    held = max(most, min(BLOCK_ENTRIES, int(counts.sum())))
    require_memory(
        psutil.Process().memory_info().rss + 2 * held * ENTRY_BYTES,
        budget=budget,
        what=f"baselines of {codes.key.path}, whose most active unit is active in {most:,} rows,",
        remedy="give more with --memory, or prune units that are active nearly everywhere",
    )
    best = _best(codes, units, truth, deciding, reductions, percentiles, quiet)
    best = replace(best, unit=units[best.unit])
    return best, _tested(codes, best, truth, reporting, reductions)


def _best(
    codes: Codes,
    units: NDArray[np.int64],
    truth: Truth,
    split: CountedRows,
    reductions: Sequence[SampleReduction],
    percentiles: NDArray[np.float64],
    quiet: bool,
) -> BestUnits:
    """Return the best unit and percentile, by places among the units."""
    labels = truth.labels_in(split.split)
    wanted = np.array([REDUCTIONS.index(reduction) for reduction in reductions], dtype=np.int64)
    best = BestUnits.none(len(wanted), len(labels))
    threads = os.cpu_count() or 1

    def of(entries: UnitEntries) -> BestUnits:
        return best_units(
            entries.offsets,
            entries.rows,
            entries.values,
            split.marks,
            truth.sample_of_row,
            split.rows_of_sample,
            labels,
            percentiles,
            wanted,
        )

    total = int(codes.postings.counts[units].sum())
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="saestore-baselines") as pool,
        Progress(f"baselines {codes.key.path}", total=total, unit="entries", quiet=quiet) as progress,
    ):
        for places, entries in codes.postings.blocks(units, BLOCK_ENTRIES):
            shares = unit_shares(entries.offsets, threads)
            done = [(places.start + share.start, pool.submit(of, entries.of(share))) for share in shares]
            for first, each in done:  # in the order of units, which decides between equals
                best = best.or_better(each.result(), first)
            progress.advance(len(entries.rows))
    return best


def _tested(
    codes: Codes, best: BestUnits, truth: Truth, split: CountedRows, reductions: Sequence[SampleReduction]
) -> NDArray[np.int64]:
    """Return the counts of chosen units at their thresholds, (reductions, concepts, 4)."""
    labels = truth.labels_in(split.split)
    out = np.zeros((*best.f1.shape, 4), dtype=np.int64)
    units = np.unique(best.unit[best.f1 >= 0])
    for places, entries in codes.postings.blocks(units, BLOCK_ENTRIES):
        for at in range(len(entries.units)):
            one = entries.of(range(at, at + 1))
            scores = unit_scores(one.rows, one.values, split.marks, truth.sample_of_row, split.rows_of_sample)
            mine = (best.f1 >= 0) & (best.unit == units[places.start + at])
            for r, place in zip(*np.nonzero(mine), strict=True):
                reduced = scores[REDUCTIONS.index(reductions[r])]
                out[r, place] = counts_at(reduced, labels[place], best.threshold[r, place, None])[:, 0]
    return out
