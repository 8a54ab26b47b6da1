"""Arrays inside local files: known by file and byte offset, read tile by tile without mapping or loading the file.

Tiles are read with plain file reads, not through a memory map: pages of a map count as the process's memory and a
cut-off file kills the process, while a short read is an error that names the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from saestore.cache import cache_folder
from saestore.errors import DependencyError, InputError, IntegrityError, MissingError, SaestoreError
from saestore.saes.weights import FloatArray

_BUFFER_BYTES = 8 * 2**20
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}
_TORCH_DTYPES = {
    "torch.float64": "<f8",
    "torch.float32": "<f4",
    "torch.float16": "<f2",
    "torch.bfloat16": "bfloat16",
    "torch.int32": "<i4",
    "torch.int64": "<i8",
}


@dataclass(frozen=True)
class StoredArray:
    """A dense array inside a file, in C order.

    dtype : a numpy dtype string with byte order, or ``bfloat16``
    reversed_axes : whether the array the file speaks of is the transpose of the one described here (Fortran order)
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    reversed_axes: bool = False

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
        return self.dtype if self.dtype == "bfloat16" else np.dtype(self.dtype).name

    @property
    def is_float(self) -> bool:
        """Whether its elements are floats, as those of weights must be; counters in checkpoints are not."""
        return self.dtype == "bfloat16" or np.dtype(self.dtype).kind == "f"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    def read(self) -> FloatArray:
        """Return the whole array as float32, in its logical shape."""
        with self._open() as file:
            values = self._read_run(file, 0, math.prod(self.shape)).reshape(self.shape)
        return np.ascontiguousarray(values.T) if self.reversed_axes else values

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

    def _open(self) -> RawIOBase:
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); expected the weights of an SAE") from None

    def _read_run(self, file: RawIOBase, first: int, count: int) -> FloatArray:
        """Read `count` elements from the `first` on, as float32."""
        raw = np.empty(count, "<u2" if self.dtype == "bfloat16" else self.dtype)
        view = raw.view(np.uint8).data
        file.seek(self.offset + first * self.itemsize)
        while view:  # one system call reads at most 2 GiB
            got = file.readinto(view)
            if not got:
                raise IntegrityError(
                    f"{self.path} ends {len(view)} bytes too early; the file is cut off: fetch it again"
                )
            view = view[got:]
        if self.dtype == "bfloat16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32, copy=False)


def read_safetensors_header(path: Path) -> dict[str, StoredArray]:
    """Return where each tensor of a safetensors file lies.

    Raises
    ------
    IntegrityError
        If the file is cut off or its header is damaged.
    InputError
        If it holds a dtype that is no float this library reads.

    References
    ----------
    Format: 8 bytes little-endian header length, a JSON header with ``data_offsets``, then the data.
    """
    damaged = f"{path} is not a whole safetensors file"
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise IntegrityError(f"{damaged}: it has {size} bytes and announces a header of {length}; fetch it again")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            raise IntegrityError(f"{damaged}: its header is damaged; fetch it again") from None
    if size != 8 + length + end:
        raise IntegrityError(f"{damaged}: it has {size} bytes, its header needs {8 + length + end}; fetch it again")
    arrays = {}
    for name, entry in tensors.items():
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(f"{name} in {path} is {entry['dtype']}; expected one of {', '.join(_SAFETENSORS_DTYPES)}")
        arrays[name] = StoredArray(path, 8 + length + int(entry["data_offsets"][0]), dtype, tuple(entry["shape"]))
    return arrays


def read_npz_members(path: Path, *, cache: Path | None = None) -> dict[str, StoredArray]:
    """Return where each array of an ``.npz`` file lies.

    Members that are stored (``np.savez``) are used in place; deflated ones (``np.savez_compressed``) cannot be read
    by tile and are unpacked once, streaming, to ``.npy`` files in the cache folder (`cache_folder` by default).

    Raises
    ------
    IntegrityError
        If the file is cut off or damaged.
    InputError
        If a member is no plain array of floats.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            arrays = {}
            for member in members:
                if member.compress_type == zipfile.ZIP_STORED:
                    located = path, _stored_offset(path, member)
                else:
                    located = _unpacked(archive, member, path, cache), 0
                arrays[member.filename.removesuffix(".npy")] = _read_npy_header(*located, name=member.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise IntegrityError(f"{path} is not a whole npz file ({error}); fetch it again") from None
    return arrays


def _stored_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member begin; only its local header knows how long it is itself."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {member.filename}")
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_npy_header(path: Path, offset: int, *, name: str) -> StoredArray:
    """Read the header of a ``.npy`` stream that begins at `offset`."""
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
        except ValueError as error:
            raise IntegrityError(f"{name} in {path} has no npy header ({error}); fetch the file again") from None
        start = file.tell()
    if dtype.kind != "f":
        raise InputError(f"{name} in {path} is {dtype}; expected an array of floats")
    transposed = fortran and len(shape) > 1
    return StoredArray(path, start, dtype.str, shape[::-1] if transposed else shape, reversed_axes=transposed)


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
        try:
            with FakeTensorMode():
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for damaged files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise IntegrityError(
                f"{path} cannot be read as a file of tensors ({reason[:120]}); fetch it again"
            ) from None
    return _located(content, path, offset)


def _located(content: Any, path: Path, offset: int) -> Any:
    """Put a `StoredArray` in place of each tensor that knows where in the file its numbers lie."""
    import torch

    if isinstance(content, dict):
        return {key: _located(value, path, offset) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_located(value, path, offset) for value in content]
    if not isinstance(content, torch.Tensor):
        return content
    dtype = _TORCH_DTYPES.get(str(content.dtype))
    shape, stride = tuple(content.shape), content.stride()
    is_transposed = len(shape) > 1 and not content.is_contiguous() and content.T.is_contiguous()
    if dtype is None or not (content.is_contiguous() or is_transposed):
        raise InputError(
            f"{path} holds a tensor of {content.dtype} with shape {shape} and stride {stride}; expected contiguous "
            "floats: call .float().contiguous() on it and save it again"
        )
    storage: Any = content.untyped_storage()
    first = offset + storage._checkpoint_offset + content.storage_offset() * content.element_size()
    return StoredArray(path, first, dtype, shape[::-1] if is_transposed else shape, reversed_axes=is_transposed)
