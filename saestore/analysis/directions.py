"""Linear directions of concepts in activations: fitted on the rows of one split, and the scores of samples they give.

Activations are streamed in blocks of rows of a fixed size; of rows nothing is kept but sums, and of samples the scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.analysis.counted_rows import CountedRows
from saestore.analysis.truth import UNLABELLED, Truth, open_labels
from saestore.budget import parse_memory, require_memory
from saestore.errors import InputError
from saestore.kernels.baselines import LAST, RANDOM, SampleReduction
from saestore.kernels.linear_direction import Moments, directions
from saestore.labels import Labels
from saestore.prefetch import prefetch
from saestore.progress import Progress

# Rows of a block, whatever the memory: sums must not depend on it, not even in their last bits.
_BLOCK_BYTES = 16 << 20
_BLOCK_COPIES = 8  # two that are read ahead, float64 copies of one, its labels and scores


@dataclass(frozen=True)
class Directions:
    """A direction for each ridge and concept; a row scores its product with the activations, and the intercept.

    weights : (r, c, d_in) float64
    intercepts : (r, c) float64
    defined : (c,) bool, whether there were rows with and without the concept
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    defined: NDArray[np.bool_]


class LabelledRows:
    """Activations of rows with their labels, and how much memory may be used for them."""

    def __init__(self, activations: Activations, truth: Truth, *, memory: str | int | None, quiet: bool) -> None:
        self.activations = activations
        self.truth = truth
        self.quiet = quiet
        used = psutil.Process().memory_info().rss
        # What other callers hold, and marks of all rows, were allotted before.
        self._free = parse_memory(memory) - (0 if memory is None else used) - _BLOCK_COPIES * _BLOCK_BYTES
        self._labels: Labels | None = None
        self._columns: list[int] = []
        if truth.options.by == "position":
            self._labels = open_labels(activations.group.storage, activations.key, truth.options.labels)
            assert self._labels is not None
            self._columns = [self._labels.concept_names.index(concept) for concept in truth.options.concepts]

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return what is known of rows: 1, 0 or 255, (n, concepts)."""
        if self._labels is None:
            return self.truth.samples[:, self.truth.sample_of_row[rows]].T
        return self._labels.take(rows)[:, self._columns]

    def fit(self, counted: CountedRows, ridges: Sequence[float]) -> Directions:
        """Fit directions on the counted rows of a split.

        Rows that are not labelled with a concept are left out of its sums. Concepts with the same labelled rows share
        these, and as many sets of sums are made in one pass as fit the memory.

        Raises
        ------
        InputError
            An activation is not a finite number.
        HoleError
            Activations or labels of some rows were never written.
        BudgetError
            The sums of one set do not fit the memory.
        """
        d, c = self.activations.d_in, len(self.truth.options.concepts)
        found = Directions(np.zeros((len(ridges), c, d)), np.zeros((len(ridges), c)), np.zeros(c, dtype=bool))
        groups = self._alike(counted.rows)
        if not groups:
            return found
        per_group, solving = 8 * d * (d + c), 16 * d * d
        require_memory(
            per_group + solving,
            budget=self._free,
            what=f"the direction of a concept in activations of width {d:,}, beyond what is in use,",
            remedy="give more with --memory",
        )
        at_once = (self._free - solving) // per_group
        passes = [groups[at : at + at_once] for at in range(0, len(groups), at_once)]
        shift = self.activations.take(counted.rows[:1])[0]
        total = len(passes) * len(counted.rows)
        with Progress(
            f"directions {self.activations.key.path}", total=total, unit="rows", quiet=self.quiet
        ) as progress:
            for together in passes:
                sums = [Moments.empty(shift, len(group)) for group in together]
                for rows, x in self._blocks(counted):
                    known = self.labels(rows)
                    for group, moments in zip(together, sums, strict=True):
                        kept = known[:, group[0]] != UNLABELLED
                        moments.add(x[kept], known[np.ix_(kept, group)])
                    progress.advance(len(rows))
                for group, moments in zip(together, sums, strict=True):
                    found.weights[:, group], found.intercepts[:, group], found.defined[group] = directions(
                        moments, ridges
                    )
        return found

    def concepts_at_once(self, counted: Sequence[CountedRows], ridges: int, reductions: int) -> int:
        """Return of how many concepts the scores of the larger of some splits fit the memory (BudgetError: of none)."""
        samples = max(len(each.samples) for each in counted)
        per_concept = ridges * (samples * (4 * reductions + 16) + 24 * self._step)
        require_memory(
            per_concept,
            budget=self._free,
            what=f"the scores of {samples:,} samples with one concept, beyond what is in use,",
            remedy="give more with --memory",
        )
        return self._free // per_concept

    def scores(
        self,
        counted: CountedRows,
        weights: NDArray[np.float64],
        intercepts: NDArray[np.float64],
        reductions: Sequence[SampleReduction],
        progress: Progress,
    ) -> NDArray[np.float32]:
        """Return the scores of the samples of a split, reduced over their counted rows.

        Parameters
        ----------
        weights, intercepts : (m, d_in), (m,)

        Returns
        -------
        (reductions, samples, m) float32
            Minus infinity for samples without a row that counts. Rounded to float32, so that rows that are alike have
            like scores wherever they lie in a block.

        Raises
        ------
        InputError, HoleError
            As for `fit`.
        """
        n, m = len(counted.samples), len(weights)
        out = np.full((len(reductions), n, m), -np.inf, dtype=np.float32)
        sums = np.zeros((n if "mean" in reductions else 0, m))
        columns = np.ascontiguousarray(weights.T)
        for rows, x in self._blocks(counted):
            scores = x.astype(np.float64) @ columns + intercepts
            of = np.searchsorted(counted.samples, self.truth.sample_of_row[rows])
            first = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
            marks = counted.marks[rows]
            for place, reduction in enumerate(reductions):
                if reduction == "max":
                    out[place, of[first]] = np.maximum(out[place, of[first]], np.maximum.reduceat(scores, first))
                elif reduction == "mean":
                    sums[of[first]] += np.add.reduceat(scores, first)
                else:
                    chosen = marks & (LAST if reduction == "last" else RANDOM) != 0
                    out[place, of[chosen]] = scores[chosen]
            progress.advance(len(rows))
        if "mean" in reductions:
            counts = counted.rows_of_sample[counted.samples]
            held = counts > 0
            out[list(reductions).index("mean"), held] = sums[held] / counts[held, None]
        return out

    @property
    def _step(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * self.activations.d_in))

    def _cut(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [rows[at : at + self._step] for at in range(0, len(rows), self._step)]

    def _blocks(self, counted: CountedRows) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for rows, x in prefetch(self.activations.take, self._cut(counted.rows)):
            if not np.isfinite(x).all():
                raise InputError(
                    f"{self.activations.key.path} holds activations of split {counted.split!r} that are not finite "
                    "numbers; extract or import them again, or take the baseline of units alone"
                )
            yield rows, x

    def _alike(self, rows: NDArray[np.int64]) -> list[list[int]]:
        """Return the concepts by the rows that are labelled with them, without those that no row is labelled with."""
        concepts = range(len(self.truth.options.concepts))
        known = np.zeros(len(concepts), dtype=np.int64)
        hashes = [hashlib.sha256() for _ in concepts]
        for _, labels in prefetch(self.labels, self._cut(rows)):
            missing = labels == UNLABELLED
            known += len(labels) - missing.sum(axis=0)
            for concept, digest in enumerate(hashes):
                digest.update(np.packbits(missing[:, concept]).tobytes())
        groups: dict[bytes, list[int]] = {}
        for concept, digest in enumerate(hashes):
            if known[concept]:
                groups.setdefault(digest.digest(), []).append(concept)
        return list(groups.values())
