"""Labelling the positions of a dataset from one source: every part that has no labels of the name yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore.errors import ConflictError, InputError
from saestore.labelling.blocks import Block, part_blocks, sample_runs
from saestore.labelling.rules import Columns, Settled, settle
from saestore.labelling.source import LabelSource, Whole
from saestore.labels import ARRAY, Labels, write_labels
from saestore.layout import ModelKey
from saestore.parts import parts_of
from saestore.progress import Progress
from saestore.rows import RowGroup, group_exists
from saestore.storage import Storage
from saestore.tables import UNLABELLED, Positions, Samples

_NEEDED = {
    "char_start": "characters of tokens, which texts have that were extracted here",
    "box": "boxes of patches, which images have that were extracted here",
}


@dataclass(frozen=True)
class ConceptCount:
    """How often a concept was labelled, over the whole dataset.

    yes, no, unlabelled : positions, special tokens included
    samples : samples with at least one position that has it
    """

    concept: str
    yes: int
    no: int
    unlabelled: int
    samples: int


@dataclass(frozen=True)
class LabelResult:
    """What labelling did.

    rows : positions that have labels now
    labelled_rows : those that were labelled by this call; 0 if all were before
    """

    dataset: str
    model: str
    name: str
    path: str
    rows: int
    labelled_rows: int
    concepts: tuple[ConceptCount, ...]


def label_positions(
    storage: Storage,
    key: ModelKey,
    source: LabelSource,
    *,
    name: str,
    parents: bool,
    quiet: bool,
    say: Callable[[str], None] | None,
) -> LabelResult:
    """Label all parts of a dataset that have no labels of the name yet.

    Parameters
    ----------
    key : ModelKey
    source : LabelSource
    name : str
        Name of the labels.
    parents : bool
        Add the concepts above: of `shape::cube` and `shape::sphere` the union `shape`.
    say : callable, optional
        Takes lines for the user.

    Raises
    ------
    MissingError, InputError
        The source names samples, rows or concepts that do not exist, or cannot be read.
        The source speaks of every row, and was made before the dataset grew.
    ConflictError
        Labels of this name were made from another source; of one that speaks of every row: its labels differ from what
        is stored of some part.
    """
    key = key.at(0)
    positions = Positions.open(storage, key)
    n_parts = len(parts_of(positions.group))
    samples = Samples.open(storage, key.dataset, parts=n_parts)
    if source.needs is not None and not positions.has(source.needs):
        raise InputError(
            f"{source.path}: labels from {source.kind.replace('_', ' ')} need the {_NEEDED[source.needs]}; the "
            f"positions of {key.path} have none"
        )
    source.check(Whole(key.dataset, {sample: place for place, sample in enumerate(samples.ids)}, len(positions)))
    groups = [_stored(storage, key.at(part), name) for part in range(n_parts)]
    about: dict[str, Any] = {"kind": source.kind, "digest": source.digest(), "parents": parents, **source.settings()}
    columns = _columns(groups, source, parents, key.labels_path(name))
    todo = [part for part, group in enumerate(groups) if group is None or not group.is_complete]
    parts = _parts(storage, key, n_parts)
    _refuse_others(groups, source, about, columns, parts, key.labels_path(name), todo=todo)
    told = {**about, "file": source.path.name} | ({"rows": len(positions)} if source.of_every_row else {})
    labelled = _label_parts(
        storage, key, name, source, columns, [parts[part] for part in todo], told, quiet=quiet, say=say
    )
    stored = Labels.open(storage, key, name, parts=n_parts)
    return LabelResult(
        dataset=key.dataset,
        model=key.model,
        name=name,
        path=key.labels_path(name),
        rows=len(stored),
        labelled_rows=labelled,
        concepts=tuple(_counts(stored, positions.offsets)),
    )


def _stored(storage: Storage, key: ModelKey, name: str) -> RowGroup | None:
    exists = group_exists(storage, key.labels_path(name))
    return cast(RowGroup, Labels.open_part(storage, key, name).group) if exists else None


def _columns(groups: Sequence[RowGroup | None], source: LabelSource, parents: bool, path: str) -> Columns:
    """Return the concepts to label: those of the parts that have labels, else those of the source."""
    first = next((group for group in groups if group is not None), None)
    if first is None:
        return Columns.new(source.concept_names, parents=parents)
    above = tuple(first.attributes.get("parents", ()))
    own = tuple(concept for concept in first.attributes["concept_names"] if concept not in above)
    return Columns(own, above).extended(source.concept_names, parents=parents, path=path)


@dataclass(frozen=True)
class _Part:
    """One part of the dataset, and where it begins over all parts."""

    number: int
    samples: Samples
    positions: Positions
    first_sample: int
    first_row: int

    @property
    def stop_row(self) -> int:
        """The row after its last."""
        return self.first_row + len(self.positions)


def _parts(storage: Storage, key: ModelKey, n_parts: int) -> list[_Part]:
    found: list[_Part] = []
    first_sample = first_row = 0
    for number in range(n_parts):
        samples = Samples.open_part(storage, key.dataset, number)
        found.append(_Part(number, samples, Positions.open_part(storage, key.at(number)), first_sample, first_row))
        first_sample, first_row = first_sample + len(samples), found[-1].stop_row
    return found


def _settled(part: _Part, source: LabelSource, columns: Columns) -> Iterator[tuple[Block, Settled]]:
    """Yield the labels that a source gives to a part, some samples at a time."""
    blocks = part_blocks(
        part.samples,
        part.positions,
        len(columns.names),
        first_sample=part.first_sample,
        first_row=part.first_row,
    )
    for block in blocks:
        yield block, settle(columns, source.concept_names, source.label(block), block, part.samples.concept_names)


def _refuse_others(
    groups: Sequence[RowGroup | None],
    source: LabelSource,
    about: Mapping[str, Any],
    columns: Columns,
    parts: Sequence[_Part],
    path: str,
    *,
    todo: Sequence[int],
) -> None:
    """Refuse a source that does not belong to the labels that are stored already.

    Parts may have files of their own, so that one match is enough where nothing is left to label. A source that speaks
    of every row must agree with all parts, and must have known the rows that are to be labelled.
    """
    made = {part: group.attributes.get("source", {}) for part, group in enumerate(groups) if group is not None}
    same = [part for part, of in made.items() if all(of.get(item) == value for item, value in about.items())]
    if not source.of_every_row:
        if not todo and not same:
            raise _other_source(path, made[0])
        return
    for part in same if todo else ():
        known = made[part]["rows"]
        if known < parts[-1].stop_row:
            raise InputError(
                f"{source.path} has labelled rows 0 to {known - 1} of {path} before the dataset grew, and would deny "
                f"all concepts in rows {known} to {parts[-1].stop_row - 1}; give the file of all rows, or if this is "
                "it, store its labels under another --name"
            )
    for part, group in enumerate(groups):
        if group is None or part in todo or part in same:
            continue
        where = _first_difference(parts[part], source, columns, group)
        if where is not None:
            row, concept = where
            raise ConflictError(
                f"{source.path} and {made[part].get('file', 'what was stored before')}, from which rows "
                f"{parts[part].first_row} to {parts[part].stop_row - 1} of {path} are labelled, differ at row {row} in "
                f"concept {concept!r}; give a file that agrees with them, or store these labels under another --name"
            )


def _first_difference(part: _Part, source: LabelSource, columns: Columns, group: RowGroup) -> tuple[int, str] | None:
    """Return row and concept of the first stored label of a part that a source gives otherwise."""
    spoken = [place for place, concept in enumerate(columns.own) if concept in source.concept_names]
    for block, settled in _settled(part, source, columns):
        low = block.first_row - part.first_row
        stored = group.read(ARRAY, low, low + block.n_rows)
        differs = stored[:, spoken] != settled.labels[:, spoken]
        if differs.any():
            row, column = np.argwhere(differs)[0].tolist()
            return block.first_row + row, columns.own[spoken[column]]
    return None


def _other_source(path: str, made: Mapping[str, Any]) -> ConflictError:
    return ConflictError(
        f"{path} was made from another source ({made.get('kind')}, {made.get('file')}); "
        f"store these labels under another name, or delete {path} first"
    )


def _label_parts(
    storage: Storage,
    key: ModelKey,
    name: str,
    source: LabelSource,
    columns: Columns,
    todo: Sequence[_Part],
    about: Mapping[str, Any],
    *,
    quiet: bool,
    say: Callable[[str], None] | None,
) -> int:
    """Write the labels of some parts; return the number of their rows."""
    against = np.zeros(len(columns.own), dtype=np.int64)
    total = sum(len(part.positions) for part in todo)
    with Progress("label", total=total, unit="positions", quiet=quiet) as progress:
        for part in todo:

            def labels(part: _Part = part) -> Iterator[NDArray[np.uint8]]:
                for block, settled in _settled(part, source, columns):
                    np.add(against, settled.against, out=against)
                    progress.advance(block.n_rows)
                    yield settled.labels

            attributes = {"source": about, "parents": list(columns.parents)}
            write_labels(storage, key.at(part.number), name, labels(), columns.names, attributes)
    if say is not None and todo:
        for line in _remarks(columns, todo[-1].samples.concept_names, against, key.labels_path(name)):
            say(line)
    return total


def _remarks(columns: Columns, table_names: Sequence[str], against: NDArray[np.int64], path: str) -> Iterator[str]:
    """Yield what the user should know of labels and sample table together."""
    for concept, count in zip(columns.own, against.tolist(), strict=True):
        if count:
            yield f"{path}: samples with positions of {concept!r} that the sample table says to be without: {count:,}"
    alone = [concept for concept in columns.own if concept not in table_names]
    if table_names and alone:
        named = ", ".join(map(repr, alone[:5])) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        yield f"{path}: the sample table has no {named}; positions of samples that the file does not name are 0 there"


def _counts(labels: Labels, offsets: NDArray[np.int64]) -> Iterator[ConceptCount]:
    width = len(labels.concept_names)
    yes, unlabelled, samples = (np.zeros(width, dtype=np.int64) for _ in range(3))
    for first, stop in sample_runs(offsets, width):
        block = labels.read(int(offsets[first]), int(offsets[stop]))
        has = np.append(np.zeros((1, width), np.int64), np.cumsum(block == 1, axis=0), axis=0)
        edges = offsets[first : stop + 1] - offsets[first]
        yes += has[-1]
        unlabelled += (block == UNLABELLED).sum(axis=0)
        samples += (has[edges[1:]] > has[edges[:-1]]).sum(axis=0)
    for place, concept in enumerate(labels.concept_names):
        n_yes, n_unlabelled = int(yes[place]), int(unlabelled[place])
        yield ConceptCount(concept, n_yes, len(labels) - n_yes - n_unlabelled, n_unlabelled, int(samples[place]))
