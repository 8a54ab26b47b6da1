"""How a probe is chosen and measured: folds by the number of training rows, the best candidate, and the metrics.

The rules are those of the sparse-probing benchmark (Kantamneni et al. 2025). With n training rows:

- n <= 3: no validation. The default candidate is fitted, and its `val_auc` is the AUC on the training rows themselves;
- 4 <= n <= 12: each pair of rows with one of each class validates once, the other rows train;
- 13 <= n <= 127: stratified 6-fold, shuffled by the seed; folds that validate on one class only are left out;
- n >= 128: the last min(floor(n / 5), 100) rows validate, so the order of the training rows matters.

The score of a candidate is the mean AUC over its folds. **The first of equally good candidates is taken.** A fold
that trains on one class only counts as 0.5. Where the held-out rows are of one class no candidate has a score: the
first one is taken and `val_auc` is NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from saestore.bridges.packages import imported
from saestore.errors import InputError

Matrix = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Probability = NDArray[np.floating[Any]]
Places = NDArray[np.int64]
Setting = float | int | str | tuple[int, ...]

UNVALIDATED_ROWS = 3
"""With so many training rows, or fewer, nothing is validated."""

_PAIR_ROWS, _HOLD_OUT_ROWS = 12, 128
_FOLDS = 6

C = TypeVar("C")


@dataclass(frozen=True)
class Scores:
    """How well a probe does.

    test_f1, test_acc, test_auc : float
        On the test rows: F1 of both classes weighted by their rows, accuracy, and the area under the ROC curve.
    val_auc : float
        The validation score of the chosen candidate; NaN where the held-out rows are of one class.
    chosen : mapping
        The hyper-parameters that validation chose, by their name in scikit-learn or xgboost.
    fits, unconverged : int
        Models fitted, and those of them that stopped at their limit of iterations.
    """

    test_f1: float
    test_acc: float
    test_auc: float
    val_auc: float
    chosen: Mapping[str, Setting]
    fits: int
    unconverged: int


@dataclass(frozen=True)
class Fold:
    """Places of the rows that train and of those that validate, both int64."""

    train: Places
    validation: Places


@dataclass(frozen=True)
class Chosen(Generic[C]):
    """The best candidate, and its mean AUC over the folds."""

    candidate: C
    auc: float


def checked_rows(
    x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return training and test rows as float64, refusing those that no probe can be fitted to or measured on.

    The benchmark hands float32 tensors to scikit-learn, which then computes in float64; with float32 arrays it would
    compute in float32, and the AUC of fits that stop early would differ in the third digit.

    Parameters
    ----------
    x_train, x_test : (n, d) floats
    y_train, y_test : (n,) integers
        0 or 1.

    Raises
    ------
    InputError
        Labels of another length or value, rows of one class, or activations that are not finite.
    """
    for which, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim != 2 or y.shape != x.shape[:1]:
            raise InputError(f"{which} rows have shape {x.shape} and labels {y.shape}; expected (n, d) and (n,)")
        classes = np.unique(y).tolist()
        if not set(classes) <= {0, 1}:
            raise InputError(f"labels of {which} rows are {classes[:5]}; expected 0 and 1, so make the task binary")
        if len(classes) < 2:
            held = f"are all of class {classes[0]}" if classes else "are none"
            raise InputError(f"the {which} rows {held}; a probe needs rows of both classes")
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            wrong = int(np.count_nonzero(~finite))
            raise InputError(f"{wrong} of {len(x)} {which} rows hold NaN or infinity; expected finite numbers only")
    if x_train.shape[1] != x_test.shape[1]:
        raise InputError(
            f"training rows have {x_train.shape[1]} columns and test rows {x_test.shape[1]}; expected as many"
        )
    return x_train.astype(np.float64), x_test.astype(np.float64)


def folds(y_train: Labels, *, seed: int) -> list[Fold]:
    """Return the folds of training rows, none of them for 3 rows or fewer; see the module for the rules.

    Parameters
    ----------
    y_train : (n,) integers
        Labels 0 and 1, both of which occur, in the order of the training rows.
    seed : int
        Of the shuffle in stratified folds.

    Examples
    --------
    >>> import numpy as np
    >>> [fold.validation.tolist() for fold in folds(np.array([1, 0, 0, 1]), seed=42)]
    [[0, 1], [0, 2], [1, 3], [2, 3]]
    """
    n = len(y_train)
    rows = np.arange(n)
    if n <= UNVALIDATED_ROWS:
        return []
    if n <= _PAIR_ROWS:
        pairs = (np.array(pair) for pair in itertools.combinations(range(n), 2))
        return [Fold(np.delete(rows, pair), pair) for pair in pairs if y_train[pair[0]] != y_train[pair[1]]]
    if n < _HOLD_OUT_ROWS:
        return [fold for fold in _stratified(y_train, seed) if len(np.unique(y_train[fold.validation])) == 2]
    held_out = min(n // 5, 100)
    return [Fold(rows[: n - held_out], rows[n - held_out :])]


def _stratified(y: Labels, seed: int) -> list[Fold]:
    selection = imported("sklearn.model_selection", "stratified validation")
    splitter = selection.StratifiedKFold(n_splits=_FOLDS, shuffle=True, random_state=seed)
    return [Fold(train, validation) for train, validation in splitter.split(np.zeros(len(y)), y)]


def best(scores: Sequence[float]) -> int:
    """Return the place of the best score, the first of equal ones; NaN is no score.

    Examples
    --------
    >>> best([0.5, 0.75, 0.75])
    1
    """
    return max(range(len(scores)), key=lambda place: (not math.isnan(scores[place]), scores[place]))


def choose(
    candidates: Sequence[C],
    parts: Sequence[Fold],
    y_train: Labels,
    probability: Callable[[C, Fold], Probability],
) -> Chosen[C]:
    """Choose the candidate that does best over the folds.

    Parameters
    ----------
    candidates : sequence
        In the order of preference among equal ones.
    parts : sequence of Fold
        At least one.
    y_train : (n,) integers
    probability : callable
        Fits a candidate to the rows that train and returns the probability of class 1 for those that validate.
    """
    return choose_by_fold(
        candidates, parts, y_train, lambda fold: [probability(candidate, fold) for candidate in candidates]
    )


def choose_by_fold(
    candidates: Sequence[C],
    parts: Sequence[Fold],
    y_train: Labels,
    probabilities: Callable[[Fold], Sequence[Probability]],
) -> Chosen[C]:
    """Choose like `choose`, where all candidates are fitted to a fold at once.

    Parameters
    ----------
    candidates, parts, y_train
        As for `choose`.
    probabilities : callable
        Returns the probability of class 1 by each candidate for the rows that validate.
    """
    aucs = np.full((len(candidates), len(parts)), 0.5)
    for place, fold in enumerate(parts):
        if len(np.unique(y_train[fold.train])) == 2:
            aucs[:, place] = [auc(y_train[fold.validation], found) for found in probabilities(fold)]
    scores = aucs.mean(axis=1).tolist()
    place = best(scores)
    return Chosen(candidates[place], scores[place])


def auc(y: Labels, probability: Probability) -> float:
    """Return the area under the ROC curve; NaN where the rows are of one class.

    The corners of the curve are joined by straight lines (Fawcett 2006) and summed up from the largest probability on,
    as scikit-learn's `roc_auc_score` does: the bits are the same, and so is the first of equally good candidates. It
    would take ten times as long, most of it to check what it is given, and with few rows longer than to fit.

    Parameters
    ----------
    y : (n,) integers
        0 or 1.
    probability : (n,) floats
        Of class 1, or any other finite score.

    Examples
    --------
    >>> import numpy as np
    >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    positive = int(np.count_nonzero(y))
    if positive in (0, len(y)):
        return math.nan
    order = np.argsort(-probability, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(probability[order]) != 0, True))  # the last row of each probability
    hits = np.cumsum(y[order])[ends]
    misses = ends + 1 - hits
    # Points on a straight line are left out: to go through them would round differently.
    bends = np.ones(len(ends), np.bool_)
    bends[1:-1] = (np.diff(hits, 2) != 0) | (np.diff(misses, 2) != 0)
    rates = (np.append(0, counts[bends]) / counts[-1] for counts in (hits, misses))
    return float(np.trapezoid(*rates))


def measure(y_test: Labels, predicted: Labels, probability: Probability) -> tuple[float, float, float]:
    """Return weighted F1, accuracy and AUC of the test rows.

    Parameters
    ----------
    y_test, predicted : (n,) integers
    probability : (n,) floats
        Of class 1.
    """
    metrics = imported("sklearn.metrics", "the metrics of probes")
    f1 = float(metrics.f1_score(y_test, predicted, average="weighted"))
    return f1, float(metrics.accuracy_score(y_test, predicted)), auc(y_test, probability)
