"""Make a feature graph: measure the ends, plan, find pairs of ends task by task, and join what was found."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from saestore.budget import require_memory
from saestore.engine.resources import release, usable_device
from saestore.engine.run import run_tasks
from saestore.errors import BudgetError
from saestore.graphing.assembly import Shape, assembled, found_of_null
from saestore.graphing.ends import End, check_ends
from saestore.graphing.measuring import Measured, StoredMeasures
from saestore.graphing.options import GraphOptions
from saestore.graphing.pairs import CodesPairTask, DensePairsTask, too_many
from saestore.graphing.plan import Blocks, dense_bytes, plan_blocks, shares
from saestore.graphs import FeatureGraph, GraphEnd, check_free, write_graph
from saestore.kernels.pair_rules import Found, TooManyPairs
from saestore.storage import Storage

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GraphPlan:
    """What making a graph takes.

    ends : names, with their units
    pairs : how many pairs of ends
    rows : in words
    bytes : the most that is in memory
    scans : how often an end of codes is read, over all pairs
    sums : products that are added up, of entries of the same row, or of columns
    """

    ends: tuple[tuple[str, int], ...]
    pairs: int
    rows: str
    bytes: int
    scans: int
    sums: int


def joined_pairs(ends: Sequence[End], others: Sequence[End] | None) -> tuple[tuple[End, ...], Pairs]:
    """Return the ends of a graph in their order, those of codes first, and the pairs that are joined.

    Without others: each end with itself and with each that follows; else each with each of the others.
    """
    every = sorted([*ends, *(others or ())], key=lambda end: not end.is_sparse)
    check_ends(every)
    if others is None:
        numbers = range(len(every))
        return tuple(every), tuple((a, b) for a in numbers for b in numbers if a <= b)
    given = {id(end) for end in ends}
    sides = [id(end) in given for end in every]
    places = range(len(every))
    return tuple(every), tuple((a, b) for a in places for b in places if a < b and sides[a] != sides[b])


def identity_of(ends: Sequence[End], pairs: Pairs, options: GraphOptions) -> dict[str, Any]:
    """Return what determines a graph, as JSON values."""
    return {
        "ends": [end.identity for end in ends],
        "rows": ends[0].rows_identity,
        "pairs": [list(pair) for pair in pairs],
        "options": options.identity,
    }


def plan_graph(known: Sequence[Measured], pairs: Pairs, budget: int) -> tuple[GraphPlan, dict[int, Blocks]]:
    """Plan the blocks of each pair of ends of codes, and what all takes.

    Raises
    ------
    BudgetError
        It does not fit the memory.
    """
    blocks: dict[int, Blocks] = {}
    needed = sums = 0
    n = known[0].moments.n
    dense = [number for number, (_, b) in enumerate(pairs) if not known[b].end.is_sparse]
    for number, (a, b) in enumerate(pairs):
        if number in dense:
            sums += n * len(known[a].takes_part) * len(known[b].takes_part)
            continue
        own, other = known[a].moments, known[b].moments
        blocks[number] = plan_blocks(own.active, other.active, n, budget, within=a == b)
        needed = max(needed, blocks[number].bytes)
        sums += int(own.active.sum() * (other.active.sum() / max(1, n)))
    if dense:
        together = sorted({place for number in dense for place in pairs[number]})
        widths = [len(known[place].takes_part) for place in together]
        products = sum(len(known[a].takes_part) * len(known[b].takes_part) for a, b in (pairs[one] for one in dense))
        least = dense_bytes(widths, products, min(known[place].end.block_rows for place in together))
        require_memory(
            least,
            budget=budget,
            what=f"the correlations of {len(dense)} pairs of ends with {max(widths):,} columns at most",
            remedy="choose fewer units (--units), or give more --memory",
        )
        needed = max(needed, least)
    plan = GraphPlan(
        ends=tuple((one.end.name, len(one.takes_part)) for one in known),
        pairs=len(pairs),
        rows=known[0].end.rows_in_words,
        bytes=needed,
        scans=sum(one.scans for one in blocks.values()) + len(known) + (1 if dense else 0),
        sums=sums,
    )
    return plan, blocks


def make_graph(
    storage: Storage,
    name: str,
    known: Sequence[Measured],
    pairs: Pairs,
    blocks: Mapping[int, Blocks],
    options: GraphOptions,
    *,
    device: str = "cpu",
    scheduler: str | None = None,
    quiet: bool = False,
) -> FeatureGraph:
    """Make a graph, or what is missing of it, and return it.

    Parameters
    ----------
    storage : Storage
        Of the lake.
    name : str
    known, pairs, blocks
        From `measured`, `joined_pairs` and `plan_graph`.
    options : GraphOptions
    device : str
        Where sums are made; `auto`, `cpu`, `cuda` or `mps`.
    scheduler : str, optional
        Address of a Dask scheduler; default threads.
    quiet : bool
        Show no progress.

    Raises
    ------
    ConflictError
        A graph of this name was made differently.
    BudgetError
        The edges are too many; how many, and a threshold that leaves fewer, are told.
    """
    chosen_device = usable_device(device) if device != "cpu" else device
    ends = [one.end for one in known]
    identity = identity_of(ends, pairs, options)
    if check_free(storage, name, identity):
        return FeatureGraph.open(storage, name)
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    shape = Shape(tuple(known), pairs, options)
    stored = [StoredMeasures(storage, name, run_id, place, end) for place, end in enumerate(ends)]
    for place, one in zip(stored, known, strict=True):
        place.write(one)
    found: dict[bool, list[tuple[int, Found]]] = {}
    try:
        for is_null in (False, True)[: 1 + options.null]:
            tasks = list(_tasks(stored, shape, blocks, chosen_device, is_null=is_null))
            if not is_null:
                _check_predicted(tasks, options)
            label = f"shuffled {name}" if is_null else f"graph {name}"
            _run(tasks, options, label=label, scheduler=scheduler, quiet=quiet)
            found[is_null] = list(_parts(storage, tasks))
    finally:
        for kind in ("graph rows", "graph units", "graph measures"):
            release(kind)
    summary, edges, units = assembled(shape, found[False])
    if options.null:
        summary["null"] = found_of_null(shape, found[True])
    described = [GraphEnd(e.name, e.layer, e.sae, e.view, tuple(one.key.path for one in e.sources)) for e in ends]
    write_graph(storage, name, identity, described, summary, {"edges": edges, "units": units})
    return FeatureGraph.open(storage, name)


Task = CodesPairTask | DensePairsTask


def _tasks(
    stored: Sequence[StoredMeasures], shape: Shape, blocks: Mapping[int, Blocks], device: str, *, is_null: bool
) -> Iterator[Task]:
    known, options = shape.ends, shape.options
    for number, planned in blocks.items():
        a, b = shape.pairs[number]
        active = known[a].moments.active
        for block_b in pairwise(planned.b.tolist()):
            for block_a in pairwise(planned.a.tolist()):
                if a == b and block_b[1] <= block_a[0]:
                    continue  # below the diagonal
                for share in shares(active, *block_a):
                    place = int(active[slice(*share)].sum()), block_a, block_b, share
                    yield CodesPairTask(number, stored[a], stored[b], *place, options, is_null, device)
    dense = {number: pair for number, pair in enumerate(shape.pairs) if number not in blocks}
    if dense:
        together = sorted({place for pair in dense.values() for place in pair})
        numbers = {number: (together.index(a), together.index(b)) for number, (a, b) in dense.items()}
        chosen, masks = (tuple(getattr(known[place], name) for place in together) for name in ("end", "takes_part"))
        where = stored[0].storage, stored[0].graph, stored[0].run_id
        yield DensePairsTask(*where, numbers, chosen, masks, options, is_null, device)


def _check_predicted(tasks: Sequence[Task], options: GraphOptions) -> None:
    """Refuse a graph of too many edges before the work, from a sample of the units of each pair (BudgetError)."""
    seen: set[int] = set()
    total, histogram = 0, np.zeros(100, dtype=np.int64)
    for task in tasks:
        if isinstance(task, CodesPairTask) and task.number not in seen:
            seen.add(task.number)
            count, bins = task.predicted()
            total, histogram = total + count, histogram + bins
            if total > options.max_edges:
                raise too_many(total, histogram, options)


def _run(tasks: Sequence[Task], options: GraphOptions, *, label: str, scheduler: str | None, quiet: bool) -> None:
    try:
        counts = run_tasks(tasks, label=label, unit="entries", threads=1, scheduler=scheduler, quiet=quiet)
    except TooManyPairs as error:
        raise too_many(error.count, error.histogram, options) from None
    if sum(count for count in counts if count > 0) > options.max_edges:
        raise BudgetError(
            f"{sum(counts):,} edges were found, {options.max_edges:,} may be; give a higher --min-r, and another --name"
        )


def _keys(tasks: Sequence[Task]) -> list[str]:
    keys: list[str] = []
    for task in tasks:
        keys += [task.key] if isinstance(task, CodesPairTask) else [task.key(number) for number in task.numbers]
    return keys


def _parts(storage: Storage, tasks: Sequence[Task]) -> Iterator[tuple[int, Found]]:
    """Yield the pairs that tasks have written, with the number of their pair of ends."""
    for task in tasks:
        numbers = [task.number] if isinstance(task, CodesPairTask) else list(task.numbers)
        for number, key in zip(numbers, _keys([task]), strict=True):
            content = storage.get(key)
            assert content is not None, key
            frame = pd.read_parquet(io.BytesIO(content))
            yield number, Found(*(frame[name].to_numpy() for name in ("a", "b", "r", "n_ab")))
