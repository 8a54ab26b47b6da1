"""Read NumPy files: ``.npy`` and the stored members of ``.npz`` in place, deflated members as a stream."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from saestore.errors import InputError, IntegrityError
from saestore.formats.regions import FileStamp, Region, open_zip, stored_member_offset

MAGIC = b"\x93NUMPY"


def open_npy(path: Path) -> Region:
    """Find the array of a ``.npy`` file; reads its header only.

    Raises
    ------
    InputError
        The file holds Python objects.
    IntegrityError
        The file is damaged or cut short.
    """
    stamp = FileStamp.of(path)
    with path.open("rb") as stream:
        return _region(stream, stamp, 0, str(path))


def open_npz(path: Path) -> dict[str, Region | DeflatedArray]:
    """Find the arrays of a ``.npz`` file by name; compressed ones can only be read forwards at full speed."""
    stamp = FileStamp.of(path)
    arrays: dict[str, Region | DeflatedArray] = {}
    with open_zip(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            start = stored_member_offset(archive, member)
            if start is None:
                arrays[name] = DeflatedArray(stamp, member)
                continue
            with path.open("rb") as stream:
                stream.seek(start)
                arrays[name] = _region(stream, stamp, start, f"{path}[{name}]")
    return arrays


class DeflatedArray:
    """An array inside a compressed ``.npz``: reading forwards is a stream, reading backwards starts again.

    Attributes are those of Region. Safe for threads (one reads at a time); a pickled copy opens the file anew.
    """

    def __init__(self, file: FileStamp, member: ZipInfo) -> None:
        self.file = file
        self._member = member
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None
        label = f"{file.path}[{member.filename.removesuffix('.npy')}]"
        with ZipFile(file.path) as archive, archive.open(member) as stream:
            self.shape, dtype, fortran = _header(stream, label)
            self._data_start = stream.tell()
        if fortran and len(self.shape) > 1:
            raise InputError(
                f"{label} is compressed and column-major, so its rows cannot be streamed; re-save it with "
                "numpy.savez(FILE, numpy.ascontiguousarray(ARRAY))"
            )
        self.dtype, self.storage = _names(dtype, label)
        self._dtype = np.dtype(self.storage)

    @property
    def n_rows(self) -> int:
        """Product of all axes but the last."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Fill ``out`` (rows, last axis) with the rows from ``start`` on."""
        self.file.check()
        raw = out if out.dtype == self._dtype and out.flags.c_contiguous else np.empty(out.shape, self._dtype)
        view = raw.reshape(-1).view(np.uint8).data
        with self._lock:
            if self._stream is None:
                self._stream = ZipFile(self.file.path).open(self._member)  # noqa: SIM115
            try:
                self._stream.seek(self._data_start + start * self.shape[-1] * self._dtype.itemsize)
                done = 0
                while done < len(view):
                    block = self._stream.read(min(len(view) - done, 1 << 20))
                    if not block:
                        raise IntegrityError(f"{self.file.path}: {self._member.filename} is cut short; copy it again")
                    view[done : done + len(block)] = block
                    done += len(block)
            except (BadZipFile, zlib.error, EOFError, OSError) as error:
                raise IntegrityError(f"{self.file.path}: {error}; copy or download it again") from None
        if raw is not out:
            out[...] = raw

    def close(self) -> None:
        """Close the stream; the next read opens it again."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def __reduce__(self) -> tuple[Any, ...]:
        return DeflatedArray, (self.file, self._member)


def _header(stream: IO[bytes], label: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the header of a ``.npy`` stream and leave the stream at the first byte of the array."""
    try:
        version = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise IntegrityError(f"{label} has a damaged .npy header ({error}); copy or save it again") from None
    if dtype.hasobject:
        raise InputError(
            f"{label} holds Python objects, and reading those can run code, so it is refused; re-save it as numbers: "
            "numpy.save(FILE, numpy.stack(ARRAY).astype('float32'))"
        )
    return tuple(int(size) for size in shape), dtype, bool(fortran)


def _names(dtype: np.dtype[Any], label: str) -> tuple[str, str]:
    """Return (the field's word, the storage type) of a numpy type."""
    if dtype.fields is not None or dtype.subdtype is not None:
        raise InputError(f"{label} is a record array ({dtype}); expected one matrix of numbers, save it as such")
    if dtype.kind == "V" and dtype.itemsize == 2:
        return "bfloat16", "<u2"  # what numpy.save makes of a bfloat16 array of ml_dtypes (JAX)
    return dtype.name, dtype.str


def _region(stream: IO[bytes], stamp: FileStamp, start: int, label: str) -> Region:
    shape, dtype, fortran = _header(stream, label)
    word, storage = _names(dtype, label)
    in_order = shape[::-1] if fortran else shape
    steps = [1]
    for size in reversed(in_order[1:]):
        steps.append(steps[-1] * size)
    strides = tuple(steps if fortran else reversed(steps)) if shape else ()
    return Region(file=stamp, offset=stream.tell(), dtype=word, storage=storage, shape=shape, strides=strides)
