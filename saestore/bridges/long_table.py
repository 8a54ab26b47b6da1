"""Codes as a long table of pandas or Arrow: one line per filled slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.axis import RowAxis
from saestore.bridges.packages import imported
from saestore.budget import parse_memory, require_memory
from saestore.engine.arrays import Places, count
from saestore.layout import SPLITS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_BATCH_LINES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {
    "row": np.dtype(np.int64),
    "sample": np.dtype(np.int32),
    "position": np.dtype(np.int32),
    "unit": np.dtype(np.int32),
    "value": np.dtype(np.float32),
    "split": np.dtype(np.int8),
}
_LINE_BYTES = sum(dtype.itemsize for dtype in _DTYPES.values())

Slots = Callable[[Places], tuple[NDArray[Any], NDArray[np.float32]]]


class RowLabels:
    """What some rows are, as columns of a table: sample ids and splits are codes of the categories that occur.

    Parameters
    ----------
    axis : RowAxis
    rows : slice of step 1, or (n,) int64
        The rows that will be asked for.
    """

    def __init__(self, axis: RowAxis, rows: Places) -> None:
        self.axis = axis
        if count(rows) == 0:
            self._samples = np.empty(0, dtype=np.int64)
        elif isinstance(rows, slice):
            first, last = axis.sample_of(np.array([rows.start, rows.stop - 1]))
            self._samples = np.arange(first, last + 1)
            if axis.positions is not None:
                self._samples = self._samples[np.diff(axis.positions.offsets[first : last + 2]) > 0]
        else:
            self._samples = np.unique(axis.sample_of(rows))

    @cached_property
    def ids(self) -> NDArray[Any]:
        """The ids of samples that occur, in the order of the sample table: str objects."""
        return self.axis.samples.ids[self._samples]

    @property
    def splits(self) -> list[str]:
        """The splits that occur; samples of no split have the empty string."""
        return self._splits[0]

    @cached_property
    def _splits(self) -> tuple[list[str], NDArray[np.int8]]:
        """The splits that occur, and which of them each sample is in."""
        of_samples = self.axis.samples.split[self._samples]
        occurring = [split for split in (*SPLITS, "") if (of_samples == split).any()]
        codes = np.zeros(len(of_samples), dtype=np.int8)
        for code, split in enumerate(occurring):
            codes[of_samples == split] = code
        return occurring, codes

    def of(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the columns `row`, `sample`, `position` and `split` of rows."""
        samples = np.searchsorted(self._samples, self.axis.sample_of(rows)).astype(np.int32)
        return {
            "row": rows,
            "sample": samples,
            "position": self.axis.place_in_sample(rows).astype(np.int32),
            "split": self._splits[1][samples],
        }

    def categorical(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return columns for pandas, sample ids and splits as categories."""
        import pandas as pd

        return {
            **columns,
            "sample": pd.Categorical.from_codes(columns["sample"], pd.Index(self.ids, dtype=object)),
            "split": pd.Categorical.from_codes(columns["split"], pd.Index(self.splits, dtype=object)),
        }


@dataclass(frozen=True)
class LongTable:
    """The filled slots of rows, in the order of the rows and then of the slots.

    axis : RowAxis
    rows : slice of step 1, or (n,) int64
    k : int
        Slots of a row.
    chunk_rows : int
        Rows that are stored together.
    slots : function
        Returns indices and values of rows, (n, k) each.
    """

    axis: RowAxis
    rows: Places
    k: int
    chunk_rows: int
    slots: Slots

    @cached_property
    def _labels(self) -> RowLabels:
        return RowLabels(self.axis, self.rows)

    def _parts(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the columns of at most so many lines as are a batch (or of one row), categories as codes."""
        step = max(1, _BATCH_LINES // max(1, self.k))
        step = step // self.chunk_rows * self.chunk_rows or step
        start, stop = (self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else (0, len(self.rows))
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            rows = part if isinstance(self.rows, slice) else self.rows[part]
            indices, values = self.slots(rows)
            at, slot = np.nonzero(values)
            numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            columns = {name: column[at] for name, column in self._labels.of(numbers).items()}
            columns["unit"], columns["value"] = indices[at, slot].astype(np.int32), values[at, slot]
            yield columns

    def pandas(self, lines: int) -> pd.DataFrame:
        """Return the table; it has at most so many lines."""
        import pandas as pd

        self._require(lines, "to_pandas")
        columns = {name: np.empty(lines, dtype=dtype) for name, dtype in _DTYPES.items()}
        done = 0
        for part in self._parts():
            stop = done + len(part["row"])
            for name, column in part.items():
                columns[name][done:stop] = column
            done = stop
        columns = {name: column[:done] for name, column in columns.items()}
        return pd.DataFrame(self._labels.categorical(columns), copy=False)

    def arrow(self, lines: int) -> pa.Table:
        """Return the table; it has at most so many lines."""
        reader = self.batches("to_arrow")
        self._require(lines, "to_arrow")
        return reader.read_all()

    def batches(self, what: str = "arrow_batches") -> pa.RecordBatchReader:
        """Return a reader of batches of bounded size; each is read when it is asked for."""
        arrow = imported("pyarrow", what)
        types = {
            name: arrow.dictionary(arrow.from_numpy_dtype(dtype), arrow.string())
            if name in ("sample", "split")
            else arrow.from_numpy_dtype(dtype)
            for name, dtype in _DTYPES.items()
        }
        schema = arrow.schema(list(types.items()))

        def batches() -> Iterator[pa.RecordBatch]:
            categories = {"sample": arrow.array(self._labels.ids, arrow.string())}
            categories["split"] = arrow.array(self._labels.splits, arrow.string())
            for part in self._parts():
                arrays = [
                    arrow.DictionaryArray.from_arrays(arrow.array(part[name]), categories[name])
                    if name in categories
                    else arrow.array(part[name])
                    for name in _DTYPES
                ]
                yield arrow.RecordBatch.from_arrays(arrays, schema=schema)

        return arrow.RecordBatchReader.from_batches(schema, batches())

    def _require(self, lines: int, what: str) -> None:
        require_memory(
            lines * _LINE_BYTES,
            budget=parse_memory(None),
            what=f"{what} of {lines:,} filled slots",
            remedy="ask for fewer rows, or stream them with arrow_batches()",
        )
