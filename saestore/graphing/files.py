"""A feature graph as files that other tools read: Parquet, GraphML, scipy's sparse matrices, JSON and `.npy`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saestore._whole_files import whole_file
from saestore.bridges.packages import imported
from saestore.budget import require_memory
from saestore.formats.tables import write_table
from saestore.graphing.measuring import Measured
from saestore.graphing.options import GraphOptions
from saestore.graphing.pairs import DensePairsTask
from saestore.graphing.plan import dense_bytes
from saestore.graphs import FeatureGraph


def write_files(graph: FeatureGraph, folder: Path) -> list[Path]:
    """Write a graph to a folder, each file whole or not at all.

    `edges.parquet` and `units.parquet`; `graph.graphml` of the connected units; `adjacency.npz`, by
    `scipy.sparse.load_npz`, whose rows are those of the units; `summary.json`.
    """
    sparse = imported("scipy.sparse", "an adjacency matrix")
    edges, units = graph.edges(), graph.units()
    files = [write_table(folder / f"{name}.parquet", frame) for name, frame in (("edges", edges), ("units", units))]
    with whole_file(folder / "adjacency.npz") as partial, open(partial, "wb") as file:
        sparse.save_npz(file, graph.adjacency())
    with whole_file(folder / "summary.json") as partial:
        partial.write_text(json.dumps(graph.summary, indent=2), encoding="utf-8")
    with whole_file(folder / "graph.graphml") as partial:
        _write_graphml(graph, partial)
    return [*files, folder / "adjacency.npz", folder / "summary.json", folder / "graph.graphml"]


def write_matrices(
    known: Sequence[Measured], pairs: Sequence[tuple[int, int]], folder: Path, *, budget: int, device: str = "cpu"
) -> list[Path]:
    """Write all correlations of every pair of ends as `correlation_<a>_<b>.npy`, float64, rows of a and columns of b.

    0 stands where a unit is dead, constant or always on.

    Raises
    ------
    BudgetError
        They do not fit the memory.
    """
    products = sum(len(known[a].takes_part) * len(known[b].takes_part) for a, b in pairs)
    widths = [len(one.takes_part) for one in known]
    require_memory(
        dense_bytes(widths, products, min(one.end.block_rows for one in known)),
        budget=budget,
        what=f"all correlations of {max(widths):,} units and more",
        remedy="choose units (--units 0:100), or give more --memory",
    )
    storage = known[0].end.sources[0].group.storage
    numbers = dict(enumerate(pairs))
    task = DensePairsTask(
        storage,
        "",
        "",
        numbers,
        tuple(one.end for one in known),
        tuple(one.takes_part for one in known),
        GraphOptions(),
        False,
        device,
    )
    files = []
    for number, r in task.correlations():
        a, b = (known[place].end.name.replace("/", ".") for place in numbers[number])
        path = folder / f"correlation_{a}_{b}.npy"
        with whole_file(path) as partial, open(partial, "wb") as file:
            np.save(file, r)
        files.append(path)
    return files


def _write_graphml(graph: FeatureGraph, path: Path) -> None:
    igraph = imported("igraph", "GraphML")
    edges, units = graph.edges(), graph.units()
    first, second = graph.edge_places()
    connected = units["degree"].to_numpy() > 0
    place = np.cumsum(connected) - 1
    chosen = units[connected]
    out = igraph.Graph(n=len(chosen), edges=np.stack([place[first], place[second]], axis=1))
    out.vs["name"] = [f"{end}:{unit}" for end, unit in zip(chosen["end"], chosen["unit"], strict=True)]
    out.vs["end"] = chosen["end"].astype(str).tolist()
    for name in ("unit", "component", "community", "degree"):
        out.vs[name] = chosen[name].astype(int).tolist()
    out.vs["base_rate"] = chosen["base_rate"].astype(float).tolist()
    out.es["weight"] = edges["r"].tolist()
    for name in ("lift", "mutual_information", "jaccard", "q"):
        out.es[name] = edges[name].astype(float).tolist()
    out.write_graphml(str(path))
