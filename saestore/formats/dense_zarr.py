"""Dense matrices as plain Zarr v3 groups, written chunk by chunk, that `xr.open_zarr` reads with their coordinates.

Every chunk is written, those of zeros too, and the fill value of the matrix is NaN: a chunk that is lost later does not
come back as zeros.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.formats.dense_source import LABEL_ROWS, DenseBlocks
from saestore.prefetch import together
from saestore.shards import encode
from saestore.storage import document_key, group_document

CHUNK_BYTES = 8 << 20
"""The most that a chunk of the matrix takes, before it is compressed."""

_CHUNK_UNITS = 4_096
# Most of a dense matrix is zeros, which higher levels do not make smaller.
_LEVEL = 1


def write_zarr(folder: Path, blocks: DenseBlocks, attributes: Mapping[str, Any]) -> None:
    """Write a group with `codes (row, unit)`, `l0 (row)` and the coordinates of rows and units.

    Parameters
    ----------
    folder : path
        Is made.
    blocks : DenseBlocks
    attributes : mapping
        JSON values, for the group.
    """
    source = blocks.source
    folder.mkdir(parents=True)
    first_labels = source.labels(0, 1)
    of_rows = [name for name in first_labels if name not in ("row", "l0")]
    named = {"coordinates": " ".join(of_rows)}
    width = min(len(source.units), _CHUNK_UNITS)
    height = min(blocks.step, 1 << ((CHUNK_BYTES // (width * source.dtype.itemsize)).bit_length() - 1))
    arrays = {
        "codes": _ChunkedArray(
            folder,
            "codes",
            source.dtype.name,
            (source.rows, len(source.units)),
            (height, width),
            ("row", "unit"),
            named,
        ),
        "unit": _ChunkedArray(folder, "unit", "int64", (len(source.units),), (len(source.units),), ("unit",)),
    }
    for name, column in first_labels.items():
        dtype = "string" if column.dtype == object else column.dtype.name
        shape, chunk = (source.rows,), (min(source.rows, LABEL_ROWS),)
        arrays[name] = _ChunkedArray(folder, name, dtype, shape, chunk, ("row",), named if name == "l0" else {})
    arrays["unit"].write((0,), source.units)
    for first, labels in source.label_blocks():
        for name, column in labels.items():
            arrays[name].write((first,), column)
    for first, values in blocks:
        arrays["codes"].write((first, 0), values)
    document = group_document(attributes)
    documents = {name: array.document for name, array in arrays.items()}
    for name, one in documents.items():
        _write_document(folder, name, one)
    document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": documents}
    _write_document(folder, "", document)


class _ChunkedArray:
    """An array of a group, whose chunks are encoded and written by several threads."""

    def __init__(
        self,
        group: Path,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        dimensions: tuple[str, ...],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self._chunks = group / name / "c"
        self._shape, self._chunk = shape, chunk
        is_string = dtype == "string"
        self._fill: Any = "" if is_string else np.nan if dtype.startswith("float") else 0
        self._dtype = np.dtype(object if is_string else dtype)
        first = {"name": "vlen-utf8"} if is_string else {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}}
        self.document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if dtype.startswith("float") else False if dtype == "bool" else self._fill,
            "codecs": [first, zstd, {"name": "crc32c"}],
            "attributes": dict(attributes or {}),
            "dimension_names": list(dimensions),
        }

    def write(self, place: tuple[int, ...], content: NDArray[Any]) -> None:
        """Write content at a place; it begins with a chunk, and ends with one or with the array."""
        starts = [range(0, size, step) for size, step in zip(content.shape, self._chunk, strict=True)]
        corners = list(itertools.product(*starts))
        for row in starts[0]:
            self._path(place, (row, *(0 for _ in place[1:]))).parent.mkdir(parents=True, exist_ok=True)
        together(lambda corner: self._write_chunk(place, corner, content), corners)

    def _write_chunk(self, place: tuple[int, ...], corner: tuple[int, ...], content: NDArray[Any]) -> None:
        sides = tuple(slice(start, start + size) for start, size in zip(corner, self._chunk, strict=True))
        part = content[sides]
        if part.shape != self._chunk:  # at the end of the array; a chunk is always whole
            whole = np.full(self._chunk, self._fill, dtype=self._dtype)
            whole[tuple(slice(size) for size in part.shape)] = part
            part = whole
        chunk = np.ascontiguousarray(part, dtype=self._dtype)
        self._path(place, corner).write_bytes(encode(chunk, self.document["codecs"]))

    def _path(self, place: tuple[int, ...], corner: tuple[int, ...]) -> Path:
        numbers = [(low + at) // size for low, at, size in zip(place, corner, self._chunk, strict=True)]
        return self._chunks.joinpath(*map(str, numbers))


def _write_document(folder: Path, name: str, document: Mapping[str, Any]) -> None:
    (folder / document_key(name)).write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False))
