"""Units as the bundle measures them, and what their decoder rows add, against SAELens' own encode and decode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: measuring has no oracle")
torch = pytest.importorskip("torch")

from saestore.errors import InputError  # noqa: E402
from saestore.saes import open_sae  # noqa: E402
from saestore.steer.bundle import ModelPlace  # noqa: E402
from saestore.steer.making import make_bundle  # noqa: E402
from saestore.steer.measuring import measure_of  # noqa: E402
from tests.saes.conftest import D_IN, make_sae, oracle  # noqa: E402
from tests.steer.conftest import GRAPH  # noqa: E402

PLACE = ModelPlace(model_id="m", revision=None, d_model=D_IN, layer="layer_3", hook="h.3")
UNITS = np.array([0, 3, 17, 40, 41, 63])
KINDS = {
    "standard": {},
    "standard_normed": {"normalize_activations": "layer_norm"},
    "jumprelu": {"apply_b_dec_to_input": False},
    "jumprelu_rescaled": {"normalize_activations": "constant_norm_rescale"},
    "gated": {},
    "topk": {},
    "topk_rescaled": {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"},
    "abstopk": {},
    "abstopk_rescaled": {"rescale_acts_by_decoder_norm": True},
}


def opened(folder, kind):
    sae = make_sae(kind.split("_")[0], **KINDS[kind])
    sae.save_model(folder)
    return sae, open_sae(folder)


def made(weights, units=UNITS):
    none = np.zeros(0, int)
    ones = np.ones(len(units))
    return make_bundle(
        weights,
        units,
        **{"mean": ones, "deviation": ones, "maximum": ones},
        **{"a": none, "b": none, "r": np.zeros(0)},
        **{"model": PLACE, "sae_name": "s", "graph": GRAPH},
    )


@pytest.fixture
def x():
    return (np.random.default_rng(5).normal(size=(150, D_IN)) * 3 + 0.5).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_of_saelens(tmp_path, kind, x):
    sae, weights = opened(tmp_path, kind)
    bundle = made(weights)
    expected = oracle(sae, x)[0][:, UNITS]
    got = measure_of(bundle, np.array([5, 0, 2]), weights)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected[:, [5, 0, 2]], atol=2e-5, rtol=2e-5)
    assert (got != 0).any(axis=0).all(), "each unit must be active somewhere, or nothing was compared"
    assert (got == 0).any(axis=0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_row_is_what_one_unit_adds(tmp_path, kind, x):
    """Decode SAELens' own codes with one unit raised by 2.5, and look at the difference."""
    sae, weights = opened(tmp_path, kind)
    bundle = made(weights)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        raised = codes.clone()
        raised[:, 17] += 2.5
        before = sae.decode(codes)
        sae.encode(torch.from_numpy(x))  # its decoder forgets the normalisation after one use
        difference = (sae.decode(raised) - before).numpy()
    scale = {
        "layer_norm": x.std(axis=1, ddof=1, keepdims=True),
        "constant_norm_rescale": np.linalg.norm(x, axis=1, keepdims=True) / D_IN**0.5,
        "none": 1,
    }[bundle.sae.normalization]
    np.testing.assert_allclose(difference, 2.5 * bundle.decoder[2] * scale * np.ones((150, 1)), atol=1e-4)


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_units_that_compete_need_the_whole_sae(tmp_path, kind, x):
    _, weights = opened(tmp_path, kind)
    with pytest.raises(InputError, match=rf"the {kind} SAE s selects among all its units, .* give sae=open_sae"):
        measure_of(made(weights), np.array([0]), None)


def test_another_sae_is_refused(tmp_path):
    _, weights = opened(tmp_path / "a", "topk")
    bundle = made(weights)
    make_sae("topk", seed=1).save_model(tmp_path / "b")
    make_sae("standard").save_model(tmp_path / "c")
    make_sae("topk", d_sae=20).save_model(tmp_path / "d")
    for other in "bcd":
        with pytest.raises(InputError, match="is not the SAE s of the steering bundle"):
            measure_of(bundle, np.array([0]), open_sae(tmp_path / other))


@pytest.mark.parametrize("architecture", ["transcoder", "matching_pursuit"])
def test_units_that_cannot_be_measured_are_refused(tmp_path, architecture):
    make_sae(architecture).save_model(tmp_path)
    weights = open_sae(tmp_path)
    bundle = made(weights)
    assert bundle.sae.selection == "none"
    np.testing.assert_array_equal(bundle.decoder, weights.take("W_dec", UNITS))
    with pytest.raises(InputError, match=rf"units of SAE s \({architecture}\) cannot be measured .* use the mode add"):
        measure_of(bundle, np.array([0]), weights)


def test_a_unit_that_never_fires_measures_zero(tmp_path, x):
    sae = make_sae("jumprelu")
    sae.threshold.data[17] = np.inf
    sae.save_model(tmp_path)
    bundle = made(open_sae(tmp_path))
    assert np.isinf(bundle.threshold[2])
    assert not measure_of(dataclasses.replace(bundle), np.array([2]), None)(torch.from_numpy(x)).any()
