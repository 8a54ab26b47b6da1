"""Stored concept labels of positions: for every row and every concept yes, no or unlabelled."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore._nearest import nearest
from saestore.errors import ConflictError, InputError, IntegrityError, MissingError
from saestore.layout import ModelKey, is_name
from saestore.parts import Absent, RowParts, Stored, check_appended, parts_of
from saestore.prefetch import together
from saestore.rows import ArraySpec, Grid, RowGroup, group_exists
from saestore.storage import Storage, read_document
from saestore.tables import UNLABELLED, Positions

ARRAY = "concepts"
DEFAULT_NAME = "concepts"

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 262_144
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 16_384
# Labels are hashed before the first shard is written; longer ones wait on the disk meanwhile.
_KEPT_BYTES = 64 << 20


class Labels:
    """Concept labels of the positions of one model over one dataset, (n_rows, n_concepts)."""

    def __init__(self, group: Stored, key: ModelKey, name: str) -> None:
        self.group = group
        self.key = key
        self.name = name
        self.concept_names: tuple[str, ...] = tuple(group.attributes["concept_names"])

    def __len__(self) -> int:
        return self.group.grid.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Labels, (self.group, self.key, self.name)

    def __repr__(self) -> str:
        return f"<Labels {self.key.labels_path(self.name)}: {len(self)} rows x {len(self.concept_names)} concepts>"

    @classmethod
    def open(cls, storage: Storage, key: ModelKey, name: str = DEFAULT_NAME, *, parts: int | None = None) -> Labels:
        """Open the labels of the positions of a model, over all parts of the dataset or the first ones.

        Positions that were appended and not labelled yet are part of the axis; reading them is a HoleError.

        Raises
        ------
        MissingError
            There are no such labels, or no positions.
        IntegrityError
            The labels were made for other positions than those that are stored.
        """
        key = key.at(0)
        axis = parts_of(Positions.open(storage, key, parts=parts).group)
        paths = [key.at(part).labels_path(name) for part in range(len(axis))]
        documents = together(lambda path: read_document(storage, path), paths)
        if documents[0] is None:
            known = nearest(name, label_names(storage, key), "names")
            raise MissingError(
                f"the positions of {key.path} have no labels {name!r} ({known}); make them with: saestore label LAKE "
                f"{key.dataset} --name {name!r}"
            )
        groups: list[RowGroup | Absent] = []
        for positions, path, document in zip(axis, paths, documents, strict=True):
            assert isinstance(positions, RowGroup)
            if document is None:
                groups.append(Absent(path, positions.grid.rows))
            else:
                groups.append(_checked(RowGroup.from_document(storage, path, document), positions))
        first = groups[0]
        assert isinstance(first, RowGroup)
        return cls(RowParts(groups) if len(groups) > 1 else first, key, name)

    @classmethod
    def open_part(cls, storage: Storage, key: ModelKey, name: str = DEFAULT_NAME) -> Labels:
        """Open the labels of the positions of one part (MissingError where there are none)."""
        group = RowGroup.open(storage, key.labels_path(name))
        return cls(_checked(group, RowGroup.open(storage, key.positions_path)), key, name)

    @property
    def digest(self) -> str:
        """sha256 of names and labels."""
        return cast(str, self.group.attributes["identity"]["digest"])

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return rows `start:stop`: 1 yes, 0 no, 255 unlabelled, (n, n_concepts) uint8.

        Raises
        ------
        HoleError
            Some rows were never labelled.
        """
        return self.group.read(ARRAY, start, stop)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return chosen rows, in the order given, (n, n_concepts) uint8 (HoleError as for `read`)."""
        return self.group.take(ARRAY, rows)

    def concept(self, name: str) -> NDArray[np.uint8]:
        """Return the labels of one concept, (n_rows,) uint8.

        Raises
        ------
        MissingError
            There is no such concept.
        HoleError
            Some rows were never labelled.
        """
        if name not in self.concept_names:
            known = nearest(name, self.concept_names, "concepts")
            raise MissingError(f"{self.key.labels_path(self.name)} has no concept {name!r}; {known}")
        column, step = self.concept_names.index(name), self.group.grid.shard_rows
        blocks = [self.read(start, min(start + step, len(self)))[:, column] for start in range(0, len(self), step)]
        return np.concatenate(blocks)


def label_names(storage: Storage, key: ModelKey) -> list[str]:
    """Return the names of the labels that the positions of a model have, in the first part of the dataset."""
    names = [name for name in storage.names(key.at(0).labels_root) if is_name(name)]
    return [name for name in names if group_exists(storage, key.at(0).labels_path(name))]


def write_labels(
    storage: Storage,
    key: ModelKey,
    name: str,
    labels: NDArray[Any] | Iterable[NDArray[Any]],
    concept_names: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> Labels:
    """Store labels of the positions of one part, or open them if the same ones are stored already.

    Parameters
    ----------
    key : ModelKey
        With the part of the dataset.
    labels : (n_rows, n_concepts) uint8, or an iterable of blocks of such rows
        1 yes, 0 no, 255 unlabelled.
    concept_names : sequence of str
    attributes : mapping, optional
        JSON values that tell where the labels come from.

    Raises
    ------
    MissingError
        The part has no positions.
    InputError
        There are more or fewer labels than positions, a label is none of the three, or a name occurs twice.
    ConflictError
        Other labels of this name are stored, or the parts before have other concepts.
    """
    names = _checked_names(concept_names)
    path, width = key.labels_path(name), len(names)
    positions = Positions.open_part(storage, key).group
    if key.part:
        try:
            check_appended(storage, key.at(0).labels_path(name), {"concept_names": list(names)})
        except MissingError:
            raise ConflictError(
                f"{path} would be labelled and {key.at(0).labels_path(name)} is not; label the first part first"
            ) from None
    rows = positions.grid.rows
    hashed = hashlib.sha256(json.dumps(["labels 1", list(names)]).encode())
    with tempfile.SpooledTemporaryFile(max_size=_KEPT_BYTES) as waiting:
        given = 0
        for block in [labels] if isinstance(labels, np.ndarray) else labels:
            content = _checked_block(block, width, path).tobytes()
            hashed.update(content)
            waiting.write(content)
            given += len(block)
        if given != rows:
            raise InputError(
                f"{given:,} rows of labels were given for the {rows:,} positions of {key.positions_path}; give one for "
                "each, special tokens included"
            )
        group = RowGroup.create(
            storage,
            path,
            kind="labels",
            axis="row",
            grid=Grid.plan(
                rows,
                shard_rows=max(1, min(_SHARD_ROWS, _SHARD_BYTES // width)),
                chunk_rows=max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // width)),
            ),
            arrays=[ArraySpec(ARRAY, "uint8", width, width_axis="concept", codec="zstd")],
            identity={"positions": positions.attributes["identity"]["digest"], "digest": hashed.hexdigest()},
            attributes={**(attributes or {}), "concept_names": list(names), "provenance": provenance.stamp()},
        )
        for shard in group.missing_shards():
            place = group.grid.shard(shard)
            waiting.seek(place.start * width)
            content = waiting.read((place.stop - place.start) * width)
            group.write_shard(shard, {ARRAY: np.frombuffer(content, np.uint8).reshape(-1, width)})
    return Labels(group, key, name)


def _checked(labels: RowGroup, positions: RowGroup) -> RowGroup:
    """Return labels of a part if they are labels of its positions."""
    if (
        labels.attributes["identity"].get("positions") != positions.attributes["identity"]["digest"]
        or labels.grid.rows != positions.grid.rows
    ):
        raise IntegrityError(
            f"{labels.path} was made for other positions than those at {positions.path}; delete {labels.path} and "
            "label again"
        )
    return labels


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InputError(f"concept name {name!r} cannot be used; give a printable text")
        if name in seen:
            raise InputError(f"concept {name!r} is named twice; name each once")
        seen.add(name)
    if not seen:
        raise InputError("labels of no concept were given; name at least one")
    return tuple(names)


def _checked_block(block: NDArray[Any], width: int, path: str) -> NDArray[np.uint8]:
    if block.ndim != 2 or block.shape[1] != width or block.dtype.kind not in "bui":
        raise InputError(
            f"labels of shape {block.shape} and type {block.dtype} were given for {path}; expected (n, {width}) uint8"
        )
    wrong = (block != 0) & (block != 1) & (block != UNLABELLED)
    if wrong.any():
        raise InputError(f"a label for {path} is {block[wrong][0]}; expected 1 (yes), 0 (no) or 255 (unlabelled)")
    return block.astype(np.uint8, copy=False)
