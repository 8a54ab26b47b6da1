"""The part of a feature graph's report in which a reader walks: search a unit, see its neighbours, go on to one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.report.graph_subject import GraphExamples, GraphSubject, example_columns, with_none
from saestore.report.page import Data, Section, missing, paragraph

MOST_EDGES = 20_000
"""Edges that are in the page, the strongest."""

MOST_EXAMPLES = 2_000
"""Units that have examples in the page, those with most edges."""

_FRAME = """<div class="walk" id="walk">
<div class="seek"><label for="walk-find">Find a unit</label>
<input id="walk-find" type="search" autocomplete="off" placeholder="number, layer or label">
<button type="button" id="walk-back" disabled>Back</button>
<ul id="walk-found" hidden></ul></div>
<div class="stage"><div id="walk-drawn"><svg></svg></div><p class="note" id="walk-key"></p></div>
<div class="told" id="walk-told" aria-live="polite"></div>
</div>"""


def example_places(subject: GraphSubject) -> list[int]:
    """Return the places of the units that have examples in the view."""
    found: list[int] = subject.most_connected[:MOST_EXAMPLES].tolist()
    return found


def view_section(subject: GraphSubject, examples: GraphExamples) -> Section:
    """Return the view, with the units and edges that it draws."""
    key, title = "walk-section", "The graph, to walk in"
    edges = subject.edges.head(MOST_EDGES)
    if edges.empty:
        return Section(key, title, missing("The graph has no edges; a lower --min-r leaves more."))
    places = np.unique(edges[["a", "b"]].to_numpy())
    place_of = np.full(len(subject.units), -1)
    place_of[places] = np.arange(len(places))
    words = [
        "Search a unit by its number, layer or label, and click one of its neighbours to go there. A line is an edge, "
        "orange where r is above 0 and blue where it is below, and the wider the larger |r|."
    ]
    if len(edges) < len(subject.edges):
        least = np.abs(edges["r"].to_numpy())[-1]
        words.append(
            f"The page holds the strongest {len(edges):,} of {len(subject.edges):,} edges, with |r| of {least:.3f} or "
            "more; the number of edges of a unit counts all. saestore neighbours shows the others."
        )
    embedded = [place for place in example_places(subject) if place in examples.found and place_of[place] >= 0]
    if embedded and len(embedded) < len(places):
        words.append(f"Examples are in the page of {len(embedded):,} units, those with most edges.")
    data = (
        Data("", "graph_units", _unit_columns(subject, places)),
        Data(
            "",
            "graph_edges",
            {
                "place_a": place_of[edges["a"].to_numpy()],
                "place_b": place_of[edges["b"].to_numpy()],
                "unit_a": edges["unit_a"].to_numpy(),
                "unit_b": edges["unit_b"].to_numpy(),
                "r": np.round(edges["r"].to_numpy(), 6),
                "n_ab": with_none(edges["n_ab"]),
                "lift": _short(edges["lift"].to_numpy()),
            },
        ),
        Data(
            "",
            "graph_examples",
            example_columns(
                GraphExamples({place: examples.found[place] for place in embedded}, ()),
                {place: int(place_of[place]) for place in embedded},
            ),
        ),
    )
    return Section(key, title, "".join(map(paragraph, [*words, *examples.reasons])) + _FRAME, data)


def _unit_columns(subject: GraphSubject, places: NDArray[np.int64]) -> dict[str, Any]:
    own = subject.units.iloc[places]
    return {
        "end": own["end"].to_numpy(object),
        "unit": own["unit"].to_numpy(),
        "label": own["label"].to_numpy(object),
        "edges": own["degree"].to_numpy(),
        "active": with_none(own["active"]),
        "base_rate": _short(own["base_rate"].to_numpy()),
        "component": with_none(own["component"]),
        "community": with_none(own["community"]),
    }


def _short(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
