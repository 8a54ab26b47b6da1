"""What the verbs for the files of the probing benchmark print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saestore.cli.tables import table

if TYPE_CHECKING:
    from saestore.probing.file_imports import BenchmarkFile


def files(result: Sequence[BenchmarkFile], options: Mapping[str, Any]) -> str:
    """Return the text of `probes import` and `probes export`: what is done, and each file that was left out."""
    parts = []
    done = [row for row in result if row.state != "left out"]
    counts = Counter((row.kind, row.layer, row.sae, row.state) for row in done)
    rows: Counter[tuple[str, str, str, str]] = Counter()
    for row in done:
        rows[row.kind, row.layer, row.sae, row.state] += row.rows
    if counts:
        headers = ["files of", "layer", "SAE", "state", "datasets", "rows"]
        listed = [[*of, "" if of[0] == "table" else number, rows[of]] for of, number in counts.items()]
        parts.append(table(headers, listed))
    written = [row.file for row in done if row.kind == "table"]
    if written:
        parts.append("\n".join(f"written: {name}" for name in written))
    left_out = [row for row in result if row.state == "left out"]
    if left_out:
        headers = ["left out", "dataset", "layer", "SAE", "file", "reason"]
        listed = [[row.kind, row.dataset, row.layer, row.sae, row.file, row.reason] for row in left_out]
        parts.append(table(headers, listed))
    return "\n\n".join(parts)


def left_out(result: Sequence[BenchmarkFile]) -> bool:
    """Whether something was left out."""
    return any(row.state == "left out" for row in result)
