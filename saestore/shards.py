"""Zarr v3 shards as bytes: encoding a whole shard, and reading rows with every checksum verified.

The bytes are those of the `sharding_indexed` codec, so any Zarr v3 reader opens them. Reading is done here because
zarr 3.1.6 fetches the inner chunks of a shard one after the other and takes a lost object for zeros, and the zarrs
pipeline does not verify the checksum of a chunk that is read in part (a flipped bit came back as data in 60 of 60
trials). Writing is done here because zarr reads the old shard before it writes the new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from saestore.errors import IntegrityError
from saestore.kernels.ramps import ramps
from saestore.mirror import MirroredStorage
from saestore.prefetch import ReadingPool
from saestore.storage import Storage

_READ_BYTES = 2 << 20  # the most that is fetched at once, so that decoding overlaps with fetching
_CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1

_pool = ReadingPool(8)


@dataclass(frozen=True)
class _Pieces:
    """Ranges of rows cut where chunks end, in the order of the rows: arrays with an entry for each piece.

    chunk : chunk of the array that a piece lies in
    low, high : its rows within the chunk
    place : where it goes in the result
    """

    chunk: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, starts: NDArray[np.int64], stops: NDArray[np.int64], chunk_rows: int) -> _Pieces:
        """Cut ranges of rows."""
        first = starts // chunk_rows
        counts = np.where(stops > starts, -(-stops // chunk_rows) - first, 0)
        chunk = ramps(first, counts)
        base = chunk * chunk_rows
        low = np.maximum(np.repeat(starts, counts), base) - base
        high = np.minimum(np.repeat(stops, counts), base + chunk_rows) - base
        return cls(chunk, low, high, np.cumsum(high - low) - (high - low))

    def copy(self, pieces: range, rows: NDArray[Any], out: NDArray[Any]) -> None:
        """Put the pieces of one chunk, whose rows are given, where they go: one place, since they follow each other."""
        first, stop = pieces.start, pieces.stop
        place = self.place[first]
        if stop - first == 1:
            low, high = self.low[first], self.high[first]
            out[place : place + high - low] = rows[low:high]
            return
        wanted = ramps(self.low[first:stop], self.high[first:stop] - self.low[first:stop])
        out[place : place + len(wanted)] = rows[wanted]


@dataclass(frozen=True)
class _Wanted:
    """A chunk of a shard in a fetch: its pieces, and where its bytes are in those of a request."""

    chunk: int
    places: range
    request: int
    begin: int
    size: int


@dataclass(frozen=True)
class _Fetch:
    """Chunks of one shard that are fetched together, by requests for ranges of bytes."""

    shard: int
    ranges: list[tuple[int, int]]
    chunks: list[_Wanted]


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
        return self.read_ranges(np.array([start]), np.array([stop]))

    def read_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of several ranges, one range after the other; each chunk is fetched and decoded once.

        Parameters
        ----------
        starts, stops : (m,) int64
            Ranges of rows, ascending and disjoint.

        Raises
        ------
        IntegrityError
            As for `read`.
        """
        out = np.empty((int((stops - starts).sum()), *self._shape[1:]), dtype=self.dtype)
        pieces = _Pieces.of(starts, stops, self._chunk_rows)
        shards = list(self._by_shard(pieces))
        unknown = [shard for shard, _ in shards if shard not in self._indexes]
        if len(unknown) > 1:
            _pool.map(self._index, unknown)
        fetches = [fetch for shard, chunks in shards for fetch in self._fetches(shard, chunks)]
        if len(fetches) == 1:
            self._fetch(fetches[0], pieces, out)
        else:
            _pool.map(lambda fetch: self._fetch(fetch, pieces, out), fetches)
        return out

    def _by_shard(self, pieces: _Pieces) -> Iterator[tuple[int, list[tuple[int, range]]]]:
        """Yield each shard with its chunks that are wanted: the chunk's place in the shard, and its pieces."""
        if not len(pieces.chunk):
            return
        edges = [0, *(np.flatnonzero(np.diff(pieces.chunk)) + 1).tolist(), len(pieces.chunk)]
        per_shard = self._shard_rows // self._chunk_rows
        chunks = pieces.chunk[edges[:-1]].tolist()
        wanted = zip(chunks, map(range, edges[:-1], edges[1:]), strict=True)
        for shard, group in itertools.groupby(wanted, lambda one: one[0] // per_shard):
            yield shard, [(chunk - shard * per_shard, places) for chunk, places in group]

    def _fetches(self, shard: int, wanted: list[tuple[int, range]]) -> list[_Fetch]:
        """Group the wanted chunks of a shard into requests for neighbours, and the requests into fetches."""
        index = self._index(shard)[[chunk for chunk, _ in wanted]].tolist()
        fetches: list[_Fetch] = []
        size = 0
        for (chunk, places), (begin, length) in zip(wanted, index, strict=True):
            if not fetches or size + length > _READ_BYTES:
                fetches.append(_Fetch(shard, [], []))
                size = 0
            fetch = fetches[-1]
            if fetch.ranges and 0 <= begin - fetch.ranges[-1][1] <= self._storage.gap_bytes:
                size += begin + length - fetch.ranges[-1][1]
                fetch.ranges[-1] = (fetch.ranges[-1][0], begin + length)
            else:
                size += length
                fetch.ranges.append((begin, begin + length))
            fetch.chunks.append(_Wanted(chunk, places, len(fetch.ranges) - 1, begin - fetch.ranges[-1][0], length))
        return fetches

    def _fetch(self, fetch: _Fetch, pieces: _Pieces, out: NDArray[Any]) -> None:
        try:
            self._fetch_once(fetch, pieces, out)
        except IntegrityError:
            if not self._drop_bad_copy(fetch.shard):
                raise
            wanted = [(one.chunk, one.places) for one in fetch.chunks]
            for again in self._fetches(fetch.shard, wanted):
                self._fetch_once(again, pieces, out)

    def _fetch_once(self, fetch: _Fetch, pieces: _Pieces, out: NDArray[Any]) -> None:
        parts = self._storage.get_ranges(self._key(fetch.shard), fetch.ranges)
        sizes = [end - begin for begin, end in fetch.ranges]
        if parts is None or [len(part) for part in parts] != sizes:
            raise self._damage(fetch.shard, "is lost or too short")
        for one in fetch.chunks:
            content = memoryview(parts[one.request])[one.begin : one.begin + one.size]
            pieces.copy(one.places, self._decode(content, fetch.shard, one.chunk), out)

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
            try:
                found = self._read_index(shard)
            except IntegrityError:
                if not self._drop_bad_copy(shard):
                    raise
                found = self._read_index(shard)
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

    def _drop_bad_copy(self, shard: int) -> bool:
        """Where a damaged object was a local copy, drop it, so that it is read where it lies; else return False."""
        if not isinstance(self._storage, MirroredStorage) or not self._storage.distrust(self._key(shard)):
            return False
        self.forget(shard)
        return True

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
    chunks = _pool.map(encode_chunk, range(0, len(content), chunk_rows))
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
