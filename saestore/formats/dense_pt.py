"""Dense matrices as PyTorch files, written block by block; torch is not needed to write them.

The file is what `torch.save` makes of one tensor: a zip file whose member `data.pkl` says how the tensor is made from a
storage, and whose member `data/0` is that storage. The former is a constant but for type and shape, and the latter
the matrix; it begins at a multiple of 64 bytes, so that `torch.load(..., mmap=True)` maps it.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

from saestore.formats.dense_source import DenseBlocks
from saestore.formats.zip_members import write_member

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}
_ALIGNMENT = 64


def write_pt(path: Path, blocks: DenseBlocks) -> None:
    """Write a file that `torch.load(weights_only=True)` reads as one (n, m) tensor."""
    source = blocks.source
    small = {
        "data.pkl": tensor_program(_STORAGES[source.dtype.name], source.rows, len(source.units)),
        "byteorder": b"little",
    }
    with ZipFile(path, "w") as archive:
        for name, content in small.items():
            write_member(archive, _record(name), [content], len(content))
        matrix = (values for _, values in blocks)
        write_member(archive, _record("data", "0"), matrix, source.rows * source.row_bytes, alignment=_ALIGNMENT)
        write_member(archive, _record("version"), [b"3\n"], 2)


def tensor_program(storage: str, rows: int, columns: int) -> bytes:
    """Return the instructions of `data.pkl` that make a contiguous CPU tensor from storage `0`.

    They are those that `torch.save` writes: a call of `torch._utils._rebuild_tensor_v2` with the storage (by its
    persistent id), offset, shape, strides, `requires_grad` and no hooks.
    """
    persistent_id = b"(" + _text("storage") + _name("torch", storage) + _text("0") + _text("cpu")
    persistent_id += _integer(rows * columns) + b"tQ"
    shape = _integer(rows) + _integer(columns) + b"\x86"
    strides = _integer(columns) + _integer(1) + b"\x86"
    no_hooks = _name("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent_id + _integer(0) + shape + strides + b"\x89" + no_hooks + b"t"
    return b"\x80\x02" + _name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R."


def _record(*parts: str) -> str:
    """Return the name of a member; all are below one folder, which torch takes from the first."""
    return "/".join(("archive", *parts))


def _name(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _integer(number: int) -> bytes:
    """Return a number of any size as the instruction LONG1."""
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + len(content).to_bytes(1, "little") + content
