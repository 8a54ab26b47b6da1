"""Choosing what detects a concept best from one score per sample: thresholds, counts, and the best of many units.

A threshold at percentile p is the (1 - p) quantile (numpy's `linear`) of the scores of the samples that have the
concept; a sample is said to have it where its score reaches the threshold. Scores and thresholds are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.thresholds import quantile, sort_key

SampleReduction = Literal["max", "mean", "last", "random"]
"""Over the counted rows of a sample: the largest value, the mean, that of the last row, that of one row at random."""

REDUCTIONS: tuple[SampleReduction, ...] = get_args(SampleReduction)

COUNTED, LAST, RANDOM = np.uint8(1), np.uint8(2), np.uint8(4)
"""Marks of rows: one that counts, the last of its sample that does, the one of its sample that was drawn."""


@dataclass(frozen=True)
class BestUnits:
    """The unit and percentile of the largest F1 for each reduction and concept, (r, c) each.

    f1 : float64, -1 where no unit has a positive score in a sample that has the concept
    unit, level : int64, places among the units and the percentiles
    threshold : float32
    n_pos : int64, samples that have the concept and a positive score, on which the threshold rests
    tp, fp : int64
    """

    f1: NDArray[np.float64]
    unit: NDArray[np.int64]
    level: NDArray[np.int64]
    threshold: NDArray[np.float32]
    n_pos: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]

    @classmethod
    def none(cls, reductions: int, concepts: int) -> BestUnits:
        """Return what is known before any unit."""
        shape = reductions, concepts
        whole = (np.zeros(shape, dtype=np.int64) for _ in range(5))
        unit, level, n_pos, tp, fp = whole
        return cls(np.full(shape, -1.0), unit, level, np.zeros(shape, dtype=np.float32), n_pos, tp, fp)

    def or_better(self, later: BestUnits, first: int) -> BestUnits:
        """Return the better of these and those of units that come later, counted from `first`.

        Of equal F1 that of the smaller percentile, and then of the earlier unit.
        """
        better = (later.f1 > self.f1) | ((later.f1 == self.f1) & (later.level < self.level))
        names = "f1", "unit", "level", "threshold", "n_pos", "tp", "fp"
        theirs = {name: getattr(later, name) for name in names} | {"unit": later.unit + first}
        return BestUnits(*(np.where(better, theirs[name], getattr(self, name)) for name in names))


def best_units(
    edges: NDArray[np.int64],
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    marks: NDArray[np.uint8],
    sample_of_row: NDArray[np.uint32],
    rows_of_sample: NDArray[np.int64],
    labels: NDArray[np.uint8],
    percentiles: NDArray[np.float64],
    reductions: NDArray[np.int64],
) -> BestUnits:
    """Return the best unit and percentile for each reduction and concept.

    Only positive scores count: thresholds are quantiles of these, so that a threshold is never 0 and no unit fires in
    a sample where it is silent.

    Parameters
    ----------
    edges : (m + 1,) int64
        Unit i has the entries `edges[i]:edges[i + 1]`.
    rows, values : (e,)
        Where each unit is active, ascending rows; values that are not positive are zeros.
    marks : (n,) uint8
        `COUNTED`, `LAST` and `RANDOM`, of rows of one split.
    sample_of_row : (n,) uint32
        Rows of a sample follow each other.
    rows_of_sample : (samples,) int64
        Counted rows of each sample, over which means are taken, zeros included.
    labels : (c, samples) uint8
        1 where a sample has a concept, 0 where it has not; other samples are not counted for the concept.
    percentiles : (p,) float64
        Ascending parts of one.
    reductions : (r,) int64
        Places in `REDUCTIONS`.
    """
    best = BestUnits.none(len(reductions), len(labels))
    longest = int(np.diff(edges).max(initial=0))
    _best_units(
        edges,
        rows,
        values,
        marks,
        sample_of_row,
        rows_of_sample,
        labels,
        np.count_nonzero(labels == 1, axis=1),
        percentiles,
        reductions,
        np.empty(longest, dtype=np.int64),
        np.empty((len(REDUCTIONS), longest), dtype=np.float64),
        np.empty(longest, dtype=np.uint64),
        best.f1,
        best.unit,
        best.level,
        best.threshold,
        best.n_pos,
        best.tp,
        best.fp,
    )
    return best


def unit_scores(
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    marks: NDArray[np.uint8],
    sample_of_row: NDArray[np.uint32],
    rows_of_sample: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the scores of all samples for one unit, (4, samples) in the order of `REDUCTIONS`; see `best_units`."""
    samples = np.empty(len(rows), dtype=np.int64)
    scores = np.empty((len(REDUCTIONS), len(rows)), dtype=np.float64)
    held = _reduced(rows, values, 0, len(rows), marks, sample_of_row, rows_of_sample, samples, scores)
    out = np.zeros((len(REDUCTIONS), len(rows_of_sample)), dtype=np.float32)
    out[:, samples[:held]] = scores[:, :held]
    return out


def cuts_and_counts(
    scores: NDArray[np.float32], labels: NDArray[np.uint8], percentiles: NDArray[np.float64]
) -> tuple[NDArray[np.float32], int, NDArray[np.int64]]:
    """Return the thresholds of scores, on how many samples they rest, and the counts at each of them.

    Parameters
    ----------
    scores : (samples,) float32
        Minus infinity where a sample has no row that counts: it is not learned from, and never fires.
    labels : (samples,) uint8
    percentiles : (p,) float64

    Returns
    -------
    (thresholds, n_pos, counts)
        (p,) float32, and TP, FP, FN, TN, (4, p) int64; without anything to learn from infinite and never reached.
    """
    known = scores[(labels == 1) & np.isfinite(scores)].astype(np.float64)
    cuts = np.full(len(percentiles), np.inf, dtype=np.float32)
    if len(known):
        cuts = np.quantile(known, 1.0 - percentiles).astype(np.float32)
    return cuts, len(known), counts_at(scores, labels, cuts)


def counts_at(scores: NDArray[np.float32], labels: NDArray[np.uint8], cuts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return TP, FP, FN, TN of samples whose score reaches thresholds, (4, p)."""
    reached = []
    for label in (1, 0):
        ascending = np.sort(scores[labels == label])
        reached.append((len(ascending) - np.searchsorted(ascending, cuts, side="left"), len(ascending)))
    (tp, has), (fp, has_not) = reached
    return np.stack([tp, fp, has - tp, has_not - fp]).astype(np.int64)


@numba.njit(nogil=True, cache=True)
def _reduced(
    rows: Any,
    values: Any,
    start: Any,
    stop: Any,
    marks: Any,
    sample_of_row: Any,
    rows_of_sample: Any,
    samples: Any,
    scores: Any,
) -> int:
    """Reduce the entries of one unit to the samples where it is active; return their number."""
    held = 0
    last = np.int64(-1)
    for entry in range(start, stop):
        mark = marks[rows[entry]]
        if not values[entry] > 0 or not mark & COUNTED:
            continue
        value = np.float64(values[entry])
        sample = np.int64(sample_of_row[rows[entry]])
        if sample != last:
            samples[held] = last = sample
            scores[:, held] = 0.0
            held += 1
        at = held - 1
        scores[0, at] = max(scores[0, at], value)
        scores[1, at] += value
        if mark & LAST:
            scores[2, at] = value
        if mark & RANDOM:
            scores[3, at] = value
    for at in range(held):
        scores[1, at] /= rows_of_sample[samples[at]]
    return held


@numba.njit(nogil=True, cache=True)
def _best_units(
    edges: Any,
    rows: Any,
    values: Any,
    marks: Any,
    sample_of_row: Any,
    rows_of_sample: Any,
    labels: Any,
    totals: Any,
    percentiles: Any,
    reductions: Any,
    samples: Any,
    scores: Any,
    keys: Any,
    best_f1: Any,
    best_unit: Any,
    best_level: Any,
    best_threshold: Any,
    best_n_pos: Any,
    best_tp: Any,
    best_fp: Any,
) -> None:
    has = np.empty(len(keys), dtype=np.float32)
    has_not = np.empty(len(keys), dtype=np.float32)
    for unit in range(len(edges) - 1):
        active = _reduced(
            rows, values, edges[unit], edges[unit + 1], marks, sample_of_row, rows_of_sample, samples, scores
        )
        for r in range(len(reductions)):
            held = 0
            for j in range(active):
                score = np.float32(scores[reductions[r], j])
                if score > 0:
                    keys[held] = sort_key(score, samples[j])
                    held += 1
            ordered = keys[:held]
            ordered.sort()
            for c in range(len(labels)):
                n_pos = n_neg = 0
                for j in range(held):
                    label = labels[c, np.int64(ordered[j] & np.uint64(0xFFFFFFFF))]
                    score = np.uint32(ordered[j] >> np.uint64(32)).view(np.float32)
                    if label == 1:
                        has[n_pos] = score
                        n_pos += 1
                    elif label == 0:
                        has_not[n_neg] = score
                        n_neg += 1
                if not n_pos:
                    continue
                below, below_not = n_pos, n_neg
                for p in range(len(percentiles)):
                    cut = np.float32(quantile(has[:n_pos], 1.0 - percentiles[p]))
                    while below > 0 and has[below - 1] >= cut:
                        below -= 1
                    while below_not > 0 and has_not[below_not - 1] >= cut:
                        below_not -= 1
                    tp, fp = n_pos - below, n_neg - below_not
                    f1 = 2.0 * tp / (tp + fp + totals[c])
                    if f1 > best_f1[r, c] or (f1 == best_f1[r, c] and p < best_level[r, c]):
                        best_f1[r, c] = f1
                        best_unit[r, c] = unit
                        best_level[r, c] = p
                        best_threshold[r, c] = cut
                        best_n_pos[r, c] = n_pos
                        best_tp[r, c] = tp
                        best_fp[r, c] = fp
