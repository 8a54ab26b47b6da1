"""Read safetensors files: the JSON header says where each tensor lies, the rows are read from there.

References
----------
https://huggingface.co/docs/safetensors: 8 bytes little-endian header length, JSON header, tensors in row-major order.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from saestore.errors import IntegrityError
from saestore.formats.regions import FileStamp, Region

_TYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "|i1"),
    "U64": ("uint64", "<u8"),
    "U32": ("uint32", "<u4"),
    "U16": ("uint16", "<u2"),
    "U8": ("uint8", "|u1"),
    "BOOL": ("bool", "|b1"),
}
# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000


def open_safetensors(path: Path) -> dict[str, Region]:
    """Find the tensors of a safetensors file by name; reads its header only. Types unknown to numpy are left out.

    Raises
    ------
    IntegrityError
        The header is damaged, or the file is shorter than its header says.
    """
    stamp = FileStamp.of(path)
    with path.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if n_header > min(MAX_HEADER_BYTES, stamp.n_bytes - 8):
            raise IntegrityError(
                f"{path} is not a whole safetensors file (its header is longer than the file); copy it again"
            )
        text = stream.read(n_header)
    try:
        header = json.loads(text)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        return {name: _region(stamp, 8 + n_header, entry, name) for name, entry in entries if entry["dtype"] in _TYPES}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{path} has a damaged safetensors header; copy or download it again") from None


def _region(stamp: FileStamp, data_start: int, entry: dict[str, Any], name: str) -> Region:
    dtype, storage = _TYPES[str(entry["dtype"])]
    shape = tuple(int(size) for size in entry["shape"])
    first, end = (int(edge) for edge in entry["data_offsets"])
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    region = Region(file=stamp, offset=data_start + first, dtype=dtype, storage=storage, shape=shape, strides=strides)
    if first < 0 or end - first != math.prod(shape) * region.itemsize:
        raise IntegrityError(
            f"{stamp.path}: the header gives {name!r} {end - first} bytes for shape {shape}; copy it again"
        )
    return region
