"""The command of the probing benchmark: probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import (
    DryRun,
    Json,
    LakeArgument,
    Memory,
    Quiet,
    SampleType,
    Scheduler,
    StoredModel,
    View,
    perform,
)


def probe(
    lake: LakeArgument,
    datasets: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Datasets of the lake, with * and ?; default all.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="normal (default), scarcity, imbalance, label_noise, ood, multi_token."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="logreg, pca, knn, xgboost, mlp, sae-l1, sae-l2; of tokens concat, attention, sae-mean, sae-max; "
            "default those of the benchmark.",
        ),
    ] = None,
    saes: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="SAEs with codes, with * and ?; default all.")
    ] = None,
    layers: Annotated[list[str] | None, typer.Option(metavar="LAYER...", help="Such as 20 31; default all.")] = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    view: View = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column or concept to probe; default label or target.")
    ] = None,
    ks: Annotated[
        list[int] | None,
        typer.Option(metavar="K...", help="Units of SAE probes; default 1 to 512, or 16 and 128."),
    ] = None,
    normalisation: Annotated[
        str, typer.Option(metavar="HOW", help="Of the difference of means that ranks units: mean or none.")
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 42,
    test_dataset: Annotated[
        str, typer.Option(metavar="NAME", help="What tests out of distribution; {dataset} is what trains.")
    ] = "{dataset}_OOD",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the results.")] = "default",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Of attention probes: auto, cpu, cuda or mps.")] = "cpu",
    memory: Memory = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the table as Parquet and CSV.")] = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Probe labelled datasets with activations and with SAE codes, as the benchmark 'Are SAEs useful?' does.

    \b
    Examples:
      saestore probe lake
      saestore probe lake --methods sae-l1 sae-l2 --settings scarcity imbalance --layers 20
      saestore probe lake --datasets '9?_glue_*' --settings ood --out tables
    """
    perform(
        "probe",
        lambda: verbs.probe(
            lake,
            datasets or None,
            settings=settings or None,
            methods=methods or None,
            saes=saes or None,
            layers=layers or None,
            sample_type=sample_type,
            model=model,
            view=view,
            label=label,
            ks=ks or None,
            normalisation=normalisation,  # type: ignore[arg-type]
            seed=seed,
            test_dataset=test_dataset,
            name=name,
            device=device,
            memory=memory,
            dry_run=dry_run,
            out=out,
            scheduler=scheduler,
            quiet=quiet,
        ),
        {},
        json=json,
    )
