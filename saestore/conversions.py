"""Codes as matrices, tables and arrays of other libraries, and as reconstructed activations.

`Codes` has these functions as its methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.budget import parse_memory, require_memory
from saestore.code_rows import CodeRows, Holes, Rows, integers, row_blocks
from saestore.engine.arrays import count
from saestore.errors import InputError
from saestore.layout import CodesKey
from saestore.parts import Stored
from saestore.postings import Postings
from saestore.saes.lake import open_lake_sae
from saestore.views import UnitChoice

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from anndata import AnnData
    from scipy.sparse import csc_array, csr_array
    from torch import Tensor

    from saestore.bridges.long_table import LongTable
    from saestore.bridges.matrices import SparseFormat, TorchLayout
    from saestore.engine.arrays import DaskArray

# CSC is made from the postings, which have all rows, where it is of at least one row in so many of them. Measured.
_POSTINGS_SHARE = 2

_DECODE_BYTES = 64 << 20


class Readable(Protocol):
    """Codes, as far as they are converted; rows are places among those that are selected."""

    group: Stored
    key: CodesKey
    k: int
    d_sae: int

    @property
    def axis(self) -> RowAxis:
        """What the rows are."""

    @property
    def postings(self) -> Postings:
        """The unit-major copy."""

    @property
    def quality(self) -> dict[str, Any]:
        """What was measured when the codes were made."""

    @property
    def kept_units(self) -> NDArray[np.int64]:
        """The units that are looked at, ascending."""

    @property
    def view_name(self) -> str | None:
        """The view that keeps them."""

    @property
    def _kept(self) -> UnitChoice | None: ...

    def dense(
        self,
        rows: Rows = ...,
        units: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        *,
        memory: str | int | None = None,
        holes: Holes = "error",
    ) -> NDArray[np.float32]:
        """Return a dense block."""

    def check_units(self, units: NDArray[np.int64]) -> None:
        """Refuse units that are not looked at."""

    def _wanted(self, rows: Rows) -> slice | NDArray[np.int64]: ...

    def _require(self, n: int, slot_bytes: int = ...) -> None: ...

    def _read(self, rows: slice | NDArray[np.int64]) -> CodeRows: ...


def to_scipy(codes: Readable, rows: Rows = slice(None), *, format: SparseFormat = "csr") -> csr_array | csc_array:
    """Return the codes of rows as a scipy array with sorted indices, (n, d_sae) float32; of a view (n, U).

    Parameters
    ----------
    rows : int, slice or sequence of int
    format : {"csr", "csc"}
        CSR is made from the rows; CSC is copied from the postings, or made from the rows where these are few.

    Raises
    ------
    BudgetError
        The matrix would take more than 60 % of the free memory.
    MissingError, HoleError
        There are no postings to make CSC from.
    DependencyError
        scipy, which reading otherwise does without, is not installed.
    """
    from saestore.bridges.matrices import SLOT_BYTES, scipy_csr

    _choose("format", format, ("csr", "csc"))
    wanted = codes._wanted(rows)
    if format == "csc" and count(wanted) * _POSTINGS_SHARE >= codes.group.grid.rows:
        return _by_unit(codes, wanted, codes.kept_units)
    codes._require(count(wanted), SLOT_BYTES[format])
    matrix = scipy_csr(*_columns(codes, wanted), len(codes.kept_units))
    return matrix if format == "csr" else matrix.tocsc()


def to_torch(
    codes: Readable, rows: Rows = slice(None), *, layout: TorchLayout = "sparse_csr"
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the codes of rows as torch tensors.

    Parameters
    ----------
    rows : int, slice or sequence of int
    layout : {"sparse_csr", "sparse_coo", "topk"}
        A sparse tensor, or the slots as they are stored.

    Returns
    -------
    Tensor, or a pair of them
        (n, d_sae) float32, of a view (n, U); of `topk` indices (n, k) int64, original unit ids also of a view, and
        values (n, k) float32, both 0 in empty slots.

    Raises
    ------
    BudgetError
        The tensors would take more than 60 % of the free memory.
    DependencyError
        torch is not installed.
    """
    from saestore.bridges.matrices import SLOT_BYTES, torch_tensor

    _choose("layout", layout, ("sparse_csr", "sparse_coo", "topk"))
    wanted = codes._wanted(rows)
    codes._require(count(wanted), SLOT_BYTES[layout])
    slots = _slots(codes, wanted) if layout == "topk" else _columns(codes, wanted)
    return torch_tensor(*slots, len(codes.kept_units), layout)


def to_pandas(codes: Readable, rows: Rows = slice(None)) -> pd.DataFrame:
    """Return the codes of rows as a long table, one line per filled slot.

    Returns
    -------
    DataFrame
        `row` int64, its number on the row axis; `sample`, its id, categorical; `position` int32, the place in the
        sample; `unit` int32; `value` float32; `split`, categorical. Lines follow the rows asked for, then slots.

    Raises
    ------
    BudgetError
        The table would take more than 60 % of the free memory.
    """
    wanted = codes._wanted(rows)
    return _long_table(codes, wanted).pandas(_most_filled(codes, wanted))


def to_arrow(codes: Readable, rows: Rows = slice(None)) -> pa.Table:
    """Return the codes of rows as a long Arrow table, with the columns of `to_pandas`.

    Raises
    ------
    BudgetError
        The table would take more than 60 % of the free memory.
    DependencyError
        pyarrow is not installed.
    """
    wanted = codes._wanted(rows)
    return _long_table(codes, wanted).arrow(_most_filled(codes, wanted))


def arrow_batches(codes: Readable, rows: Rows = slice(None)) -> pa.RecordBatchReader:
    """Return a reader of the table of `to_arrow` in batches of at most 2^20 lines, each read when it is asked for.

    Raises
    ------
    DependencyError
        pyarrow is not installed.

    Examples
    --------
    >>> batches = codes.arrow_batches()  # doctest: +SKIP
    >>> duckdb.sql("select unit, count(*) from batches group by unit")  # doctest: +SKIP
    """
    return _long_table(codes, codes._wanted(rows)).batches()


def to_dask(
    codes: Readable, *, units: Sequence[int] | NDArray[np.integer[Any]] | None = None, chunk_rows: int | None = None
) -> DaskArray:
    """Return the dense matrix as a Dask array, (n, n_units) float32, whose blocks are read when they are computed.

    Parameters
    ----------
    units : sequence of int, optional
        Original unit ids, in the order of the columns; default all, of a view those it keeps. Name them here: Dask
        hands a slice of columns chosen later down to the reader, but not a list.
    chunk_rows : int, optional
        The most rows in a chunk; default as many stored ones as make 128 MiB. Chunks end where stored ones do.

    Raises
    ------
    MissingError
        A unit does not exist.

    Examples
    --------
    >>> codes.to_dask(units=[3, 8]).max(axis=0).compute()  # doctest: +SKIP
    array([7.25, 4.5 ], dtype=float32)
    """
    from saestore.bridges.lazy import dense_array
    from saestore.engine.arrays import dense_chunk_rows

    chosen = integers(units, "units") if units is not None else None if codes._kept is None else codes.kept_units
    if chosen is not None:
        if not chosen.size:
            raise InputError("units=[] names no unit; leave it out to take all")
        codes.check_units(chosen)
    width = codes.d_sae if chosen is None else chosen.size
    chunk_rows = dense_chunk_rows(codes.group.grid, width * 4) if chunk_rows is None else chunk_rows
    if chunk_rows < 1:
        raise InputError(f"chunk_rows is {chunk_rows}; give at least 1 row")
    return dense_array(codes.dense, chosen, codes.d_sae, codes._wanted(slice(None)), chunk_rows)


def to_anndata(codes: Readable, *, by: Literal["row", "unit"] = "row") -> AnnData:
    """Return the codes as AnnData whose `X` is read when it is computed.

    `adata[rows, units].to_memory()` is the way to a part of it in memory.

    Parameters
    ----------
    by : {"row", "unit"}
        `X` is a Dask array of CSR matrices, which are read by rows, or of CSC matrices, which are read by units
        from the postings.

    Returns
    -------
    AnnData
        `obs`: the row's number, sample id, position and split. `var`: the original unit id. `uns`: which codes
        these are, and their quality.

    Raises
    ------
    MissingError, HoleError
        There are no postings to read by units.
    DependencyError
        anndata or scipy is not installed.

    Examples
    --------
    >>> codes.where(split="test").to_anndata(by="unit")[:, [12, 907]].to_memory()  # doctest: +SKIP
    """
    from saestore.bridges.lazy import annotated, csc_blocks, csr_blocks
    from saestore.engine.arrays import dense_chunk_rows

    _choose("by", by, ("row", "unit"))
    wanted = codes._wanted(slice(None))
    if by == "row":
        chunk_rows = dense_chunk_rows(codes.group.grid, codes.k * 8)
        x = csr_blocks(partial(to_scipy, codes), len(codes.kept_units), wanted, chunk_rows)
    else:
        x = csc_blocks(partial(_units_at, codes), codes.postings.counts[codes.kept_units], wanted)
    key = codes.key
    about: dict[str, Any] = {name: getattr(key, name) for name in ("dataset", "model", "layer", "sae", "sample_type")}
    if codes.view_name is not None:
        about["view"] = codes.view_name
    about |= {"path": key.path, "quality": codes.quality}
    return annotated(x, codes.axis, wanted, codes.kept_units, about)


def decode(codes: Readable, rows: Rows = slice(None), *, memory: str | int | None = None) -> NDArray[np.float32]:
    """Return the activations that the SAE reconstructs from the codes of rows.

    Only the decoder rows of units that occur are read, and of a view only its units take part. Of a transcoder these
    are the activations of its output hook; of a temporal SAE the part that the positions before do not predict.

    Parameters
    ----------
    rows : int, slice or sequence of int
    memory : str or int, optional
        The most the result may take, such as `4GiB`; default 60 % of the free memory.

    Returns
    -------
    (n, d_out) float32

    Raises
    ------
    MissingError
        The SAE is not in the lake, or of one with a skip connection the activations.
    HoleError, InputError
        Rows that were never written, or do not exist.
    BudgetError
        The result would exceed the budget.
    DependencyError
        torch or numba is not installed.

    Examples
    --------
    >>> codes.decode(slice(0, 4)).shape  # doctest: +SKIP
    (4, 384)
    """
    from saestore.saes.decoder import decode

    weights = open_lake_sae(codes.group.storage, codes.key.sae)
    wanted = codes._wanted(rows)
    n = count(wanted)
    width = weights.config.d_out
    require_memory(
        n * width * 4,
        budget=parse_memory(memory),
        what=f"a reconstruction of {n:,} rows x {width:,}",
        remedy="ask for fewer rows at a time",
    )
    out = np.empty((n, width), dtype=np.float32)
    step = max(1, _DECODE_BYTES // (4 * (width + codes.k)))
    activations = Activations.open(codes.group.storage, codes.key.activations) if weights.config.has_skip else None
    for places, part in row_blocks(codes.group, wanted, step, "error"):
        block = codes._read(part)
        shift, scale = (
            codes.group.take(name, block.rows) if name in codes.group.array_names else None
            for name in ("shift", "scale")
        )
        x = None if activations is None else activations.take(block.rows)
        out[places] = decode(weights, block.indices, block.values, shift=shift, scale=scale, x=x)
    return out


def _units_at(codes: Readable, rows: slice | NDArray[np.int64], columns: NDArray[np.int64]) -> csc_array:
    """Return units, by their places among those that are kept, in rows at places."""
    return _by_unit(codes, codes._wanted(rows), codes.kept_units[columns])


def _by_unit(codes: Readable, rows: slice | NDArray[np.int64], units: NDArray[np.int64]) -> csc_array:
    """Return units in rows of the axis, from the postings."""
    from saestore.bridges.matrices import scipy_csc

    return scipy_csc(codes.postings, units, rows, codes.group.grid.rows)


def _slots(codes: Readable, rows: slice | NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return indices and values of rows of the axis."""
    block = codes._read(rows)
    return block.indices, block.values


def _columns(codes: Readable, rows: slice | NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the same with the columns of units among those that are kept."""
    indices, values = _slots(codes, rows)
    return (indices if codes._kept is None else codes._kept.lookup.column[indices]), values


def _long_table(codes: Readable, rows: slice | NDArray[np.int64]) -> LongTable:
    from saestore.bridges.long_table import LongTable

    return LongTable(codes.axis, rows, codes.k, codes.group.grid.chunk_rows, partial(_slots, codes))


def _most_filled(codes: Readable, rows: slice | NDArray[np.int64]) -> int:
    """Return at most how many slots of rows of the axis are filled."""
    if isinstance(rows, slice):
        l0 = codes.group.read("l0", rows.start, rows.stop)
    else:
        l0 = codes.group.take("l0", rows)
    return int(np.minimum(l0, codes.k).sum(dtype=np.int64))


def _choose(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise InputError(f"{option}={given!r} is unknown; choose from {', '.join(known)}")
