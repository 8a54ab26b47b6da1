"""The command that makes views: prune."""

from __future__ import annotations

from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import (
    Datasets,
    Json,
    LakeArgument,
    Layer,
    Memory,
    Quiet,
    Sae,
    SampleType,
    Scheduler,
    StoredModel,
    Units,
    View,
    perform,
    say_on_stderr,
)


def prune(
    lake: LakeArgument,
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the view.")],
    datasets: Datasets = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="NAME", help="A parameter set of the catalog, such as clip-patch.")
    ] = None,
    dead: Annotated[int | None, typer.Option(metavar="ROWS", help="Keep units active in at least so many.")] = None,
    ubiquitous: Annotated[
        float | None, typer.Option(metavar="PART", help="Keep units active in at most this part of rows.")
    ] = None,
    strength_percentile: Annotated[
        float | None, typer.Option(metavar="0-100", help="Keep units whose p99 is at least this percentile of all.")
    ] = None,
    min_selectivity: Annotated[
        float | None, typer.Option(metavar="0-1", help="Keep units of at least this lifetime sparseness.")
    ] = None,
    target: Annotated[int | None, typer.Option(metavar="N", help="Keep at most so many, strongest first.")] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train, cal, test or all: whose rows count.")] = "cal",
    special: Annotated[bool, typer.Option("--special", help="Count special tokens too.")] = False,
    units: Units = None,
    view: View = None,
    concepts: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="What an adaptive rule follows from; default all.")
    ] = None,
    labels: Annotated[str, typer.Option(metavar="NAME", help="Labels of positions, where there are.")] = "concepts",
    legacy: Annotated[bool, typer.Option("--legacy", help="Rows and percentiles as earlier code took them.")] = False,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Choose units by their statistics over one split, and keep the choice as a view for --view elsewhere.

    \b
    Examples:
      saestore prune demo/lake --name strong --dead 10 --ubiquitous 0.05 --strength-percentile 75
      saestore prune demo/lake --name few --view strong --min-selectivity 0.9 --target 500
      saestore prune demo/lake --name clip --parameters clip-patch --sample-type patch
    """
    perform(
        "prune",
        lambda: verbs.prune(
            lake,
            datasets or None,
            name=name,
            parameters=parameters,
            dead=dead,
            ubiquitous=ubiquitous,
            strength_percentile=strength_percentile,
            min_selectivity=min_selectivity,
            target=target,
            split=split,
            special=special,
            units=units or None,
            view=view,
            concepts=concepts or None,
            labels=labels,
            legacy=legacy,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            memory=memory,
            scheduler=scheduler,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
