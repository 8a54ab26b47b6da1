"""The linear direction that tells the rows of a concept from others: ridge regression, from sums over rows.

Of activations x and labels y (0 or 1) of rows the direction w and the intercept b minimise

    sum over rows of (y - b - w . x)^2  +  penalty * |w|^2,      penalty = ridge * mean(diag(S)),

with S the sum over rows of (x - mean)(x - mean)^T: the intercept is not penalised, and `ridge` means the same for
activations of any scale, width and number. scikit-learn's `Ridge(alpha=penalty)` minimises the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Sums over rows, in float64, of x - shift and of labels; rows are added block by block.

    shift : (d_in,) float64
        Any row: subtracted from all, so that sums of squares do not drown what varies in what is common.
    x, y, xx, xy : (d_in,), (c,), (d_in, d_in), (d_in, c) float64
    """

    shift: NDArray[np.float64]
    n: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]

    @classmethod
    def empty(cls, shift: NDArray[np.floating[Any]], n_concepts: int) -> Moments:
        """Return the sums over no rows."""
        d = len(shift)
        sums = np.zeros(d), np.zeros(n_concepts), np.zeros((d, d)), np.zeros((d, n_concepts))
        return cls(shift.astype(np.float64), 0, *sums)

    def add(self, x: NDArray[np.floating[Any]], y: NDArray[Any]) -> None:
        """Add rows: activations (b, d_in), and labels 0 or 1, (b, c)."""
        moved, labels = x - self.shift, y.astype(np.float64)
        self.n += len(moved)
        self.x += moved.sum(axis=0)
        self.y += labels.sum(axis=0)
        self.xx += moved.T @ moved
        self.xy += moved.T @ labels


def directions(
    moments: Moments, ridges: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the directions for each ridge and concept, and their intercepts.

    Parameters
    ----------
    moments : Moments
        Of at least one row.
    ridges : sequence of float
        Above 0.

    Returns
    -------
    (directions, intercepts, defined)
        (r, c, d_in), (r, c) and (c,): a concept that all rows have, or none, has no direction, and where activations
        do not vary there is none at all; these are zeros.
    """
    mean_x, mean_y = moments.x / moments.n, moments.y / moments.n
    gram = moments.xx - moments.n * np.outer(mean_x, mean_x)
    cross = moments.xy - moments.n * np.outer(mean_x, mean_y)
    d, c = cross.shape
    scale = float(np.trace(gram)) / d
    found = np.zeros((len(ridges), c, d))
    defined: NDArray[np.bool_] = (moments.y > 0) & (moments.y < moments.n) & (scale > 0)
    if defined.any():
        diagonal = gram.diagonal().copy()
        for place, ridge in enumerate(ridges):
            np.fill_diagonal(gram, diagonal + ridge * scale)
            found[place, defined] = np.linalg.solve(gram, cross[:, defined]).T
    return found, mean_y - found @ (mean_x + moments.shift), defined
