"""Find the correlated pairs of two ends: of codes by their entries, of activations by matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.engine.resources import load_once
from saestore.errors import BudgetError
from saestore.graphing.ends import End, rows_of
from saestore.graphing.measuring import StoredMeasures
from saestore.graphing.options import GraphOptions
from saestore.graphs import write_table
from saestore.kernels.entry_orders import RowMajor, UnitMajor, unit_major
from saestore.kernels.pair_rules import Found, Moments, Rule, TooManyPairs
from saestore.layout import graph_work_path
from saestore.storage import Storage

Advance = Callable[[int], None]

_SAMPLE_UNITS = 512
_BINS = 100


@dataclass(frozen=True, eq=False)
class CodesPairTask:
    """A share of the units of one end of codes with a block of the units of another, or of the same.

    number : of the pair
    a, b : where the measures of its ends are
    entries : of the share
    block_a, block_b : first unit of each block, and the one behind it
    share : first unit of block_a to do, and the one behind it
    """

    number: int
    a: StoredMeasures
    b: StoredMeasures
    entries: int
    block_a: tuple[int, int]
    block_b: tuple[int, int]
    share: tuple[int, int]
    options: GraphOptions
    is_null: bool
    device: str

    @property
    def size(self) -> int:
        """Entries of a that are joined with rows of b."""
        return self.entries + 1

    @property
    def key(self) -> str:
        """Where its pairs are kept until the graph is complete."""
        kind = "null-" if self.is_null else ""
        return graph_work_path(self.a.graph, self.a.run_id, f"{kind}{self.number}-{self.block_b[0]}-{self.share[0]}")

    def run(self, advance: Advance) -> int:
        """Find the pairs, write them, and return how many they are."""
        storage = self.a.storage
        if storage.sizes([self.key])[0] is None:
            found = self.found(self.share)
            write_table(storage, self.key, pd.DataFrame(vars(found)))
            count = len(found.r)
        else:
            count = -1  # of an earlier run; they are counted when all are read
        advance(self.size)
        return count

    def found(self, share: tuple[int, int]) -> Found:
        """Return the pairs of some units of the block."""
        units, rows = self._loaded()
        first = self.block_a[0]
        low, high = share[0] - first, share[1] - first
        edges = units.pointers[low : high + 1]
        held = slice(edges[0], edges[-1])
        part = UnitMajor(edges - edges[0], units.rows[held], units.values[held])
        return self._pairs(part, np.arange(*share), rows, self.options.max_edges)

    def predicted(self) -> tuple[int, NDArray[np.int64]]:
        """Return how many pairs the two ends would have, from a sample of units, and how many of each |r|: 100 bins."""
        units, rows = self._loaded()
        takes_part = self.a.read().takes_part
        able = np.flatnonzero(takes_part[slice(*self.block_a)])
        if not able.size:
            return 0, np.zeros(_BINS, np.int64)
        chosen = np.sort(np.random.default_rng(self.options.seed).permutation(able)[:_SAMPLE_UNITS])
        parts = [slice(units.pointers[unit], units.pointers[unit + 1]) for unit in chosen.tolist()]
        pointers = np.append(0, np.cumsum([part.stop - part.start for part in parts]))
        some = UnitMajor(
            pointers,
            np.concatenate([units.rows[part] for part in parts]),
            np.concatenate([units.values[part] for part in parts]),
        )
        share = np.count_nonzero(takes_part) / len(chosen)
        entries = self.b.read().moments.active
        share *= entries.sum() / max(1, entries[slice(*self.block_b)].sum())
        try:
            found = self._pairs(some, chosen + self.block_a[0], rows, self.options.max_edges)
            count, histogram = len(found.r), np.histogram(np.abs(found.r), _BINS, (0.0, 1.0))[0]
        except TooManyPairs as error:
            count, histogram, share = error.count, error.histogram, share * len(chosen) / max(1, error.units_done)
        return int(count * share), (histogram * share).astype(np.int64)

    def _pairs(self, units: UnitMajor, places: NDArray[np.int64], rows: RowMajor, limit: int) -> Found:
        from saestore.kernels.coactivation import found_pairs

        first, stop = self.block_b
        within = self.a.place == self.b.place
        known_a, known_b = self.a.read(), self.b.read()
        b = known_b.moments
        of_block = Moments(b.n, b.active[first:stop], b.sums[first:stop], b.squares[first:stop])
        order = _order(self.options.seed, rows.n_rows) if self.is_null else None
        # Places in a block of b count from its first unit; pairs within an end are those above the diagonal.
        found = found_pairs(
            units,
            places,
            rows,
            known_a.moments,
            of_block,
            Rule(self.options.min_r, self.options.min_support, within and not first),
            limit=limit,
            order=order,
            mask_a=known_a.takes_part,
            mask_b=known_b.takes_part[first:stop],
            device=self.device,
        )
        if not first:
            return found
        b_places = found.b.astype(np.int64) + first
        kept = b_places > found.a if within else np.ones(len(b_places), dtype=bool)
        return Found(found.a[kept], b_places[kept].astype(np.uint32), found.r[kept], found.n_ab[kept])

    def _loaded(self) -> tuple[UnitMajor, RowMajor]:
        """Return the entries of both blocks, which tasks that follow each other share."""
        known_a, known_b = self.a.read(), self.b.read()
        rows = load_once(
            ("graph rows", *self.b.identity, self.block_b),
            lambda: rows_of(self.b.end, known_b.moments, *self.block_b),
        )

        def units() -> UnitMajor:
            if self.a.place == self.b.place and self.block_b == (0, len(known_b.takes_part)):
                return unit_major(rows, *self.block_a)
            own = rows_of(self.a.end, known_a.moments, *self.block_a)
            return unit_major(own, 0, self.block_a[1] - self.block_a[0])

        return load_once(("graph units", *self.a.identity, self.block_a), units), rows


@dataclass(frozen=True, eq=False)
class DensePairsTask:
    """All pairs of ends of activations, and of these with codes: one pass over the rows.

    storage, graph, run_id : where pairs are kept until the graph is complete
    numbers : of the pairs, with the places of their ends among `ends`
    takes_part : units of each end that take part
    """

    storage: Storage
    graph: str
    run_id: str
    numbers: Mapping[int, tuple[int, int]]
    ends: tuple[End, ...]
    takes_part: tuple[NDArray[np.bool_], ...]
    options: GraphOptions
    is_null: bool
    device: str

    @property
    def size(self) -> int:
        """Rows."""
        return self.ends[0].n_rows

    def key(self, number: int) -> str:
        """Where the pairs of two ends are kept until the graph is complete."""
        return graph_work_path(self.graph, self.run_id, f"{'null-' if self.is_null else ''}{number}-0-0")

    def run(self, advance: Advance) -> int:
        """Find the pairs, write them, and return how many they are."""
        if None not in self.storage.sizes([self.key(number) for number in self.numbers]):
            advance(self.size)
            return -1
        total = 0
        tables = dict(self.correlations(advance))
        counts = {number: _above(r, self.options.min_r, self._is_within(number)) for number, r in tables.items()}
        if sum(counts.values()) > self.options.max_edges:
            histogram = sum(
                (np.histogram(np.abs(r), _BINS, (0.0, 1.0))[0] for r in tables.values()), np.zeros(_BINS, np.int64)
            )
            raise too_many(sum(counts.values()), histogram, self.options)
        for number, r in tables.items():
            kept = np.abs(r) >= self.options.min_r
            a, b = np.nonzero(np.triu(kept, 1) if self._is_within(number) else kept)
            found = Found(a.astype(np.uint32), b.astype(np.uint32), r[a, b], np.full(len(a), -1))
            write_table(self.storage, self.key(number), pd.DataFrame(vars(found)))
            total += len(a)
        return total

    def _is_within(self, number: int) -> bool:
        a, b = self.numbers[number]
        return a == b

    def correlations(self, advance: Advance | None = None) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield of each pair its number and all correlations, (units of a, units of b), 0 where one is constant."""
        from saestore.kernels.correlation import DenseSums

        order = _order(self.options.seed, self.size) if self.is_null else None
        sums = {
            number: DenseSums(len(self.ends[a].units), len(self.ends[b].units), device=self.device)
            for number, (a, b) in self.numbers.items()
        }
        seconds = {b for _, b in self.numbers.values()}
        step = min(end.block_rows for end in self.ends)
        plain = [_dense_blocks(end, step, None) for end in self.ends]
        shuffled = [
            _dense_blocks(end, step, order) if order is not None and place in seconds else itertools.repeat(None)
            for place, end in enumerate(self.ends)
        ]
        for blocks in zip(zip(*plain, strict=True), zip(*shuffled, strict=False), strict=False):
            x, y = blocks
            for number, (a, b) in self.numbers.items():
                sums[number].add(x[a], x[b] if order is None else y[b])
            if advance is not None:
                advance(len(x[0]))
        for number, (a, b) in self.numbers.items():
            r = sums[number].r()
            r[~self.takes_part[a]] = 0
            r[:, ~self.takes_part[b]] = 0
            yield number, r


def _dense_blocks(end: End, step: int, order: NDArray[np.int64] | None) -> Iterator[NDArray[np.float32]]:
    if not end.is_sparse:
        yield from end.blocks(order, step=step)
        return
    assert order is None  # ends of codes come first, and the second of a pair is what is shuffled
    x = np.zeros((step, len(end.units)), dtype=np.float32)
    filled = 0
    for rows, places, values, n in end.entries():
        done = 0
        while done < n:
            taken = min(step - filled, n - done)
            held = slice(*np.searchsorted(rows, [done, done + taken]))
            x[filled + rows[held] - done, places[held]] = values[held]
            filled, done = filled + taken, done + taken
            if filled == step:
                yield x
                x, filled = np.zeros_like(x), 0
    if filled:
        yield x[:filled]


def too_many(count: int, histogram: NDArray[np.int64], options: GraphOptions) -> BudgetError:
    """Return the error that says how many edges there would be, and which threshold leaves few enough."""
    above = np.cumsum(histogram[::-1])[::-1]
    scale = count / max(1, int(above[0]))
    fitting = np.flatnonzero(above * scale <= options.max_edges)
    threshold = fitting[0] / _BINS if fitting.size else 1.0
    return BudgetError(
        f"the graph would have about {count:,} edges, {options.max_edges:,} may be; give --min-r {threshold:.2f}, "
        "--min-support or --max-edges"
    )


def _above(r: NDArray[np.float64], least: float, within: bool) -> int:
    kept = np.abs(r) >= least
    return int(np.count_nonzero(np.triu(kept, 1) if within else kept))


def _order(seed: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(n)
