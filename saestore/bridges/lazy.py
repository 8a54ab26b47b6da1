"""Codes as Dask arrays and AnnData: nothing is read of the matrix before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.axis import RowAxis
from saestore.bridges.long_table import RowLabels
from saestore.bridges.packages import imported
from saestore.budget import parse_memory, require_memory
from saestore.cuts import cuts
from saestore.engine.arrays import BLOCK_BYTES, LazyMatrix, Places, count, lazy_array, row_chunks

if TYPE_CHECKING:
    from anndata import AnnData

    from saestore.engine.arrays import DaskArray

By = Literal["row", "unit"]

_ENTRY_BYTES = 8  # its value and its place in the sparse matrix
_LABEL_BYTES = 150  # of a row of AnnData, most of it the name that AnnData wants


Dense = Callable[[Places, NDArray[np.int64] | None], NDArray[np.float32]]


def dense_array(dense: Dense, units: NDArray[np.int64] | None, d_sae: int, rows: Places, chunk_rows: int) -> DaskArray:
    """Return the dense matrix of units as a Dask array.

    Parameters
    ----------
    dense : function
        Returns the dense block at places among the rows, of units or of all.
    units : (m,) int64, optional
        Default all.
    rows : slice of step 1, or (n,) int64
        Rows of the axis.
    chunk_rows : int
        The most rows in a chunk.
    """
    width = d_sae if units is None else len(units)
    matrix = LazyMatrix(partial(_dense_block, dense, units, d_sae), (count(rows), width), np.dtype(np.float32))
    return lazy_array(matrix, (row_chunks(rows, chunk_rows), [width]), np.empty((0, 0), dtype=np.float32))


def csr_blocks(csr: Callable[[Places], Any], d_sae: int, rows: Places, chunk_rows: int) -> DaskArray:
    """Return codes as a Dask array of CSR matrices, chunked by rows.

    Parameters
    ----------
    csr : function
        Returns the CSR array at places among the rows.
    """
    matrix = LazyMatrix(partial(_csr_block, csr), (count(rows), d_sae), np.dtype(np.float32))
    sparse = imported("scipy.sparse", "to_anndata")
    return lazy_array(matrix, (row_chunks(rows, chunk_rows), [d_sae]), sparse.csr_matrix((0, 0), dtype=np.float32))


def csc_blocks(csc: Callable[[Places, NDArray[np.int64]], Any], counts: NDArray[np.int64], rows: Places) -> DaskArray:
    """Return codes as a Dask array of CSC matrices, chunked by units.

    Parameters
    ----------
    csc : function
        Returns the CSC array at places among the rows, of units.
    counts : (d_sae,) int64
        Entries of each unit.
    """
    matrix = LazyMatrix(partial(_csc_block, csc), (count(rows), len(counts)), np.dtype(np.float32))
    widths = np.diff(cuts(counts, BLOCK_BYTES // _ENTRY_BYTES))
    sparse = imported("scipy.sparse", "to_anndata")
    return lazy_array(matrix, ([count(rows)], widths), sparse.csc_matrix((0, 0), dtype=np.float32))


def annotated(x: DaskArray, axis: RowAxis, rows: Places, units: NDArray[np.int64], uns: Mapping[str, Any]) -> AnnData:
    """Return AnnData of a matrix whose rows are rows of an axis, and whose columns are units."""
    anndata = imported("anndata", "to_anndata")
    import pandas as pd

    require_memory(
        count(rows) * _LABEL_BYTES,
        budget=parse_memory(None),
        what=f"the names of {count(rows):,} rows",
        remedy="select fewer rows with where()",
    )
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    labels = RowLabels(axis, rows)
    obs = pd.DataFrame(labels.categorical(labels.of(numbers)), index=numbers.astype(str).astype(object))
    var = pd.DataFrame({"unit": units}, index=units.astype(str).astype(object))
    return anndata.AnnData(X=x, obs=obs, var=var, uns=dict(uns))


def _dense_block(
    dense: Dense, units: NDArray[np.int64] | None, d_sae: int, rows: Places, columns: Places
) -> NDArray[np.float32]:
    if units is not None:
        return dense(rows, units[columns])
    everything = isinstance(columns, slice) and count(columns) == d_sae
    return dense(rows, None if everything else np.arange(d_sae)[columns])


def _csr_block(csr: Callable[[Places], Any], rows: Places, columns: Places) -> Any:
    sparse = imported("scipy.sparse", "to_anndata")
    # AnnData reads matrices, not arrays, and so do most of the tools that take it.
    block = sparse.csr_matrix(csr(rows))
    return block if isinstance(columns, slice) and count(columns) == block.shape[1] else block[:, columns]


def _csc_block(csc: Callable[[Places, NDArray[np.int64]], Any], rows: Places, columns: Places) -> Any:
    sparse = imported("scipy.sparse", "to_anndata")
    units = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
    return sparse.csc_matrix(csc(rows, units))
