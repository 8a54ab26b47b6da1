"""Sorting one part of a segment: its entries are placed in memory while the rows go by, then written shard by shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.layout import CodesKey
from saestore.postings import CodesPart, Segment
from saestore.prefetch import prefetch, together
from saestore.rows import RowGroup
from saestore.storage import open_storage

BLOCK_BYTES = 16 << 20
"""Bytes of codes that are read at a time."""

SHARDS_AT_ONCE = 2
"""Shards that are compressed and written at a time: one waits for the disk while the other computes."""


@dataclass(frozen=True)
class IndexTask:
    """Some shards of a segment's postings, one after the other; see `ShardTask`. Holds names and numbers only.

    segment : number of the segment
    first, stop : its shards
    """

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: CodesKey
    segment: int
    first: int
    stop: int
    size: int

    def run(self, advance: Callable[[int], None]) -> None:
        """Read the rows of the segment, place the entries of these shards, and write them."""
        from saestore.kernels.postings import place_entries, split_entries

        storage = open_storage(self.url, storage_options=self.options)
        codes = CodesPart(self.key, RowGroup.open(storage, self.key.path))
        segment = Segment(RowGroup.open(storage, codes.segment_paths[self.segment]))
        indptr, grid = segment.indptr, segment.group.grid
        begin, end = grid.shard(self.first).start, grid.shard(self.stop - 1).stop
        cursors = np.zeros((codes.d_sae, 2), dtype=np.int64)
        cursors[:, 0] = indptr[:-1]
        cursors[:, 1] = segment.first_row
        # Every place is filled, but for the one of a segment without entries.
        entries = (np.empty if indptr[-1] else np.zeros)(end - begin, dtype=np.uint64)
        # Placing waits for memory more than it computes; the other half of the cores reads ahead.
        threads = max(1, (os.cpu_count() or 1) // 2)
        shares = _shares(indptr, begin, end, threads)
        with ThreadPoolExecutor(threads, thread_name_prefix="saestore-index") as pool:
            for (start, _), (indices, values) in code_blocks(codes, segment.first_row, segment.stop_row):
                work = [
                    pool.submit(place_entries, indices, values, start, cursors, units, begin, entries)
                    for units in shares
                ]
                for part in work:
                    part.result()
                advance(len(indices))

        def write(shard: int) -> None:
            rows = grid.shard(shard)
            gaps, stored = split_entries(entries[rows.start - begin : rows.stop - begin], values.dtype)
            segment.group.write_shard(shard, {"row_gaps": gaps, "values": stored})

        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="saestore-index") as pool:
            list(pool.map(write, range(self.first, self.stop)))


def code_blocks(
    codes: CodesPart, start: int, stop: int
) -> Iterator[tuple[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]]]:
    """Yield ranges of rows with their units and values as stored, reading one ahead."""
    chunk = codes.group.grid.chunk_rows
    step = max(1, BLOCK_BYTES // (codes.k * 4) // chunk) * chunk
    blocks = [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def read(block: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
        indices, values = together(lambda name: codes.group.read(name, *block), ("indices", "values"))
        return indices, values

    return prefetch(read, blocks)


def _shares(indptr: NDArray[np.int64], begin: int, end: int, threads: int) -> list[range]:
    """Cut the units that have entries in `begin:end` into ranges of about as many entries each."""
    edges = np.searchsorted(indptr, np.linspace(begin, end, threads + 1).astype(np.int64), side="right") - 1
    edges[-1] = np.searchsorted(indptr, end, side="left")
    return [range(low, high) for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True) if high > low]
