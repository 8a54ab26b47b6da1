"""Activations from other tools' files (.pt, .npy, .npz, safetensors, one file or chunks) as rows, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.formats import npy, pt, safetensors
from saestore.formats.chunks import ChunkSet, find_chunks
from saestore.formats.joined import LAKE_DTYPES, NARROWED_NOTE, JoinedArray, StoredArray
from saestore.formats.regions import open_zip
from saestore.formats.sources import RowSource, check_range


@dataclass(frozen=True)
class ActivationFiles:
    """The RowSource of every format here: a file, or chunks of one array. Reads from any thread; can be pickled.

    array : the rows, (n, d_in)
    shape : as stored, (n, d_in) or (n_samples, positions, d_in)
    """

    array: JoinedArray
    format: str
    key: str | None
    shape: tuple[int, ...]
    per_sample: int | None
    origin: Path

    @property
    def n_rows(self) -> int:
        """Rows in all; of a 3-D array samples times positions."""
        return self.array.n_rows

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.array.width

    @property
    def dtype(self) -> str:
        """Type of the rows that ``read`` returns; ``bfloat16`` means its bit pattern in uint16."""
        return LAKE_DTYPES[self.array.file_dtype]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, (rows, d_in); no other row is held in memory.

        Raises
        ------
        InputError
            The range is not within the rows, or a float64 value is beyond the range of float32.
        IntegrityError
            A file was changed or cut since it was opened.
        """
        check_range(start, stop, self.n_rows)
        return self.array.read(start, stop)

    def describe(self) -> dict[str, Any]:
        """Return what was opened, as JSON: the provenance that goes with the import."""
        files = self.array.files()
        return {
            "format": self.format,
            "path": self.origin.name,
            "key": self.key,
            "files": files,
            "bytes": sum(file["bytes"] for file in files),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "per_sample": self.per_sample,
            "notes": [NARROWED_NOTE] if self.array.file_dtype == "float64" else [],
        }

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        self.array.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_activations(path: str | Path, *, key: str | None = None, per_sample: int | None = None) -> RowSource:
    """Open activations that another tool wrote. Reads headers only; the format is told by content, not by name.

    Parameters
    ----------
    path : str or Path
        A ``.pt`` file (a tensor, or tensors in a dict), ``.npy``, ``.npz`` or safetensors; a ``*_chunks_info.json``; a
        folder of chunks; or the name without ``_chunk_0``. Arrays are (rows, d_in) or (samples, positions, d_in).
    key : str, optional
        Which tensor, where a file holds several; nested names are joined by dots.
    per_sample : int, optional
        Positions of each sample, for a 2-D array whose samples all have the same number. A 3-D array says it itself.

    Raises
    ------
    MissingError
        The file, a chunk of it or the key does not exist.
    InputError
        The file holds no usable array, or several and no key was given; or Python objects, which are never read.
    IntegrityError
        The file is damaged, or chunks and their list disagree.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.save(f"{folder.name}/acts.npy", np.zeros((10, 4), np.float16))
    >>> with open_activations(f"{folder.name}/acts.npy") as source:
    ...     source.n_rows, source.d_in, source.dtype, source.read(2, 5).shape
    (10, 4, 'float16', (3, 4))
    """
    origin = local_path(path)
    chunk_set = find_chunks(origin)
    files = [origin] if chunk_set is None else [chunk.path for chunk in chunk_set.chunks]
    parts: list[StoredArray] = []
    name = key
    for file in files:
        format_name, name, part = _open_one(file, name)
        if parts:
            _check_same(parts[0], part)
        parts.append(part)
    if chunk_set is not None:
        _check_chunks(chunk_set, parts)
    array = JoinedArray.of(parts)
    if array.n_rows == 0:
        raise InputError(f"{origin} holds no rows (shape {parts[0].shape}); expected at least one")
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return ActivationFiles(
        array=array,
        format=format_name if chunk_set is None else f"{format_name} chunks",
        key=name or None,
        shape=shape,
        per_sample=_positions(shape, per_sample, origin),
        origin=origin,
    )


def local_path(path: str | Path) -> Path:
    """Return an absolute path of this machine, ``~`` expanded; URLs are refused."""
    if "://" in str(path):
        raise InputError(f"{path} is a URL; files to import are read in place, so copy it to a local disk first")
    return Path(path).expanduser().absolute()


def sniff(path: Path) -> str:
    """Tell the format of a file by its first bytes: ``pt``, ``npy``, ``npz`` or ``safetensors``.

    Raises
    ------
    InputError
        It is none of these, or may not be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; change its permissions") from None
    if head.startswith(npy.MAGIC):
        return "npy"
    if head.startswith(pt.LEGACY_MAGIC):
        return "pt"
    if head.startswith(b"PK"):
        with open_zip(path) as archive:
            return "npz" if any(name.endswith(".npy") for name in archive.namelist()) else "pt"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; run git lfs pull")
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or save it again")
    raise InputError(
        f"{path} is of no known format; expected .pt, .npy, .npz or safetensors (a raw memory map does not "
        "hold its shape: save it with numpy.save)"
    )


def _open_one(path: Path, key: str | None) -> tuple[str, str, StoredArray]:
    """Open one file; return its format, the key that was chosen and the array."""
    format_name = sniff(path)
    arrays: dict[str, StoredArray] = {}
    unreadable: dict[str, str] = {}
    if format_name == "npy":
        arrays = {"": npy.open_npy(path)}
    elif format_name == "npz":
        arrays = dict(npy.open_npz(path))
    elif format_name == "safetensors":
        arrays = dict(safetensors.open_safetensors(path))
    else:
        content = pt.open_pt(path)
        arrays, unreadable = dict(content.tensors), content.unreadable
    if {"indices", "values"} <= arrays.keys() and key is None:
        raise InputError(f"{path} holds sparse codes (indices, values), not activations; import it as codes")
    name = _choose(path, arrays, unreadable, key)
    array = arrays[name]
    label = f"{path}[{name}]" if name else str(path)
    if len(array.shape) not in (2, 3):
        raise InputError(
            f"{label} has shape {array.shape}; expected (rows, d_in) or (samples, positions, d_in): reshape and save it"
        )
    if array.dtype not in LAKE_DTYPES:
        raise InputError(f"{label} has type {array.dtype}; expected {', '.join(LAKE_DTYPES)}: convert and save it")
    if array.shape[-1] == 0:
        raise InputError(f"{label} has rows of width 0 (shape {array.shape}); expected (rows, d_in)")
    return format_name, name, array


def _choose(path: Path, arrays: dict[str, StoredArray], unreadable: dict[str, str], key: str | None) -> str:
    """Return the name of the array to read: the one asked for, or the only one that can be activations."""
    listing = "; ".join(
        [f"{name or 'the tensor'} {array.dtype} {array.shape}" for name, array in sorted(arrays.items())]
        + [f"{name or 'the tensor'} {what}" for name, what in sorted(unreadable.items())]
    )
    if key is not None:
        if key in arrays:
            return key
        if key in unreadable:
            raise InputError(f"{path}[{key}] is {unreadable[key]}; expected a dense array of {', '.join(LAKE_DTYPES)}")
        if not (arrays.keys() | unreadable.keys()) - {""}:
            raise MissingError(f"{path} is one array without names; key {key!r} does not apply, leave it out")
        raise MissingError(f"{path} has no key {key!r}; it has {listing}")
    if "" in arrays:
        return ""
    usable = [name for name, array in arrays.items() if len(array.shape) in (2, 3) and array.dtype in LAKE_DTYPES]
    if len(usable) == 1:
        return usable[0]
    if not usable:
        raise InputError(f"{path} holds no array that can be activations; it has {listing or 'no arrays at all'}")
    raise InputError(f"{path} holds several arrays; give a key, one of {listing}")


def _check_same(first: StoredArray, part: StoredArray) -> None:
    """Raise unless a chunk has the type, width and positions of the first."""
    if part.shape[1:] != first.shape[1:]:
        raise IntegrityError(
            f"{part.file.path} has shape {part.shape}, {first.file.path.name} has {first.shape}; chunks of one array "
            "have the same width: is it of another model or layer?"
        )
    if part.dtype != first.dtype or part.storage != first.storage:
        raise IntegrityError(
            f"{part.file.path} has type {part.dtype}, {first.file.path.name} has {first.dtype}; convert one of them"
        )


def _check_chunks(chunk_set: ChunkSet, parts: list[StoredArray]) -> None:
    chunk_set.check_rows([part.shape[0] for part in parts], starts=True)
    for field in ("embedding_dim", "feature_dim"):
        width = chunk_set.declared_int(field)
        if width is not None and width != parts[0].shape[-1]:
            raise IntegrityError(
                f"{parts[0].file.path} has rows of width {parts[0].shape[-1]}, {chunk_set.origin.name} says {field} "
                f"{width}; copy or make it again"
            )


def _positions(shape: tuple[int, ...], per_sample: int | None, origin: Path) -> int | None:
    """Return the rows per sample: what a 3-D array says, or what was given for a 2-D one."""
    if len(shape) == 3:
        if per_sample not in (None, shape[1]):
            raise InputError(
                f"{origin} has {shape[1]} positions per sample (shape {shape}), not {per_sample}; leave it out"
            )
        return shape[1]
    if per_sample is not None and (per_sample < 1 or shape[0] % per_sample):
        raise InputError(
            f"{origin} has {shape[0]} rows, which are not whole samples of {per_sample} rows; check per_sample"
        )
    return per_sample
