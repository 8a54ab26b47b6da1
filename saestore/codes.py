"""Reading codes: by row, by unit, and as dense blocks of chosen units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from saestore import conversions
from saestore._expression_tree import Condition
from saestore.axis import RowAxis
from saestore.budget import parse_memory, require_memory
from saestore.code_rows import CodeRows, Holes, Rows, integers, joined_quality, row_blocks, thin_blocks
from saestore.engine.arrays import count
from saestore.errors import HoleError, InputError, MissingError
from saestore.kernels.densify import densify, unit_lookup
from saestore.kernels.quantize import as_float32
from saestore.kernels.ramps import ramps
from saestore.layout import CodesKey
from saestore.parts import RowParts, Stored, open_on_axis, parts_of
from saestore.postings import CodesPart, Postings
from saestore.rows import RowGroup
from saestore.selection import SampleChoice, Selection
from saestore.storage import Storage
from saestore.tables import Positions, Samples
from saestore.unit_stats import PERCENTILES, UnitStats
from saestore.units import Per, TopRows, Unit
from saestore.views import UnitChoice

# Where a dense block of few units is read from: an entry of the postings costs as much as so many slots of rows, and a
# unit as much as so many. Measured; below so many rows they are not asked at all.
_ENTRY_SLOTS, _UNIT_SLOTS = 4, 80_000
_WORTH_POSTINGS = 16_384

_ENTRY_BYTES = 64  # of an entry of the postings while it is read. Measured 42, and more where there are segments
_SCAN_BYTES = 64 << 20


class Codes:
    """The codes of one SAE over one layer of one dataset, or of a selection of its rows or units.

    Places (`rows(3)`, `dense(slice(0, 10))`) count the selected rows; what comes back names rows by their number on the
    row axis, and units by their original id, also where a view keeps some of them only.

    Examples
    --------
    >>> import saestore
    >>> codes = saestore.open(DEMO).codes("5_hist_fig_ismale", sae="minilm-l3")  # doctest: +SKIP
    >>> codes.rows(slice(0, 4)).indices.shape  # doctest: +SKIP
    (4, 32)
    >>> codes.where(split="test", special=False).unit(12).top(3).values  # doctest: +SKIP
    array([4.1, 3.9, 3.2], dtype=float32)
    """

    def __init__(
        self,
        group: Stored,
        key: CodesKey,
        conditions: tuple[Condition, ...] = (),
        views: tuple[str, ...] = (),
    ) -> None:
        self.group = group
        self.key = key
        self.k: int = max(part.attributes["k"] for part in parts_of(group) if isinstance(part, RowGroup))
        self.d_sae: int = group.attributes["d_sae"]
        self.run: str = group.attributes["run"]
        self._conditions = conditions
        self._views = views

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes, (self.group, self.key, self._conditions, self._views)

    def __repr__(self) -> str:
        of = f"some of {self.group.grid.rows}" if self.is_selection else self.group.grid.rows
        chosen = f", where {self.selection.words}" if self.is_selection else ""
        units = f"{self.d_sae} units"
        if self._kept is not None:
            units = f"view {self._kept.name} of {self._kept.units.size} of {units}"
        return f"<Codes {self.key.path}: {of} rows, {units}, k {self.k}{chosen}>"

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

    @property
    def all_rows(self) -> Codes:
        """The same without what `where` has chosen."""
        if not self.is_selection:
            return self
        whole = Codes(self.group, self.key, (), self._views)
        self._share(whole, "axis", "postings", "_kept")
        return whole

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
        selected = Codes(self.group, self.key, chosen.conditions, self._views)
        self._share(selected, "axis", "postings", "_kept")
        selected.__dict__["selection"] = chosen
        return selected

    def view(self, name: str) -> Codes:
        """Return these codes for the units that a view keeps, of these; `saestore prune` makes views.

        Rows keep the slots of these units alone, in their order and packed to the left, and `l0` counts them; dense
        blocks and matrices have a column for each. Units are named by their original id everywhere.

        Parameters
        ----------
        name : str
            A view of these codes.

        Raises
        ------
        MissingError
            There is none of this name (the nearest are named), or only one of codes that were here before.
        InputError
            It has no unit in common with the view that these codes are looked at through.

        Examples
        --------
        >>> codes.view("pruned").dense(slice(0, 10)).shape  # doctest: +SKIP
        (10, 572)
        """
        if name in self._views:
            return self
        chosen = Codes(self.group, self.key, self._conditions, (*self._views, name))
        self._share(chosen, "axis", "postings", "selection")
        chosen._kept  # noqa: B018 - a view that is not there is told now
        return chosen

    def _share(self, other: Codes, *names: str) -> None:
        """Give other codes what was opened already."""
        other.__dict__.update({name: self.__dict__[name] for name in names if name in self.__dict__})

    @cached_property
    def _kept(self) -> UnitChoice | None:
        """The units that views keep; None where none was asked for."""
        if not self._views:
            return None
        return UnitChoice.of(self.group.storage, self.key, self.run, self._views, self.d_sae)

    @property
    def view_name(self) -> str | None:
        """The view that these codes are looked at through; None where all units are looked at.

        Of several views that of the one whose units they keep in common, else all names with `&` between.
        """
        return None if self._kept is None else self._kept.name

    @property
    def kept_units(self) -> NDArray[np.int64]:
        """Original ids of the units that are looked at, ascending: all of them, or those of the view."""
        return np.arange(self.d_sae) if self._kept is None else self._kept.units

    def check_units(self, units: NDArray[np.int64]) -> None:
        """Refuse units that do not exist, or that the view does not keep (MissingError)."""
        if self._kept is None:
            unit_lookup(units, self.d_sae)
        else:
            self._kept.check(units)

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
        self._require(count(wanted))
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
            Original unit ids, in the order of the columns; default all, of a view those it keeps.
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
        MissingError
            A unit does not exist, or is not in the view.
        InputError
            A row does not exist, or `holes` is unknown.
        """
        if holes not in get_args(Holes):
            raise InputError(f"holes={holes!r} is unknown; choose from {', '.join(get_args(Holes))}")
        wanted = self._wanted(rows)
        n = count(wanted)
        width = len(self.kept_units) if units is None else len(units)
        require_memory(
            n * width * 4,
            budget=parse_memory(memory),
            what=f"a dense block of {n:,} rows x {width:,} units",
            remedy="ask for fewer rows or name the units you need (units=[...]), or keep it sparse with to_scipy()",
        )
        if units is not None:
            self.check_units(integers(units, "units"))
        elif self._kept is not None:
            units = self._kept.units
        asked = None if units is None else integers(units, "units")
        if asked is not None and self.costs_less_by_unit(n, asked, parse_memory(memory)):
            return self._dense_by_unit(wanted, n, asked)
        lookup = None if asked is None else unit_lookup(asked, self.d_sae)
        out = np.empty((n, width), dtype=np.float32)
        if holes == "nan":
            out.fill(np.nan)
        for targets, part in row_blocks(self.group, wanted, self._scan_rows, holes):
            for start, block in thin_blocks(self._read_stored(part), width):
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

    to_scipy = conversions.to_scipy
    to_torch = conversions.to_torch
    to_pandas = conversions.to_pandas
    to_arrow = conversions.to_arrow
    arrow_batches = conversions.arrow_batches
    to_dask = conversions.to_dask
    to_anndata = conversions.to_anndata
    decode = conversions.decode

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[CodeRows]:
        """Yield consecutive rows in blocks of bounded memory; `start` and `stop` are places."""
        stop = self.n_rows if stop is None else stop
        step = self._scan_rows
        for first in range(start, stop, step):
            yield self._read(self._wanted(slice(first, min(first + step, stop))))

    def stats(self, *, split: str | None = None, special: bool = False) -> UnitStats:
        """Return the statistics of all units, or those of the view: stored ones, or of a selection computed now.

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
        found = self._stats(split, special)
        return found if self._kept is None else found.of_units(self._kept.units)

    def _stats(self, split: str | None, special: bool) -> UnitStats:
        """Return the statistics of all units."""
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
            units=np.arange(self.d_sae),
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
            There is no such unit, or not in the view, or the codes have no postings (`saestore index` builds them).
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
        self.check_units(asked)
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
        """Read rows of the axis, and of a view the slots of its units."""
        block = self._read_stored(rows)
        return block if self._kept is None else self._kept.restricted(block)

    def _read_stored(self, rows: slice | NDArray[np.int64]) -> CodeRows:
        """Read rows of the axis as they are stored."""
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        indices, values, l0 = (
            self.group.read(name, rows.start, rows.stop) if isinstance(rows, slice) else self.group.take(name, rows)
            for name in ("indices", "values", "l0")
        )
        return CodeRows(numbers, indices, as_float32(values), l0)
