"""The command that runs recipes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from saestore import recipes
from saestore.cli import present
from saestore.cli.options import (
    DryRun,
    Json,
    Quiet,
    perform,
    say_on_stderr,
    settings,
)


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file of verbs.")],
    lake: Annotated[str | None, typer.Option(metavar="LAKE", help="Instead of the recipe's own.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE...", help="Values of the recipe's variables.")
    ] = None,
    steps: Annotated[
        list[str] | None, typer.Option(metavar="STEP...", help="Only these: verbs, or numbers from 1.")
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the steps of a recipe, each of them a command that can be typed alone.

    \b
    Examples:
      saestore run pipelines/quickstart.yaml
      saestore run pipelines/quickstart.yaml --steps encode status --lake other/lake
      saestore run pipelines/concept_detection.yaml --set dataset=Coco embeddings=coco.pt --dry-run
    """
    # The steps' own output is the progress of a recipe: on stdout for people, and on stderr beside JSON.
    stream = sys.stderr if json else sys.stdout

    def begun(verb: str, command: str, skipped: str) -> None:
        typer.echo(f"skipped: {verb}: {skipped}\n" if skipped else f"$ {command}", file=stream)

    def done(verb: str, result: Any, options: Any) -> None:
        typer.echo(f"{present.text(verb, result, options)}\n", file=stream)

    perform(
        "run",
        lambda: recipes.run(
            recipe,
            lake=lake,
            set=settings(set, "--set"),
            steps=steps or None,
            dry_run=dry_run,
            quiet=quiet,
            say=say_on_stderr(quiet),
            begun=begun,
            done=done,
        ),
        {},
        json=json,
    )
