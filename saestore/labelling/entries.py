"""Tables whose rows are each about one concept in one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._sample_columns import id_values
from saestore._table_files import Columns, read_table
from saestore.errors import InputError, MissingError

SAMPLE = "sample"
CONCEPT = "concept"


@dataclass(frozen=True)
class Entries:
    """The rows of such a table.

    concept_names : in the order of their first rows
    concept : (n,) int64, place of each row's concept among them
    rows_of : the numbers of a sample's rows, by its id
    """

    path: Path
    columns: Columns
    concept_names: tuple[str, ...]
    concept: NDArray[np.int64]
    rows_of: dict[str, list[int]]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column of numbers (InputError where a value is none, from row 0)."""
        values = np.empty(len(self.concept), dtype=np.float64)
        for row, value in enumerate(self.columns[name]):
            values[row] = number(value)
            if not math.isfinite(values[row]):
                raise InputError(f"{self.path}: row {row}: {name} is {value!r}; expected a number")
        return values

    def texts(self, name: str) -> list[str]:
        """Return a column of texts (InputError where one is missing, from row 0)."""
        for row, value in enumerate(self.columns[name]):
            if not isinstance(value, str) or not value:
                raise InputError(f"{self.path}: row {row}: {name} is {value!r}; expected a text")
        return self.columns[name]


def read_entries(path: Path, further: Sequence[str]) -> Entries:
    """Read a table of CSV, TSV, JSON lines, JSON or Parquet with the columns sample, concept and some further ones.

    Raises
    ------
    MissingError
        There is no such file, or a column is not there.
    InputError
        A row cannot be read, or has no sample or concept.
    """
    columns = read_table(path)
    require_columns(path, columns, [SAMPLE, CONCEPT, *further])
    samples = sample_ids(path, columns[SAMPLE], SAMPLE)
    places: dict[str, int] = {}
    concept = np.empty(len(samples), dtype=np.int64)
    rows_of: dict[str, list[int]] = {}
    for row, (sample, name) in enumerate(zip(samples, columns[CONCEPT], strict=True)):
        if not isinstance(name, str) or not name:
            raise InputError(f"{path}: row {row}: {CONCEPT} is {name!r}; expected a text")
        concept[row] = places.setdefault(name, len(places))
        rows_of.setdefault(sample, []).append(row)
    return Entries(path, columns, tuple(places), concept, rows_of)


def require_columns(path: Path, columns: Columns, names: Sequence[str]) -> None:
    """Refuse a table without some columns (MissingError)."""
    for name in names:
        if name not in columns:
            raise MissingError(
                f"{path}: no column {name!r}; expected {', '.join(names)}, the columns are: {', '.join(columns)}"
            )


def sample_ids(path: Path, values: list[Any], name: str) -> list[str]:
    """Return a column of sample ids as texts."""
    try:
        return id_values(name, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def number(value: Any) -> float:
    """Return a value of a table as a number; NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.number):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
