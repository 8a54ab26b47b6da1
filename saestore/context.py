"""What stands at rows: the text around a token, the box of a patch, the text of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.axis import RowAxis

_AROUND = 48
"""Characters that are shown before a token and after it."""


@dataclass(frozen=True)
class Place:
    """Where a row is.

    row : number on the row axis
    sample, position : the sample's id, and the place in it
    before, marked, after : the text around a token, and the token; of an image its path; of a pooled row its text
    box : x0, y0, x1, y1 of a patch in pixels of the image, else None
    """

    dataset: str
    row: int
    sample: str
    position: int
    before: str
    marked: str
    after: str
    box: tuple[float, float, float, float] | None = None

    @property
    def text(self) -> str:
        """All of it on one line, the token in brackets."""
        line = f"{self.before}[{self.marked}]{self.after}" if self.marked else self.before + self.after
        if self.box is not None:
            line += " box " + ", ".join(f"{edge:.0f}" for edge in self.box)
        return " ".join(line.split())


def places_of(axis: RowAxis, rows: NDArray[np.integer[Any]]) -> list[Place]:
    """Return where rows are, in the order given, with what stands there.

    Raises
    ------
    HoleError, IntegrityError
        Samples or positions were never written, or are damaged.
    """
    rows = np.asarray(rows, dtype=np.int64)
    samples = axis.sample_of(rows)
    ids = axis.samples.ids[samples]
    positions = axis.place_in_sample(rows)
    contents = [str(content) for content in axis.samples.contents_of(samples)]
    texts = [(_shortened(content), "", "") for content in contents]
    boxes: list[Any] = [None] * len(rows)
    if axis.positions is not None and axis.positions.has("char_start"):
        group = axis.positions.group
        spans = zip(group.take("char_start", rows).tolist(), group.take("char_end", rows).tolist(), strict=True)
        special = axis.special(rows).tolist()
        texts = [
            _around(content, span, special=flag) for content, span, flag in zip(contents, spans, special, strict=True)
        ]
    elif axis.positions is not None and axis.positions.has("box"):
        texts = [(content, "", "") for content in contents]
        boxes = [tuple(box) for box in axis.positions.group.take("box", rows).tolist()]
    named = zip(rows.tolist(), ids.tolist(), positions.tolist(), texts, boxes, strict=True)
    return [Place(axis.samples.dataset, row, id_, position, *text, box) for row, id_, position, text, box in named]


def _around(text: str, span: tuple[int, int], *, special: bool) -> tuple[str, str, str]:
    """Cut the text around a token; special ones, and with some tokenizers spaces, stand for no characters."""
    start, stop = span
    if start == stop:
        return f"({'special' if special else 'empty'} token) {_shortened(text)}", "", ""
    first, last = max(0, start - _AROUND), min(len(text), stop + _AROUND)
    before = ("…" if first else "") + text[first:start]
    return before, text[start:stop], text[stop:last] + ("…" if last < len(text) else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _AROUND else text[: 2 * _AROUND] + "…"
