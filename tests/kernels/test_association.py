"""Measures of association against scikit-learn, SciPy and counts of dense columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import jaccard_score, mutual_info_score

from saestore.kernels.association import benjamini_hochberg, fisher_p, jaccard, lift, mutual_information


def columns(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.random(n) < rng.choice([0, 0.05, 0.5, 1])
    b = np.where(rng.random(n) < 0.5, a, rng.random(n) < rng.choice([0, 0.3, 1]))
    return a, b


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 2**20))
def test_counts_give_what_the_columns_give(n: int, seed: int) -> None:
    a, b = columns(n, seed)
    n_a, n_b, n_ab = int(a.sum()), int(b.sum()), int((a & b).sum())
    bits = mutual_information(n, n_a, n_b, n_ab)
    assert bits >= 0
    assert bits == pytest.approx(mutual_info_score(a, b) / math.log(2), abs=1e-12)
    assert jaccard(n_a, n_b, n_ab) == pytest.approx(jaccard_score(a, b, zero_division=0), abs=1e-15)
    chance = a.mean() * b.mean()
    assert lift(n, n_a, n_b, n_ab) == pytest.approx((a & b).mean() / chance if chance else 0, rel=1e-12)


def test_arrays_are_taken_element_by_element() -> None:
    n_a, n_ab = np.array([10, 0, 40]), np.array([5, 0, 40])
    np.testing.assert_array_equal(lift(100, n_a, 50, n_ab), [1, 0, 2])
    np.testing.assert_array_equal(jaccard(n_a, 50, n_ab), [5 / 55, 0, 0.8])
    bits = mutual_information(100, n_a[:, None], np.array([50, 40]), n_ab[:, None])
    assert bits.shape == (3, 2)
    assert bits[0, 0] == 0
    assert bits[2, 1] == pytest.approx(-0.4 * math.log2(0.4) - 0.6 * math.log2(0.6))


def test_units_that_tell_nothing_of_each_other_have_no_information() -> None:
    """Also where products of counts are beyond what float64 holds exactly."""
    sizes = np.array([3, 1_000, 10_007])
    bits = mutual_information(10_007**2, sizes * 10_007, 10_007 * sizes[:, None], sizes * sizes[:, None])
    assert (bits >= 0).all()
    assert bits.max() < 1e-14


@pytest.mark.parametrize("n", [4, 5, 50, 1_400_000])
def test_p_values_are_those_of_the_normal_distribution(n: int) -> None:
    r = np.array([0, 1e-4, -0.02, 0.3, -0.7, 0.999])
    right = 2 * stats.norm.sf(np.abs(0.5 * np.log((1 + r) / (1 - r))) * np.sqrt(n - 3))
    np.testing.assert_allclose(fisher_p(r, n), right, rtol=1e-9, atol=1e-300)


def test_perfect_correlations_have_a_p_value_of_zero() -> None:
    np.testing.assert_array_equal(fisher_p(np.array([1.0, -1.0]), 4), [0, 0])


def test_p_values_of_noise_are_uniform() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2_000, 200))
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert stats.kstest(fisher_p(r, 200), "uniform").pvalue > 0.01


def test_p_values_of_fewer_than_four_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        fisher_p(0.5, 3)


@settings(max_examples=60, deadline=None)
@given(p=st.lists(st.sampled_from([0.0, 1e-12, 0.001, 0.01, 0.0101, 0.2, 0.5, 1.0]), min_size=1, max_size=40))
def test_q_values_of_all_tests_are_those_of_scipy(p: list[float]) -> None:
    known = np.array(p)
    np.testing.assert_allclose(benjamini_hochberg(known, len(p)), stats.false_discovery_control(known), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), left_out=st.integers(0, 30))
def test_q_values_of_the_smallest_are_never_too_small(seed: int, left_out: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.sort(np.append(rng.random(30) ** 3, rng.random(left_out)))
    whole, known = stats.false_discovery_control(p), benjamini_hochberg(p[:30], len(p))
    assert (known >= whole[:30] - 1e-12).all()
    # As if those left out had p = 1: by hand, the definition itself.
    padded = np.append(p[:30], np.ones(left_out))
    np.testing.assert_allclose(known, stats.false_discovery_control(padded)[:30], rtol=1e-12)


def test_no_p_values_have_no_q_values_and_more_than_tests_are_refused() -> None:
    assert benjamini_hochberg(np.empty(0), 10).shape == (0,)
    with pytest.raises(ValueError, match="3 p-values are more than 2 tests"):
        benjamini_hochberg(np.zeros(3), 2)
