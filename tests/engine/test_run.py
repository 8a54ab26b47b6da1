"""The engine over tasks that leave files, and over a real cluster of processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saestore.engine import resources
from saestore.engine.resources import device_lock, load_once, release
from saestore.engine.run import run_tasks, uses_cluster
from saestore.errors import InputError


@dataclass(frozen=True)
class Touch:
    """Writes a file, or fails."""

    path: Path
    size: int = 1
    fails: bool = False

    def run(self, advance: Callable[[int], None]) -> None:
        if self.fails:
            raise InputError(f"task {self.path.name} cannot be done")
        self.path.write_text("done")
        advance(self.size)


@dataclass(frozen=True)
class Slow:
    """Advances until it is stopped, as a shard of many blocks does."""

    ended: Any
    size: int = 600

    def run(self, advance: Callable[[int], None]) -> None:
        try:
            for _ in range(600):
                time.sleep(0.05)
                advance(1)
        finally:
            self.ended.set()


@pytest.mark.parametrize("threads", [1, 3])
def test_all_tasks_are_run(tmp_path: Path, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    run_tasks([Touch(tmp_path / str(n)) for n in range(20)], label="t", unit="files", threads=threads)
    assert len(list(tmp_path.iterdir())) == 20
    assert capsys.readouterr().err == ""
    run_tasks([], label="t", unit="files")


def test_an_error_is_the_callers_and_finished_work_stays(tmp_path: Path) -> None:
    tasks = [Touch(tmp_path / str(n), fails=n == 5) for n in range(8)]
    with pytest.raises(InputError, match=r"^task 5 cannot be done$"):
        run_tasks(tasks, label="t", unit="files", threads=1, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == set("01234")  # in their order
    run_tasks([Touch(tmp_path / str(n)) for n in range(8)], label="t", unit="files", quiet=True)
    assert len(list(tmp_path.iterdir())) == 8


def test_an_error_stops_the_other_tasks_at_their_next_block(tmp_path: Path) -> None:
    ended = threading.Event()
    with pytest.raises(InputError):
        run_tasks([Slow(ended), Touch(tmp_path / "x", fails=True)], label="t", unit="blocks", threads=2, quiet=True)
    assert ended.wait(5)  # 30 s if it went on


def test_no_scheduler_at_an_address() -> None:
    pytest.importorskip("distributed", reason="distributed is absent: pip install 'saestore[cluster]'")
    with pytest.raises(InputError, match=r"no Dask scheduler answers at nonsense://x") as raised:
        run_tasks([Touch(Path("x"))], label="t", unit="files", scheduler="nonsense://x", quiet=True)
    assert "\n" not in str(raised.value)


def test_things_are_loaded_once_and_the_last_used_stay() -> None:
    loaded: list[str] = []

    def load(name: str) -> Callable[[], str]:
        return lambda: loaded.append(name) or name  # type: ignore[func-returns-value]

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_once(("test", "a"), load("a")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (loaded, found) == (["a"], ["a"] * 8)
    load_once(("other", 1), load("o"))
    load_once(("test", "b"), load("b"))
    load_once(("test", "a"), load("a"))
    assert loaded == ["a", "o", "b", "a"]
    for name in "cab":
        load_once(("test", name), load(name), keep=2)
    assert loaded[4:] == ["c", "b"]
    release("test")
    assert [key[0] for key in resources._loaded if key[0] in ("test", "other")] == ["other"]
    release("other")


def test_a_device_has_one_lock() -> None:
    assert device_lock("cpu") is device_lock("cpu")
    assert device_lock("cpu") is not device_lock("cuda:0")


@pytest.mark.slow
def test_a_cluster_of_processes_writes_the_same_bytes(
    tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is absent: pip install 'saestore[cluster]'")
    pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")
    import torch

    from saestore.encoding import plan as encode_plan
    from saestore.encoding.writer import encode
    from saestore.extraction import writer
    from saestore.lake import Lake
    from saestore.saes.lake import write_sae
    from saestore.samples import read_samples
    from tests.small_lake import lake_files, random_sae

    monkeypatch.setattr(encode_plan, "_SHARD_ROWS", 256)
    monkeypatch.setattr(encode_plan, "CHUNK_ROWS", 128)
    monkeypatch.setattr(writer, "shard_rows_for", lambda d_in, dtype: 200)
    # The last bits of a matrix product depend on the number of threads, and workers have one.
    monkeypatch.setattr(
        writer, "windows", lambda lengths: [(n, min(n + 16, len(lengths))) for n in range(0, len(lengths), 16)]
    )
    texts = {"d": read_samples([f"{'word ' * (n % 9)}number {n}" for n in range(90)])}
    sae = random_sae("jumprelu", d_in=384, d_sae=1500, hook_name="blocks.1.hook_normalized_resid_post")

    def work(name: str, scheduler: str | None) -> tuple[dict[str, bytes], int]:
        lake = Lake.create(tmp_path / name)
        model = writer.ModelSpec("minilm", str(minilm_folder), device="cpu")
        options: dict[str, Any] = {"scheduler": scheduler, "quiet": True}
        writer.extract(lake, texts, model=model, layers=[1], sample_type=["token", "mean"], **options)
        write_sae(lake.storage, "s", sae, quiet=True)
        result = encode(lake, "s", k=20, force=True, **options)[0]
        assert result.encoded_rows == result.rows > 500
        return lake_files(tmp_path / name), lake.codes("d").group.grid.n_shards

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        local, n_shards = work("local", None)
    finally:
        torch.set_num_threads(threads)
    assert n_shards > 2
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        spread, _ = work("spread", cluster.scheduler_address)
        assert not uses_cluster(None)  # the client that `run_tasks` made is closed, and was never the default
        with pytest.raises(InputError, match=r"^task x cannot be done$"):
            run_tasks([Touch(Path("x"), fails=True)], label="t", unit="files", scheduler=cluster.scheduler_address)
        with distributed.Client(cluster):
            assert uses_cluster(None)
            active, _ = work("active", None)
    assert local.keys() == spread.keys() == active.keys()
    assert [name for name, content in local.items() if not content == spread[name] == active[name]] == []
