"""What the figures of a report of probes share: colours, names, and the section that a picture stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from saestore.report.drawing import BLUE, GREEN, INK, OLIVE, ORANGE, SAND, SKY, VIOLET, Picture
from saestore.report.page import Data, Section, missing, paragraph
from saestore.report.probed import QUIVERS, Probed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = 0.5
Z95 = 1.96
"""Standard errors from a mean to either end of its interval of 95 %."""

SETTING_NAMES = {
    "normal": "normal",
    "scarcity": "scarcity",
    "imbalance": "imbalance",
    "label_noise": "label noise",
    "ood": "out of distribution",
    "multi_token": "multi-token",
}
_COLOURS = {
    "logreg": BLUE,
    "pca": SKY,
    "knn": VIOLET,
    "xgboost": GREEN,
    "mlp": OLIVE,
    "attention": BLUE,
    "concat": SKY,
    QUIVERS[0]: INK,
    QUIVERS[1]: ORANGE,
}


@dataclass(frozen=True, eq=False)
class Part:
    """A section, and the pictures in it."""

    section: Section
    pictures: Sequence[Picture] = field(default=())


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture before it has a name: its size in inches, what is drawn in plain words, and how."""

    size: tuple[float, float]
    label: str
    draw: Callable[[Figure], None]


def figure_part(
    probed: Probed, kind: str, title: str, words: Sequence[str], drawing: Drawing, data: pd.DataFrame, below: str = ""
) -> Part:
    """Return a section with words, a picture and its numbers; `below` is HTML that follows the picture."""
    key = f"{kind}-{probed.number}"
    picture = Picture(key, drawing.size, drawing.label, drawing.draw)
    width = f' style="max-width:{drawing.size[0] * 104:.0f}px"'
    body = "".join(map(paragraph, words)) + f'<div class="plot"{width}>{picture.svg()}</div>{below}'
    block = frame_data(probed.key, kind, data)
    return Part(Section(key, title, body, (block,)), (Picture(f"{probed.key}/{kind}", *_drawn(drawing)),))


def absent(probed: Probed, kind: str, title: str, why: str) -> Part:
    """Return a section that says why a figure is not there."""
    return Part(Section(f"{kind}-{probed.number}", title, missing(why)))


def frame_data(dataset: str, name: str, frame: pd.DataFrame) -> Data:
    """Return the columns of a table as the numbers behind a plot; what is missing is null."""
    columns: Mapping[str, list[object]] = {
        str(column): [None if pd.isna(value) else value for value in frame[column].tolist()] for column in frame
    }
    return Data(dataset, name, columns)


def colour(probe: str) -> str:
    """Return the colour of a method or a probe; SAE probes share one."""
    return _COLOURS.get(probe, SAND)


def several(count: int, what: str) -> str:
    """Return a number with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def limits(found: pd.DataFrame) -> tuple[float, float]:
    """Return limits of an axis of AUC: from chance, or below what is lower, to a little above 1."""
    lowest = float((found["mean"] - Z95 * found["se"].fillna(0)).min())
    return min(CHANCE, math.floor(lowest * 20) / 20), 1.06


def _drawn(drawing: Drawing) -> tuple[tuple[float, float], str, Callable[[Figure], None]]:
    return drawing.size, drawing.label, drawing.draw
