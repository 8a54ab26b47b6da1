"""Codes and labels in the files of the sparse-probing benchmark: sparse COO matrices and vectors that torch.save wrote.

A matrix of codes has a row for each text and a column for each unit; its numbers are in order of the rows, and in a row
of the units, as `Tensor.to_sparse` makes them. A vector of labels is dense or sparse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, IntegrityError
from saestore.formats import pt
from saestore.formats.regions import Region
from saestore.formats.sources import check_range

_BLOCK = 1 << 18  # numbers that are looked at together, 5 MiB as they are stored
_MAX_LABELS = 1 << 24


@dataclass(frozen=True, eq=False)
class CooCodes:
    """Codes in a file, row by row; holds one number for each row. Reads from any thread; can be pickled.

    path : Path
    d_sae : units
    indices, values : (2, n) int64 and (n,) float32 in the file
    first : (n_rows + 1,) int64, the place of each row's first number, and the number of all
    active : (n_rows,) int64, units of each row that are not 0
    """

    path: Path
    d_sae: int
    indices: Region
    values: Region
    first: NDArray[np.int64]
    active: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows of the matrix."""
        return len(self.active)

    def read(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield units (ascending) and values of rows, in the order given, without values of 0.

        Raises
        ------
        IntegrityError
            The file was changed or cut since it was opened.
        """
        for row in rows.tolist():
            check_range(row, row + 1, self.n_rows)
        self.values.file.check()
        with self.path.open("rb", buffering=0) as stream:
            for row in rows.tolist():
                start, stop = int(self.first[row]), int(self.first[row + 1])
                values = _span(stream, self.values, (start, stop)).astype(np.float32, copy=False)
                units = _span(stream, self.indices, (start, stop), line=1).astype(np.int64, copy=False)
                yield units[values != 0], values[values != 0]


def open_coo(path: Path) -> CooCodes:
    """Open a sparse matrix of codes. All of its numbers are looked at once, a block at a time.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        It holds something else, or Python objects, which are never read; its numbers are not in order; or one is NaN,
        infinite, negative, or of a unit that there is not.
    IntegrityError
        It is damaged or cut short.
    """
    content = pt.open_pt(path)
    found = content.sparse.get("")
    if found is None:
        held = [f"{name or 'a tensor'} of shape {region.shape}" for name, region in content.tensors.items()]
        held += [f"{name} {what}".strip() for name, what in content.unreadable.items()] or list(content.plain)
        raise InputError(f"{path} holds {', '.join(held[:3]) or 'no tensor'}; expected one sparse COO matrix of codes")
    if len(found.shape) != 2 or found.values.dtype != "float32" or found.indices.dtype != "int64":
        raise InputError(
            f"{path} holds a sparse tensor of shape {found.shape} and type {found.values.dtype}; expected codes, "
            "(rows, units) float32"
        )
    n_rows, d_sae = found.shape
    if not 0 < d_sae <= 1 << 32 or n_rows == 0:
        raise InputError(f"{path} is a matrix of {n_rows:,} rows and {d_sae:,} units; expected some of either")
    counts, active = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    last = -1
    n = found.values.shape[0]
    with path.open("rb", buffering=0) as stream:
        for start in range(0, n, _BLOCK):
            span = (start, min(start + _BLOCK, n))
            rows = _span(stream, found.indices, span)
            units = _span(stream, found.indices, span, line=1)
            values = _span(stream, found.values, span)
            _check(path, rows, units, values, found.shape)
            places = rows * d_sae + units
            if places[0] <= last or (np.diff(places) <= 0).any():
                raise InputError(f"{path}: its numbers are not in order, or one is there twice; save tensor.coalesce()")
            last = int(places[-1])
            counts += np.bincount(rows, minlength=n_rows)
            active += np.bincount(rows[values != 0], minlength=n_rows)
    first = np.concatenate([[0], np.cumsum(counts)])
    return CooCodes(path, d_sae, found.indices, found.values, first, active)


def _check(path: Path, rows: NDArray[Any], units: NDArray[Any], values: NDArray[Any], shape: tuple[int, ...]) -> None:
    for bad, what in (
        ((rows < 0) | (rows >= shape[0]), f"a row outside 0 to {shape[0] - 1}"),
        ((units < 0) | (units >= shape[1]), f"a unit outside 0 to {shape[1] - 1}"),
        (np.isnan(values), "NaN"),
        (np.isinf(values), "an infinite value"),
        (values < 0, "a negative value"),
    ):
        if bad.any():
            raise InputError(f"{path}: row {rows[int(np.argmax(bad))]} holds {what}; make the file again")


def read_labels(path: Path) -> NDArray[np.float64]:
    """Read a vector of labels, dense or sparse, of any type of numbers: (n,) float64.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        It holds something else, or Python objects, which are never read.
    IntegrityError
        It is damaged or cut short.
    """
    content = pt.open_pt(path)
    dense, sparse = content.tensors.get(""), content.sparse.get("")
    shape = dense.shape if dense is not None else sparse.shape if sparse is not None else ()
    stored = dense if dense is not None else sparse.values if sparse is not None else None
    if stored is None or len(shape) != 1 or stored.dtype == "bfloat16" or shape[0] > _MAX_LABELS:
        raise InputError(f"{path} holds no vector of labels; expected one tensor of shape (n,)")
    with path.open("rb", buffering=0) as stream:
        if sparse is None:
            return _span(stream, stored, (0, shape[0])).astype(np.float64)
        out = np.zeros(shape[0], np.float64)
        everything = (0, stored.shape[0])
        places = _span(stream, sparse.indices, everything)
        if ((places < 0) | (places >= len(out))).any():
            raise IntegrityError(f"{path}: a label is beyond the {len(out):,} there are; make the file again")
        np.add.at(out, places, _span(stream, stored, everything).astype(np.float64))
        return out


def _span(stream: FileIO, region: Region, span: tuple[int, int], *, line: int = 0) -> NDArray[Any]:
    """Read elements of a vector, or of one line of a matrix, whatever its strides."""
    step = region.strides[-1]
    first = span[0] * step + (line * region.strides[0] if len(region.shape) > 1 else 0)
    count = (span[1] - span[0] - 1) * step + 1 if span[1] > span[0] else 0
    dtype = np.dtype(region.storage)
    stream.seek(region.offset + first * dtype.itemsize)
    wanted = count * dtype.itemsize
    content = bytearray()
    while len(content) < wanted:
        got = stream.read(wanted - len(content))  # the system may give less than was asked for
        if not got:
            raise IntegrityError(f"{region.file.path} is cut short; copy it again")
        content += got
    found: NDArray[Any] = np.frombuffer(content, dtype)[:: max(1, step)]
    return found
