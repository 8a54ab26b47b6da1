"""Kernels of baselines against loops over dense arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels.baselines import (
    COUNTED,
    LAST,
    RANDOM,
    REDUCTIONS,
    BestUnits,
    best_units,
    counts_at,
    cuts_and_counts,
    unit_scores,
)

PERCENTILES = np.array([0.02, 0.1, 0.3, 0.5, 0.8, 0.95])


class Made:
    """A dense matrix with ties and negative values, marks of rows, and labels."""

    def __init__(self, seed: int, n: int, units: int, samples: int, concepts: int) -> None:
        rng = np.random.default_rng(seed)
        dense = rng.choice([0, 0, 0, 0.5, 1.25, 2, -1], (n, units)) + 0.0
        free = rng.random((n, units)) < 0.2
        dense[free] = rng.gamma(2, 1, int(free.sum()))
        self.dense = dense.astype(np.float32)
        self.samples = samples
        self.sample_of_row = np.sort(rng.integers(0, samples, n)).astype(np.uint32)
        counted = rng.random(n) < 0.7
        self.rows = [np.flatnonzero(counted & (self.sample_of_row == sample)) for sample in range(samples)]
        self.drawn = [int(rng.choice(rows)) if len(rows) else -1 for rows in self.rows]
        self.marks = np.where(counted, COUNTED, 0).astype(np.uint8)
        for rows, drawn in zip(self.rows, self.drawn, strict=True):
            if len(rows):
                self.marks[rows[-1]] |= LAST
                self.marks[drawn] |= RANDOM
        self.rows_of_sample = np.array([len(rows) for rows in self.rows])
        self.labels = rng.choice([0, 1, 255], (concepts, samples)).astype(np.uint8)

    def entries(self, units: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = self.dense[:, units].T
        parts = [np.flatnonzero(column) for column in columns]
        edges = np.append(0, np.cumsum([len(part) for part in parts])).astype(np.int64)
        values = [column[part] for column, part in zip(columns, parts, strict=True)]
        return edges, np.concatenate(parts).astype(np.int64), np.concatenate(values)

    def scores(self, unit: int, reduction: str) -> np.ndarray:
        out = np.zeros(self.samples, dtype=np.float32)
        for sample, rows in enumerate(self.rows):
            values = np.maximum(self.dense[rows, unit], 0).astype(np.float64)
            if len(rows):
                one = {"max": values.max(), "mean": values.sum() / len(rows), "last": values[-1]}
                out[sample] = one.get(reduction, max(float(self.dense[self.drawn[sample], unit]), 0.0))
        return out

    def best(self, reduction: str, concept: int) -> tuple[float, int, int, np.float32, int, int, int]:
        """Percentiles first, so that the first of equals is that of the smallest percentile and then unit."""
        found = (-1.0, 0, 0, np.float32(0), 0, 0, 0)
        has, has_not = self.labels[concept] == 1, self.labels[concept] == 0
        for level, percentile in enumerate(PERCENTILES):
            for unit in range(self.dense.shape[1]):
                scores = self.scores(unit, reduction)
                known = scores[has & (scores > 0)]
                if not len(known):
                    continue
                cut = np.float32(np.quantile(known.astype(np.float64), 1 - percentile))
                fires = (scores >= cut) & (scores > 0)
                tp, fp = int((fires & has).sum()), int((fires & has_not).sum())
                f1 = 2 * tp / (2 * tp + fp + int(has.sum()) - tp)
                if f1 > found[0]:
                    found = (f1, unit, level, cut, len(known), tp, fp)
        return found


def fields(best: BestUnits, r: int, concept: int) -> tuple:
    names = "f1", "unit", "level", "threshold", "n_pos", "tp", "fp"
    return tuple(getattr(best, name)[r, concept] for name in names)


made = st.builds(
    Made, st.integers(0, 1 << 30), st.integers(1, 50), st.integers(1, 6), st.integers(1, 9), st.integers(1, 3)
)


def found_by(data: Made, units: slice, reductions: list[int]) -> BestUnits:
    rest = data.marks, data.sample_of_row, data.rows_of_sample, data.labels, PERCENTILES
    return best_units(*data.entries(units), *rest, np.array(reductions))


@settings(max_examples=80, deadline=None)
@given(made, st.integers(0, 6))
def test_the_best_unit_is_that_of_the_dense_matrix(data: Made, cut: int) -> None:
    places = list(range(len(REDUCTIONS)))
    whole = found_by(data, slice(None), places)
    joined = BestUnits.none(len(places), len(data.labels))
    for part in (slice(0, cut), slice(cut, None)):
        if part.start < data.dense.shape[1] and part.stop != 0:
            joined = joined.or_better(found_by(data, part, places), part.start)
    for r, reduction in enumerate(REDUCTIONS):
        for concept in range(len(data.labels)):
            expected = data.best(reduction, concept)
            assert fields(whole, r, concept) == expected
            assert fields(joined, r, concept) == expected


@settings(max_examples=40, deadline=None)
@given(made)
def test_scores_of_a_unit_are_those_of_the_dense_matrix(data: Made) -> None:
    for unit in range(data.dense.shape[1]):
        rows = np.flatnonzero(data.dense[:, unit])
        found = unit_scores(rows, data.dense[rows, unit], data.marks, data.sample_of_row, data.rows_of_sample)
        for place, reduction in enumerate(REDUCTIONS):
            np.testing.assert_array_equal(found[place], data.scores(unit, reduction))


def test_only_the_reductions_asked_for_are_made() -> None:
    data = Made(5, 40, 5, 8, 3)
    some, every = found_by(data, slice(None), [2, 0]), found_by(data, slice(None), [0, 1, 2, 3])
    for concept in range(3):
        assert fields(some, 0, concept) == fields(every, 2, concept)
        assert fields(some, 1, concept) == fields(every, 0, concept)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 30))
def test_counts_of_scores_are_those_of_comparing_each(seed: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([-np.inf, -1.5, 0.0, 0.25, 0.25, 3.0], samples).astype(np.float32)
    labels = rng.choice([0, 1, 255], samples).astype(np.uint8)
    cuts, n_pos, counts = cuts_and_counts(scores, labels, PERCENTILES)
    known = [float(score) for score, label in zip(scores, labels, strict=True) if label == 1 and score > -np.inf]
    assert n_pos == len(known)
    for level, percentile in enumerate(PERCENTILES):
        cut = np.float32(np.quantile(known, 1 - percentile)) if known else np.float32(np.inf)
        assert cuts[level] == cut
        expected = [0, 0, 0, 0]
        for score, label in zip(scores, labels, strict=True):
            if label != 255:
                fires = score >= cut
                expected[(0 if label else 1) if fires else (2 if label else 3)] += 1
        assert counts[:, level].tolist() == expected
        assert counts_at(scores, labels, cuts[level : level + 1])[:, 0].tolist() == expected
