"""Dense exports: a matrix of rows and units in a file of another tool, whole or not at all, in bounded memory."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saestore._whole_files import explained, partial_name
from saestore.budget import parse_memory, readable_bytes, require_memory
from saestore.errors import InputError
from saestore.formats.dense_npy import write_npy, write_npz
from saestore.formats.dense_pt import write_pt
from saestore.formats.dense_source import DenseBlocks, DenseSource
from saestore.formats.dense_tables import check_parquet, write_csv, write_parquet
from saestore.formats.dense_zarr import write_zarr
from saestore.progress import Progress
from saestore.storage import document_key

# How often a block is in memory at most: one is written, with a copy of it, and one is read, with what it is made from.
_COPIES = 4

_MARK = "saestore_dense"
"""The attribute by which a `.zarr` is known as one that was written here."""


@dataclass(frozen=True)
class DenseFile:
    """A written dense matrix.

    path : the file, or of `.zarr` the folder
    units_file : JSON that says which unit each column is
    """

    path: Path
    rows: int
    units: int
    bytes: int
    seconds: float
    units_file: Path


@dataclass(frozen=True)
class _Format:
    """How a kind of file is written.

    write : writes it to a path
    block_bytes : of the block that is written at a time
    plain : whether it takes the bytes of the matrix, so that it is known beforehand whether they fit on the disk
    check : refuses what cannot be written, before anything is
    """

    write: Callable[[Path, DenseBlocks], None]
    block_bytes: int = 16 << 20
    plain: bool = False
    check: Callable[[Path, DenseBlocks], None] = lambda path, blocks: None


_FORMATS = {
    ".npy": _Format(write_npy, plain=True),
    ".npz": _Format(write_npz, plain=True),
    ".pt": _Format(write_pt, plain=True),
    ".zarr": _Format(lambda path, blocks: write_zarr(path, blocks, {_MARK: description(blocks.source)}), 64 << 20),
    ".parquet": _Format(write_parquet, 64 << 20, check=check_parquet),
    ".csv": _Format(write_csv, 2 << 20),
}
ENDINGS = tuple(_FORMATS)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return where a matrix can be written.

    Raises
    ------
    InputError
        The ending is unknown, it is a URL, or there is something of that name that is not replaced: a file is replaced
        by a file, and a folder only by a `.zarr` where it is one that was written here.
    """
    if "://" in os.fspath(path):
        raise InputError(f"{os.fspath(path)} is a URL, and dense files are written to local disks; give a path")
    target = Path(path).expanduser()
    ending = target.suffix.lower()
    if ending not in _FORMATS:
        raise InputError(f"{target}: the ending is unknown; choose from {', '.join(ENDINGS)}")
    if ending == ".zarr" and target.exists() and not _is_own(target):
        raise InputError(f"{target} exists and is no dense matrix that was written here; choose another name")
    if ending != ".zarr" and target.is_dir():
        raise InputError(f"{target} is a folder; give the name of a file in it")
    return target


def export_dense(
    source: DenseSource, out: str | os.PathLike[str], *, memory: str | int | None = None, quiet: bool = False
) -> DenseFile:
    """Write a matrix to a file, replacing what there is, and beside it a JSON file that names the unit of each column.

    Both are written under other names and renamed when they are whole. While one block is written the next is read, so
    that memory does not grow with the matrix.

    Parameters
    ----------
    source : DenseSource
    out : str or path
        A file ending in one of these: `.npy`; `.npz`, with rows, units and l0; `.pt`, one tensor; `.zarr`, a plain Zarr
        v3 group with coordinates; `.parquet` or `.csv`, a line per row with a column per unit.
    memory : str or int, optional
        The most that blocks of the matrix may take, such as `256MiB`; default what is best, or 60 % of the free memory
        where that is less.
    quiet : bool
        Show no progress.

    Raises
    ------
    InputError
        The file cannot be written, or a value does not fit its type.
    BudgetError
        Not even a row fits.
    DependencyError
        pyarrow, which `.parquet` needs, is not installed.
    """
    path = check_target(out)
    form = _FORMATS[path.suffix.lower()]
    budget = parse_memory(memory)
    require_memory(
        4 * len(source.units) * _COPIES,
        budget=budget,
        what=f"one dense row of {len(source.units):,} units, as often as it is in memory,",
        remedy="name the units you need with --units, or give more with --memory",
    )
    units_file = path.with_name(f"{path.name}.units.json")
    begun = time.monotonic()
    with Progress("dense", total=source.rows, unit="rows", quiet=quiet) as progress:
        blocks = DenseBlocks.of(source, min(form.block_bytes, budget // _COPIES), progress)
        form.check(path, blocks)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if form.plain:
                _require_disk(path, source.rows * source.row_bytes)
            with _removed(path) as partial, _removed(units_file) as partial_units:
                form.write(partial, blocks)
                partial_units.write_text(json.dumps({"lake": description(source), **unit_mapping(source)}))
                for written in (partial, partial_units):
                    _sync(written)
                size = _size(partial)
                # Between these steps there is no mapping, rather than that of another matrix.
                units_file.unlink(missing_ok=True)
                _rename(partial, path)
                os.replace(partial_units, units_file)
    return DenseFile(path, source.rows, len(source.units), size, time.monotonic() - begun, units_file)


def description(source: DenseSource) -> dict[str, Any]:
    """Return what a matrix is, for the file beside it: names, run of the codes, number of rows, type."""
    codes = source.codes
    about: dict[str, Any] = {
        name: getattr(codes.key, name) for name in ("dataset", "model", "layer", "sae", "sample_type")
    }
    about |= {"run": codes.run, "rows": source.rows, "dtype": source.dtype.name}
    about |= {"where": codes.selection.words} if codes.is_selection else {}
    return about | ({"view": codes.view_name} if codes.view_name is not None else {})


def unit_mapping(source: DenseSource) -> dict[str, Any]:
    """Return which unit each column is, and which column each unit.

    `kept_units` are the original ids in the order of the columns, `unit_id_to_new_idx` the column of each (keys are
    text, as JSON has it), `n_original` the units of the SAE, and `n_filtered` the columns.
    """
    units = source.units.tolist()
    return {
        "kept_units": units,
        "unit_id_to_new_idx": {str(unit): column for column, unit in enumerate(units)},
        "n_original": source.codes.d_sae,
        "n_filtered": len(units),
    }


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """Give a name beside a target to write a file or a folder under; what has it at the end is removed."""
    partial = partial_name(path)
    try:
        yield partial
    finally:
        _remove(partial)


def _require_disk(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise InputError(
            f"cannot write {path}: it takes {readable_bytes(n_bytes)} and {readable_bytes(free)} of the disk are free; "
            "choose another place with --out, or write .zarr, which is compressed"
        )


def _is_own(folder: Path) -> bool:
    """Whether a folder is a matrix that was written here."""
    try:
        document = json.loads((folder / document_key("")).read_text())
        return _MARK in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _rename(partial: Path, path: Path) -> None:
    """Give what was written its name, in place of what has it."""
    if not path.is_dir():
        os.replace(partial, path)
        return
    with _removed(path) as old:
        os.replace(path, old)
        os.replace(partial, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or all files of a folder, on the disk."""
    for one in _files(path):
        with one.open("rb") as file:
            os.fsync(file.fileno())


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in _files(path))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)
