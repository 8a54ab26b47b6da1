"""Extraction into a lake, against transformers' own hidden states of each text or image alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import ConflictError, InputError, MissingError  # noqa: E402
from saestore.extraction import writer  # noqa: E402
from saestore.extraction.model import load_model  # noqa: E402
from saestore.extraction.task import loaded_model  # noqa: E402
from saestore.extraction.writer import ModelSpec, extract  # noqa: E402
from saestore.lake import Lake  # noqa: E402
from saestore.samples import SampleTable, read_samples  # noqa: E402

TEXTS = [
    "The cat sat on the mat.",
    "a",
    "Sparse codes of a transformer, word by word; " * 12,
    "naïve 🙂 words, and [SEP] as a text",
    "A hat.",
    "The cat sat on the mat.",
]
POOLED = ("cls", "mean", "max", "last")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec("tiny", str(folder), device="cpu", **options)


def table(texts: list[str]) -> SampleTable:
    return read_samples(texts)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_model, minilm_path) -> Path:
    """A random BERT of three layers with MiniLM's tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=512
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm_path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory, tiny_model, byte_tokenizer) -> Path:
    """A decoder whose tokenizer adds no special token, so that an empty text has no position."""
    folder = tmp_path_factory.mktemp("gpt")
    tiny_model("gpt2").save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alone(folder: Path, texts: list[str], layers: list[int]) -> dict[tuple[int, int], np.ndarray]:
    """By sample and layer: transformers' hidden states of the text alone, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = {}
    for place, text in enumerate(texts):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        for layer in layers:
            found[place, layer] = states[layer + 1][0].numpy()
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_minilm_agrees_with_transformers_text_by_text(lake: Lake, minilm_path: Path, dtype: str) -> None:
    layers = [1, 4]
    types = ["token", *POOLED]
    result = extract(
        lake, {"d": table(TEXTS)}, model=spec(minilm_path), layers=layers, sample_type=types, dtype=dtype, quiet=True
    )[0]
    assert len(result.groups) == 10
    assert result.nonfinite == {}
    tolerance = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-4}[dtype]
    truth = alone(minilm_path, TEXTS, layers)
    offsets = lake.positions("d").offsets
    assert result.positions == result.extracted == offsets[-1]
    for layer in layers:
        stored = {kind: lake.activations("d", layer=layer, sample_type=kind) for kind in types}
        assert {group.dtype for group in stored.values()} == {dtype}
        rows = {kind: group.read() for kind, group in stored.items()}
        for place in range(len(TEXTS)):
            states = truth[place, layer]
            words = states[1:-1]  # without [CLS] and the added [SEP]
            expected = {"cls": states[0], "mean": words.mean(0), "max": words.max(0), "last": words[-1]}
            np.testing.assert_allclose(
                rows["token"][offsets[place] : offsets[place + 1]], states, rtol=tolerance, atol=tolerance
            )
            for kind, value in expected.items():
                np.testing.assert_allclose(rows[kind][place], value, rtol=tolerance, atol=tolerance, err_msg=kind)
    hook = lake.activations("d", layer=4, sample_type="token").group.attributes["saelens_hook_name"]
    assert hook == "blocks.4.hook_normalized_resid_post"


def test_positions_are_the_tokenizers_own(lake: Lake, minilm_path: Path) -> None:
    from transformers import AutoTokenizer

    extract(lake, {"d": table([*TEXTS, ""])}, model=spec(minilm_path), layers=[0], quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    positions = lake.positions("d")
    assert lake.samples("d").contents().tolist() == [*TEXTS, ""]
    for place, text in enumerate([*TEXTS, ""]):
        truth = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        start, stop = positions.offsets[place : place + 2]
        assert positions.group.read("token_id", start, stop).tolist() == truth["input_ids"]
        assert positions.special(start, stop).tolist() == [bool(flag) for flag in truth["special_tokens_mask"]]
        spans = zip(positions.group.read("char_start", start, stop), positions.group.read("char_end", start, stop))  # noqa: B905
        assert [tuple(map(int, span)) for span in spans] == truth["offset_mapping"]


def test_layers_and_types_come_from_one_pass(lake: Lake, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertModel

    runs: list[int] = []
    real = BertModel.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        runs.append(options["input_ids"].numel() if "input_ids" in options else 0)
        return real(self, *arguments, **options)

    monkeypatch.setattr(BertModel, "forward", counted)
    texts = table(TEXTS)
    extract(lake, {"one": texts}, model=spec(bert), layers=[0], quiet=True)
    once = len(runs)
    runs.clear()
    layers = [0, "layer_1.mlp_out", 2, "module.encoder.layer.1.attention"]
    extract(lake, {"many": texts}, model=spec(bert), layers=layers, sample_type=["token", *POOLED], quiet=True)
    assert len(runs) == once
    assert lake.layers("many", "tiny") == ["layer_0", "layer_1.mlp_out", "layer_2", "module.encoder.layer.1.attention"]
    np.testing.assert_array_equal(
        lake.activations("one", layer=0).read(), lake.activations("many", layer=0, sample_type="token").read()
    )
    runs.clear()
    extract(lake, {"many": texts}, model=spec(bert), layers=layers, sample_type=["token", *POOLED], quiet=True)
    assert runs == []


def test_shards_smaller_than_windows_and_samples(lake: Lake, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that begin and end inside samples hold the same rows as one shard of all."""
    texts = table([*TEXTS, "", *TEXTS])
    whole = Lake.create(Path(lake.storage.url) / "../whole")
    wanted = {"model": spec(bert), "layers": [0, 2], "quiet": True}
    extract(whole, {"d": texts}, **wanted)
    monkeypatch.setattr(writer, "shard_rows_for", lambda d_in, dtype: 24)
    monkeypatch.setattr(writer, "windows", lambda lengths: [(at, at + 1) for at in range(len(lengths))])
    extract(lake, {"d": texts}, **wanted)
    group = lake.activations("d", layer=2).group
    assert group.grid.n_shards > 10
    for layer in (0, 2):
        np.testing.assert_allclose(
            lake.activations("d", layer=layer).read(), whole.activations("d", layer=layer).read(), atol=2e-3
        )


def test_missing_shards_are_filled_with_the_same_bytes(
    lake: Lake, bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(writer, "shard_rows_for", lambda d_in, dtype: 24)
    wanted: dict[str, Any] = {"model": spec(bert), "layers": [0, 2], "sample_type": ["token", "mean"], "quiet": True}
    texts = {"d": table(TEXTS * 20)}
    extract(lake, texts, **wanted)
    before = files(tmp_path)
    for path in ("layer_0/activations/token", "layer_2/activations/mean"):
        ledger = Path(lake.storage.url) / "data/d/tiny" / path / "ledger"
        written = sorted(ledger.glob("c.*"))
        assert len(written) > 1
        for entry in written[::2]:
            entry.unlink()
    assert extract(lake, texts, **wanted)[0].extracted > 0
    assert files(tmp_path) == before


class TestImages:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> Path:
        from PIL import Image

        folder = tmp_path / "pictures"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for name, (width, height) in {"a": (24, 24), "b": (60, 30), "c": (30, 90)}.items():
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{name}.png")
        return folder

    @pytest.mark.parametrize("kind", ["clip", "vit"])
    def test_patches_and_class_tokens(
        self, lake: Lake, tmp_path: Path, tiny_model, image_processor_of, kind: str, pictures: Path
    ) -> None:
        from PIL import Image

        model, processor = tiny_model(kind), image_processor_of(kind)
        folder = tmp_path / kind
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        samples = read_samples(pictures)
        result = extract(
            lake,
            {"d": samples},
            model=spec(folder),
            layers=[0, 1],
            sample_type=["patch", "cls", "mean"],
            dtype="float32",
            quiet=True,
        )[0]
        assert (result.samples, result.positions) == (3, 27)
        for place, path in enumerate(sorted(pictures.iterdir())):
            pixels = processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
            for layer in (0, 1):
                truth = states[layer + 1][0].numpy()
                part = slice(9 * place, 9 * place + 9)
                rows = {kind: lake.activations("d", layer=layer, sample_type=kind).read() for kind in ("patch", "cls")}
                np.testing.assert_allclose(rows["patch"][part], truth[1:], atol=1e-4)
                np.testing.assert_allclose(rows["cls"][place], truth[0], atol=1e-4)
        boxes = lake.positions("d").group.read("box").reshape(3, 3, 3, 4)
        np.testing.assert_allclose(boxes[0, 1, 2], [16, 8, 24, 16])
        # CLIP cuts the middle square of the 60 x 30 picture, ViT squeezes it.
        np.testing.assert_allclose(boxes[1, 0, 0], [15, 0, 25, 10] if kind == "clip" else [0, 0, 20, 10])
        assert not lake.positions("d").special().any()
        with pytest.raises(InputError, match=r"token.*does not fit"):
            extract(lake, {"e": samples}, model=spec(folder), layers=[0], sample_type="token", quiet=True)
        assert lake.datasets() == ["d"]

    def test_other_pictures_under_the_same_name(
        self, lake: Lake, tmp_path: Path, tiny_model, image_processor_of, pictures: Path
    ) -> None:
        tiny_model("vit").save_pretrained(tmp_path / "vit")
        image_processor_of("vit").save_pretrained(tmp_path / "vit")
        extract(lake, {"d": read_samples(pictures)}, model=spec(tmp_path / "vit"), layers=[0], quiet=True)
        assert lake.activations("d").key.sample_type == "patch"
        shutil.copy(pictures / "a.png", pictures / "b.png")
        with pytest.raises(ConflictError, match=r"samples 0 to \d+ of dataset 'd' .* added at the end only"):
            extract(lake, {"d": read_samples(pictures)}, model=spec(tmp_path / "vit"), layers=[0], quiet=True)


class TestGrowth:
    """A table that has grown at its end, against transformers' states of each text alone."""

    def test_only_new_samples_are_run(self, lake: Lake, minilm_path: Path, tmp_path: Path) -> None:
        told: list[str] = []
        ask: dict[str, Any] = {
            "model": spec(minilm_path),
            "layers": [1],
            "sample_type": ["token", "cls"],
            "quiet": True,
        }
        for stop in (3, 5, 6):
            before = files(tmp_path / "lake")
            result = extract(lake, {"d": table(TEXTS[:stop])}, **ask, say=told.append)[0]
            after = files(tmp_path / "lake")
            assert {name: after[name] for name in before} == before
            assert (result.samples, len(lake.samples("d"))) == (stop, stop)
        assert [line for line in told if "grown" in line] == [
            "d: its table has grown; samples 3 to 4 become part 1 of it",
            "d: its table has grown; samples 5 to 5 become part 2 of it",
        ]
        offsets = lake.positions("d").offsets
        assert result.positions == offsets[-1]
        assert result.extracted == offsets[6] - offsets[5]
        truth = alone(minilm_path, TEXTS, [1])
        rows = lake.activations("d", sample_type="token").read()
        cls = lake.activations("d", sample_type="cls").read()
        for place in range(len(TEXTS)):
            states = truth[place, 1]
            np.testing.assert_allclose(rows[offsets[place] : offsets[place + 1]], states, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(cls[place], states[0], rtol=2e-3, atol=2e-3)
        again = extract(lake, {"d": table(TEXTS)}, **ask)[0]
        assert (again.extracted, again.samples) == (0, 6)
        assert extract(lake, {"d": table(TEXTS[:5])}, **ask)[0].samples == 5, "an older table adds nothing"
        assert files(tmp_path / "lake") == after

    def test_another_layer_covers_all_parts(self, lake: Lake, bert: Path) -> None:
        for stop in (3, 6):
            extract(lake, {"d": table(TEXTS[:stop])}, model=spec(bert), layers=[0], quiet=True)
        result = extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0, 2], quiet=True)[0]
        assert result.extracted == result.positions
        truth = alone(bert, TEXTS, [0, 2])
        for layer in (0, 2):
            rows = lake.activations("d", layer=layer).read()
            expected = np.concatenate([truth[place, layer] for place in range(len(TEXTS))])
            np.testing.assert_allclose(rows, expected, rtol=2e-3, atol=2e-3)

    def test_a_dry_run_says_what_is_new_and_writes_nothing(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        extract(lake, {"d": table(TEXTS[:4])}, model=spec(bert), layers=[0], quiet=True)
        before = files(tmp_path / "lake")
        result = extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], dry_run=True, quiet=True)[0]
        assert files(tmp_path / "lake") == before
        assert result.samples == 6
        assert 0 < result.extracted < result.positions

    def test_another_precision_is_refused_as_for_the_first_part(self, lake: Lake, bert: Path) -> None:
        extract(lake, {"d": table(TEXTS[:4])}, model=spec(bert), layers=[0], quiet=True)
        with pytest.raises(ConflictError, match="dtype"):
            extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], dtype="float32", quiet=True)
        assert len(lake.samples("d")) == 4


class TestSharedAxis:
    def test_other_texts(self, lake: Lake, bert: Path) -> None:
        extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)
        with pytest.raises(ConflictError, match=r"samples 0 to 5 of dataset 'd' .*6 samples against 5"):
            extract(lake, {"d": table(TEXTS[:-1])}, model=spec(bert), layers=[1], quiet=True)

    @pytest.mark.parametrize("layers", [[0], [1]])
    def test_other_tokenizer(self, lake: Lake, bert: Path, tmp_path: Path, layers: list[int]) -> None:
        """Also where all that was asked for is stored, and the weights are the same."""
        extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)
        shutil.copytree(bert, tmp_path / "cased")
        settings = tmp_path / "cased" / "tokenizer_config.json"
        text = settings.read_text()
        assert '"do_lower_case": true' in text
        settings.write_text(text.replace('"do_lower_case": true', '"do_lower_case": false'))
        with pytest.raises(ConflictError, match=r"data/d/tiny/positions .*digest"):
            extract(lake, {"d": table(TEXTS)}, model=spec(tmp_path / "cased"), layers=layers, quiet=True)
        assert extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)[0].extracted == 0

    def test_other_length(self, lake: Lake, bert: Path) -> None:
        lines: list[str] = []
        result = extract(
            lake, {"d": table(TEXTS)}, model=spec(bert, max_length=10), layers=[0], quiet=True, say=lines.append
        )[0]
        assert result.truncated == 2
        assert any("2 of 6 texts have more than 10 tokens" in line for line in lines)
        assert np.diff(lake.positions("d").offsets).max() == 10
        with pytest.raises(ConflictError, match="positions"):
            extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)

    def test_other_side(self, lake: Lake, bert: Path) -> None:
        left, lines = spec(bert, max_length=10, truncation_side="left"), list[str]()
        extract(lake, {"d": table(TEXTS)}, model=left, layers=[0], quiet=True, say=lines.append)
        assert any("2 of 6 texts have more than 10 tokens and were cut at their beginning" in line for line in lines)
        assert extract(lake, {"d": table(TEXTS)}, model=left, layers=[0], quiet=True)[0].extracted == 0
        with pytest.raises(ConflictError, match="positions"):
            extract(lake, {"d": table(TEXTS)}, model=spec(bert, max_length=10), layers=[0], quiet=True)

    def test_other_dtype_or_weights(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)
        for other in ({"dtype": "float32"}, {"model": spec(bert, dtype="bfloat16")}):
            with pytest.raises(ConflictError, match=r"layer_0/activations/token .* made differently"):
                extract(lake, {"d": table(TEXTS)}, **{"model": spec(bert), "layers": [0], "quiet": True, **other})
        changed = tmp_path / "changed"
        shutil.copytree(bert, changed)
        import transformers

        model = transformers.BertModel.from_pretrained(changed)
        model.encoder.layer[0].output.dense.weight.data += 1
        model.save_pretrained(changed)
        with pytest.raises(ConflictError, match="model"):
            extract(lake, {"d": table(TEXTS)}, model=spec(changed), layers=[0], quiet=True)


def test_a_model_that_changed_under_a_worker_is_loaded_anew_or_refused(bert: Path, tmp_path: Path) -> None:
    """A process of a cluster lives on while the folder it has loaded is replaced."""
    import transformers

    place = tmp_path / "place"
    shutil.copytree(bert, place)
    before = loaded_model(spec(place))
    model = transformers.BertModel.from_pretrained(place)
    model.encoder.layer[0].output.dense.weight.data += 1
    model.save_pretrained(place)
    revision = load_model(str(place), device="cpu").revision
    assert revision != before.revision
    assert loaded_model(spec(place)) is before
    after = loaded_model(spec(place), revision)
    assert after.revision == revision
    assert loaded_model(spec(place), revision) is after
    with pytest.raises(ConflictError, match="has changed since the work was planned"):
        loaded_model(spec(place), before.revision)


def test_a_complete_run_loads_no_torch(lake: Lake, bert: Path) -> None:
    extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0], sample_type=["token", "mean"], quiet=True)
    program = (
        "import sys; from saestore.lake import Lake; from saestore.samples import read_samples;"
        "from saestore.extraction.writer import ModelSpec, extract;"
        f"r = extract(Lake.open(sys.argv[1]), {{'d': read_samples({TEXTS!r})}}, layers=[0],"
        "sample_type=['token', 'mean'], model=ModelSpec('tiny', sys.argv[2], device='cpu'));"
        f"assert r[0].extracted == 0 and r[0].positions == {int(lake.positions('d').offsets[-1])}, r;"
        "loaded = {'torch', 'transformers', 'numba', 'sae_lens'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program, lake.storage.url, str(bert)], check=True)


class TestEmptyTexts:
    def test_pooled_kinds_are_refused_and_nothing_is_written(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        before = files(tmp_path)
        with pytest.raises(InputError, match=r"sample '1' of d has no token besides special ones \(1 such samples\)"):
            extract(
                lake, {"d": table(["one", "", "two"])}, model=spec(bert), layers=[0], sample_type="mean", quiet=True
            )
        assert files(tmp_path) == before
        # The remedy works under the same name.
        extract(lake, {"d": table(["one", "two"])}, model=spec(bert), layers=[0], sample_type="mean", quiet=True)
        assert lake.activations("d").n_rows == 2

    def test_tokens_of_an_empty_text_are_its_special_ones(self, lake: Lake, bert: Path) -> None:
        extract(lake, {"d": table(["", "one"])}, model=spec(bert), layers=[0], quiet=True)
        positions = lake.positions("d")
        assert positions.offsets.tolist() == [0, 2, 5]
        assert positions.special().tolist() == [True, True, True, False, True]

    def test_a_text_without_any_position(self, lake: Lake, gpt: Path) -> None:
        texts = ["the cat", "", "a hat", ""]
        extract(lake, {"d": table(texts)}, model=spec(gpt), layers=[0], quiet=True)
        lengths = np.diff(lake.positions("d").offsets)
        assert (lengths == 0).tolist() == [False, True, False, True]
        truth = alone(gpt, ["the cat", "a hat"], [0])
        rows = lake.activations("d").read()
        np.testing.assert_allclose(rows, np.concatenate([truth[0, 0], truth[1, 0]]), rtol=2e-3, atol=2e-3)
        with pytest.raises(InputError, match="all its texts are empty"):
            extract(lake, {"e": table(["", ""])}, model=spec(gpt), layers=[0], quiet=True)
        assert lake.datasets() == ["d"]

    def test_one_sample(self, lake: Lake, bert: Path) -> None:
        extract(lake, {"d": table(["word"])}, model=spec(bert), layers=[0], sample_type=["token", *POOLED], quiet=True)
        rows = {kind: lake.activations("d", sample_type=kind).read() for kind in ("token", *POOLED)}
        assert rows["token"].shape == (3, 16)
        for kind in ("mean", "max", "last"):
            np.testing.assert_array_equal(rows[kind][0], rows["token"][1])
        np.testing.assert_array_equal(rows["cls"][0], rows["token"][0])


class TestNonFinite:
    def broken(self, bert: Path, folder: Path, change) -> Path:
        import transformers

        shutil.copytree(bert, folder)
        model = transformers.BertModel.from_pretrained(folder)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        return folder

    def test_a_layer_that_is_wholly_nan(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        def change(model) -> None:
            model.encoder.layer[1].output.LayerNorm.weight.fill_(torch.nan)

        folder = self.broken(bert, tmp_path / "nan", change)
        with pytest.raises(InputError, match=r"data/d/tiny/layer_1/activations/token: no value .* is finite"):
            extract(lake, {"d": table(TEXTS)}, model=spec(folder), layers=[1], quiet=True)
        assert not lake.activations("d", layer=1).group.written().any()
        extract(lake, {"e": table(TEXTS)}, model=spec(folder), layers=[0], quiet=True)

    def test_some_nan_are_counted_and_told(
        self, lake: Lake, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import AutoTokenizer

        word = AutoTokenizer.from_pretrained(bert)("hat", add_special_tokens=False)["input_ids"][0]

        def change(model) -> None:
            model.embeddings.word_embeddings.weight[word] = torch.inf

        folder = self.broken(bert, tmp_path / "inf", change)
        lines: list[str] = []
        result = extract(
            lake, {"d": table(TEXTS)}, model=spec(folder), layers=[0], sample_type="mean", quiet=True, say=lines.append
        )[0]
        rows = lake.activations("d").read()
        bad = ~np.isfinite(rows)
        assert bad.any(axis=1).tolist() == [False, False, False, False, True, False]
        assert result.nonfinite == {"data/d/tiny/layer_0/activations/mean": int(bad.sum())}
        assert any(f"{bad.sum()} values are not finite" in line for line in lines)
        assert "non-finite" in next(s.note for s in lake.status() if s.kind == "activations")
        # A last shard that holds nothing but this sample is not a whole layer.
        monkeypatch.setattr(writer, "shard_rows_for", lambda d_in, dtype: 64)
        texts = table(["The cat."] * 64 + ["A hat."])
        result = extract(lake, {"f": texts}, model=spec(folder), layers=[0], sample_type="mean", quiet=True)[0]
        assert lake.activations("f").group.grid.n_shards == 2
        assert result.nonfinite == {"data/f/tiny/layer_0/activations/mean": 16}

    def test_a_value_too_large_for_float16(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        def change(model) -> None:
            model.encoder.layer[0].output.LayerNorm.bias[3] = 1e5

        folder = self.broken(bert, tmp_path / "large", change)
        with pytest.raises(InputError, match=r"layer_0/activations/token: .*100\d+ does not fit float16 .*bfloat16"):
            extract(lake, {"d": table(TEXTS)}, model=spec(folder), layers=[0], quiet=True)
        extract(lake, {"e": table(TEXTS)}, model=spec(folder), layers=[0], dtype="bfloat16", quiet=True)
        assert (lake.activations("e").read()[:, 3] > 9e4).all()


class TestWrongInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"layers": [3]}, MissingError, "no layer 3: it has 3"),
            ({"layers": ["module.encoder.nothing"]}, MissingError, "encoder.nothing"),
            ({"layers": []}, InputError, "no layer was given"),
            ({"sample_type": "patch"}, InputError, "'patch' does not fit a model of kind text"),
            ({"sample_type": "word"}, InputError, "sample type 'word' is unknown"),
            ({"dtype": "int8"}, InputError, "dtype 'int8' is unknown"),
        ],
    )
    def test_nothing_is_written(
        self, lake: Lake, bert: Path, tmp_path: Path, options: dict, error: type[Exception], message: str
    ) -> None:
        before = files(tmp_path)
        with pytest.raises(error, match=message) as raised:
            extract(lake, {"d": table(TEXTS)}, **{"model": spec(bert), "layers": [0], "quiet": True, **options})
        assert "\n" not in str(raised.value)
        assert files(tmp_path) == before

    def test_cls_of_a_decoder(self, lake: Lake, gpt: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no class token first"):
            extract(lake, {"d": table(TEXTS)}, model=spec(gpt), layers=[0], sample_type="cls", quiet=True)
        assert lake.datasets() == []

    def test_missing_model_and_wrong_names(self, lake: Lake, bert: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingError, match="no configuration of the model"):
            extract(lake, {"d": table(TEXTS)}, model=spec(tmp_path / "empty"), layers=[0], quiet=True)
        with pytest.raises(InputError, match=r"dataset name '\.\./d'"):
            extract(lake, {"../d": table(TEXTS)}, model=spec(bert), layers=[0], quiet=True)
        assert lake.datasets() == []


def test_a_dry_run_says_the_plan_and_writes_nothing(lake: Lake, bert: Path, tmp_path: Path) -> None:
    before, lines = files(tmp_path), []
    result = extract(
        lake,
        {"d": table(TEXTS)},
        model=spec(bert),
        layers=[0, 2],
        sample_type=["token", "mean"],
        dry_run=True,
        quiet=True,
        say=lines.append,
    )[0]
    assert files(tmp_path) == before
    assert result.extracted == result.positions
    size = 2 * 2 * 16 * (result.positions + 6)
    assert f"6 samples with {result.positions} positions, layer_0, layer_2 as token, mean in one pass" in lines[0]
    assert f"writes up to {size / 1024:.1f} KiB" in lines[0]
    done = extract(lake, {"d": table(TEXTS)}, model=spec(bert), layers=[0, 2], quiet=True)[0]
    assert done.positions == result.positions
