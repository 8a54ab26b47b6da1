"""The rows of a split that count, and which of them speak for their sample where one row does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.truth import Truth
from saestore.kernels.baselines import COUNTED, LAST, RANDOM


@dataclass(frozen=True)
class CountedRows:
    """The counted rows of the samples of one split.

    split : name
    rows : (m,) int64, ascending
    marks : (n,) uint8, for each row of the axis; see `saestore.kernels.baselines`
    samples : (s,) int64, the samples of the split, also those without a row that counts
    rows_of_sample : (n_samples,) int64
    """

    split: str
    rows: NDArray[np.int64]
    marks: NDArray[np.uint8]
    samples: NDArray[np.int64]
    rows_of_sample: NDArray[np.int64]

    @classmethod
    def of(cls, truth: Truth, split: str, seed: int) -> CountedRows:
        """Find the rows of a split.

        Parameters
        ----------
        truth : Truth
        split : str
        seed : int
            Of the row that is drawn from each sample: one number per sample of the dataset, so that the row depends
            neither on the splits nor on samples that are appended.

        Raises
        ------
        InputError
            There is no such split, or no sample in it.
        """
        rows = np.flatnonzero(truth.rows_of(split))
        n_samples = len(truth.axis.samples)
        counts = np.bincount(truth.sample_of_row[rows], minlength=n_samples).astype(np.int64)
        held = counts > 0
        stops = np.cumsum(counts)[held]
        drawn = np.random.default_rng(seed).random(n_samples)[held]
        places = np.minimum((drawn * counts[held]).astype(np.int64), counts[held] - 1)
        marks = np.zeros(truth.axis.n_rows, dtype=np.uint8)
        marks[rows] = COUNTED
        marks[rows[stops - 1]] |= LAST
        marks[rows[stops - counts[held] + places]] |= RANDOM
        return cls(split, rows, marks, truth.axis.samples.of_split(split), counts)
