"""The command of the feature graph: graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import (
    Device,
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


def graph(
    lake: LakeArgument,
    datasets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="Datasets, with * and ?; default all with such rows."),
    ] = None,
    layers: Annotated[list[str] | None, typer.Option(metavar="LAYER...", help="Such as 2 4; default all.")] = None,
    saes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="Join codes of these, with * and ?; default activations."),
    ] = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    view: View = None,
    units: Annotated[
        str | None, typer.Option(metavar="UNITS", help="Units or dimensions of each end, as 0:100 or '5 17'.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="HOW", help="Join codes of a sample's positions: mean or max.")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="EXPRESSION", help="Only these rows; see show.")] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="SPLIT...", help="Only rows of these splits.")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the graph.")] = "default",
    min_r: Annotated[float, typer.Option(help="Least absolute correlation.")] = 0.3,
    min_support: Annotated[int, typer.Option(help="Least rows with both, found or by chance.")] = 5,
    max_base_rate: Annotated[float, typer.Option(help="Units active in a larger part of the rows are left out.")] = 0.9,
    top: Annotated[int | None, typer.Option(help="Strongest edges of a unit that count; default all.")] = None,
    max_q: Annotated[float, typer.Option(help="Largest q-value (Benjamini-Hochberg); 1 keeps all.")] = 1.0,
    max_edges: Annotated[int, typer.Option(help="More are refused before the work.")] = 10_000_000,
    null: Annotated[bool, typer.Option("--null", help="Count the edges of shuffled rows too.")] = False,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 42,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write Parquet, GraphML, scipy's adjacency and the summary.")
    ] = None,
    matrices: Annotated[bool, typer.Option("--matrices", help="With --out: all correlations as .npy.")] = False,
    device: Device = "cpu",
    memory: Memory = None,
    dry_run: DryRun = False,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Join units that are correlated to a graph: of codes or activations, within layers and across them.

    \b
    Examples:
      saestore graph lake --saes topk-4k --sample-type token
      saestore graph lake --layers 2 3 4 5 --sample-type mean --units 0:100 --name dims --out graph --matrices
      saestore graph lake --saes 'topk-*' --layers 3 4 --pooling max --null --memory 8GiB
    """
    perform(
        "graph",
        lambda: verbs.graph(
            lake,
            datasets or None,
            layers=layers or None,
            saes=saes or None,
            sample_type=sample_type,
            model=model,
            view=view,
            units=units,
            pooling=pooling,  # type: ignore[arg-type]
            where=where,
            split=split or None,
            name=name,
            min_r=min_r,
            min_support=min_support,
            max_base_rate=max_base_rate,
            top=top,
            max_q=max_q,
            max_edges=max_edges,
            null=null,
            seed=seed,
            out=out,
            matrices=matrices,
            device=device,
            memory=memory,
            dry_run=dry_run,
            scheduler=scheduler,
            quiet=quiet,
        ),
        {},
        json=json,
    )
