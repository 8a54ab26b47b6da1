"""Commands that read: catalog, status, show, dense."""

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
    Rows,
    Sae,
    SampleType,
    StoredModel,
    Units,
    perform,
)


def catalog(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Only names that match, with * and ?.")
    ] = None,
    json: Json = False,
) -> None:
    """List the known datasets, models, SAEs and lakes, and check every entry.

    \b
    Examples:
      saestore catalog
      saestore catalog 'sae-probes/*'
      saestore catalog --catalog my-catalog.yaml
    """
    perform("catalog", lambda: verbs.catalog(pattern), {}, json=json)


def status(
    lake: Annotated[str, typer.Argument(metavar="[LAKE]", help="Default: this folder.", show_default=False)] = ".",
    storage: Annotated[
        bool, typer.Option("--storage", help="Measure bytes per row against legacy .pt and dense.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what the lake holds: done, partial or missing, rows and bytes; exit code 1 if anything is partial.

    \b
    Examples:
      saestore status demo/lake
      saestore status demo/lake --storage
      saestore status demo/lake --json
    """
    perform("status", lambda: verbs.status(lake, storage=storage), {}, json=json)


def show(
    lake: LakeArgument,
    datasets: Datasets = None,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    rows: Rows = None,
    units: Units = None,
    top: Annotated[int, typer.Option(help="Units per row, or rows per unit.")] = 5,
    json: Json = False,
) -> None:
    """Show rows with their strongest units, or units with their strongest rows and the text there.

    \b
    Examples:
      saestore show demo/lake
      saestore show demo/lake --units 7 1234 --top 10
      saestore show demo/lake --datasets 5_hist_fig_ismale --rows 0:5
    """
    perform(
        "show",
        lambda: verbs.show(
            lake,
            datasets or None,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            rows=rows,
            units=units or None,
            top=top,
        ),
        {},
        json=json,
    )


def dense(
    lake: LakeArgument,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the lake.")],
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    rows: Rows = None,
    units: Units = None,
    memory: Memory = None,
    out: Annotated[Path | None, typer.Option(help="Write .npy, .npz, .csv or .parquet instead.")] = None,
    json: Json = False,
) -> None:
    """Print a dense block of rows and units with xarray, or write it to a file.

    \b
    Examples:
      saestore dense demo/lake 5_hist_fig_ismale --rows 0:8 --units 7 1234
      saestore dense demo/lake 5_hist_fig_ismale --units 7 1234 --out units.parquet
    """
    perform(
        "dense",
        lambda: verbs.dense(
            lake,
            dataset,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            rows=rows,
            units=units or None,
            memory=memory,
            out=out,
        ),
        {},
        json=json,
    )
