"""Dense matrices as NumPy files, written block by block: `.npy`, and `.npz` with rows, units and l0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from saestore.formats.dense_source import LABEL_ROWS, DenseBlocks
from saestore.formats.zip_members import write_member


def write_npy(path: Path, blocks: DenseBlocks) -> None:
    """Write a `.npy` file: the header, then the blocks."""
    source = blocks.source
    with path.open("wb") as file:
        file.write(_header(source.dtype, (source.rows, len(source.units))))
        for _, values in blocks:
            file.write(values.data)


def write_npz(path: Path, blocks: DenseBlocks) -> None:
    """Write a `.npz` file as `numpy.savez` does: `codes (n, m)`, `units (m,)`, `rows (n,)` and `l0 (n,)`."""
    source, n = blocks.source, blocks.source.rows
    parts = [(first, min(first + LABEL_ROWS, n)) for first in range(0, n, LABEL_ROWS)]
    with ZipFile(path, "w") as archive:
        _member(archive, "codes", source.dtype, (n, len(source.units)), (values for _, values in blocks))
        _member(archive, "units", np.dtype("<i8"), (len(source.units),), [source.units])
        _member(archive, "rows", np.dtype("<i8"), (n,), (source.numbers(*part) for part in parts))
        _member(archive, "l0", np.dtype("<u4"), (n,), (source.l0(*part) for part in parts))


def _member(
    archive: ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[NDArray[Any]]
) -> None:
    header = _header(dtype, shape)

    def content() -> Iterator[bytes | NDArray[Any]]:
        yield header
        for part in parts:
            yield np.ascontiguousarray(part, dtype=dtype)

    n_bytes = len(header) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    write_member(archive, f"{name}.npy", content(), n_bytes)


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = BytesIO()
    npy_format.write_array_header_1_0(
        header, {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
