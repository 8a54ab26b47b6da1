"""Stored rows as lazy xarray variables: what is indexed is read and densified, and nothing dense is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from saestore.activations import Activations
from saestore.budget import parse_memory, require_memory
from saestore.code_rows import Holes, row_blocks
from saestore.codes import Codes
from saestore.engine.arrays import Places, as_places, count
from saestore.parts import Stored
from saestore.tables import Positions, Samples

Reader = Callable[[Places, Places], NDArray[Any]]

_COPY_BYTES = 32 << 20


class LazyRows(BackendArray):
    """A reader of rows and columns as an array that xarray indexes before it reads; pickles by name."""

    def __init__(self, reader: Reader, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._reader = reader
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)
        # The adapter would read rows in ascending order and then copy the dense block into the order asked for.
        return self._read(key.tuple)

    def _read(self, key: tuple[Any, ...]) -> Any:
        places = [as_places(part, length) for part, length in zip(key, self.shape, strict=True)]
        block = self._reader(places[0], places[1] if len(places) > 1 else slice(0, 0))
        return block[tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in key)]


class _UncachedVariable(xr.Variable):
    """A variable that is read anew at each use.

    Without `chunks` xarray puts every opened variable behind a cache that would keep dense blocks in memory for as
    long as the dataset lives.
    """

    __slots__ = ()

    @property
    def data(self) -> Any:
        return super().data

    @data.setter
    def data(self, data: Any) -> None:
        inner = data.array if isinstance(data, indexing.MemoryCachedArray) else data
        xr.Variable.data.fset(self, inner)  # type: ignore[attr-defined]


def lazy_variable(
    dims: tuple[str, ...], lazy: LazyRows, chunks: Mapping[str, int | None], *, uncached: bool = False
) -> xr.Variable:
    """Return a variable that is read when it is used, with the chunks it is best read by."""
    kind = _UncachedVariable if uncached else xr.Variable
    return kind(dims, indexing.LazilyIndexedArray(lazy), encoding={"preferred_chunks": dict(chunks)})


@dataclass(frozen=True)
class DenseCodes:
    """The dense matrix that codes stand for, or chosen columns of it."""

    codes: Codes
    units: NDArray[np.int64] | None  # None for all, or all of the view
    memory: str | int | None
    holes: Holes

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        units = self.codes.kept_units if self.units is None else self.units
        _require(count(rows), count(columns), self.memory, "units", "units=[...] when opening, ")
        everything = self.units is None and isinstance(columns, slice) and count(columns) == units.size
        return self.codes.dense(rows, None if everything else units[columns], memory=self.memory, holes=self.holes)


@dataclass(frozen=True)
class ActiveUnits:
    """The number of filled slots of each row that a view keeps."""

    codes: Codes
    holes: Holes

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        out = (
            np.full(count(rows), np.nan, dtype=np.float32) if self.holes == "nan" else np.empty(count(rows), np.uint32)
        )
        group = self.codes.group
        for target, part in row_blocks(group, rows, max(1, _COPY_BYTES // (8 * self.codes.k)), self.holes):
            out[target] = self.codes.rows(part).l0
        return out


@dataclass(frozen=True)
class DenseActivations:
    """Activations as float32."""

    activations: Activations
    memory: str | int | None
    holes: Holes

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        _require(count(rows), count(columns), self.memory, "dimensions", ".isel(d_in=...), ")
        out = np.full((count(rows), count(columns)), np.nan, dtype=np.float32)
        group = self.activations.group
        step = max(1, _COPY_BYTES // (self.activations.d_in * 4) // group.grid.chunk_rows) * group.grid.chunk_rows
        for target, part in row_blocks(group, rows, step, self.holes):
            if isinstance(part, slice):
                out[target] = self.activations.read(part.start, part.stop)[:, columns]
            else:
                out[target] = self.activations.take(part)[:, columns]
        return out


@dataclass(frozen=True)
class Column:
    """A stored array along the rows of its own group."""

    group: Stored
    name: str
    holes: Holes = "error"

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        if self.holes == "nan":
            out = np.full(count(rows), np.nan, dtype=np.float32)
            for target, part in row_blocks(self.group, rows, self.group.grid.shard_rows, "nan"):
                out[target] = _stored(self.group, self.name, part)
            return out
        found = _stored(self.group, self.name, rows)
        return found if found.ndim == 1 else found[:, columns]


@dataclass(frozen=True)
class SampleColumn:
    """A column of the sample table, for the sample of each row."""

    samples: Samples
    positions: Positions | None
    name: str

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        if self.positions is None:
            return _stored(self.samples.group, self.name, rows)
        places, inverse = np.unique(self.positions.sample_of(_numbers(rows)), return_inverse=True)
        return self.samples.group.take(self.name, places)[inverse]


def row_numbers(rows: Places, columns: Places) -> NDArray[Any]:
    """Return the number of each row on the row axis."""
    return _numbers(rows)


@dataclass(frozen=True)
class PlaceInSample:
    """The place of each row in its sample."""

    positions: Positions

    def __call__(self, rows: Places, columns: Places) -> NDArray[Any]:
        numbers = _numbers(rows)
        return numbers - self.positions.offsets[self.positions.sample_of(numbers)]


def _require(rows: int, columns: int, memory: str | int | None, what: str, narrower: str) -> None:
    require_memory(
        rows * columns * 4,
        budget=parse_memory(memory),
        what=f"a dense block of {rows:,} rows x {columns:,} {what}",
        remedy=f"ask for less with {narrower}.isel(row=slice(...)), or open with chunks={{}} and reduce chunk by chunk",
    )


def _stored(group: Stored, name: str, rows: Places) -> NDArray[Any]:
    return group.read(name, rows.start, rows.stop) if isinstance(rows, slice) else group.take(name, rows)


def _numbers(rows: Places) -> NDArray[np.int64]:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
