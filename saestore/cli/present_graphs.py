"""What the verbs of feature graphs print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saestore.budget import readable_bytes
from saestore.cli.tables import table

if TYPE_CHECKING:
    from saestore.verbs import MadeGraph


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


def _strongest(found: Mapping[str, Any]) -> str:
    return " ".join(f"{one['unit_a']}-{one['unit_b']} {one['r']:+.2f}" for one in found["strongest"][:3])
