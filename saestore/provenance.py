"""What is recorded beside everything that is written: which software wrote it."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

_RECORDED = ("saestore", "zarr", "numcodecs", "torch", "transformers", "sae-lens")


def stamp() -> dict[str, str]:
    """Return the versions of the packages that determine what is written, as far as installed."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for package in _RECORDED:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)
