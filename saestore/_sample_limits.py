"""How many samples of a source are kept: the first so many, or the first that hold so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saestore.errors import InputError

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class TokenLimit:
    """The first samples that together hold at most so many tokens.

    tokens : the most that all samples hold
    count : returns the tokens of each of some texts, as the model gets them: (n_texts,) int

    Raises
    ------
    InputError
        `tokens` is less than 1.
    """

    tokens: int
    count: Callable[[Sequence[str]], npt.ArrayLike]

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"max_tokens is {self.tokens}; expected a positive number of tokens")


class Gate:
    """Lets samples in, in their order, until a limit is reached.

    kept : samples that were let in
    closed : whether a sample was turned away, or `limit` samples are in
    """

    def __init__(self, limit: int | None, tokens: TokenLimit | None) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}; expected a positive number of samples")
        self.limit = limit
        self.tokens = tokens
        self.kept = 0
        self.closed = False
        self._held = 0

    @property
    def is_open_to_all(self) -> bool:
        """Whether there is no limit at all."""
        return self.limit is None and self.tokens is None

    def let_in(self, texts: Sequence[Any]) -> None:
        """Let in the next samples, or those of them that fit. What is no text counts as an empty one."""
        if self.limit is not None:
            texts = texts[: self.limit - self.kept]
        if self.tokens is None:
            self.kept += len(texts)
        else:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                if not self.closed:
                    self._let_in_by_tokens(self.tokens, texts[start : start + _TEXTS_AT_ONCE])
        self.closed |= self.kept == self.limit

    def _let_in_by_tokens(self, tokens: TokenLimit, texts: Sequence[Any]) -> None:
        counts = np.asarray(tokens.count([_countable(text) for text in texts]), dtype=np.int64)
        ends = self._held + np.cumsum(counts)
        fitting = int(np.searchsorted(ends, tokens.tokens, side="right"))
        if fitting < len(texts):
            self.closed = True
            if self.kept + fitting == 0:
                raise InputError(
                    f"the first sample has {ends[0]:,} tokens and max_tokens is {tokens.tokens:,}; give more, or cut "
                    "texts with max_length"
                )
        if fitting:
            self._held = int(ends[fitting - 1])
        self.kept += fitting


def _countable(text: Any) -> str:
    """The text itself; for what is refused later, with the number of its row, something that can be counted."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""
