"""Matrices of an SAE that stay in the files they came in: where each lies, and whether it still does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import IntegrityError, MissingError
from saestore.saes.stored import StoredArray
from saestore.saes.weights import FloatArray, MatrixName


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

    def rows(self, units: slice) -> FloatArray:
        """Return the rows of consecutive units: (n_units, width) float32."""
        start, stop, step = units.indices(self.shape[0])
        assert step == 1, "units are read in runs"
        units_first = (self.name == "W_dec") != self.array.reversed_axes
        tile = self.array.rows(start, stop) if units_first else self.array.columns(start, stop)
        return tile if self.factor == 1.0 else tile * np.float32(self.factor)

    def take(self, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units, ascending: (n_units, width) float32."""
        runs = np.split(units, np.flatnonzero(np.diff(units) > 1) + 1) if len(units) else []
        empty = np.empty((0, self.shape[1]), np.float32)
        return np.concatenate([empty, *(self.rows(slice(int(run[0]), int(run[-1]) + 1)) for run in runs)])

    def link(self) -> dict[str, Any]:
        """Return where the matrix lies, and what the file is, as JSON values."""
        path = self.array.path.absolute()
        found = path.stat()
        return {
            "path": str(path),
            "bytes": found.st_size,
            "modified_ns": found.st_mtime_ns,
            "offset": self.array.offset,
            "dtype": self.array.dtype,
            "shape": list(self.array.shape),
            "reversed_axes": self.array.reversed_axes,
            "factor": self.factor,
        }


def follow(name: MatrixName, link: dict[str, Any], *, sae: str) -> Matrix:
    """Return the matrix that a link speaks of.

    Raises
    ------
    MissingError
        The file is not there.
    IntegrityError
        It is not the file that was linked, by its size and the time of its last change.
    """
    path = Path(link["path"])
    remedy = f"bring it back, or import SAE {sae} again under another name"
    if not path.is_file():
        raise MissingError(f"{path}, in which SAE {sae} has its {name}, is not there; {remedy}")
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) != (link["bytes"], link["modified_ns"]):
        raise IntegrityError(f"{path}, in which SAE {sae} has its {name}, was changed since it was linked; {remedy}")
    array = StoredArray(path, link["offset"], link["dtype"], tuple(link["shape"]), link["reversed_axes"])
    return Matrix(name, array, link["factor"])
