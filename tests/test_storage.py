"""Storage: whole objects or none, and one-line errors."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from saestore.errors import InputError, IntegrityError
from saestore.layout import ActivationsKey, CodesKey, ModelKey, check_column, check_name, parents
from saestore.storage import RemoteStorage, open_storage, read_document


def test_objects_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    assert storage.get("a/b") is None
    assert storage.names("a") == []
    assert storage.get_ranges("a/b", [(0, 1)]) is None
    storage.put("a/b", b"0123456789")
    storage.put("a/c/d", b"x")
    storage.put("a/b", b"abcdefghij")
    assert storage.get("a/b") == b"abcdefghij"
    assert storage.get_ranges("a/b", [(2, 4), (0, 1)]) == [b"cd", b"a"]
    assert storage.sizes(["a/b", "a/none"]) == [10, None]
    assert storage.names("a") == ["b", "c"]


def test_ranges_end_where_the_object_ends(lake_url: tuple[str, dict[str, Any]]) -> None:
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    storage.put("a/b", b"0123456789")
    storage.put("a/empty", b"")
    assert storage.get_ranges("a/b", [(8, 100)]) == [b"89"]
    assert storage.get_ranges("a/b", [(0, 2), (20, 100)]) == [b"01", b""]
    assert storage.get_ranges("a/empty", [(0, 5)]) == [b""]


def test_the_first_of_several_writers_keeps_the_place(lake_url: tuple[str, dict[str, Any]]) -> None:
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    assert storage.put_if_absent("a/b", b"first") == b"first"
    assert storage.put_if_absent("a/b", b"second") == b"first"
    assert storage.get("a/b") == b"first"
    assert storage.names("a") == ["b"]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_writers_at_the_same_time_agree_on_the_winner(tmp_path: Path, kind: str) -> None:
    storage = open_storage(tmp_path if kind == "local" else f"memory://{tmp_path.name}")
    with ThreadPoolExecutor(16) as pool:
        for round_ in range(20):
            offers = [bytes([number]) * 100 for number in range(16)]
            told = list(pool.map(lambda offer, key=f"a/{round_}": storage.put_if_absent(key, offer), offers))
            assert set(told) == {storage.get(f"a/{round_}")}
    assert storage.names("a") == sorted(str(round_) for round_ in range(20))


def test_every_allowed_name_is_a_place_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    names = ["a b", "a+b=c@d", "0(1),-._:x", "B" * 120]
    for name in names:
        storage.put(f"data/{check_name(name, 'dataset')}/x", name.encode())
    assert storage.names("data") == sorted(names)
    assert [storage.get(f"data/{name}/x") for name in names] == [name.encode() for name in names]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/hostname", "a//b", "./a", "a\0b"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_keys_cannot_leave_the_lake(tmp_path: Path, key: str, kind: str) -> None:
    (tmp_path / "x").write_text("outside")
    storage = open_storage(tmp_path / "lake" if kind == "local" else "memory://keys")
    for act in (storage.get, lambda k: storage.put(k, b"1"), lambda k: storage.get_ranges(k, [(0, 1)])):
        with pytest.raises(InputError, match="not a path inside a lake"):
            act(key)
    assert (tmp_path / "x").read_text() == "outside"


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    storage.put("a", b"0123456789")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, start: pread(file, min(count, 3), start))
    assert storage.get_ranges("a", [(1, 9), (8, 20)]) == [b"12345678", b"89"]


def test_new_folders_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            synced.add(status.st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    open_storage(tmp_path / "lake").put("a/b/c", b"1")
    for folder in (tmp_path, tmp_path / "lake", tmp_path / "lake/a", tmp_path / "lake/a/b"):
        assert folder.stat().st_ino in synced, folder


def test_file_systems_that_cannot_link_or_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "fsync", files_only)
    storage = open_storage(tmp_path)
    assert [storage.put_if_absent("a/b", content) for content in (b"1", b"2")] == [b"1", b"1"]
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("content", [b"[1]", b'{"attributes": 3}', b"{", b"[" * 100_000, b"", b"\xff"])
def test_a_document_that_is_none(tmp_path: Path, content: bytes) -> None:
    storage = open_storage(tmp_path)
    storage.put("a/zarr.json", content)
    with pytest.raises(IntegrityError, match=r"a/zarr.json in .* is not valid JSON"):
        read_document(storage, "a")


def test_a_bucket_that_is_not_there() -> None:
    class NoBucket:  # what obstore does; the test server makes buckets as they are named
        async def get(self, *_: object, **__: object) -> None:
            return None

        async def set(self, *_: object) -> None:
            raise FileNotFoundError("NoSuchBucket\nthe specified bucket does not exist")

        set_if_not_exists = set

    storage = RemoteStorage("s3://nobucket/lake", {}, NoBucket())  # type: ignore[arg-type]
    for put in (storage.put, storage.put_if_absent):
        with pytest.raises(InputError, match="NoSuchBucket; check the URL") as caught:
            put("a", b"1")
        assert "\n" not in str(caught.value)


def test_errors_show_no_secrets() -> None:
    class Failing:
        async def get(self, *_: object, **__: object) -> None:
            raise RuntimeError("denied for hunter22 at https://host/c?sv=1&sig=abc%2F (signed)\nsecond line")

    storage = RemoteStorage("az://c/lake", {"account_key": "hunter22", "region": "host"}, Failing())  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        storage.get("a")
    message = str(caught.value)
    assert message == (
        "cannot read a in az://c/lake: denied for *** at https://host/c?... (signed); "
        "check the URL, the credentials and the network"
    )


def test_urls_with_passwords_are_refused_unseen() -> None:
    with pytest.raises(InputError, match="holds a password") as caught:
        open_storage("sftp://ann:hunter22@host/lake")
    assert "hunter22" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_wrong_credentials_are_one_line(s3_server: dict[str, object]) -> None:
    options = {**s3_server, "secret_access_key": "wrong", "retry_config": None}
    options.pop("retry_config")
    with pytest.raises(InputError, match="credentials") as caught:
        open_storage("s3://lake/x", storage_options=options).put("a", b"1")
    assert "wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    storage.put("a/b", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        storage.put("a/b", b"new and longer")
    monkeypatch.undo()
    assert storage.get("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file, not a folder"):
        open_storage(tmp_path / "file").put("a", b"1")


@pytest.mark.parametrize(
    "url", ["", "  ", "nosuchscheme://x/y", "a\0b", "s3:/bucket/lake", "file:/lake", "file://lake", "file://data/lake"]
)
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_storage(url)
    assert "\n" not in str(caught.value)


def test_file_urls(tmp_path: Path) -> None:
    for name, quoted in (("a#b", "a#b"), ("a?b", "a?b"), ("a b", "a%20b")):
        for host in ("", "localhost"):
            assert open_storage(f"file://{host}{tmp_path}/{quoted}").url == str(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../x", "a\\b", ".hidden", "__x", "a\0", "x" * 121, "a..b", "a ", "é"]
)
def test_names_that_cannot_be_paths(name: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        check_name(name, "dataset")
    with pytest.raises(InputError):
        CodesKey("d", "m", "layer_1", name, "token")


def test_paths() -> None:
    key = CodesKey("Coco", "CLIP ViT-L/14".replace("/", "-"), "layer_22", "clip-scope", "patch")
    assert key.path == "data/Coco/CLIP ViT-L-14/layer_22/codes/clip-scope/patch"
    assert key.activations.path == "data/Coco/CLIP ViT-L-14/layer_22/activations/patch"
    assert ModelKey("Coco", "m").positions_path == "data/Coco/m/positions"
    assert parents("a/b/c") == ["", "a", "a/b"]
    wrong_names = ("d", "samples", "l", "token"), ("d", "m", "positions", "token"), ("d", "m", "l", "tokens")
    for wrong in (*wrong_names, ("d", "Samples", "l", "token"), ("d", "m", "Positions", "token")):
        with pytest.raises(InputError):
            ActivationsKey(*wrong)


@pytest.mark.parametrize("name", ["a/b", "id", "concepts", ".x", "__y", "", "x" * 201, "a\nb", "ledger", "é" * 101])
def test_column_names(name: str) -> None:
    with pytest.raises(InputError):
        check_column(name)
    assert check_column("label: Größe (cm)") == "label: Größe (cm)"
