"""What every benchmark shares: records, child processes that are measured from outside, and the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One measured number.

    ratio : value over the number it is held against; None where it is not compared
    goal : what the ratio (or, without one, the value) should reach, written as `>= 0.80`, `<= 100` or `0.8 to 1.2`
    met : whether it does; None without a goal
    """

    what: str
    value: float
    unit: str
    versus: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    @classmethod
    def of(
        cls, what: str, value: float, unit: str, *, versus: str = "", other: float | None = None, goal: str = ""
    ) -> Record:
        """Make a record, deciding whether its goal is met."""
        ratio = None if other is None else value / other
        met = _meets(goal, value if ratio is None else ratio) if goal else None
        return cls(what, value, unit, versus, ratio, goal, met)


def _meets(goal: str, held: float) -> bool:
    if " to " in goal:
        low, high = goal.split(" to ")
        return float(low) <= held <= float(high)
    sign, bound = goal.split()
    return held >= float(bound) if sign == ">=" else held <= float(bound)


def child(script: str, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one task of a script in a process of its own; its result gains `peak_bytes` of that process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, script, "--child", task, "--arguments", json.dumps(arguments), "--out", str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{task} failed:\n{done.stdout[-3000:]}")
        result: dict[str, Any] = json.loads(out.read_text())
    return result


def best_round(rounds: Sequence[dict[str, Any]], *, rate: str = "") -> dict[str, Any]:
    """Return the result of the fastest round, by its `seconds` or by a rate, with the most memory of all rounds."""
    fastest = max(rounds, key=lambda one: one[rate]) if rate else min(rounds, key=lambda one: one["seconds"])
    return fastest | {"peak_bytes": max(one["peak_bytes"] for one in rounds)}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every benchmark takes, to which one may add its own."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 60 seconds, smaller sizes, goals not binding")
    parser.add_argument("--json", metavar="FILE", help="also write the records as a JSON list")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], list[Record]],
    *tasks: Callable[..., dict[str, Any]],
) -> None:
    """Do the one task that a child was started for; else measure, print the table, and write it if so asked."""
    given = parser.parse_args()
    if given.child:
        task = next(each for each in tasks if each.__name__ == given.child)
        result = task(**json.loads(given.arguments))
        scale = 1 if platform.system() == "Darwin" else 1024
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        Path(given.out).write_text(json.dumps(result))
        return
    records = measure(given)
    print_table(records)
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(record) for record in records], indent=1))


def print_table(records: list[Record]) -> None:
    """Print the records; what falls short is marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    for heading in ("what", "value", "unit", "versus", "ratio", "goal", ""):
        table.add_column(heading, justify="right" if heading in ("value", "ratio") else "left")
    for record in records:
        mark = {None: "", True: "[green]met[/]", False: "[red]SHORT[/]"}[record.met]
        ratio = "" if record.ratio is None else f"{record.ratio:.2f}"
        value = f"{record.value:,.1f}" if abs(record.value) < 1000 else f"{record.value:,.0f}"
        table.add_row(record.what, value, record.unit, record.versus, ratio, record.goal, mark)
    Console(width=140 if not sys.stdout.isatty() else None).print(table)
