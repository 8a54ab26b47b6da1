"""Verbs that analyse codes over a real cluster of processes: their stores are those of threads, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saestore
from saestore import postings, unit_stats
from saestore.analysis import pairs
from saestore.analysis.thresholds import write_thresholds
from saestore.engine import run as engine
from saestore.errors import ConflictError
from saestore.indexing import stats, writer
from saestore.labels import write_labels
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from tests.analysis import concept_lake
from tests.built_lake import top_k, write_codes
from tests.small_lake import lake_files

KEY = CodesKey("d", "m", "layer_3", "bare", "token")


def make_small(patch: Callable[[Any, str, Any], None]) -> None:
    """Cut few rows and units into several segments, shards and tasks, here or in a worker."""
    patch(postings, "SEGMENT_ROWS", 64)
    patch(postings, "CHUNK_ENTRIES", 32)
    for module in (postings, writer):
        patch(module, "SHARD_ENTRIES", 96)
    for module in (unit_stats, stats):
        patch(module, "SHARD_UNITS", 8)
    patch(writer, "_shards_per_task", lambda codes, available, budget: 2)
    patch(pairs, "_CHUNK_PAIRS", 8)
    patch(pairs, "_CHUNKS_PER_SHARD", 2)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of the scheduler of two processes, which live on from one verb to the next."""
    distributed = pytest.importorskip("distributed", reason="distributed is absent: pip install 'saestore[cluster]'")
    from dask import config

    with (
        # A process that dies fails the test, where another would do its task anew.
        config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        with distributed.Client(cluster, set_as_default=False) as client:
            client.run(make_small, setattr)
        yield cluster.scheduler_address


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What each run has run on, and how many tasks it had."""
    make_small(monkeypatch.setattr)
    found: list[tuple[str, int]] = []
    threads, cluster = engine._run_threads, engine._run_cluster

    def run_threads(tasks: Sequence[Any], *others: Any) -> list[Any]:
        found.append(("threads", len(tasks)))
        return threads(tasks, *others)

    def run_cluster(client: Any, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        found.append(("cluster", len(tasks)))
        return cluster(client, tasks)

    monkeypatch.setattr(engine, "_run_threads", run_threads)
    monkeypatch.setattr(engine, "_run_cluster", run_cluster)
    return found


def bare_lake(folder: Path) -> concept_lake.ConceptLake:
    """The concept lake in two parts, with codes `bare` that have no postings yet."""
    built = concept_lake.build(str(folder), cuts=(13,))
    codes, cut = top_k(built.dense, 12), int(built.offsets[13])
    for part, (start, stop) in enumerate(pairwise([0, cut, len(built.dense)])):
        write_codes(built.lake.storage, KEY.at(part), codes[slice(start, stop)], shard_rows=64, chunk_rows=16)
    return built


def analyse(lake: str, scheduler: str | None, name: str) -> str:
    """Run the verbs; return what they say."""
    options: dict[str, Any] = {"sae": "bare", "scheduler": scheduler, "quiet": True}
    said: list[Any] = [saestore.index(lake, saes="bare", scheduler=scheduler, quiet=True)]
    said.append(saestore.stats(lake, split="test", special=True, **options))
    said.append(saestore.prune(lake, name=name, target=15, dead=1, **options))
    for view in (None, name):
        said.append(saestore.thresholds(lake, view=view, name=name, **options))
        said.append(saestore.detect(lake, view=view, name=name, thresholds=name, **options))
    joined = saestore.graph(
        lake, saes="bare", sample_type="token", name=name, min_r=0.1, min_support=1, null=True, scheduler=scheduler,
        quiet=True,
    )  # fmt: skip
    said.append(joined.summary)
    return repr(said)


def append_part(built: concept_lake.ConceptLake, codes: CodesKey, part: int) -> None:
    """Append samples whose concepts are labelled, and their codes."""
    storage, n, rng = built.lake.storage, 10, np.random.default_rng(5)
    labels = (rng.random((4 * n, 3)) < 0.3).astype(np.uint8)
    table = SampleTable(
        ids=[f"late{place}" for place in range(n)],
        kind="text",
        contents=[f"Late {place}" for place in range(n)],
        split=["cal", "test"] * (n // 2),
        concept_names=concept_lake.CONCEPTS,
        concepts=labels.reshape(n, 4, 3).max(axis=1),
    )
    write_samples(storage, "d", table, part)
    key, special = ModelKey("d", "m", part), np.zeros(4 * n, bool)
    offsets = np.arange(n + 1, dtype=np.int64) * 4
    write_positions(storage, key, offsets=offsets, arrays={"special": special}, digest=f"late {part}", attributes={})
    write_labels(storage, key, "concepts", labels, concept_lake.CONCEPTS, {})
    dense = rng.choice([0, 0, 0, 0.5, 1.25, 2], (4 * n, built.dense.shape[1])).astype(np.float32)
    write_codes(storage, codes.at(part), top_k(dense, 12), shard_rows=64, chunk_rows=16)


@pytest.mark.slow
def test_analyses_on_a_cluster_write_the_bytes_of_threads(
    tmp_path: Path, scheduler: str, ran: list[tuple[str, int]]
) -> None:
    said: dict[str, list[str]] = {}
    runs: dict[str, list[tuple[str, int]]] = {}
    for name, address in (("threads", None), ("cluster", scheduler)):
        built, url = bare_lake(tmp_path / name), str(tmp_path / name)
        ran.clear()
        said[name] = [analyse(url, address, "first")]
        append_part(built, KEY, 2)  # the processes live on, and must not go by what they remember
        said[name].append(analyse(url, address, "later"))
        runs[name] = ran.copy()
    assert {place for place, _ in runs["cluster"]} == {"cluster"}
    assert [count for _, count in runs["cluster"]] == [count for _, count in runs["threads"]]
    assert min(count for _, count in runs["cluster"]) > 1
    local, spread = lake_files(tmp_path / "threads"), lake_files(tmp_path / "cluster")
    assert local.keys() == spread.keys()
    assert [name for name, content in local.items() if content != spread[name]] == []
    assert said["cluster"] == said["threads"]


def test_a_task_does_not_go_by_other_labels_or_codes_than_its_result_was_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = concept_lake.build(str(tmp_path / "lake"))
    tasks: list[pairs.PairsTask] = []
    monkeypatch.setattr(pairs, "run_tasks", lambda given, **options: tasks.extend(given))
    write_thresholds(built.codes, quiet=True)
    model = concept_lake.KEY.activations.model_key
    shutil.rmtree(tmp_path / "lake" / model.labels_path("concepts"))
    write_labels(built.lake.storage, model, "concepts", 1 - (built.labels == 1), concept_lake.CONCEPTS, {})
    with pytest.raises(ConflictError, match=r"labels of .*/codes/s/token have changed since .* run the command again"):
        tasks[0].run(lambda count: None)
    write_thresholds(built.codes, name="others", quiet=True)
    append_part(built, concept_lake.KEY, 1)
    writer.index(built.lake.storage, [concept_lake.KEY], quiet=True)
    with pytest.raises(ConflictError, match=r"have changed since .*thresholds/others was begun"):
        tasks[1].run(lambda count: None)
