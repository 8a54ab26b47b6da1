"""Table files as columns of plain Python values: CSV, TSV, JSON Lines, JSON, Parquet, and texts line by line.

CSV is read by Python's own reader, not by pandas, since texts must stay exactly as they are: 'NA' is a text. All but
JSON are read block by block, so that a reader who has enough of a large file can stop.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np

from saestore.errors import DependencyError, InputError, MissingError

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
COMPRESSIONS = (".zst", ".gz")
# What pandas and other writers put for "no value" in columns of numbers and labels; never applied to texts.
MISSING = frozenset(("", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL"))
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf")
# "007" and "1234567890123456789" would not survive being read as floats: such columns stay text.
EXACT = re.compile(r"[+-]?(0[0-9]|[0-9]{16})")

BLOCK_ROWS = 512
_PACKED_BYTES = 1 << 16  # of a zstd file at a time; 64 KiB may unpack to some hundred MB, not more

Columns = dict[str, list[Any]]
_Row = TypeVar("_Row")


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
    columns = join_blocks(table_blocks(path))
    if not columns:
        raise InputError(f"{path}: the table is empty; expected a header and at least one row")
    return columns


def table_blocks(path: Path) -> Iterator[Columns]:
    """Read a table file in blocks of at most `BLOCK_ROWS` rows (JSON: one block), no further than blocks are asked for.

    The rows of a text file are its lines that are not blank, in the column `text`. Blocks of JSON Lines have the
    columns that their own records have. An empty table has no block. Raises what `read_table` raises.
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
        return _parquet_blocks(path)
    if kind in (".csv", ".tsv"):
        return _delimited_blocks(path, "," if kind == ".csv" else "\t")
    if kind == ".txt":
        return text_blocks(_lines_of_file(path))
    return _blocks(_json_lines(path), _columns_of) if kind == ".jsonl" else _json_block(path)


def text_blocks(texts: Iterator[Any]) -> Iterator[Columns]:
    """Blocks of texts from an iterator, in the column `text`."""
    return _blocks(texts, lambda block: {"text": block})


def text_lines(file: IO[str]) -> Iterator[str]:
    """The lines of a text without their ends; blank ones are left out. `file` is open with newline set to LF alone."""
    for line in file:
        if line.strip():
            yield line.removesuffix("\n").removesuffix("\r")


def rows_of(columns: Columns) -> int:
    """How many rows columns have."""
    return len(next(iter(columns.values()), ()))


def join_blocks(blocks: Iterable[Columns]) -> Columns:
    """Columns of all blocks, one after the other; where a block lacks a column it is None."""
    columns: Columns = {}
    rows = 0
    for block in blocks:
        size = rows_of(block)
        for name in block:
            columns.setdefault(name, [None] * rows)
        for name, values in columns.items():
            values.extend(block.get(name) or [None] * size)
        rows += size
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
def _open_text(path: Path, newline: str = "") -> Iterator[IO[str]]:
    """The decoded, decompressed text of a file; line ends stay as they are. `newline` is as for `open`."""
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
            binary = io.BufferedReader(_ZstdContent(raw)) if path.suffix == ".zst" else raw
            yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except failures as error:
        raise InputError(f"{path}: cannot be read ({error}); the file may be damaged or not yours to read") from None


class _ZstdContent(io.RawIOBase):
    """The content of a zstd file, unpacked piece by piece.

    zstandard's own stream reader would take a file that was cut off for a whole one.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._given = b""  # read and not unpacked yet: what follows the end of a frame
        self._frame: Any = None
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            given = self._given or self._packed.read(_PACKED_BYTES)
            if not given:
                if self._frame is not None:
                    raise EOFError("it ends in the middle")
                return 0
            self._unpack(given)
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size

    def _unpack(self, given: bytes) -> None:
        import zstandard

        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._content = memoryview(self._frame.decompress(given))
        self._given = self._frame.unused_data
        if self._frame.eof:
            self._frame = None


def _blocks(rows: Iterator[_Row], columns_of: Callable[[list[_Row]], Columns]) -> Iterator[Columns]:
    while block := list(islice(rows, BLOCK_ROWS)):
        yield columns_of(block)


def _lines_of_file(path: Path) -> Iterator[str]:
    with _open_text(path, "\n") as text:
        yield from text_lines(text)


def _delimited_blocks(path: Path, delimiter: str) -> Iterator[Columns]:
    rows = _delimited_rows(path, delimiter)
    with _long_fields():
        names = next(rows, [])
    _refuse_repeats(str(path), names)
    while True:
        with _long_fields():
            block = list(islice(rows, BLOCK_ROWS))
        if not block:
            return
        yield {name: [row[i] for row in block] for i, name in enumerate(names)}


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift Python's limit of 131,072 characters in a field, which is global to the process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _delimited_rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    """The header, then the rows."""
    with _open_text(path) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        row = 0
        try:
            names = next(reader, [])
            yield names
            start = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(names):
                    raise InputError(
                        f"{path}:{start}: row {row} has {len(fields)} fields, expected {len(names)}; "
                        "quote fields that hold the delimiter"
                    )
                if fields:  # a blank line is no row; an empty value in a table of one column is written ""
                    yield fields
                    row += 1
                start = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: row {row} cannot be read ({error})") from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 ({error.reason}) at or after row {row}; save the file as UTF-8"
            ) from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    row = 0
    with _open_text(path) as text:
        for number, line in enumerate(text):
            if not line.strip():
                continue
            try:
                record = _load_json(line)
            except ValueError as error:
                raise InputError(f"{path}:{number + 1}: row {row} is not JSON ({error})") from None
            yield _checked_record(path, row, record)
            row += 1


def _json_block(path: Path) -> Iterator[Columns]:
    with _open_text(path) as text:
        try:
            content = _load_json(text.read())
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); a file with one object per line is named .jsonl") from None
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of objects, got {type(content).__name__}")
    if content:
        yield _columns_of([_checked_record(path, row, record) for row, record in enumerate(content)])


def _load_json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            raise ValueError(f"a key is given twice in {', '.join(key for key, _ in items)}")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _checked_record(path: Path, row: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or not record:
        got = "an empty object" if record == {} else type(record).__name__
        raise InputError(f"{path}: row {row} is {got}, expected an object" + (" with values" if record == {} else ""))
    return record


def _columns_of(records: list[dict[str, Any]]) -> Columns:
    """Records to columns; a key that a record lacks is None there."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _parquet_blocks(path: Path) -> Iterator[Columns]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DependencyError(
            f"{path} is Parquet and pyarrow is not installed; pip install 'saestore[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_repeats(str(path), names)
            for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                if len(batch) and names:
                    yield {name: batch.column(name).to_pylist() for name in names}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a sound Parquet file ({' '.join(str(error).split())[:200]})") from None


def _refuse_repeats(source: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{source}: the column {name!r} is there twice; rename one")
