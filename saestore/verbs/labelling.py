"""The verb label: concept labels of positions, from what other people or programs have marked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saestore.errors import InputError
from saestore.layout import check_name
from saestore.verbs.names import LakeLike, Say, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.labelling.source import LabelSource
    from saestore.labelling.writer import LabelResult

AnyPath = str | os.PathLike[str]


def label(
    lake: LakeLike,
    dataset: str,
    *,
    model: str | None = None,
    name: str = "concepts",
    spans: AnyPath | None = None,
    words: AnyPath | None = None,
    word_table: AnyPath | None = None,
    boxes: AnyPath | None = None,
    masks: AnyPath | None = None,
    gt: AnyPath | None = None,
    fraction: float = 0.0,
    parents: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> LabelResult:
    """Store which positions of a dataset have which concepts; every part that has no such labels yet is labelled.

    Where the file says nothing of a concept in a sample, the sample table decides: if it says that the sample is
    without it, or knows no such concept, all positions are 0; if it says that the sample has it, or does not know,
    they are 255, unlabelled.

    Parameters
    ----------
    lake : Lake, str or path
    dataset : str
    model : str, optional
        Whose positions; may be left out where there is one.
    name : str
        Name of the labels.
    spans : path, optional
        A table with the columns sample, concept, start, end: characters of the text.
    words : path, optional
        A YAML file of concepts and lists of words, which are looked for in the texts. These labels are derived from
        the text, and no annotation.
    word_table : path, optional
        A table with one row for each word: sample or paragraph_id (from 1), and a column of 0 and 1 for each concept.
    boxes : path, optional
        A table with the columns sample, concept, x0, y0, x1, y1: pixels of the original image.
    masks : path, optional
        A folder of `<concept>/<sample id>.png`, or a table with the columns sample, concept, path.
    gt : path, optional
        A PyTorch file of a mapping of concepts to lists of rows; it speaks of all rows.
    fraction : float
        Of boxes and masks: a patch has the concept when more than this part of it is covered.
    parents : bool
        Add the concepts above: of `shape::cube` and `shape::sphere` the union `shape`.

    Returns
    -------
    LabelResult
        Rows, and for each concept how many positions have it, have it not and are unlabelled.

    Raises
    ------
    InputError
        None or several files were given, or one cannot be read.
    MissingError
        There is no such dataset, file, or sample that the file names.
    ConflictError
        Labels of this name were made from something else.

    Examples
    --------
    >>> label("demo/lake", "5_hist_fig_ismale", words="pronouns.yaml").rows  # doctest: +SKIP
    29259
    """
    from saestore.labelling.writer import label_positions

    check_name(name, "labels")
    given: dict[str, AnyPath | None] = {
        "spans": spans,
        "words": words,
        "word_table": word_table,
        "boxes": boxes,
        "masks": masks,
        "gt": gt,
    }
    kinds = [kind for kind, path in given.items() if path is not None]
    options = [f"--{kind.replace('_', '-')}" for kind in (kinds or given)]
    if len(kinds) != 1:
        what = f"{' and '.join(options)} were given" if kinds else "no file of labels was given"
        raise InputError(f"{what}; give one of {', '.join(options)}")
    opened = open_lake(lake, catalog=catalog)
    opened.samples(dataset)  # a dataset that is not there is its own error
    positions = opened.positions(dataset, model)
    path = given[kinds[0]]
    assert path is not None
    return label_positions(
        opened.storage,
        positions.key,
        _source(kinds[0], Path(path).expanduser(), fraction),
        name=name,
        parents=parents,
        quiet=quiet,
        say=say,
    )


def _source(kind: str, path: Path, fraction: float) -> LabelSource:
    from saestore.labelling.boxes import Boxes
    from saestore.labelling.gt import RowLists
    from saestore.labelling.masks import Masks
    from saestore.labelling.spans import Spans
    from saestore.labelling.word_table import WordTable
    from saestore.labelling.words import Words

    if kind == "boxes":
        return Boxes(path, fraction)
    if kind == "masks":
        return Masks(path, fraction)
    if fraction:
        raise InputError(f"--fraction {fraction:g} is of --boxes and --masks, which cover patches; leave it out")
    others: dict[str, Callable[[Path], LabelSource]] = {
        "spans": Spans,
        "words": Words,
        "word_table": WordTable,
        "gt": RowLists,
    }
    return others[kind](path)
