"""Codes of a task that the benchmark stored as training and test rows, as rows of the task again.

The benchmark's normal setting leaves one row of each data set out, so that no file has its codes. A lake has no mark
for a single row without codes: what was never written is told by whole shards, and reading it is an error. So that row
is encoded here, with the SAE and from the activations that the lake holds; where it lacks either, nothing is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.formats.sources import check_range
from saestore.formats.sparse_coo import CooCodes, open_coo, read_labels
from saestore.formats.sparse_topk import in_slot_order
from saestore.probing.settings import Cell, Skipped, cells
from saestore.probing.tasks import Task

SparseRow = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Units of a row, ascending, and their values."""


@dataclass(frozen=True, eq=False)
class SplitCodes:
    """The CodesSource of a training and a test file. Reads from any thread; can be pickled.

    name : of the SAE in the files
    train, test : (num_train, d_sae) and (num_test, d_sae)
    place : (n,) int64, the place of each row of the task among training rows and then test rows; -1 for rows that are
        in neither
    filled : what was encoded of the latter, by row
    encoder : content hash of the SAE that encoded it
    seed : of the split
    """

    name: str
    train: CooCodes
    test: CooCodes
    place: NDArray[np.int64]
    seed: int
    filled: Mapping[int, SparseRow] = field(default_factory=dict)
    encoder: str | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the task."""
        return len(self.place)

    @property
    def absent(self) -> NDArray[np.int64]:
        """Rows that are in neither file."""
        return np.flatnonzero(self.place < 0)

    @property
    def k(self) -> int:
        """Active units of the row that has the most."""
        counts = [self.train.active.max(), self.test.active.max(), *(len(units) for units, _ in self.filled.values())]
        return max(1, *map(int, counts))

    @property
    def d_sae(self) -> int:
        """Units of the SAE."""
        return self.train.d_sae

    @property
    def dtype(self) -> str:
        """Type of the values."""
        return "float32"

    def rows(self, rows: NDArray[np.int64]) -> list[SparseRow]:
        """Return rows of the task, in the order given."""
        places = self.place[rows]
        found: list[SparseRow | None] = [None] * len(rows)
        n_train = self.train.n_rows
        for codes, first, wanted in (
            (self.train, 0, np.flatnonzero((places >= 0) & (places < n_train))),
            (self.test, n_train, np.flatnonzero(places >= n_train)),
        ):
            for at, row in zip(wanted.tolist(), codes.read(places[wanted] - first), strict=True):
                found[at] = row
        return [self.filled[int(number)] if row is None else row for number, row in zip(rows, found, strict=True)]

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[np.uint32] | None]:
        """Return (indices, values, l0) of rows; see `CodesSource`."""
        check_range(start, stop, self.n_rows)
        k = self.k
        indices = np.zeros((stop - start, k), np.uint32)
        values = np.zeros((stop - start, k), np.float32)
        l0 = np.zeros(stop - start, np.uint32)
        for at, (units, row) in enumerate(self.rows(np.arange(start, stop))):
            indices[at, : len(units)], values[at, : len(units)], l0[at] = units, row, len(units)
        return *in_slot_order(indices, values, values, values > 0), l0

    def describe(self) -> dict[str, Any]:
        """Return what was opened, as JSON."""
        files = [{"name": part.path.name, "bytes": part.path.stat().st_size} for part in (self.train, self.test)]
        return {
            "format": "sparse_coo",
            "path": self.train.path.parent.name,
            "key": self.name,
            "files": files,
            "bytes": sum(int(str(file["bytes"])) for file in files),
            "shape": [self.n_rows, self.k],
            "d_sae": self.d_sae,
            "dtype": self.dtype,
            "keeps_all": True,
            "seed": self.seed,
            "encoded_here": {"rows": sorted(self.filled), "sae": self.encoder},
            "notes": [],
        }

    def close(self) -> None:
        """Nothing stays open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_split_codes(name: str, paths: Mapping[str, Path], task: Task, *, seed: int) -> SplitCodes:
    """Open the four files of a task, and check that they are of its split.

    Parameters
    ----------
    name : str
        Of the SAE in the files.
    paths : mapping of str to Path
        By `saestore.probing.file_names.CODE_PARTS`.
    task : Task
    seed : int
        Of the split.

    Raises
    ------
    InputError
        A file holds something else, or other numbers of rows or labels than those of the split.
    MissingError, IntegrityError
        A file is not there, or is damaged.
    """
    cell = normal_cell(task, seed)
    for part, rows in (("y_train", cell.train), ("y_test", cell.test)):
        labels = read_labels(paths[part])
        if len(labels) != len(rows):
            raise InputError(f"{paths[part]} has {len(labels):,} labels, the split of {task.name!r} {len(rows):,} rows")
        differing = int(np.count_nonzero(labels != task.labels[rows]))
        if differing:
            raise InputError(
                f"{paths[part]}: {differing:,} of {len(rows):,} labels are not those of the rows that seed {seed} "
                "draws; the files are of another seed or of other texts"
            )
    opened = {part: open_coo(paths[part]) for part in ("X_train_sae", "X_test_sae")}
    for part, rows in (("X_train_sae", cell.train), ("X_test_sae", cell.test)):
        if opened[part].n_rows != len(rows):
            raise InputError(f"{paths[part]} has {opened[part].n_rows:,} rows, the split {len(rows):,}")
    train, test = opened.values()
    if train.d_sae != test.d_sae:
        raise InputError(f"{test.path} has {test.d_sae:,} units, {train.path.name} {train.d_sae:,}")
    place = np.full(len(task), -1, np.int64)
    place[cell.train] = np.arange(len(cell.train))
    place[cell.test] = len(cell.train) + np.arange(len(cell.test))
    return SplitCodes(name, train, test, place, seed)


def normal_cell(task: Task, seed: int) -> Cell:
    """Return the training and test rows of a task's normal setting (InputError where it is too small)."""
    cell = cells(task, "normal", seed=seed)[0]
    if isinstance(cell, Skipped):
        raise InputError(f"{task.name}: {cell.reason}")
    return cell
