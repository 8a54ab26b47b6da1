"""Export dense matrices, and beside that write as many bytes plainly, and make the matrix in memory and save it.

Codes are synthetic (`synthetic_codes.py`): 262,144 rows of 32 of 16,384 units, of which 869 units are exported, 911 MB
of float32; `--large` writes 22 GB besides. Each export is a process of its own whose peak memory counts; imports are
not timed. A disk is measured by writing the same number of random bytes and having them on the disk (`fsync`), which
exports do too; it is measured again for each export, and the best of the rounds counts. Zarr and Parquet are
compressed, and held against the disk by the bytes of the matrix all the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import Record, arguments, best_round, child, run
from synthetic_codes import DATASET, write_codes_lake

ROWS, QUICK_ROWS, LARGE_ROWS = 262_144, 32_768, 6_291_456
K, D_SAE, UNITS, SEED = 32, 16_384, 869, 0
ROUNDS = 3
LAKE, PLAIN_BLOCK = "lake", 16 << 20
MEMORY_GIB = 1.5

ENDINGS = {"npy": ">= 0.8", "pt": ">= 0.8", "zarr": "", "npz": "", "parquet": ""}
"""What is written, and what part of the disk's rate it should reach."""

LARGE_ENDINGS = ("npy", "pt", "zarr")


@dataclass(frozen=True)
class Case:
    """One number of rows, and how it is measured."""

    rows: int
    quick: bool
    endings: tuple[str, ...]
    rounds: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the matrix."""
        return self.rows * UNITS * 4

    @property
    def name(self) -> str:
        """The size of the matrix."""
        return f"{self.n_bytes / 1e9:.2g} GB"

    def goal(self, bound: str) -> str:
        """Return a goal; a quick run has none."""
        return "" if self.quick else bound


# ------------------------------------------------------------------ tasks of child processes


def prepare(folder: str, rows: int) -> dict[str, Any]:
    """Write the lake."""
    write_codes_lake(f"{folder}/{LAKE}", rows=rows, k=K, d_sae=D_SAE, seed=SEED)
    return {}


def export(folder: str, ending: str) -> dict[str, Any]:
    """Export the matrix."""
    from saestore.verbs import dense

    begun = time.perf_counter()
    written = dense(f"{folder}/{LAKE}", DATASET, units=_units(), out=f"{folder}/matrix.{ending}", quiet=True)
    return {"seconds": time.perf_counter() - begun, "bytes": written.bytes}


def plain(folder: str, n_bytes: int) -> dict[str, Any]:
    """Write bytes that mean nothing, and have them on the disk."""
    block = os.urandom(PLAIN_BLOCK)
    begun = time.perf_counter()
    with open(f"{folder}/plain", "wb") as file:
        for first in range(0, n_bytes, PLAIN_BLOCK):
            file.write(memoryview(block)[: n_bytes - first])
        file.flush()
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - begun}


def in_memory(folder: str) -> dict[str, Any]:
    """Make the whole matrix and save it with numpy."""
    import numpy as np

    from saestore.verbs.names import open_lake

    begun = time.perf_counter()
    matrix = open_lake(f"{folder}/{LAKE}").codes(DATASET).dense(units=_units(), memory="64GiB")
    with open(f"{folder}/matrix.npy", "wb") as file:
        np.save(file, matrix)
        file.flush()
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - begun}


def _units() -> list[int]:
    import numpy as np

    return sorted(np.random.default_rng(SEED).choice(D_SAE, UNITS, replace=False).tolist())


# ------------------------------------------------------------------ measuring


def measure(given: argparse.Namespace) -> list[Record]:
    """Return the records of all sizes."""
    records = measured(
        Case(QUICK_ROWS if given.quick else ROWS, given.quick, tuple(ENDINGS), 1 if given.quick else ROUNDS)
    )
    if given.large:
        records += measured(Case(LARGE_ROWS, given.quick, LARGE_ENDINGS, 1))
    return records


def measured(case: Case) -> list[Record]:
    """Write the lake, export it, and compare."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        free = shutil.disk_usage(folder).free
        if free < 2 * case.n_bytes:
            raise SystemExit(
                f"{folder} has {free / 1e9:.0f} GB free; set TMPDIR to one with {2 * case.n_bytes / 1e9:.0f} GB"
            )
        child(__file__, "prepare", {"folder": folder, "rows": case.rows})
        records = [record for ending in case.endings for record in exports(case, folder, ending)]
        if case.rows <= ROWS:
            whole = best(case, folder, "in_memory", {"folder": folder})
            rate = case.n_bytes / whole["seconds"] / 1e6
            what = f"{case.name}: made in memory, then numpy.save"
            records.append(Record.of(what, rate, "MB/s"))
            records.append(Record.of(f"{what}: peak memory", whole["peak_bytes"] / 2**30, "GiB"))
    return records


def exports(case: Case, folder: str, ending: str) -> list[Record]:
    """Export in turn with a plain write of the bytes of the matrix."""
    disk = best(case, folder, "plain", {"folder": folder, "n_bytes": case.n_bytes})
    ours = best(case, folder, "export", {"folder": folder, "ending": ending})
    rates = [case.n_bytes / one["seconds"] / 1e6 for one in (ours, disk)]
    what, goal = f"{case.name}: .{ending}", case.goal(ENDINGS[ending])
    return [
        Record.of(what, rates[0], "MB/s", versus="plain write", other=rates[1], goal=goal),
        Record.of(f"{what}: size", ours["bytes"] / 1e6, "MB"),
        Record.of(f"{what}: peak memory", ours["peak_bytes"] / 2**30, "GiB", goal=case.goal(f"<= {MEMORY_GIB}")),
    ]


def best(case: Case, folder: str, task: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Run a task in each round, what it wrote removed each time."""
    rounds = []
    for _ in range(case.rounds):
        rounds.append(child(__file__, task, asked))
        for path in Path(folder).iterdir():
            if path.is_file():
                path.unlink()
            elif path.name != LAKE:
                shutil.rmtree(path)
    return best_round(rounds)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--large", action="store_true", help="22 GB besides: ten minutes, and 44 GB of disk")
    run(parser, measure, prepare, export, plain, in_memory)
