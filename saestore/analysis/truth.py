"""What is true of rows and samples: which concepts they have, as stored labels say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saestore._nearest import nearest
from saestore.axis import RowAxis
from saestore.errors import HoleError, InputError, MissingError
from saestore.labels import Labels
from saestore.layout import POSITION_TYPES, SPLITS, ActivationsKey
from saestore.parts import Absent, RowParts
from saestore.storage import Storage

By = Literal["position", "sample"]
UNLABELLED = 255

KEPT_LABELS = 1 << 28
"""Labels of positions that are kept in memory, one byte each; of more, each concept is read when it is needed."""

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class TruthOptions:
    """Which labels are believed.

    concepts : names, in the order of the results
    by : whether the rows that have a concept are the labelled positions, or all rows of the labelled samples
    labels : name of the labels of positions
    special : whether rows of special tokens count
    """

    concepts: tuple[str, ...]
    by: By
    labels: str
    special: bool


@dataclass(frozen=True)
class ConceptLists:
    """The concepts of each row, or of each sample: list j is `members[indptr[j]:indptr[j + 1]]`."""

    indptr: NDArray[np.int64]
    members: NDArray[np.uint32]


class Truth:
    """Labels of samples and, where there are such, of positions, for chosen concepts.

    Examples
    --------
    >>> truth = Truth(axis, known_labels(axis, key), TruthOptions(("cube",), "position", "concepts", special=False))
    ... # doctest: +SKIP
    >>> truth.samples[0, :3]  # doctest: +SKIP
    array([1, 0, 1], dtype=uint8)
    """

    def __init__(self, axis: RowAxis, labels: Labels | None, options: TruthOptions) -> None:
        self.axis = axis
        self.options = options
        self._labels = labels
        of_positions = () if labels is None else labels.concept_names
        known = tuple(dict.fromkeys((*axis.samples.concept_names, *of_positions)))
        for concept in options.concepts:
            if concept not in known:
                near = nearest(concept, known, "concepts")
                raise MissingError(f"dataset {axis.samples.dataset!r} has no concept {concept!r}; {near}")
            if options.by == "position" and concept not in of_positions:
                raise MissingError(
                    f"labels {options.labels!r} of {axis.samples.dataset} have no positions of concept {concept!r}; "
                    f"{nearest(concept, of_positions, 'labelled concepts')}; label them, or give --by sample"
                )

    @cached_property
    def samples(self) -> NDArray[np.uint8]:
        """Whether samples have the concepts: 1, 0, or 255 where it is not known, (concepts, samples).

        Of a concept that only positions are labelled with, a sample has it if one of its positions has.
        """
        table = self.axis.samples
        out = np.empty((len(self.options.concepts), len(table)), dtype=np.uint8)
        for place, concept in enumerate(self.options.concepts):
            out[place] = table.concept(concept) if concept in table.concept_names else self._from_positions(concept)
        return out

    def _from_positions(self, concept: str) -> NDArray[np.uint8]:
        assert self.axis.positions is not None
        labels = self._position_labels(concept)
        of = self.sample_of_row
        out = np.zeros(len(self.axis.samples), dtype=np.uint8)
        out[of[labels == UNLABELLED]] = UNLABELLED
        out[of[labels == 1]] = 1
        return out

    def _position_labels(self, concept: str) -> NDArray[np.uint8]:
        """Return the labels of all positions for one concept."""
        if self._kept is None:
            return self._held.concept(concept)
        return self._kept[:, self._labelled.index(concept)]

    @cached_property
    def _held(self) -> Labels:
        """The labels of positions, refused where a part of the dataset has none (HoleError)."""
        labels = self._labels
        assert labels is not None
        if isinstance(labels.group, RowParts):
            _check_parts(labels, labels.group)
        return labels

    @cached_property
    def _labelled(self) -> list[str]:
        """The concepts that positions are labelled with."""
        names = self._held.concept_names
        return [concept for concept in self.options.concepts if concept in names]

    @cached_property
    def _kept(self) -> NDArray[np.uint8] | None:
        """The labels of all positions, a column for each concept, where they are few enough to be read once for all."""
        n = self.axis.n_rows
        if n * len(self._labelled) > KEPT_LABELS:
            return None
        columns = [self._held.concept_names.index(concept) for concept in self._labelled]
        out = np.empty((n, len(columns)), dtype=np.uint8, order="F")
        for start in range(0, n, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, n)
            out[start:stop] = self._held.read(start, stop)[:, columns]
        return out

    @cached_property
    def sample_of_row(self) -> NDArray[np.uint32]:
        """The sample of each row of the axis."""
        if self.axis.positions is None:
            return np.arange(self.axis.n_rows, dtype=np.uint32)
        lengths = np.diff(self.axis.positions.offsets)
        return np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)

    @cached_property
    def lists(self) -> ConceptLists:
        """The concepts of each row (`by` position) or of each sample."""
        if self.options.by == "sample":
            has = (self.samples == 1).T
            return ConceptLists(np.append(0, np.cumsum(has.sum(axis=1))), np.nonzero(has)[1].astype(np.uint32))
        n, c = self.axis.n_rows, len(self.options.concepts)
        lengths, rows, members = np.zeros(n, dtype=np.int64), [], []
        for place, concept in enumerate(self.options.concepts):
            has = np.flatnonzero(self._position_labels(concept) == 1)
            lengths[has] += 1
            rows.append(has)
            members.append(np.full(len(has), place, dtype=np.uint32))
        order = np.argsort(np.concatenate(rows), kind="stable") if c else np.empty(0, dtype=np.int64)
        return ConceptLists(np.append(0, np.cumsum(lengths)), np.concatenate(members)[order])

    @property
    def list_of_row(self) -> NDArray[np.uint32] | None:
        """The number of the list of each row; None where rows have lists of their own."""
        return self.sample_of_row if self.options.by == "sample" else None

    def row_labels(self, place: int) -> NDArray[np.uint8]:
        """Return what is known of each row for one concept: 1, 0 or 255, (n,)."""
        if self.options.by == "sample":
            of_rows: NDArray[np.uint8] = self.samples[place][self.sample_of_row]
            return of_rows
        return self._position_labels(self.options.concepts[place])

    def rows_of(self, split: str) -> NDArray[np.bool_]:
        """Return which rows count in a split: those of its samples, special tokens left out unless asked for.

        Raises
        ------
        InputError
            There is no such split, or no sample in it.
        """
        inside = np.zeros(len(self.axis.samples), dtype=bool)
        inside[self.axis.samples.of_split(split)] = True
        rows: NDArray[np.bool_] = inside[self.sample_of_row]
        if not self.options.special and self.axis.positions is not None:
            rows &= ~self.axis.special(np.arange(self.axis.n_rows))
        return rows

    def labels_in(self, split: str) -> NDArray[np.uint8]:
        """Return the labels of samples, 255 outside the split: (concepts, samples)."""
        out = np.full_like(self.samples, UNLABELLED)
        places = self.axis.samples.of_split(split)
        out[:, places] = self.samples[:, places]
        return out

    @cached_property
    def digest(self) -> str:
        """sha256 of the axis and the labels."""
        options = self.options
        names = [self.axis.digest, self.axis.samples.digest, options.concepts, options.by, options.special]
        labels = None if self._labels is None else self._labels.digest
        return hashlib.sha256(repr([*names, labels]).encode()).hexdigest()


def _check_parts(labels: Labels, group: RowParts) -> None:
    """Refuse labels that what was appended has none of (HoleError), with the remedy for what they were made from."""
    dataset, kind = labels.key.dataset, group.attributes.get("source", {}).get("kind", "")
    file = "the file of all rows" if kind == "gt" else "a file that speaks of their samples"
    option = f" --{kind.replace('_', '-')} FILE" if kind else ""
    for part, low, high in zip(group.parts, group.edges[:-1], group.edges[1:], strict=True):
        if isinstance(part, Absent):
            raise HoleError(
                f"rows {low} to {high - 1} of dataset {dataset!r}, which were appended, have no labels "
                f"{labels.name!r}; label them from {file}: saestore label LAKE {dataset} --name {labels.name}{option}"
            )


def open_labels(storage: Storage, key: ActivationsKey, name: str) -> Labels | None:
    """Open the labels of positions that rows have; None where there are none of that name, or rows are samples."""
    if key.sample_type not in POSITION_TYPES:
        return None
    try:
        return Labels.open(storage, key.model_key, name)
    except MissingError:
        return None


def truth_options(
    axis: RowAxis,
    labels: Labels | None,
    *,
    concepts: Sequence[str] | None,
    by: By | None,
    name: str,
    special: bool,
) -> TruthOptions:
    """Return which labels are believed where the user left it open: positions where they are labelled, all concepts.

    Raises
    ------
    InputError
        There is no concept, `by` is unknown, or positions were asked for and are not labelled.
    """
    if by not in (None, *get_args(By)):
        raise InputError(f"by={by!r} is unknown; choose from {', '.join(get_args(By))}")
    if by == "position" and labels is None:
        raise InputError(
            f"positions of dataset {axis.samples.dataset!r} have no labels {name!r}; make them (saestore label), or "
            "give --by sample"
        )
    chosen: By = by or ("sample" if labels is None else "position")
    known = axis.samples.concept_names if chosen == "sample" or labels is None else labels.concept_names
    names = tuple(dict.fromkeys(concepts or known))
    if not names:
        raise InputError(
            f"dataset {axis.samples.dataset!r} has no concepts; give its table label columns, or label its positions"
        )
    return TruthOptions(names, chosen, name, special)


def check_splits(axis: RowAxis, *splits: str) -> None:
    """Refuse splits that are unknown or without a sample (InputError)."""
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"split {split!r} is unknown; choose from {', '.join(SPLITS)}")
        axis.samples.of_split(split)
