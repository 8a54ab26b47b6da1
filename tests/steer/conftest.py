"""For the tests of steering: an SAE by hand on real MiniLM activations, its graph by brute force, and its bundle."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.extraction.hooks import capture, parse_layers, resolve  # noqa: E402
from saestore.saes.config import SAEConfig  # noqa: E402
from saestore.steer.bundle import GraphPlace, ModelPlace  # noqa: E402
from saestore.steer.making import make_bundle  # noqa: E402
from tests.small_lake import ArrayWeights  # noqa: E402

TEXTS = [
    "The cat sat on the mat and looked at the dog.",
    "A violin is a wooden string instrument that is played with a bow.",
    "Rain fell all night, and the river rose above the bridge.",
    "She bought two tickets for the train to Paris.",
    "The bank raised its interest rate by half a percent.",
    "Bread is made of flour, water, salt and yeast.",
    "The proof follows by induction on the number of edges.",
    "He scored the winning goal in the last minute of the game.",
]
GRAPH = GraphPlace(name="test", identity="0" * 64)


def place_of(model, layer="layer_3", **changes):
    """The place in a model that a bundle for it would name."""
    (hook,) = resolve(model, parse_layers([layer]))
    place = ModelPlace(
        model_id=model.name_or_path or "tiny",
        revision=None,
        d_model=model.config.hidden_size,
        layer=layer,
        hook=hook.module_path,
    )
    return dataclasses.replace(place, **changes)


def hidden_of(model, layer, inputs):
    """The hidden states at a layer, (batch, positions, width), as they are after every hook that is on it."""
    hooks = resolve(model, parse_layers([layer]))
    with torch.no_grad():
        taken = capture(hooks, lambda: model(**inputs), take=lambda _name, hidden: hidden.clone())
    return taken[hooks[0].name]


def bundle_of(weights, codes, place, *, pairs=None, min_r=0.3, sae_name="by-hand"):
    """A bundle of every unit, with the graph of codes (n, d_sae) by numpy: pairs with |r| >= min_r, or those given."""
    deviation = codes.std(axis=0)
    assert (deviation > 0).all(), "the fixture must have no constant unit"
    correlation = np.corrcoef(codes.T)
    if pairs is None:
        pairs = np.argwhere(np.triu(np.abs(correlation) >= min_r, 1))
    a, b = np.asarray(pairs, np.int64).reshape(-1, 2).T
    return make_bundle(
        weights,
        np.arange(weights.config.d_sae),
        mean=codes.mean(axis=0),
        deviation=deviation,
        maximum=codes.max(axis=0),
        a=a,
        b=b,
        r=correlation[a, b],
        model=place,
        sae_name=sae_name,
        graph=GRAPH,
    )


def jumprelu(x, weights):
    """The codes of a jumprelu SAE by its formula, in float64."""
    part = {name: np.asarray(array, np.float64) for name, array in weights.arrays.items()}
    pre = (np.asarray(x, np.float64) - part["b_dec"]) @ part["W_enc"].T + part["b_enc"]
    return pre * (pre > np.maximum(part["threshold"], 0)), pre


@pytest.fixture(scope="session")
def minilm_model(minilm_folder):
    from transformers import AutoModel

    return AutoModel.from_pretrained(minilm_folder).eval()


@pytest.fixture(scope="session")
def minilm_inputs(minilm_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder)(TEXTS, padding=True, return_tensors="pt")


@pytest.fixture(scope="session")
def minilm_steer(minilm_model, minilm_inputs):
    """Real activations of layer 3, an untied jumprelu SAE whose units are real directions, and its whole bundle."""
    rng = np.random.default_rng(0)
    hidden = hidden_of(minilm_model, "layer_3", minilm_inputs)
    rows = hidden[minilm_inputs["attention_mask"].bool()].numpy()
    center = rows.mean(axis=0)
    mixed = rng.normal(size=(24, len(rows))) @ (rows - center)  # units that share directions, so that they correlate
    directions = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    spread = ((rows - center) @ directions.T).std(axis=0).mean()
    arrays = {
        "W_dec": directions,
        "W_enc": directions + rng.normal(size=directions.shape) / 80,
        "b_enc": np.full(24, 0.2 * spread),
        "b_dec": center,
        "threshold": np.full(24, 0.05 * spread),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    weights = ArrayWeights(
        SAEConfig(architecture="jumprelu", d_in=384, d_sae=24, hook_name="blocks.3.hook_normalized_resid_post"), arrays
    )
    codes, _ = jumprelu(rows, weights)
    return SimpleNamespace(
        model=minilm_model,
        inputs=minilm_inputs,
        weights=weights,
        hidden=hidden,
        codes=codes,
        spread=float(spread),
        bundle=bundle_of(weights, codes, place_of(minilm_model)),
    )
