"""SAE probes: logistic regression on the k units whose mean activation differs most between the classes.

Units are ranked on the training rows by sparse sums (`saestore.kernels.class_sums`, which says how ties are broken);
only columns of chosen units are ever dense. One ranking and one dense block serve all k and both penalties, since the
columns of a smaller k are the first of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saestore.codes import Codes
from saestore.errors import InputError
from saestore.kernels.class_sums import ClassSums, ranked
from saestore.probing.classifiers import Penalty, logistic
from saestore.probing.splits import SEED
from saestore.probing.validation import Labels, Scores

Normalisation = Literal["mean", "none"]

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of units of the benchmark's normal setting."""

OTHER_KS = (16, 128)
"""Those of its other settings."""

_BLOCK_ROWS = 1_024


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


def rank_units(
    codes: Codes,
    rows: NDArray[np.int64],
    labels: Labels,
    *,
    limit: int = KS[-1],
    normalisation: Normalisation = "mean",
) -> Ranking:
    """Rank the units of codes by the difference of their means between the classes of training rows.

    Parameters
    ----------
    codes : Codes
        Of a view, its units alone are ranked.
    rows : (n,) int64
        Places of the training rows; those alone are read, in blocks.
    labels : (n,) integers
        0 or 1, both of which occur; the noisy ones where labels are noisy.
    limit : int
        How many units, at most as many as there are.
    normalisation : {"mean", "none"}
        Divide the difference by the unit's mean where it is active, or not (the benchmark's older rule, which its OOD
        and multi-token results use).

    Raises
    ------
    InputError
        There are fewer units, or rows are of one class.
    HoleError
        Rows were never written.
    """
    if normalisation not in ("mean", "none"):
        raise InputError(f"unknown normalisation {normalisation!r}: expected mean or none")
    units = codes.kept_units
    if not 1 <= limit <= len(units):
        raise InputError(f"{limit} units of {codes!r} were asked for, which has {len(units)}; give smaller k")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise InputError(f"labels of training rows are {np.unique(labels).tolist()[:5]}; expected both 0 and 1")
    sums = ClassSums.empty(codes.d_sae)
    order = np.argsort(rows, kind="stable")  # neighbours share chunks
    for start in range(0, len(order), _BLOCK_ROWS):
        places = order[start : start + _BLOCK_ROWS]
        block = codes.rows(rows[places])
        sums.add(block.indices, block.values, labels[places])
    scores = sums.scores(normalised=normalisation == "mean")[units]
    best = ranked(scores, limit)
    return Ranking(units[best], scores[best])


def design_of(
    codes: Codes,
    units: NDArray[np.int64],
    train: tuple[NDArray[np.int64], Labels],
    test: tuple[NDArray[np.int64], Labels],
) -> Design:
    """Read training and test rows, each places and labels, of chosen units.

    Raises
    ------
    BudgetError, HoleError, MissingError
        As for `Codes.dense`.
    """
    return Design(units, codes.dense(train[0], units), train[1], codes.dense(test[0], units), test[1])


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
