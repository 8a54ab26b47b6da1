"""Statistics of units against numpy on the dense matrix that their entries stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels import order_statistics
from saestore.kernels.unit_stats import Entries, RowMarks, UnitTally, tally_long, tally_units

PERCENTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Case:
    dense: np.ndarray
    """(n, d) float32, of numbers that the stored type holds."""
    stored: np.ndarray
    """The same as stored."""
    split: np.ndarray
    """Of each sample."""
    left_out: np.ndarray
    """Rows that are not counted."""
    offsets: np.ndarray
    n_splits: int

    @property
    def rows(self) -> RowMarks:
        marks = RowMarks.of(self.split, self.n_splits, self.offsets)
        marks.leave_out(0, self.left_out)
        return marks

    def part(self, start: int, stop: int, units: slice = slice(None)) -> Entries:
        """The entries of the rows `start:stop`."""
        dense, stored = self.dense[start:stop, units], self.stored[start:stop, units]
        gaps: list[int] = []
        values: list[Any] = []
        edges = [0]
        for unit in range(dense.shape[1]):
            rows = np.flatnonzero(dense[:, unit])
            gaps += np.diff(rows, prepend=0).tolist()
            values += list(stored[rows, unit])
            edges.append(len(gaps))
        return Entries(np.array(gaps, np.uint32), np.array(values, stored.dtype), np.array(edges), start)


def make_case(
    n: int, fractions: Sequence[float], *, dtype: str, n_splits: int, seed: int, signed: bool = False, levels: int = 0
) -> Case:
    """Rows of samples of 0 to 12; `levels` is the number of distinct values, 0 for as many as the type has."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < n:
        lengths.append(min(int(rng.integers(0, 13)), n - sum(lengths)))
    split, left_out = rng.integers(0, n_splits, len(lengths)), rng.random(n) < 0.1
    values = rng.lognormal(0, 1, (n, len(fractions))).astype(np.float32)
    if levels:
        values = np.ceil(values * levels / 8).clip(1, levels).astype(np.float32) / 4
    if signed:
        values *= rng.choice([-1, 1], values.shape)
    if dtype == "bfloat16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = values.astype(dtype)
        values = stored.astype(np.float32)
    dense = np.where(rng.random(values.shape) < np.array(fractions), values, np.float32(0))
    return Case(dense, stored, split, left_out, np.append(0, np.cumsum(lengths)), n_splits)


def expected(case: Case, split: int | None) -> dict[str, np.ndarray]:
    sample = np.repeat(np.arange(len(case.offsets) - 1), np.diff(case.offsets))
    counted = ~case.left_out & (split is None or case.split[sample] == split)
    columns: dict[str, list[Any]] = {}
    for column in case.dense.T:
        rows = np.flatnonzero(counted & (column != 0))
        values = column[rows]
        one = {
            "count": len(rows),
            "samples": len(np.unique(sample[rows])),
            "sum": values.astype(np.float64).sum(),
            "sum_squares": (values.astype(np.float64) ** 2).sum(),
            "max": values.max() if len(rows) else np.nan,
            "min": values.min() if len(rows) else np.nan,
            "first_row": rows[0] if len(rows) else -1,
            "last_row": rows[-1] if len(rows) else -1,
            "percentiles": np.quantile(values, PERCENTILES, method="inverted_cdf")
            if len(rows)
            else np.full(len(PERCENTILES), np.nan),
        }
        for name, value in one.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def check(tally: UnitTally, case: Case) -> None:
    for split in (None, *range(case.n_splits)):
        found, right = tally.columns(split), expected(case, split)
        assert list(found) == [
            "count",
            "samples",
            "sum",
            "sum_squares",
            "max",
            "min",
            "first_row",
            "last_row",
            "percentiles",
        ]
        for name in found:
            if name.startswith("sum"):
                np.testing.assert_allclose(found[name], right[name], rtol=1e-12, atol=1e-12, err_msg=f"{name} {split}")
            else:
                np.testing.assert_array_equal(found[name], right[name], err_msg=f"{name} {split}")


def same(one: UnitTally, other: UnitTally) -> bool:
    names = [name for name in vars(one) if name != "levels"]
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in names)


def tallied(case: Case, cuts: Sequence[int], shares: Sequence[int]) -> UnitTally:
    """Statistics from segments that begin at `cuts`, the units in shares that begin at `shares`."""
    n, d = case.dense.shape
    parts = [case.part(start, stop) for start, stop in zip(cuts, [*cuts[1:], n], strict=True)]
    tally = UnitTally.empty(d, case.n_splits, PERCENTILES)
    for start, stop in zip(shares, [*shares[1:], d], strict=True):
        tally_units(parts, case.rows, tally, units=range(start, stop), first=0)
    return tally


FRACTIONS = (0.0, 0.001, 0.01, 0.05, 0.3, 0.6, 1.0)


@pytest.mark.parametrize("n_splits", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "signed", "levels"),
    [
        ("float16", False, 0),
        ("float16", True, 0),
        ("float16", False, 5),
        ("float32", False, 0),
        ("float32", True, 40),
        ("bfloat16", False, 0),
        ("bfloat16", True, 0),
    ],
)
def test_statistics_are_those_of_the_dense_matrix(dtype: str, signed: bool, levels: int, n_splits: int) -> None:
    """With 9,000 rows each way of sorting is taken: by insertion, by digits of both widths, by counting."""
    case = make_case(9_000, FRACTIONS, dtype=dtype, n_splits=n_splits, seed=n_splits, signed=signed, levels=levels)
    check(tallied(case, [0], [0]), case)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cuts_into_segments_and_shares_leave_the_bits_as_they_are(dtype: str) -> None:
    case = make_case(900, FRACTIONS, dtype=dtype, n_splits=3, seed=5, signed=True)
    whole = tallied(case, [0], [0])
    for cuts, shares in [([0, 1, 450], [0]), ([0], [0, 3, 4]), ([0, 300, 600, 601], [0, 1, 2, 3, 4, 5, 6])]:
        assert same(tallied(case, cuts, shares), whole)
    check(whole, case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("levels", [0, 5])
@pytest.mark.parametrize("piece", [1000, 37])
def test_a_unit_that_comes_in_pieces_gives_the_same_bits(dtype: str, levels: int, piece: int) -> None:
    case = make_case(1_000, FRACTIONS, dtype=dtype, n_splits=3, seed=6, signed=True, levels=levels)
    tally = UnitTally.empty(len(FRACTIONS), 3, PERCENTILES)
    for unit in range(len(FRACTIONS)):

        def read(unit: int = unit) -> Iterator[Entries]:
            for start, stop in ((0, 400), (400, 1000)):
                entries = case.part(start, stop, slice(unit, unit + 1))
                row = start
                for first in range(0, len(entries.gaps), piece):
                    gaps = entries.gaps[first : first + piece]
                    yield Entries(gaps, entries.values[first : first + piece], np.array([0, len(gaps)]), row)
                    row += int(gaps.sum())

        tally_long(read, case.rows, tally, place=unit)
    assert same(tally, tallied(case, [0, 400], [0]))
    check(tally, case)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 120),
    fraction=st.sampled_from([0.02, 0.2, 0.9]),
    dtype=st.sampled_from(["float16", "float32", "bfloat16"]),
    n_splits=st.integers(1, 4),
    levels=st.integers(0, 3),
    signed=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_small_matrix(
    n: int, fraction: float, dtype: str, n_splits: int, levels: int, signed: bool, seed: int
) -> None:
    case = make_case(n, [fraction] * 3, dtype=dtype, n_splits=n_splits, seed=seed, signed=signed, levels=levels)
    check(tallied(case, [0, n // 2], [0, 1]), case)


def test_percentiles_are_those_of_numpy_for_every_length() -> None:
    """Where n times the part is a whole number, one rounding more would take the next value."""
    lengths = np.arange(1, 2_001)
    words = np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32) << order_statistics.GROUP_BITS
    edges = np.append(0, np.cumsum(lengths))
    levels = np.array([0.0, *PERCENTILES, 1.0])
    found = order_statistics.select_short(words, edges, edges[1:].copy(), lengths[:, None], levels)
    right = [np.quantile(np.arange(n), levels, method="inverted_cdf") for n in lengths]
    np.testing.assert_array_equal(found[:, 0], right)
    np.testing.assert_array_equal(found[:, 1], right)


def test_rows_whose_samples_are_themselves() -> None:
    case = make_case(300, (0.3, 1.0), dtype="float16", n_splits=2, seed=1)
    pooled = Case(case.dense, case.stored, np.arange(300) % 2, case.left_out, np.arange(301), 2)
    tally = tallied(pooled, [0], [0])
    check(tally, pooled)
    np.testing.assert_array_equal(tally.samples, tally.count)


def test_an_entry_of_a_row_that_does_not_exist_is_refused() -> None:
    rows = RowMarks.of(np.zeros(1, int), 1, np.array([0, 5]))
    entries = Entries(np.array([2, 3], np.uint32), np.ones(2, np.float16), np.array([0, 2]), 0)
    with pytest.raises(IndexError, match="below 5"):
        tally_units([entries], rows, UnitTally.empty(1, 1, PERCENTILES), units=range(1), first=0)
