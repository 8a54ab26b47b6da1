"""The tables of a feature graph's report: counts, degrees and components, communities, the strongest edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.graphs import EDGE_COLUMNS
from saestore.report.drawing import BLUE, GREEN, OLIVE, ORANGE, SAND, SKY, VIOLET, Picture, log_ticks
from saestore.report.graph_subject import GraphExamples, GraphSubject, with_none
from saestore.report.page import Cell, Data, Section, missing, number, paragraph, table, text, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_EDGES = 100
"""Edges in the table of the strongest."""

_OF_PAIR = 8  # edges of each pair of ends that are shown with examples
_GROUPS = 12  # communities that are shown with their strongest members
_OPEN_GROUPS = 3  # of which so many are not folded
_MEMBERS = 3  # of each community, that are shown with examples
_LISTED = 10  # members that are named
_TABLED = 50  # units and components in tables
_COLOURS = (BLUE, ORANGE, GREEN, VIOLET, SKY, OLIVE, SAND)


def summary_section(subject: GraphSubject) -> Section:
    """Return what the graph is over, how it was made, and what was counted in all."""
    summary = subject.graph.summary
    counts, options = summary["counts"], summary["options"]
    of_codes = any(end.sae is not None for end in subject.graph.ends)
    strict = []
    if of_codes:
        strict += [
            f"at least {options['min_support']} rows with both units active, found or expected by chance",
            f"no unit that is active in more than {options['max_base_rate']:.0%} of the rows",
        ]
    if options["top"] is not None:
        strict.append(f"only edges among the {options['top']} strongest of either unit")
    if options["max_q"] < 1:
        strict.append(f"q up to {options['max_q']:g}")
    words = [
        f"Over {summary['rows']['what']}: {counts['edges']:,} pairs of units have |r| of {summary['threshold']:g} or "
        f"more, of {counts['pairs_tested']:,} pairs. {counts['connected_units']:,} of {counts['units']:,} units have "
        f"edges; they form {counts['components']:,} components (the largest of {counts['largest_component']:,} units) "
        f"and {counts['communities']:,} communities. {counts['q_up_to_0.05']:,} edges have a q-value up to 0.05.",
    ]
    if strict:
        words.append(f"Kept besides that: {'; '.join(strict)}.")
    if of_codes:
        words.append("Pearson's r counts rows where a unit is not active as 0.")
    if "null" in summary:
        null = summary["null"]
        words.append(
            f"With the rows of one end in random order (seed {null['seed']}) {null['edges']:,} pairs are kept, "
            f"{null['q_up_to_0.05']:,} of them with q up to 0.05: so many false edges are to be expected."
        )
    left = []
    for name, states in summary["left_out"].items():
        told = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in states.items() if count)
        left += [f"{name}: {told}"] if told else []
    words.append(f"Units left out of {'; of '.join(left)}." if left else "No unit was left out.")
    if subject.labels.unused:
        words.append(f"{subject.labels.unused:,} rows of the labels are of no unit of the graph.")
    return Section("summary-section", "Summary", "".join(map(paragraph, words)))


def counts_section(subject: GraphSubject) -> Section:
    """Return the counts within each layer and between every two, with the strongest pairs."""
    headers = [
        ("ends", ""),
        ("edges", ""),
        ("positive", "r above 0"),
        ("negative", "r below 0"),
        ("strongest", "units, and r"),
    ]
    rows: list[list[Cell | str]] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("kind", "ends", "edges", "positive", "negative")}
    for part, kind in (("within_layer", "within"), ("between_layers", "between")):
        for name, found in subject.graph.summary[part].items():
            numbers = [found[each] for each in ("edges", "positive", "negative")]
            strongest = ", ".join(f"{one['unit_a']}-{one['unit_b']} {one['r']:+.3f}" for one in found["strongest"][:5])
            rows.append([f"{kind} {name}", *map(whole, numbers), strongest])
            for column, value in zip(columns.values(), (kind, name, *numbers), strict=True):
                column.append(value)
    body = table("table-counts", headers, rows)
    return Section("counts-section", "Edges within and between layers", body, (Data("", "counts", columns),))


def degrees_section(subject: GraphSubject) -> tuple[Section, list[Picture]]:
    """Return how many edges units have, how strong edges are, and the units with most edges."""
    key, title = "degrees-section", "Degrees and strengths"
    if subject.edges.empty:
        return Section(key, title, missing(_NO_EDGES)), []
    degrees, strengths = _degrees(subject), _strengths(subject)
    picture = Picture(
        "degrees",
        (8.6, 3.3),
        "how many units have how many edges, and how many edges have which absolute correlation",
        lambda figure: _draw(figure, degrees, strengths),
    )
    places = subject.most_connected[:_TABLED]
    units = subject.units
    rows = [
        [
            *_unit_cells(subject, place),
            whole(int(subject.at(place, "degree"))),
            number(float(subject.at(place, "strength")), ".2f"),
            number(_real(subject.at(place, "base_rate")), ".4f"),
            str(subject.at(place, "component")),
            str(subject.at(place, "community")),
        ]
        for place in places.tolist()
    ]
    headers = [
        *_unit_headers(subject),
        ("edges", ""),
        ("sum of |r|", "over its edges"),
        ("base rate", "part of the rows where it is active"),
        ("component", ""),
        ("community", ""),
    ]
    words = f"Of units without edges there are {int((units['degree'] == 0).sum()):,}. The {len(rows)} with most edges:"
    body = f'<div class="plot wide">{picture.svg()}</div>{paragraph(words)}' + _tall(
        table("table-degrees", headers, rows)
    )
    data = (
        Data("", "degrees", {str(name): degrees[name].to_numpy() for name in degrees}),
        Data("", "strengths", {str(name): strengths[name].to_numpy() for name in strengths}),
    )
    return Section(key, title, body, data), [picture]


def components_section(subject: GraphSubject) -> Section:
    """Return the connected components by size."""
    key, title = "components-section", "Components"
    if subject.edges.empty:
        return Section(key, title, missing(_NO_EDGES))
    groups = _groups(subject, "component")
    sizes = pd.Series(groups["units"]).value_counts().sort_index(ascending=False)
    shown = min(len(groups["units"]), _TABLED)
    rows: list[list[Cell | str]] = [
        [
            str(groups["component"][place]),
            whole(groups["units"][place]),
            whole(groups["edges"][place]),
            groups["strongest"][place],
        ]
        for place in range(shown)
    ]
    headers = [("component", ""), ("units", ""), ("edges", ""), ("strongest members", "by the sum of |r|")]
    words = f"Units that are joined by a path of edges; {len(groups['units']):,} components"
    words += f", of which the largest {shown} are shown." if shown < len(groups["units"]) else "."
    data = (
        Data("", "components", groups),
        Data("", "component_sizes", {"units": sizes.index.to_numpy(), "components": sizes.to_numpy()}),
    )
    return Section(key, title, paragraph(words) + _tall(table("table-components", headers, rows)), data)


def community_members(subject: GraphSubject) -> list[list[int]]:
    """Return the places of the members of each community of more than two that is shown, the strongest first."""
    units = subject.units[subject.units["degree"] > 0]
    found: list[list[int]] = []
    for _, own in units.groupby("community"):
        if len(own) > 2 and len(found) < _GROUPS:
            inside = _inside(subject, own.index.to_numpy())
            found.append(own.index.to_numpy()[np.argsort(-inside, kind="stable")].tolist())
    return found


def examples_of_communities(members: Sequence[Sequence[int]]) -> list[int]:
    """Return the places of the units whose examples `communities_section` shows."""
    return [place for own in members for place in own[:_MEMBERS]]


def communities_section(subject: GraphSubject, members: Sequence[Sequence[int]], examples: GraphExamples) -> Section:
    """Return the largest communities, their strongest members and what these stand for."""
    key, title = "communities-section", "Communities"
    if subject.edges.empty:
        return Section(key, title, missing(_NO_EDGES))
    groups = _groups(subject, "community")
    words = (
        "Units that have more edges of weight |r| among each other than chance would give them (Leiden's algorithm "
        f"for modularity): {len(groups['units']):,}, of which the largest are shown, where they have more than two "
        "units. Members are ordered by the sum of |r| over their edges inside the community."
    )
    parts = []
    for rank, own in enumerate(members):
        community = int(subject.at(own[0], "community"))
        listed = ", ".join(_named(subject, place) for place in own[:_LISTED])
        cards = "".join(
            f'<div class="card"><h5>{text(_named(subject, place))}</h5>{examples.list_of(place)}</div>'
            for place in own[:_MEMBERS]
        )
        inside = groups["edges"][groups["community"].index(community)]
        head = f"Community {community}: {len(own):,} units, {inside:,} edges inside"
        more = f" and {len(own) - _LISTED:,} more" if len(own) > _LISTED else ""
        state = " open" if rank < _OPEN_GROUPS else ""
        parts.append(
            f"<details{state}><summary>{text(head)}</summary>{paragraph(f'Members: {listed}{more}.')}"
            f'<div class="grid">{cards}</div></details>'
        )
    body = paragraph(words) + ("".join(parts) or missing("No community has more than two units."))
    return Section(key, title, body, (Data("", "communities", groups),))


def strongest_of_pairs(subject: GraphSubject) -> list[tuple[str, pd.DataFrame]]:
    """Return the strongest edges of each pair of ends that has some, with what the pair is called."""
    found = []
    for (a, b), own in subject.edges.groupby(["end_a", "end_b"], observed=True, sort=True):
        found.append((f"within {a}" if a == b else f"between {a} and {b}", own.head(_OF_PAIR)))
    return sorted(found, key=lambda one: one[0].startswith("between"))


def edges_section(subject: GraphSubject, pairs: Sequence[tuple[str, pd.DataFrame]], examples: GraphExamples) -> Section:
    """Return the strongest edges with all their measures, and side by side what both of their units stand for."""
    key, title = "edges-section", "The strongest edges"
    if subject.edges.empty:
        return Section(key, title, missing(_NO_EDGES))
    top = subject.edges.head(MOST_EDGES)
    counted = bool(top["n_ab"].notna().any())
    measures = [
        ("n a", "rows where the first is active"),
        ("n b", "rows where the second is active"),
        ("n ab", "rows where both are"),
        ("lift", "how much more often than by chance both are active"),
        ("MI", "mutual information of being active, in bits"),
        ("Jaccard", "rows where both are active, of those where one is"),
    ]
    headers = [*_unit_headers(subject, " a"), *_unit_headers(subject, " b"), ("r", "Pearson's")]
    headers += [*(measures if counted else []), ("q", "Benjamini and Hochberg")]
    rows = []
    for edge in top.to_dict("records"):
        counts: list[Cell | str] = [
            whole(None if pd.isna(edge[name]) else edge[name]) for name in ("n_a", "n_b", "n_ab")
        ]
        counts += [
            number(_real(edge["lift"]), ".4g"),
            number(_real(edge["mutual_information"]), ".4f"),
            number(_real(edge["jaccard"])),
        ]
        rows.append(
            [
                *_unit_cells(subject, edge["a"]),
                *_unit_cells(subject, edge["b"]),
                number(edge["r"], "+.4f"),
                *(counts if counted else []),
                number(edge["q"], ".2g"),
            ]
        )
    parts = []
    for rank, (what, own) in enumerate(pairs):
        cards = "".join(_pair_card(subject, edge, examples) for edge in own.to_dict("records"))
        state = " open" if not rank else ""
        parts.append(f"<details{state}><summary>{text(f'The {len(own)} strongest {what}')}</summary>{cards}</details>")
    words = f"The {len(top):,} strongest of {len(subject.edges):,} edges."
    columns = {name: with_none(top[name]) for name in EDGE_COLUMNS}
    body = paragraph(words) + _tall(table("table-edges", headers, rows)) + "".join(parts)
    return Section(key, title, body, (Data("", "strongest_edges", columns),))


_NO_EDGES = "The graph has no edges; a lower --min-r leaves more."


def _tall(rows: str) -> str:
    """Return a long table in a box that scrolls."""
    return f'<div class="tall">{rows}</div>'


def _pair_card(subject: GraphSubject, edge: dict[Any, Any], examples: GraphExamples) -> str:
    both = "" if pd.isna(edge["n_ab"]) else f", both active in {edge['n_ab']:,} rows, lift {edge['lift']:.3g}"
    sides = "".join(
        f'<div class="card"><h5>{text(_named(subject, edge[side]))}</h5>{examples.list_of(edge[side])}</div>'
        for side in ("a", "b")
    )
    return f'<div class="pair"><h4>r {edge["r"]:+.3f}{both}</h4><div class="sides">{sides}</div></div>'


def _named(subject: GraphSubject, place: int) -> str:
    label = subject.at(place, "label")
    return f"{subject.name(place)} ({label})" if label else subject.name(place)


def _unit_headers(subject: GraphSubject, side: str = "") -> list[tuple[str, str]]:
    headers = [(f"end{side}", "layer, SAE and view")] if subject.several_ends else []
    headers.append((f"unit{side}", "original id"))
    return [*headers, (f"label{side}", "")] if subject.labels.texts else headers


def _unit_cells(subject: GraphSubject, place: int) -> list[Cell | str]:
    end, unit = subject.node(place)
    # Ids are names: without separators, so that they can be searched for.
    cells: list[Cell | str] = [end] if subject.several_ends else []
    cells.append(Cell(unit, str(unit)))
    return [*cells, subject.at(place, "label")] if subject.labels.texts else cells


def _inside(subject: GraphSubject, members: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return of each member the sum of |r| over its edges to others of them."""
    edges, place = subject.edges, np.full(len(subject.units), -1)
    place[members] = np.arange(len(members))
    a, b = place[edges["a"].to_numpy()], place[edges["b"].to_numpy()]
    kept = (a >= 0) & (b >= 0)
    weights = np.abs(edges["r"].to_numpy()[kept])
    both = np.concatenate([a[kept], b[kept]])
    return np.bincount(both, np.tile(weights, 2), minlength=len(members)).astype(np.float64)


def _groups(subject: GraphSubject, kind: str) -> dict[str, list[Any]]:
    """Return components or communities by size: number, units, edges inside, and the strongest members."""
    units, edges = subject.units, subject.edges
    of = units[kind].to_numpy(np.int64, na_value=-1)
    a, b = of[edges["a"].to_numpy()], of[edges["b"].to_numpy()]
    counts = np.bincount(of[of >= 0])
    inside = np.bincount(a[a == b], minlength=len(counts))
    order = np.lexsort((np.arange(len(units)), -units["strength"].to_numpy(), of))
    order = order[of[order] >= 0]
    firsts = np.append(0, np.cumsum(counts))
    strongest = [
        ", ".join(map(subject.name, order[first : min(first + 5, stop)].tolist()))
        for first, stop in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)
    ]
    return {
        kind: list(range(len(counts))),
        "units": counts.tolist(),
        "edges": inside.tolist(),
        "strongest": strongest,
    }


def _degrees(subject: GraphSubject) -> pd.DataFrame:
    """Return how many units of each end have how many edges, at least one: end, degree, units."""
    units = subject.units[subject.units["degree"] > 0]
    counted = units.groupby(["end", "degree"], sort=False).size().rename("units").reset_index()
    names = [end.name for end in subject.graph.ends]
    return counted.sort_values(["end", "degree"], key=lambda c: c.map(names.index) if c.name == "end" else c)


def _strengths(subject: GraphSubject) -> pd.DataFrame:
    """Return how many edges have which r, in bins of 0.02: r_from, r_to, edges."""
    edges = np.linspace(-1, 1, 101)
    counts, _ = np.histogram(subject.edges["r"], edges)
    kept = np.flatnonzero(counts)
    return pd.DataFrame(
        {"r_from": edges[kept].round(2), "r_to": edges[kept + 1].round(2), "edges": counts[kept].astype(np.int64)}
    )


def _draw(figure: Figure, degrees: pd.DataFrame, strengths: pd.DataFrame) -> None:
    left, right = figure.subplots(1, 2)
    for place, (end, own) in enumerate(degrees.groupby("end", sort=False)):
        shade = _COLOURS[place % len(_COLOURS)]
        left.plot(own["degree"], own["units"], "o", markersize=3.5, color=shade, alpha=0.8, label=str(end))
    left.set(xscale="log", yscale="log", xlabel="edges of a unit", ylabel="units")
    log_ticks(left.xaxis, degrees["degree"].to_numpy())
    log_ticks(left.yaxis, degrees["units"].to_numpy())
    left.legend(fontsize=7, loc="upper right")
    shades = [ORANGE if low >= 0 else BLUE for low in strengths["r_from"]]
    right.bar(strengths["r_from"] + 0.01, strengths["edges"], width=0.02, color=shades)
    right.set(yscale="log", xlabel="r (blue: negative, orange: positive)", ylabel="edges")
    log_ticks(right.yaxis, strengths["edges"].to_numpy())


def _real(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
