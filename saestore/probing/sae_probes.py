"""SAE probes: logistic regression on the k units whose mean activation differs most between the classes.

Units are ranked on the training rows by sparse sums (`saestore.kernels.class_sums`, which says how ties are broken);
only columns of chosen units are ever dense. One ranking and one dense block serve all k and both penalties, since the
columns of a smaller k are the first of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.codes import Codes
from saestore.errors import InputError
from saestore.kernels.class_sums import ClassSums, Normalisation, ranked
from saestore.kernels.densify import densify, unit_lookup
from saestore.probing.classifiers import Penalty, logistic
from saestore.probing.splits import SEED
from saestore.probing.token_rows import check_finite
from saestore.probing.validation import Labels, Scores

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of units of the benchmark's normal setting."""

OTHER_KS = (16, 128)
"""Those of its other settings."""


@dataclass(frozen=True)
class Ranking:
    """Units by how their means differ between the classes of training rows, the best first.

    units : (m,) int64
        Original unit ids.
    scores : (m,) float64
    """

    units: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class SAEProbe:
    """A probe on the first k units of a ranking."""

    k: int
    penalty: Penalty
    units: NDArray[np.int64]
    scores: Scores


@dataclass(frozen=True)
class Design:
    """Training and test rows of chosen units.

    units : (m,) int64
        Original unit ids, the best first.
    x_train, x_test : (n, m) float32
        Activations as stored, not scaled.
    y_train, y_test : (n,) integers
    """

    units: NDArray[np.int64]
    x_train: NDArray[np.float32]
    y_train: Labels
    x_test: NDArray[np.float32]
    y_test: Labels


class SampleCodes:
    """Codes of chosen rows in memory, from which units are ranked and columns are taken.

    All cells of a task share one, so that its codes are read once.

    Parameters
    ----------
    codes : Codes
        Of a view, its units alone are ranked.
    rows : (n,) int64
        Places of the rows that train or test in some cell.

    Raises
    ------
    HoleError
        Rows were never written.
    InputError
        Some values are NaN or infinite.
    """

    def __init__(self, codes: Codes, rows: NDArray[np.int64]) -> None:
        self.units = codes.kept_units
        self._d_sae = codes.d_sae
        self._name = repr(codes)
        self._rows = np.unique(rows)
        read = codes.rows(self._rows)
        self._indices, self._values = read.indices, read.values
        check_finite(self._values, self._rows, codes.key.path)

    def rank(
        self, rows: NDArray[np.int64], labels: Labels, *, limit: int = KS[-1], normalisation: Normalisation = "mean"
    ) -> Ranking:
        """Rank units by the difference of their means between the classes of training rows.

        Parameters
        ----------
        rows : (n,) int64
            The training rows.
        labels : (n,) integers
            0 or 1, both of which occur; the noisy ones where labels are noisy.
        limit : int
            How many units, at most as many as there are.
        normalisation : {"mean", "none"}
            Divide the difference by the unit's mean where it is active, or not (the benchmark's older rule, which its
            OOD and multi-token results use).

        Raises
        ------
        InputError
            There are fewer units, or rows are of one class.
        """
        if normalisation not in ("mean", "none"):
            raise InputError(f"unknown normalisation {normalisation!r}: expected mean or none")
        if not 1 <= limit <= len(self.units):
            raise InputError(
                f"{limit} units of {self._name} were asked for, which has {len(self.units)}; give smaller k"
            )
        if set(np.unique(labels).tolist()) != {0, 1}:
            raise InputError(f"labels of training rows are {np.unique(labels).tolist()[:5]}; expected both 0 and 1")
        sums = ClassSums.empty(self._d_sae)
        places = self._places(rows)
        sums.add(self._indices[places], self._values[places], labels)
        scores = sums.scores(normalised=normalisation == "mean")[self.units]
        best = ranked(scores, limit)
        return Ranking(self.units[best], scores[best])

    def columns(self, rows: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return chosen units of rows, dense: (n, m) float32, as stored and not scaled."""
        places = self._places(rows)
        lookup = unit_lookup(units, self._d_sae)
        return densify(self._indices[places], self._values[places], lookup, d_sae=self._d_sae)

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._rows, rows)


def fit_probes(design: Design, *, ks: Sequence[int] = KS, penalty: Penalty = "l1", seed: int = SEED) -> list[SAEProbe]:
    """Fit a probe on the first k units of a design, for each k.

    Parameters
    ----------
    design : Design
    ks : sequence of int
        At most as many as the design has units.
    penalty : {"l1", "l2"}
        L1 is the benchmark's published choice.
    seed : int

    Raises
    ------
    InputError
        A k that the design has no units for, or rows that no probe can be fitted to.
    """
    found = []
    for k in ks:
        if not 1 <= k <= len(design.units):
            raise InputError(
                f"a probe on {k} units was asked for; expected 1 to {len(design.units)}, those of the design"
            )
        x_train, x_test = (np.ascontiguousarray(x[:, :k]) for x in (design.x_train, design.x_test))
        scores = logistic(x_train, design.y_train, x_test, design.y_test, penalty=penalty, seed=seed)
        found.append(SAEProbe(k, penalty, design.units[:k], scores))
    return found
