"""Options that several commands share, and what every command does with its result."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from saestore.cli import present
from saestore.cli.tables import json_text

LakeArgument = Annotated[str, typer.Argument(metavar="LAKE", help="Path, URL, or a lake's name in the catalog.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no messages.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Datasets = Annotated[list[str] | None, typer.Option(metavar="NAME...", help="Datasets of the lake; default all.")]
Layer = Annotated[str | None, typer.Option(metavar="LAYER", help="Such as 3, 22 or layer_3.mlp_out.")]
SampleType = Annotated[str | None, typer.Option(metavar="TYPE", help="token, patch, cls, mean, max or last.")]
SampleTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--sample-type", metavar="TYPE...", help="token, patch, cls, mean, max, last; by default token or patch."
    ),
]
StoredModel = Annotated[str | None, typer.Option(metavar="NAME", help="A model of the lake.")]
Sae = Annotated[str | None, typer.Option(metavar="NAME", help="An SAE of the lake.")]
Units = Annotated[list[int] | None, typer.Option(metavar="UNIT...", help="Original unit ids.")]
Rows = Annotated[str | None, typer.Option(metavar="ROWS", help="Such as 0:5, :100, 7 or 3,8,21.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, as tcp://host:8786.")]
Postings = Annotated[bool, typer.Option("--postings/--no-postings", help="Build the postings of codes too.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="The most memory to use, such as 4GiB.")]


def perform(verb: str, work: Callable[[], Any], options: dict[str, Any], *, json: bool = False) -> None:
    """Do a verb's work and print the result; what libraries print meanwhile goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        result = work()
    typer.echo(json_text(present.document(verb, result)) if json else present.text(verb, result, options))
    code = present.exit_code(verb, result)
    if code:
        raise typer.Exit(code)


def say_on_stderr(quiet: bool) -> Callable[[str], None]:
    """Return what prints lines for the user on stderr."""
    return _silent if quiet else functools.partial(typer.echo, err=True)


def _silent(line: str) -> None:
    """Say nothing."""
