"""Classifiers against the package's own functions on the same arrays: every metric is equal, but for L1 bit for bit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from package_oracle import training

from saestore.errors import DependencyError, InputError
from saestore.probing.classifiers import BASELINES, logistic
from saestore.probing.validation import Scores

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Inconsistent values. penalty=l1:UserWarning"),
]

THEIRS = {
    "logreg": "find_best_reg",
    "pca": "find_best_pcareg",
    "knn": "find_best_knn",
    "xgboost": "find_best_xgboost",
    "mlp": "find_best_mlp",
}

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def rows_of(n: int, d: int, *, seed: int = 0, n_test: int = 60) -> Rows:
    """Rows of two classes that differ a little, the classes of both parts balanced."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.permutation(np.arange(n) % 2), rng.permutation(np.arange(n_test) % 2)])
    x = rng.normal(size=(n + n_test, d)) + 0.3 * y[:, None]
    x[:, 1] = 2.0  # does not vary
    x = x.astype(np.float32)
    return x[:n], y[:n], x[n:], y[n:]


def of_package(name: str, rows: Rows, **options: Any) -> Any:
    """What a function of the package finds; it is given tensors, as the package itself gives it."""
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    x_train, y_train, x_test, y_test = rows
    find = getattr(training(), name)
    return find(torch.from_numpy(x_train), y_train, torch.from_numpy(x_test), y_test, **options)


def compare(mine: Scores, theirs: Any, tolerance: float = 0) -> None:
    expected = theirs.metrics
    for metric in ("test_f1", "test_acc", "test_auc", "val_auc"):
        assert abs(getattr(mine, metric) - getattr(expected, metric)) <= tolerance, metric


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "xgboost"])
@pytest.mark.parametrize(("n", "d"), [(3, 8), (6, 8), (40, 30), (160, 30)])
def test_a_baseline_equals_that_of_the_package(name: str, n: int, d: int) -> None:
    rows = rows_of(n, d)
    compare(BASELINES[name](*rows, seed=42), of_package(THEIRS[name], rows, seed=42))


@pytest.mark.parametrize("n", [3, 160])
def test_xgboost_equals_that_of_the_package(n: int) -> None:
    rows = rows_of(n, 6)
    compare(BASELINES["xgboost"](*rows, seed=42), of_package("find_best_xgboost", rows, seed=42))


def test_pca_of_wide_rows_equals_the_package_under_the_same_random_numbers() -> None:
    """Here scikit-learn takes its randomised solver, which the package leaves to the global random state."""
    rows = rows_of(150, 520)
    np.random.seed(42)  # noqa: NPY002
    theirs = of_package("find_best_pcareg", rows, seed=42)
    np.random.seed(7)  # noqa: NPY002
    compare(BASELINES["pca"](*rows, seed=42), theirs)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("seed", [42, 1])
@pytest.mark.parametrize("n", [3, 6, 40, 160])
def test_logistic_regression_equals_that_of_the_package(penalty: Any, seed: int, n: int) -> None:
    """With L1 the weights are alike to rounding, so that metrics, which count pairs and rows, are equal in practice."""
    rows = rows_of(n, 12, seed=n)
    mine = logistic(*rows, penalty=penalty, seed=seed)
    theirs = of_package("find_best_reg", rows, penalty=penalty, seed=seed)
    compare(mine, theirs, tolerance=1e-6 if penalty == "l1" else 0)
    assert mine.chosen == {"C": theirs.classifier.C}


def test_l1_and_l2_differ() -> None:
    rows = rows_of(40, 12)
    assert logistic(*rows, penalty="l1") != logistic(*rows, penalty="l2")


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_global_random_state_is_neither_used_nor_changed(name: str) -> None:
    rows = rows_of(13, 6)
    np.random.seed(0)  # noqa: NPY002
    first = BASELINES[name](*rows)
    assert np.random.random_sample() == np.random.RandomState(0).random_sample()  # noqa: NPY002
    assert BASELINES[name](*rows) == first


def test_fits_and_those_that_stopped_early_are_counted() -> None:
    rows = rows_of(40, 30)
    scores = logistic(*rows, penalty="l1", seed=42)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of_package("find_best_reg", rows, penalty="l1", seed=42)
    stopped = [warning for warning in caught if "max_iter was reached" in str(warning.message)]
    assert scores.fits == 61
    assert scores.unconverged == len(stopped) > 0


def test_an_easy_task_converges() -> None:
    assert logistic(*rows_of(160, 3), penalty="l2").unconverged == 0


def test_columns_that_do_not_vary_give_chance() -> None:
    _, y_train, _, y_test = rows_of(40, 3)
    x_train, x_test = np.full((40, 4), 5, np.float32), np.full((60, 4), 5, np.float32)
    for name in ("logreg", "knn", "xgboost", "mlp"):
        assert BASELINES[name](x_train, y_train, x_test, y_test).test_auc == 0.5


@pytest.mark.parametrize("name", list(BASELINES))
def test_held_out_rows_of_one_class_are_a_missing_validation_score(name: str) -> None:
    x_train, y_train, x_test, y_test = rows_of(130, 4)
    order = np.argsort(y_train, kind="stable")
    scores = BASELINES[name](x_train[order], y_train[order], x_test, y_test)
    assert np.isnan(scores.val_auc)
    assert 0 <= scores.test_auc <= 1


@pytest.mark.parametrize("name", list(BASELINES))
def test_rows_of_one_class_are_refused(name: str) -> None:
    x_train, y_train, x_test, y_test = rows_of(20, 4)
    with pytest.raises(InputError, match="the training rows are all of class 1"):
        BASELINES[name](x_train, y_train * 0 + 1, x_test, y_test)


def test_an_unknown_penalty_is_refused() -> None:
    penalty: Any = "elastic"
    with pytest.raises(InputError, match="expected l1 or l2"):
        logistic(*rows_of(20, 4), penalty=penalty)


@pytest.mark.parametrize(("name", "package"), [("xgboost", "xgboost"), ("mlp", "sklearn.neural_network")])
def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run: Callable[..., Scores] = BASELINES[name]
    with pytest.raises(DependencyError, match=r"pip install 'saestore\[probes\]'"):
        run(*rows_of(20, 4))
