"""Joining what lies on one row axis, and bringing rows of positions to the rows of their samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.budget import parse_memory, require_memory
from saestore.code_rows import integers
from saestore.codes import Codes
from saestore.errors import DependencyError, InputError
from saestore.kernels.densify import unit_lookup
from saestore.kernels.reduce import Reduction, reduce_entries

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_Entries = tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32], NDArray[np.int64]]
"""Places of rows, units and values of entries, and the offsets of samples among the places; see `reduce_entries`."""

_BLOCK_SLOTS = 1 << 21
_ENTRY_BYTES = 40  # of an entry while a block is reduced


@dataclass(frozen=True)
class PerSample:
    """Codes of samples, each reduced from its rows.

    how : the reduction
    samples : (m,) int64
        Places in the sample table of the samples that have a row.
    units : (u,) int64
        Original ids of the columns.
    values : (m, u) float32 CSR array
    """

    how: Reduction
    samples: NDArray[np.int64]
    units: NDArray[np.int64]
    values: csr_array


def same_rows(*parts: Codes | Activations) -> None:
    """Check that several codes or activations have the same rows, so that row i of each is the same position.

    Layers and SAEs of one model over one dataset do: joining them needs nothing more.

    Raises
    ------
    InputError
        Two of them lie on different axes, or select different rows; the message says what to do.

    Examples
    --------
    >>> same_rows(lake.codes("d", layer=3), lake.codes("d", layer=5))  # doctest: +SKIP
    """
    first = parts[0]
    for part in parts[1:]:
        names = f"{first.key.path} and {part.key.path}"
        mine, other = _axis(first), _axis(part)
        if (mine.positions is None) != (other.positions is None):
            raise InputError(
                f"{names} have rows of positions and rows of samples; reduce the positions with "
                f"per_sample(codes, how), how being one of {', '.join(get_args(Reduction))}"
            )
        if mine.digest != other.digest:
            raise InputError(
                f"{names} lie on different axes (another dataset, model or tokenizer); join them by sample with "
                "per_sample(codes, how)"
            )
        if not np.array_equal(_edges(first), _edges(part)):
            raise InputError(f"{names} select different rows; give both the same where(...)")


def per_sample(
    codes: Codes,
    how: Reduction,
    *,
    units: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    special: bool = False,
    memory: str | int | None = None,
) -> PerSample:
    """Reduce codes of positions to codes of samples.

    Parameters
    ----------
    codes : Codes
        Of a selection, only its rows count.
    how : {"max", "mean", "sum", "count", "last"}
        Over the rows of a sample; rows where a unit is not active are zeros and take part, see
        `saestore.kernels.reduce`.
    units : sequence of int, optional
        Original unit ids, in the order of the columns; default all, of a view those it keeps.
    special : bool
        Whether rows of special tokens count.
    memory : str or int, optional
        The most the result and its making may take, such as `4GiB`; default 60 % of the free memory.

    Raises
    ------
    InputError
        An unknown reduction, units that are named twice, or a selection without rows.
    MissingError
        A unit does not exist.
    BudgetError
        The entries could exceed the memory.
    HoleError, IntegrityError
        Some rows were never written, or are damaged.

    Examples
    --------
    >>> per_sample(lake.codes("d"), "max").values.shape  # doctest: +SKIP
    (5000, 65536)
    """
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise DependencyError("per_sample needs scipy; install it with: pip install scipy") from None

    if how not in get_args(Reduction):
        raise InputError(f"how={how!r} is unknown; choose from {', '.join(get_args(Reduction))}")
    chosen = codes if special or codes.positions is None else codes.where(special=False)
    wanted = codes.kept_units if units is None else np.atleast_1d(integers(units, "units"))
    if not wanted.size:
        raise InputError("units=[] names no unit; leave it out to take all")
    codes.check_units(wanted)
    lookup = unit_lookup(wanted, codes.d_sae)
    if lookup.order is not None:
        raise InputError("a unit is named twice; name each unit once")
    require_memory(
        (_BLOCK_SLOTS + min(len(chosen) * codes.k, _cells(chosen, wanted))) * _ENTRY_BYTES,
        budget=parse_memory(memory),
        what=f"the entries of {len(chosen.samples):,} samples and {len(wanted):,} units",
        remedy="name fewer units, select fewer rows with where(), or give more memory",
    )
    if units is not None and chosen.costs_less_by_unit(len(chosen), wanted, parse_memory(memory)):
        blocks: Iterable[tuple[int, _Entries]] = [(0, _entries_by_unit(chosen, wanted))]
    else:
        blocks = _entries(chosen, lookup.wanted)
    parts, numbers = [], []
    for first, entries in blocks:
        parts.append(reduce_entries(*entries, how))
        numbers.append(parts[-1][0] + first)
    rows = np.concatenate(numbers)
    columns = lookup.column[np.concatenate([part[1] for part in parts])]
    held = np.flatnonzero(np.diff(chosen.selection.sample_offsets))
    matrix = csr_array(
        (np.concatenate([part[2] for part in parts]), (np.searchsorted(held, rows), columns)),
        shape=(len(held), len(wanted)),
    )
    return PerSample(how, held, wanted, matrix)


def _entries_by_unit(codes: Codes, units: NDArray[np.int64]) -> _Entries:
    """Return all entries of units, from the postings."""
    found = codes.units(units)
    places = codes.selection.places(np.concatenate([unit.rows for unit in found]))
    of_units = np.repeat(units, [len(unit) for unit in found])
    return places, of_units, np.concatenate([unit.values for unit in found]), codes.selection.sample_offsets


def _entries(codes: Codes, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, _Entries]]:
    """Yield blocks of whole samples: the first one, and the entries of wanted units."""
    offsets = codes.selection.sample_offsets
    for first, stop in _blocks(codes):
        start, end = int(offsets[first]), int(offsets[stop])
        block = codes.rows(slice(start, end))
        held = (block.values != 0) & wanted[block.indices]
        places = np.nonzero(held)[0]
        yield first, (places, block.indices[held], block.values[held], offsets[first : stop + 1] - start)


def _blocks(codes: Codes) -> list[tuple[int, int]]:
    """Cut samples into ranges of so many rows that a block is small; a longer sample is a range of its own."""
    offsets = codes.selection.sample_offsets
    most = max(1, _BLOCK_SLOTS // codes.k)
    blocks = []
    first = 0
    while first < len(offsets) - 1:
        stop = max(first + 1, int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1)
        blocks.append((first, stop))
        first = stop
    return blocks


def _cells(codes: Codes, units: NDArray[np.int64]) -> int:
    return int(np.count_nonzero(np.diff(codes.selection.sample_offsets))) * len(units)


def _axis(part: Codes | Activations) -> RowAxis:
    return part.axis if isinstance(part, Codes) else RowAxis.open(part.group.storage, part.key)


def _edges(part: Codes | Activations) -> NDArray[np.int64]:
    """Return what rows are looked at, as starts and stops."""
    if isinstance(part, Activations) or not part.is_selection:
        return np.array([[0], [part.n_rows]])
    return np.stack([part.selection.starts, part.selection.stops])
