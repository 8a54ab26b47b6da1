"""Directions from sums over rows against scikit-learn's Ridge on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from saestore.kernels.linear_direction import Moments, directions


def moments_of(x: np.ndarray, y: np.ndarray, cuts: list[int]) -> Moments:
    moments = Moments.empty(x[0], y.shape[1])
    for part in np.split(np.arange(len(x)), cuts):
        moments.add(x[part], y[part])
    return moments


def penalty(x: np.ndarray, ridge: float) -> float:
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    return ridge * float((centred**2).sum()) / x.shape[1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(2, 40),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 3000.0]),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_directions_are_those_of_scikit_learn(
    seed: int, n: int, d: int, c: int, offset: float, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) * rng.uniform(0.1, 5, d) + offset).astype(np.float32)
    y = rng.integers(0, 2, (n, c)).astype(np.uint8)
    ridges = [1e-2, 1.0]
    found, intercepts, defined = directions(moments_of(x, y, sorted(min(cut, n) for cut in cuts)), ridges)
    np.testing.assert_array_equal(defined, (y.min(axis=0) == 0) & (y.max(axis=0) == 1))
    for place, ridge in enumerate(ridges):
        for concept in range(c):
            if not defined[concept]:
                assert not found[place, concept].any()
                continue
            oracle = Ridge(alpha=penalty(x, ridge), solver="svd").fit(x.astype(np.float64), y[:, concept])
            np.testing.assert_allclose(found[place, concept], oracle.coef_, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(intercepts[place, concept], oracle.intercept_, rtol=1e-6, atol=1e-5)


def test_scale_of_activations_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 5)), rng.integers(0, 2, (50, 2))
    plain, _, _ = directions(moments_of(x, y, []), [0.1])
    scaled, _, _ = directions(moments_of(x * 64, y, [20]), [0.1])
    np.testing.assert_allclose(scaled * 64, plain, rtol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_activations_that_do_not_vary_have_no_direction(value: float) -> None:
    x = np.full((7, 3), value, dtype=np.float32)
    y = np.array([[0], [1], [0], [1], [1], [0], [0]])
    found, intercepts, defined = directions(moments_of(x, y, [2, 5]), [1.0])
    assert not defined.any()
    assert not found.any()
    np.testing.assert_allclose(intercepts, 3 / 7)


def test_a_concept_that_all_or_no_rows_have_has_no_direction() -> None:
    x = np.random.default_rng(0).normal(size=(9, 4))
    y = np.stack([np.ones(9), np.zeros(9), np.arange(9) % 2], axis=1)
    found, _, defined = directions(moments_of(x, y, [4]), [0.5])
    assert defined.tolist() == [False, False, True]
    assert found[0].any(axis=1).tolist() == [False, False, True]
