"""Which rows of a task train and which test: the draws of the sparse-probing benchmark, number by number.

The rule (Kantamneni et al. 2025; `get_train_test_indices` of the package sae-probes): a Mersenne Twister of numpy's
legacy interface, seeded anew for each split, draws without replacement

1. the positive training rows, ceil(positive_ratio * num_train) of them, and then the negative ones;
2. the positive test rows from the remaining positive rows in ascending order, as many by the same rule, then the
   negative ones;
3. an order of the training rows (positives before negatives), then one of the test rows.

The order of the training rows is part of the result: the last of them validate (`saestore.probing.validation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError

SEED = 42
"""The seed of the published package, for splits, flipped labels and classifiers alike.

The benchmark's first code gave logistic regression 1.
"""

MAX_ROWS = 5_000
"""The first rows of a task that the benchmark draws from; none of its data sets has more."""

MIN_TEST_ROWS = 100

_LEAST_TRAIN_ROWS = 2


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that train and rows that test, in the order that they were drawn in; none is in both.

    train : (num_train,) int64
    test : (num_test,) int64
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def balanced_rows(labels: NDArray[np.int8], *, max_rows: int = MAX_ROWS) -> int:
    """Return how many rows can be drawn from the first `max_rows` with as many positives as negatives.

    The benchmark counts all rows here. That is the same for each of its data sets, whose classes are equal; in others
    it would ask for more rows of the smaller class than there are.

    Examples
    --------
    >>> balanced_rows(np.array([0, 1, 1, 1], np.int8))
    2
    """
    n, positive = _counts(labels, max_rows)
    return 2 * min(positive, n - positive)


def shortage(
    labels: NDArray[np.int8], *, num_train: int, num_test: int, positive_ratio: float = 0.5, max_rows: int = MAX_ROWS
) -> str | None:
    """Return why a task does not have the rows of a split, or None where it has.

    Parameters
    ----------
    labels : (n,) int8
        0 or 1.
    num_train, num_test : int
        Rows.
    positive_ratio : float
        The share of positive rows, from 0 to 1.
    max_rows : int
        Only the first so many rows are drawn from.

    Raises
    ------
    InputError
        `max_rows` or the ratio is out of range.
    """
    n, positive = _counts(labels, max_rows)
    if num_train < _LEAST_TRAIN_ROWS:
        return f"{num_train} training rows; a split needs at least {_LEAST_TRAIN_ROWS}"
    if num_test < 0:
        return f"{num_train:,} training rows leave none to test of {n:,} rows"
    if num_train + min(MIN_TEST_ROWS, num_test) > n:
        return f"{num_train:,} training and {min(MIN_TEST_ROWS, num_test)} test rows are more than the {n:,} there are"
    train_positive, test_positive = _positives(num_train, positive_ratio), _positives(num_test, positive_ratio)
    for which, wanted, wanted_positive in (
        ("training", num_train, train_positive),
        ("test", num_test, test_positive),
    ):
        if wanted and not 0 < wanted_positive < wanted:
            only = "positive" if wanted_positive else "negative"
            return f"all of {wanted:,} {which} rows would be {only} at a positive ratio of {positive_ratio:g}"
    for which, needed, there in (
        ("positive", train_positive + test_positive, positive),
        ("negative", num_train - train_positive + num_test - test_positive, n - positive),
    ):
        if needed > there:
            return f"{needed:,} {which} rows needed of {there:,} among the first {n:,} rows"
    return None


def split_rows(
    labels: NDArray[np.int8],
    *,
    num_train: int,
    num_test: int | None = None,
    positive_ratio: float = 0.5,
    seed: int = SEED,
    max_rows: int = MAX_ROWS,
) -> Split:
    """Draw training and test rows of a task.

    Parameters
    ----------
    labels : (n,) int8
        0 or 1.
    num_train : int
        At least 2.
    num_test : int, optional
        Default: all rows that remain of `balanced_rows` but one, which the benchmark never uses. 0 for none.
    positive_ratio : float
        The share of positive rows, in training as in test rows; rounded up to whole rows.
    seed : int
        From 0 to 2**32 - 1.
    max_rows : int
        Only the first so many rows are drawn from.

    Raises
    ------
    InputError
        The task does not have these rows, a part would be of one class, or the seed is out of range.

    Examples
    --------
    >>> split = split_rows(np.array([0, 1, 0, 1, 0, 1], np.int8), num_train=2, num_test=2)
    >>> split.train.tolist(), split.test.tolist()
    ([2, 1], [0, 5])

    References
    ----------
    The module's docstring has the rule.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed {seed}; expected a whole number from 0 to {(1 << 32) - 1}")
    if num_test is None:
        num_test = balanced_rows(labels, max_rows=max_rows) - num_train - 1
    why_not = shortage(labels, num_train=num_train, num_test=num_test, positive_ratio=positive_ratio, max_rows=max_rows)
    if why_not is not None:
        raise InputError(f"{why_not}; ask for fewer rows, or give the task more")
    rng = np.random.RandomState(seed)  # the benchmark's stream
    eligible = labels[:max_rows]
    of_class = (np.flatnonzero(eligible == 1), np.flatnonzero(eligible == 0))
    parts = []
    for size in (num_train, num_test):
        positive = _positives(size, positive_ratio)
        drawn = [
            rng.choice(rows, size=wanted, replace=False)
            for rows, wanted in zip(of_class, (positive, size - positive), strict=True)
        ]
        of_class = (np.setdiff1d(of_class[0], drawn[0]), np.setdiff1d(of_class[1], drawn[1]))
        parts.append(np.concatenate(drawn))
    train, test = (rng.permutation(rows).astype(np.int64, copy=False) for rows in parts)
    return Split(train, test)


def _counts(labels: NDArray[np.int8], max_rows: int) -> tuple[int, int]:
    """Return the number of rows to draw from, and of the positive ones among them."""
    if max_rows < 1:
        raise InputError(f"max_rows {max_rows}; expected a positive number of rows")
    eligible = labels[:max_rows]
    return len(eligible), int(np.count_nonzero(eligible))


def _positives(size: int, positive_ratio: float) -> int:
    if not 0 <= positive_ratio <= 1:
        raise InputError(f"a positive ratio of {positive_ratio}; expected 0 to 1")
    return math.ceil(positive_ratio * size)
