"""A disk that fills up, and folders that may not be written: one line, nothing half-written, and it goes on later."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saestore.encoding import plan
from saestore.encoding.writer import encode
from saestore.errors import InputError
from saestore.lake import Lake
from saestore.saes.lake import write_sae
from tests.small_lake import add_activations, lake_files, mirror_sae


def small_lake(folder: Path) -> Lake:
    lake = Lake.create(folder)
    add_activations(lake, "d", np.random.default_rng(0).normal(size=(600, 16)).astype("float32"))
    write_sae(lake.storage, "s", mirror_sae(16), quiet=True)
    return lake


@pytest.mark.parametrize("writes", [0, 1, 3, 7, 10])
def test_a_disk_that_fills_up_during_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    monkeypatch.setattr(plan, "_SHARD_ROWS", 128)
    monkeypatch.setattr(plan, "CHUNK_ROWS", 64)
    whole, filled = small_lake(tmp_path / "whole"), small_lake(tmp_path / "filled")
    encode(whole, "s", layers=["layer_3"], quiet=True)

    real, left = os.fsync, [2 * writes]  # a file and its folder

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="disk is full") as caught:
            encode(filled, "s", layers=["layer_3"], quiet=True)
    assert "\n" not in str(caught.value)
    encode(filled, "s", layers=["layer_3"], quiet=True)
    assert lake_files(tmp_path / "filled") == lake_files(tmp_path / "whole")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that others may read, with permissions that hold for this process even where it is root's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_folder_that_may_not_be_written(unprivileged: Path) -> None:
    lake = small_lake(unprivileged / "lake")
    _ = lake.status()  # what is imported on the way is imported before permissions are given up
    os.chmod(unprivileged, 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    else:
        for path in [unprivileged / "lake", *(unprivileged / "lake").rglob("*")]:
            os.chmod(path, 0o555 if path.is_dir() else 0o444)
    try:
        with pytest.raises(InputError, match="permission denied") as caught:
            Lake.create(unprivileged / "other")
        assert "\n" not in str(caught.value)
        read_only = Lake.open(unprivileged / "lake")
        assert read_only.activations("d").read().shape == (600, 16)
        assert all(row.state in ("done", "missing") for row in read_only.status())
        with pytest.raises(InputError, match="permission denied"):
            encode(read_only, "s", layers=["layer_3"], quiet=True)
    finally:
        if user == 0:
            os.seteuid(0)
        else:
            for path in [unprivileged / "lake", *(unprivileged / "lake").rglob("*")]:
                os.chmod(path, 0o755)
        os.chmod(unprivileged, 0o755)
