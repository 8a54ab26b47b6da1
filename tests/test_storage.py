"""Storage: whole objects or none, and one-line errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from saestore.errors import InputError
from saestore.layout import ActivationsKey, CodesKey, ModelKey, check_column, check_name, parents
from saestore.storage import open_storage


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


@pytest.mark.parametrize("url", ["", "  ", "nosuchscheme://x/y"])
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InputError):
        open_storage(url)


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
    for wrong in (("d", "samples", "l", "token"), ("d", "m", "positions", "token"), ("d", "m", "l", "tokens")):
        with pytest.raises(InputError):
            ActivationsKey(*wrong)


@pytest.mark.parametrize("name", ["a/b", "id", "concepts", ".x", "__y", "", "x" * 201, "a\nb"])
def test_column_names(name: str) -> None:
    with pytest.raises(InputError):
        check_column(name)
    assert check_column("label: Größe (cm)") == "label: Größe (cm)"
