"""Row groups of the parts of a dataset, read as one: what is appended lies beside what was there.

Nothing that is stored changes when a dataset grows (docs/format.md, section 3.4): the samples that are added are a part
of their own, with its own positions, activations, codes and postings. Here they become one axis again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.layout import POSITION_TYPES, ActivationsKey, parts_path, samples_path
from saestore.prefetch import Content, Piece, ReadingPool, together
from saestore.rows import ArraySpec, Grid, RowGroup, as_ranges, shortened
from saestore.storage import Storage, read_document


@dataclass(frozen=True)
class Absent:
    """A part of which nothing is stored yet, but for the number of its rows."""

    path: str
    rows: int


class RowParts:
    """Row groups one after the other, with the reading methods of one; writers use the parts themselves.

    Rows are counted over all parts. Where a second axis is narrower in some part (codes that keep all active units)
    it is filled up with zeros, which in codes are empty slots. The grid has the sizes of the first part's shards and
    chunks, but parts begin where they begin.

    Raises
    ------
    IntegrityError
        The parts hold different things.
    """

    def __init__(self, parts: Sequence[RowGroup | Absent]) -> None:
        first = parts[0]
        assert isinstance(first, RowGroup)
        self.parts = tuple(parts)
        self.storage, self.path, self.array_names = first.storage, first.path, first.array_names
        sizes = [part.grid.rows if isinstance(part, RowGroup) else part.rows for part in parts]
        self.edges = np.append(0, np.cumsum(sizes))
        """First row of each part, and the number of all."""
        self.grid = Grid(int(self.edges[-1]), first.grid.shard_rows, first.grid.chunk_rows)
        for part in self._present:
            _check_alike(first, part)
        identity = first.attributes["identity"]
        self.attributes: dict[str, Any] = {**first.attributes, "run": self._together(lambda part: part["run"])}
        if not all(part.attributes.get("l0_exact", True) for part in self._present):
            self.attributes["l0_exact"] = False
        if "digest" in identity:
            digest = self._together(lambda part: part["identity"]["digest"], length=64)
            self.attributes["identity"] = {**identity, "digest": digest}

    def __reduce__(self) -> tuple[Any, ...]:
        return RowParts, (self.parts,)

    def __repr__(self) -> str:
        return f"<RowParts {self.path}: {self.grid.rows} rows in {len(self.parts)} parts>"

    @property
    def _present(self) -> list[RowGroup]:
        return [part for part in self.parts if isinstance(part, RowGroup)]

    def _together(self, name_of: Callable[[dict[str, Any]], str], length: int = 16) -> str:
        """Return the hash of what names each part."""
        names = [name_of(part.attributes) if isinstance(part, RowGroup) else "" for part in self.parts]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:length]

    # ---------------------------------------------------------------- ledger

    def written_ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where written rows begin and end; see `RowGroup.written_ranges`."""
        nothing = np.empty(0, np.int64), np.empty(0, np.int64)
        found = together(lambda part: part.written_ranges() if isinstance(part, RowGroup) else nothing, self.parts)
        starts, stops = (
            np.concatenate([ranges[side] + edge for ranges, edge in zip(found, self.edges[:-1], strict=True)])
            for side in (0, 1)
        )
        # A part that begins where the one before ends goes on with its range.
        joins = starts[1:] == stops[:-1]
        return starts[np.append(True, ~joins)[: starts.size]], stops[np.append(~joins, True)[: stops.size]]

    @property
    def is_complete(self) -> bool:
        """Whether every row is written."""
        return self.written_rows() == self.grid.rows

    def written_rows(self) -> int:
        """Return the number of rows that are written."""
        return sum(of_parts(lambda part: part.written_rows(), self._present))

    def stored_bytes(self) -> int:
        """Return the bytes of all that is written, by the ledgers."""
        return sum(of_parts(lambda part: part.stored_bytes(), self._present))

    def flagged(self, name: str) -> int:
        """Return the total of the writers' counts for one array."""
        return sum(of_parts(lambda part: part.flagged(name), self._present))

    def content_hash(self) -> str:
        """Return a hash of everything stored (HoleError where some rows were never written)."""
        self.check_present(0, self.grid.rows)
        return hashlib.sha256(repr(of_parts(lambda part: part.content_hash(), self._present)).encode()).hexdigest()

    def check_parts(self) -> None:
        """Refuse an axis that has a part of which nothing is written (HoleError)."""
        for number in range(len(self.parts)):
            self._part(number)

    def check_present(self, start: int, stop: int) -> None:
        """Refuse rows that were never written (HoleError); see `RowGroup.check_present`."""
        self.check_ranges(np.array([start]), np.array([stop]))

    def check_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Refuse ranges of rows that were never written (HoleError)."""
        for number, begins, ends in self._by_part(starts, stops):
            self._part(number).check_ranges(begins, ends)

    # --------------------------------------------------------------- reading

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype that an array is stored in."""
        return self._present[0].dtype(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read consecutive rows of one array; see `RowGroup.read`."""
        stop = self.grid.rows if stop is None else stop
        if not 0 <= start <= stop <= self.grid.rows:
            raise InputError(f"rows {start}:{stop} of {self.path} do not exist; it has {self.grid.rows} rows")
        wanted = [
            (self._part(number), max(start, low) - low, min(stop, high) - low)
            for number, (low, high) in enumerate(itertools.pairwise(self.edges.tolist()))
            if max(start, low) < min(stop, high)
        ]
        return self._concatenated(name, of_parts(lambda one: one[0].read(name, one[1], one[2]), wanted))

    def take(self, name: str, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Read chosen rows of one array, in the order given; see `RowGroup.take`."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size == 0:
            return self.read(name, 0, 0)
        outside = (rows < 0) | (rows >= self.grid.rows)
        if outside.any():
            raise InputError(f"{self.path} has {self.grid.rows} rows; number {rows[outside][0]} was asked for")
        starts, stops, inverse = as_ranges(rows)
        return self.read_ranges(name, starts, stops)[inverse]

    def read_ranges(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[Any]:
        """Read the rows of several ranges, ascending and disjoint; see `RowGroup.read_ranges`."""
        wanted = [(self._part(number), begins, ends) for number, begins, ends in self._by_part(starts, stops)]
        return self._concatenated(name, of_parts(lambda one: one[0].read_ranges(name, one[1], one[2]), wanted))

    def _concatenated(self, name: str, blocks: list[NDArray[Any]]) -> NDArray[Any]:
        width = max(part.width(name) for part in self._present)
        same = [_widened(block, width) for block in blocks or [self._present[0].read(name, 0, 0)]]
        return same[0] if len(same) == 1 else np.concatenate(same)

    def _by_part(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Cut ranges where parts begin: the number of each part that has some, and its ranges in its own count."""
        found = []
        for number, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            begins, ends = np.maximum(starts, low), np.minimum(stops, high)
            held = ends > begins
            if held.any():
                found.append((number, begins[held] - low, ends[held] - low))
        return found

    def _part(self, number: int) -> RowGroup:
        part = self.parts[number]
        if isinstance(part, RowGroup):
            return part
        low, high = self.edges[number], self.edges[number + 1]
        raise HoleError(
            f"rows {low} to {high - 1} of {self.path} were never written: nothing is at {part.path}; "
            "run the command that wrote the others again, it adds what is missing"
        )


Stored = RowGroup | RowParts
"""What readers read."""

# Its own threads: whoever reads rows may itself be one of those of `together`, which would wait for each other.
_pool = ReadingPool(8)


def of_parts(read: Callable[[Piece], Content], parts: Sequence[Piece]) -> list[Content]:
    """Return what `read` gives for each part, asked for at once; it must not call this function itself."""
    return [read(part) for part in parts] if len(parts) < 2 else _pool.map(read, parts)


def n_parts(storage: Storage, dataset: str) -> int:
    """Return the number of parts of a dataset, those that are being written included; 1 where nothing was appended."""
    there = set(storage.names(parts_path(dataset)))
    count = 1
    while str(count) in there:
        count += 1
    return count


def open_on_axis(storage: Storage, source: ActivationsKey, path_of: Callable[[int], str]) -> Stored:
    """Open row groups that lie on the row axis of activations.

    Parameters
    ----------
    source : ActivationsKey
    path_of : callable
        The path of the group for each part.

    Raises
    ------
    MissingError
        There is nothing at the first path.
    IntegrityError
        The parts hold different things, or are damaged.
    """
    paths = [path_of(part) for part in range(n_parts(storage, source.dataset))]
    first, *others = together(lambda path: read_document(storage, path), paths)
    if first is None:
        return RowGroup.open(storage, paths[0])  # which says so
    groups: list[RowGroup | Absent] = [RowGroup.from_document(storage, paths[0], first)]
    for part, document in enumerate(others, start=1):
        if document is not None:
            groups.append(RowGroup.from_document(storage, paths[part], document))
            continue
        rows = _axis_rows(storage, source.at(part))
        if rows is None:  # neither this part nor what follows is on the axis yet
            break
        groups.append(Absent(paths[part], rows))
    return _joined(groups)


def _axis_rows(storage: Storage, source: ActivationsKey) -> int | None:
    """Return the rows of one part of an axis; None where it is not complete."""
    by_position = source.sample_type in POSITION_TYPES
    path = source.model_key.positions_path if by_position else samples_path(source.dataset, source.part)
    try:
        axis = RowGroup.open(storage, path)
    except MissingError:
        return None
    return axis.grid.rows if axis.is_complete else None


def open_axis(storage: Storage, paths: Sequence[str]) -> Stored:
    """Open the row groups that are an axis, one path for each part: those up to the first that is not complete.

    Raises
    ------
    MissingError
        There is nothing at the first path.
    """

    def opened(path: str) -> RowGroup | None:
        try:
            group = RowGroup.open(storage, path)
        except MissingError:
            if path == paths[0]:
                raise
            return None
        return group if path == paths[0] or group.is_complete else None

    groups = together(opened, paths)
    return _joined(groups[: groups.index(None) if None in groups else len(groups)])


def check_appended(
    storage: Storage, path: str, attributes: Mapping[str, Any], arrays: Sequence[ArraySpec] | None = None
) -> None:
    """Refuse what is to be appended to a row group and is made differently (ConflictError); nothing is written.

    What readers would refuse of the parts together is refused here, before it is written. MissingError where there is
    nothing to append to.
    """
    try:
        group = RowGroup.open(storage, path)
    except MissingError:
        raise MissingError(
            f"there is nothing at {path} in {storage.url} to append to; import the rows of the first part there first"
        ) from None
    pairs = {name: (group.attributes.get(name), value) for name, value in attributes.items()}
    if arrays is not None:
        pairs["arrays"] = (list(group.array_names), [array.name for array in arrays])
        for array in arrays:
            if array.name in group.array_names:
                given = np.dtype(object if array.dtype == "string" else array.dtype)
                pairs[f"type of {array.name}"] = (_type_name(group.dtype(array.name)), _type_name(given))
    for name, (stored, value) in pairs.items():
        if stored != value:
            raise ConflictError(
                f"{path} has {name.replace('_', ' ')} {shortened(repr(stored))} and what is to be appended "
                f"{shortened(repr(value))}; make both alike, or store it as another dataset"
            )


def parts_of(stored: Stored) -> tuple[RowGroup | Absent, ...]:
    """Return the parts of what is read."""
    return stored.parts if isinstance(stored, RowParts) else (stored,)


def _joined(groups: Sequence[RowGroup | Absent | None]) -> Stored:
    parts = [group for group in groups if group is not None]
    first = parts[0]
    return RowParts(parts) if len(parts) > 1 or not isinstance(first, RowGroup) else first


def _type_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.hasobject else dtype.name


def _widened(block: NDArray[Any], width: int) -> NDArray[Any]:
    if block.ndim == 1 or block.shape[1] == width:
        return block
    out = np.zeros((len(block), width), dtype=block.dtype)
    out[:, : block.shape[1]] = block
    return out


_ALIKE = ("kind", "content", "columns", "concept_names", "d_in", "d_sae", "dtype", "signed", "sample_type", "model_id")


def _check_alike(first: RowGroup, part: RowGroup) -> None:
    differing = [name for name in _ALIKE if first.attributes.get(name) != part.attributes.get(name)]
    stored = [
        name for name in first.array_names if name not in part.array_names or first.dtype(name) != part.dtype(name)
    ]
    if differing or stored or first.array_names != part.array_names:
        what = ", ".join([*differing, *stored]) or "arrays"
        raise IntegrityError(
            f"{part.path} was appended to {first.path} and is made differently ({what}); "
            f"delete {part.path} and append it anew"
        )
