"""Folders that benchmarks fill: kept for the next run or temporary, under their name only when whole, where room is."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept_folder(given: str | None) -> Iterator[Path]:
    """Yield the folder that was given, making it if it is not there; without one, a temporary folder."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which gets its name at the end: where the name is, the folder is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def has_room(folder: Path, what: str, needed: int) -> bool:
    """Whether the disk of a folder has so many bytes free; what is left out for want of them is said on stderr."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        print(
            f"{what}: left out, as it needs {needed:,} bytes and {folder} has {free:,}; "
            "give a larger disk with --keep FOLDER",
            file=sys.stderr,
        )
    return needed <= free
