"""Codes from the ``sparse_topk`` files of the SuperActivators scripts, in the lake's slot order, in bounded memory.

A file is ``{"indices": [n, k], "values": [n, k], "format": "sparse_topk", "topk": k}``; long runs are in chunks with a
``*_chunks_info.json``. The indices are documented as int32 and written as int64; both are read. A slot counts only when
its value is above 0: fewer active units than k leave slots of value 0 with an arbitrary index (all readers of the
format mask ``value > 0``), and here those become index 0, value 0. The true number of active units is not in the files.

References
----------
BrachioLab/SuperActivators, scripts/pretrained_saes/compute_activations_sae_sparse.py at commit 7c8a43f.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, IntegrityError
from saestore.formats import pt
from saestore.formats.activations import local_path, sniff
from saestore.formats.chunks import ChunkSet, find_chunks
from saestore.formats.joined import LAKE_DTYPES, NARROWED_NOTE, JoinedArray
from saestore.formats.regions import Region
from saestore.formats.sources import CodesSource, check_range

_INTEGERS = ("int16", "int32", "int64", "uint16", "uint32")
_MAX_UNITS = 2**32

Negatives = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class SparseTopkFiles:
    """The CodesSource of sparse_topk files. Reads from any thread; can be pickled.

    indices, values : (n, k) as stored
    d_sae : width of the SAE; None when neither the files nor the caller said it
    """

    indices: JoinedArray
    values: JoinedArray
    d_sae: int | None
    negatives: Negatives
    origin: Path

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return self.values.n_rows

    @property
    def k(self) -> int:
        """Slots of a row."""
        return self.values.width

    @property
    def dtype(self) -> str:
        """Type of the values that ``read`` returns; ``bfloat16`` means its bit pattern in uint16."""
        return LAKE_DTYPES[self.values.file_dtype]

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[np.uint32] | None]:
        """Return (indices, values, None) of rows ``start`` to ``stop``, each (rows, k), in the lake's slot order.

        Raises
        ------
        InputError
            The range is not within the rows; or a row names a unit twice or one beyond d_sae, or holds a value that is
            not finite, or a negative one. The message has the row.
        IntegrityError
            A file was changed or cut since it was opened.
        """
        check_range(start, stop, self.n_rows)
        units = self.indices.read(start, stop).astype(np.int64, copy=False)
        stored = self.values.read(start, stop)
        values = _as_numbers(stored, self.dtype)
        self._refuse(~np.isfinite(values), start, "a value that is not finite; make the file again")
        if self.negatives == "refuse":
            remedy = 'pass negatives="drop" to read it as the scripts do, "keep" for signed codes'
            self._refuse(values < 0, start, f"a negative value; {remedy}")
        full = values != 0 if self.negatives == "keep" else values > 0
        limit = _MAX_UNITS if self.d_sae is None else self.d_sae
        beyond = full & ((units < 0) | (units >= limit))
        self._refuse(beyond, start, f"a unit outside 0 to {limit - 1}; is this the SAE that made the file?")
        self._refuse_twice(units, full, start)
        kept = np.where(full, units, 0).astype(np.uint32)
        stored = np.where(full, stored, stored.dtype.type(0))
        return *in_slot_order(kept, stored, np.where(full, values, 0), full), None

    def _refuse_twice(self, units: NDArray[np.int64], full: NDArray[np.bool_], start: int) -> None:
        # Empty slots get numbers of their own, which no unit has, so that they never count as twice the same.
        distinct = np.sort(np.where(full, units, -1 - np.arange(self.k)), axis=1)
        twice = np.zeros(full.shape, bool)
        twice[:, 1:] = distinct[:, 1:] == distinct[:, :-1]
        self._refuse(twice, start, "the same unit twice; make the file again")

    def _refuse(self, bad: NDArray[np.bool_], start: int, what: str) -> None:
        if bad.any():
            raise InputError(f"{self.origin}: row {start + int(np.argmax(bad.any(axis=1)))} holds {what}")

    def describe(self) -> dict[str, Any]:
        """Return what was opened, as JSON: the provenance that goes with the import."""
        files = self.values.files()
        return {
            "format": "sparse_topk",
            "path": self.origin.name,
            "files": files,
            "bytes": sum(file["bytes"] for file in files),
            "shape": [self.n_rows, self.k],
            "d_sae": self.d_sae,
            "dtype": self.dtype,
            "index_dtype": self.indices.file_dtype,
            "negatives": self.negatives,
            "notes": [NARROWED_NOTE] if self.values.file_dtype == "float64" else [],
        }

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        self.indices.close()
        self.values.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_codes(path: str | Path, *, d_sae: int | None = None, negatives: Negatives = "refuse") -> CodesSource:
    """Open sparse_topk codes. Reads headers only; rows are checked as they are read.

    Parameters
    ----------
    path : str or Path
        A ``.pt`` file; a ``*_chunks_info.json``; a folder of chunks; or the name without ``_chunk_0``.
    d_sae : int, optional
        Width of the SAE, against which units are checked; by default what the info JSON says, if there is one.
    negatives : {"refuse", "drop", "keep"}
        What a negative value means: an error, an empty slot (as the scripts themselves read it), or a signed code.

    Raises
    ------
    MissingError
        The file or a chunk of it does not exist.
    InputError
        The file holds something else, or Python objects, which are never read.
    IntegrityError
        The file is damaged, or its parts disagree.
    """
    origin = local_path(path)
    chunk_set = find_chunks(origin)
    files = [origin] if chunk_set is None else [chunk.path for chunk in chunk_set.chunks]
    pairs = [_open_one(file) for file in files]
    indices, values = pairs[0]
    for more_indices, more_values in pairs[1:]:
        if (more_values.shape[1], more_values.dtype) != (values.shape[1], values.dtype):
            raise IntegrityError(
                f"{more_values.file.path} has {more_values.shape[1]} slots of {more_values.dtype}, {files[0].name} has "
                f"{values.shape[1]} of {values.dtype}; is it of another run?"
            )
        if more_indices.dtype != indices.dtype:
            raise IntegrityError(
                f"{more_indices.file.path} has {more_indices.dtype} indices, {files[0].name} has {indices.dtype}; "
                "is it of another run?"
            )
    if chunk_set is not None:
        d_sae = _check_chunks(chunk_set, [values for _, values in pairs], d_sae)
    if d_sae is not None and not 0 < d_sae <= _MAX_UNITS:
        raise InputError(f"d_sae is {d_sae}; expected 1 to {_MAX_UNITS}")
    source = SparseTopkFiles(
        indices=JoinedArray.of([part for part, _ in pairs]),
        values=JoinedArray.of([part for _, part in pairs]),
        d_sae=d_sae,
        negatives=negatives,
        origin=origin,
    )
    if source.n_rows == 0:
        raise InputError(f"{origin} holds no rows (shape {values.shape}); expected at least one")
    if d_sae is not None and source.k > d_sae:
        raise InputError(f"{origin} has {source.k} slots per row, more than the {d_sae} units of the SAE; check d_sae")
    return source


def _open_one(path: Path) -> tuple[Region, Region]:
    """Open one file and check its shapes and types."""
    if sniff(path) != "pt":
        raise InputError(f"{path} is not a .pt file; expected the sparse_topk dict that torch.save wrote")
    content = pt.open_pt(path)
    written = content.plain.get("format", "sparse_topk")
    if written == "sparse_filtered":
        raise InputError(
            f"{path} has renumbered units (sparse_filtered), and its unit mapping is not reliable, so units cannot be "
            "told apart; import the sparse_topk file that it was made from"
        )
    indices, values = content.tensors.get("indices"), content.tensors.get("values")
    if written != "sparse_topk" or indices is None or values is None:
        names = sorted(content.tensors.keys() | content.plain.keys() | content.unreadable.keys())
        raise InputError(
            f"{path} is not a sparse_topk file: expected indices and values, found {', '.join(names) or 'one tensor'} "
            f"(format {written!r}); import activations as activations"
        )
    if len(values.shape) != 2 or indices.shape != values.shape or values.shape[1] == 0:
        raise InputError(f"{path}: indices have shape {indices.shape}, values {values.shape}; expected both (rows, k)")
    if indices.dtype not in _INTEGERS or values.dtype not in LAKE_DTYPES:
        raise InputError(
            f"{path}: indices are {indices.dtype} and values {values.dtype}; expected whole numbers and floating point"
        )
    topk = content.plain.get("topk", values.shape[1])
    if topk != values.shape[1]:
        raise IntegrityError(f"{path}: topk says {topk}, the arrays have {values.shape[1]} slots; make the file again")
    return indices, values


def _check_chunks(chunk_set: ChunkSet, values: list[Region], d_sae: int | None) -> int | None:
    """Check files against their list and return d_sae; start_idx is not used, the scripts write it wrong."""
    chunk_set.check_rows([part.shape[0] for part in values], starts=False)
    topk = chunk_set.declared_int("topk")
    if topk is not None and topk != values[0].shape[1]:
        raise IntegrityError(
            f"{chunk_set.origin}: topk says {topk}, {values[0].file.path.name} has {values[0].shape[1]}"
        )
    n_features = chunk_set.declared_int("n_features")
    if None not in (n_features, d_sae) and n_features != d_sae:
        raise InputError(
            f"{chunk_set.origin} is of an SAE with {n_features} units, d_sae {d_sae} was given; check the SAE"
        )
    return n_features if d_sae is None else d_sae


def _as_numbers(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return values as float32; a bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def in_slot_order(
    units: NDArray[np.uint32], stored: NDArray[Any], values: NDArray[np.float32], full: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Order slots by (magnitude descending, unit ascending), empty ones last; rows so ordered are left alone.

    Parameters
    ----------
    units, stored, values, full : (n, k)
        Unit ids and values as stored, which are ordered in place; the values as numbers; which slots are not empty.
    """
    left, right = slice(None, -1), slice(1, None)
    size = np.abs(values)
    above = size[:, left] > size[:, right]
    tie = (size[:, left] == size[:, right]) & (units[:, left] < units[:, right])
    in_order = np.where(full[:, right], full[:, left] & (above | tie), True)
    unordered = np.flatnonzero(~in_order.all(axis=1))
    if len(unordered):
        keys = (units[unordered], -size[unordered], ~full[unordered])
        order = np.lexsort(keys, axis=1)
        units[unordered] = np.take_along_axis(units[unordered], order, axis=1)
        stored[unordered] = np.take_along_axis(stored[unordered], order, axis=1)
    return units, stored
