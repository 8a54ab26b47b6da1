"""Results for each pair of unit and concept: how they are stored, and the tasks that compute them shard by shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore import provenance
from saestore.analysis.truth import KEPT_LABELS, Truth, TruthOptions, open_labels
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.cuts import unit_shares
from saestore.engine.resources import load_once, release
from saestore.engine.run import run_tasks
from saestore.errors import ConflictError, InputError, MissingError
from saestore.layout import ALL_UNITS, CodesKey, is_name
from saestore.postings import UnitEntries
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.storage import Storage, open_storage, read_document
from saestore.views import view_names

Kind = Literal["thresholds", "detection", "localisation"]
TRUTH = "truth"

BLOCK_ENTRIES = 1 << 20
"""Entries that are read at a time."""

ENTRY_BYTES = 96
"""Of an entry while it is read, sorted and shared out to concepts. Measured."""

_CHUNK_PAIRS = 16_384
_CHUNKS_PER_SHARD = 16

Work = Callable[[RowGroup, Truth, Any, slice], Callable[[slice, UnitEntries], Mapping[str, NDArray[Any]]]]
"""Given the group, truth, codes and units of a shard: what makes results of the entries of some of these units."""


@dataclass(frozen=True)
class Pairs:
    """A stored result with one row for each unit and concept, units first.

    units : (u,) int64, original ids
    concepts : names, c in all
    percentiles : (p,) float64
    """

    group: RowGroup
    units: NDArray[np.int64]
    concepts: tuple[str, ...]
    percentiles: NDArray[np.float64]

    @classmethod
    def open(cls, codes: Codes, kind: Kind, name: str) -> Pairs:
        """Open a result over codes, or a view of them.

        Raises
        ------
        MissingError
            There is none of that name, or only of older codes; those that there are, are listed.
        """
        path = result_path(codes, kind, name)
        document = read_document(codes.group.storage, path)
        if document is None:
            raise MissingError(missing_result(codes, kind, name))
        group = RowGroup.from_document(codes.group.storage, path, document)
        own = group.attributes
        return cls(
            group,
            group.whole("units").astype(np.int64),
            tuple(own["concepts"]),
            np.array(own["percentiles"], dtype=np.float64),
        )

    def read(self, name: str, units: slice = slice(None)) -> NDArray[Any]:
        """Return an array of the result, (units, concepts) or (units, concepts, percentiles).

        Raises
        ------
        HoleError
            Some of it was never computed.
        """
        c = self.group.grid.rows // len(self.units)
        start, stop, _ = units.indices(len(self.units))
        found = self.group.read(name, start * c, stop * c)
        return found.reshape(stop - start, c, *found.shape[1:])

    def place_of(self, concept: str) -> int:
        """Return the place of a concept (MissingError where it is not one of the result's)."""
        if concept not in self.concepts:
            known = ", ".join(self.concepts[:10])
            raise MissingError(f"{self.group.path} has no concept {concept!r}; it has {known}")
        return self.concepts.index(concept)

    def place_of_unit(self, unit: int) -> int:
        """Return the place of a unit by its original id (MissingError where it is not one of the result's)."""
        place = int(np.searchsorted(self.units, unit))
        if place == len(self.units) or self.units[place] != unit:
            raise MissingError(f"{self.group.path} has no unit {unit}: it is not one of the {len(self.units):,} kept")
        return place


@dataclass(frozen=True)
class PairsTask:
    """The pairs of one shard; see `ShardTask`. Holds names and numbers only."""

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: CodesKey
    view: str | None
    truth: TruthOptions
    path: str
    shard: int
    work: Work = field(hash=False)
    size: int

    def run(self, advance: Callable[[int], None]) -> None:
        """Read the entries of the units block by block, and write what is made of them."""
        storage = open_storage(self.url, storage_options=self.options)
        codes = opened(storage, self.key, self.view)
        group = RowGroup.open(storage, self.path)
        made_of = group.attributes["identity"]
        if codes.run != made_of["codes"]:
            raise self._changed()

        def load() -> Truth:
            truth = truth_of(codes, self.truth)
            if truth.digest != made_of["truth"]:
                raise self._changed()
            return truth

        # By its digest: processes of a cluster live on while datasets grow and are labelled anew.
        truth = load_once((TRUTH, self.url, self.key.activations, self.truth, made_of["truth"]), load)
        units = group.whole("units").astype(np.int64)
        per_unit = group.grid.rows // len(units)
        rows = group.grid.shard(self.shard)
        mine = slice(rows.start // per_unit, rows.stop // per_unit)
        make = self.work(group, truth, codes, mine)
        parts: list[Mapping[str, NDArray[Any]]] = []
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads, thread_name_prefix="saestore-concepts") as pool:
            for places, entries in codes.postings.blocks(units[mine], BLOCK_ENTRIES):
                done = [
                    pool.submit(make, slice(places.start + share.start, places.start + share.stop), entries.of(share))
                    for share in unit_shares(entries.offsets, threads)
                ]
                parts += [each.result() for each in done]
                advance(len(entries.rows))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in group.array_names}
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        group.write_shard(self.shard, flat)

    def _changed(self) -> ConflictError:
        return ConflictError(
            f"the codes or labels of {self.key.path} have changed since {self.path} was begun; run the command again"
        )


def result_path(codes: Codes, kind: Kind, name: str) -> str:
    """Return where a result over codes, or a view of them, lies.

    Raises
    ------
    InputError
        The codes are looked at through several views, whose units in common have no name.
    """
    if codes.view_name is not None and not is_name(codes.view_name):
        raise InputError(
            f"results are stored of one view, and {codes.view_name} are several; give what they have in common a name: "
            "saestore prune --view"
        )
    return codes.key.result_path(codes.run, codes.view_name or ALL_UNITS, kind, name)


def truth_of(codes: Codes, options: TruthOptions) -> Truth:
    """Open the labels of the rows of codes."""
    labels = open_labels(codes.group.storage, codes.key.activations, options.labels)
    return Truth(codes.axis, labels, options)


def opened(storage: Storage, key: CodesKey, view: str | None) -> Codes:
    """Open codes, or a view of them."""
    codes = Codes.open(storage, key)
    return codes if view is None else codes.view(view)


def compute(
    codes: Codes,
    kind: Kind,
    name: str,
    *,
    truth: Truth,
    per_unit: int,
    arrays: Sequence[ArraySpec],
    identity: Mapping[str, Any],
    attributes: Mapping[str, Any],
    work: Work,
    memory: str | int | None,
    scheduler: str | None,
    quiet: bool,
) -> Pairs:
    """Compute what is missing of a result and return it.

    Parameters
    ----------
    per_unit : int
        Rows of each unit: its concepts, and what else there is one of for each unit.
    arrays : sequence of ArraySpec
        With one row for each pair.
    identity, attributes : mapping
        As for `RowGroup.create`; what they are of (codes, view, units, truth) is added.

    Raises
    ------
    InputError
        The codes are a selection of rows, of which nothing is stored, or the view has no unit.
    ConflictError
        The name is taken by a result that was made differently.
    BudgetError
        The unit with the most entries does not fit the memory.
    MissingError, HoleError
        The codes have no postings, or not of all rows.
    """
    if codes.is_selection:
        raise InputError(f"{kind} are of all rows of the codes; leave the selection out, and name a split instead")
    units = codes.kept_units
    if not len(units):
        raise InputError(f"view {codes.view_name!r} of {codes.key.path} keeps no unit; prune less")
    postings = codes.postings
    postings.check_complete()
    baseline = psutil.Process().memory_info().rss
    budget = parse_memory(memory) + (baseline if memory is None else 0)
    counts = postings.counts[units]
    most = int(counts.max(initial=0))
    require_memory(
        baseline + truth_bytes(truth) + 2 * max(most, min(BLOCK_ENTRIES, int(counts.sum()))) * ENTRY_BYTES,
        budget=budget,
        what=f"{kind} of {codes.key.path}, whose most active unit is active in {most:,} rows,",
        remedy="give more with --memory, or prune units that are active nearly everywhere",
    )
    storage, key = codes.group.storage, codes.key.at(0)
    chunk = per_unit * max(1, _CHUNK_PAIRS // per_unit)
    dtype = np.uint32 if units[-1] < 2**32 else np.uint64
    group = RowGroup.create(
        storage,
        result_path(codes, kind, name),
        kind=kind,
        axis="pair",
        grid=Grid.plan(len(units) * per_unit, shard_rows=chunk * _CHUNKS_PER_SHARD, chunk_rows=chunk),
        arrays=arrays,
        identity={
            "codes": codes.run,
            "truth": truth.digest,
            "concepts": truth.options.concepts,
            "by": truth.options.by,
            "special": truth.options.special,
            **identity,
        },
        whole={"units": (units.astype(dtype), ("unit",))},
        attributes={
            "concepts": truth.options.concepts,
            "view": codes.view_name,
            "labels": truth.options.labels,
            **attributes,
            "provenance": provenance.stamp(),
        },
    )
    tasks = []
    for shard in group.missing_shards():
        rows = group.grid.shard(shard)
        size = int(postings.counts[units[rows.start // per_unit : rows.stop // per_unit]].sum())
        tasks.append(
            PairsTask(
                storage.url, dict(storage.options), key, codes.view_name, truth.options, group.path, shard, work, size
            )
        )
    if tasks:
        load_once((TRUTH, storage.url, key.activations, truth.options, truth.digest), lambda: truth)
    try:
        run_tasks(tasks, label=f"{kind} {key.path}", unit="entries", threads=1, scheduler=scheduler, quiet=quiet)
    finally:
        release(TRUTH)
    return Pairs.open(codes, kind, name)


def truth_bytes(truth: Truth) -> int:
    """Return about what labels and marks of all rows take."""
    n, c = truth.axis.n_rows, len(truth.options.concepts)
    return n * (4 + 1 + 8 + 4 * 4) + truth.samples.nbytes + min(n * c, KEPT_LABELS)


def missing_result(codes: Codes, kind: Kind, name: str) -> str:
    """Say that there is no such result, and which there are: of that name, or of other views."""
    key, view = codes.key, codes.view_name
    of = f"view {view!r} of {key.path}" if view else key.path
    there = stored_results(codes, kind)
    if there:
        return f"{of} has no {kind} {name!r}; it has {', '.join(there[:6])}"
    verb = {"thresholds": "thresholds", "detection": "detect", "localisation": "localise"}[kind]
    command = f"saestore {verb} LAKE --datasets {key.dataset}{f' --view {view}' if view else ''}"
    others = [other for other in view_names(codes.group.storage, key, codes.run) if _results(codes, other, kind)]
    if others:  # most likely the view was forgotten
        which = f"view {others[0]!r} has" if len(others) == 1 else f"views {', '.join(map(repr, others[:4]))} have"
        return f"{of} has no {kind}, but {which}; give --view {others[0]}, or compute them: {command}"
    return f"{of} has no {kind}; compute them: {command}"


def stored_results(codes: Codes, kind: Kind) -> list[str]:
    """Return the names of the results of a kind that codes, or the view of them, have."""
    return _results(codes, codes.view_name or ALL_UNITS, kind)


def _results(codes: Codes, view: str, kind: Kind) -> list[str]:
    """Return the names of the results of a kind that a view, or all units, has."""
    path = codes.key.results_path(codes.run, view, kind)
    return sorted(name for name in codes.group.storage.names(path) if is_name(name))
