"""Codes as sparse matrices of scipy and tensors of torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.bridges.packages import imported
from saestore.budget import parse_memory, require_memory
from saestore.cuts import cuts
from saestore.engine.arrays import Places, count
from saestore.kernels.sparse import csr_arrays, place_dtype
from saestore.postings import Postings
from saestore.prefetch import prefetch

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array
    from torch import Tensor

SparseFormat = Literal["csr", "csc"]
TorchLayout = Literal["sparse_csr", "sparse_coo", "topk"]

SLOT_BYTES = {"csr": 18, "csc": 26, "sparse_csr": 18, "sparse_coo": 50, "topk": 22}
"""The most that a slot takes while it is read and converted."""

_READ_ENTRIES = 1 << 21  # of the postings, read at a time
_READ_BYTES = 80  # of such an entry, with one ahead


def scipy_csr(indices: NDArray[Any], values: NDArray[Any], d_sae: int) -> csr_array:
    """Return codes of rows as a CSR array with sorted indices: (n, d_sae) float32.

    Parameters
    ----------
    indices, values : (n, k)
        Codes as stored.
    """
    sparse = imported("scipy.sparse", "to_scipy")
    return _canonical(sparse.csr_array(csr_arrays(indices, values), shape=(len(indices), d_sae), copy=False))


def scipy_csc(postings: Postings, units: NDArray[np.int64], rows: Places, n_rows: int) -> csc_array:
    """Return units as the columns of a CSC array with sorted indices, copied from the postings: (n, m) float32.

    Parameters
    ----------
    units : (m,) int64
    rows : slice of step 1, or (n,) int64
        Rows of the axis, in the order of the result's.
    n_rows : int
        Length of the axis.
    """
    sparse = imported("scipy.sparse", "to_scipy")
    postings.check(units)
    kept, order = _ascending(rows)
    n = count(kept)
    counts = postings.counts[units]
    most = int(np.minimum(counts, n).sum())  # a unit has at most one entry in a row
    dtype = place_dtype(max(n, most))
    require_memory(
        most * (4 + dtype.itemsize) * (1 if order is None else 2) + _READ_ENTRIES * _READ_BYTES,
        budget=parse_memory(None),
        what=f"a CSC matrix of {n:,} rows x {len(units):,} units",
        remedy="select fewer rows with where(), or compute with blocks of units: to_anndata(by='unit')",
    )
    place_of = None if isinstance(kept, slice) and n == n_rows else _placer(kept)
    # What is never written to takes no memory.
    data, places = np.empty(most, dtype=np.float32), np.empty(most, dtype=dtype)
    pointers = np.zeros(len(units) + 1, dtype=np.int64)
    parts = [slice(*edges) for edges in itertools.pairwise(cuts(counts, _READ_ENTRIES).tolist())]
    for part, found in prefetch(lambda part: postings.read(units[part]), parts):
        offsets, at, values = found.offsets, found.rows, found.values
        if place_of is not None:
            at = place_of(at)
            held = at >= 0
            offsets, at, values = np.append(0, np.cumsum(held))[offsets], at[held], values[held]
        done = pointers[part.start]
        places[done : done + len(at)], data[done : done + len(at)] = at, values
        pointers[part.start + 1 : part.stop + 1] = done + offsets[1:]
    arrays = data[: pointers[-1]], places[: pointers[-1]], pointers.astype(dtype)
    matrix = _canonical(sparse.csc_array(arrays, shape=(n, len(units)), copy=False))
    if order is None:
        return matrix
    matrix = matrix[order]
    matrix.sort_indices()
    return matrix


def torch_tensor(
    indices: NDArray[Any], values: NDArray[np.float32], d_sae: int, layout: TorchLayout
) -> Tensor | tuple[Tensor, Tensor]:
    """Return codes of rows as a sparse tensor, (n, d_sae) float32, or as (indices, values), (n, k) each.

    Parameters
    ----------
    indices, values : (n, k)
        Codes as they are read.
    """
    torch: Any = imported("torch", "to_torch")
    if layout == "topk":
        return torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(np.require(values, requirements="W"))
    data, columns, pointers = csr_arrays(indices, values)
    shape = (len(indices), d_sae)
    if layout == "sparse_csr":
        crow, col = torch.from_numpy(pointers), torch.from_numpy(columns)
        sparse: Tensor = torch.sparse_csr_tensor(crow, col, torch.from_numpy(data), size=shape, check_invariants=False)
        return sparse
    rows = np.repeat(np.arange(len(indices)), np.diff(pointers))
    # Rows ascend, columns ascend in each: that is what torch calls coalesced.
    coalesced: Tensor = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns.astype(np.int64)])),
        torch.from_numpy(data),
        size=shape,
        is_coalesced=True,
        check_invariants=False,
    )
    return coalesced


def _canonical(matrix: Any) -> Any:
    """Tell scipy what it would find out by a pass over all indices."""
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def _ascending(rows: Places) -> tuple[Places, NDArray[np.intp] | None]:
    """Return rows ascending, each once, and for each row asked for its place among them where that is another."""
    if isinstance(rows, slice) or (np.diff(rows) > 0).all():
        return rows, None
    distinct, order = np.unique(rows, return_inverse=True)
    return distinct, order


def _placer(rows: Places) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Return a function from rows of the axis to their places among ascending rows, -1 where they are not there."""
    if isinstance(rows, slice):
        span = rows.stop - rows.start

        def in_span(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
            places: NDArray[np.int64] = numbers - rows.start
            places[places >= span] = -1  # what lies before is negative already
            return places

        return in_span
    # A look-up in a table of the span costs one access for an entry, a search among the rows many.
    first, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    require_memory(
        (stop - first) * 8,
        budget=parse_memory(None),
        what=f"the places of rows {first:,} to {stop - 1:,}",
        remedy="select rows that lie nearer together",
    )
    table: NDArray[np.int64] = np.full(stop - first + 1, -1, dtype=np.int64)  # the last stands for all rows outside
    table[rows - first] = np.arange(len(rows))

    def in_table(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        places = numbers - first
        places[(places < 0) | (places >= stop - first)] = -1
        found: NDArray[np.int64] = table[places]
        return found

    return in_table
