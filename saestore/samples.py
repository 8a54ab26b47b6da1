"""Sample tables: the texts or images of a dataset with their ids, splits, columns and concept labels."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from saestore._entries import DatasetEntry
from saestore._sample_columns import (
    ID_NAMES,
    UNLABELLED,
    ContentKind,
    column_concepts,
    column_named,
    content_column,
    content_values,
    id_values,
    label_columns,
)
from saestore._sample_limits import Gate, TokenLimit
from saestore._table_files import (
    Columns,
    frame_columns,
    is_missing,
    join_blocks,
    plain_column,
    rows_of,
    table_blocks,
    table_format,
    text_blocks,
    text_lines,
)
from saestore.errors import InputError, MissingError

SPLITS = ("train", "cal", "test")
_FILES_AT_ONCE = 512
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Column = list[str] | npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of one dataset, in their order.

    ids : n_samples unique names
    kind : `text` or `image`
    contents : n_samples texts, exactly as they are, or paths of images
    split : n_samples of `train`, `cal`, `test` or '' (none); () means none for all
    columns : further columns, lists of str or arrays of bool, int64 or float64, of n_samples values each
    concept_names : n_concepts unique names
    concepts : (n_samples, n_concepts) uint8, 1 = yes, 0 = no, 255 = unlabelled

    Raises
    ------
    InputError
        No samples, unequal lengths, repeated ids or names, an unknown split or label, text that is not Unicode.

    Examples
    --------
    >>> SampleTable(ids=("a", "b"), kind="text", contents=("One.", "Two.")).split
    ('', '')
    """

    ids: Sequence[str]
    kind: Literal["text", "image"]
    contents: Sequence[str]
    split: Sequence[str] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    concept_names: Sequence[str] = ()
    concepts: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))

    def __post_init__(self) -> None:
        n = len(self.ids)
        if n == 0:
            raise InputError("the dataset has no samples; expected at least one")
        if self.kind not in ("text", "image"):
            raise InputError(f"kind {self.kind!r}; expected text or image")
        split = tuple(self.split) or ("",) * n
        concepts = np.array(self.concepts if len(self.concept_names) else np.zeros((n, 0)), dtype=np.uint8)
        if concepts.shape != (n, len(self.concept_names)):
            raise InputError(f"concepts of shape {concepts.shape}; expected ({n}, {len(self.concept_names)})")
        if self.concept_names and not np.isin(concepts, (0, 1, UNLABELLED)).all():
            raise InputError("a concept label is none of 0, 1 and 255 (unlabelled)")
        lengths = {"contents": len(self.contents), "split": len(split)} | {k: len(v) for k, v in self.columns.items()}
        for name, length in lengths.items():
            if length != n:
                raise InputError(f"{name} has {length} values; expected {n}, one for each id")
        concepts.flags.writeable = False
        for name, value in (
            ("ids", _texts("id", self.ids)),
            ("contents", _texts("text" if self.kind == "text" else "image path", self.contents)),
            ("split", split),
            ("columns", dict(self.columns)),
            ("concept_names", _texts("concept name", self.concept_names)),
            ("concepts", concepts),
        ):
            object.__setattr__(self, name, value)
        _refuse_repeats("sample id", self.ids)
        _refuse_repeats("concept name", self.concept_names)
        for row, name in enumerate(self.ids):
            if not name:
                raise InputError(f"row {row} has an empty id; give it one, or leave the id column out")
        for row, name in enumerate(split):
            if name not in (*SPLITS, ""):
                raise InputError(f"row {row} has the split {name!r}; expected {', '.join(SPLITS)} or nothing")

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int) -> SampleTable:
        """The first `n` samples (all, if there are fewer); every concept stays."""
        if n < 1:
            raise InputError(f"limit {n}; expected a positive number of samples")
        return self[:n]

    def __getitem__(self, places: slice) -> SampleTable:
        """Return consecutive samples; every concept stays."""
        return replace(
            self,
            ids=self.ids[places],
            contents=self.contents[places],
            split=self.split[places],
            columns={name: values[places] for name, values in self.columns.items()},
            concepts=self.concepts[places],
        )

    def digest(self) -> str:
        """SHA-256 (hex) of ids, contents, splits, columns and labels.

        Of an image the bytes of its file count, not its path, so a dataset may be moved; a file that
        does not exist counts as absent. Reads every image.
        """
        total = hashlib.sha256()

        def add(*parts: bytes) -> None:
            for part in parts:
                total.update(len(part).to_bytes(8, "little"))  # lengths: ("ab", "c") is not ("a", "bc")
                total.update(part)

        add(b"saestore samples 1", self.kind.encode(), len(self.ids).to_bytes(8, "little"))
        for text in (*self.ids, *self.split):
            add(text.encode())
        for content in self.contents:
            add(content.encode() if self.kind == "text" else _file_digest(content))
        for name in sorted(self.columns):
            values = self.columns[name]
            if isinstance(values, np.ndarray):
                add(name.encode(), values.dtype.newbyteorder("<").str.encode())
                add(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
            else:
                add(name.encode(), b"str", *(str(value).encode() for value in values))
        add(*(name.encode() for name in self.concept_names), self.concepts.tobytes())
        return total.hexdigest()


def read_samples(
    source: Any,
    *,
    text: str | None = None,
    image: str | None = None,
    text_path: str | None = None,
    id: str | None = None,
    split: str | None = None,
    labels: Sequence[str] | None = None,
    root: str | Path | None = None,
    limit: int | None = None,
    tokens: TokenLimit | None = None,
    check_files: bool = True,
) -> SampleTable:
    """Read the samples of a dataset.

    Parameters
    ----------
    source
        A list or an iterator of texts, a pandas DataFrame, a table file (.csv, .tsv, .jsonl, .json, .parquet; text
        formats also with .zst or .gz), a file of texts (.txt, one in each line that is not blank), a folder of images
        (ids are then their paths in it, sorted), or a `SampleTable`.
    text, image, text_path
        The column with the texts, the image paths, or the paths of text files. Default: a column named
        text, prompt, sentence or content; else image or image_path; else text_path.
    id
        The column of ids. Default: `id` or `sample_id`, else the row numbers from 0.
    split
        The column with train, cal, test or nothing. Default: `split` if there is one.
    labels
        Label columns; `*` and `?` match several. Default: `label` and `target` if there; () means none.
        0/1 and bool become one concept of the column's name. Two values become one concept `column=value` of
        the second in sorted order. More become one concept `column=value` each. Numbers that are not whole, or
        of more than 10 values, stay a column. Missing values become 255.
    root
        The folder that relative paths in the table start from. Default: the table's own folder.
    limit
        Keep the first `limit` samples.
    tokens
        Keep the first samples that together hold at most so many tokens; with `limit`, what comes first counts.
        With one of the two, texts in the rows of a file, or from an iterator, are read only as far as they are needed,
        up to 512 at a time (JSON: the whole file). A table with label columns is read whole: its concepts are those of
        all its rows.
    check_files
        False: sample files need not exist, for when only labels and splits are wanted. Contents are then the
        image paths as the table gives them, or '' for text files.

    Raises
    ------
    MissingError
        The source, a column, or a file named in the table does not exist.
    InputError
        Anything else about the content; rows are counted from 0.
    DependencyError
        The package that reads the format is not installed.

    Examples
    --------
    >>> read_samples(["It rains.", "It does not."]).ids
    ('0', '1')
    """
    gate = Gate(limit, tokens)
    if isinstance(source, (list, tuple)):
        source = SampleTable(ids=[str(i) for i in range(len(source))], kind="text", contents=source)
    if isinstance(source, SampleTable):
        return _let_in(source, gate)
    folder: Path | None = None
    blocks: Iterator[Columns]
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        if not len(source):
            raise InputError("the DataFrame is empty; expected at least one row")
        label, blocks = "the DataFrame", iter([frame_columns(source)])
    elif isinstance(source, Iterator):
        label, blocks = "the texts", text_blocks(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if path.is_dir():
            return _let_in(_read_folder(path), gate)
        if not table_format(path) and not path.exists():
            raise MissingError(f"{path}: no such file or folder; texts themselves are given as a list")
        label, blocks, folder = str(path), table_blocks(path), path.parent
    else:
        raise InputError(
            f"samples of type {type(source).__name__}; expected a list or an iterator of texts, a DataFrame or a path"
        )
    if root is not None:
        folder = Path(root).expanduser()
    wanted = {"text": text, "image": image, "text_path": text_path}
    columns = _read_far_enough(label, blocks, gate, wanted, (id, split), labels)
    with _named(label):
        return _from_columns(
            columns,
            folder,
            root is not None,
            content=content_column(columns, **wanted),
            id=column_named(columns, id, ID_NAMES),
            split=column_named(columns, split, ("split",)),
            labels=labels,
            gate=gate,
            check_files=check_files,
        )


def samples_from_entry(
    entry: DatasetEntry, *, limit: int | None = None, tokens: TokenLimit | None = None, check_files: bool = True
) -> SampleTable:
    """The samples of a catalog entry (`Catalog.dataset`); see `read_samples` for what is read and raised.

    Examples
    --------
    >>> from saestore.catalogs import load_catalog
    >>> samples_from_entry(load_catalog().dataset("sae-probes/5_hist_fig_ismale")).concept_names
    ('target',)
    """
    if entry.is_pattern:
        raise InputError(f"{entry.name} stands for many datasets; name one")
    path = entry.table_path()
    if not path.exists():
        raise MissingError(f"dataset {entry.name}: no table {path}; put it there or set the variables in {entry.table}")
    return read_samples(
        path,
        text=entry.text,
        image=entry.image,
        text_path=entry.text_path,
        id=entry.id,
        split=entry.split,
        labels=entry.labels or None,
        root=entry.root_path() if check_files else None,
        limit=limit,
        tokens=tokens,
        check_files=check_files,
    )


def standard_input() -> Iterator[str]:
    """The lines of standard input that are not blank, without their ends, read as they are asked for."""
    text = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n")
    try:
        yield from text_lines(text)
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8; convert it, as with iconv") from None
    finally:
        text.detach()  # or it would close standard input


def _read_far_enough(
    label: str,
    blocks: Iterator[Columns],
    gate: Gate,
    wanted: Mapping[str, str | None],
    others: Sequence[str | None],
    labels: Sequence[str] | None,
) -> Columns:
    """Read texts until the gate closes; all rows where there is no limit, or labels or files are to be read.

    wanted : the content columns that were named
    others : the id and split columns that were named
    """
    first = next(blocks, None)
    if first is None:
        raise InputError(f"{label}: the table is empty; expected a header and at least one row")
    with _named(label):
        how, name = content_column(first, **wanted)
        free = [column for column in first if column not in (name, *others)]
        labelled = label_columns(free, None, first) if labels is None else labels
    if gate.is_open_to_all or how != "text" or labelled:
        return join_blocks(chain([first], blocks))

    read = []
    for block in chain([first], blocks):
        read.append(block)
        with _named(label):
            gate.let_in(block.get(name) or [None] * rows_of(block))
        if gate.closed:
            break
    return join_blocks(read)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Say in errors which source they are about."""
    try:
        yield
    except (InputError, MissingError) as error:
        raise type(error)(f"{source}: {error}") from None


def _from_columns(
    columns: Columns,
    folder: Path | None,
    confined: bool,
    *,
    content: tuple[ContentKind, str],
    id: str | None,
    split: str | None,
    labels: Sequence[str] | None,
    gate: Gate,
    check_files: bool,
) -> SampleTable:
    n = rows_of(columns)
    how, name = content
    used = {column for column in (name, id, split) if column is not None}
    chosen = label_columns([c for c in columns if c not in used], labels, columns)
    concept_names: list[str] = []
    concepts: list[npt.NDArray[np.uint8]] = []
    for column in chosen:
        names, values, is_whole = column_concepts(column, columns[column])
        concept_names += names
        concepts += values
        if is_whole:
            used.add(column)
    contents = content_values(name, columns[name])
    # The path is kept: a concept dataset is known by it, and the content is what the file holds.
    further = {c: plain_column(v) for c, v in columns.items() if c not in used or (c == name and how == "text_path")}
    table = SampleTable(
        ids=[str(i) for i in range(n)] if id is None else id_values(id, columns[id]),
        kind="image" if how == "image" else "text",
        contents=contents,
        split=() if split is None else ["" if is_missing(v) else str(v) for v in columns[split]],
        columns=further,
        concept_names=concept_names,
        concepts=np.stack(concepts, axis=1) if concepts else np.zeros((n, 0), np.uint8),
    )
    if how == "text":
        return _let_in(table, gate)
    table = _let_in(table, gate) if how == "image" else table[: gate.limit]
    if not check_files:
        return table if how == "image" else replace(table, contents=("",) * len(table))
    paths = [_joined(folder, confined, row, path) for row, path in enumerate(table.contents)]
    for row, path in enumerate(paths):
        if not os.path.isfile(path):
            raise MissingError(f"row {row}: no file {path}; give the folder that paths start from (root)")
    if how == "image":
        return replace(table, contents=paths)
    texts: list[str] = []
    for start in range(0, len(paths), _FILES_AT_ONCE):
        texts += [_file_text(path) for path in paths[start : start + _FILES_AT_ONCE]]
        gate.let_in(texts[start:])
        if gate.closed:
            break
    return replace(table[: len(texts)], contents=texts)[: gate.kept]


def _let_in(table: SampleTable, gate: Gate) -> SampleTable:
    """Return the samples that the gate lets in, or has let in already while they were read."""
    if gate.tokens is not None and table.kind == "image":
        raise InputError("max_tokens is for texts, and these are images; give a limit of samples")
    if gate.is_open_to_all:
        return table
    if not gate.kept:
        gate.let_in(table.contents)
    return table[: gate.kept]


def _read_folder(folder: Path) -> SampleTable:
    found = [
        os.path.join(base, file)
        for base, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(IMAGE_ENDINGS) and not file.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder}: no images in this folder; expected files ending in {' '.join(IMAGE_ENDINGS)}")
    ids = sorted(Path(path).relative_to(folder).as_posix() for path in found)
    return SampleTable(ids=ids, kind="image", contents=[str(folder / name) for name in ids])


def _joined(folder: Path | None, confined: bool, row: int, path: str) -> str:
    """The full path of a sample's file; under a given root, paths must stay inside of it."""
    inside = PurePosixPath(path.replace("\\", "/"))
    if not path or (confined and (inside.is_absolute() or ".." in inside.parts)):
        raise InputError(f"row {row}: the path {path!r} is empty or leaves {folder}; expected one inside of it")
    return path if folder is None else os.path.join(folder, path)


def _file_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:  # newline="": texts stay exactly as they are
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _file_digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return b"absent"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _texts(what: str, values: Sequence[str]) -> tuple[str, ...]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"row {row}: {what} is {type(value).__name__}, expected a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"row {row}: {what} holds half of a surrogate pair, which is not Unicode") from None
    return tuple(values)


def _refuse_repeats(what: str, names: Sequence[str]) -> None:
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in first:
            raise InputError(f"the {what} {name!r} is there twice, in rows {first[name]} and {row}; make them unique")
        first[name] = row
