"""What the importers of activations and of codes have in common: the identity of a source, and their result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saestore.formats.fingerprint import sampled_digest
from saestore.layout import ActivationsKey, CodesKey
from saestore.rows import RowGroup, group_exists
from saestore.storage import Storage


@dataclass(frozen=True)
class ImportResult:
    """What an import did.

    rows : rows of the group
    imported_rows : rows written by this call; 0 when all were there
    samples : samples of the dataset
    dtype : stored precision
    nonfinite : values of activations that are not finite
    """

    key: ActivationsKey | CodesKey
    rows: int
    imported_rows: int
    samples: int
    dtype: str
    nonfinite: int = 0


def source_identity(origin: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a source from another, without names, so that a moved file is the same source.

    Parameters
    ----------
    origin : Path
        What was opened: a file, or the folder, list or name of chunks.
    described : mapping
        What the source's `describe` returns.
    """
    folder = origin if origin.is_dir() else origin.parent
    files = [folder / file["name"] for file in described["files"]]
    told = {name: described.get(name) for name in ("key", "shape", "dtype")}
    return {**told, "bytes": described["bytes"], "digest": sampled_digest(files)}


def is_free(storage: Storage, path: str, identity: Mapping[str, Any]) -> bool:
    """Whether nothing is stored at a path but what comes from this source."""
    if not group_exists(storage, path):
        return True
    # What was extracted or encoded here names no source.
    return bool(RowGroup.open(storage, path).attributes["identity"].get("source") == identity)


def threads_for(described: Mapping[str, Any]) -> int:
    """Return how many shards are imported at a time."""
    # A compressed .npz can only be read forwards; two readers would send each other back to its beginning.
    return 1 if str(described["format"]).startswith("npz") else 2


def silent(line: str) -> None:
    """Say nothing."""
