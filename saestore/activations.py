"""Stored activations of one layer: rows as float32, whatever dtype they are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.layout import ActivationsKey
from saestore.parts import Stored, open_on_axis
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.storage import Storage

ActivationDtype = Literal["float16", "bfloat16", "float32"]
ACTIVATION_DTYPES = ("float16", "bfloat16", "float32")
ARRAY = "activations"

_SHARD_BYTES = 64 << 20
_CHUNK_BYTES = 2 << 20
_CHUNK_ROWS = 1024


class Activations:
    """Activations of one layer and sample type, (n_rows, d_in)."""

    def __init__(self, group: Stored, key: ActivationsKey) -> None:
        self.group = group
        self.key = key
        self.n_rows = group.grid.rows
        self.d_in: int = group.attributes["d_in"]
        self.dtype: str = group.attributes["dtype"]

    def __repr__(self) -> str:
        return f"<Activations {self.key.path}: {self.n_rows} x {self.d_in} {self.dtype}>"

    @classmethod
    def open(cls, storage: Storage, key: ActivationsKey) -> Activations:
        """Open stored activations, over all parts of the dataset.

        Raises
        ------
        MissingError
            None are stored.
        """
        return cls(open_on_axis(storage, key, lambda part: key.at(part).path), key.at(0))

    @classmethod
    def open_part(cls, storage: Storage, key: ActivationsKey) -> Activations:
        """Open stored activations over one part of the dataset (MissingError where there are none)."""
        return cls(RowGroup.open(storage, key.path), key)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32, (n, d_in).

        Raises
        ------
        HoleError
            Some rows were never written.
        """
        return to_float32(self.group.read(ARRAY, start, stop), self.dtype)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return chosen rows as float32, in the order given."""
        return to_float32(self.group.take(ARRAY, rows), self.dtype)


def create_activations(
    storage: Storage,
    key: ActivationsKey,
    *,
    rows: int,
    d_in: int,
    dtype: str,
    identity: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
    shard_rows: int | None = None,
) -> RowGroup:
    """Create the row group of activations, or open it if it was created from the same plan.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float32"}
        bfloat16 is stored as its uint16 bit pattern, which zarr and xarray can hold.
    shard_rows : int, optional
        Rows per shard; default what makes 64 MiB.

    Raises
    ------
    ConflictError
        Activations made differently are stored there.
    """
    if dtype not in ACTIVATION_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose from {', '.join(ACTIVATION_DTYPES)}")
    stored = "uint16" if dtype == "bfloat16" else dtype
    chunk_rows = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (d_in * np.dtype(stored).itemsize)))
    return RowGroup.create(
        storage,
        key.path,
        kind="activations",
        axis="row",
        grid=Grid.plan(rows, shard_rows=shard_rows or shard_rows_for(d_in, dtype), chunk_rows=chunk_rows),
        arrays=[
            ArraySpec(ARRAY, stored, d_in, width_axis="d_in", attributes={"saestore_dtype": dtype}),
        ],
        identity={"dtype": dtype, **identity},
        attributes={"d_in": d_in, "dtype": dtype, "sample_type": key.sample_type, **(attributes or {})},
    )


def shard_rows_for(d_in: int, dtype: str) -> int:
    """Return the rows of a shard of activations, 64 MiB."""
    return max(1, _SHARD_BYTES // (d_in * (4 if dtype == "float32" else 2)))


def to_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return stored values as float32; bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
