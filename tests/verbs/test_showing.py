"""Showing signed codes: strength is magnitude, and units that are only ever negative count as any other."""

from __future__ import annotations

import numpy as np
from built_lake import sample_table, top_k, write_codes

from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.tables import write_samples
from saestore.verbs.showing import show, top


def signed_lake(url: str) -> Lake:
    """Two datasets of two samples: unit 1 is negative everywhere and largest in `b`, unit 0 positive."""
    lake = Lake.create(url)
    for dataset, rows in {"a": [[1, -2, 0], [0.5, -3, 0]], "b": [[2, -8, 0], [1, 0, 0]]}.items():
        write_samples(lake.storage, dataset, sample_table(2))
        write_codes(lake.storage, CodesKey(dataset, "m", "layer_3", "s", "mean"), top_k(np.array(rows, np.float32), 2))
    index(lake.storage, list(lake.code_keys()), quiet=True)
    return lake


def test_strongest_units_and_rows_by_magnitude(tmp_path: object) -> None:
    lake = signed_lake(f"{tmp_path}/lake")
    (row,) = show(lake, "a", rows=[1], units=1).rows
    assert (row.units, row.values) == ((1,), (-3.0,))
    (unit,) = top(lake, units=[1], n=2).units
    found = [(example.place.dataset, example.place.row, example.value) for example in unit.examples]
    assert found == [("b", 0, -8.0), ("a", 1, -3.0)]
    assert unit.active_rows == 3


def test_units_are_picked_by_magnitude(tmp_path: object) -> None:
    assert [unit.unit for unit in top(signed_lake(f"{tmp_path}/lake")).units] == [1, 0]


def test_bands_over_datasets_hold_rows_of_each(tmp_path: object) -> None:
    lake = Lake.create(f"{tmp_path}/lake")
    for dataset, scale in {"a": 10.0, "b": 1.0}.items():
        write_samples(lake.storage, dataset, sample_table(20))
        values = (np.arange(1, 21, dtype=np.float32) * scale)[:, None]
        write_codes(lake.storage, CodesKey(dataset, "m", "layer_3", "s", "mean"), top_k(values, 1))
    index(lake.storage, list(lake.code_keys()), quiet=True)
    (unit,) = top(lake, units=[0], n=4, quantiles=[0, 1]).units
    found = [example.value for example in unit.examples]
    assert found == sorted(found, reverse=True)
    assert {example.place.dataset for example in unit.examples} == {"a", "b"}
