"""The verb dense: a dense block of chosen rows and units, as an xarray Dataset or a file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saestore.budget import parse_memory, require_memory
from saestore.errors import DependencyError, InputError
from saestore.verbs.names import LakeLike, matching_codes, open_lake, row_choice

if TYPE_CHECKING:
    import xarray as xr

    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class DenseFile:
    """A written dense block."""

    path: Path
    rows: int
    units: int
    bytes: int


def dense(
    lake: LakeLike,
    dataset: str,
    *,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    rows: str | int | slice | Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    memory: str | int | None = None,
    out: str | os.PathLike[str] | None = None,
    catalog: Catalog | None = None,
) -> xr.Dataset | DenseFile:
    """Return codes as a dense block of rows x units, or write it to a file.

    Parameters
    ----------
    lake : Lake, str or path
    dataset : str
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    rows : str, int, slice or sequence of int, optional
        Such as `0:1000`; default all.
    units : sequence of int, optional
        Original unit ids; default all.
    memory : str or int, optional
        The most the block may take, such as `4GiB`; default 60 % of the free memory.
    out : str or path, optional
        A file to write, whole or not at all: `.npy` (the block), `.npz` (with rows and units), `.csv` or `.parquet`
        (one row each, with sample, split, position and a column per unit).

    Returns
    -------
    Dataset
        `codes (row, unit)` float32, `l0 (row)` and the coordinates of rows, in memory; or, with `out`, `DenseFile`.

    Raises
    ------
    BudgetError
        The block exceeds the memory.
    InputError
        The file's ending is unknown, or it cannot be written.

    Examples
    --------
    >>> dense("demo/lake", "5_hist_fig_ismale", rows="0:8", units=[3, 17]).codes.shape  # doctest: +SKIP
    (8, 2)
    """
    path = None if out is None else Path(out).expanduser()
    if path is not None and path.suffix.lower() not in _WRITERS:
        raise InputError(f"{path}: the ending is unknown; choose from {', '.join(_WRITERS)}")
    opened = open_lake(lake, catalog=catalog)
    codes = matching_codes(opened, datasets=[dataset], sae=sae, layer=layer, sample_type=sample_type, model=model)[0]
    chosen = slice(None) if rows is None else row_choice(rows)
    count = len(range(*chosen.indices(codes.n_rows))) if isinstance(chosen, slice) else len(chosen)
    named = None if units is None or not len(units) else list(units)
    width = codes.d_sae if named is None else len(named)
    if not count:
        raise InputError(f"rows {rows} are none of the {codes.n_rows:,} rows of {codes.key.path}")
    require_memory(
        count * width * 4,
        budget=parse_memory(memory),
        what=f"a dense block of {count:,} rows x {width:,} units",
        remedy="ask for fewer with --rows 0:1000 or --units 1 2 3, or give more with --memory",
    )
    block = _open(opened.url, opened.storage.options, codes.key.path, named, memory)
    if not isinstance(chosen, slice):
        codes.sample_of(np.asarray(chosen))  # the reader's own error for rows that are no rows, in the lake's words
    block = block.isel(row=chosen).assign_coords(row=np.arange(codes.n_rows)[chosen]).load()
    if path is None:
        return block
    _write(path, block)
    return DenseFile(path, count, width, path.stat().st_size)


def _open(url: str, options: object, path: str, units: list[int] | None, memory: str | int | None) -> xr.Dataset:
    import xarray

    return xarray.open_dataset(
        f"{url.rstrip('/')}/{path}", engine="saestore", units=units, memory=memory, storage_options=options or None
    )


def _npy(path: Path, block: xr.Dataset) -> None:
    with open(path, "wb") as file:
        np.save(file, block.codes.values, allow_pickle=False)


def _npz(path: Path, block: xr.Dataset) -> None:
    with open(path, "wb") as file:
        np.savez(file, codes=block.codes.values, l0=block.l0.values, rows=block.row.values, units=block.unit.values)


def _csv(path: Path, block: xr.Dataset) -> None:
    _frame(block).to_csv(path, index=False)


def _parquet(path: Path, block: xr.Dataset) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DependencyError(f"{path} needs pyarrow: pip install 'saestore[parquet]'") from None
    _frame(block).to_parquet(path, index=False)


_WRITERS: dict[str, Callable[[Path, xr.Dataset], None]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _frame(block: xr.Dataset) -> Any:
    """Return one line per row: what the row is, l0, and a column per unit, named by its id."""
    import pandas as pd

    about = {"row": block.row.values}
    about |= {name: block[name].values for name in ("sample", "split", "position", "special") if name in block.coords}
    about["l0"] = block.l0.values
    values = pd.DataFrame(block.codes.values, columns=[str(unit) for unit in block.unit.values])
    return pd.concat([pd.DataFrame(about), values], axis=1)


def _write(path: Path, block: xr.Dataset) -> None:
    """Write beside the target and rename, so that a file of this name is always whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _WRITERS[path.suffix.lower()](partial, block)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from None
