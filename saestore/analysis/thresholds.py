"""The verb `thresholds`: from which value on a unit speaks for a concept, learned on calibration data.

Exact quantiles of the active values on rows that have the concept, for each concept, unit and percentile, from the
postings; see `saestore.kernels.thresholds`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.legacy_concepts import in_blocks, median_of_blocks
from saestore.analysis.pairs import Pairs, compute, truth_of
from saestore.analysis.truth import By, Truth, check_splits, open_labels, truth_options
from saestore.codes import Codes
from saestore.errors import InputError
from saestore.postings import UnitEntries
from saestore.rows import ArraySpec, RowGroup

PERCENTILES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Parts of the active positive rows that reach a threshold, from strict to lax (docs/concepts.md)."""

DEFAULT = "default"


@dataclass(frozen=True)
class Thresholds:
    """Stored thresholds of the units of codes or of a view.

    split : what they were learned on
    by : `position`, or `sample` where all rows of a sample that has the concept counted as having it
    """

    pairs: Pairs

    @classmethod
    def open(cls, codes: Codes, name: str = DEFAULT) -> Thresholds:
        """Open thresholds (MissingError where there are none of that name)."""
        return cls(Pairs.open(codes, "thresholds", name))

    @property
    def split(self) -> str:
        """The split they were learned on."""
        return str(self.pairs.group.attributes["split"])

    @property
    def by(self) -> By:
        """Whose labels the rows have: their own (`position`) or their samples'."""
        by: By = self.pairs.group.attributes["identity"]["by"]
        return by

    @property
    def is_legacy(self) -> bool:
        """Whether they were learned as earlier code did, for comparison only."""
        return bool(self.pairs.group.attributes["identity"]["legacy"])

    def values(self, concept: str | None = None) -> NDArray[np.float32]:
        """Return the thresholds of a concept, or of all rows: (units, percentiles), infinite for never."""
        place = len(self.pairs.concepts) if concept is None else self.pairs.place_of(concept)
        found: NDArray[np.float32] = self.pairs.read("thresholds")[:, place]
        return found

    def n_pos(self, concept: str | None = None) -> NDArray[np.uint32]:
        """Return on how many rows each rests: (units,)."""
        place = len(self.pairs.concepts) if concept is None else self.pairs.place_of(concept)
        found: NDArray[np.uint32] = self.pairs.read("n_pos")[:, place]
        return found


def write_thresholds(
    codes: Codes,
    *,
    name: str = DEFAULT,
    concepts: Sequence[str] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    split: str = "cal",
    by: By | None = None,
    labels: str = "concepts",
    special: bool = False,
    legacy: bool = False,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Thresholds:
    """Compute and store thresholds; what is stored already is left alone.

    Parameters
    ----------
    codes : Codes
        All units, or a view.
    name : str
        Of the result.
    concepts : sequence of str, optional
        Default: all that are labelled.
    percentiles : sequence of float
        Ascending, above 0 and below 1: which part of the active positive rows reaches the threshold.
    split : str
        What is learned from.
    by : {"position", "sample"}, optional
        Default: positions where they are labelled.
    labels : str
        Name of the labels of positions.
    special : bool
        Whether rows of special tokens count.
    legacy : bool
        As earlier code did, for comparison with its results: medians over blocks of labelled rows, and 0 where there is
        nothing to learn from, which fires everywhere; see `saestore.analysis.legacy_concepts`.
    memory, scheduler, quiet, say
        As for `index`.

    Raises
    ------
    InputError
        No calibration samples; no concepts; percentiles that do not ascend between 0 and 1.
    MissingError
        An unknown concept, labels that are not there, or codes without postings.
    ConflictError
        Other thresholds have the name.

    References
    ----------
    docs/concepts.md.
    """
    levels = checked_percentiles(percentiles)
    check_splits(codes.axis, split)
    stored = open_labels(codes.group.storage, codes.key.activations, labels)
    options = truth_options(codes.axis, stored, concepts=concepts, by=by, name=labels, special=special)
    truth = truth_of(codes, options)
    if legacy and options.by == "sample" and codes.axis.positions is not None:
        raise InputError("legacy thresholds of positions need labels of positions; label them, or leave legacy out")
    if say is not None:
        _tell(truth, split, codes, say)
        if legacy:
            say(f"{codes.key.path}: thresholds as earlier code learned them, for comparison only")
    pairs = compute(
        codes,
        "thresholds",
        name,
        truth=truth,
        per_unit=len(options.concepts) + 1,
        arrays=[
            ArraySpec("thresholds", "float32", len(levels), width_axis="percentile", codec="shuffle"),
            ArraySpec("n_pos", "uint32"),
        ],
        identity={"split": split, "percentiles": levels, "legacy": legacy},
        attributes={"split": split, "percentiles": levels},
        work=_work,
        memory=memory,
        scheduler=scheduler,
        quiet=quiet,
    )
    return Thresholds(pairs)


def checked_percentiles(percentiles: Sequence[float]) -> list[float]:
    """Return percentiles as a list, refusing those that do not ascend between 0 and 1 (InputError)."""
    levels = [float(level) for level in percentiles]
    inside = all(0 < level < 1 for level in levels)
    if not levels or not inside or any(b <= a for a, b in itertools.pairwise(levels)):
        raise InputError(f"percentiles {levels} cannot be used; give parts of one that ascend, such as 0.05 0.5 0.95")
    return levels


def _work(
    group: RowGroup, truth: Truth, codes: Codes, mine: slice
) -> Callable[[slice, UnitEntries], Mapping[str, NDArray[Any]]]:
    from saestore.kernels.thresholds import thresholds

    counted = truth.rows_of(group.attributes["split"])
    lists, of_row = truth.lists, truth.list_of_row
    levels = np.array(group.attributes["percentiles"])
    n_concepts = len(truth.options.concepts)
    blocks = in_blocks(lists, counted, n_concepts) if group.attributes["identity"]["legacy"] else None
    if blocks is not None:
        # Each pair of block and concept is a concept of its own; rows of pooled types have the lists of their samples.
        lists, of_row, n_concepts = blocks.lists, None, blocks.used.size

    def make(units: slice, entries: UnitEntries) -> Mapping[str, NDArray[Any]]:
        found, n_pos = thresholds(
            entries.offsets,
            entries.rows,
            entries.values,
            counted,
            of_row,
            lists.indptr,
            lists.members,
            n_concepts,
            levels,
        )
        if blocks is not None:
            found, n_pos = median_of_blocks(found, n_pos, blocks.used)
        return {"thresholds": found, "n_pos": n_pos}

    return make


def _tell(truth: Truth, split: str, codes: Codes, say: Callable[[str], None]) -> None:
    """Say which labels are believed, and which concepts have none to learn from."""
    what = "labelled positions" if truth.options.by == "position" else "all rows of labelled samples"
    rows = truth.rows_of(split)
    say(f"{codes.key.path}: {int(rows.sum()):,} rows of split {split}, concepts by {what}")
    empty = []
    for place, concept in enumerate(truth.options.concepts):
        if not (rows & (truth.row_labels(place) == 1)).any():
            empty.append(concept)
    if empty:
        names = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        share = f"{len(empty)} of {len(truth.options.concepts)} concepts"
        say(f"{codes.key.path}: {share} have no row in split {split} and stay undefined: {names}")
