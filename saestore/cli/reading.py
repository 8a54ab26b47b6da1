"""Commands that read: catalog, status, show, top, stats, dense."""

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
    Rows,
    Sae,
    SampleType,
    Scheduler,
    StoredModel,
    Units,
    View,
    perform,
    say_on_stderr,
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
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the lake.")],
    rows: Annotated[str, typer.Option(metavar="ROWS", help="Such as 0:5, :100, 7 or 3,8,21.")] = ":5",
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    view: View = None,
    units: Annotated[int, typer.Option("--units", metavar="N", help="Units per row.")] = 5,
    json: Json = False,
) -> None:
    """Show rows of a dataset with their strongest units and the text there.

    \b
    Examples:
      saestore show demo/lake 5_hist_fig_ismale
      saestore show demo/lake 5_hist_fig_ismale --rows 3,8,21 --units 10
    """
    perform(
        "show",
        lambda: verbs.show(
            lake,
            dataset,
            rows=rows,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            view=view,
            units=units,
        ),
        {},
        json=json,
    )


def top(
    lake: LakeArgument,
    datasets: Datasets = None,
    units: Units = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Rows per unit, with --quantiles per band.")] = 5,
    per: Annotated[str, typer.Option(metavar="WHAT", help="position, or sample: one row of each sample.")] = "position",
    quantiles: Annotated[
        list[float] | None, typer.Option(metavar="Q...", help="Rows from bands of activations, such as 0 0.5 0.9 1.")
    ] = None,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    view: View = None,
    json: Json = False,
) -> None:
    """Show units with the rows where they are most active, the token marked; without --units, five are picked.

    \b
    Examples:
      saestore top demo/lake
      saestore top demo/lake --units 7 1234 -n 10 --per sample
      saestore top demo/lake --units 7 --quantiles 0 0.5 0.9 1
    """
    perform(
        "top",
        lambda: verbs.top(
            lake,
            datasets or None,
            units=units or None,
            n=n,
            per=per,  # type: ignore[arg-type]
            quantiles=quantiles or None,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            view=view,
        ),
        {},
        json=json,
    )


def stats(
    lake: LakeArgument,
    datasets: Datasets = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="train, cal, test or none; default all.")] = None,
    where: Annotated[str | None, typer.Option(metavar="EXPRESSION", help="Only rows that meet it; not kept.")] = None,
    special: Annotated[bool, typer.Option("--special", help="Count special tokens too.")] = False,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="Such as count, fraction, mean, max, p99.")] = "fraction",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=LOW:HIGH...", help="Only units between, as fraction=0.001:0.1.")
    ] = None,
    limit: Annotated[int, typer.Option(help="The most units, 0 for all.")] = 20,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    view: View = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Sort and filter units by their statistics; what is not there yet is computed from the postings and kept.

    \b
    Examples:
      saestore stats demo/lake --datasets 5_hist_fig_ismale
      saestore stats demo/lake --split train --sort mean --only fraction=0.001:0.1 count=10:
      saestore stats demo/lake --where 'position > 0' --sort max --json
    """
    perform(
        "stats",
        lambda: verbs.stats(
            lake,
            datasets or None,
            split=split,
            where=where,
            special=special,
            sort=sort,
            ascending=ascending,
            only=only or None,
            limit=limit or None,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
            view=view,
            memory=memory,
            scheduler=scheduler,
            quiet=quiet,
            say=say_on_stderr(quiet),
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
    view: View = None,
    rows: Rows = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="Only rows of train, cal or test.")] = None,
    where: Annotated[str | None, typer.Option(metavar="EXPRESSION", help="Only rows that meet it.")] = None,
    special: Annotated[
        bool | None, typer.Option("--special/--no-special", help="Only special tokens, or only others; default both.")
    ] = None,
    units: Units = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="float32 or float16.")] = "float32",
    memory: Memory = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Write .npy, .npz, .pt, .zarr, .parquet or .csv instead, of any size."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Print a dense block of rows and units with xarray, or write it to a file of any size.

    \b
    Examples:
      saestore dense demo/lake 5_hist_fig_ismale --rows 0:8 --units 7 1234
      saestore dense demo/lake 5_hist_fig_ismale --units 7 1234 --out units.parquet
      saestore dense demo/lake 5_hist_fig_ismale --view strong --split train --no-special --out train.pt
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
            view=view,
            rows=rows,
            split=split,
            where=where,
            special=special,
            units=units or None,
            dtype=dtype,  # type: ignore[arg-type]
            memory=memory,
            out=out,
            quiet=quiet,
        ),
        {},
        json=json,
    )
