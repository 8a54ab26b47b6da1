"""The two axes of a dataset in the lake: its samples, and the positions (tokens or patches) of a model in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore._nearest import nearest
from saestore.errors import ConflictError, InputError, MissingError
from saestore.kernels.ramps import ramps
from saestore.layout import DATA, LEDGER, SPLITS, ModelKey, check_column, is_name, samples_path
from saestore.parts import Stored, check_appended, n_parts, of_parts, open_axis, parts_of
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.samples import SampleTable
from saestore.storage import Storage, read_document

UNLABELLED = 255

_SAMPLE_SHARD = 65_536
_SAMPLE_CHUNK = 1_024
_POSITION_SHARD = 262_144
_POSITION_CHUNK = 16_384


class Samples:
    """The stored sample table of one dataset."""

    def __init__(self, group: Stored, dataset: str) -> None:
        self.group = group
        self.dataset = dataset
        self.kind: str = group.attributes["content"]
        self.concept_names: tuple[str, ...] = tuple(group.attributes["concept_names"])
        self.column_names: tuple[str, ...] = tuple(group.attributes["columns"])

    def __len__(self) -> int:
        return self.group.grid.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.group, self.dataset)

    @classmethod
    def open(cls, storage: Storage, dataset: str, *, parts: int | None = None) -> Samples:
        """Open the samples of a dataset, all parts of it or the first ones.

        Raises
        ------
        MissingError
            The lake has no such dataset.
        """
        count = n_parts(storage, dataset) if parts is None else parts
        try:
            return cls(open_axis(storage, [samples_path(dataset, part) for part in range(count)]), dataset)
        except MissingError:
            known = nearest(dataset, list(filter(is_name, storage.names(DATA))), "datasets")
            raise MissingError(
                f"the lake {storage.url} has no dataset {dataset!r} ({known}); extract or import it first"
            ) from None

    @classmethod
    def open_part(cls, storage: Storage, dataset: str, part: int) -> Samples:
        """Open the samples of one part of a dataset (MissingError where there is none)."""
        return cls(RowGroup.open(storage, samples_path(dataset, part)), dataset)

    @property
    def digest(self) -> str:
        """sha256 of the table's content."""
        return cast(str, self.group.attributes["identity"]["digest"])

    @cached_property
    def ids(self) -> NDArray[Any]:
        """The samples' ids, (n_samples,) str objects."""
        return self.group.read("id")

    @cached_property
    def split(self) -> NDArray[Any]:
        """`train`, `cal`, `test` or the empty string, (n_samples,) str objects."""
        return self.group.read("split")

    def contents(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return texts, or paths of images, as str objects."""
        return self.group.read(self._content_array, start, stop)

    def contents_of(self, samples: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return the texts or paths of chosen samples, in the order given."""
        return self.group.take(self._content_array, samples)

    def column(self, name: str) -> NDArray[Any]:
        """Return an extra column.

        Raises
        ------
        MissingError
            There is no such column.
        """
        if name not in self.column_names:
            raise MissingError(f"dataset {self.dataset!r} has no column {name!r}; it has {list(self.column_names)}")
        return self.group.read(name)

    def concept(self, name: str) -> NDArray[np.uint8]:
        """Return a concept's labels: 1, 0, or 255 where unlabelled, (n_samples,).

        Raises
        ------
        MissingError
            There is no such concept.
        """
        if name not in self.concept_names:
            known = ", ".join(self.concept_names[:10]) or "none"
            raise MissingError(f"dataset {self.dataset!r} has no concept {name!r}; it has {known}")
        return self.group.read("concepts")[:, self.concept_names.index(name)]

    def index_of(self, sample: str) -> int:
        """Return the place of a sample id.

        Raises
        ------
        MissingError
            There is no such sample.
        """
        found = np.flatnonzero(self.ids == sample)
        if found.size == 0:
            raise MissingError(f"dataset {self.dataset!r} has no sample {sample!r}; its first is {self.ids[0]!r}")
        return int(found[0])

    def of_split(self, split: str) -> NDArray[np.int64]:
        """Return the places of the samples in a split.

        Raises
        ------
        InputError
            The split is unknown, or the dataset has no sample in it.
        """
        if split not in SPLITS:
            raise InputError(f"split {split!r} is unknown; choose from {', '.join(SPLITS)}")
        found = np.flatnonzero(self.split == split)
        if found.size == 0:
            counts = {name: int(np.count_nonzero(self.split == name)) for name in SPLITS}
            there = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
            remedy = f"it has {there}; name one of these" if there else "give its table a split column"
            raise InputError(f"dataset {self.dataset!r} has no sample in split {split!r}; {remedy}")
        return found

    @property
    def _content_array(self) -> str:
        return "text" if self.kind == "text" else "path"


def stored_parts(storage: Storage, dataset: str) -> list[Samples]:
    """Return the sample tables of the parts of a dataset, that which is being written included; none without it."""
    paths = [samples_path(dataset, part) for part in range(n_parts(storage, dataset))]
    parts: list[Samples] = []
    for path, document in zip(paths, of_parts(lambda path: read_document(storage, path), paths), strict=True):
        if document is None:
            break
        parts.append(Samples(RowGroup.from_document(storage, path, document), dataset))
    return parts


def table_parts(storage: Storage, dataset: str, table: SampleTable) -> list[SampleTable]:
    """Cut a sample table where the stored parts of the dataset end; what is new is the last piece.

    So a table that has grown at its end is the stored one and a part more. Nothing is written.

    Raises
    ------
    ConflictError
        The table is not one that has grown: it begins with other samples than those that are stored.
    """
    pieces: list[SampleTable] = []
    start = 0
    for stored in stored_parts(storage, dataset):
        if start >= len(table):
            break
        piece = table[start : start + len(stored)]
        if piece.digest() != stored.digest:
            where = f"samples {start:,} to {start + len(stored) - 1:,} of dataset {dataset!r}"
            raise ConflictError(
                f"{where} are stored and the table has others there ({_first_difference(stored, piece)}); samples "
                "can be added at the end only: store this table under another dataset name"
            )
        pieces.append(piece)
        start += len(piece)
    return [*pieces, table[start:]] if start < len(table) else pieces


def _first_difference(stored: Samples, piece: SampleTable) -> str:
    """Return in what a table differs from a stored one, by the cheapest that tells."""
    if len(stored) != len(piece):
        return f"{len(stored):,} samples against {len(piece):,}"
    if not stored.group.is_complete:  # of a writer that was stopped, whose table this is not
        return f"what {stored.group.path} was begun with; delete it if that table is gone"
    for name, known, given in (("id", stored.ids, piece.ids), ("split", stored.split, piece.split)):
        differing = np.flatnonzero(known != np.asarray(given, dtype=object))
        if differing.size:
            place = differing[0]
            return f"the {name} of number {place} is {known[place]!r}, and {given[place]!r} in the table"
    for what, names, others in (
        ("columns", stored.column_names, tuple(piece.columns)),
        ("concepts", stored.concept_names, piece.concept_names),
    ):
        if sorted(names) != sorted(others):
            return f"{what} {list(names)[:5]} against {list(others)[:5]}"
    return "contents, columns or labels differ"


def write_samples(storage: Storage, dataset: str, table: SampleTable, part: int = 0) -> Samples:
    """Store the sample table of a part of a dataset, or open it if the same one is stored already.

    Raises
    ------
    ConflictError
        The part exists with other samples, or the table has other columns, types of them, or concepts than the first.
    InputError
        The dataset's or a column's name cannot be stored.
    """
    content = "text" if table.kind == "text" else "path"
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray(table.ids, dtype=object),
        "split": np.asarray(table.split, dtype=object),
        content: np.asarray(table.contents, dtype=object),
    }
    for name, column in table.columns.items():
        arrays[check_column(name)] = _storable(column)
    if table.concept_names:
        arrays["concepts"] = np.asarray(table.concepts, dtype=np.uint8)
    folded = [name.casefold() for name in (*arrays, LEDGER)]
    if len(set(folded)) != len(folded):
        twin = next(name for name in table.columns if folded.count(name.casefold()) > 1)
        raise InputError(
            f"column name {twin!r} differs from another one only in case, which some file systems do not tell apart; "
            "rename the column"
        )
    specs = [
        ArraySpec(
            name,
            "string" if values.dtype == object else str(values.dtype),
            None if values.ndim == 1 else values.shape[1],
            width_axis="concept",
            codec="zstd",
        )
        for name, values in arrays.items()
    ]
    about: dict[str, Any] = {
        "content": table.kind,
        "columns": list(table.columns),
        "concept_names": list(table.concept_names),
    }
    if part:
        check_appended(storage, samples_path(dataset), about, specs)
    group = RowGroup.create(
        storage,
        samples_path(dataset, part),
        kind="samples",
        axis="sample",
        grid=Grid.plan(len(table.ids), shard_rows=_SAMPLE_SHARD, chunk_rows=_SAMPLE_CHUNK),
        arrays=specs,
        identity={"digest": table.digest()},
        attributes=about,
    )
    _write_all(group, arrays)
    return Samples(group, dataset)


class Positions:
    """The position axis of one model over one dataset: which rows belong to which sample, and what they are."""

    def __init__(self, group: Stored, key: ModelKey) -> None:
        self.group = group
        self.key = key

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Positions, (self.group, self.key)

    @classmethod
    def open(cls, storage: Storage, key: ModelKey, *, parts: int | None = None) -> Positions:
        """Open the positions of a model over a dataset, all parts of it or the first ones.

        Raises
        ------
        MissingError
            None are stored.
        """
        count = n_parts(storage, key.dataset) if parts is None else parts
        return cls(open_axis(storage, [key.at(part).positions_path for part in range(count)]), key.at(0))

    @classmethod
    def open_part(cls, storage: Storage, key: ModelKey) -> Positions:
        """Open the positions over one part of a dataset (MissingError where there are none)."""
        return cls(RowGroup.open(storage, key.positions_path), key)

    @property
    def digest(self) -> str:
        """sha256 of the texts or images, the tokenizer and the positions it made of them."""
        return cast(str, self.group.attributes["identity"]["digest"])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First row of each sample, and the number of rows: (n_samples + 1,)."""
        parts = [part for part in parts_of(self.group) if isinstance(part, RowGroup)]
        whole = of_parts(lambda part: part.whole("offsets"), parts)
        if len(whole) == 1:
            return whole[0]
        return np.append(0, np.cumsum(np.concatenate([np.diff(offsets) for offsets in whole])))

    def sample_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of the sample that each row belongs to."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def rows_of(self, samples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return all rows of chosen samples, sample by sample.

        Raises
        ------
        InputError
            A sample does not exist.
        """
        places = np.asarray(samples, dtype=np.int64)
        outside = (places < 0) | (places >= len(self.offsets) - 1)
        if outside.any():
            raise InputError(f"sample {places[outside][0]} does not exist: there are {len(self.offsets) - 1} samples")
        return ramps(self.offsets[places], np.diff(self.offsets)[places])

    def special(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Return which rows are special tokens, which analyses leave out."""
        return self.group.read("special", start, stop)

    def has(self, name: str) -> bool:
        """Whether the axis carries an array (`token_id`, `char_start`, `char_end`, `box`)."""
        return name in self.group.array_names


def write_positions(
    storage: Storage,
    key: ModelKey,
    *,
    offsets: NDArray[np.int64],
    arrays: Mapping[str, NDArray[Any]],
    digest: str,
    attributes: Mapping[str, Any],
) -> Positions:
    """Store a position axis, or open it if the same one is stored already.

    Parameters
    ----------
    offsets : (n_samples + 1,) int64
    arrays : mapping
        `special` (n,) bool always; for text `token_id` (n,) uint32, `char_start` and `char_end` (n,) int32; for images
        `box` (n, 4) float32.
    digest : str
        What the axis was made from; another digest is another axis.

    Raises
    ------
    ConflictError
        The model has another position axis over this dataset: another tokenizer, or other texts; or one of another
        kind over the first part.
    """
    n = int(offsets[-1])
    specs = [
        ArraySpec(name, str(values.dtype), None if values.ndim == 1 else values.shape[1], width_axis="corner")
        for name, values in arrays.items()
    ]
    if key.part:
        about = {name: attributes.get(name) for name in ("content", "model_id")}
        check_appended(storage, key.at(0).positions_path, about, specs)
    group = RowGroup.create(
        storage,
        key.positions_path,
        kind="positions",
        axis="row",
        grid=Grid.plan(n, shard_rows=_POSITION_SHARD, chunk_rows=_POSITION_CHUNK),
        arrays=specs,
        identity={"digest": digest},
        whole={"offsets": (offsets, ("sample_edge",))},
        attributes=attributes,
    )
    _write_all(group, arrays)
    return Positions(group, key)


def _write_all(group: RowGroup, arrays: Mapping[str, NDArray[Any]]) -> None:
    for shard in group.missing_shards():
        rows = group.grid.shard(shard)
        group.write_shard(shard, {name: values[rows] for name, values in arrays.items()})


def _storable(column: Any) -> NDArray[Any]:
    values = np.asarray(column)
    if values.dtype.kind not in "biuf":
        return np.asarray(column, dtype=object)
    return values.astype(values.dtype.newbyteorder("="), copy=False)  # the format knows no other byte order
