"""The verbs show and top: rows with their strongest units, and units with their strongest rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saestore.codes import Codes
from saestore.context import Place, places_of
from saestore.errors import InputError, MissingError
from saestore.unit_stats import UnitStats
from saestore.units import Example, Per, Pick
from saestore.verbs.names import LakeLike, matching_codes, open_lake, row_choice

if TYPE_CHECKING:
    from saestore.catalogs import Catalog

_PICKED = 5
_FEWEST_ROWS = 10
_LARGEST_SHARE = 0.02


@dataclass(frozen=True)
class ShownRow:
    """One row with its strongest units, strongest first; `l0` is the number of all its active units (of the view)."""

    place: Place
    l0: int
    units: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ShownRows:
    """What `show` found."""

    sae: str
    layer: str
    sample_type: str
    rows: tuple[ShownRow, ...]


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
class TopUnits:
    """What `top` found.

    picked : how the units were picked, where the caller named none
    """

    sae: str
    layer: str
    sample_type: str
    units: tuple[ShownUnit, ...]
    picked: str = ""


def show(
    lake: LakeLike,
    dataset: str,
    *,
    rows: str | int | slice | Sequence[int] = ":5",
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    units: int = 5,
    catalog: Catalog | None = None,
) -> ShownRows:
    """Show rows of a dataset with their strongest units and what stands there.

    Parameters
    ----------
    lake : Lake, str or path
    dataset : str
    rows : str, int, slice or sequence of int
        Such as `0:5`, `7` or `3,8,21`.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    view : str, optional
        Only the units that this view keeps.
    units : int
        Units per row.

    Raises
    ------
    MissingError
        No such codes, view or rows.

    Examples
    --------
    >>> show("demo/lake", "5_hist_fig_ismale", rows="0:3")  # doctest: +SKIP
    """
    if units < 1:
        raise InputError(f"units is {units}; show at least 1 unit per row")
    [codes] = matching_codes(
        open_lake(lake, catalog=catalog),
        datasets=[dataset],
        sae=sae,
        layer=layer,
        sample_type=sample_type,
        model=model,
        view=view,
    )
    key = codes.key
    return ShownRows(key.sae, key.layer, key.sample_type, tuple(_shown_rows(codes, row_choice(rows), units)))


def top(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    units: Sequence[int] | None = None,
    n: int = 5,
    per: Per = "position",
    quantiles: Sequence[float] | None = None,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    catalog: Catalog | None = None,
) -> TopUnits:
    """Show units with the rows where they are most active, over all datasets, and what stands there.

    Special tokens are left out.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes.
    units : sequence of int, optional
        Original unit ids; without them five are picked.
    n : int
        Rows per unit, and with quantiles per band.
    per : {"position", "sample"}
        `sample` takes only the strongest row of each sample.
    quantiles : sequence of float, optional
        Edges of bands of activations from which rows are taken, such as 0 0.5 0.9 1; default the strongest rows.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    view : str, optional
        Only the units that this view keeps, in each dataset.

    Raises
    ------
    MissingError
        No such codes or units, or they have no postings.

    Examples
    --------
    >>> top("demo/lake", units=[1234], n=10)  # doctest: +SKIP
    """
    found = matching_codes(
        open_lake(lake, catalog=catalog),
        datasets=datasets,
        sae=sae,
        layer=layer,
        sample_type=sample_type,
        model=model,
        view=view,
    )
    picked = ""
    if units is None or not len(units):
        units, picked = _pick(found)
    key = found[0].key
    shown = tuple(_shown_units(found, units, n, per=per, quantiles=quantiles))
    return TopUnits(key.sae, key.layer, key.sample_type, shown, picked)


def _shown_rows(codes: Codes, rows: slice | list[int], units: int) -> list[ShownRow]:
    block = codes.rows(rows)
    places = places_of(codes.axis, block.rows)
    shown = []
    for row, place in enumerate(places):
        active = np.flatnonzero(block.values[row])[:units]
        shown.append(
            ShownRow(
                place=place,
                l0=int(block.l0[row]),
                units=tuple(int(unit) for unit in block.indices[row][active]),
                values=tuple(float(value) for value in block.values[row][active]),
            )
        )
    return shown


def _shown_units(
    found: Sequence[Codes], units: Sequence[int], n: int, *, per: Per, quantiles: Sequence[float] | None
) -> Iterator[ShownUnit]:
    total = sum(len(codes.selection.without_special) for codes in found)
    for same in zip(*(codes.units(units) for codes in found), strict=True):
        counted = [unit.without_special() for unit in same]
        picked = [
            (dataset, pick)
            for dataset, unit in enumerate(counted)
            for pick in unit.picks(n, quantiles=quantiles, per=per)
        ]
        # Strongest first, within each band; of equal ones the earlier dataset and row.
        picked.sort(key=lambda one: (-_band(one), -abs(one[1].value), one[0], one[1].row))
        bands = itertools.groupby(picked, _band)
        chosen = [one for _, band in bands for one in _thinned(list(band), n, evenly=quantiles is not None)]
        yield ShownUnit(same[0].unit, sum(map(len, counted)), total, tuple(_examples(found, chosen)))


def _examples(found: Sequence[Codes], chosen: Sequence[tuple[int, Pick]]) -> list[Example]:
    """Return what stands at rows of several datasets, read once for each dataset."""
    examples: dict[int, Example] = {}
    for dataset, codes in enumerate(found):
        numbers = [number for number, (of, _) in enumerate(chosen) if of == dataset]
        places = places_of(codes.axis, np.array([chosen[number][1].row for number in numbers], dtype=np.int64))
        for number, place in zip(numbers, places, strict=True):
            pick = chosen[number][1]
            examples[number] = Example(place, pick.value, pick.band)
    return [examples[number] for number in range(len(chosen))]


def _thinned(band: list[tuple[int, Pick]], n: int, *, evenly: bool) -> list[tuple[int, Pick]]:
    """Return the n strongest, or n at equal steps."""
    if not evenly or len(band) <= n:
        return band[:n]
    return [band[place] for place in np.linspace(0, len(band), n, endpoint=False).astype(int)]


def _band(one: tuple[int, Pick]) -> float:
    return 0.0 if one[1].band is None else one[1].band[1]


def _pick(found: Sequence[Codes]) -> tuple[list[int], str]:
    """Pick units that are worth a look: strong, neither rare nor everywhere, at home in different datasets."""
    d_sae = found[0].d_sae
    count, kept = np.zeros(d_sae, dtype=np.int64), np.zeros(d_sae, dtype=np.int64)
    largest = np.zeros(d_sae, dtype=np.float32)
    home = np.zeros(d_sae, dtype=np.int64)  # the dataset of the largest magnitude
    for place, codes in enumerate(found):
        stats = _statistics(codes)
        count[stats.units] += stats.count
        kept[codes.kept_units] += 1
        strongest = np.zeros(d_sae, dtype=np.float32)
        strongest[stats.units] = np.nan_to_num(np.maximum(np.abs(stats.max), np.abs(stats.min)))
        stronger = strongest > largest
        largest[stronger], home[stronger] = strongest[stronger], place
    count[kept < len(found)] = 0  # a view may keep a unit in one dataset and not in another
    total = sum(len(codes.selection.without_special) for codes in found)
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


def _statistics(codes: Codes) -> UnitStats:
    """Return the statistics that are stored, or compute them from the postings."""
    try:
        return codes.stats()
    except MissingError:
        return codes.where(special=False).stats()
