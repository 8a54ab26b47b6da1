"""Sums of codes per unit and class, and the ranking of units by how their means differ between two classes.

Pure numpy, with memory for the units and not for a dense row: 32 MB for a million units. With x the activations of a
unit in n rows, zeros included, of which n1 are of class 1 and n0 of class 0:

    difference = | sum over class 1 of x / n1  -  sum over class 0 of x / n0 |
    scale      = sum of |x| / (number of x != 0  +  1e-6)
    score      = difference                      plain
    score      = difference / (scale + 1e-6)     normalised

as in the sparse-probing benchmark (Kantamneni et al. 2025), which computes it in float32 from dense matrices and leaves
open which of equal ones comes first.

**Ties**: scores are computed in float64; of equal ones the smaller unit comes first. Sums of float16 codes are exact in
float64, so that the ranking depends neither on the order of rows nor on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.kernels.quantize import as_float32

_EPSILON = 1e-6

Normalisation = Literal["mean", "none"]
"""Whether the difference of means is divided by the mean where the unit is active."""


@dataclass
class ClassSums:
    """Sums over rows so far; rows are added block by block.

    sums : (2, d_sae) float64
        Of the values, in rows of class 0 and of class 1.
    magnitudes : (d_sae,) float64
        Of the absolute values; nonzero : (d_sae,) int64, their number; both in all rows.
    n : (2,) int64
        Rows of each class.
    """

    sums: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    nonzero: NDArray[np.int64]
    n: NDArray[np.int64]

    @classmethod
    def empty(cls, d_sae: int) -> ClassSums:
        """Return the sums over no rows."""
        return cls(np.zeros((2, d_sae)), np.zeros(d_sae), np.zeros(d_sae, np.int64), np.zeros(2, np.int64))

    def add(self, indices: NDArray[Any], values: NDArray[Any], labels: NDArray[np.integer[Any]]) -> None:
        """Add rows.

        Parameters
        ----------
        indices, values : (n, k)
            Codes as stored (uint16 values are bfloat16 patterns); empty slots have value 0.
        labels : (n,) integers
            0 or 1.
        """
        rows, slots = np.nonzero(values)
        self.add_entries(rows, indices[rows, slots], as_float32(values[rows, slots]), labels)

    def add_entries(
        self,
        rows: NDArray[np.integer[Any]],
        units: NDArray[np.integer[Any]],
        values: NDArray[np.float32],
        labels: NDArray[np.integer[Any]],
    ) -> None:
        """Add rows given by their entries.

        Parameters
        ----------
        rows, units, values : (m,)
            Where rows, counted among these, are not 0, and what they are there.
        labels : (n,) integers
            0 or 1.
        """
        found = values.astype(np.float64)
        # One entry after the other, not block sums: what is added up does not depend on where blocks end.
        np.add.at(self.sums, (labels[rows], units), found)
        np.add.at(self.magnitudes, units, np.abs(found))
        np.add.at(self.nonzero, units, 1)
        self.n += np.bincount(labels, minlength=2)

    def scores(self, *, normalised: bool) -> NDArray[np.float64]:
        """Return the score of each unit, (d_sae,) float64; both classes have rows."""
        difference: NDArray[np.float64] = np.abs(self.sums[1] / self.n[1] - self.sums[0] / self.n[0])
        if not normalised:
            return difference
        scale = self.magnitudes / (self.nonzero + _EPSILON)
        scale += _EPSILON
        difference /= scale
        return difference


def ranked(scores: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Return the places of the largest scores, the best first, of equal ones the smaller place.

    Parameters
    ----------
    scores : (m,) float64
    limit : int
        How many, from 1 to m.

    Examples
    --------
    >>> import numpy as np
    >>> ranked(np.array([0.5, 2.0, 0.5, 1.0]), 3)
    array([1, 3, 0])
    """
    assert 1 <= limit <= len(scores)
    least = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:limit]
