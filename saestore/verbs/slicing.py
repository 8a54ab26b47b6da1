"""The verb dense: dense activations of chosen rows and units, as an xarray Dataset or a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saestore.budget import parse_memory, require_memory
from saestore.errors import InputError
from saestore.formats.dense_export import DenseFile, check_target, export_dense
from saestore.formats.dense_source import DenseDtype, DenseSource, chosen_places, dense_dtype, fitted
from saestore.verbs.names import LakeLike, matching_codes, open_lake, row_choice

if TYPE_CHECKING:
    import xarray as xr

    from saestore.catalogs import Catalog


def dense(
    lake: LakeLike,
    dataset: str,
    *,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    rows: str | int | slice | Sequence[int] | None = None,
    split: str | None = None,
    where: str | None = None,
    special: bool | None = None,
    units: Sequence[int] | None = None,
    dtype: DenseDtype = "float32",
    memory: str | int | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    catalog: Catalog | None = None,
) -> xr.Dataset | DenseFile:
    """Return codes as a dense block of rows x units, or write them to a file, however large.

    Parameters
    ----------
    lake : Lake, str or path
    dataset : str
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    view : str, optional
        Only the units that this view keeps; they are the default of `units`.
    rows : str, int, slice or sequence of int, optional
        Such as `0:1000`, counted among the rows that the next three leave; default all.
    split : str, optional
        `train`, `cal` or `test`.
    where : str, optional
        An expression on samples and positions, such as `position > 0 and length < 200`.
    special : bool, optional
        Only special tokens, or only others; default both.
    units : sequence of int, optional
        Original unit ids, in the order of the columns; default all.
    dtype : {"float32", "float16"}
    memory : str or int, optional
        The most the block may take, such as `4GiB`; default 60 % of the free memory. With `out` the most that blocks
        take while they are written: the file may be larger than any memory.
    out : str or path, optional
        A file to write, whole or not at all: `.npy`; `.npz`, with rows, units and l0; `.pt`, one tensor; `.zarr`, a
        plain Zarr v3 group that `xr.open_zarr` reads; `.parquet` or `.csv`, a line per row with sample, split,
        position and a column per unit. Beside it lies `<out>.units.json`: the original unit of each column.
    quiet : bool
        Show no progress.

    Returns
    -------
    Dataset
        `codes (row, unit)`, `l0 (row)` and the coordinates of rows, in memory; or, with `out`, `DenseFile`.

    Raises
    ------
    BudgetError
        The block exceeds the memory.
    HoleError
        Some of the rows were never written.
    InputError
        The file's ending is unknown, it cannot be written, a value does not fit float16, or no rows are left.

    Examples
    --------
    >>> dense("demo/lake", "5_hist_fig_ismale", rows="0:8", units=[3, 17]).codes.shape  # doctest: +SKIP
    (8, 2)
    >>> dense("demo/lake", "5_hist_fig_ismale", split="train", out="train.pt").units_file  # doctest: +SKIP
    PosixPath('train.pt.units.json')
    """
    value_type = dense_dtype(dtype)
    path = None if out is None else check_target(out)
    opened = open_lake(lake, catalog=catalog)
    [codes] = matching_codes(
        opened, datasets=[dataset], sae=sae, layer=layer, sample_type=sample_type, model=model, view=view
    )
    if split is not None or where is not None or special is not None:
        codes = codes.where(where, split=split, special=special)
    chosen = chosen_places(codes, slice(None) if rows is None else row_choice(rows))
    count = chosen.stop - chosen.start if isinstance(chosen, slice) else len(chosen)
    if not count:
        raise InputError(f"rows {rows} are none of the {codes.n_rows:,} rows of {codes.key.path}")
    named = None if units is None or not len(units) else list(units)
    if path is not None:
        return export_dense(DenseSource.of(codes, chosen, named, dtype), path, memory=memory, quiet=quiet)
    width = len(codes.kept_units) if named is None else len(named)
    require_memory(
        count * width * 4,
        budget=parse_memory(memory),
        what=f"a dense block of {count:,} rows x {width:,} units",
        remedy="ask for fewer with --rows 0:1000 or --units 1 2 3, give more with --memory, or write it with --out",
    )
    from saestore.xarray_engine import to_xarray

    block = to_xarray(codes, units=named, memory=memory).isel(row=chosen).load()
    numbers = block.row_number.values
    values = fitted(block.codes.values, value_type, lambda row: int(numbers[row]), block.unit.values)
    return block.assign(codes=block.codes.copy(data=values)).assign_coords(row=numbers)
