"""What a dense export reads: chosen rows and units of codes, in blocks of bounded bytes, and what the rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.code_rows import integers
from saestore.codes import Codes
from saestore.errors import InputError
from saestore.prefetch import prefetch
from saestore.progress import Progress
from saestore.rows import as_ranges

Places = slice | Sequence[int] | NDArray[np.integer[Any]]
DenseDtype = Literal["float32", "float16"]
DENSE_DTYPES: tuple[DenseDtype, ...] = ("float32", "float16")

LABEL_ROWS = 262_144
"""Rows whose labels are read at a time where they are written apart from the block."""

# The most that one block may take while it is made from the postings of its units.
_READING_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class DenseSource:
    """The matrix that is written: rows of codes in the order asked for, and a column per unit.

    Make one with `of`, which checks what was asked for.

    codes : Codes
        Of all rows or a selection, of all units or a view.
    places : slice of step 1, or (n,) int64
        Rows, counted among those of the codes.
    units : (m,) int64
        Original unit ids, in the order of the columns.
    dtype : dtype
        What values are written as.
    """

    codes: Codes
    places: slice | NDArray[np.int64]
    units: NDArray[np.int64]
    dtype: np.dtype[Any]

    @classmethod
    def of(
        cls,
        codes: Codes,
        places: Places = slice(None),
        units: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        dtype: str = "float32",
    ) -> DenseSource:
        """Choose rows and units; nothing but their existence is looked at.

        Raises
        ------
        InputError
            There are no such rows, no rows at all, a unit is named twice, or the type is unknown.
        MissingError
            A unit does not exist, or is not in the view.
        HoleError
            Some of the rows were never written.
        """
        chosen = chosen_places(codes, places)
        ids = codes.kept_units if units is None else np.atleast_1d(integers(units, "units"))
        codes.check_units(ids)
        found, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"unit {found[counts > 1][0]} is named twice, and a file has one column per unit; name each once"
            )
        source = cls(codes, chosen, ids, dense_dtype(dtype))
        if not source.rows or not len(ids):
            what = "units" if source.rows else "rows"
            raise InputError(f"no {what} were chosen of {codes!r}; leave {what} out to take all")
        source._check_present()
        return source

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.places.stop - self.places.start if isinstance(self.places, slice) else len(self.places)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the block."""
        return len(self.units) * self.dtype.itemsize

    def numbers(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the numbers on the row axis of rows `first:stop` of the matrix."""
        selection, part = self.codes.selection, self._part(first, stop)
        return selection.rows(part.start, part.stop) if isinstance(part, slice) else selection.rows_at(part)

    def block(self, first: int, stop: int) -> NDArray[Any]:
        """Return rows `first:stop` of the matrix, C-contiguous.

        Raises
        ------
        InputError
            A value does not fit the type.
        """
        units = None if np.array_equal(self.units, self.codes.kept_units) else self.units
        values = self.codes.dense(self._part(first, stop), units, memory=_reading_bytes(stop - first, len(self.units)))
        return fitted(values, self.dtype, lambda row: int(self.numbers(first + row, first + row + 1)[0]), self.units)

    def l0(self, first: int, stop: int) -> NDArray[np.uint32]:
        """Return the true number of active units of rows `first:stop`, of a view of those it keeps."""
        if self.codes.view_name is not None:
            return self.codes.rows(self._part(first, stop)).l0
        return self.codes.group.take("l0", self.numbers(first, stop))

    def labels(self, first: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return what rows `first:stop` of the matrix are, as columns.

        `row` int64, its number on the row axis; `sample`, its id, and `split`, str objects; where rows are positions
        `position` int32, the place in the sample, and `special`; `l0` uint32.
        """
        axis, rows = self.codes.axis, self.numbers(first, stop)
        samples, inverse = np.unique(axis.sample_of(rows), return_inverse=True)
        columns: dict[str, NDArray[Any]] = {"row": rows}
        columns["sample"], columns["split"] = (
            axis.samples.group.take(name, samples)[inverse] for name in ("id", "split")
        )
        if axis.positions is not None:
            columns["position"] = axis.place_in_sample(rows).astype(np.int32)
            if axis.positions.has("special"):
                columns["special"] = axis.special(rows)
        columns["l0"] = self.l0(first, stop)
        return columns

    def label_blocks(self) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield the labels of all rows in blocks, each with its first row."""
        for first in range(0, self.rows, LABEL_ROWS):
            yield first, self.labels(first, min(first + LABEL_ROWS, self.rows))

    def _part(self, first: int, stop: int) -> slice | NDArray[np.int64]:
        if isinstance(self.places, slice):
            return slice(self.places.start + first, self.places.start + stop)
        return self.places[first:stop]

    def _check_present(self) -> None:
        group = self.codes.group
        if isinstance(self.places, slice):
            if self.codes.is_selection:
                group.check_ranges(*self.codes.selection.ranges(self.places.start, self.places.stop))
            else:
                group.check_present(self.places.start, self.places.stop)
            return
        starts, stops, _ = as_ranges(self.numbers(0, self.rows))
        group.check_ranges(starts, stops)


@dataclass(frozen=True, eq=False)
class DenseBlocks:
    """The blocks of a matrix in order; while one is written, the next is read.

    source : DenseSource
    step : int
        Rows of a block, a power of two; the last block may have fewer.
    progress : Progress
        Counts rows that were written.
    """

    source: DenseSource
    step: int
    progress: Progress

    @classmethod
    def of(cls, source: DenseSource, block_bytes: int, progress: Progress) -> DenseBlocks:
        """Cut a matrix so that a block, as float32, takes so many bytes, or is one row."""
        fitting = max(1, block_bytes // (4 * len(source.units)))
        return cls(source, 1 << (fitting.bit_length() - 1), progress)

    def __len__(self) -> int:
        return -(-self.source.rows // self.step)

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the first row of each block, and its values."""
        rows = self.source.rows
        for first, values in prefetch(
            lambda first: self.source.block(first, min(first + self.step, rows)), range(0, rows, self.step)
        ):
            yield first, values
            self.progress.advance(len(values))


def chosen_places(codes: Codes, places: Places) -> slice | NDArray[np.int64]:
    """Return places among the rows of codes as a slice of step 1, or as numbers.

    Raises
    ------
    InputError
        A row does not exist, or they are no numbers.
    """
    n = codes.n_rows
    if isinstance(places, slice):
        start, stop, step = places.indices(n)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    numbers = np.atleast_1d(integers(places, "rows"))
    outside = (numbers < 0) | (numbers >= n)
    if outside.any():
        raise InputError(f"row {numbers[outside][0]} does not exist: {codes!r} has rows 0 to {n - 1}")
    return numbers


def dense_dtype(name: str) -> np.dtype[Any]:
    """Return a type that dense values can have (InputError)."""
    if name not in DENSE_DTYPES:
        raise InputError(f"dtype {name!r} is unknown; choose from {', '.join(DENSE_DTYPES)}")
    return np.dtype(name).newbyteorder("<")


def fitted(
    values: NDArray[np.float32], dtype: np.dtype[Any], row_of: Callable[[int], int], units: NDArray[Any]
) -> NDArray[Any]:
    """Return values as a type, rounded to nearest.

    Parameters
    ----------
    values : (n, m) float32
    dtype : dtype
    row_of : function
        Gives the number of a row for the message.
    units : (m,) int
        Original ids of the columns, for the message.

    Raises
    ------
    InputError
        A value does not fit; row, unit and value are named.
    """
    if dtype == np.float32:
        return values
    # Most values are zeros, and to convert the others alone takes less than half the time.
    active = np.flatnonzero(values != 0)
    with np.errstate(over="ignore"):
        converted = values.reshape(-1)[active].astype(dtype)
    finite = np.isfinite(converted)
    if not finite.all():
        row, column = divmod(int(active[~finite][0]), values.shape[1])
        raise InputError(
            f"the value {values[row, column]:g} of unit {units[column]} in row {row_of(row)} does not fit "
            f"{dtype.name}; ask for float32 (--dtype float32)"
        )
    rounded = np.zeros(values.shape, dtype=dtype)
    rounded.reshape(-1)[active] = converted
    return rounded


def _reading_bytes(rows: int, units: int) -> int:
    return max(_READING_BYTES, rows * units * 4)
