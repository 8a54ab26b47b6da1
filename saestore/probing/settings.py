"""The settings of the sparse-probing benchmark as index sets over the rows of one encode: nothing is copied.

A setting is a list of cells; a cell says which rows train, in which order, which test, and which training labels are
flipped. All settings of a task therefore share its activations and its codes, whose row i is sample i of the task.

Sizes, with n the rows that can be drawn with equal classes (`saestore.probing.splits.balanced_rows`):

- normal and label noise: min(n - 100, 1024) training rows, and all others but one test;
- scarcity: 2 to 1024 training rows, each size up to n - 100, and all others but one test;
- imbalance: one size for all fractions, the largest that both 5 % and 95 % positives leave room for. The test rows have
  the training rows' fraction of positives;
- out of distribution: 1024 training rows of the first 1500, and all rows of another dataset test;
- multi-token: as normal, but no row is left over: all others test.

Fractions are the values of `np.linspace` as they come, so that 0.4 of the imbalance grid is 0.39999999999999997, as in
the SAE probes of the benchmark. Its baselines round to multiples of 1/20 first; because positives are rounded up, that
gives one positive more or less in 41 of the 4,294 training and test sets. Here both have the rows of the SAE probes, so
that they are compared on the same ones. Likewise, out of distribution, the published SAE probes train on the first 512
rows of each class in an order that no seed gives; here they have the drawn rows of the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.probing.splits import MAX_ROWS, MIN_TEST_ROWS, SEED, balanced_rows, shortage, split_rows
from saestore.probing.tasks import Task

SettingName = Literal["normal", "scarcity", "imbalance", "label_noise", "ood", "multi_token"]

MAX_TRAIN_ROWS = 1_024
OOD_ROWS = 1_500
"""The first rows of a task that train where another dataset tests."""

TRAIN_SIZES: tuple[int, ...] = tuple(np.unique(np.round(np.logspace(1, 10, 20, base=2)).astype(int)).tolist())
"""Training sizes of scarcity: 2, 3, 4, 5, 7, ... 737, 1024."""

POSITIVE_FRACTIONS: tuple[float, ...] = tuple(np.linspace(0.05, 0.95, 19).tolist())
"""Fractions of positive rows of imbalance, 0.05 to 0.95."""

FLIPPED_FRACTIONS: tuple[float, ...] = tuple(np.linspace(0, 0.5, 11).tolist())
"""Fractions of flipped training labels of label noise, 0 to 0.5."""


GRID_CELLS: Mapping[SettingName, int] = {
    "normal": 1,
    "scarcity": len(TRAIN_SIZES),
    "imbalance": len(POSITIVE_FRACTIONS),
    "label_noise": len(FLIPPED_FRACTIONS),
    "ood": 1,
    "multi_token": 1,
}
"""How many cells a setting has."""


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Cell:
    """One training and test set of a task in a setting.

    task : name of the task that training rows belong to
    test_task : name of the one that test rows belong to; another one out of distribution only
    setting : name
    train : (num_train,) int64, rows of the task, in the order that training uses
    test : (num_test,) int64, rows of the test task
    fraction : of positive rows in imbalance, of flipped labels in label noise; else None
    flipped : (n_flipped,) int64, places in `train` whose label is inverted
    """

    task: str
    test_task: str
    setting: SettingName
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    fraction: float | None = None
    flipped: NDArray[np.int64] = field(default_factory=_no_rows)

    @property
    def num_train(self) -> int:
        """How many rows train."""
        return len(self.train)

    def train_labels(self, labels: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the labels that training sees, flipped ones inverted, from those of all rows: (num_train,) int8."""
        out = labels[self.train]
        out[self.flipped] = 1 - out[self.flipped]
        return out

    def test_labels(self, labels: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the labels of the test rows, which are never flipped, from all of the test task: (num_test,) int8."""
        return labels[self.test]


@dataclass(frozen=True)
class Skipped:
    """A cell that a task is too small for, and why.

    task, setting : names
    num_train : training rows that the cell would have
    fraction : as of a `Cell`
    reason : in words
    """

    task: str
    setting: SettingName
    num_train: int
    fraction: float | None
    reason: str


def cells(task: Task, setting: SettingName, *, seed: int = SEED, max_rows: int = MAX_ROWS) -> list[Cell | Skipped]:
    """Return the cells of a task in a setting, in the order of the setting's grid.

    Parameters
    ----------
    task : Task
    setting : str
        `normal` (1 cell), `scarcity` (20), `imbalance` (19), `label_noise` (11) or `multi_token` (1). `ood` needs a
        second dataset; see `out_of_distribution`.
    seed : int
        Of the split of each cell, and of the flipped labels.
    max_rows : int
        Only the first so many rows of the task are used.

    Raises
    ------
    InputError
        There is no such setting, or the seed is out of range.

    Examples
    --------
    >>> task = Task("animals", "kind", np.arange(200) % 2, ("cat", "dog"))
    >>> [(cell.num_train, len(cell.test)) for cell in cells(task, "normal")]
    [(100, 99)]
    """
    if setting not in _CELLS:
        also = "; ood tests on another dataset: out_of_distribution" if setting == "ood" else ""
        raise InputError(f"setting {setting!r} is unknown; choose from {', '.join(_CELLS)}{also}")
    return _CELLS[setting](task, seed, max_rows)


def out_of_distribution(task: Task, test_task: Task, *, seed: int = SEED, max_rows: int = OOD_ROWS) -> Cell | Skipped:
    """Return the cell that trains on a task and tests on all rows of another dataset.

    The labels of either are places among its own two values in sorted order, as in the benchmark; where the values
    differ (`Task.classes`), they mean the same by that order alone.

    Parameters
    ----------
    task, test_task : Task
        That which trains, and that which tests.
    seed : int
        Of the draw of training rows.
    max_rows : int
        Only the first so many rows of the task train.

    Raises
    ------
    InputError
        The seed is out of range.
    """
    why_not = shortage(task.labels, num_train=MAX_TRAIN_ROWS, num_test=0, max_rows=max_rows)
    if why_not is not None:
        return Skipped(task.name, "ood", MAX_TRAIN_ROWS, None, why_not)
    split = split_rows(task.labels, num_train=MAX_TRAIN_ROWS, num_test=0, seed=seed, max_rows=max_rows)
    return Cell(task.name, test_task.name, "ood", split.train, np.arange(len(test_task), dtype=np.int64))


def imbalance_sizes(labels: NDArray[np.int8], *, max_rows: int = MAX_ROWS) -> tuple[int, int]:
    """Return the numbers of training and test rows that all fractions of imbalance share.

    Together with one row they are the most rows that the rarer class of 5 % and of 95 % positives suffices for; of
    these, at least 100 test. A task that is too small gets sizes that it has no rows for.
    """
    eligible = labels[:max_rows]
    positive = int(np.count_nonzero(eligible))
    negative = len(eligible) - positive
    total = int(min(negative / (1 - POSITIVE_FRACTIONS[0]), positive / POSITIVE_FRACTIONS[-1]))
    num_train = min(total - MIN_TEST_ROWS, MAX_TRAIN_ROWS)
    return num_train, max(MIN_TEST_ROWS, total - num_train - 1)


def flipped_places(num_train: int, fraction: float, *, seed: int = SEED) -> NDArray[np.int64]:
    """Return the places among training rows whose labels label noise inverts, of either class.

    Parameters
    ----------
    num_train : int
    fraction : float
        From 0 to 0.5; floor(fraction * num_train) labels are inverted.
    seed : int
        Of a generator of its own, so that a larger fraction inverts the labels of a smaller one and more.

    Raises
    ------
    InputError
        The fraction is out of range.
    """
    if not 0 <= fraction <= 0.5:
        raise InputError(f"a fraction {fraction} of flipped labels; expected 0 to 0.5")
    rng = np.random.RandomState(seed)  # the benchmark's stream
    return rng.choice(num_train, size=int(num_train * fraction), replace=False).astype(np.int64, copy=False)


def _normal(task: Task, seed: int, max_rows: int) -> list[Cell | Skipped]:
    return [_balanced(task, "normal", _normal_size(task, max_rows), seed, max_rows)]


def _multi_token(task: Task, seed: int, max_rows: int) -> list[Cell | Skipped]:
    return [_balanced(task, "multi_token", _normal_size(task, max_rows), seed, max_rows, left_over=0)]


def _scarcity(task: Task, seed: int, max_rows: int) -> list[Cell | Skipped]:
    return [_balanced(task, "scarcity", num_train, seed, max_rows) for num_train in TRAIN_SIZES]


def _imbalance(task: Task, seed: int, max_rows: int) -> list[Cell | Skipped]:
    num_train, num_test = imbalance_sizes(task.labels, max_rows=max_rows)
    return [
        _drawn(task, "imbalance", num_train, num_test, seed, max_rows, positive_fraction=fraction)
        for fraction in POSITIVE_FRACTIONS
    ]


def _label_noise(task: Task, seed: int, max_rows: int) -> list[Cell | Skipped]:
    clean = _balanced(task, "label_noise", _normal_size(task, max_rows), seed, max_rows)
    if isinstance(clean, Skipped):
        return [
            Skipped(task.name, "label_noise", clean.num_train, fraction, clean.reason) for fraction in FLIPPED_FRACTIONS
        ]
    return [
        Cell(
            task.name,
            task.name,
            "label_noise",
            clean.train,
            clean.test,
            fraction,
            flipped_places(clean.num_train, fraction, seed=seed),
        )
        for fraction in FLIPPED_FRACTIONS
    ]


_CELLS: Mapping[str, Callable[[Task, int, int], list[Cell | Skipped]]] = {
    "normal": _normal,
    "scarcity": _scarcity,
    "imbalance": _imbalance,
    "label_noise": _label_noise,
    "multi_token": _multi_token,
}


def _normal_size(task: Task, max_rows: int) -> int:
    """Return how many rows train in the normal setting."""
    return min(balanced_rows(task.labels, max_rows=max_rows) - MIN_TEST_ROWS, MAX_TRAIN_ROWS)


def _balanced(
    task: Task, setting: SettingName, num_train: int, seed: int, max_rows: int, *, left_over: int = 1
) -> Cell | Skipped:
    """Return a cell of equal classes in which all rows but those left over train or test."""
    n = balanced_rows(task.labels, max_rows=max_rows)
    if not 2 <= num_train <= n - MIN_TEST_ROWS:
        needed = max(num_train, 2) + MIN_TEST_ROWS
        why_not = f"{n:,} rows of equal classes; {setting.replace('_', ' ')} needs {needed:,} here"
        return Skipped(task.name, setting, num_train, None, why_not)
    return _drawn(task, setting, num_train, n - num_train - left_over, seed, max_rows)


def _drawn(
    task: Task,
    setting: SettingName,
    num_train: int,
    num_test: int,
    seed: int,
    max_rows: int,
    *,
    positive_fraction: float | None = None,
) -> Cell | Skipped:
    ratio = 0.5 if positive_fraction is None else positive_fraction
    why_not = shortage(task.labels, num_train=num_train, num_test=num_test, positive_ratio=ratio, max_rows=max_rows)
    if why_not is not None:
        return Skipped(task.name, setting, num_train, positive_fraction, why_not)
    split = split_rows(
        task.labels, num_train=num_train, num_test=num_test, positive_ratio=ratio, seed=seed, max_rows=max_rows
    )
    return Cell(task.name, task.name, setting, split.train, split.test, positive_fraction)
