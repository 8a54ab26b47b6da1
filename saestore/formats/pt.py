"""Read PyTorch files without loading them: which tensors they hold and where each lies in the file.

``torch.load`` runs with ``weights_only=True`` (nothing is unpickled) and on the meta device (nothing is read); it notes
at which byte of the file each tensor starts, and the rows are then read from there.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from saestore.errors import DependencyError, InputError, IntegrityError
from saestore.formats.regions import FileStamp, Region, open_zip, stored_member_offset

if TYPE_CHECKING:
    import torch

# Files written before PyTorch 1.6, or with _use_new_zipfile_serialization=False: a bare pickle that starts with this.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGE = {
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "uint8": "|u1",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "|b1",
}


@dataclass(frozen=True)
class SparseRegion:
    """A sparse COO tensor inside a file.

    indices : (number of axes, n) int64
    values : (n,)
    shape : of the tensor
    """

    indices: Region
    values: Region
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PtFile:
    """What a PyTorch file holds.

    tensors : name -> where it lies; nested names are joined by dots, a file that is one tensor has the name ""
    sparse : the same of sparse COO tensors; they are in `unreadable` too, as they have no rows that can be read
    plain : name -> text or number, of the topmost dict
    unreadable : name -> why a tensor cannot be read in place (sparse, quantised, an unusual type)
    """

    tensors: dict[str, Region]
    sparse: dict[str, SparseRegion]
    plain: dict[str, str | int | float]
    unreadable: dict[str, str]


def open_pt(path: Path) -> PtFile:
    """List the tensors of a PyTorch file; reads a few kilobytes, whatever the size of the file.

    Raises
    ------
    InputError
        The file holds Python objects, or was saved in the format before PyTorch 1.6.
    IntegrityError
        The file is damaged or cut short.
    DependencyError
        torch is not installed.
    """
    stamp = FileStamp.of(path)
    with path.open("rb") as stream:
        if stream.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            raise InputError(
                f"{path} is in PyTorch's format from before version 1.6, which cannot be read in parts; re-save it "
                "where it fits in memory: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            )
    starts = _record_starts(path)
    content = _load_meta(path)
    tensors: dict[str, Region] = {}
    sparse: dict[str, SparseRegion] = {}
    unreadable: dict[str, str] = {}
    for name, tensor in _named_tensors(content):
        found = _region(tensor, stamp, starts)
        of_sparse = _sparse_region(tensor, stamp, starts)
        if of_sparse is not None:
            sparse[name] = of_sparse
        if isinstance(found, Region):
            tensors[name] = found
        else:
            unreadable[name] = found
    items = content.items() if isinstance(content, dict) else ()
    plain = {str(name): value for name, value in items if isinstance(value, str | int | float)}
    return PtFile(tensors=tensors, sparse=sparse, plain=plain, unreadable=unreadable)


def _record_starts(path: Path) -> dict[int, int]:
    """Map the byte at which each uncompressed member starts to its size."""
    with open_zip(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise InputError(f"{path} is a TorchScript program, not saved tensors; save the tensors with torch.save")
        if not any(name.endswith("/data.pkl") for name in names):
            raise InputError(f"{path} is a zip file but not one that torch.save wrote; expected a .pt file of tensors")
        order = next((name for name in names if name.endswith("/byteorder")), None)
        if order is not None and archive.read(order).decode() != sys.byteorder:
            raise InputError(f"{path} was written on a machine of the other byte order; re-save it on this one")
        found = ((stored_member_offset(archive, member), member.file_size) for member in archive.infolist())
        return {start: size for start, size in found if start is not None}


def _load_meta(path: Path) -> object:
    try:
        import torch
    except ImportError:
        raise DependencyError(f"reading {path} needs torch; install saestore[torch]") from None
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({culprit.group(1)})" if culprit else ""
        raise InputError(
            f"{path} holds Python objects{what} beside tensors, and reading those can run code, so it is refused; "
            're-save only the tensors where you trust the file: torch.save({"activations": TENSOR}, NEW_FILE)'
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"{path} cannot be read by torch.load: {reason}; copy or save it again") from None


def _named_tensors(content: object, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(content, torch.Tensor):
        return [(prefix, content)]
    if isinstance(content, dict):
        parts = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        parts = [(str(place), value) for place, value in enumerate(content)]
    else:
        return []
    return [found for name, value in parts for found in _named_tensors(value, f"{prefix}.{name}" if prefix else name)]


def _sparse_region(tensor: torch.Tensor, stamp: FileStamp, starts: dict[int, int]) -> SparseRegion | None:
    """Return where the parts of a sparse COO meta tensor of numbers lie in its file; None for other tensors."""
    import torch

    if tensor.layout != torch.sparse_coo or tensor.dense_dim():
        return None
    indices, values = (_region(part, stamp, starts) for part in (tensor._indices(), tensor._values()))
    if not isinstance(indices, Region) or not isinstance(values, Region):
        return None
    return SparseRegion(indices, values, tuple(tensor.shape))


def _region(tensor: torch.Tensor, stamp: FileStamp, starts: dict[int, int]) -> Region | str:
    """Return where a meta tensor lies in its file, or why it cannot be read from there."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{str(tensor.layout).removeprefix('torch.')} {tuple(tensor.shape)}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _STORAGE:
        return f"{dtype} {tuple(tensor.shape)}"
    storage: Any = tensor.untyped_storage()
    start = getattr(storage, "_checkpoint_offset", None)
    if start is None:
        raise DependencyError("reading .pt files in parts needs torch 2.7 or newer; upgrade torch")
    # Reading from a wrong byte would be silent, so the offset is compared with the directory of the zip file.
    if tensor.numel() and starts.get(start, -1) < storage.nbytes():
        raise IntegrityError(f"{stamp.path}: a tensor is not where the file's directory says; re-save the file")
    return Region(
        file=stamp,
        offset=start + tensor.storage_offset() * tensor.element_size(),
        dtype=dtype,
        storage=_STORAGE[dtype],
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
    )
