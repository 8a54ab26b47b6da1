"""Labels from a table of words: one row for each word of each text, with a column of 0 and 1 for each concept.

The form of `word_level_*.csv`: the k-th row of a paragraph is the k-th run of characters that are not spaces.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._table_files import Columns, is_missing, read_table
from saestore.errors import InputError, MissingError
from saestore.labelling.blocks import Block, Found
from saestore.labelling.entries import SAMPLE, number, sample_ids
from saestore.labelling.rules import either
from saestore.labelling.source import Needs, Whole, check_samples, file_digest
from saestore.tables import UNLABELLED

PARAGRAPH = "paragraph_id"
WORD = "word"

_WORD = re.compile(r"\S+")
_MARKS = re.compile(r"\W")


class WordTable:
    """A table with the column sample, or paragraph_id (number of the sample, from 1), and a column for each concept.

    Every column of nothing but 0, 1 and missing values (unlabelled) is a concept. Where there is a column word, it is
    compared with the text, but for case and punctuation. A token that shares a character with a word has its labels.

    Raises
    ------
    MissingError, InputError
        The table cannot be read, or has no concept.
    """

    kind = "word_table"
    needs: Needs | None = "char_start"
    of_every_row = False

    def __init__(self, path: Path) -> None:
        self.path = path
        columns = read_table(path)
        if SAMPLE not in columns and PARAGRAPH not in columns:
            raise MissingError(
                f"{path}: no column {SAMPLE!r} or {PARAGRAPH!r} says which text a word is of; the columns are: "
                f"{', '.join(columns)}"
            )
        self._words = columns.get(WORD)
        concepts = _concept_columns(columns)
        if not concepts:
            raise InputError(f"{path}: no column holds nothing but 0 and 1; give one for each concept")
        self.concept_names = tuple(concepts)
        self._labels = np.stack(list(concepts.values()), axis=1)
        self._by_id = SAMPLE in columns
        self._rows_of: dict[str | int, list[int]] = {}
        keys: list[Any] = (
            sample_ids(path, columns[SAMPLE], SAMPLE) if self._by_id else _numbers(path, columns[PARAGRAPH])
        )
        for row, key in enumerate(keys):
            self._rows_of.setdefault(key, []).append(row)

    def settings(self) -> dict[str, Any]:
        """Return nothing: the file says all."""
        return {}

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return file_digest([self.path])

    def check(self, whole: Whole) -> None:
        """Refuse samples that do not exist."""
        if self._by_id:
            check_samples(self.path, map(str, self._rows_of), whole)
            return
        last = max(int(key) for key in self._rows_of)
        if last > len(whole.ids):
            row = self._rows_of[last][0]
            raise MissingError(
                f"{self.path}: row {row}: {PARAGRAPH} is {last}, and dataset {whole.dataset!r} has {len(whole.ids):,} "
                "samples; give the table of this dataset"
            )

    def label(self, block: Block) -> Found:
        """Label the tokens of some texts.

        Raises
        ------
        InputError
            A text has another number of words, or another word, than the table.
        """
        assert block.starts is not None
        assert block.ends is not None
        found = Found.nothing(block, len(self.concept_names))
        for place, sample in enumerate(block.ids):
            of_text = self._rows_of.get(sample if self._by_id else block.first_sample + place + 1)
            if of_text is None:
                continue
            spans = [match.span() for match in _WORD.finditer(block.contents[place])]
            self._compare(sample, block.contents[place], spans, of_text)
            rows = block.rows(place)
            found.named[place] = True
            found.labels[rows] = _of_tokens(block.starts[rows], block.ends[rows], spans, self._labels[of_text])
        return found

    def _compare(self, sample: str, text: str, spans: list[tuple[int, int]], rows: list[int]) -> None:
        if len(spans) != len(rows):
            raise InputError(
                f"{self.path}: sample {sample!r} has {len(rows)} rows, the first is row {rows[0]}, and its text has "
                f"{len(spans)} words; give the table that was made from these texts"
            )
        for (start, stop), row in zip(spans, rows, strict=True):
            word = None if self._words is None else str(self._words[row])
            if word is not None and _plain(word) != _plain(text[start:stop]):
                raise InputError(
                    f"{self.path}: row {row}: the word is {word!r}, and {text[start:stop]!r} in the text of sample "
                    f"{sample!r}; give the table that was made from these texts"
                )


def _plain(word: str) -> str:
    return _MARKS.sub("", word).casefold()


def _of_tokens(
    starts: NDArray[np.int32], ends: NDArray[np.int32], spans: list[tuple[int, int]], of_words: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the labels of tokens: those of all words that they share a character with."""
    edges = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(edges[:, 1], starts, side="right")
    behind = np.where(ends > starts, np.searchsorted(edges[:, 0], ends, side="left"), first)
    labels = np.zeros((len(starts), of_words.shape[1]), dtype=np.uint8)
    for step in range(int((behind - first).max(initial=0))):
        inside = first + step < behind
        labels[inside] = either(labels[inside], of_words[first[inside] + step])
    return labels


def _concept_columns(columns: Columns) -> dict[str, NDArray[np.uint8]]:
    found = {}
    for name, values in columns.items():
        if name in (SAMPLE, PARAGRAPH, WORD):
            continue
        labels = {value: UNLABELLED if is_missing(value) else _label(value) for value in set(map(_hashable, values))}
        if None not in labels.values() and set(labels.values()) != {UNLABELLED}:
            found[name] = np.array([labels[_hashable(value)] for value in values], dtype=np.uint8)
    return found


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value


def _label(value: Any) -> int | None:
    as_number = float(value) if isinstance(value, bool) else number(value)
    return int(as_number) if as_number in (0, 1) else None


def _numbers(path: Path, values: list[Any]) -> list[int]:
    numbers = []
    for row, value in enumerate(values):
        as_number = number(value)
        if as_number % 1 != 0 or as_number < 1:  # NaN % 1 is NaN, which is not 0
            raise InputError(f"{path}: row {row}: {PARAGRAPH} is {value!r}; expected the number of a sample, from 1")
        numbers.append(int(as_number))
    return numbers
