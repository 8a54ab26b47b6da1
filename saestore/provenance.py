"""What is recorded beside everything that is written: which software wrote it."""

from __future__ import annotations

from importlib import metadata

_RECORDED = ("saestore", "zarr", "numcodecs", "torch", "transformers", "sae-lens")


def stamp() -> dict[str, str]:
    """Return the versions of the packages that determine what is written, as far as installed."""
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
