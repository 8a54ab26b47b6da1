"""From a URL to named bytes: the only place where a store is opened.

Every write of saestore is one `Storage.put` of one whole object, so a reader sees the old object or the new one and
never a part. What zarr would write in place is built in memory (`saestore.rows`) and put.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote

from saestore.errors import DependencyError, InputError, IntegrityError

if TYPE_CHECKING:
    from zarr.abc.store import Store

_OBSTORE_SCHEMES = {"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss"}
_ZARR_DOCUMENT = "zarr.json"
_ONE_SLASH = re.compile(r"(file|local|memory|https?|s3a?|gs|gcs|az|azure|abfss?):/(?!/)", re.IGNORECASE)
_SECRET_OPTION = re.compile(r"key|secret|token|pass|sas|sig|credential", re.IGNORECASE)

_memory_stores: dict[str, Store] = {}
_open_lock = threading.Lock()


class Storage(Protocol):
    """The objects below one URL.

    Keys are relative, with `/` between parts; `layout` spells them.
    """

    url: str
    options: Mapping[str, Any]
    gap_bytes: int
    """Reading over a gap of this size costs less than reading what lies on both sides of it for itself."""

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, or None where there is none."""

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes `start:stop` of each range (fewer where the object ends), None where there is no object."""

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write one whole object; on return it is durable, and at no time is a part of it visible."""

    def put_if_absent(self, key: str, content: bytes) -> bytes:
        """Write one whole object unless there is one, and return the bytes that are there now.

        Of several writers at once one wins, and all are told the winner's bytes (on fsspec's file systems only where
        they do not come within the same moment).
        """

    def remove(self, key: str) -> None:
        """Remove an object, if there is one: what was kept only until other objects were written."""

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the size in bytes of each object, None where there is none."""

    def names(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, sorted."""


def open_storage(url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Storage:
    """Open the storage at a URL.

    Parameters
    ----------
    url : str or path
        A local path or `file://`; `memory://NAME` (lives as long as the process); `s3://`, `gs://`, `az://` (obstore);
        any other scheme that fsspec knows.
    storage_options : mapping, optional
        Passed to the library that opens the URL: obstore's `config` keys (`endpoint`, `region`, ...;
        `client_options` as a nested mapping) or fsspec's options. Credentials belong in the environment.

    Returns
    -------
    Storage

    Raises
    ------
    InputError
        The URL is empty, holds a password, or its scheme is unknown.
    DependencyError
        The package for the scheme is not installed.
    """
    text = os.fspath(url)
    options = dict(storage_options or {})
    if not text.strip():
        raise InputError("the lake URL is empty; give a path or a URL such as s3://bucket/lake")
    if "\0" in text:
        raise InputError(f"the lake URL {text!r} holds a NUL; give a path or a URL such as s3://bucket/lake")
    if _ONE_SLASH.match(text):
        raise InputError(
            f"the lake URL {text} has one slash after the scheme; write it with two, as in s3://bucket/lake"
        )
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    scheme = scheme.lower()
    if scheme and re.match(r"[^/@]*:[^/]*@", rest):
        raise InputError(
            f"the {scheme}:// URL holds a password, which would be shown and logged; "
            "give it in the environment or in storage_options"
        )
    if scheme == "file":
        host, slash, below = rest.partition("/")
        if not slash or host not in ("", "localhost"):
            raise InputError(
                f"{text} names no file of this machine; write a path, or file:///folder with three slashes"
            )
        return LocalStorage(f"/{unquote(below)}")
    if not scheme:
        return LocalStorage(str(Path(text).expanduser().absolute()))
    if scheme == "memory":
        return RemoteStorage(text, options, _memory_store(text))
    if scheme in _OBSTORE_SCHEMES:
        return RemoteStorage(text, options, _object_store(text, options))
    return RemoteStorage(text, options, _fsspec_store(text, options))


def read_document(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return the metadata document (`zarr.json`) of a node, or None where there is no node.

    Raises
    ------
    IntegrityError
        The document is there and is not valid JSON.
    """
    content = storage.get(document_key(path))
    return None if content is None else _parse_document(storage, path, content)


def put_document(storage: Storage, path: str, document: Mapping[str, Any]) -> None:
    """Write the metadata document of a node."""
    storage.put(document_key(path), _document_bytes(document))


def claim_document(storage: Storage, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Write the metadata document of a node unless it has one, and return the one that it has now."""
    return _parse_document(storage, path, storage.put_if_absent(document_key(path), _document_bytes(document)))


def put_group(storage: Storage, path: str, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a group's document."""
    put_document(storage, path, group_document(attributes))


def group_document(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the document of a Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


def document_key(path: str) -> str:
    """Return the key of a node's metadata document; the root's path is the empty string."""
    return f"{path}/{_ZARR_DOCUMENT}" if path else _ZARR_DOCUMENT


def _document_bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()


def _parse_document(storage: Storage, path: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise IntegrityError(
            f"{document_key(path)} in {storage.url} is not valid JSON of a Zarr node; restore it from a copy"
        )
    return document


class LocalStorage:
    """Objects as files below a folder.

    A write goes to a temporary name, is synced, renamed, and the folder is synced: a power cut leaves the old file or
    the whole new one. Temporary names hold `.partial` and are never listed.
    """

    def __init__(self, root: str) -> None:
        self.url = root
        self.options: Mapping[str, Any] = {}
        self.gap_bytes = 4 << 10
        self._root = Path(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, (self.url,)

    def get(self, key: str) -> bytes | None:
        """Return the file's bytes, or None."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _explain(error, "read", self._path(key)) from error

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return parts of the file."""
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                return [_read_range(file.fileno(), start, stop) for start, stop in ranges]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _explain(error, "read", self._path(key)) from error

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write one file atomically and durably.

        Raises
        ------
        InputError
            The folder cannot be written or the disk is full.
        """
        self._put(key, content, os.replace)

    def put_if_absent(self, key: str, content: bytes) -> bytes:
        """Write one file unless there is one, and return the bytes that are there now."""
        there = self.get(key)
        if there is None:
            self._put(key, content, _link_if_absent)
            there = self.get(key)
        return content if there is None else there

    def _put(self, key: str, content: bytes | memoryview, give_name: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            _make_folder(path.parent)
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                give_name(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except OSError as error:
            raise _explain(error, "write", path) from error

    def remove(self, key: str) -> None:
        """Remove a file, and its folder if nothing else is there."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        except OSError as error:
            raise _explain(error, "remove", path) from error

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the files' sizes."""
        return [self._size(key) for key in keys]

    def names(self, prefix: str) -> list[str]:
        """Return the names in a folder, sorted, without temporary files."""
        try:
            entries = os.listdir(self._path(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _explain(error, "list", self._path(prefix)) from error
        return sorted(name for name in entries if not name.endswith(".partial"))

    def _size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explain(error, "read", self._path(key)) from error

    def _path(self, key: str) -> Path:
        return self._root / _checked_key(key) if key else self._root


class RemoteStorage:
    """Objects behind a Zarr store whose `set` is one atomic put: buckets, memory, fsspec file systems."""

    def __init__(self, url: str, options: Mapping[str, Any], store: Store) -> None:
        self.gap_bytes = 256 << 10
        self.url = url
        self.options = options
        self._store = store

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, dict(self.options))

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, or None."""
        from zarr.core.buffer import default_buffer_prototype

        buffer = self._wait(self._store.get(_checked_key(key), prototype=default_buffer_prototype()), "read", key)
        return None if buffer is None else buffer.to_bytes()

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return parts of the object, asked for concurrently."""
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype

        asked = [(_checked_key(key), RangeByteRequest(start, stop)) for start, stop in ranges]
        try:
            parts = self._wait(self._store.get_partial_values(default_buffer_prototype(), asked), "read", key)
        except FileNotFoundError:
            return None
        except InputError:
            # Buckets refuse a range that begins beyond the end of the object; a file gives what there is.
            size = self.sizes([key])[0]
            if size is None or all(start < size for start, _ in ranges):
                raise
            content = self.get(key)
            return None if content is None else [content[start:stop] for start, stop in ranges]
        return None if any(part is None for part in parts) else [part.to_bytes() for part in parts]

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write one object."""
        from zarr.core.buffer import cpu

        try:
            self._wait(self._store.set(_checked_key(key), cpu.Buffer.from_bytes(bytes(content))), "write", key)
        except FileNotFoundError as error:
            raise self._error(error, "write", key) from error

    def put_if_absent(self, key: str, content: bytes) -> bytes:
        """Write one object unless there is one, and return the bytes that are there now."""
        from zarr.core.buffer import cpu

        there = self.get(key)
        if there is None:
            buffer = cpu.Buffer.from_bytes(content)
            try:
                self._wait(self._store.set_if_not_exists(key, buffer), "write", key)
            except FileNotFoundError as error:
                raise self._error(error, "write", key) from error
            there = self.get(key)
        return content if there is None else there

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._wait(self._store.delete(_checked_key(key)), "remove", key)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the objects' sizes, asked for concurrently."""
        import asyncio

        async def size(key: str) -> int | None:
            try:
                return await self._store.getsize(key)
            except FileNotFoundError:
                return None

        async def all_sizes() -> list[int | None]:
            return await asyncio.gather(*(size(key) for key in keys))

        return cast("list[int | None]", self._wait(all_sizes(), "read", keys[0] if keys else ""))

    def names(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, sorted."""

        async def listing() -> list[str]:
            return [name async for name in self._store.list_dir(prefix)]

        return sorted(self._wait(listing(), "list", prefix))

    def _wait(self, awaitable: Any, act: str, key: str) -> Any:
        from zarr.core.sync import sync

        try:
            return sync(awaitable)
        except FileNotFoundError:
            raise
        except Exception as error:  # each store library has its own family of errors
            raise self._error(error, act, key) from error

    def _error(self, error: Exception, act: str, key: str) -> InputError:
        return InputError(
            f"cannot {act} {key or '/'} in {self.url}: {_reason(error, self.options)}; "
            "check the URL, the credentials and the network"
        )


def _reopen(url: str, options: Mapping[str, Any]) -> Storage:
    return open_storage(url, storage_options=options)


def _memory_store(url: str) -> Store:
    from zarr.storage import MemoryStore

    with _open_lock:
        return _memory_stores.setdefault(url.rstrip("/"), MemoryStore())


def _object_store(url: str, options: Mapping[str, Any]) -> Store:
    try:
        from obstore.store import from_url
    except ImportError:
        raise DependencyError(f"{url} needs obstore; install it with: pip install 'saestore[cloud]'") from None
    from zarr.storage import ObjectStore

    config: Any = {name: value for name, value in options.items() if name != "client_options"}
    try:
        return ObjectStore(from_url(url, config=config or None, client_options=options.get("client_options")))
    except Exception as error:  # obstore raises its own family; its messages name the faulty key
        raise InputError(f"cannot open {url}: {_reason(error, options)}; check the URL and its options") from error


def _fsspec_store(url: str, options: Mapping[str, Any]) -> Store:
    import fsspec
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from zarr.storage import FsspecStore

    try:
        protocol = url.split("://", 1)[0]
        is_async = fsspec.get_filesystem_class(protocol).async_impl
        filesystem, path = fsspec.core.url_to_fs(url, **options, **({"asynchronous": True} if is_async else {}))
    except ImportError as error:
        raise DependencyError(f"{url} needs a package that is not installed: {error}") from None
    except Exception as error:  # each file system has its own family of errors
        reason = _reason(error, options)
        raise InputError(f"cannot open {url}: {reason}; use a path, s3://, gs://, az:// or memory://") from error
    return FsspecStore(filesystem if is_async else AsyncFileSystemWrapper(filesystem, asynchronous=True), path=path)


def _checked_key(key: str) -> str:
    """Refuse a key that leaves the lake: keys are made of names that were read from the lake too."""
    if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise InputError(f"{key!r} is not a path inside a lake; the lake's metadata were not written by saestore")
    return key


def _reason(error: Exception, options: Mapping[str, Any]) -> str:
    """Return the first line of a library's error without what must not be shown: secrets, and queries of URLs."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = re.sub(r"(://[^\s?]*\?)[^\s)]*", r"\1...", lines[0])
    for name, value in options.items():
        if isinstance(value, str) and value and _SECRET_OPTION.search(name):
            text = text.replace(value, "***")
    return text[:200]


def _read_range(descriptor: int, start: int, stop: int) -> bytes:
    """Read a range to its end or the file's: one call may return less than it was asked for."""
    parts: list[bytes] = []
    while start < stop and (part := os.pread(descriptor, stop - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _link_if_absent(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another writer was first
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if not path.exists():  # a file system without links, such as FAT
            os.replace(temporary, path)
            return
    temporary.unlink()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; a new name is durable when the folder that holds it is synced."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _explain(error: OSError, act: str, path: Path) -> InputError:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again, finished shards are kept",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose a folder you may write to, or change its permissions",
        errno.EPERM: "operation not permitted; choose a folder you may write to",
        errno.EROFS: "the file system is read-only; choose another place for the lake",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
        errno.EEXIST: "a part of the path is a file, not a folder; choose another path",
        errno.EISDIR: "there is a folder of that name; choose another path",
        errno.ENAMETOOLONG: "a name in the path is too long; choose a shorter one",
        errno.EMFILE: "too many open files; raise the limit with: ulimit -n 4096",
    }
    if act != "write":
        reasons[errno.EACCES] = "permission denied; ask the owner to let you read it"
    reason = reasons.get(error.errno or 0)
    return InputError(
        f"cannot {act} {path}: {reason or f'{error.strerror or type(error).__name__}; check the disk and the path'}"
    )
