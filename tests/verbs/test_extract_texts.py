"""Extraction from prompts in text files, from streams, and up to a number of tokens, as users ask for it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
transformers: Any = pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore import verbs  # noqa: E402
from saestore.cli import main  # noqa: E402
from saestore.errors import ConflictError, InputError  # noqa: E402
from saestore.lake import Lake  # noqa: E402

PROMPTS = [f"The {what} number {i} ends {'now ' * (i % 5)}." for i in range(90) for what in ("tale", "longer story")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A random BERT of three layers with MiniLM's tokenizer, which adds two special tokens to a text."""
    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, max_position_embeddings=512
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lengths(model: Path) -> list[int]:
    """Tokens of each prompt, one after the other, cut at 16."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return [min(16, len(tokenizer.encode(prompt))) for prompt in PROMPTS]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


def extract(lake: Lake, model: Path, datasets: Any, **options: Any) -> Any:
    given = {"layers": [0, 2], "sample_type": ["token", "mean"], "max_length": 16, "device": "cpu", "quiet": True}
    return verbs.extract(lake, datasets, model=model, **{**given, **options})[0]


def prompts_file(folder: Path, prompts: list[str] = PROMPTS) -> Path:
    path = folder / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return path


def test_prompts_of_a_text_file_up_to_a_number_of_tokens(
    tmp_path: Path, lake: Lake, model: Path, lengths: list[int]
) -> None:
    """Whole samples in their order, special tokens counted, texts counted as they are cut."""
    said: list[str] = []
    result = extract(lake, model, prompts_file(tmp_path), max_tokens=500, say=said.append)
    kept = int(np.searchsorted(np.cumsum(lengths), 500, side="right"))
    assert (result.dataset, result.samples, result.positions) == ("prompts", kept, sum(lengths[:kept]))
    assert 500 - 16 < result.positions <= 500
    assert f"prompts: its first {kept} samples have at most 500 tokens; no more are taken" in said
    samples = lake.samples("prompts")
    assert samples.contents().tolist() == PROMPTS[:kept]
    for layer in (0, 2):
        assert lake.activations("prompts", layer=layer, sample_type="token").read().shape == (result.positions, 8)
        assert lake.activations("prompts", layer=layer, sample_type="mean").read().shape == (kept, 8)


def test_exactly_as_many_tokens_as_there_are(tmp_path: Path, lake: Lake, model: Path, lengths: list[int]) -> None:
    path = prompts_file(tmp_path)
    for name, most, kept in (("all", sum(lengths), 180), ("one_less", sum(lengths) - 1, 179), ("ten", 10**9, 180)):
        assert extract(lake, model, path, name=name, max_tokens=most, dry_run=True).samples == kept
    assert extract(lake, model, path, max_tokens=10**9, limit=7, dry_run=True).samples == 7
    with pytest.raises(InputError, match=r"the first sample has \d+ tokens and max_tokens is 3"):
        extract(lake, model, path, max_tokens=3)
    with pytest.raises(InputError, match="max_tokens is 0"):
        extract(lake, model, path, max_tokens=0)


def test_the_number_of_tokens_is_kept_as_the_samples_are(
    tmp_path: Path, lake: Lake, model: Path, lengths: list[int]
) -> None:
    """The same number again does nothing, more adds the samples that follow, fewer is refused."""
    path = prompts_file(tmp_path)
    first = extract(lake, model, path, max_tokens=400)
    assert first.extracted == first.positions
    assert extract(lake, model, path, max_tokens=400).extracted == 0
    before = lake.activations("prompts", layer=2, sample_type="token").read()
    more = extract(lake, model, path, max_tokens=900)
    assert more.extracted == more.positions - first.positions > 0
    after = lake.activations("prompts", layer=2, sample_type="token").read()
    np.testing.assert_array_equal(after[: len(before)], before)
    with pytest.raises(ConflictError, match=r"under another dataset name"):
        extract(lake, model, path, max_tokens=300)
    assert extract(lake, model, path, max_tokens=300, name="fewer").positions <= 300


def test_a_stream_of_texts_is_read_no_further_than_needed(lake: Lake, model: Path, lengths: list[int]) -> None:
    given = 0

    def endless() -> Iterator[str]:
        nonlocal given
        while True:
            yield PROMPTS[given % len(PROMPTS)]
            given += 1

    result = extract(lake, model, {"stream": endless()}, max_tokens=5000)
    assert result.samples == int(np.searchsorted(np.cumsum(np.tile(lengths, 9)), 5000, side="right"))
    assert given < result.samples + 600


def test_the_same_texts_from_everywhere_give_the_same_activations(
    tmp_path: Path, lake: Lake, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    extract(lake, model, {"listed": PROMPTS}, max_tokens=700)
    extract(lake, model, lines, max_tokens=700)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(PROMPTS).encode())))
    arguments = ["--name", "piped", "--model", str(model), "--layers", "0", "2", "--max-length", "16", "--quiet"]
    command = ["extract", lake.url, "--datasets", "-", *arguments, "--device", "cpu", "--sample-type", "token", "mean"]
    assert main([*command, "--max-tokens", "700", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["dataset"] == "piped"
    assert 684 < told["positions"] <= 700
    for sample_type in ("token", "mean"):
        kept = [
            lake.activations(dataset, layer=2, sample_type=sample_type).read()
            for dataset in ("listed", "lines", "piped")
        ]
        np.testing.assert_array_equal(kept[0], kept[1])
        np.testing.assert_array_equal(kept[0], kept[2])


def test_samples_that_were_read_before_are_limited_too(lake: Lake, model: Path, lengths: list[int]) -> None:
    from saestore.samples import read_samples

    table = read_samples(PROMPTS)
    assert extract(lake, model, {"a": table}, limit=5, dry_run=True).samples == 5
    kept = int(np.searchsorted(np.cumsum(lengths), 100, side="right"))
    assert extract(lake, model, {"a": table}, max_tokens=100, dry_run=True).samples == kept
