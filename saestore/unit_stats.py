"""Statistics of units: what each does over all rows or over one split, stored once (docs/format.md, section 4.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._nearest import nearest
from saestore.errors import InputError, MissingError
from saestore.layout import SPLITS, CodesKey
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.storage import Storage, read_document

ALL = "all"
NO_SPLIT = "none"
STATS_SPLITS = (ALL, *SPLITS, NO_SPLIT)
"""What statistics may be over: all counted rows, a split, or the rows of samples that are in none."""

PERCENTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
"""Of the active values, as parts of one. The upper tail is where examples and thresholds are."""

ALWAYS_ON = 0.9
"""A unit is always on if it is active in at least this part of the counted rows."""

SHARD_UNITS = 65_536
CHUNK_UNITS = 8_192

Bounds = tuple[float | None, float | None]


class UnitStats:
    """Statistics of the units of one group of codes, over all rows, a split, or a selection of rows.

    over : which rows are counted, in words
    n_rows, n_samples : how many, and the samples that have one

    units : (m,) int64, original ids of the units

    Arrays are (m,) where nothing else is said; what is of active values is NaN for a unit that is never active.

    Examples
    --------
    >>> stats = codes.stats(split="train")  # doctest: +SKIP
    >>> stats.table(sort_by="mean", where={"fraction": (0.001, 0.1)})["unit"]  # doctest: +SKIP
    """

    def __init__(
        self,
        key: CodesKey,
        read: Callable[[str], NDArray[Any]],
        *,
        units: NDArray[np.int64],
        over: str,
        n_rows: int,
        n_samples: int,
        percentile_levels: Sequence[float],
    ) -> None:
        self.key = key
        self.over = over
        self.n_rows = n_rows
        self.n_samples = n_samples
        self.percentile_levels = tuple(percentile_levels)
        self._read = read
        self.units = units

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        return f"<UnitStats {self.key.path}: {len(self)} units, over {self.n_rows} rows ({self.over})>"

    def of_units(self, units: NDArray[np.int64]) -> UnitStats:
        """Return the statistics of some of the units.

        Parameters
        ----------
        units : (m,) int64
            Original ids; all of them are among `self.units`, which ascend.
        """
        places = np.searchsorted(self.units, units)
        return UnitStats(
            self.key,
            lambda name: self._read(name)[places],
            units=units,
            over=self.over,
            n_rows=self.n_rows,
            n_samples=self.n_samples,
            percentile_levels=self.percentile_levels,
        )

    @classmethod
    def of_group(cls, group: RowGroup, key: CodesKey) -> UnitStats:
        """Read what is stored."""
        own = group.attributes
        special = ", special tokens included" if own["special"] else ""
        return cls(
            key,
            group.read,
            units=np.arange(group.grid.rows),
            over=f"{own['split']}{special}",
            n_rows=own["rows"],
            n_samples=own["samples"],
            percentile_levels=own["percentiles"],
        )

    @classmethod
    def open(
        cls, storage: Storage, key: CodesKey, *, run: str, split: str | None = None, special: bool = False
    ) -> UnitStats:
        """Open the statistics of codes.

        Parameters
        ----------
        run : str
            The run of the codes as they are stored now.
        split : str, optional
            `train`, `cal`, `test`, or `none` for samples without a split; default all rows.
        special : bool
            Those that count special tokens too.

        Raises
        ------
        InputError
            The split is unknown.
        MissingError
            There are none, none of this split, or only those of older codes.
        """
        name = ALL if split is None else split
        if name not in STATS_SPLITS:
            raise InputError(f"split {split!r} is unknown; {nearest(name, STATS_SPLITS, 'splits')}")
        path = key.stats_path(run, name, special=special)
        document = read_document(storage, path)
        if document is None:
            raise _missing(storage, key, run=run, split=name, special=special)
        return cls.of_group(RowGroup.from_document(storage, path, document), key)

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """Rows in which each unit is active."""
        return self._read("count").astype(np.int64)

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """Samples in which each unit is active at least once."""
        return self._read("samples").astype(np.int64)

    @cached_property
    def sum(self) -> NDArray[np.float64]:
        """Sum of the values."""
        return self._read("sum")

    @cached_property
    def sum_squares(self) -> NDArray[np.float64]:
        """Sum of the squares of the values."""
        return self._read("sum_squares")

    @cached_property
    def max(self) -> NDArray[np.float32]:
        """Largest active value."""
        return self._read("max")

    @cached_property
    def min(self) -> NDArray[np.float32]:
        """Smallest active value; below 0 in signed codes."""
        return self._read("min")

    @cached_property
    def first_row(self) -> NDArray[np.int64]:
        """First row in which each unit is active, -1 where there is none."""
        return self._read("first_row")

    @cached_property
    def last_row(self) -> NDArray[np.int64]:
        """Last row in which each unit is active, -1 where there is none."""
        return self._read("last_row")

    @cached_property
    def percentiles(self) -> NDArray[np.float32]:
        """Percentiles of the active values, (m, p), at `percentile_levels`.

        A percentile is one of the values: the smallest that at least this part of the active values does not exceed
        (the method `inverted_cdf` of `numpy.quantile`).
        """
        return self._read("percentiles")

    @cached_property
    def fraction(self) -> NDArray[np.float64]:
        """Part of the counted rows in which each unit is active; NaN if there is no counted row."""
        return _quotient(self.count, self.n_rows)

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the active values."""
        return _quotient(self.sum, self.count)

    @cached_property
    def mean_all(self) -> NDArray[np.float64]:
        """Mean over all counted rows, 0 where the unit is not active."""
        return _quotient(self.sum, self.n_rows)

    @property
    def is_dead(self) -> NDArray[np.bool_]:
        """Which units are active in no counted row."""
        dead: NDArray[np.bool_] = self.count == 0
        return dead

    @property
    def is_always_on(self) -> NDArray[np.bool_]:
        """Which units are active in at least `ALWAYS_ON` of the counted rows."""
        always: NDArray[np.bool_] = self.fraction >= ALWAYS_ON
        return always

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns of `table`."""
        levels = (f"p{100 * level:g}" for level in self.percentile_levels)
        return (*_COLUMNS, *levels, "max", "first_row", "last_row", "is_dead", "is_always_on")

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of `table` for all units.

        Raises
        ------
        InputError
            There is no such column.
        """
        if name not in self.column_names:
            raise InputError(f"column {name!r} is unknown; {nearest(name, self.column_names, 'columns')}")
        if name == "unit":
            return self.units
        if hasattr(type(self), name):
            values: NDArray[Any] = getattr(self, name)
            return values
        return self.percentiles[:, self.column_names.index(name) - len(_COLUMNS)]

    def table(
        self,
        sort_by: str = "fraction",
        *,
        descending: bool = True,
        limit: int | None = 20,
        where: Mapping[str, Bounds] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return chosen units as columns, sorted; ties by unit, NaN last.

        Parameters
        ----------
        sort_by : str
            One of `column_names`.
        limit : int, optional
            The most units; None for all.
        where : mapping of str to (low, high), optional
            Units whose value in this column lies between both, which are included; None for no bound. NaN never does.

        Returns
        -------
        dict of str to array
            By the names of `column_names`.

        Raises
        ------
        InputError
            There is no such column, a limit below 0, or bounds that are not a pair.
        """
        if limit is not None and limit < 0:
            raise InputError(f"limit {limit} is below 0; give the most units to list, or None for all")
        kept = np.ones(len(self), dtype=bool)
        for name, bounds in (where or {}).items():
            values = self.column(name)
            if not isinstance(bounds, Sequence) or len(bounds) != 2:
                raise InputError(
                    f"bounds {bounds!r} of column {name!r} are not a pair; give (low, high), None for none"
                )
            low, high = bounds
            if low is not None:
                kept &= values >= low
            if high is not None:
                kept &= values <= high
            kept &= ~np.isnan(values)
        places = np.flatnonzero(kept)
        values = self.column(sort_by)[places].astype(np.float64)
        order = np.argsort(-values if descending else values, kind="stable")
        places = places[order[:limit]]
        return {name: self.column(name)[places] for name in self.column_names}


_COLUMNS = ("unit", "count", "samples", "fraction", "mean", "mean_all", "min")


def create_stats(
    storage: Storage,
    key: CodesKey,
    *,
    run: str,
    split: str,
    special: bool,
    d_sae: int,
    counted: tuple[int, int],
    axis: Mapping[str, str],
    attributes: Mapping[str, Any],
) -> RowGroup:
    """Create the row group of the statistics over one split, or open it if it is there.

    Parameters
    ----------
    counted : (int, int)
        Rows that are counted, and samples that have one.
    axis : mapping
        Digests of what the rows are and of the sample table, whose splits these are.
    """
    return RowGroup.create(
        storage,
        key.stats_path(run, split, special=special),
        kind="stats",
        axis="unit",
        grid=Grid.plan(d_sae, shard_rows=SHARD_UNITS, chunk_rows=CHUNK_UNITS),
        arrays=[
            # Half of the units of a wide SAE may be dead: zstd alone, at its fastest, gives less than behind a shuffle.
            ArraySpec(name, dtype, width, width_axis="percentile", codec="zstd", level=1)
            for name, dtype, width in (
                ("count", "uint32", None),
                ("samples", "uint32", None),
                ("sum", "float64", None),
                ("sum_squares", "float64", None),
                ("max", "float32", None),
                ("min", "float32", None),
                ("first_row", "int64", None),
                ("last_row", "int64", None),
                ("percentiles", "float32", len(PERCENTILES)),
            )
        ],
        identity={"codes": run, "split": split, "special": special, "percentiles": PERCENTILES, **axis},
        attributes={
            "split": split,
            "special": special,
            "percentiles": PERCENTILES,
            "rows": counted[0],
            "samples": counted[1],
            **attributes,
        },
    )


def _missing(storage: Storage, key: CodesKey, *, run: str, split: str, special: bool) -> MissingError:
    suffix = " with special tokens" if special else ""
    remedy = f"compute them: saestore stats --datasets {key.dataset}"
    stored = [name for name in STATS_SPLITS if read_document(storage, key.stats_path(run, name, special=special))]
    if stored:
        return MissingError(
            f"{key.path} has no unit statistics{suffix} of split {split!r}, only of {', '.join(stored)}: "
            f"the dataset has no such samples, or not all were written; choose one of these, or {remedy}"
        )
    runs = storage.names(key.stats_root)
    if runs and run not in runs:
        return MissingError(f"{key.path} has only the unit statistics of older codes; {remedy}")
    return MissingError(f"{key.path} has no unit statistics{suffix}; {remedy}")


def _quotient(values: NDArray[Any], by: NDArray[np.int64] | int) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: NDArray[np.float64] = np.divide(values, by, dtype=np.float64)
    return quotient
