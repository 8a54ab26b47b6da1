"""What the verb steer prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saestore.verbs import WrittenBundle


def bundle(result: WrittenBundle, options: Mapping[str, Any]) -> str:
    """Return the text of `steer bundle`: what is in the bundle, what it is for, and what it can do."""
    alone = f", {result.alone:,} without an edge" if result.alone else ""
    hook = "module not known" if result.hook is None else result.hook
    revision = "revision not known" if result.revision is None else result.revision
    lines = [
        *map(str, result.files),
        f"{result.units:,} units of SAE {result.sae}, {result.edges:,} edges of graph {result.graph}{alone}",
        f"steers {result.layer} ({hook}) of {result.model} ({revision})",
    ]
    if result.selection == "top_k":
        lines.append("clamp and ablate need the SAE too (sae=...), which selects among all its units")
    if result.selection == "none":
        lines.append("units cannot be measured there: add alone works, without correction")
    return "\n".join(lines)
