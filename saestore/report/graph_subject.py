"""What a report of a feature graph is of: its tables, its ends opened again, labels, and examples read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.errors import MissingError
from saestore.graphing.reopened import ReopenedEnd, reopened_ends
from saestore.graphing.unit_examples import examples_of
from saestore.graphing.unit_labels import UnitLabels
from saestore.graphs import FeatureGraph
from saestore.lake import Lake
from saestore.report.page import text
from saestore.units import Example

Node = tuple[str, int]
"""Name of the end, and unit."""


@dataclass(frozen=True, eq=False)
class GraphSubject:
    """A graph with what is shown of it in more than one place.

    reopened : its ends
    labels : of its units
    n_examples : rows of each unit that is shown with examples
    """

    graph: FeatureGraph
    reopened: Sequence[ReopenedEnd]
    labels: UnitLabels
    n_examples: int

    @classmethod
    def open(cls, lake: Lake, graph: FeatureGraph, labels: UnitLabels, n_examples: int) -> GraphSubject:
        """Open the ends of a graph of a lake."""
        return cls(graph, reopened_ends(lake, graph), labels, n_examples)

    @cached_property
    def edges(self) -> pd.DataFrame:
        """The edges, the strongest first, with the places of their units in `a` and `b`."""
        first, second = self.graph.edge_places()
        return self.graph.edges().assign(a=first, b=second)

    @cached_property
    def units(self) -> pd.DataFrame:
        """The units, with their labels in `label` and the sum of |r| of their edges in `strength`."""
        units, weights = self.graph.units(), np.abs(self.edges["r"].to_numpy())
        places = self.edges[["a", "b"]].to_numpy()
        strength = np.bincount(places.T.ravel(), np.tile(weights, 2), minlength=len(units))
        units["end"] = units["end"].astype(str)
        labels = [self.labels.of(*node) for node in zip(units["end"], units["unit"].tolist(), strict=True)]
        return units.assign(label=labels, strength=strength)

    @property
    def several_ends(self) -> bool:
        """Whether a unit's number does not say which unit it is."""
        return len(self.graph.ends) > 1

    @cached_property
    def most_connected(self) -> NDArray[np.int64]:
        """Places of all units with edges, those with most first, of as many the stronger."""
        units = self.units
        order = np.lexsort((np.arange(len(units)), -units["strength"].to_numpy(), -units["degree"].to_numpy()))
        return order[units["degree"].to_numpy()[order] > 0]

    def name(self, place: int) -> str:
        """What a unit is called where it stands among others."""
        end, unit = self.node(place)
        return f"{end}: {unit}" if self.several_ends else str(unit)

    def node(self, place: int) -> Node:
        """The end and the number of a unit."""
        return str(self.at(place, "end")), int(self.at(place, "unit"))

    def at(self, place: int, column: str) -> Any:
        """Return what the table of units says of one of them."""
        return self.units[column].iat[place]


@dataclass(frozen=True, eq=False)
class GraphExamples:
    """Examples of units, by their places; and why ends have none."""

    found: Mapping[int, Sequence[Example]]
    reasons: Sequence[str]

    def list_of(self, place: int) -> str:
        """Return the examples of a unit as a list."""
        found = self.found.get(place, ())
        if not found:
            return '<p class="note">no examples</p>'
        return f'<ol class="examples">{"".join(map(_item, found))}</ol>'


def with_none(column: pd.Series[Any]) -> list[Any]:
    """Return the values of a column, None where one is missing."""
    return [None if gone else value for value, gone in zip(column.tolist(), column.isna().tolist(), strict=True)]


def read_examples(subject: GraphSubject, places: Iterable[int]) -> GraphExamples:
    """Read the examples of units, each end once."""
    wanted: dict[str, dict[int, int]] = {}
    for place in places:
        end, unit = subject.node(place)
        wanted.setdefault(end, {})[unit] = place
    found: dict[int, Sequence[Example]] = {}
    reasons = []
    for reopened in subject.reopened if subject.n_examples else ():
        name = reopened.described.name
        if name not in wanted:
            continue
        if reopened.end is None:
            reasons.append(f"{name} has no examples here: {reopened.reason}.")
            continue
        try:
            own = examples_of(reopened.end, list(wanted[name]), subject.n_examples)
        except MissingError as error:  # codes without postings
            reasons.append(f"{name} has no examples here: {error}.")
            continue
        found |= {wanted[name][unit]: examples for unit, examples in own.items()}
    return GraphExamples(found, reasons)


def example_columns(examples: GraphExamples, place_of: Mapping[int, int]) -> dict[str, list[Any]]:
    """Return examples as columns; `unit_place` is where `place_of` puts their unit."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("unit_place", "dataset", "sample", "value", "before", "marked", "after")
    }
    for place, own in examples.found.items():
        for one in own:
            where = one.place
            line = (place_of[place], where.dataset, where.sample, float(f"{one.value:.4g}"), *_texts(one))
            for name, value in zip(columns, line, strict=True):
                columns[name].append(value)
    return columns


def _texts(example: Example) -> tuple[str, str, str]:
    place = example.place
    if place.box is not None:
        return f"{place.before} box {', '.join(f'{edge:.0f}' for edge in place.box)}", "", ""
    return place.before, place.marked, place.after


def _item(example: Example) -> str:
    before, marked, after = (text(part) for part in _texts(example))
    return (
        f'<li title="{text(example.place.dataset)}"><span class="value">{example.value:.3g}</span>{before}'
        f"{f'<b>{marked}</b>' if marked else ''}{after}</li>"
    )
