"""The verb report: results as one web page that opens from disk."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saestore._whole_files import whole_file
from saestore.errors import InputError
from saestore.verbs.names import LakeLike, matching_codes, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class WrittenReport:
    """A page that was written.

    bytes : its size
    datasets : what it is of
    data : the tables that were written beside it
    """

    path: Path
    bytes: int
    datasets: tuple[str, ...]
    data: tuple[Path, ...]


@dataclass(frozen=True)
class WrittenProbeReport:
    """A page about probes that was written.

    bytes : its size
    results : names of the results that it shows
    data, pictures : the tables and the PNG files that were written beside it
    """

    path: Path
    bytes: int
    results: tuple[str, ...]
    data: tuple[Path, ...]
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class WrittenGraphReport:
    """A page about a feature graph that was written.

    bytes : its size
    graph : name of what it shows
    data, pictures : the tables and matrices, and the PNG files, that were written beside it
    """

    path: Path
    bytes: int
    graph: str
    data: tuple[Path, ...]
    pictures: tuple[Path, ...]


def report_concepts(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    out: str | os.PathLike[str],
    view: str | None = None,
    detection: str = "default",
    data: str | os.PathLike[str] | None = None,
    maps: int = 12,
    seed: int = 42,
    stamp: str | None = None,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    catalog: Catalog | None = None,
) -> WrittenReport:
    """Write what concept detection found as one HTML page, which needs no network and no other file.

    It shows what the data and results are, units by activity and strength with what pruning cut off, thresholds and
    scores by percentile, the best unit of each concept, maps of it inside of samples, and what all that takes. What is
    not stored is said to be missing. The numbers of every plot are in the page too.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes.
    out : path
        The page.
    view : str, optional
        A view that `prune` made; default all units.
    detection : str
        Name of the detection.
    data : path, optional
        A folder for the numbers as CSV, one folder for each dataset in it.
    maps : int
        The most concepts of each dataset whose units are shown inside of samples, those with the highest F1 on the
        split that decided first.
    seed : int
        Of the resampling that gives the interval of F1.
    stamp : str, optional
        A text for the page's foot, such as the date. Without it the same lake gives the same bytes.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.

    Returns
    -------
    WrittenReport

    Raises
    ------
    MissingError
        No such codes or view, or a dataset has detections and none of that name.
    InputError
        A file cannot be written.
    DependencyError
        matplotlib is not installed.

    Examples
    --------
    >>> report_concepts("lake", "CLEVR", view="pruned", out="clevr.html").bytes  # doctest: +SKIP
    """
    from saestore.report.concepts import concept_report

    if maps < 0:
        raise InputError(f"maps {maps} is below 0; give the most concepts to map, 0 for none")
    page = _page(out)
    opened = open_lake(lake, catalog=catalog)
    found = matching_codes(
        opened, datasets=datasets, sae=sae, layer=layer, sample_type=sample_type, model=model, view=view
    )
    made = concept_report(opened, found, detection=detection, maps=maps, seed=seed, stamp=stamp)
    files = []
    if data is not None:
        folder = Path(data).expanduser()
        files = [_write(folder / block.dataset / f"{block.name}.csv", block.csv(), "--data") for block in made.data]
    _write(page, made.html, "--out")
    return WrittenReport(
        path=page,
        bytes=page.stat().st_size,
        datasets=tuple(codes.key.dataset for codes in found),
        data=tuple(files),
    )


def report_probes(
    lake: LakeLike,
    *,
    out: str | os.PathLike[str],
    published: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    png: str | os.PathLike[str] | None = None,
    stamp: str | None = None,
    catalog: Catalog | None = None,
) -> WrittenProbeReport:
    """Write the figures of the probing benchmark as one HTML page, which needs no network and no other file.

    It shows mean test AUC by setting, by k, by what each setting varies and by layer, data sets one by one, what
    validation chose, and what was not probed. What has no results is said to be missing. The numbers of every figure
    are in the page too.

    Parameters
    ----------
    lake : Lake, str or path
        Its results of `probe`, of every model and name, are shown.
    out : path
        The page.
    published : path, optional
        A folder with result tables of the benchmark's authors, which are shown beside those of the lake; the lake need
        not have results then.
    data : path, optional
        A folder for the numbers as CSV, one folder for each model and name in it.
    png : path, optional
        A folder for the figures as PNG files, likewise.
    stamp : str, optional
        A text for the page's foot, such as the date. Without it the same results give the same bytes.

    Returns
    -------
    WrittenProbeReport

    Raises
    ------
    MissingError
        There are no results, or no published tables in the folder.
    InputError
        A published table has other columns or values than it should, or a file cannot be written.
    DependencyError
        matplotlib is not installed.

    Examples
    --------
    >>> report_probes("lake", out="probes.html", png="figures").results  # doctest: +SKIP
    ('lake-gemma-2-2b-last-default',)
    """
    from saestore.probing.published import read_published
    from saestore.report.probes import probe_report

    page = _page(out)
    opened = open_lake(lake, catalog=catalog)
    tables = None if published is None else read_published(Path(published).expanduser())
    made = probe_report(opened, tables, stamp=stamp)
    files, pictures = [], []
    if data is not None:
        folder = Path(data).expanduser()
        files = [_write(folder / block.dataset / f"{block.name}.csv", block.csv(), "--data") for block in made.data]
    if png is not None:
        folder = Path(png).expanduser()
        pictures = [_write(folder / f"{each.name}.png", each.png(), "--png") for each in made.pictures]
    _write(page, made.html, "--out")
    return WrittenProbeReport(
        path=page,
        bytes=page.stat().st_size,
        results=made.results,
        data=tuple(files),
        pictures=tuple(pictures),
    )


def report_graph(
    lake: LakeLike,
    *,
    out: str | os.PathLike[str],
    graph: str = "default",
    labels: str | os.PathLike[str] | None = None,
    examples: int = 4,
    data: str | os.PathLike[str] | None = None,
    png: str | os.PathLike[str] | None = None,
    stamp: str | None = None,
    memory: str | int | None = None,
    catalog: Catalog | None = None,
) -> WrittenGraphReport:
    """Write a feature graph as one HTML page, which needs no network and no other file.

    It shows what was counted within each layer and between every two, the graph to search and to walk in, all
    correlations of the units with most edges as heat maps, degrees and components, communities, and the strongest
    edges, each with the rows where both of its units are strongest. The numbers of every plot are in the page too.

    Parameters
    ----------
    lake : Lake, str or path
    out : path
        The page.
    graph : str
        Name of a graph that `graph` made.
    labels : path, optional
        A table of what units are called; see `saestore.graphing.unit_labels.read_unit_labels`.
    examples : int
        Rows of each unit that is shown with examples, each of another sample; 0 for none.
    data : path, optional
        A folder for the numbers as CSV, the correlations of heat maps as `.npy` too.
    png : path, optional
        A folder for the figures as PNG files.
    stamp : str, optional
        A text for the page's foot, such as the date. Without it the same graph gives the same bytes.
    memory : str or int, optional
        The most to use, such as `8GiB`.

    Returns
    -------
    WrittenGraphReport

    Raises
    ------
    MissingError
        There is no such graph.
    InputError
        The labels cannot be used, or a file cannot be written.
    BudgetError
        The correlations do not fit the memory.
    DependencyError
        matplotlib or scipy is not installed.

    Examples
    --------
    >>> report_graph("lake", out="graph.html", data="numbers").graph  # doctest: +SKIP
    'default'
    """
    from saestore.budget import parse_memory
    from saestore.graphing.unit_labels import NO_LABELS, read_unit_labels
    from saestore.report.graph import graph_report

    if examples < 0:
        raise InputError(f"examples {examples} is below 0; give the rows of each unit to show, 0 for none")
    page = _page(out)
    opened = open_lake(lake, catalog=catalog)
    found = opened.open_graph(graph)
    named = NO_LABELS if labels is None else read_unit_labels(labels, found)
    made = graph_report(opened, found, labels=named, examples=examples, budget=parse_memory(memory), stamp=stamp)
    files, pictures = [], []
    if data is not None:
        folder = Path(data).expanduser()
        files = [_write(folder / f"{block.name}.csv", block.csv(), "--data") for block in made.data]
        files += [_write(folder / f"{name}.npy", _npy(r), "--data") for name, r in made.matrices.items()]
    if png is not None:
        folder = Path(png).expanduser()
        pictures = [_write(folder / f"{each.name}.png", each.png(), "--png") for each in made.pictures]
    _write(page, made.html, "--out")
    return WrittenGraphReport(
        path=page, bytes=page.stat().st_size, graph=found.name, data=tuple(files), pictures=tuple(pictures)
    )


def _page(out: str | os.PathLike[str]) -> Path:
    """Return where a page is to be, which is no folder (InputError)."""
    page = Path(out).expanduser()
    if page.is_dir():
        raise InputError(f"{page} is a folder; give the file to write, such as {page / 'report.html'}")
    return page


def _write(path: Path, content: str | bytes, option: str) -> Path:
    with whole_file(path, option=option) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def _npy(matrix: NDArray[np.float64]) -> bytes:
    content = io.BytesIO()
    np.save(content, matrix)
    return content.getvalue()
