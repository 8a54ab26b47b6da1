"""One unit of an SAE over one dataset: where it is active, its strongest rows, its histogram, examples with text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from saestore.axis import RowAxis
from saestore.context import Place, places_of
from saestore.errors import InputError
from saestore.selection import Selection

Per = Literal["position", "sample"]


@dataclass(frozen=True)
class TopRows:
    """The rows where one unit is most active, by the magnitude of its values, strongest first; ties by row.

    active_rows : rows where it is active at all, of those that count
    """

    unit: int
    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    active_rows: int


@dataclass(frozen=True)
class Histogram:
    """How often a unit's activations have which size.

    edges : (bins + 1,) float64
    counts : (bins,) int64
        Bins are half open but for the last, as numpy's.
    zeros : int
        Counted rows where the unit is not active; they are in no bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    zeros: int


@dataclass(frozen=True)
class Pick:
    """A row that stands for a unit; see `Example`."""

    row: int
    value: float
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Example:
    """A row where a unit is active.

    band : the quantiles of the unit's activations that the value lies between; None for the strongest rows
    """

    place: Place
    value: float
    band: tuple[float, float] | None = None


class Selected(Protocol):
    """What has a selection of rows: codes."""

    @property
    def selection(self) -> Selection:
        """The rows that are looked at."""


class Unit:
    """Where one unit is active.

    Parameters
    ----------
    unit : int
        Original id.
    rows : (n,) int64
        Rows where it is active, ascending.
    values : (n,) float32
        Its activations there.
    source : Selected
        The codes, whose selection says which rows are looked at and what they are; it is asked when it is needed.

    Examples
    --------
    >>> unit = codes.unit(1234)  # doctest: +SKIP
    >>> for example in unit.examples(3):  # doctest: +SKIP
    ...     print(example.value, example.place.text)
    """

    def __init__(self, unit: int, rows: NDArray[np.int64], values: NDArray[np.float32], source: Selected) -> None:
        self.unit = unit
        self.rows = rows
        self.values = values
        self._source = source

    @property
    def selection(self) -> Selection:
        """The rows that are looked at."""
        return self._source.selection

    @property
    def axis(self) -> RowAxis:
        """What the rows are."""
        return self.selection.axis

    def __repr__(self) -> str:
        return f"<Unit {self.unit}: active in {len(self.rows)} rows>"

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sample_places(self) -> NDArray[np.int64]:
        """The place of the sample of each row in the sample table: (n,)."""
        return self.axis.sample_of(self.rows)

    @property
    def samples(self) -> NDArray[Any]:
        """The id of the sample of each row: (n,) str objects."""
        return self.axis.samples.ids[self.sample_places]

    @property
    def positions(self) -> NDArray[np.int64]:
        """The place of each row in its sample, counted from 0: (n,)."""
        return self.axis.place_in_sample(self.rows)

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """Which rows are special tokens: (n,)."""
        return self.axis.special(self.rows)

    def without_special(self) -> Unit:
        """Return the same without the rows of special tokens."""
        kept = ~self.special
        return self if kept.all() else Unit(self.unit, self.rows[kept], self.values[kept], self._source)

    def top(self, n: int = 10, *, per: Per = "position", special: bool = False) -> TopRows:
        """Return the rows where the unit is most active.

        Parameters
        ----------
        n : int
            Rows to return; fewer where the unit is active in fewer.
        per : {"position", "sample"}
            `sample` takes only the strongest row of each sample.
        special : bool
            Whether rows of special tokens count.

        Raises
        ------
        InputError
            n is no whole number from 1, or `per` is unknown.
        """
        _check_number("n", n, "row")
        if per not in ("position", "sample"):
            raise InputError(f"per={per!r} is unknown; choose position or sample")
        found = self if special else self.without_special()
        rows, values = found.rows, found.values
        if per == "sample":
            order = np.lexsort((rows, -np.abs(values), found.sample_places))
            samples = found.sample_places[order]
            first = order[np.append(True, samples[1:] != samples[:-1])[: len(order)]]
            rows, values = rows[first], values[first]
        strongest = _strongest(rows, values, n)
        return TopRows(self.unit, rows[strongest], values[strongest], len(found))

    def histogram(self, bins: int = 50, *, special: bool = False) -> Histogram:
        """Return how often activations have which size, in bins of equal width.

        Parameters
        ----------
        bins : int
            Number of bins between the smallest and the largest activation.
        special : bool
            Whether rows of special tokens count.

        Raises
        ------
        InputError
            bins is no whole number from 1.
        """
        _check_number("bins", bins, "bin")
        found = self if special else self.without_special()
        counts, edges = np.histogram(found.values.astype(np.float64), bins=bins)
        counted = self.selection if special else self.selection.without_special
        return Histogram(edges, counts, len(counted) - len(found))

    def examples(
        self,
        n: int = 10,
        *,
        quantiles: Sequence[float] | None = None,
        per: Per = "position",
        special: bool = False,
    ) -> list[Example]:
        """Return rows where the unit is active, with the text or the patch there.

        Parameters
        ----------
        n : int
            Rows, of each band where quantiles are given.
        quantiles : sequence of float, optional
            Edges of bands of activations, ascending from 0 to 1, such as ``[0, 0.25, 0.5, 0.75, 1]``: from each band
            rows are taken at equal steps of rank, the strongest band first. Default: the strongest rows.
        per : {"position", "sample"}
            `sample` takes only the strongest row of each sample.
        special : bool
            Whether rows of special tokens count.

        Returns
        -------
        list of Example
            Strongest first.

        Raises
        ------
        InputError
            n is no whole number from 1, `per` is unknown, or quantiles do not ascend from 0 to 1.
        """
        picked = self.picks(n, quantiles=quantiles, per=per, special=special)
        places = places_of(self.axis, np.array([pick.row for pick in picked], dtype=np.int64))
        return [Example(place, pick.value, pick.band) for place, pick in zip(places, picked, strict=True)]

    def picks(
        self,
        n: int = 10,
        *,
        quantiles: Sequence[float] | None = None,
        per: Per = "position",
        special: bool = False,
    ) -> list[Pick]:
        """Return the rows that `examples` shows, without reading what stands there; its parameters and errors."""
        _check_number("n", n, "row")
        everything = self.top(max(1, len(self)) if quantiles is not None else n, per=per, special=special)
        if quantiles is None:
            chosen = np.arange(len(everything.rows))
            bands: list[tuple[float, float] | None] = [None] * len(chosen)
        else:
            chosen, bands = _banded(len(everything.rows), n, quantiles)
        rows, values = everything.rows[chosen].tolist(), everything.values[chosen].tolist()
        return [Pick(*one) for one in zip(rows, values, bands, strict=True)]


def _check_number(name: str, number: object, thing: str) -> None:
    """Refuse what is no whole number of things, at least one (InputError)."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        raise InputError(f"{name} is {number!r}; ask for a whole number of {thing}s, at least 1")
    if number < 1:
        raise InputError(f"{name} is {number}; ask for at least 1 {thing}")


def _strongest(rows: NDArray[np.int64], values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Return the places of the n largest magnitudes, largest first, ties by row."""
    size = np.abs(values)
    if n < len(size):
        least = np.partition(size, len(size) - n)[len(size) - n]
        candidates = np.flatnonzero(size >= least)
    else:
        candidates = np.arange(len(size))
    return candidates[np.lexsort((rows[candidates], -size[candidates]))][:n]


def _banded(
    count: int, n: int, quantiles: Sequence[float]
) -> tuple[NDArray[np.int64], list[tuple[float, float] | None]]:
    """Return ranks (0 is the strongest) of n rows from each band of quantiles, and their bands."""
    try:
        edges = [float(edge) for edge in quantiles]
    except (TypeError, ValueError):
        edges = []
    ascend = all(low < high for low, high in itertools.pairwise(edges))  # no NaN does
    if len(edges) < 2 or not ascend or edges[0] < 0 or edges[-1] > 1:
        raise InputError(f"quantiles {quantiles!r} cannot be used; give at least two ascending numbers from 0 to 1")
    ranks: list[NDArray[np.int64]] = []
    bands: list[tuple[float, float] | None] = []
    for low, high in reversed(list(itertools.pairwise(edges))):
        first, stop = count - round(high * count), count - round(low * count)
        picked = np.unique(np.linspace(first, stop, min(n, stop - first), endpoint=False).astype(np.int64))
        ranks.append(picked)
        bands += [(low, high)] * len(picked)
    return np.concatenate(ranks), bands
