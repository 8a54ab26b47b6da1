"""Options that several commands share, and what every command does with its result."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from saestore.cli import present
from saestore.cli.tables import json_text
from saestore.errors import InputError

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
View = Annotated[str | None, typer.Option(metavar="NAME", help="Only the units of a view; see prune.")]
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


def settings(words: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """Return what `name=value` words say, None for none (InputError for other words)."""
    found: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise InputError(f"{option} {word} is not a setting; write it as {option} NAME=VALUE")
        if name in found:
            raise InputError(f"{option} gives {name} twice, {found[name]!r} and {value!r}; give it once")
        found[name] = value
    return found or None


def fractions(words: Sequence[str] | None, option: str) -> dict[str, float] | None:
    """Return what `name=number` words say, None for none (InputError for other words)."""
    found = settings(words, option)
    try:
        return None if found is None else {name: float(value) for name, value in found.items()}
    except ValueError:
        raise InputError(f"{option} {' '.join(words or ())}: a part is no number; give it like 0.6") from None


def say_on_stderr(quiet: bool) -> Callable[[str], None]:
    """Return what prints lines for the user on stderr."""
    return _silent if quiet else functools.partial(typer.echo, err=True)


def _silent(line: str) -> None:
    """Say nothing."""
