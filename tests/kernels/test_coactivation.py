"""Found pairs against the correlations of dense columns, on both ways of making sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels import coactivation, coactivation_torch
from saestore.kernels.coactivation import (
    Found,
    Moments,
    RowMajor,
    Rule,
    TooManyPairs,
    UnitMajor,
    found_pairs,
    sort_rows,
    unit_major,
)
from saestore.kernels.pair_rules import Ends

DEVICES = ["cpu", "torch"]


def row_major(dense: np.ndarray, dtype: Any = np.uint16) -> RowMajor:
    rows, units = np.nonzero(dense)
    pointers = np.append(0, np.cumsum(np.bincount(rows, minlength=len(dense)))).astype(np.int64)
    return RowMajor(pointers, units.astype(dtype), dense[rows, units].astype(np.float32), dense.shape[1])


def random_end(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Units of all kinds: rare, common, always active, dead, constant, silent in few rows; some of them signed."""
    often = rng.choice([0, 0.02, 0.1, 0.5, 0.9, 0.97, 1], d)
    values = rng.lognormal(0, 0.3, (n, d)) * rng.choice([1, 1, -1], d)
    signed = rng.random(d) < 0.2
    values[:, signed] *= rng.choice([-1, 1], (n, signed.sum()))
    steady = rng.random(d) < 0.3
    values[:, steady] = rng.choice([0.1, 0.5, 3], steady.sum())
    return np.where(rng.random((n, d)) < often, values, 0).astype(np.float16).astype(np.float32)


def with_copies(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some columns follow, and some oppose, another one: rows where it is silent."""
    x = x.copy()
    for place in np.flatnonzero(rng.random(x.shape[1]) < 0.4):
        other = int(rng.integers(x.shape[1]))
        x[:, place] = np.where(rng.random(len(x)) < 0.9, x[:, other], x[:, place])
    for place in np.flatnonzero(rng.random(x.shape[1]) < 0.2):
        x[:, place] = np.where(x[:, int(rng.integers(x.shape[1]))] != 0, 0, 1.5)
    return x


@dataclass(frozen=True)
class Right:
    """What numpy says of all pairs, dense."""

    r: np.ndarray
    n_ab: np.ndarray
    may: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, rule: Rule, masks: tuple[np.ndarray, np.ndarray]) -> Right:
        varies = [(each != each[0]).any(axis=0) & mask for each, mask in zip((x, y), masks, strict=True)]
        with np.errstate(all="ignore"):
            both = np.corrcoef(x.astype(np.float64), y.astype(np.float64), rowvar=False)
        active = [(each != 0).astype(np.int64) for each in (x, y)]
        n_ab = active[0].T @ active[1]
        chance = np.outer(active[0].sum(axis=0), active[1].sum(axis=0)) / len(x)
        may = np.outer(*varies) & (np.maximum(n_ab, chance) >= rule.min_support)
        if rule.within:
            may &= np.triu(np.ones(may.shape, dtype=bool), 1)
        return cls(both[: x.shape[1], x.shape[1] :], n_ab, may)


def found_on(
    device: str,
    x: np.ndarray,
    y: np.ndarray,
    rule: Rule,
    *,
    places: np.ndarray | None = None,
    order: np.ndarray | None = None,
    masks: tuple[np.ndarray, np.ndarray] | None = None,
    limit: int = 1 << 30,
) -> Found:
    """All pairs of some units of a; the way of other devices with torch on the CPU."""
    a, b = row_major(x), row_major(y)
    moments = Moments.of(a), Moments.of(b)
    chosen = np.arange(x.shape[1]) if places is None else places
    entries = units_of(x, chosen)
    mask_a, mask_b = masks if masks else (None, None)
    if device == "cpu":
        return found_pairs(
            entries, chosen, b, *moments, rule, limit=limit, order=order, mask_a=mask_a, mask_b=mask_b, threads=2
        )
    ends = Ends.of(chosen, *moments, mask_a, mask_b)
    if order is not None:
        entries = UnitMajor(entries.pointers, order[entries.rows].astype(np.uint32), entries.values)
    # Neither a block of units nor the products added at once are the whole of it.
    units, products = (5, 50) if len(x) < 1_000 else (150, 1 << 18)
    parts = coactivation_torch.pairs_on(
        entries, chosen, b, ends, rule, device="cpu", block_bytes=units * 12 * b.n_units, products=products
    )
    return Found.joined([part for part, _ in parts])


def units_of(dense: np.ndarray, places: np.ndarray) -> UnitMajor:
    """Entries of chosen units."""
    units, rows = np.nonzero(dense[:, places].T)
    pointers = np.append(0, np.cumsum(np.bincount(units, minlength=len(places)))).astype(np.int64)
    return UnitMajor(pointers, rows.astype(np.uint32), dense[rows, places[units]].astype(np.float32))


def check(found: Found, right: Right, rule: Rule) -> None:
    kept = right.may & (np.abs(right.r) >= rule.min_r - 1e-9)
    sure = right.may & (np.abs(right.r) >= rule.min_r + 1e-9)
    pairs = np.stack([found.a, found.b], axis=1).astype(np.int64)
    assert pairs.tolist() == sorted(pairs.tolist())
    table = np.zeros(kept.shape, dtype=np.int64)
    np.add.at(table, (found.a, found.b), 1)
    assert ((table == 1) == (table > 0)).all()
    # At the threshold itself the last digit decides.
    assert not (table.astype(bool) & ~kept).any()
    assert not (sure & ~table.astype(bool)).any()
    np.testing.assert_allclose(found.r, right.r[found.a, found.b], atol=1e-9)
    np.testing.assert_array_equal(found.n_ab, right.n_ab[found.a, found.b])
    assert (found.a.dtype, found.b.dtype, found.r.dtype, found.n_ab.dtype) == (
        np.uint32,
        np.uint32,
        np.float64,
        np.int64,
    )
    assert np.abs(found.r).max(initial=0) <= 1


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 60),
    d=st.sampled_from([1, 9, 64, 65, 150]),
    min_r=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    support=st.sampled_from([0, 1, 3, 10]),
    within=st.booleans(),
    shuffled=st.booleans(),
    masked=st.booleans(),
    device=st.sampled_from(DEVICES),
    seed=st.integers(0, 2**20),
)
def test_pairs_are_those_of_the_dense_matrices(
    n: int, d: int, min_r: float, support: int, within: bool, shuffled: bool, masked: bool, device: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = with_copies(random_end(n, d, rng), rng)
    y = x if within else with_copies(np.concatenate([x[:, : d // 2], random_end(n, d, rng)], axis=1), rng)
    order = rng.permutation(n) if shuffled else None
    masks = tuple(rng.random(each.shape[1]) < (0.7 if masked else 1.1) for each in (x, y))
    rule = Rule(min_r, support, within)
    found = found_on(device, x, y, rule, order=order, masks=masks)
    check(found, Right.of(x, y if order is None else y[order], rule, masks), rule)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("within", [True, False])
def test_many_units_and_rows(device: str, within: bool) -> None:
    """Blocks without an entry, long rows that are asked for early, and more than one share of the work."""
    rng = np.random.default_rng(7)
    x, y = (random_end(1_500, 400, rng) * (rng.random(400) < 0.5) for _ in range(2))
    x[:, 3] = np.where(y[:, 5] != 0, 0, 1)
    y[:, 200:] *= rng.random(1_500)[:, None] < 0.006
    y = x if within else y
    rule = Rule(0.04, 2, within)
    every = np.ones(400, dtype=bool)
    check(found_on(device, x, y, rule), Right.of(x, y, rule, (every, every)), rule)


@pytest.mark.parametrize("device", DEVICES)
def test_pairs_that_are_never_active_together_are_found(device: str) -> None:
    """Also in blocks of units where nothing was active in the rows of a, in the order of b, and of either sign."""
    rng = np.random.default_rng(1)
    n = 400
    gate = rng.random(n) < 0.8
    x = np.stack([np.where(gate, 2, 0), np.where(gate, -2, 0)], axis=1) * rng.uniform(0.9, 1.1, (n, 2))
    y = np.zeros((n, 300))
    y[:, [290, 7, 130]] = np.where(gate, 0, 1)[:, None] * rng.uniform(0.9, 1.1, (n, 3))
    y[:, 131] = rng.random(n) < 0.1
    rule = Rule(0.5, 5, False)
    found = found_on(device, x, y, rule)
    assert found.a.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.b.tolist() == [7, 130, 290] * 2
    assert not found.n_ab.any()
    assert (found.r[:3] < -0.9).all()
    assert (found.r[3:] > 0.9).all()
    check(found, Right.of(x, y, rule, (np.ones(2, bool), np.ones(300, bool))), rule)
    # By chance they would have met in 400 x 0.8 x 0.2 rows: more support than that is too much.
    together = len(x) * gate.mean() * (1 - gate.mean())
    assert len(found_on(device, x, y, Rule(0.5, int(together), False)).r) == 6
    assert len(found_on(device, x, y, Rule(0.5, int(together) + 1, False)).r) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("within", [True, False])
def test_blocks_of_units_give_the_pairs_of_all_units(device: str, within: bool) -> None:
    rng = np.random.default_rng(3)
    x = with_copies(random_end(200, 70, rng), rng)
    y = x if within else with_copies(x, rng)
    rule = Rule(0.2, 1, within)
    whole = found_on(device, x, y, rule)
    parts = [found_on(device, x, y, rule, places=places) for places in np.split(np.arange(70), [1, 30, 31])]
    some = found_on(device, x, y, rule, places=np.array([2, 40, 69]))
    joined = Found.joined(parts)
    chosen = np.isin(whole.a, [2, 40, 69])
    for name in ("a", "b", "r", "n_ab"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[chosen])
    assert len(some.r)


def test_threads_and_room_leave_the_bits_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x = with_copies(random_end(500, 130, rng), rng)
    rows = row_major(x, np.uint32)
    moments, rule = Moments.of(rows), Rule(0.05, 1, True)

    def found(threads: int) -> list[bytes]:
        pairs = found_pairs(
            unit_major(rows, 0, 130), np.arange(130), rows, moments, moments, rule, limit=10**6, threads=threads
        )
        return [getattr(pairs, name).tobytes() for name in ("a", "b", "r", "n_ab")]

    first = found(1)
    assert found(3) == first
    monkeypatch.setattr(coactivation, "_SPARE_PAIRS", 0)
    monkeypatch.setattr(coactivation, "_CHUNKS", 2)
    assert found(2) == first


def test_device_is_passed_to_torch() -> None:
    rng = np.random.default_rng(5)
    rows = row_major(random_end(50, 20, rng))
    moments = Moments.of(rows)
    arguments = unit_major(rows, 0, 20), np.arange(20), rows, moments, moments, Rule(0.1, 1, True)
    order = rng.permutation(50)
    one, other = (found_pairs(*arguments, limit=1000, order=order, device=device) for device in ("cpu", "cpu:0"))
    assert len(one.r)
    for name in ("a", "b", "n_ab"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.r, other.r, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_more_pairs_than_the_limit_are_counted_by_size(device: str) -> None:
    x = with_copies(random_end(300, 40, np.random.default_rng(6)), np.random.default_rng(6))
    rows = row_major(x)
    moments, rule = Moments.of(rows), Rule(0.1, 1, False)
    every = found_on("cpu", x, x, rule)
    arguments = unit_major(rows, 0, 40), np.arange(40), rows, moments, moments, rule
    assert len(found_pairs(*arguments, limit=len(every.r), device=device).r) == len(every.r)
    with pytest.raises(TooManyPairs) as raised:
        found_pairs(*arguments, limit=10, device=device)
    error = raised.value
    done = every.a < error.units_done
    assert 10 < error.count == done.sum()
    np.testing.assert_array_equal(error.histogram, np.histogram(np.abs(every.r[done]), 100, (0, 1))[0])
    assert error.histogram[:10].sum() == 0


def test_moments_are_those_of_the_dense_columns_for_any_blocks() -> None:
    rng = np.random.default_rng(8)
    x = random_end(500, 80, rng)
    moments = Moments.empty(80)
    for block in np.split(x, [0, 100, 101]):
        rows = row_major(block, np.uint32)
        moments.add(rows.units, rows.values, len(block))
    assert moments.n == 500
    np.testing.assert_array_equal(moments.active, (x != 0).sum(axis=0))
    np.testing.assert_allclose(moments.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    varies = (x != x[0]).any(axis=0)
    assert 10 < varies.sum() < 70
    np.testing.assert_array_equal(moments.usable, varies)
    np.testing.assert_allclose(moments.deviation, x.astype(np.float64).std(axis=0) * varies, rtol=1e-9)


def test_a_constant_whose_sums_are_rounded_is_still_constant() -> None:
    n = 1_000_000
    rows = RowMajor(np.arange(n + 1), np.zeros(n, np.uint16), np.full(n, 0.1, np.float32), 1)
    moments = Moments.of(rows)
    assert not moments.usable[0]
    assert moments.deviation.tolist() == [0]
    values = np.full(n, 1000, np.float32)
    values[::2] = 1001
    moments = Moments.of(RowMajor(np.arange(n + 1), np.zeros(n, np.uint16), values, 1))
    assert moments.usable[0]
    assert moments.deviation[0] == pytest.approx(0.5, rel=1e-6)


def test_no_rows_have_no_pairs() -> None:
    x = np.zeros((0, 5), np.float32)
    for device in DEVICES:
        assert len(found_on(device, x, x, Rule(0.0, 0, True)).r) == 0
        assert len(found_on(device, np.ones((4, 5)), np.ones((4, 5)), Rule(0.0, 0, True)).r) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("k", [7, 90])
def test_rows_are_sorted_by_unit(k: int, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    lengths = rng.integers(0, k + 1, 40)
    pointers = np.append(0, np.cumsum(lengths)).astype(np.int64)
    units = np.concatenate([rng.permutation(100)[:length] for length in lengths]).astype(dtype)
    values = rng.normal(size=len(units)).astype(np.float32)
    row = np.repeat(np.arange(40), lengths)
    order = np.lexsort((units, row))
    right = units[order].tolist(), values[order].tolist()
    sort_rows(pointers, units, values)
    assert (units.tolist(), values.tolist()) == right


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 30), d=st.integers(1, 12), seed=st.integers(0, 2**20), data=st.data())
def test_entries_by_units_are_those_of_a_stable_sort(n: int, d: int, seed: int, data: st.DataObject) -> None:
    x = random_end(n, d, np.random.default_rng(seed))
    rows = row_major(x)
    first = data.draw(st.integers(0, d))
    stop = data.draw(st.integers(first, d))
    found = unit_major(rows, first, stop)
    units, of_row = np.nonzero(x[:, first:stop].T)
    assert found.rows.tolist() == of_row.tolist()
    assert found.values.tolist() == x[:, first:stop].T[units, of_row].tolist()
    assert found.pointers.tolist() == [0, *np.cumsum(np.bincount(units, minlength=stop - first)).tolist()]


@pytest.mark.parametrize(
    ("pointers", "units", "values", "expected"),
    [
        ([0, 2], [3, 1], [1, 1], "ascending numbers below 4"),
        ([0, 2], [1, 1], [1, 1], "ascending numbers below 4"),
        ([0, 1, 2], [0, 4], [1, 1], "ascending numbers below 4"),
        ([0, 3], [0, 1], [1, 1], "2 units and 2 values"),
        ([0, 2], [0, 1], [1], "2 units and 1 values"),
        ([0, 3, 2], [0, 1], [1, 1], "2 units and 2 values"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    pointers: list[int], units: list[int], values: list[float], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        RowMajor(np.array(pointers), np.array(units, np.uint16), np.array(values, np.float32), 4)


def test_ends_that_do_not_belong_together_are_refused() -> None:
    x = random_end(20, 6, np.random.default_rng(0)) + 1
    rows, longer = row_major(x), row_major(np.concatenate([x, x]))
    a, moments, rule = unit_major(rows, 0, 6), Moments.of(rows), Rule(0.3, 1, False)
    places = np.arange(6)
    refused: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("20 and 20 rows are not those of 40", (a, places, longer, moments, moments), {}),
        ("not below 20", (unit_major(longer, 0, 6), places, rows, moments, moments), {}),
        ("6 places do not ascend", (a, places[::-1], rows, moments, moments), {}),
        ("5 places", (a, places[:5], rows, moments, moments), {}),
        ("sums of 5 units", (a, places, rows, moments, Moments(20, *(np.ones(5, int),) * 3)), {}),  # type: ignore[arg-type]
        ("order of 19 rows", (a, places, rows, moments, moments), {"order": np.arange(19)}),
        ("order of 20 rows", (a, places, rows, moments, moments), {"order": np.arange(20) + 1}),
    ]
    for message, arguments, options in refused:
        with pytest.raises(ValueError, match=message):
            found_pairs(*arguments, rule, limit=10, **options)
    with pytest.raises(IndexError, match="not below 2"):
        Moments.empty(2).add(np.array([2], np.uint16), np.ones(1, np.float32), 1)
