"""The command that labels positions with concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import Json, LakeArgument, Quiet, StoredModel, perform, say_on_stderr


def label(
    lake: LakeArgument,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the lake.")],
    model: StoredModel = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="The name of the labels.")] = "concepts",
    spans: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Columns sample, concept, start, end: characters of texts.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Concepts, each with a list of words to look for.")
    ] = None,
    word_table: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="A row for each word, a column of 0 and 1 for each concept.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Columns sample, concept, x0, y0, x1, y1: pixels of images.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A folder CONCEPT/SAMPLE.png, or a table of sample, concept, path."),
    ] = None,
    gt: Annotated[Path | None, typer.Option(metavar="PT", help="A .pt of concepts, each with a list of rows.")] = None,
    fraction: Annotated[float, typer.Option(help="Of boxes and masks: more than this of a patch is covered.")] = 0.0,
    parents: Annotated[
        bool, typer.Option("--parents", help="Add shape, the union of shape::cube and shape::sphere.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Say which tokens or patches of a dataset have which concepts, from one file of labels.

    \b
    Examples:
      saestore label demo/lake 5_hist_fig_ismale --words pronouns.yaml
      saestore label lake CLEVR --masks masks/ --parents
      saestore label lake Coco --boxes boxes.parquet --fraction 0.5 --name half
    """
    perform(
        "label",
        lambda: verbs.label(
            lake,
            dataset,
            model=model,
            name=name,
            spans=spans,
            words=words,
            word_table=word_table,
            boxes=boxes,
            masks=masks,
            gt=gt,
            fraction=fraction,
            parents=parents,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
