from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import InputError, MissingError  # noqa: E402
from saestore.extraction.forward import forward_batches, widths  # noqa: E402
from saestore.extraction.hooks import parse_layers  # noqa: E402
from saestore.extraction.images import image_positions  # noqa: E402
from saestore.extraction.tokens import tokenize  # noqa: E402

TEXTS = [
    "The cat sat on the mat.",
    "a",
    "",
    "the dog and the cat and the hat, " * 9,
    "naïve 🙂 words",
    "A hat.",
]


def scattered(loaded, positions, layers, sample_types, *, padded_tokens, samples=None):
    """Put the batches where the writer puts them; every row must be written exactly once."""
    samples = np.arange(positions.n_samples) if samples is None else samples
    n, out, seen = int(positions.offsets[-1]), {}, np.zeros(positions.n_samples, int)
    written = np.zeros(n, int)
    for batch in forward_batches(
        loaded, positions, samples, parse_layers(layers), sample_types=sample_types, padded_tokens=padded_tokens
    ):
        seen[batch.samples] += 1
        written[batch.rows] += 1
        for name, kinds in batch.hidden.items():
            assert set(kinds) == set(sample_types)
            for kind, rows in kinds.items():
                rows = rows.float().numpy()
                at, size = (batch.rows, n) if kind in ("token", "patch") else (batch.samples, positions.n_samples)
                assert len(rows) == len(at)
                out.setdefault((name, kind), np.full((size, rows.shape[1]), -77.0, np.float32))[at] = rows
    return out, seen, written


def alone(loaded, input_ids):
    """Transformers' own hidden states of one text without padding: the oracle."""
    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([input_ids]), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("padded_tokens", [1, 40, 4096])
def test_minilm_agrees_with_transformers_text_by_text(minilm, padded_tokens):
    texts = [*TEXTS, "Sparse codes of a transformer, word by word; " * 6]
    positions = tokenize(minilm.tokenizer, texts, max_length=minilm.max_length)
    kinds = ["token", "cls", "mean", "max", "last"]
    out, seen, written = scattered(minilm, positions, range(6), kinds, padded_tokens=padded_tokens)
    assert seen.tolist() == [1] * len(texts)
    assert (written == 1).all()
    for sample, text in enumerate(texts):
        states = alone(minilm, minilm.tokenizer.encode(text))
        at = slice(positions.offsets[sample], positions.offsets[sample + 1])
        for layer in range(6):
            expected = states[layer + 1][0].numpy()
            name = f"layer_{layer}"
            np.testing.assert_allclose(out[name, "token"][at], expected, atol=1e-4)
            np.testing.assert_allclose(out[name, "cls"][sample], expected[0], atol=1e-4)
            words = expected[1:-1]  # without [CLS] and [SEP]
            pooled = [out[name, kind][sample] for kind in ("mean", "max", "last")]
            if len(words):
                np.testing.assert_allclose(pooled, [words.mean(0), words.max(0), words[-1]], atol=1e-4)
            else:
                assert np.isnan(pooled).all()


def test_n_used_leaves_special_tokens_out(minilm):
    positions = tokenize(minilm.tokenizer, TEXTS, max_length=64)
    batches = forward_batches(minilm, positions, [2, 0], parse_layers([0]), sample_types=["mean"], padded_tokens=4096)
    (batch,) = batches
    assert dict(zip(batch.samples.tolist(), batch.n_used.tolist(), strict=True)) == {0: 7, 2: 0}


@pytest.mark.parametrize("padded_tokens", [30, 4096])
def test_tiny_text_models_agree_with_transformers(tiny_text, padded_tokens):
    positions = tokenize(tiny_text.tokenizer, TEXTS, max_length=tiny_text.max_length)
    assert positions.truncated.any()
    assert positions.lengths[2] == 0
    layers = ["0.resid_pre", 0, 1, "2.resid_pre", "2.mlp_out"]
    out, seen, written = scattered(tiny_text, positions, layers, ["token", "mean", "last"], padded_tokens=padded_tokens)
    assert seen.tolist() == [1, 1, 0, 1, 1, 1]  # a text without tokens is in no batch
    assert (written == 1).all()
    for sample in np.flatnonzero(seen):
        at = slice(positions.offsets[sample], positions.offsets[sample + 1])
        states = alone(tiny_text, positions.token_id[at].tolist())
        for name, state in (("layer_0.resid_pre", 0), ("layer_0", 1), ("layer_1", 2), ("layer_2.resid_pre", 2)):
            expected = states[state][0].numpy()
            np.testing.assert_allclose(out[name, "token"][at], expected, atol=1e-4)
            np.testing.assert_allclose(out[name, "mean"][sample], expected.mean(0), atol=1e-4)
            np.testing.assert_allclose(out[name, "last"][sample], expected[-1], atol=1e-4)


def test_samples_of_a_window_only(minilm):
    positions = tokenize(minilm.tokenizer, TEXTS, max_length=64)
    _, seen, written = scattered(minilm, positions, [0], ["token"], padded_tokens=64, samples=np.arange(3, 6))
    assert seen.tolist() == [0, 0, 0, 1, 1, 1]
    assert not written[: positions.offsets[3]].any()
    assert (written[positions.offsets[3] :] == 1).all()


def test_the_same_window_gives_the_same_bytes(minilm):
    positions = tokenize(minilm.tokenizer, TEXTS, max_length=64)
    first, _, _ = scattered(minilm, positions, [0, 3], ["token", "mean"], padded_tokens=40)
    again, _, _ = scattered(minilm, positions, [0, 3], ["token", "mean"], padded_tokens=40)
    for key, rows in first.items():
        np.testing.assert_array_equal(rows, again[key])


def test_hidden_states_are_the_callers_own(tiny_text):
    """GPT-2's resid_pre of block 0 is a tensor of the model; what is done to it later must not be seen."""
    positions = tokenize(tiny_text.tokenizer, ["the cat"], max_length=60)
    handles = [
        module.register_forward_hook(
            lambda _m, _a, output: (output[0] if isinstance(output, tuple) else output).mul_(0)
        )
        for name, module in tiny_text.model.named_modules()
        if name in ("h.1", "layers.1", "encoder.layer.1")
    ]
    try:
        out, _, _ = scattered(tiny_text, positions, ["1.resid_pre", "2.resid_pre"], ["token"], padded_tokens=99)
    finally:
        for handle in handles:
            handle.remove()
    assert len(handles) == 1
    assert not out["layer_2.resid_pre", "token"].any()
    assert out["layer_1.resid_pre", "token"].any()


def test_widths(minilm, tiny_image):
    points = parse_layers([2, "module.encoder.layer.1.intermediate"])
    assert widths(minilm, points) == {"layer_2": 384, "module.encoder.layer.1.intermediate": 1536}
    assert widths(tiny_image, parse_layers([0])) == {"layer_0": 16}


@pytest.fixture
def image_paths(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for at, (width, height) in enumerate([(40, 30), (30, 50), (24, 24), (90, 25), (33, 32)]):
        paths.append(tmp_path / f"{at}.png")
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("padded_tokens", [1, 20, 1000])
def test_vision_models_agree_with_transformers(tiny_image, image_paths, padded_tokens):
    from PIL import Image

    positions = image_positions(image_paths, tiny_image.image_processor, patch_size=8)
    has_cls = tiny_image.model_id != "siglip"
    kinds = ["patch", "mean", "max"] + (["cls"] if has_cls else [])
    out, seen, written = scattered(tiny_image, positions, [0, 1, "2.resid_pre"], kinds, padded_tokens=padded_tokens)
    assert seen.tolist() == [1] * 5
    assert (written == 1).all()
    for sample, path in enumerate(image_paths):
        pixels = tiny_image.image_processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            states = tiny_image.model(**pixels, output_hidden_states=True).hidden_states
        at = slice(positions.offsets[sample], positions.offsets[sample + 1])
        for name, state in (("layer_0", 1), ("layer_1", 2), ("layer_2.resid_pre", 2)):
            expected = states[state][0].numpy()
            patches = expected[1:] if has_cls else expected
            assert len(patches) == 9
            np.testing.assert_allclose(out[name, "patch"][at], patches, atol=1e-4)
            np.testing.assert_allclose(out[name, "mean"][sample], patches.mean(0), atol=1e-4)
            np.testing.assert_allclose(out[name, "max"][sample], patches.max(0), atol=1e-4)
            if has_cls:
                np.testing.assert_allclose(out[name, "cls"][sample], expected[0], atol=1e-4)
            else:
                with pytest.raises(InputError, match="no class token"):
                    scattered(tiny_image, positions, [0], ["cls"], padded_tokens=100)


def test_patches_stand_where_their_boxes_are(tiny_image, tmp_path):
    """Change the pixels of one box of an image: the embedding of that patch changes most."""
    from PIL import Image

    rng = np.random.default_rng(1)
    pixels = rng.integers(90, 110, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "before.png")
    positions = image_positions([tmp_path / "before.png"], tiny_image.image_processor, patch_size=8)
    for patch in (1, 3, 8):
        x0, y0, x1, y1 = np.rint(positions.boxes[patch]).astype(int)
        changed = pixels.copy()
        changed[y0:y1, x0:x1] = 255
        Image.fromarray(changed).save(tmp_path / "after.png")
        both = image_positions(
            [tmp_path / "before.png", tmp_path / "after.png"], tiny_image.image_processor, patch_size=8
        )
        out, _, _ = scattered(tiny_image, both, ["0.resid_pre"], ["patch"], padded_tokens=100)
        before, after = out["layer_0.resid_pre", "patch"].reshape(2, 9, -1)
        assert np.abs(before - after).sum(1).argmax() == patch


def test_a_broken_image_in_a_later_batch_is_named(tiny_image, image_paths):
    positions = image_positions(image_paths, tiny_image.image_processor, patch_size=8)
    image_paths[4].write_bytes(b"gone")
    with pytest.raises(InputError, match=r"4\.png cannot be read as an image"):
        scattered(tiny_image, positions, [0], ["patch"], padded_tokens=10)


def test_an_image_processor_of_another_model_is_refused(tiny_image, image_paths):
    import transformers

    other = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    positions = image_positions(image_paths, other, patch_size=8)
    with pytest.raises(InputError, match=r"gives 32 x 32 pixels, \w+ takes 24 x 24"):
        scattered(dataclasses.replace(tiny_image, image_processor=other), positions, [0], ["patch"], padded_tokens=10)
    with pytest.raises(InputError, match=r"gives 24 x 24 pixels.*the positions are 4 x 4"):
        scattered(tiny_image, positions, [0], ["patch"], padded_tokens=10)


def test_sample_types_must_fit_the_model(minilm, tiny_text, tiny_image, image_paths):
    positions = tokenize(minilm.tokenizer, TEXTS, max_length=64)
    points = parse_layers([0])

    def forward(loaded, positions, **options):
        return forward_batches(loaded, positions, [0], options.pop("points", points), padded_tokens=10, **options)

    with pytest.raises(InputError, match=r"'patch' does not fit a model of kind text; use some of token, cls"):
        forward(minilm, positions, sample_types=["token", "patch"])
    with pytest.raises(InputError, match="empty list of sample types"):
        forward(minilm, positions, sample_types=[])
    with pytest.raises(InputError, match="no class token first"):
        forward(tiny_text, tokenize(tiny_text.tokenizer, TEXTS, max_length=60), sample_types=["cls"])
    with pytest.raises(InputError, match="model of kind image; the samples are of the other kind"):
        forward(tiny_image, positions, sample_types=["mean"])
    with pytest.raises(MissingError, match="no layer 6"):
        forward(minilm, positions, sample_types=["token"], points=parse_layers([6]))
    images = image_positions(image_paths, tiny_image.image_processor, patch_size=8)
    with pytest.raises(InputError, match="'last' does not fit a model of kind image"):
        forward(tiny_image, images, sample_types=["last"])


def test_a_module_off_the_position_axis_is_refused(tiny_image, image_paths):
    positions = image_positions(image_paths, tiny_image.image_processor, patch_size=8)
    model = tiny_image.model

    class EverySecond(torch.nn.Module):
        def forward(self, hidden):
            return hidden[:, ::2]

    (path,) = [name for name, _ in model.named_modules() if name.endswith("layers.0")]
    block = model.get_submodule(path)
    block.every_second = EverySecond()
    handle = block.register_forward_pre_hook(lambda block, args: (block.every_second(args[0]), args)[1])
    try:
        with pytest.raises(InputError, match=r"not one row for each of the 5 x 9 positions"):
            scattered(tiny_image, positions, [f"module.{path}.every_second"], ["patch"], padded_tokens=1000)
    finally:
        handle.remove()
        del block.every_second
