"""What labels mean together: unions of concepts, and what the sample table says where a source says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore._nearest import nearest
from saestore.errors import ConflictError, MissingError
from saestore.labelling.blocks import Block, Found
from saestore.tables import UNLABELLED

SEPARATOR = "::"


def either(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 1 where one of two labels is 1, else 255 where one is 255, else 0."""
    return np.where((a == 1) | (b == 1), np.uint8(1), np.maximum(a, b))


def parents_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the concepts above others, which their names tell, and which are not named themselves.

    Examples
    --------
    >>> parents_of(["shape::cube", "shape::sphere", "a::b::c", "red"])
    ('shape', 'a::b', 'a')
    """
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(SEPARATOR)
        for depth in range(len(parts) - 1, 0, -1):
            found.setdefault(SEPARATOR.join(parts[:depth]))
    return tuple(name for name in found if name and name not in names)


@dataclass(frozen=True)
class Columns:
    """The concepts of labels: those of their own, and those above them.

    own : concepts that a source is asked for
    parents : concepts that are unions of these
    """

    own: tuple[str, ...]
    parents: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order in which they are stored."""
        return self.own + self.parents

    @classmethod
    def new(cls, names: Sequence[str], *, parents: bool) -> Columns:
        """Return the columns of a source's concepts."""
        return cls(tuple(names), parents_of(names) if parents else ())

    def extended(self, names: Sequence[str], *, parents: bool, path: str) -> Columns:
        """Return these columns, which parts that are labelled have, for another source's concepts.

        Raises
        ------
        MissingError
            The source has a concept that the labels do not have.
        ConflictError
            Of the labels and the source one has parents and the other none.
        """
        for name in names:
            if name not in self.own:
                raise MissingError(
                    f"{path} has no concept {name!r}, {nearest(name, self.own, 'concepts')}; parts of a dataset have "
                    "the same concepts: rename it, or give labels of another name"
                )
        if parents != bool(self.parents) and (self.parents or parents_of(self.own)):
            how = "with" if self.parents else "without"
            raise ConflictError(
                f"{path} is labelled {how} parents of its concepts; label what was appended {how} them too"
            )
        return self


@dataclass(frozen=True)
class Settled:
    """The labels of a block.

    labels : (n_rows, n_names) uint8
    against : (n_own,) int64, samples with a position of the concept that the sample table says to be without it
    """

    labels: NDArray[np.uint8]
    against: NDArray[np.int64]


def settle(
    columns: Columns, source_names: Sequence[str], found: Found, block: Block, table_names: Sequence[str]
) -> Settled:
    """Return all labels of a block: what a source found, and the sample table's word where it names nothing.

    A concept of a sample that the source does not name is at none of its positions if the table says so, or knows no
    such concept; if the table says that the sample has it, or does not know, its positions are unlabelled.

    Parameters
    ----------
    source_names : sequence of str
        The concepts of `found`.
    table_names : sequence of str
        The concepts of the sample table, `block.concepts`.
    """
    n_samples, width = len(block.ids), len(columns.own)
    table = np.zeros((n_samples, width), dtype=np.uint8)
    labels = np.zeros((block.n_rows, len(columns.names)), dtype=np.uint8)
    named = np.zeros((n_samples, width), dtype=np.bool_)
    for place, name in enumerate(columns.own):
        if name in table_names:
            table[:, place] = block.concepts[:, list(table_names).index(name)]
        if name in source_names:
            column = list(source_names).index(name)
            labels[:, place], named[:, place] = found.labels[:, column], found.named[:, column]
    has = np.append(np.zeros((1, width), np.int64), np.cumsum(labels[:, :width] == 1, axis=0), axis=0)
    positive = has[block.offsets[1:]] > has[block.offsets[:-1]]
    known = np.array([name in table_names for name in columns.own], dtype=np.bool_)
    against = (positive & named & (table == 0) & known).sum(axis=0)
    unknown = np.where(~named & (table != 0), np.uint8(UNLABELLED), np.uint8(0))
    labels[:, :width] = np.maximum(labels[:, :width], np.repeat(unknown, np.diff(block.offsets), axis=0))
    for place, parent in enumerate(columns.parents, start=width):
        for child, name in enumerate(columns.own):
            if name.startswith(parent + SEPARATOR):
                labels[:, place] = either(labels[:, place], labels[:, child])
    return Settled(labels, against)
