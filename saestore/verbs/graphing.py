"""The verb graph: which units go together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saestore.verbs.names import LakeLike, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.graphing.build import GraphPlan


@dataclass(frozen=True)
class MadeGraph:
    """What `graph` did.

    name : of the graph
    url : where it is
    plan : what making it takes
    summary : as JSON values; None of a dry run
    files : that were written
    """

    name: str
    url: str
    plan: GraphPlan
    summary: dict[str, Any] | None
    files: tuple[Path, ...] = ()


def graph(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    layers: str | int | Sequence[str | int] | None = None,
    saes: str | Sequence[str] | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    units: str | None = None,
    pooling: Literal["mean", "max"] | None = None,
    where: str | None = None,
    split: str | Sequence[str] | None = None,
    name: str = "default",
    min_r: float = 0.3,
    min_support: int = 5,
    max_base_rate: float = 0.9,
    top: int | None = None,
    max_q: float = 1.0,
    max_edges: int = 10_000_000,
    null: bool = False,
    seed: int = 42,
    out: str | os.PathLike[str] | None = None,
    matrices: bool = False,
    device: str = "cpu",
    memory: str | int | None = None,
    dry_run: bool = False,
    scheduler: str | None = None,
    quiet: bool = False,
    catalog: Catalog | None = None,
) -> MadeGraph:
    """Join units that are correlated to a graph, within each layer or SAE and between every two of them.

    What there is of a graph that was stopped is used; one that is complete is left alone.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Names, with * and ?; their rows are taken one after the other. Default: all that have such rows.
    layers : optional
        Default: all that are stored.
    saes : str or sequence of str, optional
        Names, with * and ?: codes of these are joined. Default: activations are.
    sample_type, model : str, optional
        Default: the only one there is.
    view : str, optional
        Only the units of this view of the codes.
    units : str, optional
        Only these units or dimensions of each end, as `0:100`.
    pooling : {"mean", "max"}, optional
        Join the codes of a sample's positions to one row.
    where : str, optional
        An expression on samples and positions: only these rows count. Special tokens never do.
    split : str or sequence of str, optional
        Only rows of these splits.
    name : str
        Of the graph.
    min_r, min_support, max_base_rate, top, max_q, max_edges, null, seed
        See `saestore.graphing.options.GraphOptions`.
    out : path, optional
        A folder for the graph in files: edges and units as Parquet, GraphML, the adjacency of scipy, the summary.
    matrices : bool
        With `out`: all correlations of every pair of ends too, as `.npy`.
    device : str
        Where sums are made: `auto`, `cpu`, `cuda` or `mps`.
    memory : str or int, optional
        The most to use, such as `8GiB`.
    dry_run : bool
        Read every end once, say what the graph takes, and stop.
    scheduler : str, optional
        Address of a Dask scheduler.
    quiet : bool
        Show no progress.

    Returns
    -------
    MadeGraph

    Raises
    ------
    MissingError, InputError
        Nothing fits, ends do not have the same rows, or an option is out of range.
    ConflictError
        A graph of this name was made differently.
    BudgetError
        Entries, correlations or edges are too many; the remedy is told.

    Examples
    --------
    >>> graph("lake", saes="topk-4k", sample_type="token").summary["counts"]  # doctest: +SKIP
    """
    from saestore.budget import parse_memory
    from saestore.graphing.build import joined_pairs, make_graph, plan_graph
    from saestore.graphing.choice import EndChoice, chosen_ends
    from saestore.graphing.measuring import measured
    from saestore.graphing.options import GraphOptions

    opened = open_lake(lake, catalog=catalog)
    options = GraphOptions(min_r, min_support, max_base_rate, top, max_q, max_edges, null, seed)
    choice = EndChoice(
        datasets=_listed(datasets),
        layers=[layers] if isinstance(layers, str | int) else layers,
        saes=_listed(saes),
        sample_type=sample_type,
        model=model,
        view=view,
        units=units,
        pooling=pooling,
        where=where,
        split=split,
    )
    ends, pairs = joined_pairs(chosen_ends(opened, choice), None)
    known = measured(ends, options, quiet=quiet)
    plan, blocks = plan_graph(known, pairs, parse_memory(memory))
    if dry_run:
        return MadeGraph(name, opened.url, plan, None)
    made = make_graph(
        opened.storage, name, known, pairs, blocks, options, device=device, scheduler=scheduler, quiet=quiet
    )
    files: list[Path] = []
    if out is not None:
        from saestore.graphing.files import write_files, write_matrices

        files += write_files(made, Path(out))
        if matrices:
            files += write_matrices(known, pairs, Path(out), budget=parse_memory(memory), device=device)
    return MadeGraph(name, opened.url, plan, dict(made.summary), tuple(files))


def _listed(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else list(given) if given else None
