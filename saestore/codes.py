"""Reading codes: by row, by unit, and as dense blocks of chosen units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore._expression_tree import Condition
from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.budget import parse_memory, require_memory
from saestore.code_rows import CodeRows, Holes, integers, joined_quality, row_blocks, thin_blocks
from saestore.errors import HoleError, InputError, MissingError
from saestore.kernels.densify import densify, unit_lookup
from saestore.kernels.quantize import as_float32
from saestore.kernels.ramps import ramps
from saestore.layout import CodesKey
from saestore.parts import RowParts, Stored, open_on_axis, parts_of
from saestore.postings import CodesPart, Postings
from saestore.rows import RowGroup
from saestore.saes.lake import open_lake_sae
from saestore.selection import SampleChoice, Selection
from saestore.storage import Storage
from saestore.tables import Positions, Samples
from saestore.unit_stats import PERCENTILES, UnitStats
from saestore.units import Per, TopRows, Unit

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from anndata import AnnData
    from scipy.sparse import csc_array, csr_array
    from torch import Tensor

    from saestore.bridges.long_table import LongTable
    from saestore.bridges.matrices import SparseFormat, TorchLayout
    from saestore.engine.arrays import DaskArray

Rows = int | slice | Sequence[int] | NDArray[np.integer[Any]]
# Where a dense block of few units is read from: an entry of the postings costs as much as so many slots of rows, and a
# unit as much as so many. Measured; below so many rows they are not asked at all.
_ENTRY_SLOTS, _UNIT_SLOTS = 4, 80_000
_WORTH_POSTINGS = 16_384

# CSC is made from the postings, which have all rows, where it is of at least one row in so many of them. Measured.
_POSTINGS_SHARE = 2

_ENTRY_BYTES = 64  # of an entry of the postings while it is read. Measured 42, and more where there are segments
_SCAN_BYTES = 64 << 20
_DECODE_BYTES = 64 << 20


class Codes:
    """The codes of one SAE over one layer of one dataset, or of a selection of its rows.

    Places (`rows(3)`, `dense(slice(0, 10))`) count the selected rows; what comes back names rows by their number on the
    row axis, and units by their original id.

    Examples
    --------
    >>> import saestore
    >>> codes = saestore.open(DEMO).codes("5_hist_fig_ismale", sae="minilm-l3")  # doctest: +SKIP
    >>> codes.rows(slice(0, 4)).indices.shape  # doctest: +SKIP
    (4, 32)
    >>> codes.where(split="test", special=False).unit(12).top(3).values  # doctest: +SKIP
    array([4.1, 3.9, 3.2], dtype=float32)
    """

    def __init__(self, group: Stored, key: CodesKey, conditions: tuple[Condition, ...] = ()) -> None:
        self.group = group
        self.key = key
        self.k: int = max(part.attributes["k"] for part in parts_of(group) if isinstance(part, RowGroup))
        self.d_sae: int = group.attributes["d_sae"]
        self.run: str = group.attributes["run"]
        self._conditions = conditions

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes, (self.group, self.key, self._conditions)

    def __repr__(self) -> str:
        of = f"some of {self.group.grid.rows}" if self.is_selection else self.group.grid.rows
        chosen = f", where {self.selection.words}" if self.is_selection else ""
        return f"<Codes {self.key.path}: {of} rows, {self.d_sae} units, k {self.k}{chosen}>"

    def __len__(self) -> int:
        return self.n_rows

    @property
    def n_rows(self) -> int:
        """Number of rows, of a selection the selected ones."""
        return len(self.selection) if self.is_selection else self.group.grid.rows

    @classmethod
    def open(cls, storage: Storage, key: CodesKey) -> Codes:
        """Open stored codes, over all parts of the dataset.

        Raises
        ------
        MissingError
            None are stored.
        """
        return cls(open_on_axis(storage, key.activations, lambda part: key.at(part).path), key.at(0))

    @cached_property
    def axis(self) -> RowAxis:
        """What the rows are."""
        return RowAxis.open(self.group.storage, self.key.activations, parts=len(parts_of(self.group)))

    @property
    def parts(self) -> list[CodesPart]:
        """What is stored of these codes, part after part of the dataset."""
        first_rows = self.group.edges.tolist() if isinstance(self.group, RowParts) else [0]
        return [
            CodesPart(self.key.at(number), part, first_rows[number])
            for number, part in enumerate(parts_of(self.group))
            if isinstance(part, RowGroup)
        ]

    @property
    def samples(self) -> Samples:
        """The dataset's samples."""
        return self.axis.samples

    @property
    def positions(self) -> Positions | None:
        """The position axis that the rows follow; None for pooled sample types, whose rows are the samples."""
        return self.axis.positions

    @property
    def is_selection(self) -> bool:
        """Whether `where` has chosen rows."""
        return bool(self._conditions)

    @cached_property
    def selection(self) -> Selection:
        """The rows that are looked at; all of them unless `where` has chosen."""
        return Selection(self.axis, self._conditions)

    def where(
        self,
        expression: str | None = None,
        *,
        split: str | Sequence[str] | None = None,
        concept: str | Sequence[str] | None = None,
        samples: SampleChoice | None = None,
        special: bool | None = None,
    ) -> Codes:
        """Return these codes for the rows that meet conditions, all of them; nothing is read yet.

        Parameters
        ----------
        expression, split, concept, samples, special
            As for `saestore.selection.Selection.where`.

        Raises
        ------
        InputError, MissingError
            An expression that cannot be read, an unknown name, split or concept; the nearest are named. A selection
            without rows is an InputError when it is first used.

        Examples
        --------
        >>> codes.where("position > 0 and length < 200", split="test", special=False)  # doctest: +SKIP
        """
        chosen = self.selection.where(expression, split=split, concept=concept, samples=samples, special=special)
        selected = Codes(self.group, self.key, chosen.conditions)
        # What was opened already is shared.
        selected.__dict__.update({name: self.__dict__[name] for name in ("axis", "postings") if name in self.__dict__})
        selected.__dict__["selection"] = chosen
        return selected

    @cached_property
    def postings(self) -> Postings:
        """The unit-major copy of these codes.

        Raises
        ------
        MissingError, HoleError
            There is none, or not of all rows.
        """
        try:
            found = Postings.open(self.group.storage, self.parts, d_sae=self.d_sae)
        except (MissingError, HoleError):
            self.group.check_present(0, self.group.grid.rows)  # rows that are missing are the reason, if there are such
            raise
        if isinstance(self.group, RowParts):
            self.group.check_parts()
        return found

    @property
    def quality(self) -> dict[str, Any]:
        """Explained variance, mean L0 and dead units, measured on a sample of rows when the codes were made.

        Of several parts: means weighted by the rows of the samples, and the fewest dead units of any.
        """
        return joined_quality([part.group.attributes["quality"] for part in self.parts])

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
        wanted = self._wanted(rows)
        self._require(_count(wanted))
        return self._read(wanted)

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
        wanted = self._wanted(rows)
        n = _count(wanted)
        width = self.d_sae if units is None else len(units)
        require_memory(
            n * width * 4,
            budget=parse_memory(memory),
            what=f"a dense block of {n:,} rows x {width:,} units",
            remedy="ask for fewer rows or name the units you need (units=[...]), or keep it sparse with to_scipy()",
        )
        asked = None if units is None else integers(units, "units")
        if asked is not None and self.costs_less_by_unit(n, asked, parse_memory(memory)):
            return self._dense_by_unit(wanted, n, asked)
        lookup = None if asked is None else unit_lookup(asked, self.d_sae)
        out = np.empty((n, width), dtype=np.float32)
        if holes == "nan":
            out.fill(np.nan)
        for targets, part in row_blocks(self.group, wanted, self._scan_rows, holes):
            for start, block in thin_blocks(self._read(part), width):
                stop = start + len(block.rows)
                if isinstance(targets, slice):
                    target: slice | NDArray[np.int64] = slice(targets.start + start, targets.start + stop)
                else:
                    target = targets[start:stop]
                out[target] = densify(block.indices, block.values, lookup, d_sae=self.d_sae)
        return out

    def costs_less_by_unit(self, n: int, units: NDArray[np.int64], budget: int) -> bool:
        """Whether reading units of n rows costs less by the postings than by the rows, within a budget in bytes.

        It does where the entries of the units are fewer than the slots of the rows by so much; False where postings are
        missing or still being built.
        """
        if n < _WORTH_POSTINGS:
            return False
        try:
            self.postings.check_written(units)
        except HoleError:
            return False
        except MissingError:
            if "postings" in self.__dict__:
                raise
            return False
        entries = int(self.postings.counts[np.unique(units)].sum())
        fits = n * len(units) * 4 + entries * _ENTRY_BYTES <= budget
        return fits and _ENTRY_SLOTS * entries + _UNIT_SLOTS * len(units) < n * self.k

    def _dense_by_unit(self, rows: slice | NDArray[np.int64], n: int, units: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the dense block of rows of the axis, made from the postings."""
        out = np.zeros((n, len(units)), dtype=np.float32)
        found = self.postings.read(units)
        order = np.empty(0, np.int64) if isinstance(rows, slice) else np.argsort(rows, kind="stable")
        for column, (start, stop) in enumerate(itertools.pairwise(found.offsets.tolist())):
            active, values = found.rows[start:stop], found.values[start:stop]
            if isinstance(rows, slice):
                part = slice(*np.searchsorted(active, [rows.start, rows.stop]))
                out[active[part] - rows.start, column] = values[part]
            else:
                # A row may be asked for more than once, so that an entry may belong in several places.
                first = np.searchsorted(rows, active, side="left", sorter=order)
                counts = np.searchsorted(rows, active, side="right", sorter=order) - first
                out[order[ramps(first, counts)], column] = np.repeat(values, counts)
        return out

    def to_scipy(self, rows: Rows = slice(None), *, format: SparseFormat = "csr") -> csr_array | csc_array:
        """Return the codes of rows as a scipy array with sorted indices, (n, d_sae) float32.

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
        wanted = self._wanted(rows)
        if format == "csc" and _count(wanted) * _POSTINGS_SHARE >= self.group.grid.rows:
            return self._columns(wanted, np.arange(self.d_sae))
        self._require(_count(wanted), SLOT_BYTES[format])
        matrix = scipy_csr(*self._slots(wanted), self.d_sae)
        return matrix if format == "csr" else matrix.tocsc()

    def to_torch(
        self, rows: Rows = slice(None), *, layout: TorchLayout = "sparse_csr"
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
            (n, d_sae) float32; of `topk` indices (n, k) int64 and values (n, k) float32, both 0 in empty slots.

        Raises
        ------
        BudgetError
            The tensors would take more than 60 % of the free memory.
        DependencyError
            torch is not installed.
        """
        from saestore.bridges.matrices import SLOT_BYTES, torch_tensor

        _choose("layout", layout, ("sparse_csr", "sparse_coo", "topk"))
        wanted = self._wanted(rows)
        self._require(_count(wanted), SLOT_BYTES[layout])
        return torch_tensor(*self._slots(wanted), self.d_sae, layout)

    def to_pandas(self, rows: Rows = slice(None)) -> pd.DataFrame:
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
        wanted = self._wanted(rows)
        return self._long_table(wanted).pandas(self._most_filled(wanted))

    def to_arrow(self, rows: Rows = slice(None)) -> pa.Table:
        """Return the codes of rows as a long Arrow table, with the columns of `to_pandas`.

        Raises
        ------
        BudgetError
            The table would take more than 60 % of the free memory.
        DependencyError
            pyarrow is not installed.
        """
        wanted = self._wanted(rows)
        return self._long_table(wanted).arrow(self._most_filled(wanted))

    def arrow_batches(self, rows: Rows = slice(None)) -> pa.RecordBatchReader:
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
        return self._long_table(self._wanted(rows)).batches()

    def to_dask(
        self, *, units: Sequence[int] | NDArray[np.integer[Any]] | None = None, chunk_rows: int | None = None
    ) -> DaskArray:
        """Return the dense matrix as a Dask array, (n, n_units) float32, whose blocks are read when they are computed.

        Parameters
        ----------
        units : sequence of int, optional
            Original unit ids, in the order of the columns; default all. Name them here: Dask hands a slice of columns
            chosen later down to the reader, but not a list.
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

        chosen = None if units is None else integers(units, "units")
        if chosen is not None:
            if not chosen.size:
                raise InputError("units=[] names no unit; leave it out to take all")
            unit_lookup(chosen, self.d_sae)
        width = self.d_sae if chosen is None else chosen.size
        chunk_rows = dense_chunk_rows(self.group.grid, width * 4) if chunk_rows is None else chunk_rows
        if chunk_rows < 1:
            raise InputError(f"chunk_rows is {chunk_rows}; give at least 1 row")
        return dense_array(self.dense, chosen, self.d_sae, self._wanted(slice(None)), chunk_rows)

    def to_anndata(self, *, by: Literal["row", "unit"] = "row") -> AnnData:
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
        wanted = self._wanted(slice(None))
        if by == "row":
            chunk_rows = dense_chunk_rows(self.group.grid, self.k * 8)
            x = csr_blocks(self.to_scipy, self.d_sae, wanted, chunk_rows)
        else:
            x = csc_blocks(self._columns_at, self.postings.counts, wanted)
        key = self.key
        about = {name: getattr(key, name) for name in ("dataset", "model", "layer", "sae", "sample_type")}
        return annotated(x, self.axis, wanted, {**about, "path": key.path, "quality": self.quality})

    def _columns_at(self, rows: slice | NDArray[np.int64], units: NDArray[np.int64]) -> csc_array:
        """Return units in rows at places."""
        return self._columns(self._wanted(rows), units)

    def _columns(self, rows: slice | NDArray[np.int64], units: NDArray[np.int64]) -> csc_array:
        """Return units in rows of the axis, from the postings."""
        from saestore.bridges.matrices import scipy_csc

        return scipy_csc(self.postings, units, rows, self.group.grid.rows)

    def _slots(self, rows: slice | NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return indices and values of rows of the axis."""
        block = self._read(rows)
        return block.indices, block.values

    def _long_table(self, rows: slice | NDArray[np.int64]) -> LongTable:
        from saestore.bridges.long_table import LongTable

        return LongTable(self.axis, rows, self.k, self.group.grid.chunk_rows, self._slots)

    def _most_filled(self, rows: slice | NDArray[np.int64]) -> int:
        """Return at most how many slots of rows of the axis are filled."""
        if isinstance(rows, slice):
            l0 = self.group.read("l0", rows.start, rows.stop)
        else:
            l0 = self.group.take("l0", rows)
        return int(np.minimum(l0, self.k).sum(dtype=np.int64))

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
        wanted = self._wanted(rows)
        n = _count(wanted)
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
            block = self._read(part)
            shift, scale = (
                self.group.take(name, block.rows) if name in self.group.array_names else None
                for name in ("shift", "scale")
            )
            x = None if activations is None else activations.take(block.rows)
            out[places] = decode(weights, block.indices, block.values, shift=shift, scale=scale, x=x)
        return out

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[CodeRows]:
        """Yield consecutive rows in blocks of bounded memory; `start` and `stop` are places."""
        stop = self.n_rows if stop is None else stop
        step = self._scan_rows
        for first in range(start, stop, step):
            yield self._read(self._wanted(slice(first, min(first + step, stop))))

    def stats(self, *, split: str | None = None, special: bool = False) -> UnitStats:
        """Return the statistics of all units: those that are stored, or of a selection computed now.

        Parameters
        ----------
        split : str, optional
            `train`, `cal`, `test`, or `none` for samples without a split; default all rows.
        special : bool
            Whether rows of special tokens count.

        Raises
        ------
        MissingError
            None are stored (`saestore stats` computes them), or the codes have no postings.
        HoleError, IntegrityError
            Some of the postings were never built, or are damaged.

        Examples
        --------
        >>> codes.stats(split="train").is_dead.sum()  # doctest: +SKIP
        >>> codes.where("length > 100").stats().table(sort_by="mean", limit=5)  # doctest: +SKIP
        """
        if not self.is_selection:
            return UnitStats.open(self.group.storage, self.key, run=self.run, split=split, special=special)
        from saestore.tallying import counted, marks_of, tally

        chosen = self.selection if split is None else self.selection.where(split=split)
        chosen = chosen if special else chosen.without_special
        marks = marks_of(chosen)
        n_rows, n_samples = counted(marks)[0]
        columns = tally(self.postings, range(self.d_sae), marks, PERCENTILES).columns(None)
        return UnitStats(
            self.key,
            columns.__getitem__,
            d_sae=self.d_sae,
            over=chosen.words,
            n_rows=n_rows,
            n_samples=n_samples,
            percentile_levels=PERCENTILES,
        )

    def unit(self, unit: int) -> Unit:
        """Return where a unit is active, read from the postings.

        Raises
        ------
        MissingError
            There is no such unit, or the codes have no postings (`saestore index` builds them).
        HoleError, IntegrityError
            Some of the postings were never built, or are damaged.

        Examples
        --------
        >>> codes.unit(1234).top(3).rows  # doctest: +SKIP
        array([7481,  112, 9034])
        """
        return self.units([unit])[0]

    def units(self, units: Sequence[int] | NDArray[np.integer[Any]]) -> list[Unit]:
        """Return where units are active, in the order given; all are read together.

        Raises
        ------
        MissingError, HoleError, IntegrityError
            As for `unit`.
        BudgetError
            The entries of the units would take more than 60 % of the free memory.
        """
        asked = integers(units, "units")
        if asked.ndim != 1:
            raise InputError(f"units of shape {asked.shape} cannot be used; give a list of unit ids")
        postings = self.postings
        postings.check(asked)
        require_memory(
            int(postings.counts[asked].sum()) * _ENTRY_BYTES,
            budget=parse_memory(None),
            what=f"the entries of {len(asked):,} units",
            remedy="ask for fewer units at a time",
        )
        found = postings.read(asked)
        units_found = []
        for unit, (start, stop) in zip(asked.tolist(), itertools.pairwise(found.offsets.tolist()), strict=True):
            active, values = found.rows[start:stop], found.values[start:stop]
            if self.is_selection:
                chosen = self.selection.contains(active)
                active, values = active[chosen], values[chosen]
            units_found.append(Unit(unit, active, values, self))
        return units_found

    def top(self, units: Sequence[int], n: int = 10, *, per: Per = "position", special: bool = False) -> list[TopRows]:
        """Return the rows where units are most active.

        Parameters
        ----------
        units : sequence of int
            Original unit ids.
        n : int
            Rows per unit.
        per : {"position", "sample"}
            `sample` takes only the strongest row of each sample.
        special : bool
            Whether rows of special tokens count.

        Returns
        -------
        list of TopRows
            In the order of `units`; fewer than n rows where a unit is active in fewer.
        """
        return [unit.top(n, per=per, special=special) for unit in self.units(units)]

    def sample_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of the sample that each row of the axis belongs to."""
        return self.axis.sample_of(self._checked(integers(rows, "rows"), self.group.grid.rows))

    def rows_of_samples(self, samples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the rows of the axis that chosen samples have, special tokens included."""
        return self._checked(self.axis.rows_of(integers(samples, "samples")), self.group.grid.rows)

    @property
    def _scan_rows(self) -> int:
        chunk = self.group.grid.chunk_rows
        return max(1, _SCAN_BYTES // (self.k * 10) // chunk) * chunk

    def _require(self, n: int, slot_bytes: int = 10) -> None:
        """Refuse rows that do not fit: 12 bytes of place and l0, at least 10 for the index and the value of a slot."""
        require_memory(
            n * (12 + self.k * slot_bytes),
            budget=parse_memory(None),
            what=f"{n:,} rows of codes with {self.k} slots",
            remedy="ask for fewer rows, or go through them in blocks with scan()",
        )

    def _wanted(self, rows: Rows) -> slice | NDArray[np.int64]:
        """Return the rows of the axis at places: a slice of them all, or numbers."""
        if isinstance(rows, slice):
            if rows.step not in (None, 1):
                raise InputError(
                    f"rows {rows.start}:{rows.stop}:{rows.step} has a step; give the row numbers as a list"
                )
            start, stop, _ = rows.indices(self.n_rows)
            stop = max(start, stop)
            return self.selection.rows(start, stop) if self.is_selection else slice(start, stop)
        places = self._checked(np.atleast_1d(integers(rows, "rows")), self.n_rows)
        return self.selection.rows_at(places) if self.is_selection else places

    def _checked(self, numbers: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
        outside = (numbers < 0) | (numbers >= stop)
        if outside.any():
            raise InputError(f"row {numbers[outside][0]} does not exist: {self!r} has rows 0 to {stop - 1}")
        return numbers

    def _read(self, rows: slice | NDArray[np.int64]) -> CodeRows:
        """Read rows of the axis."""
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        indices, values, l0 = (
            self.group.read(name, rows.start, rows.stop) if isinstance(rows, slice) else self.group.take(name, rows)
            for name in ("indices", "values", "l0")
        )
        return CodeRows(numbers, indices, as_float32(values), l0)


def _count(rows: slice | NDArray[np.int64]) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else rows.size


def _choose(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise InputError(f"{option}={given!r} is unknown; choose from {', '.join(known)}")
