"""The verb `stats`: statistics of units from the postings, per split, block by block in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore import provenance
from saestore.axis import RowAxis
from saestore.budget import parse_memory, readable_bytes, require_memory
from saestore.codes import Codes
from saestore.engine.run import run_tasks
from saestore.layout import SPLITS, CodesKey
from saestore.prefetch import together
from saestore.rows import RowGroup, group_exists
from saestore.storage import Storage, open_storage
from saestore.unit_stats import ALL, NO_SPLIT, PERCENTILES, SHARD_UNITS, create_stats

if TYPE_CHECKING:
    from saestore.kernels.unit_stats import RowMarks, UnitTally

_LEAST_ENTRIES = 1 << 16
_SPECIAL_ROWS = 1 << 22  # flags that are read at a time
_UNIT_BYTES = 5 * (4 * 8 + 3 * 8 + 8 * 4)  # of four splits and all: a tally, and the columns made of it
_OVERHEAD_BYTES = 224 << 20  # compiled code, what reading threads hold, and shards while they are encoded. Measured.


@dataclass(frozen=True)
class StatsResult:
    """What `write_stats` did for one group of codes.

    splits : what there are statistics of, `all` first
    written_units : units whose statistics this call has computed
    """

    key: CodesKey
    rows: int
    units: int
    written_units: int
    splits: tuple[str, ...]


@dataclass(frozen=True)
class StatsTask:
    """The statistics of one shard of units, over all splits; see `ShardTask`. Holds names and numbers only.

    block_entries : entries that are held at a time
    """

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: CodesKey
    special: bool
    shard: int
    block_entries: int
    size: int

    def run(self, advance: Callable[[int], None]) -> None:
        """Read the entries of these units, and write what is missing of their statistics."""
        from saestore.tallying import tally

        storage = open_storage(self.url, storage_options=self.options)
        codes = Codes.open(storage, self.key)
        axis = codes.axis  # of the same parts, whatever is appended meanwhile
        splits = stored_splits(axis)
        names = splits[1:]
        first = self.shard * SHARD_UNITS
        units = range(first, min(first + SHARD_UNITS, codes.d_sae))
        rows = row_marks(axis, special=self.special)
        found = tally(codes.postings, units, rows, PERCENTILES, block_entries=self.block_entries, advance=advance)

        def write(split: str) -> None:
            group = RowGroup.open(storage, self.key.stats_path(codes.run, split, special=self.special))
            if self.shard in group.missing_shards():
                group.write_shard(self.shard, _stored(found, names.index(split) if split in names else None))

        together(write, splits)


def write_stats(
    storage: Storage,
    keys: Sequence[CodesKey],
    *,
    special: bool = False,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[StatsResult]:
    """Compute the statistics of units over all rows and over each split; what is stored already is left alone.

    The bytes that are written depend neither on the memory nor on who writes them.

    Parameters
    ----------
    keys : sequence of CodesKey
        Which codes; they must have postings.
    special : bool
        Count the rows of special tokens too; such statistics are stored beside those that do not.
    memory : str or int, optional
        The most this process may use, such as `4GiB`; default what it uses now and 60 % of the free memory.
    scheduler : str, optional
        Address of a Dask scheduler; default the active client if there is one, else threads.
    quiet : bool
        Show no progress.
    say : callable, optional
        Receives lines for the user.

    Returns
    -------
    list of StatsResult
        One per key.

    Raises
    ------
    MissingError
        There are no such codes, or they have no postings.
    HoleError
        Not all rows have postings; the rows are named.
    BudgetError
        The least that is held at a time does not fit the memory given; the message names what is enough.
    IntegrityError
        Stored postings are damaged.
    """
    baseline = psutil.Process().memory_info().rss
    budget = parse_memory(memory) + (baseline if memory is None else 0)
    results = []
    for key in keys:
        codes = Codes.open(storage, key)
        axis = codes.axis
        splits = stored_splits(axis)
        missing: list[int] = []
        if not _is_complete(codes, splits, special=special):
            codes.postings.check_complete()
            block = _block_entries(codes, axis, budget - baseline, budget)
            missing = _missing_shards(codes, axis, splits, special=special)
            counts = codes.postings.counts
            tasks = []
            for shard in missing:
                entries = int(counts[shard * SHARD_UNITS : (shard + 1) * SHARD_UNITS].sum())
                tasks.append(StatsTask(storage.url, storage.options, key, special, shard, block, entries))
            if say is not None:
                total = sum(task.size for task in tasks)
                say(f"{key.path}: statistics from {total:,} entries within {readable_bytes(budget)}")
            run_tasks(tasks, label=f"stats {key.path}", unit="entries", threads=1, scheduler=scheduler, quiet=quiet)
        written = sum(min(SHARD_UNITS, codes.d_sae - shard * SHARD_UNITS) for shard in missing)
        results.append(StatsResult(key, codes.n_rows, codes.d_sae, written, splits))
    return results


def stored_splits(axis: RowAxis) -> tuple[str, ...]:
    """Return what there are statistics of: all rows, and the splits that the dataset has, if any."""
    present = set(axis.samples.split.tolist())
    named = [split for split in SPLITS if split in present]
    return (ALL, *named, *([NO_SPLIT] if named and "" in present else []))


def row_marks(axis: RowAxis, *, special: bool) -> RowMarks:
    """Return what the kernel needs of rows; splits are numbered as in `stored_splits` after `all`."""
    from saestore.kernels.unit_stats import RowMarks

    names = stored_splits(axis)[1:]
    numbers = {("" if name == NO_SPLIT else name): number for number, name in enumerate(names)}
    split = np.array([numbers.get(name, 0) for name in axis.samples.split.tolist()])
    if axis.positions is None:
        return RowMarks.of(split, max(1, len(names)), np.arange(len(split) + 1))
    marks = RowMarks.of(split, max(1, len(names)), axis.positions.offsets)
    for start in range(0, 0 if special else axis.n_rows, _SPECIAL_ROWS):
        marks.leave_out(start, axis.positions.special(start, min(start + _SPECIAL_ROWS, axis.n_rows)))
    return marks


def _is_complete(codes: Codes, splits: Sequence[str], *, special: bool) -> bool:
    storage = codes.group.storage
    paths = [codes.key.stats_path(codes.run, split, special=special) for split in splits]
    return all(group_exists(storage, path) and RowGroup.open(storage, path).is_complete for path in paths)


def _missing_shards(codes: Codes, axis: RowAxis, splits: Sequence[str], *, special: bool) -> list[int]:
    """Return the shards of units that some split has no statistics of, creating the groups that are not there."""
    from saestore.tallying import counted as count

    counted = count(row_marks(axis, special=special))
    missing: set[int] = set()
    for number, split in enumerate(splits):
        group = create_stats(
            codes.group.storage,
            codes.key,
            run=codes.run,
            split=split,
            special=special,
            d_sae=codes.d_sae,
            counted=counted[number],
            axis={"axis": axis.digest, "samples": axis.samples.digest},
            attributes={"provenance": provenance.stamp()},
        )
        missing.update(group.missing_shards())
    return sorted(missing)


def _stored(tally: UnitTally, split: int | None) -> dict[str, NDArray[Any]]:
    columns = tally.columns(split)
    return columns | {name: columns[name].astype(np.uint32) for name in ("count", "samples")}


def _block_entries(codes: Codes, axis: RowAxis, available: int, budget: int) -> int:
    """Return how many entries are held at a time."""
    from saestore.kernels.order_statistics import word_dtype
    from saestore.tallying import MOST_ENTRIES

    stored = codes.group.dtype("values")
    # Two blocks of entries, what one is decoded from, and the words of one and their copy while they are sorted.
    per_entry = 3 * (4 + stored.itemsize) + 2 * word_dtype(stored).itemsize
    fixed = (
        _OVERHEAD_BYTES
        + 4 * codes.n_rows
        + 96 * len(axis.samples)
        + 16 * len(codes.postings.segments) * codes.d_sae
        + min(SHARD_UNITS, codes.d_sae) * _UNIT_BYTES
    )
    require_memory(
        fixed + _LEAST_ENTRIES * per_entry + budget - available,
        budget=budget,
        what=f"the statistics of {codes.key.path}",
        remedy="give more with --memory",
    )
    return min(MOST_ENTRIES, (available - fixed) // per_entry)
