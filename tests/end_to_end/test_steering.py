"""From texts to a steered model, as a user types it: the steered hidden states are encoded by SAELens."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
transformers: Any = pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")
sae_lens: Any = pytest.importorskip("sae_lens", reason="sae-lens is not installed: no oracle of the units")
pytest.importorskip("igraph", reason="igraph is absent: pip install 'saestore[graph]'")

import saestore  # noqa: E402
from saestore.cli import main  # noqa: E402
from saestore.errors import InputError  # noqa: E402
from saestore.extraction.hooks import capture, parse_layers, resolve  # noqa: E402
from saestore.saes import open_sae  # noqa: E402
from saestore.saes.lake import open_lake_sae  # noqa: E402
from saestore.steer import Bundle, apply, load_bundle  # noqa: E402

WORDS = (
    "heron",
    "swift",
    "robin",
    "crane",
    "owl",
    "oak",
    "birch",
    "maple",
    "cedar",
    "violin",
    "train",
    "river",
    "bank",
)
FRAMES = (
    "The {} was seen by the water on day {}.",
    "On day {1} somebody drew the {0} by the road.",
    "Is a {} worth {} coins?",
)
TOP, CHANGE = 4, 3.0

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Steered:
    """A bundle with what it is for; `unit` is the one that was asked for.

    codes, pre : (n, d_sae) float64
        Of the tokens of three texts, without steering.
    """

    place: Path
    model: Any
    inputs: Mapping[str, Any]
    sae: Any
    bundle: Bundle
    unit: int
    codes: np.ndarray
    pre: np.ndarray

    @property
    def neighbours(self) -> np.ndarray:
        return self.bundle.neighbours(self.unit)

    def slope(self, unit: int) -> float:
        here, there = self.bundle.places([self.unit, unit])
        (edge,) = np.flatnonzero((self.bundle.source == here) & (self.bundle.target == there))
        return float(self.bundle.coefficient[edge])

    def under(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        with apply(self.model, self.bundle, unit=self.unit, **options):
            return measured(self.model, self.inputs, self.sae)


def measured(model: Any, inputs: Mapping[str, Any], sae: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes by SAELens' encode of the hidden states at layer 3, and pre-activations by its weights."""
    hooks = resolve(model, parse_layers([3]))
    with torch.no_grad():
        hidden = capture(hooks, lambda: model(**inputs), take=lambda _name, taken: taken.clone())["layer_3"]
        rows = hidden[inputs["attention_mask"].bool()]
        codes = sae.encode(rows).double().numpy()
        pre = (rows - sae.b_dec).double() @ sae.W_enc.double() + sae.b_enc.double()
    return codes, pre.numpy()


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Steered:
    place = tmp_path_factory.mktemp("steering")
    texts = [frame.format(word, n) for word in WORDS for frame in FRAMES for n in range(8)]
    (place / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    sae = ["--d-sae", "128", "--k", "8", "--samples", "16384", "--batch-size", "256"]
    lake = str(place / "lake")
    for command in (
        ["init", lake],
        ["extract", lake, "--datasets", place / "texts.txt", "--model", minilm_folder, "--layers", "3"],
        ["sae", "train", lake, "--layer", "3", "--out", place / "sae", *sae, "--quiet"],
        ["sae", "import", lake, place / "sae", "--name", "small"],
        ["encode", lake, "--saes", "small", "--quiet"],
        ["graph", lake, "--saes", "small", "--sample-type", "token", "--min-r", "0.2", "--quiet"],
    ):
        assert main([str(word) for word in command]) == 0
    graph = saestore.open(lake).open_graph()
    edges = graph.edges()[["unit_a", "unit_b"]].to_numpy()
    degrees = np.bincount(edges.ravel(), minlength=128)
    assert degrees.max() >= TOP
    oracle = sae_lens.SAE.load_from_disk(str(place / "sae"))
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    inputs = tokenizer([texts[0], texts[11], texts[100]], padding=True, return_tensors="pt")
    codes, pre = measured(model, inputs, oracle)
    unit = int(np.argmax(np.where(degrees >= TOP, (codes > 0).sum(axis=0), -1)))
    assert (codes[:, unit] > 0).any()
    bundle = ["steer", "bundle", lake, "--units", str(unit), "--top", str(TOP), "--out", str(place / "bundle")]
    assert main(bundle) == 0
    return Steered(place, model, inputs, oracle, load_bundle(place / "bundle"), unit, codes, pre)


def test_the_bundle_names_the_model_the_sae_and_the_graph(steered: Steered, minilm_folder: Path) -> None:
    model = steered.bundle.model
    assert (model.layer, model.hook, model.d_model) == ("layer_3", "encoder.layer.3", 384)
    assert model.revision is not None
    assert model.revision.startswith("sampled-sha256:")
    assert steered.bundle.sae.content_hash == open_sae(steered.place / "sae").content_hash()
    assert len(steered.neighbours) >= TOP
    # The scales are those of SAELens' codes of all texts, but for float16 in the lake.
    lake = saestore.open(steered.place / "lake")
    positions = lake.positions("texts", lake.models("texts")[0])
    rows = lake.activations("texts", layer=3, sample_type="token").read()[~positions.special()]
    with torch.no_grad():
        codes = steered.sae.encode(torch.from_numpy(rows.astype(np.float32))).double().numpy()
    found = codes[:, steered.bundle.units]
    for name, expected in (("mean", found.mean(0)), ("deviation", found.std(0)), ("maximum", found.max(0))):
        np.testing.assert_allclose(getattr(steered.bundle, name), expected, rtol=2e-3, atol=2e-4)
    r = np.corrcoef(found.T)[steered.bundle.source, steered.bundle.target]
    np.testing.assert_allclose(steered.bundle.r, r, atol=1e-3)


def test_adding_moves_each_pre_activation_by_what_the_rows_say(steered: Steered) -> None:
    _, pre = steered.under(strength=CHANGE)
    row = steered.sae.W_dec[steered.unit].detach().double().numpy()
    leaks = CHANGE * row @ steered.sae.W_enc.detach().double().numpy()
    np.testing.assert_allclose(pre - steered.pre, np.broadcast_to(leaks, pre.shape), atol=2e-4)
    assert np.abs(leaks[steered.neighbours]).max() > 0.01  # what the corrections are for


@pytest.mark.parametrize("corrective", ["follow", "hold"])
def test_neighbours_follow_the_graph_or_stay(steered: Steered, corrective: str) -> None:
    codes, pre = steered.under(strength=CHANGE, corrective=corrective)
    moved = pre - steered.pre
    np.testing.assert_allclose(moved[:, steered.unit], CHANGE, atol=2e-4)
    for other in steered.neighbours:
        expected = CHANGE * steered.slope(other) if corrective == "follow" else 0.0
        np.testing.assert_allclose(moved[:, other], expected, atol=2e-4)
    both = (codes[:, steered.unit] > 0) & (steered.codes[:, steered.unit] > 0)
    assert both.any()
    np.testing.assert_allclose((codes - steered.codes)[both, steered.unit], CHANGE, atol=2e-4)


def test_clamped_and_ablated_units_have_that_value_in_the_codes(steered: Steered) -> None:
    value = 2 * float(steered.bundle.maximum[steered.bundle.places([steered.unit])[0]])
    active = steered.codes[:, steered.unit] > 0
    assert active.any()
    lake = saestore.open(steered.place / "lake")
    for sae in (open_sae(steered.place / "sae"), open_lake_sae(lake.storage, "small")):
        clamped, _ = steered.under(strength=value, mode="clamp", corrective="hold", sae=sae)
        np.testing.assert_allclose(clamped[active, steered.unit], value, atol=5e-4)
        ablated, _ = steered.under(mode="ablate", corrective="hold", sae=sae)
        np.testing.assert_allclose(ablated[active, steered.unit], 0, atol=5e-4)
    with pytest.raises(InputError, match="needs its weights"):
        steered.under(mode="ablate")


def test_a_bundle_is_refused_by_every_other_model(steered: Steered, minilm_folder: Path, tmp_path: Path) -> None:
    config = steered.model.config
    small = transformers.BertConfig(hidden_size=8, num_hidden_layers=6, num_attention_heads=2, intermediate_size=8)
    tuned = transformers.AutoModel.from_pretrained(minilm_folder)
    with torch.no_grad():
        tuned.encoder.layer[0].output.dense.weight.add_(0.1)
    tuned.save_pretrained(tmp_path / "tuned")
    tuned = transformers.AutoModel.from_pretrained(tmp_path / "tuned")
    shallow = transformers.BertConfig(**{**config.to_dict(), "num_hidden_layers": 2})
    for model, message in (
        (transformers.BertModel(small), "of width 384, and this model .* is 8 wide"),
        (tuned, "which is another"),
        (transformers.BertModel(shallow), "layer 3"),
    ):
        with (
            pytest.raises(saestore.errors.SaestoreError, match=message),
            apply(model, steered.bundle, steered.unit, 1.0),
        ):
            pass


def test_a_model_with_a_head_in_a_copy_of_the_folder_is_steered(
    steered: Steered, minilm_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(minilm_folder, tmp_path / "copy")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "copy").eval()
    with torch.no_grad():
        before = model(**steered.inputs).logits
        with apply(model, steered.bundle, steered.unit, 2.0, scale="maximum"):
            during = model(**steered.inputs).logits
        after = model(**steered.inputs).logits
    assert not torch.allclose(before, during)
    assert torch.equal(before, after)
