"""Table files as columns of plain Python values: CSV, TSV, JSON Lines, JSON and Parquet.

CSV is read by Python's own reader, not by pandas, since texts must stay exactly as they are: 'NA' is a text.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from saestore.errors import DependencyError, InputError, MissingError

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
COMPRESSIONS = (".zst", ".gz")
# What pandas and other writers put for "no value" in columns of numbers and labels; never applied to texts.
MISSING = frozenset(("", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL"))
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf")
# "007" and "1234567890123456789" would not survive being read as floats: such columns stay text.
EXACT = re.compile(r"[+-]?(0[0-9]|[0-9]{16})")

Columns = dict[str, list[Any]]


def table_format(path: Path) -> str:
    """The format of a table by its name, e.g. `.csv` for `x.csv.zst`; '' if it is none of ours."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return next((f for f in FORMATS if name.endswith(f)), "")


def read_table(path: Path) -> Columns:
    """Read a table file into columns of equal length; a missing value is None, in CSV every value is a str.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        Unknown format, a row that cannot be read (its number is told, from 0), no columns or no rows.
    DependencyError
        The package that reads the format is not installed.
    """
    kind = table_format(path)
    if not kind or (kind == ".parquet" and path.suffix != ".parquet"):
        expected = f"{', '.join(FORMATS)} (also .csv.zst, .csv.gz), or a folder of images"
        raise InputError(f"{path}: unknown format {path.suffix or path.name!r}; expected {expected}")
    if not path.exists():
        raise MissingError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: expected a {kind} file, got a folder")
    if kind == ".parquet":
        columns = _read_parquet(path)
    elif kind in (".csv", ".tsv"):
        columns = _read_delimited(path, "," if kind == ".csv" else "\t")
    else:
        columns = _read_json_lines(path) if kind == ".jsonl" else _read_json(path)
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"{path}: the table is empty; expected a header and at least one row")
    return columns


def frame_columns(frame: Any) -> Columns:
    """The columns of a pandas DataFrame as lists; its missing values become None."""
    names = list(frame.columns)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"column {name!r} of the DataFrame has no text as name; rename it")
    _refuse_repeats("DataFrame", names)
    columns = {}
    for name in names:
        column = frame[name]
        columns[name] = [None if gone else v for v, gone in zip(column.tolist(), column.isna().tolist(), strict=True)]
    return columns


def is_missing(value: Any) -> bool:
    """True for None, NaN and, in tables of text, the usual signs for no value. For numbers and labels only."""
    if isinstance(value, str):
        return value in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def typed(values: list[Any]) -> list[Any]:
    """Values of one column as bool, int or float if all of them are; else unchanged, as text.

    Missing values become None where a type is found. A number with leading zeros is a name, so text.
    """
    if not all(v is None or isinstance(v, str) for v in values):
        return [None if is_missing(v) else v for v in values]
    distinct = set(values)  # a label column has few: each is looked at once
    known = {v for v in distinct if not is_missing(v)}
    read = _reader(known) if known else None
    if read is None:
        return values
    found = {v: read(v) if v in known else None for v in distinct}
    return [found[v] for v in values]


def _reader(known: set[str]) -> Callable[[str], Any] | None:
    """What turns these texts into values of their type; None if they are just texts."""
    if len(known) <= 6 and {v.lower() for v in known} <= {"true", "false"}:
        return lambda v: v.lower() == "true"
    if all(INTEGER.fullmatch(v) for v in known):
        return int
    if all(NUMBER.fullmatch(v) and not EXACT.match(v) for v in known):
        return float
    return None


def plain_column(values: list[Any]) -> list[str] | np.ndarray[Any, Any]:
    """A column as it is stored: bool, int64 or float64 (missing = NaN), or a list of str (missing = '').

    Lists and mappings, as JSON and Parquet have them, become JSON text.
    """
    values = typed(values)
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, (bool, np.bool_)) for v in known) and len(known) == len(values):
        return np.array(values, dtype=np.bool_)
    if known and all(isinstance(v, (bool, int, float, np.number, np.bool_)) for v in known):
        if len(known) == len(values) and all(isinstance(v, (int, np.integer)) for v in known):
            fits = all(-(2**63) <= v < 2**63 for v in known)
            return np.array(values, dtype=np.int64) if fits else [str(v) for v in values]
        return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)
    return ["" if v is None else v if isinstance(v, str) else _as_text(v) for v in values]


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """The decoded, decompressed text of a file; line ends stay as they are."""
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise DependencyError(
                f"{path} is zstd-compressed and zstandard is not installed; pip install 'saestore[probes]'"
            ) from None
        failures: tuple[type[Exception], ...] = (OSError, EOFError, zstandard.ZstdError)
        raw: Any = path.open("rb")
    elif path.suffix == ".gz":
        import gzip
        import zlib

        failures = (OSError, EOFError, zlib.error)
        raw = gzip.open(path, "rb")  # noqa: SIM115 - closed below
    else:
        failures = (OSError,)
        raw = path.open("rb")
    try:
        with raw:
            binary = io.BytesIO(_zstd_content(raw.read())) if path.suffix == ".zst" else raw
            yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except failures as error:
        raise InputError(f"{path}: cannot be read ({error}); the file may be damaged or not yours to read") from None


def _zstd_content(packed: bytes) -> bytes:
    """The content of a zstd file. zstandard's stream reader would take a file that was cut off for a whole one."""
    import zstandard

    parts = []
    while packed:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(packed))
        if not frame.eof:
            raise EOFError("it ends in the middle")
        packed = frame.unused_data
    return b"".join(parts)


def _read_delimited(path: Path, delimiter: str) -> Columns:
    # Python's limit of 131,072 characters in a field is global to the process; put it back afterwards.
    limit = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    try:
        with _open_text(path) as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            try:
                names = next(reader, [])
                start = reader.line_num + 1
                for fields in reader:
                    if fields and len(fields) != len(names):
                        raise InputError(
                            f"{path}:{start}: row {len(rows)} has {len(fields)} fields, expected {len(names)}; "
                            "quote fields that hold the delimiter"
                        )
                    if fields:  # a blank line is no row; an empty value in a table of one column is written ""
                        rows.append(fields)
                    start = reader.line_num + 1
            except csv.Error as error:
                raise InputError(f"{path}:{reader.line_num}: row {len(rows)} cannot be read ({error})") from None
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: not UTF-8 ({error.reason}) at or after row {len(rows)}; save the file as UTF-8"
                ) from None
    finally:
        csv.field_size_limit(limit)
    _refuse_repeats(str(path), names)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _read_json_lines(path: Path) -> Columns:
    records: list[Any] = []
    with _open_text(path) as text:
        for number, line in enumerate(text):
            if not line.strip():
                continue
            try:
                records.append(_load_json(line))
            except ValueError as error:
                raise InputError(f"{path}:{number + 1}: row {len(records)} is not JSON ({error})") from None
    return _columns_of(path, records)


def _read_json(path: Path) -> Columns:
    with _open_text(path) as text:
        try:
            content = _load_json(text.read())
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); a file with one object per line is named .jsonl") from None
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of objects, got {type(content).__name__}")
    return _columns_of(path, content)


def _load_json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            raise ValueError(f"a key is given twice in {', '.join(key for key, _ in items)}")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _columns_of(path: Path, records: list[Any]) -> Columns:
    """Records to columns; a key that a record lacks is None there."""
    names: dict[str, None] = {}
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {row} is {type(record).__name__}, expected an object")
        names.update(dict.fromkeys(record))
    return {name: [record.get(name) for record in records] for name in names}


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DependencyError(
            f"{path} is Parquet and pyarrow is not installed; pip install 'saestore[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a sound Parquet file ({' '.join(str(error).split())[:200]})") from None
    _refuse_repeats(str(path), table.column_names)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _refuse_repeats(source: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{source}: the column {name!r} is there twice; rename one")
