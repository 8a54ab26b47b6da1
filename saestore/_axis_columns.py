"""The columns of a row axis that rows are chosen by: what they are called, and their values at ranges of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._expression_tree import Column, Kind, Level
from saestore._nearest import nearest
from saestore.axis import RowAxis
from saestore.errors import InputError, MissingError
from saestore.kernels.ramps import ramps
from saestore.parts import Stored

SAMPLE = Column("sample", "number", "sample")
"""The place of the sample in the sample table."""

_KINDS: dict[str, Kind] = {"b": "truth", "i": "number", "u": "number", "f": "number", "O": "text"}
_CORNERS = ("x0", "y0", "x1", "y1")


class AxisColumns:
    """The columns of an axis by name: those of the sample table, concepts, and those of positions."""

    def __init__(self, axis: RowAxis) -> None:
        self.axis = axis
        self._dataset = f"dataset {axis.samples.dataset!r}"

    def named(self, name: str) -> Column:
        """Return the column or concept of a name.

        Raises
        ------
        MissingError
            There is none.
        InputError
            There are two.
        """
        found = [column for column in self._columns if column.name == name]
        if not found:
            names = list(dict.fromkeys(column.name for column in self._columns))
            raise MissingError(
                f"{self._dataset} has no column or concept {name[:80]!r}; {nearest(name, names, 'names')}; texts stand "
                "in quotes, names with other signs than letters in backticks"
            )
        if len(found) > 1:
            raise InputError(
                f"{name!r} is the name of {' and of '.join(map(_described, found))} of {self._dataset}, so an "
                "expression cannot use it; give special= or concept= for these, or rename the column"
            )
        return found[0]

    def concept(self, name: str) -> Column:
        """Return a concept's labels.

        Raises
        ------
        MissingError
            There is no such concept.
        """
        names = self.axis.samples.concept_names
        if name not in names:
            raise MissingError(f"{self._dataset} has no concept {name!r}; {nearest(str(name), names, 'concepts')}")
        return Column(name, "label", "sample", "concepts", names.index(name))

    @property
    def special(self) -> Column:
        """Which rows are special tokens; of pooled rows none is."""
        if self.axis.positions is None:
            return Column("special", "truth", "sample")
        return Column("special", "truth", "position", "special")

    @cached_property
    def _columns(self) -> tuple[Column, ...]:
        return (*self._of_samples(), *self._of_positions())

    def _of_samples(self) -> Iterator[Column]:
        samples = self.axis.samples
        content = "text" if samples.kind == "text" else "path"
        for name in ("id", "split", content, *samples.column_names):
            yield Column(name, _kind(samples.group, name), "sample", name)
        for part, name in enumerate(samples.concept_names):
            yield Column(name, "label", "sample", "concepts", part)

    def _of_positions(self) -> Iterator[Column]:
        yield self.special
        if self.axis.positions is None:
            yield Column("position", "number", "sample")
            return
        yield Column("position", "number", "position")
        group = self.axis.positions.group
        for name in group.array_names:
            if name == "box":
                yield from (Column(f"box_{edge}", "number", "position", name, i) for i, edge in enumerate(_CORNERS))
            elif name != "special":
                yield Column(name, _kind(group, name), "position", name)


class Block:
    """The values of columns at ranges of samples or of rows; each array is read once, and only there.

    Parameters
    ----------
    level : {"sample", "position"}
        What the ranges are of.
    starts, stops : (m,) int64
        Ascending and disjoint.
    """

    def __init__(self, axis: RowAxis, level: Level, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self.axis = axis
        self.level = level
        self.starts = starts
        self.stops = stops
        self._arrays: dict[tuple[Level, str], NDArray[Any]] = {}

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """The samples or rows in the ranges: (n,)."""
        return ramps(self.starts, self.stops - self.starts)

    def read(self, column: Column) -> NDArray[Any]:
        """Return the values of a column: (n,) bool, int64, float64 or str objects."""
        values = self._array(column) if column.array else self._computed(column)
        values = values if column.part is None else values[:, column.part]
        # Differences of unsigned and comparisons of half precision with written numbers would not be Python's.
        wider = {"i": np.int64, "u": np.int64, "f": np.float64}.get(values.dtype.kind)
        return values if wider is None else values.astype(wider, copy=False)

    def _array(self, column: Column) -> NDArray[Any]:
        key = (column.level, column.array)
        if key not in self._arrays:
            self._arrays[key] = self._stored(*key)
        return self._arrays[key]

    def _stored(self, level: Level, name: str) -> NDArray[Any]:
        if level == "position":
            assert self.axis.positions is not None
            return self.axis.positions.group.read_ranges(name, self.starts, self.stops)
        samples = self.axis.samples
        if name == "split":  # kept by the sample table, and asked for again and again
            return samples.split[self._samples]
        if self.level == "sample":
            return samples.group.read_ranges(name, self.starts, self.stops)
        return samples.group.take(name, self._samples)

    def _computed(self, column: Column) -> NDArray[Any]:
        if column == SAMPLE:
            return self._samples
        if column.name == "special":
            return np.zeros(len(self.numbers), dtype=bool)
        return self.axis.place_in_sample(self.numbers)

    @cached_property
    def _samples(self) -> NDArray[np.int64]:
        return self.numbers if self.level == "sample" else self.axis.sample_of(self.numbers)


def _kind(group: Stored, name: str) -> Kind:
    return _KINDS[group.dtype(name).kind]


def _described(column: Column) -> str:
    if column.kind == "label":
        return "a concept"
    return "a column of the samples" if column.array and column.level == "sample" else "a column of the positions"
