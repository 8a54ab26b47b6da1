"""PyTorch files of one tensor, written as a stream; torch is not needed to write them.

The file is what `torch.save` makes of a tensor: a zip file whose member `data.pkl` says how the tensor is made from
storages, and whose members `data/0`, `data/1`, ... are these. The former is a constant but for types and shapes, and
the latter the numbers; each begins at a multiple of 64 bytes, so that `torch.load(..., mmap=True)` maps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from saestore.formats.zip_members import Part, write_member

_ALIGNMENT = 64


@dataclass(frozen=True)
class StoredTensor:
    """A contiguous tensor of a file.

    storage : torch's name of the type of its numbers, such as `FloatStorage`
    shape : of the tensor
    n_bytes : of its numbers
    parts : its numbers in C order, a block at a time
    """

    storage: str
    shape: tuple[int, ...]
    n_bytes: int
    parts: Iterable[Part]


def write_tensor(path: Path, tensor: StoredTensor) -> None:
    """Write a file that `torch.load(weights_only=True)` reads as one dense tensor."""
    _write(path, tensor_program(tensor.storage, tensor.shape), [tensor])


def write_sparse(path: Path, shape: tuple[int, int], indices: StoredTensor, values: StoredTensor) -> None:
    """Write a file that `torch.load(weights_only=True)` reads as one sparse COO matrix.

    Parameters
    ----------
    path : Path
    shape : (int, int)
        Of the matrix.
    indices : StoredTensor
        (2, n) int64: the row and the column of each number, by row and then by column, none of them twice.
    values : StoredTensor
        (n,) float32
    """
    _write(path, sparse_program(shape, indices, values), [indices, values])


def tensor_program(storage: str, shape: Sequence[int]) -> bytes:
    """Return the instructions of `data.pkl` that make a contiguous CPU tensor from storage `0`."""
    return b"\x80\x02" + _dense(storage, shape, "0") + b"."


def sparse_program(shape: tuple[int, int], indices: StoredTensor, values: StoredTensor) -> bytes:
    """Return the instructions of `data.pkl` that make a sparse matrix of the tensors of storages `0` and `1`.

    They are those that `torch.save` writes: a call of `torch._utils._rebuild_sparse_tensor` with the layout, and with
    indices, values, shape and whether indices are in order and none is there twice.
    """
    layout = _name("torch.serialization", "_get_layout") + _text("torch.sparse_coo") + b"\x85R"
    size = _name("torch", "Size") + b"".join(map(_integer, shape)) + b"\x86\x85R"
    parts = _dense(indices.storage, indices.shape, "0") + _dense(values.storage, values.shape, "1")
    made_of = b"(" + parts + size + b"\x88" + b"t"
    return b"\x80\x02" + _name("torch._utils", "_rebuild_sparse_tensor") + layout + made_of + b"\x86R."


def _dense(storage: str, shape: Sequence[int], key: str) -> bytes:
    """Return the instructions that make a dense tensor.

    They are those that `torch.save` writes: a call of `torch._utils._rebuild_tensor_v2` with the storage (by its
    persistent id), offset, shape, strides, `requires_grad` and no hooks.
    """
    persistent_id = b"(" + _text("storage") + _name("torch", storage) + _text(key) + _text("cpu")
    persistent_id += _integer(math.prod(shape)) + b"tQ"
    strides = [math.prod(max(1, size) for size in shape[axis + 1 :]) for axis in range(len(shape))]
    no_hooks = _name("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent_id + _integer(0) + _tuple(shape) + _tuple(strides) + b"\x89" + no_hooks + b"t"
    return _name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _write(path: Path, program: bytes, tensors: Sequence[StoredTensor]) -> None:
    with ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": program, "byteorder": b"little"}.items():
            write_member(archive, _record(name), [content], len(content))
        for number, tensor in enumerate(tensors):
            name = _record("data", str(number))
            write_member(archive, name, tensor.parts, tensor.n_bytes, alignment=_ALIGNMENT)
        write_member(archive, _record("version"), [b"3\n"], 2)


def _record(*parts: str) -> str:
    """Return the name of a member; all are below one folder, which torch takes from the first."""
    return "/".join(("archive", *parts))


def _name(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _tuple(numbers: Sequence[int]) -> bytes:
    """Return a tuple of one or two numbers."""
    return b"".join(map(_integer, numbers)) + {1: b"\x85", 2: b"\x86"}[len(numbers)]


def _integer(number: int) -> bytes:
    """Return a number of any size as the instruction LONG1."""
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + len(content).to_bytes(1, "little") + content
