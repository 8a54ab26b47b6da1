"""SAGA against scikit-learn's solver, both ways to take its steps against each other, and delayed steps one by one."""

from __future__ import annotations

import warnings
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels import saga
from saestore.kernels.lanes import load, of, store
from saestore.kernels.saga import Fits, l1_logistic

GRID = np.logspace(5, -5, 10)


@pytest.fixture(params=["plain", "delayed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have every fit take its steps in one way."""
    monkeypatch.setattr(saga, "_plain_is_quicker", lambda design, lanes: request.param == "plain")
    return str(request.param)


def design(n: int, d: int, density: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two classes that differ a little, float32 as codes are."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    x = (rng.random((n, d)) < density) * rng.gamma(2.0, 1.0, (n, d))
    x[:, : max(1, d // 8)] += (rng.random((n, max(1, d // 8))) < 0.3 * y[:, None]) * 0.5
    return x.astype(np.float32).astype(np.float64), y


def by_sklearn(x: np.ndarray, y: np.ndarray, cs: np.ndarray, seed: int, limit: int, tolerance: float = 1e-4) -> Fits:
    linear = pytest.importorskip(
        "sklearn.linear_model", reason="scikit-learn is absent: pip install 'saestore[probes]'"
    )
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in cs:
            model = linear.LogisticRegression(
                C=c, l1_ratio=1.0, solver="saga", random_state=seed, max_iter=limit, tol=tolerance
            )
            models.append(model.fit(x, y))
    return Fits(
        np.array([model.coef_[0] for model in models]),
        np.array([model.intercept_[0] for model in models]),
        np.array([model.n_iter_[0] for model in models]),
    )


def assert_same(mine: Fits, theirs: Fits, tolerance: float = 1e-9) -> None:
    scale = np.abs(theirs.coefficients).max(initial=1)
    assert mine.epochs.tolist() == theirs.epochs.tolist()
    assert np.abs(mine.coefficients - theirs.coefficients).max() <= tolerance * scale
    assert np.abs(mine.intercepts - theirs.intercepts).max() <= tolerance * scale
    # Weights that are exactly 0 are the point of the penalty.
    assert ((mine.coefficients == 0) == (theirs.coefficients == 0)).all()


@pytest.mark.parametrize("density", [0.03, 0.25, 1.0])
@pytest.mark.parametrize(("n", "d"), [(60, 1), (90, 7), (90, 8), (130, 65), (80, 200)])
@pytest.mark.parametrize("seed", [42, 1])
def test_weights_are_those_of_scikit_learn(way: str, n: int, d: int, density: float, seed: int) -> None:
    x, y = design(n, d, density, seed=d)
    assert_same(l1_logistic(x, y, GRID, seed=seed, max_epochs=120), by_sklearn(x, y, GRID, seed, limit=120))


def test_a_long_fit_is_that_of_scikit_learn(way: str) -> None:
    """A thousand epochs that do not converge add rounding, not more."""
    x, y = design(150, 100, 0.1, seed=3)
    fits = l1_logistic(x, y, GRID[:6], seed=42)
    assert fits.epochs.max() == 1_000
    assert_same(fits, by_sklearn(x, y, GRID[:6], 42, limit=1_000), tolerance=1e-8)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 12])
def test_few_rows_give_the_weights_of_scikit_learn(way: str, n: int) -> None:
    x, y = design(n, 20, 0.3, seed=n)
    assert_same(l1_logistic(x, y, GRID, seed=42, max_epochs=400), by_sklearn(x, y, GRID, 42, limit=400))


def odd_designs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    x, y = design(60, 12, 0.3, seed=5)
    constant, empty, signed = x.copy(), x.copy(), x.copy()
    constant[:, [0, 4]] = [2.0, 0.0]
    empty[::3] = 0
    signed[::2] *= -1
    duplicate = np.tile(x[:10], (6, 1)), np.tile(y[:10], 6)
    unbalanced = np.zeros(60, np.int64)
    unbalanced[7] = 1
    return {
        "constant columns": (constant, y),
        "empty rows": (empty, y),
        "values below 0": (signed, y),
        "large values": (x * 1e6, y),
        "small values": (x * 1e-6, y),
        "duplicate rows": duplicate,
        "duplicate columns": (np.tile(x[:, :3], (1, 4)), y),
        "nothing but zeros": (x * 0, y),
        "one row of a class": (x, unbalanced),
        "a column tells the classes": (y[:, None] * 30.0, y),
    }


@pytest.mark.parametrize("name", list(odd_designs()))
def test_odd_designs_give_the_weights_of_scikit_learn(way: str, name: str) -> None:
    x, y = odd_designs()[name]
    assert_same(l1_logistic(x, y, GRID, seed=42, max_epochs=150), by_sklearn(x, y, GRID, 42, limit=150))


def test_the_tolerance_is_that_of_scikit_learn(way: str) -> None:
    x, y = design(90, 8, 0.25, seed=1)
    loose = l1_logistic(x, y, GRID, seed=42, tolerance=1e-2)
    assert_same(loose, by_sklearn(x, y, GRID, 42, limit=1_000, tolerance=1e-2))
    assert (loose.epochs <= l1_logistic(x, y, GRID, seed=42).epochs).all()


@given(
    n=st.integers(2, 40),
    d=st.integers(1, 30),
    density=st.floats(0.01, 1),
    draw=st.integers(0, 10_000),
    seed=st.integers(0, 2**32 - 1),
    candidates=st.integers(1, 11),
)
@settings(deadline=None, max_examples=60)
def test_both_ways_give_the_same_weights(n: int, d: int, density: float, draw: int, seed: int, candidates: int) -> None:
    x, y = design(n, d, density, draw)
    cs = 10.0 ** np.random.default_rng(draw).uniform(-3, 4, candidates)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for is_plain in (True, False):
            patch.setattr(saga, "_plain_is_quicker", lambda design, lanes, is_plain=is_plain: is_plain)
            found.append(l1_logistic(x, y, cs, seed=seed, max_epochs=40, tolerance=0))
    scale = max(1, np.abs(found[0].coefficients).max())
    assert np.abs(found[0].coefficients - found[1].coefficients).max() <= 1e-9 * scale
    assert np.abs(found[0].intercepts - found[1].intercepts).max() <= 1e-9 * scale
    assert (found[0].epochs <= 40).all()


def test_a_change_of_way_between_epochs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight candidates side by side some end early; the rest go on alone."""
    x, y = design(100, 40, 0.2, seed=9)
    monkeypatch.setattr(saga, "_plain_is_quicker", lambda design, lanes: lanes < 6)
    fits = l1_logistic(x, y, GRID, seed=42, max_epochs=300)
    assert fits.epochs[5] < fits.epochs[4]  # at the end of candidate 5 five are left
    assert_same(fits, by_sklearn(x, y, GRID, 42, limit=300))


def test_a_candidate_does_not_depend_on_the_others(way: str) -> None:
    x, y = design(80, 30, 0.2, seed=2)
    together = l1_logistic(x, y, GRID, seed=42, max_epochs=200)
    for place, c in enumerate(GRID):
        alone = l1_logistic(x, y, np.array([c]), seed=42, max_epochs=200)
        assert alone.epochs[0] == together.epochs[place]
        assert np.abs(alone.coefficients[0] - together.coefficients[place]).max() < 1e-10


def test_the_seed_orders_the_rows_and_nothing_is_kept() -> None:
    x, y = design(80, 30, 0.2, seed=2)
    before = x.copy()
    first, again, other = (l1_logistic(x, y, GRID[:2], seed=seed, max_epochs=5) for seed in (42, 42, 43))
    assert np.array_equal(first.coefficients, again.coefficients)
    assert not np.array_equal(first.coefficients, other.coefficients)
    assert np.array_equal(x, before)


@numba.njit
def waited(weights: Any, shrinkages: Any, drifts: Any, start: Any, now: Any) -> None:
    """Take the steps that waited, at once."""
    like = of(shrinkages)
    before, gradient = load(weights, 0, like), load(weights, len(shrinkages), like)
    passed = np.float64(now - start)
    after, crossed = saga._drifted(before, gradient, drifts[now] - drifts[start], like * passed)
    store(weights, 0, after)
    if crossed != 0:
        saga._repair(weights, 0, before, crossed, shrinkages, drifts, start, now)


@given(
    w=st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 1e-3]), min_size=4, max_size=4),
    gradients=st.lists(st.floats(-4, 4) | st.sampled_from([0.0, 1.0]), min_size=4, max_size=4),
    shrinkages=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.1]), min_size=4, max_size=4),
    drawn=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    start=st.integers(0, 29),
)
@settings(deadline=None, max_examples=600)
def test_steps_that_waited_are_those_taken_one_by_one(
    w: list[float], gradients: list[float], shrinkages: list[float], drawn: list[int], start: int
) -> None:
    """The drift falls as more rows are drawn, and whatever the lag, the weights are the same."""
    steps = 0.3 / (1 + np.cumsum(drawn))
    drifts = np.concatenate([[0.0], np.cumsum(steps)])
    start = min(start, len(steps) - 1)
    v, g, p = np.array(w), np.array(gradients), np.array(shrinkages)
    for step in steps[start:]:
        v = v - step * g
        v = np.sign(v) * np.maximum(np.abs(v) - p, 0)
    weights = np.array([*w, *gradients])
    waited(weights, tuple(shrinkages), drifts, start, len(steps))
    assert weights[:4] == pytest.approx(v, abs=1e-12)
    assert weights[4:].tolist() == gradients


def test_a_weight_is_pulled_across_0() -> None:
    """Down to 0 the penalty helps the pull, and beyond it hinders: one soft threshold would give -4.45."""
    weights = np.array([3.05, -3.05, 1.0, -1.0])
    waited(weights, (0.25, 0.25), np.arange(11.0), 0, 10)
    # 3.05, 1.8, 0.55, then 0.55 - 1 + 0.25, and seven steps of 0.75.
    assert weights[:2] == pytest.approx([-5.45, 5.45], abs=1e-12)
