"""The classifiers of the sparse-probing benchmark: their grids, their preprocessing and their random numbers.

Each takes training rows and test rows, chooses its hyper-parameters as `saestore.probing.validation` says, fits the
chosen ones to all training rows and measures them on the test rows. Scalers, PCA and neighbours' scales are fitted to
all training rows before validation, as the benchmark has it, so that `val_auc` is a little optimistic.

One seed goes everywhere: into folds, solvers and draws. The benchmark leaves PCA without one, which then depends on
what ran before; here it takes the seed too. Nothing here uses or sets global random state.

Warnings of scikit-learn are not silenced. A fit that stopped at its limit of iterations, which is common for large C,
is counted in `Scores.unconverged` and used as it is. Columns that do not vary are scaled to 0 and do no harm.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from saestore.bridges.packages import imported
from saestore.errors import InputError
from saestore.kernels.saga import l1_logistic
from saestore.probing.splits import SEED
from saestore.probing.validation import (
    Chosen,
    Fold,
    Labels,
    Matrix,
    Probability,
    Scores,
    Setting,
    auc,
    checked_rows,
    choose,
    choose_by_fold,
    folds,
    measure,
)

Penalty = Literal["l1", "l2"]

C_GRID: tuple[float, ...] = tuple(np.logspace(5, -5, 10).tolist())
"""Inverse strengths of regularisation, the weakest first, which therefore wins among equal ones."""

MAX_ITERATIONS = 1_000
MAX_COMPONENTS = MAX_NEIGHBOURS = 100

_GRID_POINTS = 10

_XGBOOST_DRAWS = 10
_XGBOOST_SPACE: Mapping[str, list[Any]] = {
    "n_estimators": list(range(50, 300, 50)),
    "max_depth": list(range(2, 6)),
    "learning_rate": np.logspace(-3, -1, num=10).tolist(),
    "subsample": np.linspace(0.7, 1.0, num=5).tolist(),
    "colsample_bytree": np.linspace(0.7, 1.0, num=5).tolist(),
    "reg_alpha": np.logspace(-3, 1, num=10).tolist(),
    "reg_lambda": np.logspace(-3, 1, num=10).tolist(),
    "min_child_weight": list(range(1, 10)),
}

_MLP_LAYERS: tuple[tuple[int, ...], ...] = tuple((width,) * depth for depth in (1, 2, 3) for width in (16, 32, 64))
_MLP_LEARNING_RATES = np.logspace(-4, -2, num=5)
_MLP_ALPHAS = np.logspace(-5, -2, num=5)


@dataclass(frozen=True)
class _L1Model:
    """A fitted logistic regression with an L1 penalty, with the methods of scikit-learn's that are called here."""

    coefficients: NDArray[np.float64]
    intercept: float

    def predict_proba(self, x: Matrix) -> Probability:
        """Return the probabilities of both classes, (n, 2)."""
        # Beyond 709 the exponential is infinite.
        positive = 1 / (1 + np.exp(np.minimum(-self._decision(x), 709)))
        return np.stack([1 - positive, positive], axis=1)

    def predict(self, x: Matrix) -> Labels:
        """Return the likelier class, 0 where they are alike."""
        labels: Labels = (self._decision(x) > 0).astype(np.int64)
        return labels

    def _decision(self, x: Matrix) -> NDArray[np.floating[Any]]:
        decision: NDArray[np.floating[Any]] = x @ self.coefficients + self.intercept
        return decision


class FitAndScore(Protocol):
    """A classifier: fits training rows (n, d), labels 0 or 1, and measures itself on test rows; all in float64.

    Raises
    ------
    InputError
        Rows that no probe can be fitted to or measured on; see `checked_rows`.
    DependencyError
        scikit-learn, or xgboost for the classifier of that name, is not installed.
    """

    def __call__(self, x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
        """Choose, fit and measure."""
        ...


@dataclass
class _Fits:
    """Fits models and counts them."""

    total: int = 0
    unconverged: int = 0

    def fit(self, model: Any, x: Matrix, y: Labels) -> Any:
        model.fit(x, y)
        self.total += 1
        if hasattr(model, "n_iter_"):
            self.unconverged += int(np.max(model.n_iter_)) >= MAX_ITERATIONS
        return model

    def fit_l1(self, cs: Sequence[float], x: NDArray[np.float64], y: Labels, seed: int) -> list[_L1Model]:
        """Fit a model for each C, all to the same rows."""
        fits = l1_logistic(x, y, np.array(cs, np.float64), seed=seed, max_epochs=MAX_ITERATIONS)
        self.total += len(cs)
        self.unconverged += int(np.count_nonzero(fits.epochs >= MAX_ITERATIONS))
        return [_L1Model(w, float(b)) for w, b in zip(fits.coefficients, fits.intercepts, strict=True)]

    def score(
        self, model: Any, x_test: Matrix, y_test: Labels, val_auc: float, chosen: Mapping[str, Setting]
    ) -> Scores:
        f1, accuracy, test_auc = measure(y_test, model.predict(x_test), _positive(model, x_test))
        return Scores(f1, accuracy, test_auc, val_auc, chosen, self.total, self.unconverged)


def logreg(x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
    """Logistic regression with an L2 penalty on rows as they are; see `logistic`."""
    return logistic(x_train, y_train, x_test, y_test, penalty="l2", seed=seed)


def logistic(
    x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, penalty: Penalty, seed: int = SEED
) -> Scores:
    """Logistic regression on rows as they are, C chosen from `C_GRID`; C = 1 with 3 training rows or fewer.

    L2 is fitted by scikit-learn's L-BFGS, L1 by SAGA, both with at most 1,000 iterations. SAGA visits rows in an order
    that the seed gives, and without scaling it often stops before it has converged: its result depends on seed and
    order of rows. `saestore.kernels.saga` takes the steps of scikit-learn's solver, whose weights it meets to rounding.
    The last fit is of the training rows permuted by the seed.

    Parameters
    ----------
    x_train, x_test : (n, d) floats
    y_train, y_test : (n,) integers
        0 or 1.
    penalty : {"l1", "l2"}
    seed : int

    Raises
    ------
    InputError, DependencyError
        As for every classifier.
    """
    if penalty not in ("l1", "l2"):
        raise InputError(f"unknown penalty {penalty!r}: expected l1 or l2")
    x_train, x_test = checked_rows(x_train, y_train, x_test, y_test)
    fits = _Fits()

    def fit(cs: Sequence[float], x: NDArray[np.float64], y: Labels) -> list[Any]:
        if penalty == "l1":
            return fits.fit_l1(cs, x, y, seed)
        return [fits.fit(_l2_logistic(c, seed), x, y) for c in cs]

    def probabilities(fold: Fold) -> list[Probability]:
        models = fit(C_GRID, x_train[fold.train], y_train[fold.train])
        return [_positive(model, x_train[fold.validation]) for model in models]

    parts = folds(y_train, seed=seed)
    chosen = choose_by_fold(C_GRID, parts, y_train, probabilities) if parts else Chosen(1.0, 0.0)
    # The legacy generators here and below are the benchmark's own, whose permutations and draws are to be had.
    order = np.random.RandomState(seed).permutation(len(x_train))
    (model,) = fit([chosen.candidate], x_train[order], y_train[order])
    val_auc = chosen.auc if parts else auc(y_train, _positive(model, x_train))
    return fits.score(model, x_test, y_test, val_auc, {"C": chosen.candidate})


def pca(x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
    """Logistic regression (L2, C = 1) on the first principal components of standardised rows, their number chosen.

    The numbers are up to 10 whole ones, evenly spaced in their logarithm from 1 to the least of rows, columns and 100;
    all components with 3 training rows or fewer.
    """
    x_train, x_test = checked_rows(x_train, y_train, x_test, y_test)
    fits = _Fits()
    scaled, scaled_test = _standardised(x_train, x_test)
    limit = min(*x_train.shape, MAX_COMPONENTS)
    reduction = imported("sklearn.decomposition", "the PCA probe").PCA(n_components=limit, random_state=seed)
    reduced = reduction.fit_transform(scaled)

    def probability(components: int, fold: Fold) -> Probability:
        x = reduced[:, :components]
        model = fits.fit(_l2_logistic(1.0, seed), x[fold.train], y_train[fold.train])
        return _positive(model, x[fold.validation])

    parts = folds(y_train, seed=seed)
    chosen = choose(_log_grid(limit), parts, y_train, probability) if parts else Chosen(limit, 0.0)
    kept = reduced[:, : chosen.candidate]
    model = fits.fit(_l2_logistic(1.0, seed), kept, y_train)
    val_auc = chosen.auc if parts else auc(y_train, _positive(model, kept))
    reduced_test = reduction.transform(scaled_test)[:, : chosen.candidate]
    return fits.score(model, reduced_test, y_test, val_auc, {"n_components": chosen.candidate})


def knn(x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
    """Nearest neighbours among standardised rows, their number chosen; 1 with 3 training rows or fewer.

    The numbers are up to 10 whole ones, evenly spaced in their logarithm from 1 to the least of n - 1, 100 and the rows
    of the smallest fold.
    """
    x_train, x_test = checked_rows(x_train, y_train, x_test, y_test)
    fits = _Fits()
    neighbours = imported("sklearn.neighbors", "the nearest-neighbour probe").KNeighborsClassifier
    scaled, scaled_test = _standardised(x_train, x_test)

    def probability(k: int, fold: Fold) -> Probability:
        model = fits.fit(neighbours(n_neighbors=k), scaled[fold.train], y_train[fold.train])
        return _positive(model, scaled[fold.validation])

    parts = folds(y_train, seed=seed)
    limit = min(len(x_train) - 1, MAX_NEIGHBOURS, *(len(fold.train) for fold in parts))
    chosen = choose(_log_grid(limit), parts, y_train, probability) if parts else Chosen(1, 0.0)
    model = fits.fit(neighbours(n_neighbors=chosen.candidate), scaled, y_train)
    val_auc = chosen.auc if parts else auc(y_train, _positive(model, scaled))
    return fits.score(model, scaled_test, y_test, val_auc, {"n_neighbors": chosen.candidate})


def xgboost(x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
    """Gradient-boosted trees on standardised rows, the best of 10 settings that the seed draws from a grid.

    With 3 training rows or fewer xgboost's own defaults, which are too cautious to split so few: the AUC is 0.5. One
    thread, so that results do not depend on the machine.
    """
    x_train, x_test = checked_rows(x_train, y_train, x_test, y_test)
    fits = _Fits()
    classifier = imported("xgboost", "the xgboost probe").XGBClassifier
    scaled, scaled_test = _standardised(x_train, x_test)

    def model_of(setting: Mapping[str, Any]) -> Any:
        return classifier(**setting, eval_metric="logloss", random_state=seed, n_jobs=1)

    def probability(setting: dict[str, Any], fold: Fold) -> Probability:
        model = fits.fit(model_of(setting), scaled[fold.train], y_train[fold.train])
        return _positive(model, scaled[fold.validation])

    parts = folds(y_train, seed=seed)
    draw = random.Random(seed)
    settings = [{name: draw.choice(space) for name, space in _XGBOOST_SPACE.items()} for _ in range(_XGBOOST_DRAWS)]
    chosen = choose(settings, parts, y_train, probability) if parts else Chosen({}, 0.0)
    model = fits.fit(model_of(chosen.candidate), scaled, y_train)
    val_auc = chosen.auc if parts else auc(y_train, _positive(model, scaled))
    return fits.score(model, scaled_test, y_test, val_auc, chosen.candidate)


def mlp(x_train: Matrix, y_train: Labels, x_test: Matrix, y_test: Labels, *, seed: int = SEED) -> Scores:
    """A small neural network on standardised rows, of the one setting that the seed draws from a grid.

    Seed 42 draws layers (16, 16, 16), learning rate 10^-2.5 and alpha 0.01. One layer of 32 with 3 training rows or
    fewer.
    """
    x_train, x_test = checked_rows(x_train, y_train, x_test, y_test)
    fits = _Fits()
    classifier = imported("sklearn.neural_network", "the neural-network probe").MLPClassifier
    scaled, scaled_test = _standardised(x_train, x_test)
    rng = np.random.RandomState(seed)
    setting: dict[str, Setting] = {
        "hidden_layer_sizes": _MLP_LAYERS[rng.randint(len(_MLP_LAYERS))],
        "learning_rate_init": float(_MLP_LEARNING_RATES[rng.randint(len(_MLP_LEARNING_RATES))]),
        "alpha": float(rng.choice(_MLP_ALPHAS)),
    }

    def model_of(setting: Mapping[str, Setting]) -> Any:
        return classifier(max_iter=MAX_ITERATIONS, random_state=seed, **setting)

    def probability(setting: Mapping[str, Setting], fold: Fold) -> Probability:
        model = fits.fit(model_of(setting), scaled[fold.train], y_train[fold.train])
        return _positive(model, scaled[fold.validation])

    parts = folds(y_train, seed=seed)
    small: dict[str, Setting] = {"hidden_layer_sizes": (32,)}
    chosen = choose([setting], parts, y_train, probability) if parts else Chosen(small, 0.0)
    model = fits.fit(model_of(chosen.candidate), scaled, y_train)
    val_auc = chosen.auc if parts else auc(y_train, _positive(model, scaled))
    return fits.score(model, scaled_test, y_test, val_auc, chosen.candidate)


BASELINES: Mapping[str, FitAndScore] = {
    "logreg": logreg,
    "pca": pca,
    "knn": knn,
    "xgboost": xgboost,
    "mlp": mlp,
}
"""The baselines in the benchmark's order, which decides between equal ones."""


def _l2_logistic(c: float, seed: int) -> Any:
    classifier = imported("sklearn.linear_model", "logistic regression").LogisticRegression
    return classifier(C=c, random_state=seed, max_iter=MAX_ITERATIONS)


def _standardised(x_train: Matrix, x_test: Matrix) -> tuple[Matrix, Matrix]:
    """Scale columns to mean 0 and variance 1 over the training rows; columns that do not vary become 0 there."""
    scaler = imported("sklearn.preprocessing", "standardised rows").StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test)


def _positive(model: Any, x: Matrix) -> Probability:
    """Return the probability of class 1."""
    probability: Probability = model.predict_proba(x)[:, 1]
    return probability


def _log_grid(limit: int) -> list[int]:
    """Return up to 10 whole numbers from 1 to a limit, evenly spaced in their logarithm and rounded down."""
    points: list[int] = np.unique(np.logspace(0, np.log2(limit), num=_GRID_POINTS, base=2, dtype=int)).tolist()
    return points
