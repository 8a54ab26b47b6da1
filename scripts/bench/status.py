"""`saestore status` on a lake with 200 groups of codes, the command as a user starts it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from records import Record, arguments, run

GROUPS = 200


def build(folder: str) -> None:
    """Make 200 groups of codes over 20 data sets, two shards each."""
    import numpy as np

    from saestore.code_rows import code_arrays
    from saestore.lake import Lake
    from saestore.layout import CodesKey
    from saestore.rows import Grid, RowGroup
    from saestore.samples import SampleTable
    from saestore.tables import write_samples

    lake = Lake.create(folder)
    rows, k = 1_000, 8
    for dataset in range(20):
        table = SampleTable(ids=("0",), kind="text", contents=("a",))
        write_samples(lake.storage, f"dataset {dataset}", table)
        for number in range(GROUPS // 20):
            key = CodesKey(f"dataset {dataset}", "model", f"layer_{number}", "sae", "token")
            group = RowGroup.create(
                lake.storage,
                key.path,
                kind="codes",
                axis="row",
                grid=Grid.plan(rows, shard_rows=512, chunk_rows=256),
                arrays=code_arrays(k=k, d_sae=1024, dtype="float16"),
                identity={"made": "bench"},
                attributes={"k": k, "d_sae": 1024, "dtype": "float16", "quality": {"explained_variance": None}},
            )
            for shard in range(group.grid.n_shards):
                span = group.grid.shard(shard)
                n = span.stop - span.start
                group.write_shard(
                    shard,
                    {
                        "indices": np.zeros((n, k), "uint16"),
                        "values": np.ones((n, k), "float16"),
                        "l0": np.full(n, k, "uint32"),
                    },
                )


def measure(given: argparse.Namespace) -> list[Record]:
    """Time the whole command, the best of some runs."""
    with tempfile.TemporaryDirectory() as folder:
        build(folder)
        command = [str(Path(sys.executable).with_name("saestore")), "status", folder, "--json"]
        best = float("inf")
        for _ in range(3 if given.quick else 7):
            begun = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            best = min(best, time.perf_counter() - begun)
        found: Any = json.loads(done.stdout)
        rows = found["groups"] if isinstance(found, dict) else found
        counted = sum(row["kind"] == "codes" for row in rows)
        if counted != GROUPS:
            raise SystemExit(f"status listed {counted} groups of codes, {GROUPS} are there")
    return [Record.of(f"saestore status, {GROUPS} groups of codes, whole command", best, "s", goal="<= 1.0")]


if __name__ == "__main__":
    run(arguments(__doc__), measure)
