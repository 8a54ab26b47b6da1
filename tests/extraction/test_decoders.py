"""Decoders from folders as the hub has them: their tokenizers' beginnings, padding, and any causal model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
transformers: Any = pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import InputError  # noqa: E402
from saestore.extraction.model import LoadedModel, load_model, load_tokenizer  # noqa: E402
from saestore.extraction.tokens import tokenize  # noqa: E402
from saestore.extraction.writer import ModelSpec, extract  # noqa: E402
from saestore.lake import Lake  # noqa: E402
from saestore.samples import read_samples  # noqa: E402

TEXTS = ["The cat sat on the mat.", "a", "the dog and the cat and the hat, " * 9, "naïve 🙂 words", "A hat."]
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SMALL, "vocab_size": 320, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0}


def stored(tmp_path: Path, folder: Path, sample_types: list[str], layers: list[int]) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    extract(
        lake,
        {"prompts": read_samples(TEXTS)},
        model=ModelSpec("m", str(folder), device="cpu"),
        layers=layers,
        sample_type=sample_types,
        dtype="float32",
        quiet=True,
    )
    return lake


def rows(lake: Lake, layer: int, sample_type: str) -> np.ndarray:
    return lake.activations("prompts", layer=layer, sample_type=sample_type).read()


@pytest.fixture(scope="module")
def gemma_tokenizer(byte_tokenizer):
    """As Gemma's: a BOS before every text, a pad token, and padding on the left."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = byte_tokenizer.backend_tokenizer
    backend = type(backend).from_str(backend.to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", pad_token="<pad>", padding_side="left", model_max_length=10**30
    )
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    return tokenizer


def test_gemma_2_with_its_bos(tmp_path: Path, tiny_model, gemma_tokenizer) -> None:
    """Token rows are transformers' own of each text with its BOS alone; means leave the BOS out."""
    folder = tmp_path / "gemma"
    model = tiny_model("gemma2")
    transformers.Gemma2ForCausalLM(model.config).save_pretrained(folder)
    gemma_tokenizer.save_pretrained(folder)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    lake = stored(tmp_path, folder, ["token", "mean", "last"], [0, 1])
    positions = lake.positions("prompts", "m")
    bos = gemma_tokenizer.convert_tokens_to_ids("<bos>")
    assert (positions.group.read("token_id")[positions.offsets[:-1]] == bos).all()
    assert np.flatnonzero(positions.special()).tolist() == positions.offsets[:-1].tolist()
    for layer in (0, 1):
        token, mean, last = (rows(lake, layer, kind) for kind in ("token", "mean", "last"))
        for sample, text in enumerate(TEXTS):
            ids = gemma_tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0].numpy()
            at = slice(positions.offsets[sample], positions.offsets[sample + 1])
            np.testing.assert_allclose(token[at], expected, atol=1e-4)
            np.testing.assert_allclose(mean[sample], expected[1:].mean(0), atol=1e-4)
            np.testing.assert_allclose(last[sample], expected[-1], atol=1e-4)
    with pytest.raises(InputError, match="no class token first"):
        stored(tmp_path / "cls", folder, ["cls"], [0])


def test_dialogpt_as_the_hub_has_it(tmp_path: Path, tiny_model, byte_tokenizer) -> None:
    """A vocabulary and merges without tokenizer.json, weights as a PyTorch file, no pad token, no token added."""
    folder = tmp_path / "dialogpt"
    base = tiny_model("gpt2")
    whole = transformers.GPT2LMHeadModel(base.config)
    whole.transformer.load_state_dict(base.state_dict())
    whole.eval().config.save_pretrained(folder)
    torch.save(whole.state_dict(), folder / "pytorch_model.bin")
    vocabulary = json.loads(byte_tokenizer.backend_tokenizer.to_str())["model"]
    ids = {**vocabulary["vocab"], "<|endoftext|>": len(vocabulary["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in vocabulary["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))

    loaded = load_model(folder, device="cpu")
    assert (type(loaded.model).__name__, loaded.max_length) == ("GPT2Model", 64)
    assert loaded.tokenizer.pad_token_id is None
    lake = stored(tmp_path, folder, ["token", "mean"], [0, 1, 2])
    positions = lake.positions("prompts", "m")
    assert not positions.special().any()
    blocks: list[Any] = []
    whole.transformer.h[2].register_forward_hook(lambda _m, _i, out: blocks.append(out))
    for sample, text in enumerate(TEXTS):
        ids = byte_tokenizer.encode(text)[:64]
        with torch.no_grad():
            states = whole(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        last = blocks.pop()
        expected = [states[1][0], states[2][0], (last[0] if isinstance(last, tuple) else last)[0]]
        at = slice(positions.offsets[sample], positions.offsets[sample + 1])
        for layer in range(3):
            np.testing.assert_allclose(rows(lake, layer, "token")[at], expected[layer].numpy(), atol=1e-4)
            np.testing.assert_allclose(rows(lake, layer, "mean")[sample], expected[layer].numpy().mean(0), atol=1e-4)


CAUSAL = {
    "GPTNeoX": lambda: transformers.GPTNeoXConfig(**TEXT),
    "OPT": lambda: transformers.OPTConfig(**{**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "Bloom": lambda: transformers.BloomConfig(vocab_size=320, hidden_size=16, n_layer=3, n_head=2, pad_token_id=0),
    "GPTJ": lambda: transformers.GPTJConfig(
        n_embd=16, n_layer=3, n_head=2, vocab_size=320, n_positions=64, rotary_dim=4
    ),
    "Mistral": lambda: transformers.MistralConfig(**TEXT, num_key_value_heads=1, head_dim=8, sliding_window=5),
    "Qwen3": lambda: transformers.Qwen3Config(**TEXT, num_key_value_heads=1, head_dim=8),
    "Gemma3": lambda: transformers.Gemma3TextConfig(
        **TEXT, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=4
    ),
    "Mixtral": lambda: transformers.MixtralConfig(**TEXT, num_key_value_heads=1, num_local_experts=2),
}


@pytest.mark.parametrize("family", CAUSAL)
def test_any_causal_model_in_a_folder(tmp_path: Path, byte_tokenizer, family: str, capfd) -> None:
    torch.manual_seed(0)
    whole = transformers.AutoModelForCausalLM.from_config(CAUSAL[family]()).eval()
    for parameter in whole.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    whole.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    capfd.readouterr()
    lake = stored(tmp_path, tmp_path / "model", ["token", "last"], [0, 1])
    assert "LOAD REPORT" not in "".join(capfd.readouterr())  # a head that is left out is no news
    positions = lake.positions("prompts", "m")
    for sample, text in enumerate(TEXTS):
        ids = torch.tensor([byte_tokenizer.encode(text)[: load_tokenizer(tmp_path / "model")[1]]])
        with torch.no_grad():
            states = whole(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        at = slice(positions.offsets[sample], positions.offsets[sample + 1])
        for layer in (0, 1):
            expected = states[layer + 1][0].numpy()
            np.testing.assert_allclose(rows(lake, layer, "token")[at], expected, atol=1e-4)
            np.testing.assert_allclose(rows(lake, layer, "last")[sample], expected[-1], atol=1e-4)


def test_the_tokenizer_alone_gives_what_the_model_gets(tmp_path: Path, tiny_model, byte_tokenizer, minilm: LoadedModel):
    folder = tmp_path / "gpt2"
    tiny_model("gpt2").save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    for loaded, place in ((load_model(folder, device="cpu"), folder), (minilm, Path(minilm.model_id))):
        tokenizer, longest = load_tokenizer(place)
        assert longest == loaded.max_length
        alone = tokenize(tokenizer, TEXTS, max_length=longest)
        np.testing.assert_array_equal(alone.token_id, tokenize(loaded.tokenizer, TEXTS, max_length=longest).token_id)
    assert load_tokenizer(folder, max_length=7)[1] == 7
    tiny_model("vit").save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="no tokens to count"):
        load_tokenizer(tmp_path / "vit")
