"""Prune, learn thresholds, detect and localise at the sizes of real data sets; beside it the dense pipeline.

Codes are synthetic (`synthetic_codes.py`) with 257 positions to a sample, the first of them special, and as many
samples as the data sets have; labels of positions are drawn from a seed in runs, a few per cent of the positions of
each concept. Everything starts from the disk: each measurement is a process of its own, whose compiled code has run
once on a small lake. The dense pipeline reads the same units as a dense matrix and takes numpy's quantiles and
comparisons of it, one pair of concept and unit after the other, as one does without postings.

`--keep FOLDER` keeps the lakes for the next run: 0.6 GB.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from folders import kept_folder, new_folder
from records import Record, arguments, best_round, child, run
from synthetic_codes import DATASET, LAYER, MODEL, PER_SAMPLE, SAE, codes_path, write_codes_lake

K, D_SAE, SEED, ROUNDS = 32, 65_536, 0, 3
SMALL = "small"


@dataclass(frozen=True)
class Size:
    """A data set's size."""

    name: str
    samples: int
    concepts: int
    units: int

    @property
    def rows(self) -> int:
        """Positions."""
        return self.samples * PER_SAMPLE


CLEVR = Size("CLEVR", 1_000, 6, 572)
COCO = Size("COCO", 5_500, 29, 1_000)
PASCAL = Size("Pascal", 4_503, 83, 1_000)
TINY = Size(SMALL, 48, 3, 20)
QUICK = Size("quick", 300, 6, 100)


# ------------------------------------------------------------------ tasks of child processes


def prepare(folder: str, samples: int, concepts: int) -> dict[str, Any]:
    """Write a lake with codes, postings and labels."""
    import numpy as np

    import saestore
    from saestore.labels import write_labels
    from saestore.layout import ModelKey

    lake = write_codes_lake(folder, rows=samples * PER_SAMPLE, k=K, d_sae=D_SAE, seed=SEED)
    saestore.index(lake, quiet=True)
    rng = np.random.default_rng(SEED)
    labels = np.zeros((samples * PER_SAMPLE, concepts), dtype=np.uint8)
    for concept in range(concepts):
        for sample in np.flatnonzero(rng.random(samples) < rng.uniform(0.05, 0.6)):
            start = sample * PER_SAMPLE + rng.integers(1, PER_SAMPLE - 40)
            labels[start : start + rng.integers(4, 40), concept] = 1
    names = [f"concept {number}" for number in range(concepts)]
    write_labels(lake.storage, ModelKey(DATASET, MODEL), "concepts", labels, names, {})
    return {}


def pruning(folder: str, name: str, units: int) -> dict[str, Any]:
    """Time statistics and pruning together."""
    import saestore

    for lake, target in ((SMALL, 10), (name, units)):
        begun = time.perf_counter()
        found = saestore.prune(
            f"{folder}/{lake}", name="bench", dead=2, ubiquitous=0.02, strength_percentile=60, target=target, quiet=True
        )
    return {"seconds": time.perf_counter() - begun, "kept": found[0].kept}


def learning(folder: str, name: str) -> dict[str, Any]:
    """Time thresholds."""
    import saestore

    return timed(folder, name, partial(saestore.thresholds, view="bench", quiet=True))


def detecting(folder: str, name: str) -> dict[str, Any]:
    """Time detection, its choice of units included."""
    import saestore

    return timed(folder, name, partial(saestore.detect, view="bench", quiet=True))


def localising(folder: str, name: str) -> dict[str, Any]:
    """Time direct localisation."""
    import saestore

    return timed(folder, name, partial(saestore.localise, view="bench", methods=["direct"], quiet=True))


def timed(folder: str, name: str, work: Callable[[str], object]) -> dict[str, Any]:
    """Time work on a lake, after the same on the small one, which loads what is compiled."""
    for lake in (SMALL, name):
        begun = time.perf_counter()
        work(f"{folder}/{lake}")
    return {"seconds": time.perf_counter() - begun}


def dense(folder: str, name: str) -> dict[str, Any]:
    """Time thresholds and detection of the dense matrix, which is read from the lake first."""
    import numpy as np

    import saestore
    from saestore.analysis.thresholds import PERCENTILES
    from saestore.analysis.truth import Truth, open_labels, truth_options

    codes = saestore.open(f"{folder}/{name}").codes(DATASET, sae=SAE, layer=LAYER).view("bench")
    labels = open_labels(codes.group.storage, codes.key.activations, "concepts")
    options = truth_options(codes.axis, labels, concepts=None, by=None, name="concepts", special=False)
    truth = Truth(codes.axis, labels, options)
    begun = time.perf_counter()
    matrix = codes.dense()
    cal, levels = truth.rows_of("cal"), 1 - np.array(PERCENTILES)
    c, u = len(options.concepts), matrix.shape[1]
    cuts = np.full((u, c, len(levels)), np.inf, dtype=np.float32)
    for concept in range(c):
        held = matrix[cal & (truth.row_labels(concept) == 1)]
        for unit in range(u):
            values = held[:, unit]
            values = values[values > 0]
            if len(values):
                cuts[unit, concept] = np.quantile(values, levels)
    learned = time.perf_counter() - begun
    hits = 0
    for split in ("cal", "test"):
        samples = np.flatnonzero(codes.samples.split == split)
        rows = truth.rows_of(split)
        most = np.zeros((len(codes.samples), u), dtype=np.float32)
        np.maximum.at(most, truth.sample_of_row[rows], matrix[rows])
        most, known = most[samples], truth.samples[:, samples]
        for concept in range(c):
            for unit in range(u):
                fires = most[:, unit, None] >= cuts[unit, concept]
                hits += int((fires & (known[concept] == 1)[:, None]).sum())
    return {"seconds": time.perf_counter() - begun, "learned": learned, "hits": hits}


def checking(folder: str, name: str) -> dict[str, Any]:
    """Time the comparison of stored results with the dense matrix; a difference ends the benchmark."""
    import saestore

    begun = time.perf_counter()
    found = saestore.compare(f"{folder}/{name}", view="bench")[0]
    if not found.is_equal:
        raise SystemExit(f"results differ: {[one.first for one in found.numbers if not one.is_equal][:3]}")
    return {"seconds": time.perf_counter() - begun, "numbers": sum(one.numbers for one in found.numbers)}


# ------------------------------------------------------------------ measuring


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure every size, best of three rounds."""
    with kept_folder(given.keep) as folder:
        return measured(folder, quick=given.quick)


def measured(folder: Path, *, quick: bool) -> list[Record]:
    """Return all records."""
    sizes = [QUICK] if quick else [CLEVR, COCO, PASCAL]
    for size in (TINY, *sizes):
        if not (folder / size.name).exists():
            with new_folder(folder / size.name) as made:
                about = {"samples": size.samples, "concepts": size.concepts}
                child(__file__, "prepare", {"folder": str(made), **about})
    records = []
    for size in sizes:
        records += measured_size(folder, size, quick=quick)
    return records


def measured_size(folder: Path, size: Size, *, quick: bool) -> list[Record]:
    """Return the records of one size."""
    what = f"{size.name}, {size.rows / 1e6:.2f} M rows"
    pairs = f"{size.concepts} concepts x {size.units} units"
    pruned = best(folder, size, "pruning", ["stats", "views"], quick, units=size.units)
    learned = best(folder, size, "learning", ["views/*/bench/thresholds"], quick)
    detected = best(folder, size, "detecting", ["views/*/bench/detection"], quick)
    localised = best(folder, size, "localising", ["views/*/bench/localisation"], quick)
    checked = child(__file__, "checking", {"folder": str(folder), "name": size.name})
    both = learned["seconds"] + detected["seconds"]
    peak = max(learned["peak_bytes"], detected["peak_bytes"]) / 2**30
    goal = {} if quick else {"COCO": "<= 2.0"}
    records = [
        Record.of(f"{what}: statistics and pruning", pruned["seconds"], "s", goal=goal.get(size.name, "")),
        Record.of(f"{what}: peak memory of that", pruned["peak_bytes"] / 2**30, "GiB"),
        Record.of(
            f"{what}: thresholds, {pairs}",
            learned["seconds"],
            "s",
            goal="<= 1.0" if size is CLEVR and not quick else "",
        ),
        Record.of(
            f"{what}: thresholds and detection, {pairs}",
            both,
            "s",
            goal="<= 20" if size is PASCAL and not quick else "",
        ),
        Record.of(f"{what}: peak memory of that", peak, "GiB", goal="<= 3" if size is PASCAL and not quick else ""),
        Record.of(f"{what}: direct localisation", localised["seconds"], "s"),
        Record.of(f"{what}: numbers equal to the dense matrix", checked["numbers"], "numbers"),
    ]
    if size is not COCO:
        other = child(__file__, "dense", {"folder": str(folder), "name": size.name})
        records += [
            Record.of(f"{what}: dense thresholds and detection", other["seconds"], "s", versus="ours", other=both),
            Record.of(f"{what}: peak memory of that", other["peak_bytes"] / 2**30, "GiB", versus="ours", other=peak),
        ]
    return records


def best(folder: Path, size: Size, task: str, written: list[str], quick: bool, **more: Any) -> dict[str, Any]:
    """Run a task in each round, what it writes removed before each."""
    rounds = []
    for _ in range(1 if quick else ROUNDS):
        for lake in (SMALL, size.name):
            for pattern in written:
                for path in (folder / lake / codes_path()).glob(pattern):
                    shutil.rmtree(path)
        rounds.append(child(__file__, task, {"folder": str(folder), "name": size.name, **more}))
    return best_round(rounds)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="keep the lakes there for the next run: 0.6 GB")
    run(parser, measure, prepare, pruning, learning, detecting, localising, dense, checking)
