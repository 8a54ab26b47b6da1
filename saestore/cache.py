"""Where files lie that can be made again: unpacked models, unpacked and converted SAE weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: SAESTORE_CACHE, else `saestore` in the user's own."""
    given = os.environ.get("SAESTORE_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "saestore"
