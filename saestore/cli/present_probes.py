"""What the verbs of the probing benchmark print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saestore.budget import readable_bytes
from saestore.cli.tables import table

if TYPE_CHECKING:
    from saestore.verbs import Probes, WrittenProbeReport

_SHOWN_REASONS = 12
_BY = ("setting", "layer", "sae", "method", "k")


def probe(result: Probes, options: Mapping[str, Any]) -> str:
    """Return the text of `probe`: means over tasks, and what is missing."""
    parts = []
    fitted = [row for row in result.rows if row["test_auc"] is not None]
    if fitted:
        means = []
        for place in dict.fromkeys(tuple(row[name] for name in _BY) for row in fitted):
            rows = [row for row in fitted if tuple(row[name] for name in _BY) == place]
            mean = sum(row["test_auc"] for row in rows) / len(rows)
            tasks = len({row["dataset"] for row in rows})
            means.append([*("" if part is None else part for part in place), tasks, len(rows), f"{mean:.4f}"])
        parts.append(table([*_BY, "tasks", "probes", "mean test AUC"], means))
    for state, title in (("todo", "to do"), ("missing", "missing")):
        tasks_there = [task for task in result.tasks if task.state == state]
        if tasks_there and state == "todo":
            count = Counter((task.setting, task.layer, task.sae or "", task.method) for task in tasks_there)
            headers = ["setting", "layer", "sae", "method", "tasks to do"]
            parts.append(table(headers, [[*place, number] for place, number in count.items()]))
        elif tasks_there:
            reasons = Counter((task.dataset, task.reason) for task in tasks_there)
            listed = [f"{title}: {dataset}: {reason}" for dataset, reason in reasons]
            parts.append("\n".join(_some(listed)))
    cells = [row for row in result.rows if row["num_train"] is not None]  # others are the missing tasks
    skipped = Counter((row["dataset"], row["setting"], row["reason"]) for row in cells if row["reason"])
    if skipped:
        lines = [
            f"{dataset}, {setting}: {reason} ({number} rows)" for (dataset, setting, reason), number in skipped.items()
        ]
        parts.append("\n".join(_some(lines)))
    parts += _truncated(result.rows)
    parts += [f"written: {path}" for path in result.files]
    return "\n\n".join(parts) or "nothing to probe"


def _truncated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each SAE of whose codes some rows do not have every active unit."""
    counts = {(row["sae"], row["dataset"], row["sample_type"]): row["truncated"] for row in rows if row["truncated"]}
    lines = []
    for sae in dict.fromkeys(sae for sae, *_ in counts):
        of_sae = [count for (name, *_), count in counts.items() if name == sae]
        lines.append(
            f"note: of {sae}, {sum(of_sae):,} rows in {len(of_sae)} data sets have more active units than are stored; "
            "for all of them encode with a larger --k"
        )
    return lines


def report(result: WrittenProbeReport, options: Mapping[str, Any]) -> str:
    """Return the text of `report probes`."""
    told = f"{result.path}: {', '.join(result.results)}; {readable_bytes(result.bytes)}"
    return "\n".join([told, *(str(file) for file in (*result.data, *result.pictures))])


def _some(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN_REASONS:
        return lines
    return [*lines[:_SHOWN_REASONS], f"... {len(lines) - _SHOWN_REASONS} more; --json has them all"]
