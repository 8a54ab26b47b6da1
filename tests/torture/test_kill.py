"""Kill a writer anywhere, run it again: every byte of the lake is that of an uninterrupted run."""

from __future__ import annotations

import functools
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.codes import Codes  # noqa: E402
from saestore.errors import HoleError  # noqa: E402
from saestore.lake import Lake  # noqa: E402
from saestore.storage import LocalStorage  # noqa: E402
from tests.small_lake import lake_files  # noqa: E402
from tests.torture import writers  # noqa: E402


def killed(job: str, folder: Path, kill_at: int, name: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.torture.writers", job, str(folder), str(kill_at), name]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)


def run(job: str, folder: Path) -> int:
    """Run a job to its end in this process; return how many objects it put."""
    puts = []
    put = LocalStorage.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "put", lambda self, key, content: (puts.append(key), put(self, key, content))[1])
        writers.JOBS[job](folder, patch.setattr)
    return len(puts)


@pytest.fixture(scope="module")
def model(tmp_path_factory, minilm_folder: Path) -> Path:
    """A random BERT, beside which the lakes are made."""
    transformers = pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")
    folder = tmp_path_factory.mktemp("killed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=512
    )
    transformers.BertModel(config).save_pretrained(folder / "model")
    transformers.AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def truth(model: Path) -> Callable[[str], tuple[dict[str, bytes], int]]:
    """By job: the files of an uninterrupted run, and its number of puts."""

    @functools.cache
    def whole(job: str) -> tuple[dict[str, bytes], int]:
        folder = start(job, model, "whole")
        puts = run(job, folder)
        return lake_files(folder), puts

    return whole


def start(job: str, model: Path, name: str) -> Path:
    folder = model / f"{job}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if job in writers.PREPARED:
        writers.PREPARED[job](folder)
    return folder


def check(job: str, model: Path, truth: Callable[[str], tuple[dict[str, bytes], int]], kill_at: int) -> None:
    folder = start(job, model, str(kill_at))
    before = lake_files(folder)
    ended = killed(job, folder, kill_at)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    check_resumed(job, folder, before, *truth(job))


def check_resumed(job: str, folder: Path, before: dict[str, bytes], expected: dict[str, bytes], puts: int) -> None:
    """Check what a job that was stopped has left, before and after it is run again."""
    left_behind = list(folder.rglob("*.partial"))
    assert left_behind
    stopped = lake_files(folder)
    assert {name: stopped.get(name) for name in before} == before
    if (folder / "lake/zarr.json").exists():
        Lake.open(folder / "lake").status()  # what is half there does not stop a reader
    if job == "append":
        check_parts(Lake.open(folder / "lake"))
    assert run(job, folder) <= puts
    for path in left_behind:
        path.unlink()  # nobody takes them for objects, so they stay where they are
    found = lake_files(folder)
    assert found.keys() == expected.keys()
    assert [name for name, content in found.items() if content != expected[name]] == []
    assert run(job, folder) == 0
    shutil.rmtree(folder)


def check_parts(lake: Lake) -> None:
    """Check that readers find the first part as it was, and behind it what the files hold or a hole."""
    x, dense = writers.imported_rows()
    edges = np.cumsum(writers.PARTS)
    samples, first_row = lake.samples("d"), edges[0] * writers.PER_SAMPLE
    assert len(samples) in edges
    known = [f"text {part}.{place}" for part in range(2) for place in range(writers.PARTS[part])]
    numbered = [str(place) for place in range(edges[1], edges[2])]
    assert samples.ids.tolist() == [*known, *numbered][: len(samples)]
    offsets = lake.positions("d").offsets
    assert offsets.tolist() == list(range(0, len(offsets) * writers.PER_SAMPLE, writers.PER_SAMPLE))
    activations, codes = lake.activations("d"), lake.codes("d")
    for group, read, truth in ((activations.group, activations.read, x), (codes.group, _dense_of(codes), dense)):
        rows = group.grid.rows
        assert rows in edges * writers.PER_SAMPLE
        np.testing.assert_array_equal(read(0, first_row), truth[:first_row])
        holes = np.ones(rows, dtype=bool)
        for start, stop in zip(*group.written_ranges(), strict=True):
            np.testing.assert_array_equal(read(start, stop), truth[start:stop])
            holes[start:stop] = False
        for row in np.flatnonzero(holes):
            with pytest.raises(HoleError, match="were never written"):
                read(row, row + 1)


def _dense_of(codes: Codes) -> Callable[[int, int], np.ndarray[Any, Any]]:
    return lambda start, stop: codes.dense(slice(start, stop))


@pytest.mark.parametrize(
    ("job", "share"),
    [
        ("append", 0.5),
        ("encode", 0.35),
        ("encode", 0.7),
        ("extract", 0.7),
        ("import", 0.6),
        ("index", 0.4),
        ("index", 0.8),
        ("concepts", 0.6),
    ],
)
def test_kill_and_resume(job: str, share: float, model: Path, truth) -> None:
    check(job, model, truth, max(1, round(share * truth(job)[1])))


@pytest.mark.slow
@pytest.mark.parametrize("job", list(writers.JOBS))
def test_kill_at_many_places(job: str, model: Path, truth) -> None:
    puts = truth(job)[1]
    # Consecutive puts near the end are the data of the arrays of a shard and its ledger entry.
    for kill_at in sorted({1, 2, 3, puts // 3, *range(puts - 4, puts + 1)}):
        check(job, model, truth, kill_at)


class _StoppedError(BaseException):
    """The process is gone, as far as what it leaves behind can tell."""


def stopped(job: str, folder: Path, stop_at: int) -> bool:
    """Run a job in this process until it writes object number `stop_at`, those that claim a place included."""
    numbers = itertools.count(1)
    write = LocalStorage._put

    def counted(self: LocalStorage, key: str, content: bytes | memoryview, give_name: Any) -> None:
        if next(numbers) >= stop_at:  # nor does another thread write anything from then on
            writers.leave_half(self, key, content)
            raise _StoppedError
        write(self, key, content, give_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "_put", counted)
        try:
            writers.JOBS[job](folder, patch.setattr)
        except _StoppedError:
            return True
    return False


@pytest.mark.slow
def test_an_append_is_stopped_at_every_object(model: Path, truth) -> None:
    """In this process, since a process of its own for each takes minutes."""
    expected, puts = truth("append")
    prepared = start("append", model, "prepared")
    before = lake_files(prepared)
    for stop_at in itertools.count(1):
        folder = model / f"append-stopped-{stop_at}"
        shutil.copytree(prepared, folder)
        if not stopped("append", folder, stop_at):
            break
        check_resumed("append", folder, before, expected, puts)
    assert stop_at > puts
    check_parts(Lake.open(folder / "lake"))


@pytest.mark.parametrize(("job", "share"), [("encode", 0.6), pytest.param("extract", 0.32, marks=pytest.mark.slow)])
def test_interrupt_leaves_a_lake_that_goes_on(job: str, share: float, model: Path, truth) -> None:
    folder = start(job, model, "interrupted")
    expected, puts = truth(job)
    stopped = killed(job, folder, round(share * puts), "SIGINT")
    assert stopped.returncode == 130, stopped.stderr
    assert list(folder.rglob("*.partial")) == []
    lake = Lake.open(folder / "lake")
    states = {status.path: status.state for status in lake.status() if status.kind in ("codes", "activations")}
    assert "partial" in states.values()
    for key in lake.code_keys():
        codes = Codes.open(lake.storage, key)
        if not codes.group.is_complete:
            with pytest.raises(HoleError, match="were never written"):
                codes.rows(slice(None))
    run(job, folder)
    assert lake_files(folder) == expected
