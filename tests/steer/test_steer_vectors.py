from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from saestore.errors import InputError
from saestore.saes.config import SAEConfig
from saestore.steer.bundle import ModelPlace
from saestore.steer.vectors import steering_vectors
from tests.small_lake import ArrayWeights
from tests.steer.conftest import bundle_of

PLACE = ModelPlace(model_id="m", revision=None, d_model=12, layer="layer_1", hook="h.1")


def sae(rng, d_sae=6, d_in=12):
    arrays = {
        "W_enc": rng.normal(size=(d_sae, d_in)),
        "W_dec": rng.normal(size=(d_sae, d_in)),
        "b_enc": np.zeros(d_sae),
        "b_dec": np.zeros(d_in),
    }
    config = SAEConfig(architecture="standard", d_in=d_in, d_sae=d_sae)
    return ArrayWeights(config, {name: array.astype(np.float32) for name, array in arrays.items()})


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def codes(rng):
    """500 rows of six correlated units."""
    return rng.gamma(1.0, size=(500, 6)) @ (np.eye(6) + 0.6 * rng.random((6, 6)))


def moved(bundle, vectors):
    """What adding the vectors does to the pre-activation of every unit, (n, m)."""
    return vectors.astype(np.float64) @ bundle.encoder.T.astype(np.float64)


def test_without_correction_it_is_the_decoder_row(rng, codes):
    bundle = bundle_of(sae(rng), codes, PLACE)
    vectors = steering_vectors(bundle, np.array([4, 1]))
    np.testing.assert_array_equal(vectors, bundle.decoder[[4, 1]])


@pytest.mark.parametrize("unit", range(6))
def test_neighbours_follow_by_the_regression_or_are_held(rng, codes, unit):
    bundle = bundle_of(sae(rng), codes, PLACE, pairs=[(unit, v) for v in {0, 2, 3, 5} - {unit}])
    near = bundle.neighbours(unit)
    followed = moved(bundle, steering_vectors(bundle, np.array([unit]), corrective="follow"))[0]
    held = moved(bundle, steering_vectors(bundle, np.array([unit]), corrective="hold"))[0]
    plain = moved(bundle, steering_vectors(bundle, np.array([unit])))[0]
    slopes = [np.polyfit(codes[:, unit], codes[:, v], 1)[0] for v in near]
    assert followed[unit] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(followed[near], slopes, atol=1e-4)
    assert held[unit] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(held[near], 0, atol=1e-4)
    assert np.abs(plain[near] - slopes).max() > 0.1  # there was something to correct
    assert np.abs(plain[near]).max() > 0.1


def test_several_units_are_regressed_on_together(rng, codes):
    """Equal to ordinary least squares on both, which differs from the sum of the two single slopes."""
    steered, near = [1, 4], [0, 2, 3, 5]
    bundle = bundle_of(sae(rng), codes, PLACE, min_r=0)
    vectors = steering_vectors(bundle, np.array(steered), corrective="follow")
    design = np.column_stack([codes[:, steered], np.ones(len(codes))])
    slopes = np.linalg.lstsq(design, codes[:, near], rcond=None)[0][:2]
    np.testing.assert_allclose(moved(bundle, vectors)[:, near], slopes, atol=1e-4)
    np.testing.assert_allclose(moved(bundle, vectors)[:, steered], np.eye(2), atol=1e-4)
    single = [[np.polyfit(codes[:, u], codes[:, v], 1)[0] for v in near] for u in steered]
    assert np.abs(slopes - single).max() > 0.1


def test_a_tied_orthogonal_sae_adds_the_slopes_themselves(rng, codes):
    axes = np.linalg.qr(rng.normal(size=(12, 12)))[0][:6].astype(np.float32)
    weights = sae(rng)
    weights.arrays.update(W_enc=axes, W_dec=axes)
    bundle = bundle_of(weights, codes, PLACE, pairs=[(0, 1), (0, 3)])
    (vector,) = steering_vectors(bundle, np.array([0]), corrective="follow")
    slopes = [np.polyfit(codes[:, 0], codes[:, v], 1)[0] for v in (1, 3)]
    np.testing.assert_allclose(vector, axes[0] + slopes[0] * axes[1] + slopes[1] * axes[3], atol=1e-5)


def test_units_that_cannot_be_moved_apart_are_refused(rng, codes):
    weights = sae(rng)
    weights.arrays["W_dec"][3] = weights.arrays["W_dec"][0] * 5
    bundle = bundle_of(weights, codes, PLACE, pairs=[(0, 3), (1, 2)])
    with pytest.raises(InputError, match=r"unit 0 and its 1 neighbours cannot be moved apart in 12 dimensions"):
        steering_vectors(bundle, np.array([0]), corrective="hold")
    assert steering_vectors(bundle, np.array([1]), corrective="hold").shape == (1, 12)


def test_more_neighbours_than_dimensions_are_refused(rng, codes):
    bundle = bundle_of(sae(rng, d_in=4), codes, dataclasses.replace(PLACE, d_model=4), min_r=0)
    with pytest.raises(InputError, match="cannot be moved apart in 4 dimensions"):
        steering_vectors(bundle, np.array([0]), corrective="follow")


def test_steered_units_that_are_one_in_the_graph_are_refused(rng, codes):
    codes[:, 1] = 2 * codes[:, 0]
    bundle = bundle_of(sae(rng), codes, PLACE, pairs=[(0, 1), (0, 2), (1, 2)])
    with pytest.raises(InputError, match=r"units 0, 1 are so correlated"):
        steering_vectors(bundle, np.array([0, 1]), corrective="follow")


def test_an_unknown_correction_is_refused(rng, codes):
    with pytest.raises(InputError, match=r"corrective is True; use one of none, follow, hold"):
        steering_vectors(bundle_of(sae(rng), codes, PLACE), np.array([0]), corrective=True)
