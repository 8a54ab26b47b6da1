"""The verb steer: units of a graph, ready to be changed inside a running model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saestore.verbs.names import LakeLike, Say, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class WrittenBundle:
    """A steering bundle that was written; `saestore.steer.load_bundle` reads it.

    files : the arrays and the JSON
    graph, sae, layer : names in the lake; where a transcoder writes is its layer
    model, revision, hook : of the model; the last two are None where the lake does not know them
    units, edges : how many; an edge joins two units
    alone : how many units have no edge in the bundle
    selection : how a unit becomes active: `threshold`, `top_k`, or `none` where that cannot be told of a unit alone
    """

    files: tuple[Path, Path]
    graph: str
    sae: str
    layer: str
    model: str
    revision: str | None
    hook: str | None
    units: int
    edges: int
    alone: int
    selection: str


def steer_bundle(
    lake: LakeLike,
    *,
    out: str | os.PathLike[str],
    graph: str = "default",
    units: Sequence[int] | None = None,
    end: str | None = None,
    depth: int = 1,
    top: int | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> WrittenBundle:
    """Write units of a graph and their neighbourhood as a bundle, to steer them with `saestore.steer.apply`.

    Parameters
    ----------
    lake : Lake, str or path
    out : path
        What the two files are called, `OUT.safetensors` and `OUT.json`; files of that name are replaced.
    graph : str
        Name of the graph.
    units : sequence of int, optional
        Original ids. Default: every unit that has an edge within the end.
    end : str, optional
        `LAYER/SAE` of the graph, whose units they are; default the only one.
    depth : int
        How many edges away from one of `units` a unit may be.
    top : int, optional
        At most so many neighbours are taken in for each unit, the strongest. An edge between two units of the bundle
        stays if it is among so many strongest of one of them. Default: all.
    memory : str or int, optional
        The most to use, such as `8GiB`.
    say : callable, optional
        Takes a line where something cannot be checked, such as which version of the SAE made imported codes.

    Returns
    -------
    WrittenBundle

    Raises
    ------
    MissingError
        There is no such graph, end or unit, or the SAE or the codes of the graph are no longer in the lake.
    InputError
        The end is of activations, the graph was made with another version of the SAE or of the codes, an option is out
        of range, or a file cannot be written.
    BudgetError
        The units do not fit into the memory.
    DependencyError
        safetensors or pyarrow is not installed.

    Examples
    --------
    >>> steer_bundle("lake", units=[5, 17], end="layer_4/topk-4k", out="happy").files  # doctest: +SKIP
    """
    import numpy as np

    from saestore.steer.files import bundle_paths, write_bundle
    from saestore.steer.from_graph import bundle_from_graph

    place = Path(out)
    bundle_paths(place)  # a name that cannot be is refused before the work
    opened = open_lake(lake, catalog=catalog)
    bundle = bundle_from_graph(opened, graph, units, end=end, depth=depth, top=top, memory=memory, say=say)
    files = write_bundle(place, bundle)
    return WrittenBundle(
        files=files,
        graph=graph,
        sae=bundle.sae.name,
        layer=bundle.model.layer,
        model=bundle.model.model_id,
        revision=bundle.model.revision,
        hook=bundle.model.hook,
        units=len(bundle.units),
        edges=len(bundle.source) // 2,
        alone=len(bundle.units) - len(np.unique(bundle.source)),
        selection=bundle.sae.selection,
    )
