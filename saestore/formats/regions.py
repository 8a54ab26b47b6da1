"""Arrays that lie uncompressed in a file: where they start, how they are laid out, and how to read some rows of them.

Rows are read with plain reads into one buffer, never through a memory map: mapped pages count as memory of the process
(a 20 GB map that is summed once shows 20 GB), and a file that is cut short under a map kills the process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from saestore.errors import IntegrityError, MissingError

# A strided read may fetch this many times the bytes it keeps before it is cut into smaller reads.
_WASTE = 2
# What is read of a strided array at a time.
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class FileStamp:
    """What a file was when it was opened, so that a file that changes under a running import is noticed."""

    path: Path
    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of a file as it is now."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise MissingError(f"{path} does not exist; check the path") from None
        return cls(path=path, n_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def check(self) -> None:
        """Raise IntegrityError when the file is no longer what it was."""
        if FileStamp.of(self.path) != self:
            raise IntegrityError(f"{self.path} changed while it was read; let its writer finish and import it again")


@dataclass(frozen=True)
class Region:
    """A strided array inside a file. Stateless (each read opens the file), so it can be pickled and used by threads.

    file : the file and what it was when it was opened
    offset : byte at which element [0, ..., 0] lies
    dtype : the field's word for the element type, e.g. ``float32``, ``bfloat16``, ``int64``
    storage : the numpy type in the file, e.g. ``<f4``; bfloat16 is ``<u2``
    shape, strides : as in numpy, strides in elements (as torch counts them)
    """

    file: FileStamp
    offset: int
    dtype: str
    storage: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if 0 in self.shape:
            return
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        end = self.offset + (last + 1) * self.itemsize
        if end > self.file.n_bytes:
            raise IntegrityError(
                f"{self.file.path} is cut short: an array of shape {self.shape} and type {self.dtype} needs {end} "
                f"bytes, the file has {self.file.n_bytes}; copy or download it again"
            )

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.storage).itemsize

    @property
    def n_rows(self) -> int:
        """Product of all axes but the last."""
        return math.prod(self.shape[:-1])

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Fill ``out`` (rows, last axis) with the rows from ``start`` on, all axes but the last taken as one."""
        self.file.check()
        if out.size == 0:
            return
        with self.file.path.open("rb", buffering=0) as stream:
            for plane, rows in self._planes(start, len(out)):
                plane.read_into(stream, out[rows])

    def _planes(self, start: int, count: int) -> Iterator[tuple[_Plane, slice]]:
        """Cut a range of rows into matrices with two strides, and say where each belongs in the output."""
        width, step = self.shape[-1], self.strides[-1]
        if len(self.shape) == 2 or self.strides[0] == self.shape[1] * self.strides[1]:
            row_step = self.strides[-2]
            yield self._plane(start * row_step, count, width, row_step, step), slice(0, count)
            return
        per_sample = self.shape[1]
        done = 0
        while done < count:
            sample, position = divmod(start + done, per_sample)
            rows = min(per_sample - position, count - done)
            first = sample * self.strides[0] + position * self.strides[1]
            yield self._plane(first, rows, width, self.strides[1], step), slice(done, done + rows)
            done += rows

    def _plane(self, first: int, rows: int, width: int, row_step: int, step: int) -> _Plane:
        return _Plane(self.offset + first * self.itemsize, self.storage, rows, width, row_step, step)


@dataclass(frozen=True)
class _Plane:
    """A matrix with two strides (in elements) that starts at a byte of a file."""

    offset: int
    storage: str
    rows: int
    width: int
    row_step: int
    step: int

    def read_into(self, stream: FileIO, out: NDArray[Any]) -> None:
        """Read the matrix; what is fetched beyond it stays below a fixed size."""
        dtype = np.dtype(self.storage)
        contiguous = self.step == 1 and (self.row_step == self.width or self.rows == 1)
        if contiguous and out.dtype == dtype and out.flags.c_contiguous:
            _fill(stream, self.offset, out)
            return
        span = (self.rows - 1) * self.row_step + (self.width - 1) * self.step + 1
        if span * dtype.itemsize <= _BLOCK_BYTES and span <= _WASTE * self.rows * self.width:
            flat = np.empty(span, dtype)
            _fill(stream, self.offset, flat)
            strides = (self.row_step * dtype.itemsize, self.step * dtype.itemsize)
            out[...] = np.lib.stride_tricks.as_strided(flat, out.shape, strides)
            return
        # Halve the axis with the longer stride: for a column-major file the columns, else the rows.
        by_rows = self.width == 1 or (self.rows > 1 and self.row_step >= self.step)
        half = (self.rows if by_rows else self.width) // 2
        skipped = half * (self.row_step if by_rows else self.step) * dtype.itemsize
        if by_rows:
            self._part(self.offset, half, self.width).read_into(stream, out[:half])
            self._part(self.offset + skipped, self.rows - half, self.width).read_into(stream, out[half:])
        else:
            self._part(self.offset, self.rows, half).read_into(stream, out[:, :half])
            self._part(self.offset + skipped, self.rows, self.width - half).read_into(stream, out[:, half:])

    def _part(self, offset: int, rows: int, width: int) -> _Plane:
        return _Plane(offset, self.storage, rows, width, self.row_step, self.step)


def _fill(stream: FileIO, offset: int, out: NDArray[Any]) -> None:
    """Read exactly the bytes of a contiguous array."""
    stream.seek(offset)
    view = out.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = stream.readinto(view[done:])  # the system reads at most 2 GiB at a time
        if not got:
            raise IntegrityError(
                f"{stream.name} ended at byte {offset + done}; it is cut short, copy or download it again"
            )
        done += got


def open_zip(path: Path) -> ZipFile:
    """Open a zip file (.npz, .pt), or say that it is damaged."""
    try:
        return ZipFile(path)
    except BadZipFile:
        raise IntegrityError(f"{path} is a damaged or cut zip file; copy or download it again") from None


def stored_member_offset(archive: ZipFile, member: ZipInfo) -> int | None:
    """Return the byte of the file at which an uncompressed member's content starts; None for a compressed member.

    The local header is read, because its extra field may differ in length from the central directory's.
    """
    if member.compress_type != ZIP_STORED or member.flag_bits & 1:
        return None
    with Path(str(archive.filename)).open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise IntegrityError(f"{archive.filename}: member {member.filename!r} is damaged; copy or download it again")
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
