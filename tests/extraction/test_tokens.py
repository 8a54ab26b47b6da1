from __future__ import annotations

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import InputError
from saestore.extraction.tokens import (
    max_length_of,
    positions_digest,
    texts_digest,
    tokenize,
    tokenizer_digest,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "Wörld-wide café, naïve résumé! 你好 🙂 İstanbul",
    "  leading spaces\tand\nnew lines  ",
    "a literal [SEP] token and [CLS]",
    "unbelievably " * 200,
    "x",
]


def spans(positions, sample):
    at = slice(positions.offsets[sample], positions.offsets[sample + 1])
    return zip(
        positions.token_id[at], positions.char_start[at], positions.char_end[at], positions.special[at], strict=True
    )


def bare(text):
    """Lower case without accents, as the BERT normaliser makes it."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


@pytest.fixture(scope="module")
def tokenizer(minilm_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_path)


def test_the_left_side_is_cut_where_the_last_token_matters(tokenizer):
    positions = tokenize(tokenizer, TEXTS, max_length=64, truncation_side="left")
    for sample, text in enumerate(TEXTS):
        whole = tokenizer.encode(text)
        kept = [int(token) for token, *_ in spans(positions, sample)]
        assert kept == (whole if len(whole) <= 64 else [tokenizer.cls_token_id, *whole[-63:]])
        last = positions.offsets[sample + 1] - 2
        if len(whole) > 64:
            assert positions.char_end[last] == len(text.rstrip())
    assert positions.n_truncated == 1
    assert tokenizer.truncation_side == "right"
    with pytest.raises(InputError, match="truncation side 'both' is unknown"):
        tokenize(tokenizer, TEXTS, max_length=64, truncation_side="both")


def test_ids_are_those_of_the_tokenizer_one_text_at_a_time(tokenizer):
    positions = tokenize(tokenizer, TEXTS, max_length=64)
    assert positions.n_samples == len(TEXTS)
    assert positions.offsets.dtype == np.int64
    assert positions.token_id.dtype == positions.char_start.dtype == positions.char_end.dtype == np.int32
    for sample, text in enumerate(TEXTS):
        whole = tokenizer.encode(text)
        kept = [int(token) for token, *_ in spans(positions, sample)]
        if len(whole) <= 64:
            assert kept == whole
        else:
            assert kept == [*whole[:63], tokenizer.sep_token_id]
        assert positions.truncated[sample] == (len(whole) > 64)
    assert positions.n_truncated == 1
    assert positions.offsets[-1] == len(positions.token_id) == len(positions.special)


def test_the_span_of_a_token_is_its_text(tokenizer):
    positions = tokenize(tokenizer, TEXTS, max_length=64)
    seen = 0
    for sample, text in enumerate(TEXTS):
        for token_id, start, end, special in spans(positions, sample):
            token = tokenizer.convert_ids_to_tokens(int(token_id))
            if special:
                assert token in ("[CLS]", "[SEP]")
                assert (start, end) == (0, 0)
            elif token != "[UNK]":
                assert bare(text[start:end]) == bare(token.removeprefix("##"))
                seen += 1
            else:
                assert end > start
    assert seen > 80


def test_only_added_tokens_are_special(tokenizer):
    positions = tokenize(tokenizer, TEXTS, max_length=64)
    flags = [special for *_, special in spans(positions, 4)]
    assert flags == [True] + [False] * (len(flags) - 2) + [True]
    literal = [text for token, s, e, special in spans(positions, 4) if not special for text in [TEXTS[4][s:e]]]
    assert "[SEP]" in literal


def test_byte_level_spans_cover_the_text(byte_tokenizer):
    texts = ["the cat sat", "", "🙂 naïve 你好", " two  spaces"]
    positions = tokenize(byte_tokenizer, texts, max_length=60)
    assert positions.lengths[1] == 0
    for sample, text in enumerate(texts):
        covered = np.zeros(len(text), bool)
        ids = []
        for token_id, start, end, special in spans(positions, sample):
            assert not special
            covered[start:end] = True
            ids.append(int(token_id))
        assert covered.all()
        assert byte_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    emoji = [(int(s), int(e)) for _, s, e, _ in spans(positions, 2) if s == 0]
    assert len(emoji) > 1  # one character, several byte tokens
    assert set(emoji) == {(0, 1)}


def test_batching_does_not_matter(tokenizer, monkeypatch):
    from saestore.extraction import tokens

    whole = tokenize(tokenizer, TEXTS, max_length=32)
    monkeypatch.setattr(tokens, "_TEXTS_PER_CALL", 2)
    split = tokenize(tokenizer, iter(TEXTS), max_length=32)
    for name in ("offsets", "token_id", "char_start", "char_end", "special", "truncated"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(split, name))


def test_no_texts(tokenizer):
    positions = tokenize(tokenizer, [], max_length=32)
    assert positions.n_samples == 0
    assert positions.offsets.tolist() == [0]
    assert len(positions.token_id) == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["a", None], r"sample 1 is None"), (["a", "b", float("nan")], r"sample 2 is nan"), (["\ud800"], "valid Unicode")],
)
def test_what_is_no_text_is_refused(tokenizer, texts, message):
    with pytest.raises(InputError, match=message):
        tokenize(tokenizer, texts, max_length=32)


def test_slow_tokenizers_are_refused():
    with pytest.raises(InputError, match="slow tokenizer"):
        tokenize(SimpleNamespace(is_fast=False), ["a"], max_length=8)


def test_max_length_must_leave_room(tokenizer):
    with pytest.raises(InputError, match="no room"):
        tokenize(tokenizer, ["a"], max_length=2)


def test_max_length_of_tokenizer_and_model():
    endless, short = SimpleNamespace(model_max_length=int(1e30)), SimpleNamespace(model_max_length=512)
    config = SimpleNamespace(max_position_embeddings=514)
    assert max_length_of(short, config) == 512
    assert max_length_of(endless, config) == 514
    assert max_length_of(short, config, max_length=100) == 100
    with pytest.raises(InputError, match="takes 1 to 512"):
        max_length_of(short, config, max_length=513)
    with pytest.raises(InputError, match="give max_length"):
        max_length_of(endless, SimpleNamespace())


def test_digests_change_with_what_they_stand_for(tokenizer, byte_tokenizer):
    tokenizer_sha = tokenizer_digest(tokenizer)

    def digest(texts, max_length=32, tokenizer_sha=tokenizer_sha):
        positions = tokenize(tokenizer, texts, max_length=max_length)
        return positions_digest(positions, tokenizer=tokenizer_sha, texts=texts_digest(texts))

    same = digest(TEXTS)
    assert same == digest(list(TEXTS))
    different = [
        digest(TEXTS[::-1]),
        digest(TEXTS, max_length=31),
        digest([text.upper() for text in TEXTS]),  # the same ids for this tokenizer, other texts
        digest(TEXTS, tokenizer_sha=tokenizer_digest(byte_tokenizer)),
    ]
    assert len({same, *different}) == 5
    assert texts_digest(["ab", "c"]) != texts_digest(["a", "bc"])
    assert tokenizer_digest(tokenizer) == tokenizer_sha  # what calls set on the tokenizer has no part in it
