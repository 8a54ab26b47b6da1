"""Tables of results as files, whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from saestore.bridges.packages import imported
from saestore.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    """Write a `.parquet` or `.csv` file, making its folder.

    Raises
    ------
    InputError
        The file cannot be written.
    DependencyError
        pyarrow, which Parquet needs, is not installed.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    if path.suffix == ".parquet":
        imported("pyarrow", str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".parquet":
                frame.to_parquet(partial, index=False)
            else:
                frame.to_csv(partial, index=False)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from None
    return path
