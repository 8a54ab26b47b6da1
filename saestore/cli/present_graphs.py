"""What the verbs of feature graphs print."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from saestore.budget import readable_bytes
from saestore.cli.tables import table

if TYPE_CHECKING:
    from saestore.context import Place
    from saestore.units import Example
    from saestore.verbs import GraphUnit, MadeGraph, Neighbours, WrittenGraphReport

_COLUMN = 64
"""Characters of an example, of which two stand side by side."""


def graph(result: MadeGraph, options: Mapping[str, Any]) -> str:
    """Return the text of `graph`: edges of each end and each pair, and what was left out; of a dry run the plan."""
    plan = result.plan
    if result.summary is None:
        ends = ", ".join(f"{name} ({units:,} units)" for name, units in plan.ends)
        return (
            f"{ends}; {plan.pairs} pairs over {plan.rows}\nup to {readable_bytes(plan.bytes)} of memory, ends are read "
            f"{plan.scans} times in all, {plan.sums:.2g} products are added up"
        )
    summary = result.summary
    rows = [
        [name, found["edges"], found["positive"], found["negative"], _strongest(found)]
        for part in ("within_layer", "between_layers")
        for name, found in summary[part].items()
    ]
    counts = summary["counts"]
    parts = [
        table(["ends", "edges", "positive", "negative", "strongest"], rows),
        f"graph {result.name}: {counts['edges']:,} edges with |r| >= {summary['threshold']} among "
        f"{counts['connected_units']:,} of {counts['units']:,} units over {summary['rows']['n']:,} rows; "
        f"{counts['components']:,} components, {counts['communities']:,} communities",
    ]
    for name, states in summary["left_out"].items():
        left = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in states.items() if count)
        if left:
            parts.append(f"left out of {name}: {left}")
    if "null" in summary:
        null = summary["null"]
        parts.append(
            f"with shuffled rows (seed {null['seed']}): {null['edges']:,} edges, {null['q_up_to_0.05']:,} with q up to "
            f"0.05; {counts['q_up_to_0.05']:,} of the graph"
        )
    parts += [str(path) for path in result.files]
    return "\n".join(parts)


def neighbours(result: Neighbours, options: Mapping[str, Any]) -> str:
    """Return the text of `neighbours`: the edges as a table, then the examples of both units of each edge."""
    unit = result.unit
    several = any(edge.other.end != unit.end for edge in result.edges)
    labelled = any(edge.other.label for edge in result.edges)
    headers = [*(["end"] if several else []), "unit", "r", "n_a", "n_b", "n_ab", "lift", "MI", "Jaccard", "q"]
    rows = [
        [
            *([edge.other.end] if several else []),
            str(edge.other.unit),
            f"{edge.r:+.3f}",
            *(edge.n_a, edge.n_b, edge.n_ab),
            *("" if value is None else f"{value:.3g}" for value in (edge.lift, edge.mutual_information, edge.jaccard)),
            f"{edge.q:.2g}",
            *([edge.other.label] if labelled else []),
        ]
        for edge in result.edges
    ]
    parts = [f"graph {result.graph}, over {result.rows}", _unit(unit)]
    if rows:
        parts.append(table([*headers, *(["label"] if labelled else [])], rows))
        shown = f"the strongest {len(rows):,} of " if len(rows) < result.n_edges else ""
        parts[1] += f"; {shown}{result.n_edges:,} edges:"
    else:
        parts[1] += "; no edges" + (f" ({unit.state})" if unit.state != "used" else "")
        parts += [_example(one) for one in unit.examples]
    for edge in result.edges:
        if unit.examples or edge.other.examples:
            parts += ["", *_side_by_side(unit, edge.other, f"{edge.r:+.3f}")]
    return "\n".join([*parts, *(["", *result.notes] if result.notes else [])])


def report(result: WrittenGraphReport, options: Mapping[str, Any]) -> str:
    """Return the text of `report graph`."""
    told = f"{result.path}: graph {result.graph}; {readable_bytes(result.bytes)}"
    return "\n".join([told, *(str(file) for file in (*result.data, *result.pictures))])


def _unit(unit: GraphUnit) -> str:
    told = f"unit {unit.unit} of {unit.end}"
    if unit.label:
        told += f" ({unit.label})"
    if unit.active is not None:
        told += f": active in {unit.active:,} rows ({unit.base_rate:.2%})"
    return told + (f", component {unit.component}, community {unit.community}" if unit.component is not None else "")


def _side_by_side(unit: GraphUnit, other: GraphUnit, r: str) -> list[str]:
    heads = [" ".join(f"{one.unit} {one.label}".split())[:_COLUMN] for one in (unit, other)]
    if unit.end != other.end:
        heads = [f"{one.end}: {head}"[:_COLUMN] for one, head in zip((unit, other), heads, strict=True)]
    pairs = zip_longest(unit.examples, other.examples)
    lines = [["" if one is None else _example(one) for one in pair] for pair in pairs]
    return [f"{left:<{_COLUMN}} | {right}".rstrip() for left, right in [[heads[0], f"{heads[1]}  r {r}"], *lines]]


def _example(example: Example) -> str:
    return f"{example.value:9.3f}  {_around(example.place, _COLUMN - 11)}"


def _around(place: Place, width: int) -> str:
    """Return what stands at a row in so many characters, the marked token not far from their middle."""
    if not place.marked:
        return _cut(place.text, width)
    marked = " ".join(place.marked.split())[: width - 2]
    before, after = " ".join(place.before.split()), " ".join(place.after.split())
    before = before + " " if place.before[-1:].isspace() else before
    after = " " + after if place.after[:1].isspace() else after
    left = max(0, (width - len(marked) - 2) // 2)
    left = max(left, width - len(marked) - 2 - len(after))
    if len(before) > left:
        before = "…" + before[len(before) - left + 1 :] if left else ""
    line = f"{before}[{marked}]{after}"
    return _cut(line, width)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _strongest(found: Mapping[str, Any]) -> str:
    return " ".join(f"{one['unit_a']}-{one['unit_b']} {one['r']:+.2f}" for one in found["strongest"][:3])
