"""Row groups: arrays that share one axis and one shard grid, and the ledger that says which shards exist.

Samples, positions, activations, codes and SAE weights are all stored this way (docs/format.md, section 3). A shard is
built in memory, put as one object per array, and then entered into the ledger; what is not in the ledger was not
written, and reading it is an error instead of Zarr's zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from saestore._row_documents import (
    LEDGER_FIELDS,
    ArraySpec,
    Grid,
    array_document,
    check_consistent,
    ledger_document,
    whole_array,
)
from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.layout import ATTRIBUTE, FORMAT_VERSION, LEDGER, RESULTS, parents
from saestore.shards import ShardedArray, checksum_bytes, decode, encode_shard
from saestore.storage import (
    Storage,
    claim_document,
    document_key,
    group_document,
    put_document,
    read_document,
)

__all__ = ["LEDGER_FIELDS", "ArraySpec", "Entry", "Grid", "RowGroup", "as_ranges", "group_exists", "shortened"]

_ENTRY = np.dtype("<u8")
_CONCURRENT_READS = 16


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one shard of one array.

    crc32c and bytes are of the stored object; flagged counts what the writer found worth counting (non-finite values
    of activations, truncated rows of codes); run is the identity of the writing plan.
    """

    crc32c: int
    bytes: int
    flagged: int
    run: int


class RowGroup:
    """A row group in a lake, open for reading and for writing shards.

    Get one from `create` or `open`. Methods may be called from several threads.
    """

    def __init__(self, storage: Storage, path: str, document: Mapping[str, Any]) -> None:
        self.storage = storage
        self.path = path
        self.attributes: dict[str, Any] = document["attributes"][ATTRIBUTE]
        self.axis: str = self.attributes["axis"]
        self._plural = "entries" if self.axis == "entry" else f"{self.axis}s"
        self.grid = Grid(**self.attributes["grid"])
        self.array_names: tuple[str, ...] = tuple(self.attributes["arrays"])
        self.run = int(self.attributes["run"], 16)
        self._documents: dict[str, Any] = document["consolidated_metadata"]["metadata"]
        check_consistent(self.grid, self.array_names, self._documents)
        self._arrays = {
            name: ShardedArray(storage, f"{path}/{name}", self._documents[name], self._size_by_ledger(column))
            for column, name in enumerate(self.array_names)
        }
        self._entries: dict[int, tuple[Entry, ...]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RowGroup.open, (self.storage, self.path)

    def __repr__(self) -> str:
        return f"<RowGroup {self.path}: {self.grid.rows} {self._plural}, arrays {', '.join(self.array_names)}>"

    @classmethod
    def create(
        cls,
        storage: Storage,
        path: str,
        *,
        kind: str,
        axis: str,
        grid: Grid,
        arrays: Sequence[ArraySpec],
        identity: Mapping[str, Any],
        whole: Mapping[str, tuple[NDArray[Any], tuple[str, ...]]] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> RowGroup:
        """Create the group, or open it if it was created from the same plan.

        Parameters
        ----------
        kind : str
            What the group holds (`samples`, `positions`, `activations`, `codes`, `sae`).
        axis : str
            Dimension name of the shared axis (`sample`, `row`, `unit`).
        identity : mapping
            JSON values that determine every stored byte (parameters and content hashes). Two plans with the same
            identity, grid and arrays are the same run, so a killed one can be continued.
        whole : mapping of str to (array, dimension names), optional
            Small arrays off the axis, each stored as one object now.
        attributes : mapping, optional
            JSON values that do not change what is stored (versions, quality).

        Raises
        ------
        ConflictError
            The group exists and was made from another plan, or another process is creating it from one.
        """
        plan = {
            "kind": kind,
            "axis": axis,
            "grid": {"rows": grid.rows, "shard_rows": grid.shard_rows, "chunk_rows": grid.chunk_rows},
            "arrays": [spec.name for spec in arrays],
            "identity": _plain(identity),
        }
        stored = {"dtypes": {spec.name: spec.dtype for spec in arrays}, "widths": [spec.width for spec in arrays]}
        run = hashlib.sha256(json.dumps([plan, stored], sort_keys=True).encode()).hexdigest()[:16]
        existing = read_document(storage, path)
        if existing is not None:
            group = cls.from_document(storage, path, existing)
            if group.attributes["run"] != run:
                raise ConflictError(_difference(storage, path, group.attributes, plan))
            return group
        for parent in parents(path):
            if read_document(storage, parent) is None:
                claim_document(storage, parent, group_document())
        # The ledger's document comes first and is never replaced: of two plans at once, one gets the place.
        ledger = ledger_document(grid.n_shards, len(arrays), run)
        claimed = claim_document(storage, f"{path}/{LEDGER}", ledger)
        if claimed != ledger:
            existing = read_document(storage, path)
            if existing is not None:
                raise ConflictError(
                    _difference(storage, path, cls.from_document(storage, path, existing).attributes, plan)
                )
            raise ConflictError(
                f"{path} in {storage.url} is being created from another plan, or was left half created by one that was "
                f"stopped; wait for it and run this again, or delete {path} if nothing is at work on it"
            )
        documents = {spec.name: array_document(spec, axis, grid) for spec in arrays}
        manifest: dict[str, Any] = {}
        for name, (content, dimensions) in (whole or {}).items():
            documents[name], encoded = whole_array(content, dimensions)
            manifest[name] = {"bytes": len(encoded), "crc32c": google_crc32c.value(encoded)}
            storage.put(_chunk_key(path, name, (0,) * content.ndim), encoded)
        for name, document in documents.items():
            put_document(storage, f"{path}/{name}", document)
        documents[LEDGER] = ledger
        own = {**plan, "format": FORMAT_VERSION, "run": run, "whole": manifest, **_plain(attributes or {})}
        document = group_document({ATTRIBUTE: own})
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": documents}
        # Last, because the group's own document is what says that the group exists.
        put_document(storage, path, document)
        return cls(storage, path, document)

    @classmethod
    def open(cls, storage: Storage, path: str) -> RowGroup:
        """Open an existing group.

        Raises
        ------
        MissingError
            There is no row group at the path.
        IntegrityError
            Its document is not one of this format.
        """
        document = read_document(storage, path)
        if document is None:
            raise MissingError(f"there is nothing at {path} in {storage.url}; `saestore status` lists what there is")
        return cls.from_document(storage, path, document)

    @classmethod
    def from_document(cls, storage: Storage, path: str, document: Mapping[str, Any]) -> RowGroup:
        """Open a group whose document has been read already."""
        own = document.get("attributes", {}).get(ATTRIBUTE)
        if isinstance(own, dict) and own.get("format", FORMAT_VERSION) != FORMAT_VERSION:
            raise IntegrityError(
                f"{path} in {storage.url} has format {own['format']}, this saestore reads format {FORMAT_VERSION}; "
                "update saestore"
            )
        if not isinstance(own, dict) or "grid" not in own or "consolidated_metadata" not in document:
            raise IntegrityError(
                f"{path} in {storage.url} is not a row group; it was not written by saestore: delete it, or give "
                "another path"
            )
        try:
            return cls(storage, path, document)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Attributes may be anybody's; what a reader needs of them is checked here, once.
            raise IntegrityError(
                f"the metadata of {path} in {storage.url} contradict the format "
                f"({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else '-'}); "
                "restore its zarr.json from a copy"
            ) from error

    # ---------------------------------------------------------------- ledger

    def written(self) -> NDArray[np.bool_]:
        """Return which shards are in the ledger, from one listing: (n_shards,) bool."""
        present = np.zeros(self.grid.n_shards, dtype=bool)
        for name in self.storage.names(f"{self.path}/{LEDGER}"):
            parts = name.split(".")
            if len(parts) == 4 and parts[0] == "c" and parts[1].isdigit() and int(parts[1]) < present.size:
                present[int(parts[1])] = True
        return present

    def written_ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the rows that are in the ledger begin and end, from one listing: ascending, (m,) int64 each."""
        edges = np.flatnonzero(np.diff(self.written(), prepend=False, append=False))
        return edges[::2] * self.grid.shard_rows, np.minimum(edges[1::2] * self.grid.shard_rows, self.grid.rows)

    def missing_shards(self) -> list[int]:
        """Return the shards that are not in the ledger."""
        return [int(shard) for shard in np.flatnonzero(~self.written())]

    @property
    def is_complete(self) -> bool:
        """Whether every shard is in the ledger."""
        return bool(self.written().all())

    def written_rows(self) -> int:
        """Return the number of rows whose shards are in the ledger."""
        present = self.written()
        full = int(present.sum()) * self.grid.shard_rows
        return full - (self.grid.n_shards * self.grid.shard_rows - self.grid.rows) * int(present[-1])

    def entries(self, shards: Iterable[int]) -> dict[int, tuple[Entry, ...] | None]:
        """Return the ledger's entries of shards, one per array; None for a shard that was not written."""
        wanted = list(shards)
        unknown = [shard for shard in wanted if shard not in self._entries]
        for shard, content in zip(unknown, self._get_many([self._ledger_key(shard) for shard in unknown]), strict=True):
            if content is not None:
                self._entries[shard] = self._decode_entry(content, shard)
        return {shard: self._entries.get(shard) for shard in wanted}

    def stored_bytes(self) -> int:
        """Return the bytes of all written shards and whole arrays, by the ledger."""
        entries = self.entries(np.flatnonzero(self.written()).tolist())
        shards = sum(entry.bytes for row in entries.values() if row is not None for entry in row)
        return shards + sum(int(item["bytes"]) for item in self.attributes["whole"].values())

    def flagged(self, name: str) -> int:
        """Return the total of the writer's counts for one array over all written shards."""
        column = self.array_names.index(name)
        entries = self.entries(np.flatnonzero(self.written()).tolist())
        return sum(row[column].flagged for row in entries.values() if row is not None)

    def content_hash(self) -> str:
        """Return a hash of everything stored: sha256 over the ledger's checksums and the identity.

        Raises
        ------
        HoleError
            Some shard was not written.
        """
        self.check_present(0, self.grid.rows)
        digest = hashlib.sha256(self.attributes["run"].encode())
        for shard, row in self.entries(range(self.grid.n_shards)).items():
            assert row is not None
            digest.update(repr((shard, [(entry.crc32c, entry.bytes) for entry in row])).encode())
        return digest.hexdigest()

    def check_present(self, start: int, stop: int) -> None:
        """Refuse rows that were never written.

        Raises
        ------
        HoleError
            A shard of `start:stop` is not in the ledger; the rows are named.
        """
        self._check_shards(self.grid.shards(start, stop))

    def _check_shards(self, shards: Iterable[int]) -> None:
        holes = [shard for shard, row in self.entries(shards).items() if row is None]
        if holes:
            first = self.grid.shard(holes[0])
            more = f" and {len(holes) - 1} more shards" if len(holes) > 1 else ""
            raise HoleError(
                f"{self._plural} {first.start} to {first.stop - 1}{more} of {self.path} were never written; "
                "run the command that writes them again, it goes on where it stopped"
            )

    # --------------------------------------------------------------- writing

    def write_shard(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], *, flagged: Mapping[str, int] | None = None
    ) -> int:
        """Write one shard of every array, then its ledger entry.

        Parameters
        ----------
        shard : int
            Index in the grid.
        arrays : mapping of str to array
            For every array of the group, its rows of the shard in the stored dtype.
        flagged : mapping of str to int, optional
            The writer's count for an array.

        Returns
        -------
        int
            Bytes stored.
        """
        rows = self.grid.shard(shard)
        entry = np.zeros((len(self.array_names), len(LEDGER_FIELDS)), dtype=_ENTRY)
        for column, name in enumerate(self.array_names):
            content = arrays[name]
            stored = self._arrays[name].dtype
            assert content.shape == (rows.stop - rows.start, *self._documents[name]["shape"][1:]), (name, content.shape)
            assert stored.hasobject or np.can_cast(content.dtype, stored, "safe"), (name, content.dtype, stored)
            encoded = encode_shard(self._documents[name], content)
            self.storage.put(_chunk_key(self.path, name, (shard,) + (0,) * (content.ndim - 1)), encoded)
            entry[column] = (google_crc32c.value(encoded), len(encoded), (flagged or {}).get(name, 0), self.run)
        raw = entry.tobytes()
        self.storage.put(self._ledger_key(shard), raw + checksum_bytes(raw))
        self._entries.pop(shard, None)
        for array in self._arrays.values():
            array.forget(shard)
        return int(entry[:, 1].sum())

    # --------------------------------------------------------------- reading

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read consecutive rows of one array.

        Returns
        -------
        array
            Rows `start:stop` in the stored dtype; strings as numpy objects.

        Raises
        ------
        HoleError
            Some rows were never written.
        IntegrityError
            A stored object is lost, too short, or fails a checksum.
        """
        stop = self.grid.rows if stop is None else stop
        if not 0 <= start <= stop <= self.grid.rows:
            raise InputError(f"rows {start}:{stop} of {self.path} do not exist; it has {self.grid.rows} {self._plural}")
        if name not in self._arrays:
            raise MissingError(f"{self.path} has no array {name!r}; it has {', '.join(self.array_names)}")
        self.check_present(start, stop)
        return self._arrays[name].read(start, stop)

    def take(self, name: str, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Read chosen rows of one array, in the order given; every chunk is read at most once.

        Raises
        ------
        HoleError, IntegrityError
            As for `read`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size == 0:
            return self.read(name, 0, 0)
        if rows.min() < 0 or rows.max() >= self.grid.rows:
            wrong = rows[(rows < 0) | (rows >= self.grid.rows)][0]
            raise InputError(f"{self.path} has {self.grid.rows} {self._plural}; number {wrong} was asked for")
        starts, stops, inverse = as_ranges(rows)
        return self.read_ranges(name, starts, stops)[inverse]

    def read_ranges(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[Any]:
        """Read the rows of several ranges of one array, one range after the other; every chunk is read at most once.

        Parameters
        ----------
        starts, stops : (m,) int64
            Ranges of rows that exist, ascending and disjoint.

        Raises
        ------
        HoleError, IntegrityError
            As for `read`.
        """
        if name not in self._arrays:
            raise MissingError(f"{self.path} has no array {name!r}; it has {', '.join(self.array_names)}")
        self.check_ranges(starts, stops)
        return self._arrays[name].read_ranges(starts, stops)

    def check_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Refuse ranges of rows that were never written; see `check_present`."""
        shards = np.zeros(self.grid.n_shards + 1, dtype=np.int64)
        np.add.at(shards, starts // self.grid.shard_rows, 1)
        np.add.at(shards, -(-stops // self.grid.shard_rows), -1)
        self._check_shards(np.flatnonzero(np.cumsum(shards)).tolist())

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype that an array is stored in."""
        return self._arrays[name].dtype

    def width(self, name: str) -> int:
        """Return the length of an array's second axis; 0 where it has none."""
        shape = self._documents[name]["shape"] if name in self._arrays else []
        return int(shape[1]) if len(shape) > 1 else 0

    def whole(self, name: str) -> NDArray[Any]:
        """Read a small array off the axis.

        Raises
        ------
        IntegrityError
            It is lost or damaged.
        """
        expected = self.attributes["whole"].get(name)
        if expected is None:
            raise MissingError(
                f"{self.path} has no array {name!r} off the axis; it has {list(self.attributes['whole'])}"
            )
        document = self._documents[name]
        key = _chunk_key(self.path, name, (0,) * len(document["shape"]))
        content = self.storage.get(key)
        if content is None or google_crc32c.value(content) != expected["crc32c"]:
            raise IntegrityError(f"{key} in {self.storage.url} is lost or damaged; restore it from a copy")
        raw = decode(memoryview(content), document["codecs"])
        return np.frombuffer(raw, dtype=np.dtype(document["data_type"]).newbyteorder("<")).reshape(document["shape"])

    def _get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) < 2:
            return [self.storage.get(key) for key in keys]
        with ThreadPoolExecutor(min(_CONCURRENT_READS, len(keys))) as pool:
            return list(pool.map(self.storage.get, keys))

    def _size_by_ledger(self, column: int) -> Callable[[int], int | None]:
        def size(shard: int) -> int | None:
            row = self.entries([shard])[shard]
            return None if row is None else row[column].bytes

        return size

    def _decode_entry(self, content: bytes, shard: int) -> tuple[Entry, ...]:
        raw, checksum = content[:-4], content[-4:]
        table = np.frombuffer(raw[: len(raw) // 8 * 8], dtype=_ENTRY).reshape(-1)
        shape = (len(self.array_names), len(LEDGER_FIELDS))
        if table.size != math.prod(shape) or len(raw) != table.nbytes or checksum_bytes(raw) != checksum:
            fault = "is damaged"
        elif not table.reshape(shape)[:, LEDGER_FIELDS.index("bytes")].all():
            fault = "names no stored bytes"
        elif (table.reshape(shape)[:, LEDGER_FIELDS.index("run")] != self.run).any():
            fault = "was written by another run into this group"
        else:
            return tuple(Entry(*map(int, row)) for row in table.reshape(shape))
        raise IntegrityError(
            f"the ledger entry {self._ledger_key(shard)} in {self.storage.url} {fault}; delete that file and run the "
            f"command that writes shard {shard} again"
        )

    def _ledger_key(self, shard: int) -> str:
        return f"{self.path}/{LEDGER}/c.{shard}.0.0"


def as_ranges(
    rows: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return chosen rows as ranges, ascending and disjoint, and the place of each row among the rows of these."""
    unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    breaks = np.flatnonzero(np.diff(unique) > 1)
    return unique[np.append(0, breaks + 1)], unique[np.append(breaks, unique.size - 1)] + 1, inverse


def group_exists(storage: Storage, path: str) -> bool:
    """Whether a node's document is there."""
    return storage.sizes([document_key(path)])[0] is not None


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True, allow_nan=False))
    return plain


def _difference(storage: Storage, path: str, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    old, new = {**stored, **stored["identity"]}, {**plan, **plan["identity"]}
    names = [name for name in new if name != "identity" and old.get(name) != new[name]]
    if any(name in plan["identity"] for name in names):  # of which other arrays only follow
        names = [name for name in names if name != "arrays"]
    changes = "; ".join(
        f"{name}: {shortened(json.dumps(old.get(name)))} is stored, {shortened(json.dumps(new[name]))} was asked"
        for name in names[:3]
    )
    remedy = f"store the new one under another name, or delete {path} first"
    if plan["kind"] in RESULTS:
        remedy = f"give this one another --name, or delete {path} first"
    return f"{path} in {storage.url} exists and was made differently ({changes or 'other array types'}); {remedy}"


def shortened(text: str) -> str:
    """Return text of at most 60 characters, for a message."""
    return text if len(text) <= 60 else text[:57] + "..."


def _chunk_key(path: str, name: str, index: tuple[int, ...]) -> str:
    return "/".join([path, name, "c", *map(str, index)])
