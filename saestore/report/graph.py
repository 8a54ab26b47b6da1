"""The report of a feature graph: one page of counts, maps, groups, strongest edges, and the graph to walk in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.graphing.unit_labels import UnitLabels
from saestore.graphs import FeatureGraph
from saestore.lake import Lake
from saestore.report.drawing import Picture, require_matplotlib
from saestore.report.graph_maps import chosen_maps, map_name, maps_section
from saestore.report.graph_subject import GraphSubject, read_examples
from saestore.report.graph_tables import (
    communities_section,
    community_members,
    components_section,
    counts_section,
    degrees_section,
    edges_section,
    examples_of_communities,
    strongest_of_pairs,
    summary_section,
)
from saestore.report.graph_view import example_places, view_section
from saestore.report.page import Chapter, Data, page


@dataclass(frozen=True, eq=False)
class GraphReport:
    """A page, the numbers of all that is drawn on it, and the drawings.

    data : the same numbers as in the page's own blocks
    matrices : the correlations of the heat maps as float64, by the names of their numbers
    """

    html: str
    data: tuple[Data, ...]
    pictures: tuple[Picture, ...]
    matrices: Mapping[str, NDArray[np.float64]]


def graph_report(
    lake: Lake, graph: FeatureGraph, *, labels: UnitLabels, examples: int, budget: int, stamp: str | None
) -> GraphReport:
    """Make the page; the same graph gives the same bytes.

    Parameters
    ----------
    lake : Lake
        That holds what the graph is of; what is gone is said to be missing.
    graph : FeatureGraph
    labels : UnitLabels
    examples : int
        Rows of each unit that is shown with examples.
    budget : int
        Bytes that correlations may take.
    stamp : str, optional
        A text for the page's foot, such as the date.

    Raises
    ------
    BudgetError
        The correlations do not fit the memory.
    DependencyError
        matplotlib or scipy is not installed.
    """
    require_matplotlib()
    subject = GraphSubject.open(lake, graph, labels, examples)
    members, pairs = community_members(subject), strongest_of_pairs(subject)
    wanted = {*examples_of_communities(members), *example_places(subject)}
    wanted |= {place for _, own in pairs for place in own[["a", "b"]].to_numpy().ravel().tolist()}
    known = read_examples(subject, sorted(wanted))
    maps = chosen_maps(subject, budget)
    drawn, pictures = maps_section(subject, maps)
    degrees, more = degrees_section(subject)
    chapters = [
        Chapter("overview", "Overview", "", [summary_section(subject), counts_section(subject)]),
        Chapter("walk-chapter", "Explore", "", [view_section(subject, known)]),
        Chapter("maps", "Correlations", "", [drawn]),
        Chapter("strongest", "Strongest edges", "", [edges_section(subject, pairs, known)]),
        Chapter(
            "groups",
            "Groups",
            "",
            [degrees, components_section(subject), communities_section(subject, members, known)],
        ),
    ]
    software = ", ".join(f"{package} {version}" for package, version in provenance.stamp().items())
    foot = f"Made with {software}. Everything on this page is in this one file."
    names = ", ".join(end.name for end in graph.ends)
    html = page(
        f"Feature graph {graph.name}",
        f"Units of {names} that are correlated: who is active with whom.",
        chapters,
        foot=f"{foot} {stamp}" if stamp else foot,
        scripts=("page.js", "graph.js"),
    )
    return GraphReport(
        html=html,
        data=tuple(data for chapter in chapters for section in chapter.sections for data in section.data),
        pictures=tuple([*pictures, *more]),
        matrices={map_name(graph.ends[a].name, graph.ends[b].name): r for (a, b), r in maps.r.items()},
    )
