"""Texts to positions: token ids, character spans and special flags, ragged and without padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from saestore.errors import InputError

TruncationSide = Literal["right", "left"]

_TEXTS_PER_CALL = 512
_NO_LIMIT = 10**9  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class TextPositions:
    """The positions of some texts: n tokens of n_samples texts, sample after sample.

    Parameters
    ----------
    offsets : (n_samples + 1,) int64
        Sample i has the positions ``offsets[i]:offsets[i + 1]``; an empty text may have none.
    token_id : (n,) int32
    char_start, char_end : (n,) int32
        The token is ``text[char_start:char_end]``, in characters of the original text, as the tokenizer's own offsets
        say. Tokens that the tokenizer added have the empty span 0:0. Several byte tokens of one character have the same
        span; SentencePiece tokens may include the space before the word.
    special : (n,) bool
        Tokens that the tokenizer added (its own ``special_tokens_mask``): BOS, CLS, SEP, EOS. The literal text
        ``[SEP]`` in a sample was not added and is not flagged.
    truncated : (n_samples,) bool
        Texts of which only the beginning is here, since they have more tokens than the model takes.
    """

    offsets: npt.NDArray[np.int64]
    token_id: npt.NDArray[np.int32]
    char_start: npt.NDArray[np.int32]
    char_end: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]

    @property
    def n_samples(self) -> int:
        """How many texts."""
        return len(self.offsets) - 1

    @property
    def n_truncated(self) -> int:
        """How many texts were cut."""
        return int(self.truncated.sum())

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Positions of each sample, (n_samples,) int64."""
        return np.diff(self.offsets)


def max_length_of(tokenizer: Any, config: Any, *, max_length: int | None = None) -> int:
    """Return the most tokens of a text, specials included.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    config : transformers configuration of the model
    max_length : int, optional
        A smaller limit that the caller wants.

    Raises
    ------
    InputError
        When `max_length` is more than tokenizer and model take, less than 1, or nobody names a limit.
    """
    limits = [getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    if max_length is None:
        if not known:
            raise InputError(
                "neither the tokenizer nor the model's config says how long a text may be; give max_length"
            )
        return min(known)
    if max_length < 1 or (known and max_length > min(known)):
        raise InputError(f"max_length is {max_length}; this model takes 1 to {min(known) if known else 'any'} tokens")
    return max_length


def tokenize(
    tokenizer: Any, texts: Iterable[str], *, max_length: int, truncation_side: TruncationSide = "right"
) -> TextPositions:
    """Tokenize texts with the special tokens that the tokenizer adds, cutting what is longer than `max_length`.

    Beside the texts, memory holds the result and one batch of 512 tokenized texts.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
        One with a Rust backend; the others do not know character spans.
    texts : iterable of str
    max_length : int
        Most tokens of a text, specials included.
    truncation_side : {"right", "left"}
        Which end of a longer text is cut off. Its last token, which probes read, is kept by `left` alone.

    Returns
    -------
    TextPositions
        A function of the tokenizer and each text alone, not of their order or number.

    Raises
    ------
    InputError
        When the tokenizer is a slow one, or a text is not a string of valid Unicode; the message says which.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} is a slow tokenizer and does not say which characters a token stands for; "
            "use the fast tokenizer of the model (one with a tokenizer.json)"
        )
    if max_length <= tokenizer.num_special_tokens_to_add():
        raise InputError(f"max_length is {max_length}, which leaves no room beside the special tokens; give more")
    if truncation_side not in ("right", "left"):
        raise InputError(f"truncation side {truncation_side!r} is unknown; choose right or left")
    given, tokenizer.truncation_side = tokenizer.truncation_side, truncation_side
    try:
        parts = [_tokenize(tokenizer, batch, max_length) for batch in _checked_batches(texts)]
    finally:
        tokenizer.truncation_side = given
    lengths = np.concatenate([part[0] for part in parts], dtype=np.int64) if parts else np.zeros(0, np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])

    def joined(at: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.concatenate([part[at] for part in parts]) if parts else np.zeros(0, dtype)

    return TextPositions(
        offsets=offsets,
        token_id=joined(1, np.int32),
        char_start=joined(2, np.int32),
        char_end=joined(3, np.int32),
        special=joined(4, np.bool_),
        truncated=joined(5, np.bool_),
    )


def _checked_batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"sample {at} is {text!r} ({type(text).__name__}), not a text; drop or fill it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"sample {at} is not valid Unicode ({error.reason}); repair the text") from error
        batch.append(text)
        if len(batch) == _TEXTS_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch


def _tokenize(tokenizer: Any, texts: list[str], max_length: int) -> tuple[npt.NDArray[Any], ...]:
    """Return lengths, ids, starts, ends, specials of one batch, and which texts were cut."""
    encoded = tokenizer(
        texts,
        add_special_tokens=True,
        padding=False,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids = encoded["input_ids"]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    n = int(lengths.sum())
    spans = np.fromiter(chain.from_iterable(chain.from_iterable(encoded["offset_mapping"])), np.int32, 2 * n).reshape(
        n, 2
    )
    return (
        lengths,
        np.fromiter(chain.from_iterable(ids), np.int32, n),
        spans[:, 0].copy(),
        spans[:, 1].copy(),
        np.fromiter(chain.from_iterable(encoded["special_tokens_mask"]), np.bool_, n),
        np.fromiter((bool(encoding.overflowing) for encoding in encoded.encodings), np.bool_, len(ids)),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 of everything that makes a fast tokenizer give the ids it gives, in hex.

    Padding and truncation are left out: they are set anew by every call.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """Return the sha256 of texts in their order, in hex; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def positions_digest(positions: TextPositions, *, tokenizer: str, texts: str) -> str:
    """Return the sha256 that two layers must share to lie on the same position axis, in hex.

    Parameters
    ----------
    positions : TextPositions
    tokenizer : str
        From `tokenizer_digest`.
    texts : str
        From `texts_digest`.
    """
    digest = hashlib.sha256(f"text positions 1\n{tokenizer}\n{texts}\n".encode())
    arrays: Sequence[npt.NDArray[Any]] = (
        positions.offsets.astype("<i8"),
        positions.token_id.astype("<i4"),
        positions.char_start.astype("<i4"),
        positions.char_end.astype("<i4"),
        positions.special.astype("u1"),
    )
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
