"""Zarr v3 shards as bytes: encoding a whole shard, and reading rows with every checksum verified.

The bytes are those of the `sharding_indexed` codec, so any Zarr v3 reader opens them. Reading is done here because
zarr 3.1.6 fetches the inner chunks of a shard one after the other and takes a lost object for zeros, and the zarrs
pipeline does not verify the checksum of a chunk that is read in part (a flipped bit came back as data in 60 of 60
trials). Writing is done here because zarr reads the old shard before it writes the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from saestore.errors import IntegrityError
from saestore.mirror import MirroredStorage
from saestore.storage import Storage

_GAP_BYTES = 256 << 10  # reading over a gap of this size costs less than another request
_READ_BYTES = 8 << 20  # the most that one request fetches, so that decoding overlaps with fetching
_CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1
_THREADS = 8

Result = TypeVar("Result")

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="saestore-read")


def _start_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="saestore-read")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: in a child (a DataLoader's worker) the inherited pool would wait for them forever.
    os.register_at_fork(after_in_child=_start_pool)


class ShardedArray:
    """One sharded array of a row group, read by ranges of rows. Methods may be called from several threads.

    Parameters
    ----------
    storage : Storage
        Where the array lies.
    path : str
        Path of the array.
    document : mapping
        Its Zarr v3 metadata: shards and chunks span the whole second axis, `index_location` is `start`.
    stored_bytes : callable, optional
        Gives the size of a shard's object by the ledger; another size is damage.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        document: Mapping[str, Any],
        stored_bytes: Callable[[int], int | None] | None = None,
    ) -> None:
        self._storage = storage
        self._path = path
        self._shape = tuple(document["shape"])
        self._shard_rows = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        sharding = document["codecs"][0]["configuration"]
        self._chunk_rows = int(sharding["chunk_shape"][0])
        self._codecs = sharding["codecs"]
        self._is_string = document["data_type"] == "string"
        self.dtype = np.dtype(object if self._is_string else document["data_type"])
        self._stored_bytes = stored_bytes
        self._indexes: dict[int, NDArray[np.uint64]] = {}

    def forget(self, shard: int) -> None:
        """Drop what is remembered of a shard, because it is written anew."""
        self._indexes.pop(shard, None)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start:stop`, which must have been written.

        Raises
        ------
        IntegrityError
            An object is lost, too short, or a checksum disagrees.
        """
        out = np.empty((stop - start, *self._shape[1:]), dtype=self.dtype)
        reads = [
            (shard, group)
            for shard in range(start // self._shard_rows, -(-stop // self._shard_rows) if stop > start else 0)
            for group in self._requests(shard, start, stop)
        ]
        if len(reads) == 1:
            self._fetch(reads[0][0], reads[0][1], start, out)
        else:
            list(_pool.map(lambda read: self._fetch(read[0], read[1], start, out), reads))
        return out

    def _requests(self, shard: int, start: int, stop: int) -> list[range]:
        """Group the chunks of a shard that hold rows of `start:stop` into fetches of neighbours."""
        index = self._index(shard)
        base = shard * self._shard_rows
        first = max(start - base, 0) // self._chunk_rows
        last = -(-min(stop - base, self._shard_rows) // self._chunk_rows)
        groups: list[range] = []
        for chunk in range(first, last):
            if groups:
                begin, (_, size) = int(index[groups[-1][0], 0]), map(int, index[chunk])
                gap = int(index[chunk, 0]) - int(index[chunk - 1].sum())
                if 0 <= gap <= _GAP_BYTES and int(index[chunk, 0]) + size - begin <= _READ_BYTES:
                    groups[-1] = range(groups[-1].start, chunk + 1)
                    continue
            groups.append(range(chunk, chunk + 1))
        return groups

    def _fetch(self, shard: int, chunks: range, start: int, out: NDArray[Any]) -> None:
        self._without_bad_copy(shard, lambda: self._fetch_once(shard, chunks, start, out))

    def _fetch_once(self, shard: int, chunks: range, start: int, out: NDArray[Any]) -> None:
        index = self._index(shard)
        begin = int(index[chunks[0], 0])
        end = int(index[chunks[-1]].sum())
        parts = self._storage.get_ranges(self._key(shard), [(begin, end)])
        if parts is None or len(parts[0]) != end - begin:
            raise self._damage(shard, "is lost or too short")
        view = memoryview(parts[0])
        for chunk in chunks:
            offset, size = int(index[chunk, 0]) - begin, int(index[chunk, 1])
            first_row = shard * self._shard_rows + chunk * self._chunk_rows
            low, high = max(start, first_row), min(start + len(out), first_row + self._chunk_rows)
            rows = self._decode(view[offset : offset + size], shard, chunk)
            out[low - start : high - start] = rows[low - first_row : high - first_row]

    def _decode(self, content: memoryview, shard: int, chunk: int) -> NDArray[Any]:
        shape = (self._chunk_rows, *self._shape[1:])
        try:
            raw = decode(content, self._codecs)
            if self._is_string:
                return np.asarray(raw, dtype=object).reshape(shape)
            return np.frombuffer(raw, dtype=self.dtype.newbyteorder("<")).reshape(shape)
        except Exception as error:  # whatever the codec library makes of bad bytes
            raise self._damage(shard, f"is damaged in chunk {chunk} ({error})") from error

    def _index(self, shard: int) -> NDArray[np.uint64]:
        """Offsets and sizes of a shard's chunks, (n_chunks, 2)."""
        found = self._indexes.get(shard)
        if found is None:
            found = self._without_bad_copy(shard, lambda: self._read_index(shard))
            self._indexes[shard] = found  # one assignment: threads that come at once store the same
        return found

    def _read_index(self, shard: int) -> NDArray[np.uint64]:
        n_chunks = self._shard_rows // self._chunk_rows
        parts = self._storage.get_ranges(self._key(shard), [(0, 16 * n_chunks + _CHECKSUM_BYTES)])
        if parts is None or len(parts[0]) != 16 * n_chunks + _CHECKSUM_BYTES:
            raise self._damage(shard, "is lost or too short")
        try:
            index = np.frombuffer(_verified(memoryview(parts[0])), dtype="<u8").reshape(n_chunks, 2)
        except ValueError as error:
            raise self._damage(shard, f"is damaged in its index ({error})") from error
        rows = min(self._shape[0] - shard * self._shard_rows, self._shard_rows)
        used = index[: -(-rows // self._chunk_rows)]
        ends = used.sum(axis=1)
        if (used == _ABSENT).any() or (ends < used[:, 0]).any():
            raise self._damage(shard, "has no chunk for some of its rows")
        expected = None if self._stored_bytes is None else self._stored_bytes(shard)
        if expected is not None and int(ends.max()) != expected:
            raise self._damage(shard, "is not the object that its ledger entry is about")
        return index

    def _without_bad_copy(self, shard: int, read: Callable[[], Result]) -> Result:
        """Read a shard; where that was a local copy and it is damaged, read once more where the shard lies."""
        try:
            return read()
        except IntegrityError:
            if not isinstance(self._storage, MirroredStorage) or not self._storage.distrust(self._key(shard)):
                raise
            self.forget(shard)
            return read()

    def _key(self, shard: int) -> str:
        return "/".join([self._path, "c", str(shard), *["0"] * (len(self._shape) - 1)])

    def _damage(self, shard: int, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self._key(shard)} in {self._storage.url} {what}; "
            "restore it from a copy, or remove its ledger entry and write it again"
        )


def encode_shard(document: Mapping[str, Any], content: NDArray[Any]) -> bytes:
    """Encode one shard.

    Parameters
    ----------
    document : mapping
        The array's Zarr v3 metadata (`index_location` start; shards and chunks span the second axis).
    content : array
        The shard's rows in the array's dtype; the last shard of an array may be short and is padded as Zarr asks.

    Returns
    -------
    bytes
        The index (offset and size of each chunk, and its crc32c), then the chunks in order. Equal rows give equal
        bytes: chunks are compressed by one thread each, as c-blosc's own threads would order blocks by completion.
    """
    sharding = document["codecs"][0]["configuration"]
    shard_rows = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
    chunk_rows = int(sharding["chunk_shape"][0])
    is_string = document["data_type"] == "string"
    dtype = np.dtype(object if is_string else document["data_type"])
    fill = np.full((chunk_rows, *content.shape[1:]), document["fill_value"], dtype=dtype)

    def encode_chunk(first: int) -> bytes:
        rows = np.ascontiguousarray(content[first : first + chunk_rows], dtype=dtype)
        if len(rows) < chunk_rows:
            rows = np.concatenate([rows, fill[len(rows) :]])
        return encode(rows, sharding["codecs"])

    n_chunks = shard_rows // chunk_rows
    chunks = list(_pool.map(encode_chunk, range(0, len(content), chunk_rows)))
    index = np.full((n_chunks, 2), _ABSENT, dtype="<u8")
    sizes = np.array([len(chunk) for chunk in chunks], dtype="<u8")
    index[: len(chunks), 1] = sizes
    index[: len(chunks), 0] = 16 * n_chunks + _CHECKSUM_BYTES + np.cumsum(sizes) - sizes
    raw = index.tobytes()
    return b"".join([raw, checksum_bytes(raw), *chunks])


def encode(content: NDArray[Any], codecs: Sequence[Mapping[str, Any]]) -> bytes:
    """Apply a chain of Zarr v3 codecs to one chunk; the inverse of `decode`."""
    from numcodecs import blosc, vlen, zstd

    current: Any = content
    for codec in codecs:
        name, options = codec["name"], codec.get("configuration", {})
        if name == "crc32c":
            current = bytes(current) + checksum_bytes(current)
        elif name == "blosc":
            shuffle = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
            array = np.frombuffer(current, dtype=f"V{options['typesize']}")
            current = blosc.compress(
                array, options["cname"].encode(), options["clevel"], shuffle[options["shuffle"]], options["blocksize"]
            )
        elif name == "zstd":
            current = zstd.compress(current, options["level"])
        elif name == "vlen-utf8":
            current = vlen.VLenUTF8().encode(current)
        elif name == "bytes":
            current = content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
        else:
            raise ValueError(f"codec {name} is not part of the format")
    return bytes(current)


def checksum_bytes(content: bytes) -> bytes:
    """Return the four bytes that Zarr's crc32c codec appends."""
    return int(google_crc32c.value(bytes(content))).to_bytes(_CHECKSUM_BYTES, "little")


def decode(content: memoryview, codecs: Sequence[Mapping[str, Any]]) -> Any:
    """Undo a chain of Zarr v3 codecs; the format uses bytes, vlen-utf8, blosc, zstd and crc32c.

    Returns
    -------
    buffer or array of str
        The raw little-endian bytes; an object array for vlen-utf8.

    Raises
    ------
    ValueError, RuntimeError
        The bytes are not what was encoded.
    """
    from numcodecs import blosc, vlen, zstd

    current: Any = content
    for codec in reversed(codecs):
        name = codec["name"]
        if name == "crc32c":
            current = _verified(current)
        elif name == "blosc":
            if int.from_bytes(current[12:16], "little") != len(current):  # c-blosc believes its header
                raise ValueError("blosc header of another length")
            current = blosc.decompress(current)
        elif name == "zstd":
            current = zstd.decompress(current)
        elif name == "vlen-utf8":
            current = vlen.VLenUTF8().decode(current)
        elif name != "bytes":
            raise ValueError(f"codec {name} is not part of the format")
    return current


def _verified(content: memoryview) -> memoryview:
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    # The C extension takes bytes or an array, not a memoryview; the array costs no copy.
    if google_crc32c.value(np.frombuffer(body, dtype=np.uint8)) != int.from_bytes(checksum, "little"):
        raise ValueError("checksum mismatch")
    return body
