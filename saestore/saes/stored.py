"""Arrays inside local files: known by file and byte offset, read tile by tile without mapping or loading the file.

Tiles are read with plain file reads, not through a memory map: pages of a map count as the process's memory and a
cut-off file kills the process, while a short read is an error that names the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.cache import cache_folder
from saestore.errors import DependencyError, InputError, IntegrityError, MissingError, SaestoreError
from saestore.saes.weights import FloatArray

_BUFFER_BYTES = 8 * 2**20
_FLOATS = ("bfloat16", *(order + kind for order in "<>" for kind in ("f2", "f4", "f8")))
_NAMED_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"},
    **{"torch.float64": "<f8", "torch.float32": "<f4", "torch.float16": "<f2", "torch.bfloat16": "bfloat16"},
    **{"torch.int32": "<i4", "torch.int64": "<i8"},
}
"""Dtypes by their names in files; one that is not here keeps its name, and its numbers cannot be read."""


@dataclass(frozen=True)
class Record:
    """A member of a zip file that lies in it as it is: where, how long, and the CRC-32 it should have."""

    offset: int
    bytes: int
    crc: int


@dataclass(frozen=True)
class StoredArray:
    """A dense array inside a file, in C order.

    dtype : a numpy dtype string with byte order, or ``bfloat16``; of what is neither, its name in the file
    stamp : size and time of the last change of the file when the array was located, see `file_stamp`
    reversed_axes : whether the array the file speaks of is the transpose of the one described here (Fortran order)
    record : the member of a zip file that it lies in, if that has a CRC-32
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stamp: tuple[int, int]
    reversed_axes: bool = False
    record: Record | None = None

    @property
    def transposed(self) -> StoredArray:
        """The transpose: the same numbers, spoken of with its axes the other way round."""
        return dataclasses.replace(self, reversed_axes=not self.reversed_axes)

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """The shape that the file declares."""
        return self.shape[::-1] if self.reversed_axes else self.shape

    @property
    def dtype_name(self) -> str:
        """The dtype in SAELens' words, e.g. ``float32``."""
        return np.dtype(self.dtype).name if self._is_numpy else self.dtype

    @property
    def is_float(self) -> bool:
        """Whether its elements are floats, as those of weights must be; counters in checkpoints are not."""
        return self.dtype in _FLOATS

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return np.dtype(self.dtype).itemsize if self._is_numpy else 2

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.itemsize

    @property
    def _is_numpy(self) -> bool:
        return self.dtype[:1] in "<>|"

    def read(self) -> FloatArray:
        """Return the whole array as float32, in its logical shape; InputError if it is of neither floats nor ints."""
        if not self.is_float and self.dtype[1:] not in ("i4", "i8"):
            raise InputError(f"an array of {self.path} with shape {self.shape} is {self.dtype_name}; expected floats")
        with self._open() as file:
            values = self._read_run(file, 0, math.prod(self.shape)).reshape(self.shape)
        return np.ascontiguousarray(values.T) if self.reversed_axes else values

    def verify(self) -> None:
        """Read the member of the zip file in which the array lies, if it has a CRC-32, and compare (IntegrityError)."""
        if self.record is None:
            return
        found, buffer = 0, np.empty(min(self.record.bytes, _BUFFER_BYTES), np.uint8)
        with self._open() as file:
            file.seek(self.record.offset)
            for first in range(0, self.record.bytes, _BUFFER_BYTES):
                part = buffer[: self.record.bytes - first]
                self._fill(file, part)
                found = zlib.crc32(part.data, found)
        if found != self.record.crc:
            raise IntegrityError(
                f"{self.path} is damaged: {self.record.bytes} bytes from {self.record.offset} on do not have the "
                "CRC-32 that the file gives for them; fetch it again"
            )

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return rows of a two-dimensional array, in the order of the file: (stop - start, shape[1]) float32."""
        width = self.shape[1]
        with self._open() as file:
            return self._read_run(file, start * width, (stop - start) * width).reshape(stop - start, width)

    def columns(self, start: int, stop: int) -> FloatArray:
        """Return columns of a two-dimensional array as rows: (stop - start, shape[0]) float32, C-contiguous."""
        height, width = self.shape
        units = stop - start
        out = np.empty((units, height), np.float32)
        step = max(1, _BUFFER_BYTES // (4 * max(1, units)))
        with self._open() as file:
            for first in range(0, height, step):
                last = min(first + step, height)
                if units == width:
                    block = self._read_run(file, first * width, (last - first) * width).reshape(last - first, width)
                else:
                    block = np.empty((last - first, units), np.float32)
                    for row in range(first, last):
                        block[row - first] = self._read_run(file, row * width + start, units)
                out[:, first:last] = block.T
        return out

    def take_columns(self, columns: NDArray[np.integer[Any]]) -> FloatArray:
        """Return chosen columns of a two-dimensional array as rows, in one pass over it: (n, shape[0]) float32."""
        height, width = self.shape
        out = np.empty((len(columns), height), np.float32)
        step = max(1, _BUFFER_BYTES // (4 * width))
        with self._open() as file:
            for first in range(0, height, step):
                last = min(first + step, height)
                block = self._read_run(file, first * width, (last - first) * width).reshape(last - first, width)
                out[:, first:last] = block[:, columns].T
        return out

    def _open(self) -> RawIOBase:
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 the caller closes it
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); expected the weights of an SAE") from None
        if file_stamp(file.fileno()) != self.stamp:
            file.close()
            raise IntegrityError(
                f"{self.path} was changed or replaced after it was opened; open the SAE again, or, where it is linked, "
                "bring the file back or import the SAE again under another name"
            )
        return file

    def _read_run(self, file: RawIOBase, first: int, count: int) -> FloatArray:
        """Read `count` elements from the `first` on, as float32; other dtypes go through a small buffer."""
        out = np.empty(count, np.float32)
        file.seek(self.offset + first * self.itemsize)
        stored = np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype)
        if stored == np.float32:
            self._fill(file, out)
            return out
        buffer = np.empty(min(count, _BUFFER_BYTES // stored.itemsize), stored)
        for start in range(0, count, max(1, len(buffer))):
            part = buffer[: count - start]
            self._fill(file, part)
            run = slice(start, start + len(part))
            if self.dtype == "bfloat16":
                np.left_shift(part, 16, out=out.view(np.uint32)[run], dtype=np.uint32)
            else:
                out[run] = part
        return out

    def _fill(self, file: RawIOBase, values: NDArray[Any]) -> None:
        view = values.view(np.uint8).data
        while view:  # one system call reads at most 2 GiB
            try:
                got = file.readinto(view)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read ({error.strerror}); copy it to another disk") from None
            if not got:
                raise IntegrityError(
                    f"{self.path} ends {len(view)} bytes too early; the file is cut off: fetch it again"
                )
            view = view[got:]


def file_stamp(file: Path | int) -> tuple[int, int]:
    """Return by what a file, or an open descriptor, is known to be as it was: bytes, and time of the last change."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _parsing(path: Path, kind: str) -> Iterator[None]:
    """Make one line of whatever the parser of a damaged file raises: each has a dozen kinds of errors.

    What the disk says goes on to the reader's caller, but for positions that a damaged header made up.
    """
    try:
        yield
    except SaestoreError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IntegrityError(f"{path} is not a whole {kind} ({reason[:120]}); fetch it again") from None


def read_safetensors_header(path: Path) -> dict[str, StoredArray]:
    """Return where each tensor of a safetensors file lies, of whatever dtype.

    Raises
    ------
    IntegrityError
        If the file is cut off or its header is damaged.

    References
    ----------
    Format: 8 bytes little-endian header length, a JSON header with ``data_offsets``, then the data.
    """
    with _parsing(path, "safetensors file"), open(path, "rb") as file:
        stamp = size, _ = file_stamp(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it has {size} bytes and announces a header of {length}")
        entries = json.loads(file.read(length))
        arrays, end = dict[str, StoredArray](), 0
        for name, entry in entries.items():
            if name != "__metadata__":
                (begin, stop), shape = entry["data_offsets"], entry["shape"]
                if not all(type(number) is int and number >= 0 for number in (begin, stop, *shape)):
                    raise ValueError(f"the place of {name} is damaged")
                dtype = _NAMED_DTYPES.get(entry["dtype"], str(entry["dtype"]))
                array = StoredArray(path, 8 + length + begin, dtype, tuple(shape), stamp)
                if stop < begin or (array.is_float and stop - begin != array.stored_bytes):
                    raise ValueError(f"{name} {shape} of {array.dtype_name} does not fill its {stop - begin} bytes")
                arrays[name], end = array, max(end, stop)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes, its header needs {8 + length + end}")
    return arrays


def read_npz_members(path: Path, *, cache: Path | None = None) -> dict[str, StoredArray]:
    """Return where each array of an ``.npz`` file lies, of whatever dtype.

    Members that are stored (``np.savez``) are used in place; deflated ones (``np.savez_compressed``) cannot be read
    by tile and are unpacked once, streaming, to ``.npy`` files in the cache folder (`cache_folder` by default).

    Raises
    ------
    IntegrityError
        If the file is cut off or damaged.
    """
    arrays = {}
    with _parsing(path, "npz file"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                record = None
                if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                    record = _record(path, member)
                    array = _read_npy_header(path, record.offset, member.file_size)
                else:
                    array = _read_npy_header(_unpacked(archive, member, path, cache), 0, member.file_size)
                arrays[member.filename.removesuffix(".npy")] = dataclasses.replace(array, record=record)
    return arrays


def _record(path: Path, member: zipfile.ZipInfo) -> Record:
    """Return where the bytes of a stored member lie; only its local header knows how long it is itself."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {member.filename}")
    names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return Record(member.header_offset + 30 + names, member.file_size, member.CRC)


def _read_npy_header(path: Path, offset: int, size: int) -> StoredArray:
    """Read the header of a ``.npy`` stream of `size` bytes that begins at `offset`."""
    with open(path, "rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        start, stamp = file.tell(), file_stamp(file.fileno())
    transposed = fortran and len(shape) > 1
    array = StoredArray(path, start, dtype.str, shape[::-1] if transposed else shape, stamp, transposed)
    if array.is_float and start - offset + array.stored_bytes != size:
        raise ValueError(f"an array {shape} of {dtype} does not fill its {size} bytes")
    return array


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, cache: Path | None) -> Path:
    """Stream a deflated member to a file in the cache, unless it is there already, and return its path."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = (cache or cache_folder()) / "npz" / key / Path(member.filename).name
    if target.exists() and target.stat().st_size == member.file_size:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as out, archive.open(member) as packed:
                shutil.copyfileobj(packed, out, _BUFFER_BYTES)
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise SaestoreError(
            f"{member.filename} of {path} ({member.file_size} bytes) cannot be unpacked to {target.parent} "
            f"({error.strerror}); set SAESTORE_CACHE to a folder with room"
        ) from None
    return target


def read_torch_file(path: Path, *, offset: int = 0) -> Any:
    """Return the content of a file of ``torch.save``, with a `StoredArray` in place of each tensor.

    No tensor is read: only the pickle of names and shapes is, by torch's own restricted unpickler.

    Parameters
    ----------
    offset : int
        Where in the file torch's part begins; some tools write a header of their own in front.

    Raises
    ------
    DependencyError
        torch is not installed.
    MissingError, IntegrityError
        There is no such file, it is damaged, or it holds more than tensors, numbers and names.
    InputError
        The file is in torch's format of before 2020, which cannot be read in part.
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist; expected a file of torch.save")
    try:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        raise DependencyError(f"reading {path} needs torch: pip install 'saestore[torch]'") from None
    with open(path, "rb") as file:
        file.seek(offset)
        magic = file.read(2)
        file.seek(offset)
        if magic == b"\x80\x02":
            raise InputError(
                f"{path} is in torch's format of before version 1.6, which cannot be read in part; write it again with "
                "torch.save(torch.load(path, weights_only=True), path)"
            )
        with _parsing(path, "file of tensors"):
            with FakeTensorMode():
                content = torch.load(file, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if member.compress_type == zipfile.ZIP_STORED]
            records = {record.offset: record for record in (_record(path, member) for member in members)}
            return _located(content, path, offset, records, file_stamp(file.fileno()))


def _located(content: Any, path: Path, offset: int, records: Mapping[int, Record], stamp: tuple[int, int]) -> Any:
    """Put a `StoredArray` in place of each tensor that knows where in the file its numbers lie."""
    import torch

    if isinstance(content, dict):
        return {key: _located(value, path, offset, records, stamp) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_located(value, path, offset, records, stamp) for value in content]
    if not isinstance(content, torch.Tensor):
        return content
    dtype = _NAMED_DTYPES.get(str(content.dtype), str(content.dtype))
    shape, stride = tuple(content.shape), content.stride()
    is_transposed = len(shape) > 1 and not content.is_contiguous() and content.T.is_contiguous()
    if not (content.is_contiguous() or is_transposed):
        raise InputError(
            f"{path} holds a tensor of {content.dtype} with shape {shape} and stride {stride}; expected contiguous "
            "floats: call .float().contiguous() on it and save it again"
        )
    storage: Any = content.untyped_storage()
    begin = offset + storage._checkpoint_offset
    record, first = records[begin], content.storage_offset() * content.element_size()
    if storage.nbytes() != record.bytes or first + content.numel() * content.element_size() > record.bytes:
        raise ValueError(f"a tensor {shape} of {content.dtype} does not fit its {record.bytes} bytes")
    return StoredArray(
        path,
        begin + first,
        dtype,
        shape[::-1] if is_transposed else shape,
        stamp,
        reversed_axes=is_transposed,
        record=record if record.crc else None,  # torch.save can be told to write none, and then writes 0
    )
