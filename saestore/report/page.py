"""The page itself: text made safe, tables, the numbers behind plots, and all of it put together as one file."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONG = 40
"""A text of more characters may be broken into lines in a table."""

Values = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Data:
    """The numbers behind a table or a plot: columns of one length.

    dataset : whose they are; empty for those of several
    """

    dataset: str
    name: str
    columns: Mapping[str, Values]

    @property
    def key(self) -> str:
        """The id of the block on the page, in which no space may be."""
        return f"{self.dataset}.{self.name}".replace(" ", "·") if self.dataset else self.name

    def plain(self) -> dict[str, list[Any]]:
        """Return the columns as JSON holds them; a number that is not finite is null."""
        return {name: [_plain(value) for value in values] for name, values in self.columns.items()}

    def csv(self) -> str:
        """Return the columns as comma-separated values under their names; null is empty."""
        columns = self.plain()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return out.getvalue()


@dataclass(frozen=True, eq=False)
class Section:
    """One part of a page: its HTML, and the numbers in it."""

    key: str
    title: str
    body: str
    data: Sequence[Data] = field(default=())


@dataclass(frozen=True, eq=False)
class Chapter:
    """Sections under one heading, such as those of one dataset."""

    key: str
    title: str
    lead: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Cell:
    """A cell that is shown in one way and sorted by another.

    value : what it is sorted by, a number or a text
    shown : text
    """

    value: Any
    shown: str


def text(value: object) -> str:
    """Return a text as HTML that shows it."""
    return html.escape(str(value), quote=True)


def paragraph(words: object, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{text(words)}</p>"


def missing(words: object) -> str:
    """Return what stands where something is not there."""
    return paragraph(words, "absent")


def number(value: float | None, form: str = ".3f") -> Cell:
    """Return a cell with a number; empty for None and NaN."""
    if value is None or math.isnan(value):
        return Cell(None, "")
    return Cell(value, f"{value:{form}}")


def whole(value: int | None) -> Cell:
    """Return a cell with a whole number; empty for None."""
    return Cell(value, "" if value is None else f"{value:,}")


def table(key: str, headers: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell | str]]) -> str:
    """Return a table that can be sorted by any column.

    Parameters
    ----------
    headers : sequence of (name, note)
        The note is shown when the pointer rests on the header; it may be empty.
    rows : sequence of rows
        A text stands for itself.
    """
    head = "".join(
        f'<th scope="col"{_title(note)}><button type="button">{text(name)}</button></th>' for name, note in headers
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable" id="{text(key)}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def page(
    title: str, lead: str, chapters: Sequence[Chapter], *, foot: str, scripts: Sequence[str] = ("page.js",)
) -> str:
    """Return a whole page.

    Parameters
    ----------
    title, lead, foot : str
        Plain text.
    scripts : sequence of str
        Files beside this one.
    """
    contents = "".join(
        f'<li><a href="#{text(chapter.key)}">{text(chapter.title)}</a></li>' for chapter in chapters if chapter.title
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_packaged('style.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>{paragraph(lead)}<nav><ul>{contents}</ul></nav></header>\n<main>\n"
        f"{''.join(map(_chapter, chapters))}</main>\n<footer>{paragraph(foot)}</footer>\n"
        f"{''.join(map(_script, scripts))}</body>\n</html>\n"
    )


def _chapter(chapter: Chapter) -> str:
    inside = "".join(_section(section) for section in chapter.sections)
    return (
        f'<section class="chapter" id="{text(chapter.key)}"><h2>{text(chapter.title)}</h2>'
        f"{paragraph(chapter.lead) if chapter.lead else ''}\n{inside}</section>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(f"{_block(data)}\n" for data in section.data)
    return f'<section id="{text(section.key)}"><h3>{text(section.title)}</h3>\n{section.body}\n{blocks}</section>\n'


def _block(data: Data) -> str:
    """Return numbers as JSON that is no markup, with buttons that save them."""
    content = json.dumps(data.plain(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":  # so that no text in it can end the block
        content = content.replace(sign, f"\\u{ord(sign):04x}")
    rows = len(next(iter(data.columns.values()), ()))
    lines = f"{rows:,} line{'' if rows == 1 else 's'}"
    return (
        f'<p class="data">{text(data.name)}, {lines}: <button type="button" data-save="csv" data-of="{text(data.key)}">'
        f'CSV</button> <button type="button" data-save="json" data-of="{text(data.key)}">JSON</button></p>'
        f'<script type="application/json" id="{text(data.key)}">{content}</script>'
    )


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td{_class('long' if len(cell) > _LONG else '')}>{text(cell)}</td>"
    if isinstance(cell.value, int | float):
        return f'<td class="number" data-value="{cell.value!r}">{text(cell.shown)}</td>'
    return f'<td data-value="{text("" if cell.value is None else cell.value)}">{text(cell.shown)}</td>'


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _packaged(name: str) -> str:
    return resources.files("saestore.report").joinpath(name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    return f"<script>\n{_packaged(name)}</script>\n"


def _class(kind: str) -> str:
    return f' class="{text(kind)}"' if kind else ""


def _title(note: str) -> str:
    return f' title="{text(note)}"' if note else ""
