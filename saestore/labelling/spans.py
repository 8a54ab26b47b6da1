"""Labels from spans of characters: a token that shares a character with a span of a concept has the concept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.labelling.blocks import Block, Found
from saestore.labelling.entries import read_entries
from saestore.labelling.source import Needs, Whole, check_samples, file_digest


class Spans:
    """A table with the columns sample, concept, start and end: characters `start` to `end - 1` of the sample's text.

    Raises
    ------
    MissingError, InputError
        The table cannot be read, or a span is not one.
    """

    kind = "spans"
    needs: Needs | None = "char_start"
    of_every_row = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = read_entries(path, ["start", "end"])
        self._start, self._end = self._entries.numbers("start"), self._entries.numbers("end")
        wrong = np.flatnonzero(
            (self._start % 1 != 0) | (self._end % 1 != 0) | (self._start < 0) | (self._end <= self._start)
        )
        if wrong.size:
            row = wrong[0]
            raise InputError(
                f"{path}: row {row}: the span {self._start[row]:g} to {self._end[row]:g} is none; expected whole "
                "numbers, characters from 0, the end behind the last one"
            )

    @property
    def concept_names(self) -> tuple[str, ...]:
        """In the order of their first rows."""
        return self._entries.concept_names

    def settings(self) -> dict[str, Any]:
        """Return nothing: the file says all."""
        return {}

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return file_digest([self.path])

    def check(self, whole: Whole) -> None:
        """Refuse samples that do not exist."""
        check_samples(self.path, self._entries.rows_of, whole)

    def label(self, block: Block) -> Found:
        """Label the tokens of some texts.

        Raises
        ------
        InputError
            A span ends behind its text.
        """
        found = Found.nothing(block, len(self.concept_names))
        for place, sample in enumerate(block.ids):
            for row in self._entries.rows_of.get(sample, ()):
                concept, end = self._entries.concept[row], int(self._end[row])
                if end > len(block.contents[place]):
                    raise InputError(
                        f"{self.path}: row {row}: the span ends at character {end}, and the text of sample {sample!r} "
                        f"has {len(block.contents[place])}; count characters, not bytes"
                    )
                found.named[place, concept] = True
                mark(found.labels, block, place, int(self._start[row]), end, concept)
        return found


def mark(labels: NDArray[np.uint8], block: Block, place: int, start: int, end: int, concept: int) -> None:
    """Give a concept to the tokens of a sample that share a character with a span."""
    assert block.starts is not None
    assert block.ends is not None
    rows = block.rows(place)
    shared = np.minimum(block.ends[rows], end) > np.maximum(block.starts[rows], start)
    labels[rows, concept] |= shared  # of 0 and 1: a source of spans leaves nothing unlabelled
