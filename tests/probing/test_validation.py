"""Folds, the best candidate and the metrics, against the package's own folds and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_oracle import training

from saestore.errors import InputError
from saestore.probing.validation import Fold, auc, best, checked_rows, choose, folds, measure

pytestmark = pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")


def labels_of(n: int, n_positive: int, seed: int) -> np.ndarray:
    y = np.zeros(n, dtype=np.int64)
    y[:n_positive] = 1
    return np.random.default_rng(seed).permutation(y)


@st.composite
def labels(draw: st.DrawFn, least: int, most: int) -> np.ndarray:
    n = draw(st.integers(least, most))
    return labels_of(n, draw(st.integers(1, n - 1)), draw(st.integers(0, 1_000)))


@pytest.mark.parametrize("n", [4, 5, 12, 13, 14, 40, 127, 128, 143, 531, 1024])
@pytest.mark.parametrize("seed", [42, 1])
def test_folds_are_those_of_the_package(n: int, seed: int) -> None:
    y = labels_of(n, n // 2, seed=n)
    theirs = training().get_splits(training().get_cv(y[:, None], seed=seed), y[:, None], y)
    mine = folds(y, seed=seed)
    assert len(mine) == len(theirs)
    for fold, (train, validation) in zip(mine, theirs, strict=True):
        assert fold.train.tolist() == list(train)
        assert fold.validation.tolist() == list(validation)


@given(y=labels(2, 300), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_each_fold_cuts_the_rows_in_two(y: np.ndarray, seed: int) -> None:
    parts = folds(y, seed=seed)
    assert (not parts) == (len(y) <= 3)
    for fold in parts:
        assert sorted([*fold.train, *fold.validation]) == list(range(len(y)))
        assert fold.train.size
        assert fold.validation.size


@given(y=labels(4, 12))
@settings(deadline=None, max_examples=60)
def test_few_rows_validate_in_all_pairs_of_both_classes(y: np.ndarray) -> None:
    pairs = [tuple(fold.validation.tolist()) for fold in folds(y, seed=42)]
    assert len(set(pairs)) == len(pairs) == int(y.sum() * (1 - y).sum())
    assert all(y[first] != y[second] for first, second in pairs)


@given(y=labels(13, 127), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_stratified_folds_validate_each_row_once_where_classes_suffice(y: np.ndarray, seed: int) -> None:
    parts = folds(y, seed=seed)
    validated = np.concatenate([fold.validation for fold in parts])
    assert len(np.unique(validated)) == len(validated)
    if min(y.sum(), (1 - y).sum()) >= 6:
        assert len(parts) == 6
        assert len(validated) == len(y)
    assert all(len(np.unique(y[fold.validation])) == 2 for fold in parts)


@pytest.mark.parametrize(("n", "held_out"), [(128, 25), (143, 28), (198, 39), (275, 55), (499, 99), (531, 100)])
def test_many_rows_hold_out_the_last(n: int, held_out: int) -> None:
    (fold,) = folds(labels_of(n, n // 2, 0), seed=42)
    assert fold.validation.tolist() == list(range(n - held_out, n))


@pytest.mark.parametrize(
    ("scores", "place"),
    [([0.5], 0), ([0.7, 0.7], 0), ([0.6, 0.8, 0.8], 1), ([math.nan, 0.2], 1), ([math.nan, math.nan], 0)],
)
def test_the_first_of_equal_candidates_is_best(scores: list[float], place: int) -> None:
    assert best(scores) == place


def test_the_candidate_with_the_best_mean_is_chosen() -> None:
    y = np.array([0, 1, 0, 1])
    parts = [Fold(np.array([2, 3]), np.array([0, 1])), Fold(np.array([0, 1]), np.array([2, 3]))]
    right = {"never": (0, 0), "first fold": (1, 0), "second fold": (0, 1)}

    def probability(candidate: str, fold: Fold) -> np.ndarray:
        is_right = right[candidate][int(fold.validation[0] == 2)]
        return np.array([0.1, 0.9]) if is_right else np.array([0.9, 0.1])

    chosen = choose(list(right), parts, y, probability)
    assert (chosen.candidate, chosen.auc) == ("first fold", 0.5)


def test_a_fold_that_trains_on_one_class_counts_as_a_half() -> None:
    parts = [Fold(np.array([0, 1]), np.array([2, 3]))]

    def probability(candidate: int, fold: Fold) -> np.ndarray:
        raise AssertionError("nothing can be fitted to one class")

    assert choose([7, 8], parts, np.array([0, 0, 0, 1]), probability).auc == 0.5


def test_held_out_rows_of_one_class_leave_the_first_candidate_without_a_score() -> None:
    parts = [Fold(np.array([0, 1]), np.array([2, 3]))]
    chosen = choose([7, 8], parts, np.array([0, 1, 0, 0]), lambda candidate, fold: np.zeros(2))
    assert chosen.candidate == 7
    assert math.isnan(chosen.auc)


@given(y=labels(2, 40), seed=st.integers(0, 1_000))
@settings(deadline=None, max_examples=60)
def test_auc_counts_pairs(y: np.ndarray, seed: int) -> None:
    probability = np.random.default_rng(seed).integers(0, 6, len(y)) / 5
    positive, negative = probability[y == 1, None], probability[None, y == 0]
    wins = (positive > negative).sum() + 0.5 * (positive == negative).sum()
    assert auc(y, probability) == pytest.approx(wins / (positive.size * negative.size), abs=1e-12)


@given(y=labels(2, 60), seed=st.integers(0, 1_000), levels=st.sampled_from([1, 2, 5, 1_000]))
@settings(deadline=None, max_examples=200)
def test_auc_is_that_of_scikit_learn_bit_for_bit(y: np.ndarray, seed: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is absent: pip install 'saestore[probes]'")
    probability = np.random.default_rng(seed).integers(0, levels, len(y)) / levels
    assert auc(y, probability) == metrics.roc_auc_score(y, probability)


def test_f1_is_the_mean_of_both_classes_by_their_rows() -> None:
    y, predicted = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
    f1, accuracy, area = measure(y, predicted, np.array([0.9, 0.8, 0.2, 0.3]))
    of_one, of_zero = 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)
    assert f1 == pytest.approx((3 * of_one + of_zero) / 4)
    assert accuracy == 0.75
    assert area == pytest.approx(2 / 3)


X, Y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("x_train", "y_train", "x_test", "y_test", "words"),
    [
        (X, Y[:3], X, Y, "training rows have shape"),
        (X[:, 0], Y, X, Y, "training rows have shape"),
        (X, Y + 1, X, Y, "make the task binary"),
        (X, Y, X, Y * 0.5, "make the task binary"),
        (X, Y * 0, X, Y, "the training rows are all of class 0"),
        (X, Y, X, Y * 0 + 1, "the test rows are all of class 1"),
        (X, Y, X[:0], Y[:0], "the test rows are none"),
        (X, Y, np.where(np.eye(4, 2) > 0, np.nan, X), Y, "2 of 4 test rows hold NaN"),
        (np.where(np.eye(4, 2, 1) > 0, np.inf, X), Y, X, Y, "1 of 4 training rows hold NaN or infinity"),
        (X, Y, X[:, :1], Y, "2 columns and test rows 1"),
    ],
)
def test_rows_that_cannot_be_probed_are_refused(
    x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        checked_rows(x_train, y_train, x_test, y_test)


def test_rows_that_can_be_probed_become_float64() -> None:
    for rows in checked_rows(X, Y, X, Y):
        assert rows.dtype == np.float64
        assert np.array_equal(rows, X)
