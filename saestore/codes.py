"""Reading codes: rows, dense blocks of chosen units, and scans for the top rows of units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.budget import parse_memory, require_memory
from saestore.errors import DependencyError, InputError
from saestore.kernels.densify import densify, to_csr, unit_lookup
from saestore.kernels.quantize import as_float32
from saestore.layout import POSITION_TYPES, CodesKey
from saestore.rows import ArraySpec, RowGroup
from saestore.saes.lake import open_lake_sae
from saestore.storage import Storage
from saestore.tables import Positions, Samples

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rows = int | slice | Sequence[int] | NDArray[np.integer[Any]]
Holes = Literal["error", "nan"]

_SCAN_BYTES = 64 << 20
_DECODE_BYTES = 64 << 20
_DENSE_BYTES = 8 << 20  # larger blocks are given back to the system and faulted in again each time


@dataclass(frozen=True)
class CodeRows:
    """Codes of some rows, as stored: slots by (magnitude descending, unit ascending), empty at value 0.

    rows : (n,) int64
        The rows' places on the row axis.
    indices : (n, k) uint16 or uint32
        Original unit ids.
    values : (n, k) float32
    l0 : (n,) uint32
        True number of active units; more than k says that the row was truncated. Of codes whose group has the
        attribute `l0_exact` false (imported ones), the number of filled slots, which the true one is at least.
    """

    rows: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[np.float32]
    l0: NDArray[np.uint32]


@dataclass(frozen=True)
class TopRows:
    """The rows where one unit is most active, by the magnitude of its values, strongest first; ties by row."""

    unit: int
    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    active_rows: int


def code_arrays(*, k: int, d_sae: int, dtype: str, state: Sequence[str] = ()) -> list[ArraySpec]:
    """Return the arrays of a group of codes; `state` names those that decoding needs of each row.

    The codecs are the smallest of those measured that any Zarr v3 reader knows (`docs/performance.md`): bitshuffle
    strips unused high bits of unit ids, and where all 16 bits are used bytes compress better than bits.
    """
    index = index_dtype(d_sae)
    all_bits = 2**15 < d_sae <= 2**16
    value = "uint16" if dtype == "bfloat16" else dtype
    return [
        ArraySpec("indices", str(index), k, codec="shuffle" if all_bits else "bitshuffle"),
        ArraySpec("values", value, k, codec="shuffle", level=5, attributes={"saestore_dtype": dtype}),
        ArraySpec("l0", "uint32"),
        *(ArraySpec(name, "float32", codec="shuffle") for name in state),
    ]


def index_dtype(d_sae: int) -> np.dtype[Any]:
    """Return the dtype of stored unit ids: uint16 up to 65,536 units, else uint32."""
    return np.dtype(np.uint16 if d_sae <= 2**16 else np.uint32)


class Codes:
    """The codes of one SAE over one layer of one dataset.

    Examples
    --------
    >>> import saestore
    >>> codes = saestore.open(DEMO).codes("5_hist_fig_ismale", sae="minilm-l3")  # doctest: +SKIP
    >>> codes.rows(slice(0, 4)).indices.shape  # doctest: +SKIP
    (4, 32)
    """

    def __init__(self, group: RowGroup, key: CodesKey) -> None:
        self.group = group
        self.key = key
        self.n_rows = group.grid.rows
        self.k: int = group.attributes["k"]
        self.d_sae: int = group.attributes["d_sae"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes.open, (self.group.storage, self.key)

    def __repr__(self) -> str:
        return f"<Codes {self.key.path}: {self.n_rows} rows, {self.d_sae} units, k {self.k}>"

    def __len__(self) -> int:
        return self.n_rows

    @classmethod
    def open(cls, storage: Storage, key: CodesKey) -> Codes:
        """Open stored codes.

        Raises
        ------
        MissingError
            None are stored.
        """
        return cls(RowGroup.open(storage, key.path), key)

    @cached_property
    def samples(self) -> Samples:
        """The dataset's samples."""
        return Samples.open(self.group.storage, self.key.dataset)

    @cached_property
    def positions(self) -> Positions | None:
        """The position axis that the rows follow; None for pooled sample types, whose rows are the samples."""
        if self.key.sample_type not in POSITION_TYPES:
            return None
        return Positions.open(self.group.storage, self.key.activations.model_key)

    @property
    def quality(self) -> dict[str, Any]:
        """Explained variance, mean L0 and dead units, measured on a sample of rows when the codes were made."""
        return dict(self.group.attributes["quality"])

    def rows(self, rows: Rows) -> CodeRows:
        """Return the codes of rows.

        Parameters
        ----------
        rows : int, slice or sequence of int
            Places on the row axis; a slice without step, or row numbers in any order.

        Raises
        ------
        HoleError
            Some rows were never written.
        InputError
            A row does not exist.
        BudgetError
            The rows would take more than 60 % of the free memory.
        """
        if isinstance(rows, slice):
            start, stop = self._bounds(rows)
            self._require(stop - start)
            return CodeRows(
                np.arange(start, stop),
                self.group.read("indices", start, stop),
                as_float32(self.group.read("values", start, stop)),
                self.group.read("l0", start, stop),
            )
        places = self._places(rows)
        self._require(len(places))
        return CodeRows(
            places,
            self.group.take("indices", places),
            as_float32(self.group.take("values", places)),
            self.group.take("l0", places),
        )

    def dense(
        self,
        rows: Rows = slice(None),
        units: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        *,
        memory: str | int | None = None,
        holes: Holes = "error",
    ) -> NDArray[np.float32]:
        """Return a dense block of activations, zeros where a unit is not active.

        Parameters
        ----------
        rows : int, slice or sequence of int
        units : sequence of int, optional
            Original unit ids, in the order of the columns; default all.
        memory : str or int, optional
            The most the block may take, such as `4GiB`; default 60 % of the free memory.
        holes : {"error", "nan"}
            What rows that were never written become: an error, or rows of NaN.

        Returns
        -------
        (n, n_units) float32

        Raises
        ------
        BudgetError
            The block would exceed the budget.
        HoleError
            Rows were never written and `holes` is `error`.
        """
        wanted = slice(*self._bounds(rows)) if isinstance(rows, slice) else self._places(rows)
        n = wanted.stop - wanted.start if isinstance(wanted, slice) else wanted.size
        width = self.d_sae if units is None else len(units)
        require_memory(
            n * width * 4,
            budget=parse_memory(memory),
            what=f"a dense block of {n:,} rows x {width:,} units",
            remedy="ask for fewer rows or name the units you need (units=[...]), or keep it sparse with to_scipy()",
        )
        lookup = None if units is None else unit_lookup(_integers(units, "units"), self.d_sae)
        out = np.empty((n, width), dtype=np.float32)
        if holes == "nan":
            out.fill(np.nan)
        for targets, part in row_blocks(self.group, wanted, self._scan_rows, holes):
            for start, block in _thin_blocks(self.rows(part), width):
                stop = start + len(block.rows)
                if isinstance(targets, slice):
                    target: slice | NDArray[np.int64] = slice(targets.start + start, targets.start + stop)
                else:
                    target = targets[start:stop]
                out[target] = densify(block.indices, block.values, lookup, d_sae=self.d_sae)
        return out

    def to_scipy(self, rows: Rows = slice(None)) -> csr_array:
        """Return the codes of rows as a scipy CSR array, (n, d_sae) float32.

        Raises
        ------
        DependencyError
            scipy, which reading otherwise does without, is not installed.
        """
        try:
            from scipy.sparse import csr_array
        except ImportError:
            raise DependencyError("to_scipy needs scipy; install it with: pip install scipy") from None

        block = self.rows(rows)
        return csr_array(to_csr(block.indices, block.values), shape=(len(block.rows), self.d_sae))

    def decode(self, rows: Rows = slice(None), *, memory: str | int | None = None) -> NDArray[np.float32]:
        """Return the activations that the SAE reconstructs from the codes of rows.

        Only the decoder rows of units that occur are read. Of a transcoder these are the activations of its output
        hook; of a temporal SAE the part that the positions before do not predict.

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

        weights = open_lake_sae(self.group.storage, self.key.sae)
        wanted = slice(*self._bounds(rows)) if isinstance(rows, slice) else self._places(rows)
        n = wanted.stop - wanted.start if isinstance(wanted, slice) else wanted.size
        width = weights.config.d_out
        require_memory(
            n * width * 4,
            budget=parse_memory(memory),
            what=f"a reconstruction of {n:,} rows x {width:,}",
            remedy="ask for fewer rows at a time",
        )
        out = np.empty((n, width), dtype=np.float32)
        step = max(1, _DECODE_BYTES // (4 * (width + self.k)))
        activations = Activations.open(self.group.storage, self.key.activations) if weights.config.has_skip else None
        for places, part in row_blocks(self.group, wanted, step, "error"):
            block = self.rows(part)
            shift, scale = (
                self.group.take(name, block.rows) if name in self.group.array_names else None
                for name in ("shift", "scale")
            )
            x = None if activations is None else activations.take(block.rows)
            out[places] = decode(weights, block.indices, block.values, shift=shift, scale=scale, x=x)
        return out

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[CodeRows]:
        """Yield consecutive rows in blocks of bounded memory."""
        stop = self.n_rows if stop is None else stop
        for _, part in row_blocks(self.group, slice(start, stop), self._scan_rows, "error"):
            yield self.rows(part)

    def top(self, units: Sequence[int], n: int = 10, *, special: bool = False) -> list[TopRows]:
        """Return the rows where units are most active, by one scan over all rows.

        Parameters
        ----------
        units : sequence of int
            Original unit ids.
        n : int
            Rows per unit.
        special : bool
            Whether rows of special tokens count.

        Returns
        -------
        list of TopRows
            In the order of `units`; fewer than n rows where a unit is active in fewer.
        """
        lookup = unit_lookup(_integers(units, "units"), self.d_sae)
        best: list[list[NDArray[Any]]] = [[np.empty(0, np.int64), np.empty(0, np.float32)] for _ in units]
        active = np.zeros(len(units), dtype=np.int64)
        for _, block in (thin for scanned in self.scan() for thin in _thin_blocks(scanned, len(units))):
            dense = densify(block.indices, block.values, lookup, d_sae=self.d_sae)
            if not special and self.positions is not None:
                dense[self.positions.special(int(block.rows[0]), int(block.rows[-1]) + 1)] = 0
            active += np.count_nonzero(dense, axis=0)
            for column, kept in enumerate(best):
                hits = np.flatnonzero(dense[:, column])
                rows = np.concatenate([kept[0], block.rows[hits]])
                values = np.concatenate([kept[1], dense[hits, column]])
                order = np.lexsort((rows, -np.abs(values)))[:n]
                kept[:] = [rows[order], values[order]]
        return [
            TopRows(int(unit), rows, values, int(count))
            for unit, (rows, values), count in zip(units, best, active, strict=True)
        ]

    def sample_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of the sample that each row belongs to."""
        places = self._places(rows)
        return places if self.positions is None else self.positions.sample_of(places)

    def rows_of_samples(self, samples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the rows of chosen samples, special tokens included."""
        places = _integers(samples, "samples")
        return self._places(places) if self.positions is None else self.positions.rows_of(places)

    @property
    def _scan_rows(self) -> int:
        chunk = self.group.grid.chunk_rows
        return max(1, _SCAN_BYTES // (self.k * 10) // chunk) * chunk

    def _require(self, n: int) -> None:
        """Refuse rows that do not fit: 12 bytes of place and l0, 10 for the index and the value of a slot."""
        require_memory(
            n * (12 + self.k * 10),
            budget=parse_memory(None),
            what=f"{n:,} rows of codes with {self.k} slots",
            remedy="ask for fewer rows, or go through them in blocks with scan()",
        )

    def _places(self, rows: int | Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        places = np.atleast_1d(_integers(rows, "rows"))
        outside = (places < 0) | (places >= self.n_rows)
        if outside.any():
            raise InputError(
                f"row {places[outside][0]} does not exist: {self.key.path} has rows 0 to {self.n_rows - 1}"
            )
        return places

    def _bounds(self, rows: slice) -> tuple[int, int]:
        if rows.step not in (None, 1):
            raise InputError(f"rows {rows.start}:{rows.stop}:{rows.step} has a step; give the row numbers as a list")
        start, stop, _ = rows.indices(self.n_rows)
        return start, max(start, stop)


def row_blocks(
    group: RowGroup, rows: slice | NDArray[np.int64], step: int, holes: Holes
) -> Iterator[tuple[slice | NDArray[np.int64], slice | NDArray[np.int64]]]:
    """Cut a choice of rows into blocks that are read one at a time.

    Parameters
    ----------
    group : RowGroup
    rows : slice without step, or (n,) int64
        Rows that exist, in any order.
    step : int
        The most rows in a block.
    holes : {"error", "nan"}
        With `nan`, rows that were never written are in no block.

    Yields
    ------
    (places, rows)
        Places in the choice, and the rows there: both slices, or both arrays with the rows ascending.
    """
    written = group.written() if holes == "nan" else None
    if isinstance(rows, slice):
        for shard in [None] if written is None else group.grid.shards(rows.start, rows.stop):
            if shard is None or written is None:
                start, stop = rows.start, rows.stop
            elif written[shard]:
                whole = group.grid.shard(shard)
                start, stop = max(rows.start, whole.start), min(rows.stop, whole.stop)
            else:
                continue
            for first in range(start, stop, step):
                last = min(first + step, stop)
                yield slice(first - rows.start, last - rows.start), slice(first, last)
        return
    # Ascending, so that each stored chunk is read for one block, two at most.
    order = np.argsort(rows, kind="stable")
    if written is not None:
        order = order[written[rows[order] // group.grid.shard_rows]]
    for first in range(0, order.size, step):
        places = order[first : first + step]
        yield places, rows[places]


def _thin_blocks(block: CodeRows, width: int) -> Iterator[tuple[int, CodeRows]]:
    """Cut rows so that each part is small when dense, with its place: the dense copy must not double the memory."""
    step = max(1, _DENSE_BYTES // (4 * max(1, width)))
    for start in range(0, len(block.rows), step):
        part = slice(start, start + step)
        yield start, CodeRows(block.rows[part], block.indices[part], block.values[part], block.l0[part])


def _integers(numbers: Any, what: str) -> NDArray[np.int64]:
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{what} of type {array.dtype} cannot be used; give numbers, for a mask: np.flatnonzero(mask)")
    return array.astype(np.int64)
