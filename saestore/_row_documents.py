"""The Zarr documents of a row group's arrays: making them from a plan, and checking those that are read.

They are made by zarr itself, on an empty store in memory, so that they are what any Zarr v3 reader knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.layout import LEDGER, is_path_part
from saestore.shards import encode

LEDGER_FIELDS = ("crc32c", "bytes", "flagged", "run")

Codec = Literal["bitshuffle", "shuffle", "zstd", "none"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a row group.

    Parameters
    ----------
    name : str
        Name of the array in the group.
    dtype : str
        Zarr data type: a numpy name such as `float16`, or `string`.
    width : int, optional
        Length of the second axis; None for a 1-D array.
    width_axis : str
        Dimension name of the second axis.
    codec : {"bitshuffle", "shuffle", "zstd", "none"}
        Blosc zstd behind that shuffle, plain zstd, or raw bytes. crc32c always comes last.
    level : int
        Compression level.
    attributes : mapping
        Attributes of the array.
    """

    name: str
    dtype: str
    width: int | None = None
    width_axis: str = "slot"
    codec: Codec = "bitshuffle"
    level: int = 3
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape_tail(self) -> tuple[int, ...]:
        """Shape of one row."""
        return () if self.width is None else (self.width,)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before compression; strings count as 64."""
        item = 64 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return item * (self.width or 1)


@dataclass(frozen=True)
class Grid:
    """How an axis is cut into shards, the unit of writing, and chunks, the unit of reading."""

    rows: int
    shard_rows: int
    chunk_rows: int

    @classmethod
    def plan(cls, rows: int, *, shard_rows: int, chunk_rows: int) -> Grid:
        """Fit the wished sizes to the axis: a short axis gets one short shard, and shards hold whole chunks."""
        if rows <= 0:
            raise InputError(f"there are {rows} rows to store; at least one is needed")
        if min(shard_rows, chunk_rows) <= 0:
            raise InputError(f"shards of {shard_rows} rows in chunks of {chunk_rows} cannot be; give at least one row")
        chunk = min(chunk_rows, rows, shard_rows)
        shard = min(shard_rows, -(-rows // chunk) * chunk)
        return cls(rows, max(1, shard // chunk) * chunk, chunk)

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> slice:
        """Return the rows of one shard."""
        start = index * self.shard_rows
        return slice(start, min(start + self.shard_rows, self.rows))

    def shards(self, start: int, stop: int) -> range:
        """Return the shards that hold rows of `start:stop`."""
        return range(start // self.shard_rows, -(-stop // self.shard_rows)) if stop > start else range(0)


def _codecs(codec: Codec, level: int) -> dict[str, Any]:
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if codec == "none":
        return {"compressors": (Crc32cCodec(),)}
    if codec == "zstd":
        return {"compressors": (ZstdCodec(level=level), Crc32cCodec())}
    return {"compressors": (BloscCodec(cname="zstd", clevel=level, shuffle=codec), Crc32cCodec())}


def array_document(spec: ArraySpec, axis: str, grid: Grid) -> dict[str, Any]:
    """Return the document of a sharded array along the axis."""
    dimensions = (axis,) if spec.width is None else (axis, spec.width_axis)
    text = _array_text(grid, spec.shape_tail, dimensions, spec.dtype, spec.codec, spec.level)
    document: dict[str, Any] = json.loads(text)
    document["attributes"] = dict(spec.attributes)
    return document


@lru_cache(maxsize=256)  # zarr takes milliseconds for each, and groups of one kind are alike
def _array_text(
    grid: Grid, tail: tuple[int, ...], dimensions: tuple[str, ...], dtype: str, codec: Codec, level: int
) -> str:
    import zarr
    from zarr.storage import MemoryStore

    store = MemoryStore()
    zarr.create_array(
        store,
        shape=(grid.rows, *tail),
        chunks=(grid.chunk_rows, *tail),
        shards={"shape": (grid.shard_rows, *tail), "index_location": "start"},  # type: ignore[arg-type]
        dtype=dtype,
        fill_value="" if dtype == "string" else 0,
        dimension_names=dimensions,
        attributes={},
        zarr_format=3,
        **_codecs(codec, level),
    )
    return json.dumps(_document_of(store))


def ledger_document(n_shards: int, n_arrays: int, run: str) -> dict[str, Any]:
    """Return the ledger's document; it names the run that the group belongs to."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    store = MemoryStore()
    zarr.create_array(
        store,
        shape=(n_shards, n_arrays, len(LEDGER_FIELDS)),
        chunks=(1, n_arrays, len(LEDGER_FIELDS)),
        dtype="uint64",
        fill_value=0,
        compressors=(Crc32cCodec(),),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("shard", "array", "ledger_field"),
        attributes={"fields": list(LEDGER_FIELDS), "run": run},
        zarr_format=3,
    )
    return _document_of(store)


def whole_array(content: NDArray[Any], dimensions: tuple[str, ...]) -> tuple[dict[str, Any], bytes]:
    """Return the document and the one object of a small array off the axis."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    store = MemoryStore()
    zarr.create_array(
        store,
        shape=content.shape,
        chunks=content.shape,
        dtype=content.dtype,
        fill_value=0,
        compressors=(ZstdCodec(level=3), Crc32cCodec()),
        dimension_names=dimensions,
        zarr_format=3,
    )
    document = _document_of(store)
    return document, encode(content, document["codecs"])


def _document_of(store: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(store._store_dict["zarr.json"].to_bytes())
    return document


def check_consistent(grid: Grid, names: Sequence[str], documents: Mapping[str, Any]) -> None:
    """Raise ValueError where attributes are not those of a row group: they may be anybody's."""
    sizes = (grid.rows, grid.shard_rows, grid.chunk_rows)
    if not all(type(size) is int and size > 0 for size in sizes) or grid.shard_rows % grid.chunk_rows:
        raise ValueError(f"grid {sizes}")
    if not names or len({*names, LEDGER}) != len(names) + 1 or not all(map(is_path_part, names)):
        raise ValueError(f"arrays {list(names)!r}")
    for name in names:
        document = documents[name]
        tail = tuple(document["shape"][1:])
        sharding = document["codecs"][0]
        cut = document["chunk_grid"]["configuration"]["chunk_shape"], sharding["configuration"]["chunk_shape"]
        if (
            len(document["codecs"]) != 1
            or sharding["name"] != "sharding_indexed"
            or sharding["configuration"]["index_location"] != "start"
            or document["shape"][0] != grid.rows
            or [tuple(shape) for shape in cut] != [(grid.shard_rows, *tail), (grid.chunk_rows, *tail)]
        ):
            raise ValueError(f"array {name} is not cut as the grid says")
