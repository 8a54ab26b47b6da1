"""Commands for steering: steer bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import Json, LakeArgument, Memory, Quiet, Units, perform, say_on_stderr


def steer_bundle(
    lake: LakeArgument,
    out: Annotated[Path, typer.Option(metavar="NAME", help="Of the files to write, without an ending.")],
    graph: Annotated[str, typer.Option(metavar="NAME", help="Name of the graph.")] = "default",
    units: Units = None,
    end: Annotated[
        str | None, typer.Option(metavar="LAYER/SAE", help="An end of the graph; default the only one.")
    ] = None,
    depth: Annotated[int, typer.Option(metavar="N", help="How many edges away neighbours may be.")] = 1,
    top: Annotated[
        int | None, typer.Option(metavar="N", help="Strongest neighbours of each unit; default all.")
    ] = None,
    memory: Memory = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write units of a graph with their neighbours as a bundle to steer a model with, see saestore.steer.apply.

    \b
    Examples:
      saestore steer bundle lake --units 5 17 --out happy
      saestore steer bundle lake --graph all --end layer_4/topk-4k --units 5 --depth 2 --top 10 --out bundles/happy
      saestore steer bundle lake --out every-unit-with-an-edge
    """
    perform(
        "steer bundle",
        lambda: verbs.steer_bundle(
            lake,
            out=out,
            graph=graph,
            units=units or None,
            end=end,
            depth=depth,
            top=top,
            memory=memory,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
