"""Codes of rows as they are stored: the arrays of a group of codes, and blocks of rows that are read at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.parts import Stored
from saestore.rows import ArraySpec

Holes = Literal["error", "nan"]
Rows = int | slice | Sequence[int] | NDArray[np.integer[Any]]
"""A choice of rows by their places."""

CHUNK_ROWS = 2_048
"""Rows of a stored chunk, the unit of reading. 200 rows at random are read a third faster than from 8,192, and a
scan of all as fast."""

_DENSE_BYTES = 8 << 20  # larger blocks are given back to the system and faulted in again each time


@dataclass(frozen=True)
class CodeRows:
    """Codes of some rows, as stored: slots by (magnitude descending, unit ascending), empty at value 0.

    rows : (n,) int64
        The rows' places on the row axis.
    indices : (n, k) uint16 or uint32
        Original unit ids.
    values : (n, k) float32
    l0 : (n,) uint32
        True number of active units; more than k says that the row was truncated. Of codes whose group has the
        attribute `l0_exact` false (imported ones), the number of filled slots, which the true one is at least.
    """

    rows: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[np.float32]
    l0: NDArray[np.uint32]


def code_arrays(*, k: int, d_sae: int, dtype: str, state: Sequence[str] = ()) -> list[ArraySpec]:
    """Return the arrays of a group of codes; `state` names those that decoding needs of each row.

    The codecs are the smallest of those measured that any Zarr v3 reader knows (`docs/performance.md`): bitshuffle
    strips unused high bits of unit ids, and where all 16 bits are used bytes compress better than bits.
    """
    index = index_dtype(d_sae)
    all_bits = 2**15 < d_sae <= 2**16
    value = "uint16" if dtype == "bfloat16" else dtype
    return [
        ArraySpec("indices", str(index), k, codec="shuffle" if all_bits else "bitshuffle"),
        ArraySpec("values", value, k, codec="shuffle", level=6, attributes={"saestore_dtype": dtype}),
        ArraySpec("l0", "uint32"),
        *(ArraySpec(name, "float32", codec="shuffle") for name in state),
    ]


def index_dtype(d_sae: int) -> np.dtype[Any]:
    """Return the dtype of stored unit ids: uint16 up to 65,536 units, else uint32."""
    return np.dtype(np.uint16 if d_sae <= 2**16 else np.uint32)


def row_blocks(
    group: Stored, rows: slice | NDArray[np.int64], step: int, holes: Holes
) -> Iterator[tuple[slice | NDArray[np.int64], slice | NDArray[np.int64]]]:
    """Cut a choice of rows into blocks that are read one at a time.

    Parameters
    ----------
    group : RowGroup or RowParts
    rows : slice without step, or (n,) int64
        Rows that exist, in any order.
    step : int
        The most rows in a block.
    holes : {"error", "nan"}
        With `nan`, rows that were never written are in no block.

    Yields
    ------
    (places, rows)
        Places in the choice, and the rows there: both slices, or both arrays with the rows ascending.
    """
    starts, stops = group.written_ranges() if holes == "nan" else (np.array([0]), np.array([group.grid.rows]))
    if isinstance(rows, slice):
        for start, stop in zip(np.maximum(starts, rows.start), np.minimum(stops, rows.stop), strict=True):
            for first in range(start, stop, step):
                last = min(first + step, int(stop))
                yield slice(first - rows.start, last - rows.start), slice(first, last)
        return
    # Ascending, so that each stored chunk is read for one block, two at most.
    order = np.argsort(rows, kind="stable")
    if holes == "nan":
        ranges = np.searchsorted(starts, rows[order], side="right") - 1
        order = order[(ranges >= 0) & (rows[order] < stops[ranges])] if starts.size else order[:0]
    for first in range(0, order.size, step):
        places = order[first : first + step]
        yield places, rows[places]


def thin_blocks(block: CodeRows, width: int) -> Iterator[tuple[int, CodeRows]]:
    """Cut rows so that each part is small when dense, with its place: the dense copy must not double the memory."""
    step = max(1, _DENSE_BYTES // (4 * max(1, width)))
    for start in range(0, len(block.rows), step):
        part = slice(start, start + step)
        yield start, CodeRows(block.rows[part], block.indices[part], block.values[part], block.l0[part])


def joined_quality(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured of several parts of codes: means weighted by the rows, and the fewest dead units."""
    if len(parts) == 1:
        return dict(parts[0])
    rows = sum(part["rows"] for part in parts)

    def mean(name: str) -> float | None:
        known = [part[name] for part in parts]
        if any(value is None for value in known):
            return None
        return float(sum(part["rows"] * value for part, value in zip(parts, known, strict=True)) / rows)

    dead = [part["dead_units"] for part in parts if part["dead_units"] is not None]
    return {
        "rows": rows,
        "explained_variance": mean("explained_variance"),
        "l0": mean("l0"),
        "dead_units": min(dead) if dead else None,
    }


def integers(numbers: Any, what: str) -> NDArray[np.int64]:
    """Return row or unit numbers as int64, refusing masks and fractions (InputError)."""
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{what} of type {array.dtype} cannot be used; give numbers, for a mask: np.flatnonzero(mask)")
    return array.astype(np.int64)
