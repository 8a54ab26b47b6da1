"""The command that looks at a unit of a feature graph: neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import Json, LakeArgument, perform


def neighbours(
    lake: LakeArgument,
    unit: Annotated[int, typer.Option(metavar="UNIT", help="Original id, or the place of a dimension.")],
    graph: Annotated[str, typer.Option(metavar="NAME", help="Name of the graph.")] = "default",
    end: Annotated[
        str | None, typer.Option(metavar="NAME", help="The unit's layer, SAE and view, as layer_3/topk-4k.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="The most edges to show.")] = 10,
    examples: Annotated[int, typer.Option(help="Rows of each unit; 0 for none.")] = 5,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What units are called: CSV, JSON Lines or Parquet.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a unit's strongest edges in a feature graph, and side by side where both of their units are active.

    \b
    Examples:
      saestore neighbours lake --unit 812
      saestore neighbours lake --graph dims --unit 5 --end layer_3 --n 20 --examples 2
      saestore neighbours lake --unit 812 --labels explanations.jsonl.gz --json
    """
    perform(
        "neighbours",
        lambda: verbs.neighbours(lake, unit=unit, graph=graph, end=end, n=n, examples=examples, labels=labels),
        {},
        json=json,
    )
