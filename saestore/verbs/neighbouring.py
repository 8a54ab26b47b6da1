"""The verb neighbours: what a unit of a feature graph goes together with, and what both stand for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saestore.errors import InputError
from saestore.units import Example
from saestore.verbs.names import LakeLike, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.graphs import FeatureGraph
    from saestore.lake import Lake


@dataclass(frozen=True)
class GraphUnit:
    """A unit of a graph, with the rows where it is strongest.

    label : from a file of labels; else empty
    active, base_rate : rows where it is active, and their part of all; None of activations
    component, community : numbers; None without edges
    """

    end: str
    unit: int
    label: str
    state: str
    active: int | None
    base_rate: float | None
    degree: int
    component: int | None
    community: int | None
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class UnitEdge:
    """An edge of the unit that was asked for; counts and what is made of them are None where an end is of activations.

    other : the unit at its other end
    n_a, n_b, n_ab : rows where the unit is active, where the other is, where both are
    """

    other: GraphUnit
    r: float
    n_a: int | None
    n_b: int | None
    n_ab: int | None
    lift: float | None
    mutual_information: float | None
    jaccard: float | None
    p: float
    q: float


@dataclass(frozen=True)
class Neighbours:
    """What `neighbours` found.

    graph : its name
    rows : what the graph is over, in words
    edges : the strongest ones, of `n_edges`
    notes : why an end has no examples, and how many rows of labels were of no unit of the graph
    """

    graph: str
    rows: str
    unit: GraphUnit
    edges: tuple[UnitEdge, ...]
    n_edges: int
    notes: tuple[str, ...] = ()


def neighbours(
    lake: LakeLike,
    *,
    unit: int,
    graph: str = "default",
    end: str | None = None,
    n: int = 10,
    examples: int = 5,
    labels: str | os.PathLike[str] | None = None,
    catalog: Catalog | None = None,
) -> Neighbours:
    """Show the strongest edges of a unit of a feature graph, with the rows where both of their units are strongest.

    Parameters
    ----------
    lake : Lake, str or path
    unit : int
        Original id of a unit of codes, or the place of a dimension of activations.
    graph : str
        Name of a graph that `graph` made.
    end : str, optional
        Name of the unit's end, such as `layer_3/topk-4k`; it may be left out where the graph has one.
    n : int
        The most edges to show.
    examples : int
        Rows of each unit, each of another sample, of those that the graph is over; 0 for none.
    labels : path, optional
        A table of what units are called; see `saestore.graphing.unit_labels.read_unit_labels`.

    Returns
    -------
    Neighbours

    Raises
    ------
    MissingError
        There is no such graph, end or unit, or codes have no postings.
    InputError
        A number is out of range, or the labels cannot be used.

    Examples
    --------
    >>> neighbours("lake", unit=812, graph="default").edges[0].other.unit  # doctest: +SKIP
    """
    for name, value, least in (("n", n, 1), ("examples", examples, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more")
    from saestore.graphing.unit_labels import NO_LABELS, read_unit_labels

    opened = open_lake(lake, catalog=catalog)
    found = opened.open_graph(graph)
    own = found.end(end).name
    frame = found.neighbours(unit, own)
    shown = frame.head(n)
    nodes = [(own, unit), *zip(shown["end"].astype(str), shown["unit"].astype(int), strict=True)]
    named = NO_LABELS if labels is None else read_unit_labels(labels, found)
    texts, notes = _examples(opened, found, nodes, examples)
    if named.unused:
        notes.append(f"{named.unused:,} rows of {os.fspath(labels or '')} are of no unit of the graph")
    known = {(row["end"], int(row["unit"])): row for row in _rows(found.units(), nodes)}
    units = [_unit(known[node], named.of(*node), texts.get(node, ())) for node in nodes]
    edges = [_edge(row, other) for row, other in zip(shown.to_dict("records"), units[1:], strict=True)]
    return Neighbours(found.name, found.summary["rows"]["what"], units[0], tuple(edges), len(frame), tuple(notes))


def _examples(
    lake: Lake, graph: FeatureGraph, nodes: Sequence[tuple[str, int]], n: int
) -> tuple[dict[tuple[str, int], tuple[Example, ...]], list[str]]:
    """Return examples of nodes, and why ends have none."""
    from saestore.graphing.reopened import reopened_ends
    from saestore.graphing.unit_examples import examples_of

    texts: dict[tuple[str, int], tuple[Example, ...]] = {}
    notes: list[str] = []
    for reopened in reopened_ends(lake, graph) if n else ():
        name = reopened.described.name
        wanted = [unit for end, unit in nodes if end == name]
        if not wanted:
            continue
        if reopened.end is None:
            notes.append(f"no examples of {name}: {reopened.reason}")
            continue
        texts |= {(name, unit): tuple(found) for unit, found in examples_of(reopened.end, wanted, n).items()}
    return texts, notes


def _rows(units: Any, nodes: Iterable[tuple[str, int]]) -> list[Mapping[str, Any]]:
    wanted = set(nodes)
    chosen = [one in wanted for one in zip(units["end"], units["unit"], strict=True)]
    rows: list[Mapping[str, Any]] = units[chosen].to_dict("records")
    return rows


def _unit(row: Mapping[str, Any], label: str, examples: tuple[Example, ...]) -> GraphUnit:
    return GraphUnit(
        end=str(row["end"]),
        unit=int(row["unit"]),
        label=label,
        state=str(row["state"]),
        active=_whole(row["active"]),
        base_rate=_real(row["base_rate"]),
        degree=int(row["degree"]),
        component=_whole(row["component"]),
        community=_whole(row["community"]),
        examples=examples,
    )


def _edge(row: Mapping[Any, Any], other: GraphUnit) -> UnitEdge:
    return UnitEdge(
        other=other,
        r=float(row["r"]),
        n_a=_whole(row["n_a"]),
        n_b=_whole(row["n_b"]),
        n_ab=_whole(row["n_ab"]),
        lift=_real(row["lift"]),
        mutual_information=_real(row["mutual_information"]),
        jaccard=_real(row["jaccard"]),
        p=float(row["p"]),
        q=float(row["q"]),
    )


def _whole(value: Any) -> int | None:
    import pandas as pd

    return None if pd.isna(value) else int(value)


def _real(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
