"""What the torture tests kill in a process of its own: `python -m tests.torture.writers JOB FOLDER KILL_AT SIGNAL`.

Puts are counted over the whole process; at number KILL_AT the process gets SIGNAL, before the object is written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import saestore
from saestore import activations, postings, unit_stats
from saestore.analysis import pairs
from saestore.encoding import plan as encode_plan
from saestore.encoding.writer import encode
from saestore.extraction import writer
from saestore.formats import importer_codes
from saestore.formats.importer import import_activations, import_codes
from saestore.indexing import stats
from saestore.indexing import writer as indexing
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.saes import lake as sae_lake
from saestore.saes.lake import write_sae
from saestore.samples import SampleTable, read_samples
from saestore.storage import LocalStorage
from saestore.tables import write_samples
from tests.analysis import concept_lake
from tests.built_lake import sample_table, sparse_rows, top_k, write_codes
from tests.small_lake import add_activations, random_sae

Patch = Callable[[Any, str, Any], None]
"""Sets an attribute: `setattr`, or a monkeypatch's that is undone."""

PARTS = (7, 8, 4)
"""Samples of each file that is appended to the one before, of `PER_SAMPLE` rows each."""

PER_SAMPLE = 4


def prepare_encode(folder: Path) -> None:
    lake = Lake.create(folder / "lake")
    x = np.random.default_rng(0).normal(size=(900, 32)).astype(np.float32)
    write_sae(lake.storage, "s", random_sae("jumprelu", d_in=32, d_sae=256), quiet=True)
    add_activations(lake, "a", x)
    add_activations(lake, "b", x[:300])
    add_activations(lake, "b", x[300:500], part=1)


def run_encode(folder: Path, patch: Patch) -> None:
    patch(encode_plan, "_SHARD_ROWS", 200)  # five shards and two
    patch(encode_plan, "CHUNK_ROWS", 100)
    encode(Lake.open(folder / "lake"), "s", force=True, quiet=True)


def run_import(folder: Path, patch: Patch) -> None:
    patch(sae_lake, "_SHARD_BYTES", 64 * 32 * 4)  # four shards
    patch(sae_lake, "_CHUNK_BYTES", 16 * 32 * 4)
    lake = Lake.create(folder / "lake")
    write_sae(lake.storage, "s", random_sae("jumprelu", d_in=32, d_sae=256), quiet=True)


def run_extract(folder: Path, patch: Patch) -> None:
    patch(writer, "shard_rows_for", lambda d_in, dtype: 64)
    patch(writer, "windows", lambda lengths: [(at, min(at + 8, len(lengths))) for at in range(0, len(lengths), 8)])
    texts = [f"{'the cat sat ' * (place % 5)}on mat {place}" for place in range(40)]
    for stop in (28, 40):  # the table grows
        writer.extract(
            Lake.create(folder / "lake"),
            {"d": read_samples(texts[:stop])},
            model=writer.ModelSpec("tiny", str(folder.parent / "model"), device="cpu"),
            layers=[0, 2],
            sample_type=["token", "mean"],
            quiet=True,
        )


def imported_rows() -> tuple[np.ndarray, np.ndarray]:
    """Activations and dense codes of the rows of all files; no row is zero."""
    n = sum(PARTS) * PER_SAMPLE
    dense = sparse_rows(n, 40, 0)
    dense[np.arange(n), np.arange(n) % 40] = 3.0
    return np.random.default_rng(0).normal(size=(n, 7)).astype(np.float32), dense


def prepare_append(folder: Path) -> None:
    import torch

    x, dense = imported_rows()
    values, units = torch.from_numpy(dense).topk(9)
    for part, first in enumerate(np.cumsum([0, *PARTS[:-1]]) * PER_SAMPLE):
        rows = slice(first, first + PARTS[part] * PER_SAMPLE)
        np.save(folder / f"{part}.npy", x[rows])
        codes = {"indices": units[rows].clone(), "values": values[rows].clone(), "format": "sparse_topk", "topk": 9}
        torch.save(codes, folder / f"{part}.pt")
    Lake.create(folder / "lake")
    _import_part(folder, 0)


def run_append(folder: Path, patch: Patch) -> None:
    patch(activations, "_SHARD_BYTES", 16 * 7 * 4)  # two shards and one
    patch(importer_codes, "_SHARD_ROWS", 16)
    _import_part(folder, 1)
    _import_part(folder, 2)


def _import_part(folder: Path, part: int) -> None:
    """Import one of the files; the last comes without a table of its samples and without codes."""
    lake = Lake.open(folder / "lake")
    place: dict[str, Any] = {"dataset": "d", "model": "m", "layer": 3, "sample_type": "token", "quiet": True}
    place |= {"per_sample": PER_SAMPLE, "append": part > 0}
    texts = [f"text {part}.{number}" for number in range(PARTS[part])]
    table = SampleTable(ids=texts, kind="text", contents=texts) if part < 2 else None
    import_activations(lake, folder / f"{part}.npy", samples=table, **place)
    if part < 2:
        import_codes(lake, folder / f"{part}.pt", sae="s", d_sae=40, **place)


def prepare_index(folder: Path) -> None:
    lake = Lake.create(folder / "lake")
    write_samples(lake.storage, "d", sample_table(900))
    write_codes(lake.storage, CodesKey("d", "m", "layer_3", "s", "mean"), top_k(sparse_rows(900, 200, 0), 6))


def run_index(folder: Path, patch: Patch) -> None:
    patch(postings, "SEGMENT_ROWS", 400)  # three segments of some shards each
    for module in (postings, indexing):
        patch(module, "SHARD_ENTRIES", 512)
    patch(postings, "CHUNK_ENTRIES", 128)
    for module in (unit_stats, stats):
        patch(module, "SHARD_UNITS", 64)
    lake = Lake.open(folder / "lake")
    keys = list(lake.code_keys())
    indexing.index(lake.storage, keys, quiet=True)
    stats.write_stats(lake.storage, keys, quiet=True)


def prepare_concepts(folder: Path) -> None:
    concept_lake.build(str(folder / "lake"), cuts=(13,))


def run_concepts(folder: Path, patch: Patch) -> None:
    patch(pairs, "_CHUNK_PAIRS", 8)
    patch(pairs, "_CHUNKS_PER_SHARD", 2)
    lake = str(folder / "lake")
    saestore.prune(lake, name="strong", target=15, dead=1, quiet=True)
    for view in (None, "strong"):
        saestore.thresholds(lake, view=view, quiet=True)
        saestore.detect(lake, view=view, quiet=True)
        saestore.localise(lake, view=view, quiet=True)


PREPARED = {
    "append": prepare_append,
    "concepts": prepare_concepts,
    "encode": prepare_encode,
    "index": prepare_index,
}
JOBS = {
    "append": run_append,
    "concepts": run_concepts,
    "index": run_index,
    "encode": run_encode,
    "extract": run_extract,
    "import": run_import,
}


def leave_half(storage: LocalStorage, key: str, content: bytes | memoryview) -> None:
    """Leave what a power cut leaves behind: a part of the object under its temporary name."""
    path = storage._path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.0123.partial").write_bytes(bytes(content)[: len(content) // 2])


def main(job: str, folder: str, kill_at: str, name: str) -> None:
    puts = 0
    put = LocalStorage.put

    def counted(self: LocalStorage, key: str, content: bytes | memoryview) -> None:
        nonlocal puts
        puts += 1
        if puts == int(kill_at):
            if name == "SIGKILL":
                leave_half(self, key, content)
            os.kill(os.getpid(), getattr(signal, name))
        put(self, key, content)

    LocalStorage.put = counted  # type: ignore[method-assign]
    try:
        JOBS[job](Path(folder), setattr)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
