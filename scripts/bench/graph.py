"""Make feature graphs of wide SAEs; beside it scipy's product of the same sparse matrices, and numpy of dense columns.

Synthetic codes of 1.4 M rows, k = 32, 65,536 units, of two layers: the graph within a layer, and that between two,
|r| >= 0.3, from the stored codes to the stored edges. scipy does the one within a layer: both products in memory, as
nobody's array of 65,536 x 65,536 fits. Four layers of 5,000 rows x 768 dense columns: all ten matrices.

`--keep FOLDER` keeps the lakes for the next run: 1.4 GB.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from folders import kept_folder, new_folder
from records import Record, arguments, best_round, child, run

ROWS, D_SAE, K, MIN_R = 1_400_000, 65_536, 32, 0.3
QUICK_ROWS, QUICK_D_SAE = 50_000, 4_096
WIDE_ROWS, WIDE_D_SAE = 1_400_000, 1_048_576
LAYERS = ("layer_0", "layer_1")
DENSE_ROWS, DENSE_WIDTH, DENSE_LAYERS = 5_000, 768, 4
ROUNDS = 2


# ------------------------------------------------------------------ tasks of child processes


def prepare(folder: str, rows: int, d_sae: int, layers: list[str]) -> dict[str, Any]:
    """Write a lake of synthetic codes."""
    from synthetic_codes import write_codes_lake

    write_codes_lake(folder, rows=rows, k=K, d_sae=d_sae, layers=layers)
    return {}


def graph(folder: str, layers: list[str], across: bool) -> dict[str, Any]:
    """Make the graph within a layer, or between two, from the lake to the lake; compiled code has run once."""
    from synthetic_codes import DATASET

    import saestore
    from saestore.graphing.options import GraphOptions

    lake = saestore.open(folder)
    codes = [lake.codes(DATASET, layer=layer) for layer in layers]
    lake.graph([one.where("id == 's0'") for one in codes], name="warm", quiet=True)
    name = "across" if across else "within"
    begun = time.perf_counter()
    made = lake.graph(codes[0], codes[1] if across else None, name=name, options=GraphOptions(MIN_R), quiet=True)
    seconds = time.perf_counter() - begun
    result = {"seconds": seconds, "edges": made.summary["counts"]["edges"]}
    shutil.rmtree(Path(folder) / "graphs")
    return result


def scipy_product(folder: str) -> dict[str, Any]:
    """Do the same within a layer by two products of scipy's sparse matrices."""
    import numpy as np
    from synthetic_codes import DATASET

    import saestore

    codes = saestore.open(folder).codes(DATASET, layer=LAYERS[0]).where(special=False)
    begun = time.perf_counter()
    x = codes.to_scipy().astype(np.float64)
    n = x.shape[0]
    mean = np.asarray(x.sum(axis=0)).ravel() / n
    deviation = np.sqrt(np.maximum(np.asarray(x.multiply(x).sum(axis=0)).ravel() / n - mean**2, 0))
    joint = (x.T @ x).tocoo()
    upper = joint.row < joint.col
    row, column, sums = joint.row[upper], joint.col[upper], joint.data[upper]
    del joint, upper
    r = (sums / n - mean[row] * mean[column]) / (deviation[row] * deviation[column])
    kept = np.abs(r) >= MIN_R
    counts = x.astype(bool).astype(np.float64)
    both = (counts.T @ counts).tocsr()
    support = np.asarray(both[row[kept], column[kept]]).ravel()
    active = np.asarray(counts.sum(axis=0)).ravel()
    chance = active[row[kept]] * active[column[kept]] / n
    edges = int(np.count_nonzero(np.maximum(support, chance) >= 5))
    return {"seconds": time.perf_counter() - begun, "edges": edges}


def dense(rows: int) -> dict[str, Any]:
    """Join columns of four layers by our graph's products."""
    import numpy as np

    from saestore.kernels.correlation import DenseSums

    x = np.random.default_rng(0).normal(size=(DENSE_LAYERS, rows, DENSE_WIDTH)).astype(np.float32)
    begun = time.perf_counter()
    for a in range(DENSE_LAYERS):
        for b in range(a, DENSE_LAYERS):
            sums = DenseSums(DENSE_WIDTH, DENSE_WIDTH)
            sums.add(x[a], x[b])
            sums.r()
    return {"seconds": time.perf_counter() - begun}


def dense_numpy(rows: int) -> dict[str, Any]:
    """Do the same by `np.corrcoef` of each two layers."""
    import numpy as np

    x = np.random.default_rng(0).normal(size=(DENSE_LAYERS, rows, DENSE_WIDTH)).astype(np.float32)
    begun = time.perf_counter()
    for a in range(DENSE_LAYERS):
        for b in range(a, DENSE_LAYERS):
            np.corrcoef(x[a], x[b], rowvar=False)[:DENSE_WIDTH, DENSE_WIDTH:]
    return {"seconds": time.perf_counter() - begun}


# ------------------------------------------------------------------ the table


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure ours and the contenders in turn, each in processes of its own."""
    quick = given.quick
    rows, d_sae = (QUICK_ROWS, QUICK_D_SAE) if quick else (ROWS, D_SAE)
    rounds = range(1 if quick else ROUNDS)
    records = []
    with kept_folder(given.keep) as folder:
        lake = _lake(folder, rows, d_sae, LAYERS)
        of = {"folder": str(lake), "layers": list(LAYERS)}
        within, across, scipy = [], [], []
        for _ in rounds:
            within.append(child(__file__, "graph", {**of, "layers": [LAYERS[0]], "across": False}))
            across.append(child(__file__, "graph", {**of, "across": True}))
            scipy.append(child(__file__, "scipy_product", {"folder": str(lake)}))
        size = f"{rows:,} rows x {d_sae:,} units"
        ours, theirs = best_round(within), best_round(scipy)
        if ours["edges"] != theirs["edges"]:
            raise SystemExit(f"ours found {ours['edges']} edges, scipy {theirs['edges']}")
        what = f"graph within a layer, {size}, {ours['edges']:,} edges, lake to lake"
        records.append(Record.of(what, ours["seconds"], "s", goal="<= 180"))
        versus = "scipy sparse products, codes in memory"
        speed = theirs["seconds"] / ours["seconds"]
        records.append(Record.of("its speed", speed, "x", versus=versus, other=1.0))
        records.append(Record.of("its peak memory", ours["peak_bytes"] / 2**30, "GiB", goal="<= 8"))
        records.append(
            Record.of(
                "its peak memory", ours["peak_bytes"] / 2**30, "GiB", versus=versus, other=theirs["peak_bytes"] / 2**30
            )
        )
        other = best_round(across)
        what = f"graph between two layers, {size}, {other['edges']:,} edges, lake to lake"
        records.append(Record.of(what, other["seconds"], "s", goal="<= 180"))
        records.append(Record.of("its peak memory", other["peak_bytes"] / 2**30, "GiB", goal="<= 8"))
        if not quick:
            wide = _lake(folder, WIDE_ROWS, WIDE_D_SAE, LAYERS[:1])
            found = child(__file__, "graph", {"folder": str(wide), "layers": [LAYERS[0]], "across": False})
            what = f"graph within a layer, {WIDE_ROWS:,} rows x {WIDE_D_SAE:,} units, {found['edges']:,} edges"
            records.append(Record.of(what, found["seconds"], "s"))
            records.append(Record.of("its peak memory", found["peak_bytes"] / 2**30, "GiB", goal="<= 8"))
    own, numpy = [], []
    for _ in rounds:
        own.append(child(__file__, "dense", {"rows": DENSE_ROWS}))
        numpy.append(child(__file__, "dense_numpy", {"rows": DENSE_ROWS}))
    seconds = best_round(own)["seconds"]
    pairs = DENSE_LAYERS * (DENSE_LAYERS + 1) // 2
    what = f"all {pairs} matrices of {DENSE_LAYERS} layers x {DENSE_WIDTH} columns, {DENSE_ROWS:,} rows"
    records.append(Record.of(what, seconds, "s", goal="<= 10"))
    speed = best_round(numpy)["seconds"] / seconds
    records.append(Record.of("its speed", speed, "x", versus="np.corrcoef of each two layers", other=1.0))
    return records


def _lake(folder: Path, rows: int, d_sae: int, layers: tuple[str, ...]) -> Path:
    path = folder / f"{rows}x{d_sae}"
    if not path.exists():
        with new_folder(path) as partial:
            child(__file__, "prepare", {"folder": str(partial), "rows": rows, "d_sae": d_sae, "layers": list(layers)})
    return path


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="where the lakes stay for the next run")
    run(parser, measure, prepare, graph, scipy_product, dense, dense_numpy)
