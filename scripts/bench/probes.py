"""Probe with a sparse autoencoder as 'Are SAEs useful?' does; beside it the package sae-probes on the same inputs.

Six of the benchmark's data sets of 728 to 5,000 texts, the last token in layer 4 of MiniLM, and a Top-K SAE of 16,384
units trained here. Ours encodes them into the lake and probes the codes in the normal setting, k = 1 to 512, L1; the
package gets the same activations as files and the same SAE from SAELens, and does the same by its own path. Both start
from the disk in a process of their own, whose compiled code has run once. Every AUC is compared. Where k ends among
units of the same score, the package takes any of them, and ours the smaller ones.

At a million units codes are synthetic: the memory of probing them, and the plan of encoding all rows of the benchmark
with an SAE of that width.

`--keep FOLDER` keeps the lake for the next run: 0.5 GB.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from folders import kept_folder, new_folder
from records import Record, arguments, best_round, child, run

TASKS = (
    "36_sciq_tf",
    "41_truthqa_tf",
    "87_glue_cola",
    "95_toxic_is",
    "105_click_bait",
    "117_us_state_FL",
)
QUICK_TASKS = ("95_toxic_is",)
WARM = "96_spam_is"
MODEL, LAYER, SAE, HOOK = "MiniLM", 4, "topk", "blocks.4.hook_normalized_resid_post"
D_SAE, QUICK_D_SAE, K = 16_384, 1_024, 32
KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ROUNDS = 3

WIDE_UNITS, WIDE_ROWS, WIDE_K = 1_048_576, 5_000, 193
BENCHMARK_ROWS, BENCHMARK_INPUT, MEMORY = 334_092, 3_584, "4GiB"


# ------------------------------------------------------------------ tasks of child processes


def prepare(folder: str, tasks: list[str], d_sae: int) -> dict[str, Any]:
    """Extract the data sets, train and import the SAE, and write the package's files of activations."""
    import torch

    import saestore

    lake = saestore.init(f"{folder}/lake")
    for name in (*tasks, WARM):
        saestore.extract(
            lake,
            f"sae-probes/{name}",
            model=MODEL,
            layers=[LAYER],
            sample_type=["token", "last"],
            max_length=128,
            truncation_side="left",
            quiet=True,
        )
    saestore.sae_train(lake, out=f"{folder}/sae", layer=LAYER, d_sae=d_sae, k=K, samples=100_000, quiet=True)
    saestore.sae_import(lake, f"{folder}/sae", name=SAE, quiet=True)
    cache = Path(folder) / "cache" / f"model_activations_{MODEL}"
    cache.mkdir(parents=True)
    for name in (*tasks, WARM):
        x = lake.activations(name, sample_type="last").read()
        torch.save(torch.from_numpy(x), cache / f"{name}_{HOOK}.pt")
    return {}


def ours(folder: str, tasks: list[str]) -> dict[str, Any]:
    """Time encoding and probing; codes are kept in float32, as the package keeps them."""
    import saestore

    lake = saestore.open(f"{folder}/lake")
    for datasets in ([WARM], tasks):
        begun = time.perf_counter()
        saestore.encode(lake, SAE, datasets=datasets, sample_type="last", dtype="float32", postings=False, quiet=True)
        encoded = time.perf_counter() - begun
        found = saestore.probe(lake, datasets, methods="sae-l1", quiet=True)
    seconds = time.perf_counter() - begun
    assert len(found.rows) == len(tasks) * len(KS)
    rows = [
        {"dataset": name, "k": one.k, "auc": one.test_auc, "units": result.cells[0].units[: one.k]}
        for name in tasks
        for result in lake.probes(name)
        for one in result.cells[0].probes
    ]
    return {"seconds": seconds, "encoded": encoded, "rows": rows}


def package(folder: str, tasks: list[str]) -> dict[str, Any]:
    """Time the package's own path."""
    import json
    import warnings

    import sae_lens
    from sae_probes import run_sae_evals

    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    sae = sae_lens.SAE.load_from_disk(f"{folder}/sae")
    loaded = time.perf_counter() - begun
    for datasets in ([WARM], tasks):
        out = Path(folder) / "results"
        shutil.rmtree(out, ignore_errors=True)
        begun = time.perf_counter()
        run_sae_evals(
            sae, MODEL, HOOK, "l1", "normal", results_path=out, model_cache_path=f"{folder}/cache",
            datasets=datasets, device="cpu",
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    rows = [
        {"dataset": path.name.split(f"_{HOOK}")[0], "k": row["k"], "auc": row["test_auc"], "units": row["indices"]}
        for path in out.rglob("*.json")
        for row in json.loads(path.read_text())
    ]
    return {"seconds": seconds + loaded, "rows": rows}


def ties(folder: str, differing: list[dict[str, Any]]) -> dict[str, Any]:
    """Say how far apart the scores are of units that one of both chose and the other did not: ties, if anything."""
    import saestore
    from saestore.probing.sae_probes import SampleCodes
    from saestore.probing.settings import Cell, cells
    from saestore.probing.tasks import Task, read_task

    lake, widest = saestore.open(f"{folder}/lake"), 0.0
    for one in differing:
        task = read_task(lake.samples(one["dataset"]))
        assert isinstance(task, Task)
        (cell,) = cells(task, "normal")
        assert isinstance(cell, Cell)
        codes = SampleCodes(lake.codes(one["dataset"], sample_type="last"), cell.train)
        best = codes.rank(cell.train, cell.train_labels(task.labels), limit=2 * KS[-1])
        score = dict(zip(best.units.tolist(), best.scores.tolist(), strict=True))
        swapped = [score[unit] for unit in {*one["ours"]} ^ {*one["theirs"]}]
        widest = max(widest, (max(swapped) - min(swapped)) / max(swapped))
    return {"widest": widest}


def wide(folder: str) -> dict[str, Any]:
    """Probe codes of a million units."""
    import numpy as np

    import saestore
    from saestore.code_rows import code_arrays
    from saestore.encoding.plan import plan_grid
    from saestore.layout import CodesKey
    from saestore.rows import RowGroup
    from saestore.saes.config import SAEConfig
    from saestore.samples import SampleTable
    from saestore.tables import write_samples

    lake = saestore.init(f"{folder}/wide")
    labels = np.arange(WIDE_ROWS) % 2
    table = SampleTable(
        ids=[str(number) for number in range(WIDE_ROWS)],
        kind="text",
        contents=[f"text {number}" for number in range(WIDE_ROWS)],
        columns={"target": labels},
    )
    write_samples(lake.storage, "d", table)
    key = CodesKey("d", "m", "layer_0", "s", "last")
    config = SAEConfig(architecture="topk", d_in=BENCHMARK_INPUT, d_sae=WIDE_UNITS, k=WIDE_K)
    group = RowGroup.create(
        lake.storage,
        key.path,
        kind="codes",
        axis="row",
        grid=plan_grid(WIDE_ROWS, WIDE_K, config, 4),
        arrays=code_arrays(k=WIDE_K, d_sae=WIDE_UNITS, dtype="float32"),
        identity={"k": WIDE_K},
        attributes={"k": WIDE_K, "d_sae": WIDE_UNITS, "dtype": "float32", "signed": False, "sample_type": "last"},
    )
    rng = np.random.default_rng(0)
    for shard in group.missing_shards():
        rows = group.grid.shard(shard)
        n = rows.stop - rows.start
        indices = rng.integers(0, WIDE_UNITS, (n, WIDE_K)).astype(np.uint32)
        indices[:, :40] = 100 * labels[rows, None] + rng.integers(0, 400, (n, 40))  # what tells the classes apart
        indices.sort(axis=1)
        values = rng.gamma(2, 1, (n, WIDE_K)).astype(np.float32)
        values[:, 1:][indices[:, 1:] == indices[:, :-1]] = 0
        group.write_shard(shard, {"indices": indices, "values": values, "l0": np.full(n, WIDE_K, np.uint32)})
    begun = time.perf_counter()
    found = saestore.probe(lake, methods="sae-l1", quiet=True)
    return {"seconds": time.perf_counter() - begun, "auc": max(row["test_auc"] for row in found.rows)}


class Drawn:
    """Stands for the weights of an SAE in the plan; reading them is not in its time."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def content_hash(self) -> str:
        """Name these weights."""
        return "drawn"

    def rows(self, name: str, units: slice) -> Any:
        """Return rows of a matrix, all zeros."""
        import numpy as np

        return np.zeros((units.stop - units.start, self.config.d_in), np.float32)


def plan(memory: str) -> dict[str, Any]:
    """Plan to encode all rows of the benchmark with a million units, within some memory."""
    import psutil

    from saestore.budget import parse_memory
    from saestore.encoding.plan import Part, Resources, Source, plan_encode, plan_grid
    from saestore.layout import ActivationsKey
    from saestore.saes.config import SAEConfig

    config = SAEConfig(architecture="jumprelu", d_in=BENCHMARK_INPUT, d_sae=WIDE_UNITS)
    rows = BENCHMARK_ROWS
    part = Part(
        sae="wide",
        config=config,
        grid=plan_grid(rows, WIDE_K, config, 4),
        rows=rows,
        k=WIDE_K,
        value_bytes=4,
        state_bytes=0,
        checked=2_048,
        longest=0,
        is_new=True,
    )
    told = plan_encode(
        Source(ActivationsKey("all", "gemma-2-9b", "layer_20", "last"), rows, 2 * BENCHMARK_INPUT, rows),
        [part],
        Resources("cpu", "fp32", psutil.Process().memory_info().rss, parse_memory(memory), None),
        held_bytes=None,
        weights=Drawn(config),  # type: ignore[arg-type]
    )
    return {
        "peak": told.peak_bytes,
        "hours": (told.seconds or 0) / 3600,
        "tflop": told.flop / 1e12,
        "passes": told.weight_passes,
        "read": told.read_bytes,
    }


# ------------------------------------------------------------------ measuring


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure both paths, the memory at a million units, and the plan."""
    with kept_folder(given.keep) as folder:
        return measured(folder, quick=given.quick)


def measured(folder: Path, *, quick: bool) -> list[Record]:
    """Return all records."""
    tasks = list(QUICK_TASKS if quick else TASKS)
    place = folder / ("quick" if quick else "tasks")
    if not place.exists():
        with new_folder(place) as made:
            about = {"tasks": tasks, "d_sae": QUICK_D_SAE if quick else D_SAE}
            child(__file__, "prepare", {"folder": str(made), **about})
    rounds = []
    for _ in range(1 if quick else ROUNDS):
        for made in (place / "lake").glob("data/*/*/*/codes"):
            shutil.rmtree(made)
        rounds.append(child(__file__, "ours", {"folder": str(place), "tasks": tasks}))
    mine = best_round(rounds)
    theirs = child(__file__, "package", {"folder": str(place), "tasks": tasks})
    known = {(row["dataset"], row["k"]): row for row in theirs["rows"]}
    assert len(mine["rows"]) == len(known) == len(tasks) * len(KS)
    alike: dict[str, list[float]] = {task: [] for task in tasks}
    unlike: dict[str, list[float]] = {task: [] for task in tasks}
    differing = []
    for row in mine["rows"]:
        other = known[row["dataset"], row["k"]]
        apart = abs(row["auc"] - other["auc"])
        if {*row["units"]} == {*other["units"][: row["k"]]}:
            alike[row["dataset"]].append(apart)
        else:
            unlike[row["dataset"]].append(apart)
            differing.append({"dataset": row["dataset"], "ours": row["units"], "theirs": other["units"][: row["k"]]})
    told = child(__file__, "ties", {"folder": str(place), "differing": differing})
    what = f"{len(tasks)} tasks, {QUICK_D_SAE if quick else D_SAE:,} units, k = 1 to 512"
    records = [
        Record.of(
            f"{what}: the package's time over ours",
            theirs["seconds"],
            "s",
            versus="encode and probe",
            other=mine["seconds"],
            goal="" if quick else ">= 10",
        ),
        Record.of(f"{what}: of ours, encoding", mine["encoded"], "s"),
        Record.of(f"{what}: probes on the same units", sum(map(len, alike.values())), f"of {len(known)}"),
        *(
            Record.of(
                f"{task}: largest difference of AUC, {len(found)} probes on the same units",
                1e6 * max(found),
                "millionths",
                goal="<= 2000",
            )
            for task, found in alike.items()
        ),
        *(
            Record.of(
                f"{task}: largest difference of AUC, {len(found)} on others of the same score",
                1e6 * max(found),
                "millionths",
            )
            for task, found in unlike.items()
            if found
        ),
        Record.of(
            f"{what}: where units differ, how far their scores are apart",
            1e6 * told["widest"],
            "millionths",
            goal="<= 10",
        ),
        Record.of(f"{what}: peak memory of ours", mine["peak_bytes"] / 2**30, "GiB"),
        Record.of(f"{what}: peak memory of the package", theirs["peak_bytes"] / 2**30, "GiB"),
    ]
    shutil.rmtree(folder / "wide", ignore_errors=True)
    million = child(__file__, "wide", {"folder": str(folder)})
    shutil.rmtree(folder / "wide")
    records += [
        Record.of(f"{WIDE_ROWS:,} rows, {WIDE_UNITS:,} units: probe, k = 1 to 512", million["seconds"], "s"),
        Record.of(
            f"{WIDE_ROWS:,} rows, {WIDE_UNITS:,} units: peak memory", million["peak_bytes"] / 2**30, "GiB", goal="<= 2"
        ),
    ]
    told = child(__file__, "plan", {"memory": MEMORY})
    what = f"planned for {MEMORY}: {BENCHMARK_ROWS:,} rows of {BENCHMARK_INPUT:,}, {WIDE_UNITS:,} units"
    records += [
        Record.of(f"{what}: memory", told["peak"] / 2**30, "GiB", goal="<= 4"),
        Record.of(f"{what}: work", told["tflop"], "TFLOP"),
        Record.of(f"{what}: time on these cores, without reading weights", told["hours"], "h"),
        Record.of(f"{what}: passes over the weights", told["passes"], "passes"),
        Record.of(f"{what}: bytes read", told["read"] / 2**30, "GiB"),
    ]
    return records


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="keep the lake there for the next run: 0.5 GB")
    run(parser, measure, prepare, ours, package, ties, wide, plan)
