"""Arrays that lie one after the other in several files, read as one; and the types that the lake takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.formats.npy import DeflatedArray
from saestore.formats.regions import Region

StoredArray = Region | DeflatedArray

# The lake's type of each floating type of a file; double precision is narrowed, as models never compute in it.
LAKE_DTYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float32", "float64": "float32"}
NARROWED_NOTE = "float64 in the file, read as float32"
_NARROWING_BYTES = 8 << 20


@dataclass(frozen=True)
class JoinedArray:
    """Parts of one type and width, their rows one after the other.

    first_rows : row at which each part starts, and one more: the number of rows
    """

    parts: tuple[StoredArray, ...]
    first_rows: tuple[int, ...]

    @classmethod
    def of(cls, parts: list[StoredArray]) -> JoinedArray:
        """Join parts; the caller has checked that their types and widths agree."""
        return cls(tuple(parts), (0, *(int(end) for end in np.cumsum([part.n_rows for part in parts]))))

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return self.first_rows[-1]

    @property
    def width(self) -> int:
        """Size of the last axis."""
        return self.parts[0].shape[-1]

    @property
    def file_dtype(self) -> str:
        """Element type in the files."""
        return self.parts[0].dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows as they are stored, in the machine's byte order; bfloat16 as uint16, float64 as float32."""
        narrow = self.file_dtype == "float64"
        native = np.dtype(self.parts[0].storage).newbyteorder("=")
        out = np.empty((stop - start, self.width), np.float32 if narrow else native)
        at = int(np.searchsorted(self.first_rows, start, side="right")) - 1
        done = start
        while done < stop:
            end = min(stop, self.first_rows[at + 1])
            if end > done:
                block = out[done - start : end - start]
                if narrow:
                    self._read_narrowed(self.parts[at], block, done - self.first_rows[at], done)
                else:
                    self.parts[at].read_into(block, done - self.first_rows[at])
                done = end
            at += 1
        return out

    def _read_narrowed(self, part: StoredArray, out: NDArray[Any], start: int, row: int) -> None:
        step = max(1, _NARROWING_BYTES // (8 * self.width))
        for first in range(0, len(out), step):
            wide = np.empty(out[first : first + step].shape, np.float64)
            part.read_into(wide, start + first)
            with np.errstate(over="ignore", under="ignore"):
                narrow = wide.astype(np.float32)
            lost = np.isinf(narrow) & np.isfinite(wide)
            if lost.any():
                at = row + first + int(np.argwhere(lost)[0, 0])
                raise InputError(
                    f"{part.file.path}: row {at} holds a value beyond the range "
                    "of float32; scale the file down and import it again"
                )
            out[first : first + step] = narrow

    def files(self) -> list[dict[str, Any]]:
        """Return name and bytes of each file."""
        return [{"name": part.file.path.name, "bytes": part.file.n_bytes} for part in self.parts]

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        for part in self.parts:
            if isinstance(part, DeflatedArray):
                part.close()
