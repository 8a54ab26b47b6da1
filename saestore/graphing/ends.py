"""The ends of a graph: units of codes or of activations, over rows that all ends of the graph share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.codes import Codes
from saestore.cuts import cuts
from saestore.errors import InputError
from saestore.kernels.entry_orders import RowMajor, sort_rows
from saestore.kernels.pair_rules import Moments
from saestore.kernels.reduce import reduce_entries
from saestore.layout import CodesKey
from saestore.prefetch import prefetch
from saestore.selection import Selection

Pooling = Literal["mean", "max"]

_BLOCK_SLOTS = 1 << 21  # of codes that are taken apart at a time, some 80 bytes each
_BLOCK_BYTES = 64 << 20
_BLOCK_ROWS, _LEAST_ROWS = 65_536, 256


@dataclass(frozen=True, eq=False)
class End:
    """Units of one layer, over the chosen rows of one dataset or of several, one after the other.

    sources : codes, or activations, of each dataset; of the same layer and SAE, and of codes through the same view
    selections : the rows of each that count; special tokens are not among them
    units : (m,) int64
        Original ids of units, or places of dimensions, ascending.
    pooling : how rows are joined to one for each sample; None where they stay as they are
    """

    sources: tuple[Codes, ...] | tuple[Activations, ...]
    selections: tuple[Selection, ...]
    units: NDArray[np.int64]
    pooling: Pooling | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether it is of codes."""
        return isinstance(self.sources[0], Codes)

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.sources[0].key.layer

    @property
    def sae(self) -> str | None:
        """The SAE's name; None of activations."""
        key = self.sources[0].key
        return key.sae if isinstance(key, CodesKey) else None

    @property
    def view(self) -> str | None:
        """The name of the view that codes are looked at through."""
        source = self.sources[0]
        return source.view_name if isinstance(source, Codes) else None

    @property
    def name(self) -> str:
        """What the end is called in the graph: layer, SAE and view."""
        return "/".join(filter(None, [self.layer, self.sae, self.view]))

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each dataset: those that count, or samples that have one."""
        if self.pooling is None:
            return [len(selection) for selection in self.selections]
        return [int(np.count_nonzero(np.diff(one.sample_offsets))) for one in self.selections]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(self.lengths)

    @property
    def rows_in_words(self) -> str:
        """What the rows are, for errors and results."""
        names = ", ".join(source.key.dataset for source in self.sources)
        kind = self.sources[0].key.sample_type
        pooled = f" pooled by {self.pooling}" if self.pooling else ""
        return f"{self.n_rows:,} {kind} rows{pooled} of {names} ({self.selections[0].words})"

    @property
    def rows_identity(self) -> list[str]:
        """What determines the rows; ends with the same can be joined in one graph."""
        pooled = [] if self.pooling is None else [self.pooling]
        return [rows_identity(selection) for selection in self.selections] + pooled

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the numbers, as JSON values."""
        return {
            "name": self.name,
            "paths": [source.key.path for source in self.sources],
            "runs": [source.group.attributes["run"] for source in self.sources],
            "units": _run_lengths(self.units),
            "pooling": self.pooling,
        }

    def entries(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], int]]:
        """Yield blocks of rows of codes: rows counted in the block, places of units, values, and how many rows.

        Raises
        ------
        HoleError, IntegrityError
            Rows were never written, or are damaged.
        """
        for source, selection in zip(self.sources, self.selections, strict=True):
            assert isinstance(source, Codes)
            place = np.full(source.d_sae, -1, dtype=np.int64)
            place[self.units] = np.arange(len(self.units))
            blocks = self._blocks(selection, max(_LEAST_ROWS, _BLOCK_SLOTS // source.k))

            def read(block: tuple[int, int], source: Codes = source, selection: Selection = selection) -> Any:
                return source.all_rows.rows(selection.rows(*block))

            for (first, stop), codes in prefetch(read, blocks):
                places = place[codes.indices]
                held = (codes.values != 0) & (places >= 0)
                rows, slots = np.nonzero(held)
                found = rows, places[rows, slots], codes.values[rows, slots]
                if self.pooling is None:
                    yield *found, stop - first
                    continue
                offsets = _offsets(selection, first, stop)
                yield *reduce_entries(*found, offsets, self.pooling), len(offsets) - 1

    def blocks(
        self, rows: NDArray[np.int64] | None = None, *, step: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield blocks of rows of activations, (n, m) float32; in another order where rows are given.

        Parameters
        ----------
        rows : (N,) int64, optional
            Rows of the end, in the order in which they are wanted.
        step : int, optional
            Rows of a block; default `block_rows`.

        Raises
        ------
        HoleError, IntegrityError
            Rows were never written, or are damaged.
        InputError
            Numbers are not finite.
        """
        edges = np.append(0, np.cumsum(self.lengths))
        step = step or self.block_rows
        for start in range(0, self.n_rows, step):
            wanted = np.arange(start, min(start + step, self.n_rows)) if rows is None else rows[start : start + step]
            x = np.empty((len(wanted), len(self.units)), dtype=np.float32)
            of = np.searchsorted(edges, wanted, side="right") - 1
            for number, (source, selection) in enumerate(zip(self.sources, self.selections, strict=True)):
                assert isinstance(source, Activations)
                here = np.flatnonzero(of == number)
                if here.size:
                    x[here] = source.take(selection.rows_at(wanted[here] - edges[number]))[:, self.units]
            if not np.isfinite(x.sum(dtype=np.float64)):
                raise InputError(
                    f"{self.sources[0].key.path} holds NaN or infinity in the chosen rows; leave them out (--where) or "
                    "write them again"
                )
            yield x

    @property
    def block_rows(self) -> int:
        """Rows of a block of `blocks`."""
        source = self.sources[0]
        width = source.d_in if isinstance(source, Activations) else len(self.units)
        return max(_LEAST_ROWS, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))

    def _blocks(self, selection: Selection, step: int) -> list[tuple[int, int]]:
        """Cut chosen rows into blocks, of whole samples where these are pooled."""
        if self.pooling is None:
            n = len(selection)
            return [(first, min(first + step, n)) for first in range(0, n, step)]
        offsets = selection.sample_offsets
        edges = offsets[cuts(np.diff(offsets), step)]
        return [(first, stop) for first, stop in pairwise(np.unique(edges).tolist())]


def moments_of(end: End) -> tuple[Moments, NDArray[np.float64]]:
    """Return sums over all rows of codes, and the largest value of each unit, in one pass."""
    moments, largest = Moments.empty(len(end.units)), np.full(len(end.units), -np.inf)
    for _, places, values, n in end.entries():
        moments.add(places, values, n)
        np.maximum.at(largest, places, values)
    # A unit that is not active everywhere is 0 somewhere.
    largest = np.where(moments.active < moments.n, np.maximum(largest, 0), largest)
    return moments, largest


def rows_of(end: End, moments: Moments, first: int, stop: int) -> RowMajor:
    """Read the units `first:stop`, by their places among the end's, row by row.

    Parameters
    ----------
    end : End
        Of codes.
    moments : Moments
        Of all its units.
    first, stop : int
        Units to keep; they are counted from `first` in the result.
    """
    total = int(moments.active[first:stop].sum())
    width = np.uint16 if stop - first <= 1 << 16 else np.uint32
    pointers = np.zeros(end.n_rows + 1, dtype=np.int64)
    units, values = np.empty(total, dtype=width), np.empty(total, dtype=np.float32)
    row = entry = 0
    for rows, places, found, n in end.entries():
        if (first, stop) != (0, len(end.units)):
            kept = (places >= first) & (places < stop)
            rows, places, found = rows[kept], places[kept], found[kept]
        units[entry : entry + len(rows)] = places - first
        values[entry : entry + len(rows)] = found
        pointers[row + 1 : row + n + 1] = entry + np.cumsum(np.bincount(rows, minlength=n))
        row, entry = row + n, entry + len(rows)
    sort_rows(pointers, units, values)
    return RowMajor(pointers, units, values, stop - first)


def check_ends(ends: Sequence[End]) -> None:
    """Refuse ends that cannot be joined in one graph.

    Raises
    ------
    InputError
        Two have the same name, one has no units, rows differ (it is said how), or are fewer than 4.
    """
    names = [end.name for end in ends]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice; name each layer, SAE and view once")
    for end in ends:
        if not len(end.units):
            raise InputError(f"{end.name} has no units to join; choose others (--units, --view)")
        if end.pooling is not None and end.pooling not in get_args(Pooling):
            raise InputError(f"pooling {end.pooling!r} is unknown; choose mean or max")
        if end.rows_identity != ends[0].rows_identity:
            raise InputError(
                f"ends of a graph need the same rows: {ends[0].name} has {ends[0].rows_in_words}, {end.name} has "
                f"{end.rows_in_words}; choose the same datasets, sample type and rows for both"
            )
    if ends[0].n_rows < 4:
        raise InputError(f"a graph needs 4 rows or more; {ends[0].name} has {ends[0].rows_in_words}")


def chosen_units(text: str, n: int, what: str) -> NDArray[np.int64]:
    """Read a choice of units: numbers and ranges such as `0:100` or `5 17 40:50`, ascending, each once.

    Raises
    ------
    InputError
        It is no such choice, or a unit does not exist.
    """
    found: list[NDArray[np.int64]] = []
    for part in text.replace(",", " ").split():
        first, colon, stop = part.partition(":")
        try:
            low = int(first) if first or not colon else 0
            high = (int(stop) if stop else n) if colon else low + 1
        except ValueError:
            raise InputError(f"units {part!r} of {what} cannot be read; write 0:100, or 5 17 99") from None
        if not 0 <= low < high <= n:
            raise InputError(f"units {part!r} do not exist: {what} has those from 0 to {n - 1}")
        found.append(np.arange(low, high))
    if not found:
        raise InputError(f"no units of {what} are named; write 0:100, or 5 17 99")
    return np.unique(np.concatenate(found))


def rows_identity(selection: Selection) -> str:
    """Return what names chosen rows: the digest of their axis, a hash of the rows, and the conditions in words."""
    rows = hashlib.sha256(selection.starts.tobytes() + selection.stops.tobytes()).hexdigest()[:16]
    return f"{selection.axis.digest} {rows} {selection.words}"


def selection_of(
    source: Codes | Activations, where: str | None = None, split: str | Sequence[str] | None = None
) -> Selection:
    """Return the rows of codes or activations that count: those chosen already and here, without special tokens."""
    if isinstance(source, Codes):
        chosen = source.selection
    else:
        chosen = Selection.all(RowAxis.open(source.group.storage, source.key))
    return chosen.where(where, split=split, special=False)


def _offsets(selection: Selection, first: int, stop: int) -> NDArray[np.int64]:
    """Where the chosen rows `first:stop` of whole samples begin, and their number; samples without rows left out."""
    offsets = np.unique(selection.sample_offsets)
    inside = offsets[(offsets >= first) & (offsets <= stop)]
    return inside - first


def _run_lengths(units: NDArray[np.int64]) -> list[list[int]]:
    """Return ascending numbers as pairs of first and stop."""
    breaks = np.flatnonzero(np.diff(units) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(units, breaks) if len(part)]
