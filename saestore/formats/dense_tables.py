"""Dense matrices as tables, one line per row: what the row is, l0, and a column per unit, named by its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saestore.bridges.packages import imported
from saestore.errors import InputError
from saestore.formats.dense_source import DenseBlocks, DenseSource

_MOST_COLUMNS = 20_000
# The writer keeps 0.85 kB of each column of each row group until the file is closed. Measured.
_MOST_COLUMN_CHUNKS = 500_000


def check_parquet(path: Path, blocks: DenseBlocks) -> None:
    """Refuse what would be a Parquet file that nothing reads well, before anything is written.

    Raises
    ------
    InputError
        There are too many columns, or too many row groups for so many.
    DependencyError
        pyarrow is not installed.
    """
    imported("pyarrow", str(path))
    width = len(blocks.source.units)
    remedy = "write .zarr or .npy, or take the codes as a long table with codes.arrow_batches()"
    if width > _MOST_COLUMNS:
        raise InputError(f"{path}: {width:,} units are more columns than the {_MOST_COLUMNS:,} of a table; {remedy}")
    if width * len(blocks) > _MOST_COLUMN_CHUNKS:
        raise InputError(
            f"{path}: {blocks.source.rows:,} rows x {width:,} units are more than one Parquet file can index; {remedy}"
        )


def write_parquet(path: Path, blocks: DenseBlocks) -> None:
    """Write a Parquet file with a row group per block."""
    arrow, parquet = imported("pyarrow", str(path)), imported("pyarrow.parquet", str(path))
    source = blocks.source
    writer: Any = None
    try:
        for first, values in blocks:
            columns = {name: arrow.array(column) for name, column in _labels(source, first, len(values)).items()}
            by_unit = np.ascontiguousarray(values.T)
            columns |= {str(unit): arrow.array(column) for unit, column in zip(source.units, by_unit, strict=True)}
            table = arrow.table(columns)
            if writer is None:
                writer = parquet.ParquetWriter(
                    path, table.schema, compression="zstd", use_dictionary=["sample", "split"], write_statistics=["row"]
                )
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def write_csv(path: Path, blocks: DenseBlocks) -> None:
    """Write a CSV file with a line of names."""
    import pandas as pd

    source = blocks.source
    names = [str(unit) for unit in source.units]
    with path.open("w", encoding="utf-8", newline="") as file:
        for first, values in blocks:
            about = pd.DataFrame(_labels(source, first, len(values)))
            lines = pd.concat([about, pd.DataFrame(values, columns=names)], axis=1)
            lines.to_csv(file, index=False, header=first == 0)


def _labels(source: DenseSource, first: int, count: int) -> dict[str, Any]:
    return source.labels(first, first + count)
