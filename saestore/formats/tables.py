"""Tables of results as files, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saestore._whole_files import whole_file
from saestore.bridges.packages import imported

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
    if path.suffix == ".parquet":
        imported("pyarrow", str(path))
    with whole_file(path) as partial:
        if path.suffix == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False)
    return path
