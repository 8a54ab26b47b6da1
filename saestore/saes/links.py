"""Matrices of an SAE that stay in the files they came in: where each lies, and whether it still does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore.cache import cache_folder
from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes.stored import StoredArray, file_stamp
from saestore.saes.weights import FloatArray, MatrixName

_READ_BYTES = 32 << 10
"""What a small read costs, in bytes of a long one: where many of them cost more than the whole matrix, it is read."""


@dataclass(frozen=True)
class Matrix:
    """A matrix with one row per unit, inside a file.

    array : as `W_enc` (d_in, d_sae) or `W_dec` (d_sae, d_out), in whichever order of axes it is stored
    factor : multiplies the numbers on reading
    """

    name: MatrixName
    array: StoredArray
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Units, and the width of their rows."""
        first, second = self.array.logical_shape
        return (second, first) if self.name == "W_enc" else (first, second)

    @property
    def _units_first(self) -> bool:
        """Whether the numbers of a unit lie together in the file."""
        return (self.name == "W_dec") != self.array.reversed_axes

    def rows(self, units: slice) -> FloatArray:
        """Return the rows of consecutive units: (n_units, width) float32."""
        start, stop, step = units.indices(self.shape[0])
        assert step == 1, "units are read in runs"
        tile = self.array.rows(start, stop) if self._units_first else self.array.columns(start, stop)
        return tile if self.factor == 1.0 else tile * np.float32(self.factor)

    def take(self, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units, ascending: (n_units, width) float32."""
        runs = np.split(units, np.flatnonzero(np.diff(units) > 1) + 1) if len(units) else []
        if not self._units_first and len(runs) * _READ_BYTES > self.array.shape[1] * self.array.itemsize:
            tile = self.array.take_columns(units)
            return tile if self.factor == 1.0 else tile * np.float32(self.factor)
        empty = np.empty((0, self.shape[1]), np.float32)
        return np.concatenate([empty, *(self.rows(slice(int(run[0]), int(run[-1]) + 1)) for run in runs)])

    def link(self) -> dict[str, Any]:
        """Return where the matrix lies, and what the file was when it was opened, as JSON values.

        Raises
        ------
        InputError
            The file is in the cache folder, which may be emptied at any time.
        """
        path = self.array.path.absolute()
        if path.resolve().is_relative_to(cache_folder().resolve()):
            raise InputError(
                f"{self.name} lies in {path}, unpacked or converted from what was given, and the cache folder may be "
                "emptied; import the SAE without a link"
            )
        size, modified_ns = self.array.stamp
        return {
            "path": str(path),
            "bytes": size,
            "modified_ns": modified_ns,
            "offset": self.array.offset,
            "dtype": self.array.dtype,
            "shape": list(self.array.shape),
            "reversed_axes": self.array.reversed_axes,
            "factor": self.factor,
        }


def follow(name: MatrixName, link: Mapping[str, Any], *, shape: tuple[int, int], sae: str) -> Matrix:
    """Return the matrix that a link speaks of, which must have `shape`: units, and the width of their rows.

    Raises
    ------
    MissingError
        The file is not there.
    IntegrityError
        It is not the file that was linked, by its size and the time of its last change; or the link is damaged.
    """
    matrix = _described(name, link)
    if matrix is None or matrix.shape != shape:
        raise IntegrityError(f"the link of SAE {sae} to its {name} is damaged; import the SAE again under another name")
    array, remedy = matrix.array, f"bring it back, or import SAE {sae} again under another name"
    if not array.path.is_file():
        raise MissingError(f"{array.path}, in which SAE {sae} has its {name}, is not there; {remedy}")
    if file_stamp(array.path) != array.stamp:
        raise IntegrityError(
            f"{array.path}, in which SAE {sae} has its {name}, was changed since it was linked; {remedy}"
        )
    return matrix


def _described(name: MatrixName, link: Mapping[str, Any]) -> Matrix | None:
    """Return what a link says; None if that cannot be."""
    fields = {"path": str, "dtype": str, "shape": list, "reversed_axes": bool, "factor": float}
    numbers = [link.get(field) for field in ("offset", "bytes", "modified_ns")]
    if any(not isinstance(link.get(field), kind) for field, kind in fields.items()):
        return None
    if not all(type(number) is int and number >= 0 for number in (*numbers, *link["shape"])) or len(link["shape"]) != 2:
        return None
    offset, size, modified_ns = cast(list[int], numbers)
    stamp, shape = (size, modified_ns), tuple(link["shape"])
    array = StoredArray(Path(link["path"]), offset, link["dtype"], shape, stamp, link["reversed_axes"])
    if not array.is_float or offset + array.stored_bytes > size or not math.isfinite(link["factor"]):
        return None
    return Matrix(name, array, link["factor"])
