"""Copies of shards on the local disk: read once from the bucket, never wrong, never half there."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from saestore import mirror
from saestore.errors import InputError, IntegrityError
from saestore.lake import Lake
from saestore.mirror import is_far, mirrored, weights_cache
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.saes.lake import open_lake_sae, write_sae
from saestore.storage import LocalStorage, RemoteStorage, Storage, open_storage
from tests.small_lake import random_sae

PATH = "saes/s"
ARRAY = f"{PATH}/W_enc"
WEIGHTS = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
KEYS = [f"{ARRAY}/c/{shard}/0" for shard in range(4)]


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """A disk with room, whatever this machine has; the value sets another."""

    def use(state: Disk) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: state)

    use(Disk(total=1 << 40, used=0, free=1 << 40))
    return use


@pytest.fixture
def bucket() -> Storage:
    """A row group with an array that is to be copied and one that is not."""
    return filled(open_storage(f"memory://{uuid.uuid4().hex}"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of buckets from now on: (method, key)."""
    asked: list[tuple[str, str]] = []
    for name in ("get", "get_ranges", "sizes"):
        monkeypatch.setattr(RemoteStorage, name, recording(asked, name, getattr(RemoteStorage, name)))
    return asked


def recording(asked: list[tuple[str, str]], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: RemoteStorage, keys: Any, *arguments: Any) -> Any:
        asked.extend((name, key) for key in ([keys] if isinstance(keys, str) else keys))
        return method(self, keys, *arguments)

    return call


def filled(storage: Storage) -> Storage:
    group = RowGroup.create(
        storage,
        PATH,
        kind="sae",
        axis="unit",
        grid=Grid.plan(len(WEIGHTS), shard_rows=20, chunk_rows=5),
        arrays=[ArraySpec(name, "float32", 6, width_axis="d_in", codec="none") for name in ("W_enc", "W_dec")],
        identity={"hash": "0"},
        whole={"b_dec": (np.zeros(6, np.float32), ("d_out",))},
    )
    for shard in range(group.grid.n_shards):
        rows = WEIGHTS[group.grid.shard(shard)]
        group.write_shard(shard, {"W_enc": rows, "W_dec": rows})
    return storage


def read(storage: Storage, folder: Path, start: int = 0, stop: int = len(WEIGHTS)) -> np.ndarray:
    return RowGroup.open(mirrored(storage, folder, array=ARRAY), PATH).read("W_enc", start, stop)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def of_shards(requests: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [request for request in requests if request[1] in KEYS]


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.s3)])
def test_the_second_pass_asks_the_bucket_for_no_shard(
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    requests: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "_PART_BYTES", 100)  # the shards are fetched in several rounds of several parts
    name = uuid.uuid4().hex
    if kind == "memory":
        storage = filled(open_storage(f"memory://{name}"))
    else:
        storage = filled(open_storage(f"s3://lake/{name}", storage_options=request.getfixturevalue("s3_server")))
    folder = tmp_path / "weights/a"
    requests.clear()
    for _ in range(2):
        group = RowGroup.open(mirrored(storage, folder, array=ARRAY), PATH)
        for start in range(0, 70, 14):
            np.testing.assert_array_equal(group.read("W_enc", start, start + 14), WEIGHTS[start : start + 14])
        assert sorted(key for method, key in requests if method == "sizes" and key in KEYS) == KEYS
    first = len(of_shards(requests))
    np.testing.assert_array_equal(group.take("W_enc", np.array([3, 68])), WEIGHTS[[3, 68]])
    assert len(of_shards(requests)) == first
    for key in KEYS:
        assert (folder / key).read_bytes() == storage.get(key)


def test_only_the_shards_of_the_array_are_copied(tmp_path: Path, bucket: Storage) -> None:
    storage = mirrored(bucket, tmp_path / "a", array=ARRAY)
    group = RowGroup.open(storage, PATH)
    assert group.is_complete
    np.testing.assert_array_equal(group.read("W_dec", 0, 70), WEIGHTS)
    np.testing.assert_array_equal(group.whole("b_dec"), 0)
    assert files(tmp_path) == []
    np.testing.assert_array_equal(group.read("W_enc", 25, 45), WEIGHTS[25:45])
    assert files(tmp_path / "a") == KEYS[1:3]
    assert storage.get_ranges(f"{ARRAY}/c/9/0", [(0, 1)]) is None
    assert files(tmp_path / "a") == KEYS[1:3]


def test_everything_else_goes_to_the_bucket(tmp_path: Path, bucket: Storage) -> None:
    storage = pickle.loads(pickle.dumps(mirrored(bucket, tmp_path / "a", array=ARRAY)))
    assert storage.url == bucket.url
    assert storage.names(ARRAY) == bucket.names(ARRAY)
    assert storage.sizes([KEYS[0], "none"]) == bucket.sizes([KEYS[0], "none"])
    assert storage.put_if_absent("x", b"1") == b"1"
    assert storage.put_if_absent("x", b"2") == b"1"
    assert storage.get_ranges(KEYS[0], [(0, 4)]) == bucket.get_ranges(KEYS[0], [(0, 4)])
    storage.put(KEYS[0], b"another")
    assert bucket.get(KEYS[0]) == b"another"
    assert storage.get_ranges(KEYS[0], [(0, 4)]) == [b"anot"]


@pytest.mark.parametrize("key", [f"{ARRAY}/c/../../x", f"{ARRAY}/c/../../../../../x", f"{ARRAY}/c//0"])
def test_keys_cannot_leave_the_folder(tmp_path: Path, bucket: Storage, key: str) -> None:
    read(bucket, tmp_path / "a")
    for place in (tmp_path / "x", tmp_path / "a" / PATH / "x"):
        place.write_text("no copy")
    there = files(tmp_path)
    storage = mirrored(bucket, tmp_path / "a", array=ARRAY)
    for act in (lambda: storage.get_ranges(key, [(0, 1)]), lambda: storage.put(key, b"1")):
        with pytest.raises(InputError, match="not a path inside a lake"):
            act()
    assert files(tmp_path) == there


def test_a_disk_without_room(
    tmp_path: Path, bucket: Storage, disk: Callable[[Disk], None], requests: list[tuple[str, str]]
) -> None:
    for full in (Disk(10 << 30, 9 << 30, (1 << 30) + 100), Disk(100 << 30, 96 << 30, 4 << 30)):
        disk(full)
        storage = mirrored(bucket, tmp_path / "a", array=ARRAY)
        group = RowGroup.open(storage, PATH)
        np.testing.assert_array_equal(group.read("W_enc"), WEIGHTS)
        assert files(tmp_path) == []
        requests.clear()
        np.testing.assert_array_equal(group.read("W_enc"), WEIGHTS)
        assert {method for method, _ in of_shards(requests)} == {"get_ranges"}  # as without copies
    disk(Disk(10 << 30, 8 << 30, 2 << 30))
    np.testing.assert_array_equal(read(bucket, tmp_path / "a"), WEIGHTS)
    assert files(tmp_path / "a") == KEYS


def test_a_disk_that_fills_up_while_an_object_is_written(
    tmp_path: Path, bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    np.testing.assert_array_equal(read(bucket, tmp_path / "a"), WEIGHTS)
    assert files(tmp_path) == []


@pytest.mark.parametrize("place", ["file", "missing/below/file"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, bucket: Storage, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "missing").symlink_to(tmp_path / "file")
    np.testing.assert_array_equal(read(bucket, tmp_path / place / "a"), WEIGHTS)
    assert files(tmp_path) == ["file", "missing"]


def test_every_flipped_bit_of_a_copy_is_noticed_and_mended(tmp_path: Path, bucket: Storage) -> None:
    folder = tmp_path / "a"
    read(bucket, folder)
    whole = bucket.get(KEYS[1])
    assert whole is not None
    for byte in (*range(0, 68, 5), 66, *range(68, len(whole), 23), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << byte % 8
        (folder / KEYS[1]).write_bytes(damaged)
        group = RowGroup.open(mirrored(bucket, folder, array=ARRAY), PATH)
        np.testing.assert_array_equal(group.read("W_enc"), WEIGHTS, err_msg=f"byte {byte}")
        assert files(folder) == [KEYS[0], *KEYS[2:]], byte
        np.testing.assert_array_equal(group.read("W_enc"), WEIGHTS)
        np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)
        assert (folder / KEYS[1]).read_bytes() == whole


def test_threads_that_find_the_same_damage(tmp_path: Path, bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.shards._READ_BYTES", 100)  # one request for each chunk
    folder = tmp_path / "a"
    read(bucket, folder)
    for _ in range(20):
        copy = folder / KEYS[0]
        content = bytearray(bucket.get(KEYS[0]) or b"")
        for chunk in range(4):
            content[68 + 124 * chunk] ^= 1
        copy.write_bytes(content)
        np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)
        read(bucket, folder)


def test_damage_in_the_bucket_is_an_error_that_names_the_bucket(tmp_path: Path, bucket: Storage) -> None:
    content = bytearray(bucket.get(KEYS[1]) or b"")
    content[100] ^= 1
    good = bucket.get(KEYS[1])
    assert good is not None
    bucket.put(KEYS[1], bytes(content))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=rf"{KEYS[1]} in memory://\w+ is damaged in chunk 0"):
            read(bucket, tmp_path / "a")
    bucket.put(KEYS[1], good)
    np.testing.assert_array_equal(read(bucket, tmp_path / "a"), WEIGHTS)


@pytest.mark.parametrize("size", [0, 3, 68, 200, -1])
def test_a_copy_of_another_size(tmp_path: Path, bucket: Storage, size: int) -> None:
    folder = tmp_path / "a"
    read(bucket, folder)
    copy = folder / KEYS[2]
    copy.write_bytes(copy.read_bytes()[:size])
    np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)
    assert not copy.exists()
    np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)
    assert copy.read_bytes() == bucket.get(KEYS[2])


def test_a_copy_that_the_disk_cannot_read(tmp_path: Path, bucket: Storage) -> None:
    folder = tmp_path / "a"
    read(bucket, folder)
    (folder / KEYS[0]).unlink()
    (folder / KEYS[0]).symlink_to(KEYS[0].rsplit("/", 1)[1])  # of itself
    np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(read(bucket, folder), WEIGHTS)


def test_an_object_that_changes_while_it_is_fetched(
    tmp_path: Path, bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = RemoteStorage.sizes
    monkeypatch.setattr(RemoteStorage, "sizes", lambda self, keys: [(size or 0) + 1 for size in sizes(self, keys)])
    np.testing.assert_array_equal(read(bucket, tmp_path / "a"), WEIGHTS)
    assert files(tmp_path) == []


def test_threads_at_once_fetch_once(
    tmp_path: Path, bucket: Storage, requests: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = RemoteStorage.sizes
    monkeypatch.setattr(RemoteStorage, "sizes", lambda self, keys: (time.sleep(0.05), sizes(self, keys))[1])
    start = threading.Barrier(8)

    def work(number: int) -> np.ndarray:
        storage = mirrored(bucket, tmp_path / "a", array=ARRAY)
        group = RowGroup.open(storage, PATH)
        start.wait()
        return group.read("W_enc", 0, 20)

    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(work, range(8)):
            np.testing.assert_array_equal(rows, WEIGHTS[:20])
    assert of_shards(requests) == [("sizes", KEYS[0]), ("get_ranges", KEYS[0])]


def test_processes_at_once(tmp_path: Path) -> None:
    storage = filled(open_storage(tmp_path / "lake"))
    context = multiprocessing.get_context("fork")

    def child() -> None:
        np.testing.assert_array_equal(read(storage, tmp_path / "a"), WEIGHTS)

    for lock in mirror._locks:
        lock.acquire()  # as if a thread of this process were fetching when it forks
    try:
        processes = [context.Process(target=child) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            process.kill()
    finally:
        for lock in mirror._locks:
            lock.release()
    assert [process.exitcode for process in processes] == [0] * 4
    assert files(tmp_path / "a") == KEYS


_KILLED = """
import sys, time
from pathlib import Path
from saestore import mirror
from saestore.storage import LocalStorage

mirror._PART_BYTES, mirror._PARTS_AT_ONCE = 100, 1
class Slow(LocalStorage):
    def get_ranges(self, key, ranges):
        if ranges[0][0] > 0:
            print("half", flush=True)
            time.sleep(60)
        return super().get_ranges(key, ranges)
mirror.mirrored(Slow(sys.argv[1]), Path(sys.argv[2]), array=sys.argv[3]).get_ranges(sys.argv[4], [(0, 1)])
"""


def test_a_killed_fetch_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    storage = filled(open_storage(tmp_path / "lake"))
    arguments = [str(tmp_path / "lake"), str(tmp_path / "a"), ARRAY, KEYS[0]]
    child = subprocess.Popen([sys.executable, "-c", _KILLED, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    (left,) = files(tmp_path / "a")
    assert left.endswith(".partial")
    np.testing.assert_array_equal(read(storage, tmp_path / "a"), WEIGHTS)
    assert files(tmp_path / "a") == sorted([left, *KEYS])


def test_the_folders_opened_longest_ago_are_removed(
    tmp_path: Path, bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(size or 0 for size in bucket.sizes(KEYS))
    names = ["d", "b", "c", "a"]
    for age, name in enumerate(names):
        read(bucket, tmp_path / "weights" / name)
        os.utime(tmp_path / "weights" / name, (1e9 - age, 1e9 - age))
    monkeypatch.setenv("SAESTORE_CACHE_BYTES", str(3 * size))
    mirrored(bucket, tmp_path / "weights/a", array=ARRAY)  # the oldest is used again
    assert sorted(os.listdir(tmp_path / "weights")) == ["a", "b", "d"]
    monkeypatch.setenv("SAESTORE_CACHE_BYTES", "1")
    np.testing.assert_array_equal(read(bucket, tmp_path / "weights/new"), WEIGHTS)
    assert os.listdir(tmp_path / "weights") == ["new"]
    mirrored(bucket, tmp_path / "weights/new", array=ARRAY)  # larger than the limit, and in use
    assert files(tmp_path / "weights/new") == KEYS


def test_the_limit_is_a_number(tmp_path: Path, bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESTORE_CACHE_BYTES", "0")
    assert mirrored(bucket, tmp_path / "a", array=ARRAY) is bucket
    monkeypatch.setenv("SAESTORE_CACHE_BYTES", "5GiB")
    with pytest.raises(InputError, match="SAESTORE_CACHE_BYTES is '5GiB'; give a number of bytes"):
        mirrored(bucket, tmp_path / "a", array=ARRAY)
    assert files(tmp_path) == []


def test_the_folder_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path))
    given = [
        ("s3://b/l", "saes/s", "0"),
        ("s3://b/l", "saes/s", "1"),
        ("s3://b/l", "saes/t", "0"),
        ("s3://b", "l", "0"),
    ]
    folders = [weights_cache(*names) for names in given]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "weights"}
    assert {len(folder.name) for folder in folders} == {16}


def test_what_is_far(tmp_path: Path) -> None:
    assert not is_far(open_storage(tmp_path))
    assert not is_far(open_storage("memory://far"))
    assert not is_far(open_storage(f"local://{tmp_path}"))
    for url in ("s3://b/l", "gs://b/l", "az://c/l", "https://host/l"):
        assert is_far(RemoteStorage(url, {}, None)), url  # type: ignore[arg-type]


@pytest.mark.s3
def test_the_encoder_of_an_sae_in_a_bucket_is_copied(
    tmp_path: Path, s3_server: dict[str, Any], requests: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path))
    monkeypatch.setattr("saestore.saes.lake._SHARD_BYTES", 20 * 16 * 4)
    sae = random_sae("standard", d_in=16, d_sae=70)
    lake = Lake.create(f"s3://lake/{uuid.uuid4().hex}", storage_options=s3_server)
    write_sae(lake.storage, "s", sae, quiet=True)
    assert files(tmp_path) == []
    for _ in range(2):
        weights = open_lake_sae(lake.storage, "s")
        assert weights.name == "s"
        assert weights.content_hash() == sae.content_hash()
        np.testing.assert_array_equal(weights.rows("W_enc", slice(5, 66)), sae.arrays["W_enc"][5:66])
        np.testing.assert_array_equal(weights.rows("W_dec", slice(5, 66)), sae.arrays["W_dec"][5:66])
        np.testing.assert_array_equal(weights.vector("b_enc"), sae.arrays["b_enc"])
    (folder,) = (tmp_path / "weights").iterdir()
    assert files(folder) == KEYS
    assert len([request for request in requests if request[1] == KEYS[0] and request[0] == "get_ranges"]) == 1


def test_an_sae_in_a_folder_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path / "cache"))
    sae = random_sae("standard", d_in=16, d_sae=70)
    lake = Lake.create(tmp_path / "lake")
    write_sae(lake.storage, "s", sae, quiet=True)
    weights = open_lake_sae(lake.storage, "s")
    np.testing.assert_array_equal(weights.rows("W_enc", slice(0, 70)), sae.arrays["W_enc"])
    assert not (tmp_path / "cache").exists()
    assert isinstance(lake.storage, LocalStorage)
