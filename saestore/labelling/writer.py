"""Labelling the positions of a dataset from one source: every part that has no labels of the name yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore.errors import ConflictError, InputError
from saestore.labelling.blocks import part_blocks, sample_runs
from saestore.labelling.rules import Columns, settle
from saestore.labelling.source import LabelSource, Whole
from saestore.labels import Labels, write_labels
from saestore.layout import ModelKey
from saestore.parts import RowParts, parts_of
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
    ConflictError
        Labels of this name were made from another source.
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
    made = [group.attributes.get("source", {}) for group in groups if group is not None]
    if not todo and not any(all(of.get(item) == value for item, value in about.items()) for of in made):
        raise ConflictError(
            f"{key.labels_path(name)} was made from another source ({made[0].get('kind')}, {made[0].get('file')}); "
            f"store these labels under another name, or delete {key.labels_path(name)} first"
        )
    labelled = _label_parts(
        storage, key, name, source, columns, todo, {**about, "file": source.path.name}, quiet=quiet, say=say
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


def _label_parts(
    storage: Storage,
    key: ModelKey,
    name: str,
    source: LabelSource,
    columns: Columns,
    todo: Sequence[int],
    about: dict[str, Any],
    *,
    quiet: bool,
    say: Callable[[str], None] | None,
) -> int:
    """Write the labels of some parts; return the number of their rows."""
    axis = Positions.open(storage, key).group
    edges = axis.edges.tolist() if isinstance(axis, RowParts) else [0, axis.grid.rows]
    against = np.zeros(len(columns.own), dtype=np.int64)
    total = sum(edges[part + 1] - edges[part] for part in todo)
    first_sample = 0
    with Progress("label", total=total, unit="positions", quiet=quiet) as progress:
        for part in range(len(edges) - 1):
            samples = Samples.open_part(storage, key.dataset, part)
            if part in todo:
                blocks = part_blocks(
                    samples,
                    Positions.open_part(storage, key.at(part)),
                    len(columns.names),
                    first_sample=first_sample,
                    first_row=edges[part],
                )

                def labels() -> Iterator[NDArray[np.uint8]]:
                    for block in blocks:  # noqa: B023 - used up before the next part
                        table_names = samples.concept_names  # noqa: B023
                        settled = settle(columns, source.concept_names, source.label(block), block, table_names)
                        np.add(against, settled.against, out=against)
                        progress.advance(block.n_rows)
                        yield settled.labels

                attributes = {"source": about, "parents": list(columns.parents)}
                write_labels(storage, key.at(part), name, labels(), columns.names, attributes)
            first_sample += len(samples)
    if say is not None and todo:
        for line in _remarks(columns, samples.concept_names, against, key.labels_path(name)):
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
