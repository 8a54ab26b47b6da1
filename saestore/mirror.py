"""A copy on the local disk of one array that lies in a bucket, for weights that are read once per block of rows.

Copies are immutable and can be removed at any time, by hand too: they are below `weights` in `cache_folder`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saestore.cache import cache_folder
from saestore.errors import InputError
from saestore.storage import LocalStorage, RemoteStorage, Storage

_KEPT_FREE_BYTES = 1 << 30
_KEPT_FREE_SHARE = 0.05
_LIMIT_BYTES = 100 << 30
_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 8  # as many as reading without copies asks for
_NEAR = ("memory", "local")

# A thread that finds no copy waits for the one that fetches it; two objects that share a lock wait without need.
_locks = [threading.Lock() for _ in range(64)]


def _make_locks() -> None:
    _locks[:] = [threading.Lock() for _ in range(64)]


if hasattr(os, "register_at_fork"):
    # A fork copies a lock that is held, and in the child there is no thread to release it.
    os.register_at_fork(after_in_child=_make_locks)


def is_far(storage: Storage) -> bool:
    """Whether objects come over a network: not from a folder and not from this process's memory."""
    return isinstance(storage, RemoteStorage) and storage.url.partition("://")[0].lower() not in _NEAR


def weights_cache(url: str, path: str, content_hash: str) -> Path:
    """Return the folder for copies of one SAE's weights.

    Parameters
    ----------
    url : str
        URL of the lake.
    path : str
        Path of the SAE's row group.
    content_hash : str
        What fixes the stored bytes: the group's `run`, which holds the hash of the weights, their dtypes and the grid.
        The hash of the weights alone is the same for float32 and bfloat16 copies of the same numbers.
    """
    name = hashlib.sha256("\n".join([url, path, content_hash]).encode()).hexdigest()[:16]
    return cache_folder() / "weights" / name


def mirrored(storage: Storage, folder: Path, *, array: str) -> Storage:
    """Return the storage with the shards of one array read through copies in a folder.

    A shard is fetched whole when a part of it is first read. Everything else, documents and ledger entries among it,
    is read from the storage each time, and writes go there. Where the disk has no room (1 GiB and 5 % stay free) or
    the folder cannot be written, reading goes on from the storage.

    Before that, the folders beside this one that were opened longest ago are removed, until what stays is within
    `SAESTORE_CACHE_BYTES` (default 100 GiB; 0 for no copies at all). What this array adds is not counted.

    Parameters
    ----------
    storage : Storage
        Where the array lies.
    folder : Path
        Where its copies lie; one for each content of the array, beside those of other contents, as `weights_cache`
        gives it.
    array : str
        Path of the array, whose shards never change.

    Raises
    ------
    InputError
        `SAESTORE_CACHE_BYTES` is not a number.
    """
    limit = _limit_bytes()
    if limit == 0:
        return storage
    _remove_oldest(folder, limit)
    return MirroredStorage(storage, folder, array)


class MirroredStorage:
    """A storage with copies of one array's shards in a folder; get one from `mirrored`.

    Several threads and processes may share a folder. A process fetches an object once; of processes that fetch the
    same object at once, the last one's copy stays.
    """

    def __init__(self, storage: Storage, folder: Path, array: str) -> None:
        self.url = storage.url
        self.options: Mapping[str, Any] = storage.options
        self.gap_bytes = storage.gap_bytes
        self._storage = storage
        self._folder = folder
        self._array = array
        self._shard_key = re.compile(rf"{re.escape(array)}/c(/[0-9]+)+")
        self._copies = LocalStorage(str(folder))
        self._takes_more = True
        self._distrusted: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return MirroredStorage, (self._storage, self._folder, self._array)

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes from the storage: documents, ledger entries, small arrays of one chunk."""
        return self._storage.get(key)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return parts of the object, from its copy if it is a shard of the array."""
        if self._has_copy(key):
            try:
                parts = self._copies.get_ranges(key, ranges)
            except InputError:
                self.distrust(key)  # the disk cannot read it
            else:
                if parts is not None:  # it may have been removed since
                    return parts
        return self._storage.get_ranges(key, ranges)

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write one object to the storage."""
        self.distrust(key)
        self._storage.put(key, content)

    def put_if_absent(self, key: str, content: bytes) -> bytes:
        """Write one object to the storage unless there is one, and return the bytes that are there now."""
        return self._storage.put_if_absent(key, content)

    def remove(self, key: str) -> None:
        """Remove an object from the storage; shards of the array are never removed."""
        self._storage.remove(key)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the objects' sizes in the storage."""
        return self._storage.sizes(keys)

    def names(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix in the storage, sorted."""
        return self._storage.names(prefix)

    def distrust(self, key: str) -> bool:
        """Remove the copy of an object that proved damaged, and read the object from the storage from now on.

        Who opens the array next fetches it again.

        Returns
        -------
        bool
            Whether what was read may have been a copy, so that reading again can help.
        """
        if not self._is_copied(key):
            return False
        if key not in self._distrusted:
            self._distrusted.add(key)
            with contextlib.suppress(OSError):  # where it stays, every process finds out for itself
                (self._folder / key).unlink(missing_ok=True)
        return True

    def _is_copied(self, key: str) -> bool:
        return self._shard_key.fullmatch(key) is not None

    def _has_copy(self, key: str) -> bool:
        if not self._is_copied(key) or key in self._distrusted:
            return False
        path = self._folder / key
        if os.path.exists(path):
            return True
        with _locks[hash(path) % len(_locks)]:
            return os.path.exists(path) or (self._takes_more and self._fetch(key, path))

    def _fetch(self, key: str, path: Path) -> bool:
        """Copy an object; return False where it stays without a copy."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            size = self._storage.sizes([key])[0]
            if size is None:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            self._takes_more = _has_room(path.parent, size)
            if not self._takes_more:
                return False
            try:
                with open(temporary, "wb") as file:
                    for part in self._parts(key, size):
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                    is_whole = file.tell() == size
                if is_whole:
                    os.replace(temporary, path)
                return is_whole
            finally:
                temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            return False  # another process has removed the folder meanwhile
        except OSError:
            self._takes_more = False  # the disk filled up, or the folder cannot be written
            return False
        except InputError:
            return False  # reading the part that was asked for says what is wrong, if it still is

    def _parts(self, key: str, size: int) -> Iterator[bytes]:
        """Yield an object in parts of bounded size, a few asked for at once."""
        asked = [(start, min(start + _PART_BYTES, size)) for start in range(0, size, _PART_BYTES)]
        for first in range(0, len(asked), _PARTS_AT_ONCE):
            yield from self._storage.get_ranges(key, asked[first : first + _PARTS_AT_ONCE]) or []


def _has_room(folder: Path, size: int) -> bool:
    disk = shutil.disk_usage(folder)
    return disk.free - size >= max(_KEPT_FREE_BYTES, _KEPT_FREE_SHARE * disk.total)


def _limit_bytes() -> int:
    text = os.environ.get("SAESTORE_CACHE_BYTES", str(_LIMIT_BYTES))
    if not text.isdecimal():
        raise InputError(f"SAESTORE_CACHE_BYTES is {text!r}; give a number of bytes, or 0 to keep no copies")
    return int(text)


def _remove_oldest(folder: Path, limit: int) -> None:
    """Note that a folder is used now, and remove those beside it from the newest on whose sum exceeds the limit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        total = 0
        for beside in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            total += sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
            if total > limit and beside != folder:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError:
        pass  # another process removes too, or the folder cannot be written: then nothing is added to it either
