"""The verb show: rows with their strongest units, and units with their strongest rows, with the text around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.codes import CodeRows, Codes
from saestore.errors import InputError
from saestore.verbs.names import LakeLike, matching_codes, open_lake, row_choice

if TYPE_CHECKING:
    from saestore.catalogs import Catalog

_PICKED = 5
_FEWEST_ROWS = 10
_LARGEST_SHARE = 0.02
_CONTEXT = 48


@dataclass(frozen=True)
class Place:
    """Where a row is.

    sample : the sample's id
    before, marked, after : the text around the token, and the token; for a patch its box; for a pooled row its text
    """

    dataset: str
    row: int
    sample: str
    before: str
    marked: str
    after: str

    @property
    def text(self) -> str:
        """The text on one line, with the token in brackets."""
        line = f"{self.before}[{self.marked}]{self.after}" if self.marked else self.before + self.after
        return " ".join(line.split())


@dataclass(frozen=True)
class ShownRow:
    """One row with its strongest units, strongest first; `l0` is the number of all its active units."""

    place: Place
    l0: int
    units: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A row where a unit is active."""

    place: Place
    value: float


@dataclass(frozen=True)
class ShownUnit:
    """One unit with its strongest rows; special tokens are left out.

    active_rows : rows where it is active, of `rows` in all the datasets
    """

    unit: int
    active_rows: int
    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Shown:
    """What `show` found.

    picked : how the units were picked, where the caller named none
    """

    sae: str
    layer: str
    sample_type: str
    rows: tuple[ShownRow, ...] = ()
    units: tuple[ShownUnit, ...] = ()
    picked: str = ""


def show(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    rows: str | int | slice | Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    top: int = 5,
    catalog: Catalog | None = None,
) -> Shown:
    """Show rows with their strongest units, or units with their strongest rows and the text there.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    rows : str, int, slice or sequence of int, optional
        Rows of one dataset, such as `0:5`.
    units : sequence of int, optional
        Original unit ids. Without rows and units, five units are picked.
    top : int
        Units per row, or rows per unit.

    Raises
    ------
    MissingError
        No such codes, rows or units.

    Examples
    --------
    >>> show("demo/lake", rows="0:3", datasets="5_hist_fig_ismale")  # doctest: +SKIP
    """
    if top < 1:
        raise InputError(f"top is {top}; it must be at least 1")
    if rows is not None and units is not None:
        raise InputError("rows and units were both given; show one or the other")
    names = [datasets] if isinstance(datasets, str) else datasets
    found = matching_codes(
        open_lake(lake, catalog=catalog),
        datasets=names or None,
        sae=sae,
        layer=layer,
        sample_type=sample_type,
        model=model,
    )
    key = found[0].key
    if rows is not None:
        if len(found) > 1:
            raise InputError(f"rows {rows} are of one dataset, and {len(found)} have these codes; name it: --datasets")
        shown = tuple(_shown_rows(found[0], row_choice(rows), top))
        return Shown(key.sae, key.layer, key.sample_type, rows=shown)
    picked = ""
    if units is None or not len(units):
        units, picked = _pick(found)
    return Shown(key.sae, key.layer, key.sample_type, units=tuple(_shown_units(found, units, top)), picked=picked)


def _shown_rows(codes: Codes, rows: slice | list[int], top: int) -> list[ShownRow]:
    block = codes.rows(rows)
    places = _places(codes, block.rows)
    shown = []
    for row, place in enumerate(places):
        active = np.flatnonzero(block.values[row])[:top]
        shown.append(
            ShownRow(
                place=place,
                l0=int(block.l0[row]),
                units=tuple(int(unit) for unit in block.indices[row][active]),
                values=tuple(float(value) for value in block.values[row][active]),
            )
        )
    return shown


def _shown_units(found: Sequence[Codes], units: Sequence[int], top: int) -> list[ShownUnit]:
    per_dataset = [codes.top(units, top) for codes in found]
    total = sum(_countable(codes) for codes in found)
    shown = []
    for column, unit in enumerate(units):
        best = [
            (-abs(float(value)), place, int(row), float(value))
            for place, tops in enumerate(per_dataset)
            for row, value in zip(tops[column].rows, tops[column].values, strict=True)
        ]
        best = sorted(best)[:top]
        examples = []
        for _, place, row, value in best:
            examples.append(Example(_places(found[place], np.array([row]))[0], value))
        active = sum(tops[column].active_rows for tops in per_dataset)
        shown.append(ShownUnit(int(unit), active, total, tuple(examples)))
    return shown


def _countable(codes: Codes) -> int:
    """Rows that are not special tokens."""
    return codes.n_rows - (0 if codes.positions is None else int(codes.positions.special().sum()))


def _pick(found: Sequence[Codes]) -> tuple[list[int], str]:
    """Pick units that are worth a look: strong, neither rare nor everywhere, at home in different datasets."""
    d_sae = found[0].d_sae
    count = np.zeros(d_sae, dtype=np.int64)
    largest = np.zeros(d_sae, dtype=np.float32)
    home = np.zeros(d_sae, dtype=np.int64)  # the dataset of the largest magnitude
    for place, codes in enumerate(found):
        for block in codes.scan():
            units, values = _active(codes, block)
            count += np.bincount(units, minlength=d_sae)
            strongest = np.zeros(d_sae, dtype=np.float32)
            np.maximum.at(strongest, units, np.abs(values))
            stronger = strongest > largest
            largest[stronger], home[stronger] = strongest[stronger], place
    total = sum(_countable(codes) for codes in found)
    fit = (count >= _FEWEST_ROWS) & (count <= _LARGEST_SHARE * total)
    rule = f"active in {_FEWEST_ROWS} rows or more and in at most {_LARGEST_SHARE:.0%} of {total:,} rows"
    if not fit.any():
        fit, rule = count > 0, f"active at all (none is {rule})"
    candidates = np.flatnonzero(fit)
    candidates = candidates[np.lexsort((candidates, -largest[candidates]))]
    if not candidates.size:
        raise InputError(f"no unit of {found[0].key.sae} is active in {found[0].key.path}; name units with --units")
    chosen = [int(unit) for unit in _spread(candidates, home[candidates])]
    return chosen, (
        f"{len(chosen)} units picked of {candidates.size:,} that are {rule}: the largest maxima, "
        "each in another dataset as far as there are; name others with --units"
    )


def _spread(candidates: NDArray[np.int64], homes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take the first of every home in turn, then the second of every home, until there are enough."""
    turn = np.zeros(len(homes), dtype=np.int64)
    for home in np.unique(homes):
        mine = homes == home
        turn[mine] = np.arange(mine.sum())
    return candidates[np.argsort(turn, kind="stable")][:_PICKED]


def _active(codes: Codes, block: CodeRows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return unit and value of every active slot, without rows of special tokens."""
    held = block.values != 0
    if codes.positions is not None:
        held &= ~codes.positions.special(int(block.rows[0]), int(block.rows[-1]) + 1)[:, None]
    return block.indices[held].astype(np.int64), block.values[held]


def _places(codes: Codes, rows: NDArray[np.int64]) -> list[Place]:
    """Return where rows are, with the text around them."""
    samples = codes.sample_of(rows)
    ids = codes.samples.ids[samples]
    contents = codes.samples.contents_of(samples)
    spans: NDArray[Any] | None = None
    boxes: NDArray[Any] | None = None
    if codes.positions is not None and codes.positions.has("char_start"):
        group = codes.positions.group
        spans = np.stack([group.take("char_start", rows), group.take("char_end", rows)], axis=1)
        special = group.take("special", rows)
    elif codes.positions is not None and codes.positions.has("box"):
        boxes = codes.positions.group.take("box", rows)
    found = []
    for place, row in enumerate(rows):
        content = str(contents[place])
        if spans is not None:
            before, marked, after = _around(content, *spans[place], special=bool(special[place]))
        elif boxes is not None:
            box = ", ".join(f"{edge:.0f}" for edge in boxes[place])
            before, marked, after = f"{content} ", f"box {box}", ""
        else:
            before, marked, after = _shortened(content), "", ""
        found.append(Place(codes.key.dataset, int(row), str(ids[place]), before, marked, after))
    return found


def _around(text: str, start: int, stop: int, *, special: bool) -> tuple[str, str, str]:
    """Cut the text around a token; special ones, and with some tokenizers spaces, stand for no characters."""
    if start == stop:
        return f"({'special' if special else 'empty'} token) {_shortened(text)}", "", ""
    first, last = max(0, start - _CONTEXT), min(len(text), stop + _CONTEXT)
    before = ("…" if first else "") + text[first:start]
    return before, text[start:stop], text[stop:last] + ("…" if last < len(text) else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _CONTEXT else text[: 2 * _CONTEXT] + "…"
