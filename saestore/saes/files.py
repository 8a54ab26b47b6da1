"""Weights in local files: arrays known by file and byte offset, read tile by tile without mapping or loading the file.

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
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from saestore.cache import cache_folder
from saestore.errors import InputError, IntegrityError, SaestoreError
from saestore.saes.config import SAEConfig
from saestore.saes.weights import VECTORS, FloatArray, MatrixName, decoder_norms, hash_weights

_BUFFER_BYTES = 8 * 2**20
_MATRICES = ("W_enc", "W_dec")
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


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
    def logical_shape(self) -> tuple[int, ...]:
        """The shape that the file declares."""
        return self.shape[::-1] if self.reversed_axes else self.shape

    @property
    def dtype_name(self) -> str:
        """The dtype in SAELens' words, e.g. ``float32``."""
        return self.dtype if self.dtype == "bfloat16" else np.dtype(self.dtype).name

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


@dataclass(frozen=True)
class Factors:
    """Scalars that multiply weights on reading, for weights that are stored unfolded."""

    W_enc: float = 1.0
    W_dec: float = 1.0
    b_dec: float = 1.0

    @classmethod
    def of_norm_scaling(cls, factor: float | None) -> Factors:
        """Return SAELens' ``fold_activation_norm_scaling_factor``: W_enc * s, W_dec / s, b_dec / s."""
        return cls() if factor is None else cls(W_enc=factor, W_dec=1 / factor, b_dec=1 / factor)


class FileWeights:
    """An SAE whose arrays lie in files as `StoredArray`; the reader of each layout builds one.

    Parameters
    ----------
    config : SAEConfig
    arrays : mapping of name to StoredArray
        ``W_enc`` (d_in, d_sae), ``W_dec`` (d_sae, d_in) and the vectors of the architecture (`VECTORS`).
    factors : Factors
        Applied on reading.

    Raises
    ------
    InputError
        If an array is missing or its shape disagrees with the configuration.
    """

    def __init__(self, config: SAEConfig, arrays: Mapping[str, StoredArray], *, factors: Factors | None = None) -> None:
        self._arrays = dict(arrays)
        self._factors = factors or Factors()
        # what a factor gives does not fit the stored dtype, and whoever copies the weights goes by it
        is_as_stored = self._factors == Factors() and len({arrays[n].dtype for n in _MATRICES if n in arrays}) < 2
        self.config = config if is_as_stored else dataclasses.replace(config, dtype="float32")
        expected: dict[str, tuple[int, ...]] = {
            "W_enc": (config.d_in, config.d_sae),
            "W_dec": (config.d_sae, config.d_in),
        }
        for name in VECTORS[config.architecture]:
            expected[name] = (config.d_in if name == "b_dec" else config.d_sae,)
        for name, shape in expected.items():
            if name not in self._arrays:
                raise InputError(
                    f"{config.source} lacks {name}, which a {config.architecture} SAE needs; "
                    f"it holds {', '.join(sorted(self._arrays)) or 'nothing'}"
                )
            found = self._arrays[name].logical_shape
            if found != shape:
                raise InputError(
                    f"{name} in {config.source} has shape {found}, but its configuration (d_in={config.d_in}, "
                    f"d_sae={config.d_sae}) needs {shape}; weights and configuration do not belong together"
                )

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of some units, (n_units, d_in) float32."""
        array = self._arrays[name]
        start, stop, step = units.indices(self.config.d_sae)
        assert step == 1, "units are read in runs"
        units_first = (name == "W_dec") != array.reversed_axes
        tile = array.rows(start, stop) if units_first else array.columns(start, stop)
        return _scaled(tile, getattr(self._factors, name))

    def vector(self, name: str) -> FloatArray:
        """Return a vector of the architecture, or ``decoder_norms``, float32."""
        if name == "decoder_norms":
            return decoder_norms(self)
        if name not in VECTORS[self.config.architecture]:
            raise InputError(
                f"a {self.config.architecture} SAE has no vector {name!r}; "
                f"it has {', '.join(VECTORS[self.config.architecture])}, decoder_norms"
            )
        values = self._arrays[name].read()
        return _scaled(values, self._factors.b_dec) if name == "b_dec" else values

    def content_hash(self) -> str:
        """Return the hexadecimal sha256 of what the codes depend on (reads all weights once)."""
        return hash_weights(self)

    def close(self) -> None:
        """Do nothing: no file stays open between reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _scaled(values: FloatArray, factor: float) -> FloatArray:
    return values if factor == 1.0 else values * np.float32(factor)


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
