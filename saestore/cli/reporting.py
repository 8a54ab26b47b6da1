"""Commands that write web pages: report concepts, report probes, report graph."""

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
    Sae,
    SampleType,
    StoredModel,
    View,
    perform,
)


def report_concepts(
    lake: LakeArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
    datasets: Datasets = None,
    view: View = None,
    detection: Annotated[str, typer.Option(metavar="NAME", help="Name of the detection.")] = "default",
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the numbers of all plots as CSV.")] = None,
    maps: Annotated[int, typer.Option(metavar="N", help="Concepts of each dataset to map inside of samples.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the resampling that gives the interval of F1.")] = 42,
    stamp: Annotated[str | None, typer.Option(metavar="TEXT", help="For the page's foot, such as the date.")] = None,
    sae: Sae = None,
    layer: Layer = None,
    sample_type: SampleType = None,
    model: StoredModel = None,
    json: Json = False,
) -> None:
    """Write what concept detection found as one web page, which opens without a network.

    \b
    Examples:
      saestore report concepts lake --datasets CLEVR --view pruned --out report.html
      saestore report concepts lake --out report.html --data numbers --stamp "March 2026"
    """
    perform(
        "report concepts",
        lambda: verbs.report_concepts(
            lake,
            datasets,
            out=out,
            view=view,
            detection=detection,
            data=data,
            maps=maps,
            seed=seed,
            stamp=stamp,
            sae=sae,
            layer=layer,
            sample_type=sample_type,
            model=model,
        ),
        {},
        json=json,
    )


def report_probes(
    lake: LakeArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
    published: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Result tables of the benchmark's authors, to show too.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the numbers of all figures as CSV.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the figures as PNG files.")] = None,
    stamp: Annotated[str | None, typer.Option(metavar="TEXT", help="For the page's foot, such as the date.")] = None,
    json: Json = False,
) -> None:
    """Write the figures of the probing benchmark as one web page, which opens without a network.

    \b
    Examples:
      saestore report probes lake --out probes.html
      saestore report probes lake --published results --out probes.html --data numbers --png figures
    """
    perform(
        "report probes",
        lambda: verbs.report_probes(lake, out=out, published=published, data=data, png=png, stamp=stamp),
        {},
        json=json,
    )


def report_graph(
    lake: LakeArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
    graph: Annotated[str, typer.Option(metavar="NAME", help="Name of the graph.")] = "default",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What units are called: CSV, JSON Lines or Parquet.")
    ] = None,
    examples: Annotated[int, typer.Option(metavar="N", help="Rows of each unit; 0 for none.")] = 4,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the numbers as CSV, and correlations as .npy.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the figures as PNG files.")] = None,
    stamp: Annotated[str | None, typer.Option(metavar="TEXT", help="For the page's foot, such as the date.")] = None,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Write a feature graph as one web page, in which its units can be searched; it opens without a network.

    \b
    Examples:
      saestore report graph lake --out graph.html
      saestore report graph lake --graph dims --out graph.html --data numbers --png figures
      saestore report graph lake --out graph.html --labels explanations.jsonl.gz --examples 6
    """
    perform(
        "report graph",
        lambda: verbs.report_graph(
            lake,
            out=out,
            graph=graph,
            labels=labels,
            examples=examples,
            data=data,
            png=png,
            stamp=stamp,
            memory=memory,
        ),
        {},
        json=json,
    )
