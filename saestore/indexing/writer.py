"""The verb `index`: postings for codes that have none yet, sorted in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore import provenance
from saestore.budget import parse_memory, readable_bytes, require_memory
from saestore.codes import Codes
from saestore.engine.run import run_tasks
from saestore.errors import HoleError, IntegrityError
from saestore.indexing.task import BLOCK_BYTES, SHARDS_AT_ONCE, IndexTask, code_blocks
from saestore.layout import CodesKey
from saestore.parts import RowParts
from saestore.postings import SHARD_ENTRIES, CodesPart, Segment, create_segment, segment_rows
from saestore.progress import Progress
from saestore.rows import RowGroup, group_exists
from saestore.storage import Storage

# Of an entry while its shard is split and compressed: gap, value, what the chunks became, and the object of them all.
_SPLIT_BYTES = 18
_OVERHEAD_BYTES = 128 << 20  # what reading threads hold, and compiled code. Measured.


@dataclass(frozen=True)
class IndexResult:
    """What `index` did for one group of codes.

    rows, indexed_rows : rows of the codes, and those whose postings this call has built
    entries : filled slots in all postings; 0 where none could be built
    reason : why some rows have no postings; empty if all have
    """

    key: CodesKey
    rows: int
    indexed_rows: int
    entries: int
    reason: str = ""


def index(
    storage: Storage,
    keys: Sequence[CodesKey],
    *,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[IndexResult]:
    """Build the postings of codes; what is built already is left alone.

    The rows are read once to count the entries of each unit, and then once for as many entries as fit into memory.
    The bytes that are written depend neither on that nor on who writes them.

    Parameters
    ----------
    keys : sequence of CodesKey
        Which codes; all parts of their datasets.
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
    list of IndexResult
        One per key. Where rows of the codes were never written, the segments with them are left out, and named.

    Raises
    ------
    MissingError
        There are no such codes.
    BudgetError
        Not even one shard of postings can be sorted in the memory given; the message names what is enough.
    IntegrityError
        Stored codes are damaged.
    """
    baseline = psutil.Process().memory_info().rss
    budget = parse_memory(memory) + (baseline if memory is None else 0)
    results = []
    for key in dict.fromkeys(key.at(0) for key in keys):
        codes = Codes.open(storage, key)
        reason = _absent_parts(codes)
        entries = built = 0
        segments = [(part, number) for part in codes.parts for number in range(len(part.segment_paths))]
        for part, number in segments:
            per_task = _shards_per_task(part, budget - baseline, budget)
            try:
                segment = _segment(part, number, quiet=quiet)
            except HoleError as error:
                reason = reason or str(error)
                continue
            entries += int(segment.indptr[-1])
            tasks = _tasks(storage, part, number, segment, per_task)
            if not tasks:
                continue
            rows = segment.stop_row - segment.first_row
            if say is not None:
                say(
                    f"{part.key.path}: postings of {rows:,} rows, {int(segment.indptr[-1]):,} entries, "
                    f"{len(tasks)} pass{'es' if len(tasks) > 1 else ''} over the codes within {readable_bytes(budget)}"
                )
            run_tasks(tasks, label=f"index {part.key.path}", unit="rows", threads=1, scheduler=scheduler, quiet=quiet)
            built += rows
        results.append(IndexResult(key, codes.n_rows, built, entries, reason))
    return results


def _absent_parts(codes: Codes) -> str:
    """Return the reason why parts of the dataset that have no codes get no postings; empty where there are none."""
    try:
        if isinstance(codes.group, RowParts):
            codes.group.check_parts()
    except HoleError as error:
        return str(error)
    return ""


def _segment(codes: CodesPart, number: int, *, quiet: bool) -> Segment:
    """Open a segment of the postings, or count its entries and create it."""
    storage, rows = codes.group.storage, segment_rows(number, codes.group.grid.rows)
    path = codes.segment_paths[number]
    if group_exists(storage, path):
        return Segment(RowGroup.open(storage, path))
    codes.group.check_present(rows.start, rows.stop)
    counts = _counts(codes, rows, quiet=quiet)
    return create_segment(codes, number, counts=counts, attributes={"provenance": provenance.stamp()})


def _counts(codes: CodesPart, rows: slice, *, quiet: bool) -> NDArray[np.int64]:
    """Count the entries of each unit; threads share the rows of a block."""
    from saestore.kernels.postings import count_units

    threads = os.cpu_count() or 1
    counts = np.zeros((threads, codes.d_sae), dtype=np.int64)
    with (
        Progress(f"count {codes.key.path}", total=rows.stop - rows.start, unit="rows", quiet=quiet) as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="saestore-index") as pool,
    ):
        for _, block in code_blocks(codes, rows.start, rows.stop):
            parts = zip(*(np.array_split(array, threads) for array in block), counts, strict=True)
            try:
                list(pool.map(lambda part: count_units(*part), parts))
            except IndexError as error:
                raise IntegrityError(
                    f"{codes.key.path} holds units that its SAE does not have ({error}); import or encode it anew"
                ) from error
            progress.advance(len(block[0]))
    total: NDArray[np.int64] = counts.sum(axis=0)
    return total


def _tasks(storage: Storage, codes: CodesPart, number: int, segment: Segment, per_task: int) -> list[IndexTask]:
    """Cut the missing shards of a segment into as few passes over its rows as the memory allows."""
    missing = segment.group.missing_shards()
    rows = segment.stop_row - segment.first_row
    tasks = []
    while missing:
        # Shards in between that are there already are sorted too, which costs less than a pass of their own.
        stop = missing[0] + per_task
        last = max(shard for shard in missing if shard < stop)
        tasks.append(IndexTask(storage.url, storage.options, codes.key, number, missing[0], last + 1, rows))
        missing = [shard for shard in missing if shard >= stop]
    return tasks


def _shards_per_task(codes: CodesPart, available: int, budget: int) -> int:
    """Return how many shards of entries are sorted at once."""
    from saestore.kernels.postings import ENTRY_BYTES

    slots = codes.group.grid.rows * codes.k  # which may be fewer than a shard or a block has
    shard_entries = min(SHARD_ENTRIES, slots)
    tables = codes.d_sae * (32 + 8 * (os.cpu_count() or 1))
    blocks = 4 * min(BLOCK_BYTES, slots * 4)
    fixed = _OVERHEAD_BYTES + SHARDS_AT_ONCE * shard_entries * _SPLIT_BYTES + blocks + tables
    per_shard = shard_entries * ENTRY_BYTES
    require_memory(
        fixed + per_shard + budget - available,
        budget=budget,
        what=f"sorting one shard of the postings of {codes.key.path}",
        remedy="give more with --memory",
    )
    return (available - fixed) // per_shard
