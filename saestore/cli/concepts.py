"""Commands of concept detection: thresholds, detect, localise, compare."""

from __future__ import annotations

from pathlib import Path
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
    View,
    perform,
    say_on_stderr,
)

Name = Annotated[str, typer.Option(metavar="NAME", help="Name of the result.")]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the tables as Parquet and CSV.")]


def thresholds(
    lake: LakeArgument,
    datasets: Datasets = None,
    view: View = None,
    name: Name = "default",
    concepts: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="With * and ?; default the catalog's, else all.")
    ] = None,
    percentiles: Annotated[
        list[float] | None, typer.Option(metavar="PART...", help="Of the active rows of a concept; ascending.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="What is learned from.")] = "cal",
    by: Annotated[
        str | None, typer.Option(metavar="WHOSE", help="Labels of positions (position) or of samples (sample).")
    ] = None,
    labels: Annotated[str, typer.Option(metavar="NAME", help="Labels of positions, as label named them.")] = "concepts",
    special: Annotated[bool, typer.Option("--special", help="Count special tokens too.")] = False,
    legacy: Annotated[bool, typer.Option("--legacy", help="As earlier code did, for comparison only.")] = False,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Learn from which value on each unit speaks for each concept, on calibration data.

    \b
    Examples:
      saestore thresholds lake --datasets CLEVR --view pruned
      saestore thresholds lake --datasets Coco --concepts person 'vehicle*' --percentiles 0.1 0.5 0.9
    """
    perform(
        "thresholds",
        lambda: verbs.thresholds(
            lake,
            datasets,
            view=view,
            name=name,
            concepts=concepts or None,
            percentiles=percentiles or None,
            split=split,
            by=by,  # type: ignore[arg-type]
            labels=labels,
            special=special,
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


def detect(
    lake: LakeArgument,
    datasets: Datasets = None,
    view: View = None,
    name: Name = "default",
    thresholds: Annotated[str, typer.Option(metavar="NAME", help="Name of the thresholds.")] = "default",
    test: Annotated[str, typer.Option(metavar="SPLIT", help="The split that is only reported.")] = "test",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare with a linear direction and with single units, pooled.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of resampling and of random positions.")] = 42,
    out: Out = None,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Find the unit that detects each concept best, chosen on calibration data and reported once on the test.

    \b
    Examples:
      saestore detect lake --datasets CLEVR --view pruned
      saestore detect lake --datasets CLEVR --view pruned --baselines --out tables
    """
    perform(
        "detect",
        lambda: verbs.detect(
            lake,
            datasets,
            view=view,
            name=name,
            thresholds=thresholds,
            test=test,
            baselines=baselines,
            seed=seed,
            out=out,
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


def localise(
    lake: LakeArgument,
    datasets: Datasets = None,
    view: View = None,
    name: Name = "default",
    detection: Annotated[str, typer.Option(metavar="NAME", help="Name of the detection.")] = "default",
    methods: Annotated[
        list[str] | None, typer.Option(metavar="METHOD...", help="direct, two_stage; default both.")
    ] = None,
    out: Out = None,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    memory: Memory = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Say where in detected samples each concept is, against labelled positions.

    \b
    Examples:
      saestore localise lake --datasets CLEVR --view pruned
      saestore localise lake --datasets CLEVR --methods direct --out tables
    """
    perform(
        "localise",
        lambda: verbs.localise(
            lake,
            datasets,
            view=view,
            name=name,
            detection=detection,
            methods=methods or None,  # type: ignore[arg-type]
            out=out,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            memory=memory,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )


def compare(
    lake: LakeArgument,
    datasets: Datasets = None,
    view: View = None,
    detection: Annotated[str, typer.Option(metavar="NAME", help="Name of the detection.")] = "default",
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Compute stored results anew from the dense matrix, and say where they differ; exit code 1 if any does.

    \b
    Examples:
      saestore compare lake --datasets CLEVR --view pruned
    """
    perform(
        "compare",
        lambda: verbs.compare(
            lake,
            datasets,
            view=view,
            detection=detection,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            memory=memory,
        ),
        {},
        json=json,
    )
