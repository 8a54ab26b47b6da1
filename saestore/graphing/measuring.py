"""Measure the units of an end: their sums over all rows, and which of them can have edges."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.engine.resources import load_once
from saestore.graphing.ends import End, moments_of
from saestore.graphing.options import GraphOptions
from saestore.graphs import write_table
from saestore.kernels.pair_rules import Moments
from saestore.layout import graph_work_path
from saestore.progress import Progress
from saestore.storage import Storage

_KEPT_ENDS = 64


@dataclass(frozen=True, eq=False)
class Measured:
    """An end with the sums of its units.

    moments : over all rows
    maximum : (m,) float64
    takes_part : (m,) bool, units that are neither dead, constant nor always on
    """

    end: End
    moments: Moments
    maximum: NDArray[np.float64]
    takes_part: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StoredMeasures:
    """Where the measures of an end are kept until its graph is complete, so that tasks need not carry them.

    graph, run_id : name of the graph, and the hash of what determines it
    place : of the end in the graph
    """

    storage: Storage
    graph: str
    run_id: str
    place: int
    end: End

    @property
    def key(self) -> str:
        """Where they lie."""
        return graph_work_path(self.graph, self.run_id, f"measured-{self.place}")

    @property
    def identity(self) -> tuple[str, str, int]:
        """What tells the end apart from those of all graphs of all lakes."""
        return self.storage.url, self.run_id, self.place

    def write(self, measures: Measured) -> None:
        """Write them, unless they are there."""
        if self.storage.sizes([self.key])[0] is None:
            moments = measures.moments
            frame = pd.DataFrame({"active": moments.active, "sums": moments.sums, "squares": moments.squares})
            frame["maximum"], frame["takes_part"] = measures.maximum, measures.takes_part
            write_table(self.storage, self.key, frame)

    def read(self) -> Measured:
        """Read them, once in a process."""
        return load_once(("graph measures", *self.identity), self._read, keep=_KEPT_ENDS)

    def _read(self) -> Measured:
        content = self.storage.get(self.key)
        assert content is not None, self.key
        frame = pd.read_parquet(io.BytesIO(content))
        active, sums, squares, maximum, takes_part = (frame[name].to_numpy() for name in frame)
        return Measured(self.end, Moments(self.end.n_rows, active, sums, squares), maximum, takes_part)


def measured(ends: Sequence[End], options: GraphOptions, *, quiet: bool) -> list[Measured]:
    """Read every end once, and say which of its units take part."""
    found = []
    with Progress("measure", total=len(ends), unit="ends", quiet=quiet) as progress:
        for end in ends:
            moments, largest = moments_of(end) if end.is_sparse else _dense_moments(end)
            takes_part = moments.usable.copy()
            if end.is_sparse:
                takes_part &= moments.active <= options.max_base_rate * moments.n
            found.append(Measured(end, moments, largest, takes_part))
            progress.advance(1)
    return found


def _dense_moments(end: End) -> tuple[Moments, NDArray[np.float64]]:
    """Return sums over all rows of activations, without loss of digits where means are large, and largest values."""
    m = len(end.units)
    n, shift = 0, np.zeros(m)
    sums, squares, largest = np.zeros(m), np.zeros(m), np.full(m, -np.inf)
    for x in end.blocks():
        block = x.astype(np.float64)
        if not n:
            shift = block.mean(axis=0)
        moved = block - shift
        n += len(x)
        sums += moved.sum(axis=0)
        squares += np.square(moved).sum(axis=0)
        largest = np.maximum(largest, block.max(axis=0))
    scatter = np.maximum(squares - sums**2 / n, 0)
    total = sums + n * shift
    return Moments(n, np.full(m, n), total, scatter + total**2 / n), largest
