"""Pruning against brute force on dense matrices, for splits in any order, and what earlier code did against a literal
simulation of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import build, sample_table, top_k, write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saestore._entries import AdaptivePruning, FixedPruning
from saestore.analysis.legacy import ITEMS_PER_SAMPLE, column_order, p99_place, span_figures, split_span
from saestore.analysis.pruning import Criteria, choose, prune, resolved
from saestore.analysis.unit_figures import UnitFigures, lifetime_sparseness
from saestore.codes import Codes
from saestore.errors import ConflictError, InputError, MissingError
from saestore.indexing.stats import write_stats
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from saestore.views import View

D_SAE = 40


def figures(dense: NDArray[np.float32], rows: NDArray[np.bool_]) -> dict[str, list[float]]:
    """Unit by unit, from the rows that count."""
    counted = dense[rows].astype(np.float64)
    n = len(counted)
    found: dict[str, list[float]] = {"count": [], "fraction": [], "p99": [], "selectivity": []}
    for values in counted.T:
        active = np.sort(values[values != 0])
        found["count"].append(len(active))
        found["fraction"].append(len(active) / n)
        # The smallest value that at least 99 of 100 do not exceed, in whole numbers.
        found["p99"].append(active[(99 * len(active) + 99) // 100 - 1] if len(active) else np.nan)
        squares = (values**2).mean()
        evenness = values.mean() ** 2 / squares if squares else np.nan
        found["selectivity"].append((1 - evenness) / (1 - 1 / n) if n > 1 else 0.0)
    return found


def pruned(
    dense: NDArray[np.float32], rows: NDArray[np.bool_], wanted: Mapping[str, float], start: Sequence[int] | None = None
) -> list[int]:
    """The units that are left, criterion by criterion."""
    of = figures(dense, rows)
    left = [unit for unit in (range(dense.shape[1]) if start is None else start) if of["count"][unit] > 0]
    left = [unit for unit in left if of["count"][unit] >= wanted.get("dead", 0)]
    left = [unit for unit in left if of["fraction"][unit] <= wanted.get("ubiquitous", 1)]
    if "strength_percentile" in wanted and left:
        ordered = sorted(of["p99"][unit] for unit in left)
        place = wanted["strength_percentile"] / 100 * (len(ordered) - 1)
        low, share = int(place), place - int(place)
        high = min(low + 1, len(ordered) - 1)
        least = np.percentile(ordered, wanted["strength_percentile"])
        assert np.isclose(least, ordered[low] * (1 - share) + ordered[high] * share)
        left = [unit for unit in left if of["p99"][unit] >= least]
    left = [unit for unit in left if of["selectivity"][unit] >= wanted.get("min_selectivity", 0) - 1e-12]
    if "target" in wanted:
        left = sorted(sorted(left, key=lambda unit: (-of["p99"][unit], unit))[: int(wanted["target"])])
    return left


class Drawn:
    """A lake of random codes whose splits are interleaved at random."""

    def __init__(self, folder: Path, *, seed: int = 0, n_samples: int = 60, pooled: bool = False, k: int = 16) -> None:
        rng = np.random.default_rng(seed)
        self.lake = Lake.create(str(folder))
        self.split = rng.choice(["train", "cal", "test", ""], n_samples)
        self.split[:3] = "cal"
        lengths = np.ones(n_samples, dtype=int) if pooled else rng.integers(0, 9, n_samples)
        lengths[0] = max(1, lengths[0])
        self.offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
        self.sample_of_row = np.repeat(np.arange(n_samples), lengths)
        n = int(self.offsets[-1])
        self.special = np.zeros(n, dtype=bool)
        self.labels = rng.integers(0, 2, (n_samples, 2)).astype(np.uint8)
        if not pooled:
            self.special[self.offsets[:-1][lengths > 1]] = True
        dense = rng.choice([0.25, 0.5, 1.5, 2.0, 3.75], size=(n, D_SAE)).astype(np.float32)
        dense[rng.random((n, D_SAE)) > np.geomspace(0.5, 0.01, D_SAE)] = 0
        self.known = top_k(dense, k)
        self.dense = self.known.dense
        self.key = CodesKey("d", "m", "layer_3", "s", "mean" if pooled else "token")
        table = sample_table(n_samples)
        table = SampleTable(
            ids=table.ids,
            kind="text",
            contents=table.contents,
            split=self.split.tolist(),
            concept_names=("red", "cube"),
            concepts=self.labels,
        )
        write_samples(self.lake.storage, "d", table)
        if not pooled:
            write_positions(
                self.lake.storage,
                ModelKey("d", "m"),
                offsets=self.offsets,
                arrays={"special": self.special, "token_id": np.zeros(n, np.uint32)},
                digest="0" * 64,
                attributes={},
            )
        self.codes = self.write(self.key)

    def write(self, key: CodesKey, changed: NDArray[np.float32] | None = None) -> Codes:
        known = self.known if changed is None else top_k(changed, self.known.indices.shape[1])
        write_codes(self.lake.storage, key, known)
        index(self.lake.storage, [key], quiet=True)
        return Codes.open(self.lake.storage, key)

    def rows(self, split: str | None, *, special: bool = False) -> NDArray[np.bool_]:
        inside = np.ones(len(self.split), dtype=bool) if split is None else self.split == split
        return inside[self.sample_of_row] & (special | ~self.special)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("pruning") / "lake")


WANTED: list[dict[str, float]] = [
    {},
    {"dead": 4},
    {"ubiquitous": 0.2},
    {"strength_percentile": 60},
    {"min_selectivity": 0.9},
    {"target": 5},
    {"dead": 3, "ubiquitous": 0.3, "strength_percentile": 30, "min_selectivity": 0.8, "target": 9},
]


@pytest.mark.parametrize("split", ["cal", "train", "all"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_kept_units_and_their_figures(drawn: Drawn, wanted: dict[str, Any], split: str, special: bool) -> None:
    rows = drawn.rows(None if split == "all" else split, special=special)
    name = "-".join([split, str(special), *(f"{key}={value}" for key, value in wanted.items())])
    view = prune(drawn.codes, name=name, criteria=Criteria(**wanted), split=split, special=special)
    expected = pruned(drawn.dense, rows, wanted)
    assert view.units.tolist() == expected
    assert 0 < len(expected) < D_SAE or not wanted
    for column, values in figures(drawn.dense, rows).items():
        np.testing.assert_allclose(view.figures[column], np.array(values)[expected], rtol=1e-6)
    assert view.report["rows"] == rows.sum()
    assert view.report["active"] == len(pruned(drawn.dense, rows, {}))
    assert view.report["active"] - sum(view.report["removed"].values()) == len(view) == view.report["kept"]
    stored = View.open(drawn.lake.storage, drawn.key, drawn.codes.run, name)
    assert stored.units.tolist() == expected
    assert stored.report == view.report
    assert drawn.codes.view(name).kept_units.tolist() == expected


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rows_outside_calibration_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Splits are interleaved at random; every value of every other row is drawn anew."""
    drawn = Drawn(tmp_path_factory.mktemp("leak") / "lake", seed=seed, n_samples=25)
    inside = drawn.split[drawn.sample_of_row] == "cal"
    changed = drawn.dense.copy()
    rng = np.random.default_rng(seed + 1)
    changed[~inside] = rng.choice([0.0, 0.5, 7.5], size=changed[~inside].shape)
    other = drawn.write(CodesKey("d", "m", "layer_3", "changed", "token"), changed)
    assert not np.array_equal(drawn.codes.dense(), other.dense()) or inside.all()
    criteria = Criteria(dead=1, ubiquitous=0.9, strength_percentile=40, min_selectivity=0.1, target=12)
    mine, theirs = (prune(codes, name="v", criteria=criteria) for codes in (drawn.codes, other))
    assert mine.units.tolist() == theirs.units.tolist()
    assert mine.report == theirs.report
    for column, values in mine.figures.items():
        np.testing.assert_array_equal(values, theirs.figures[column])


def test_pooled_codes_keep_all_that_is_active(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "lake", pooled=True)
    view = prune(drawn.codes, name="active")
    assert view.units.tolist() == np.flatnonzero(drawn.dense[drawn.rows("cal")].any(axis=0)).tolist()
    assert len(view) < D_SAE


def test_parts_of_a_dataset_are_one(tmp_path: Path) -> None:
    views = []
    for name, cuts in (("one", ()), ("three", (3, 4))):
        built = build(str(tmp_path / name), cuts=cuts)
        view = prune(built.codes(), name="v", criteria=Criteria(strength_percentile=50))
        views.append((view.units.tolist(), view.report))
        assert built.codes().view("v").kept_units.tolist() == view.units.tolist()
    assert views[0] == views[1]


@pytest.mark.parametrize("m", [1, 1999, 2000, 2001, 2500, 3002])
def test_the_99th_percentile(tmp_path: Path, m: int) -> None:
    distinct = (np.arange(m) + 0x3C00).astype(np.uint16).view(np.float16)
    values = np.random.default_rng(m).permutation(distinct).astype(np.float32)[:, None]
    codes = column_of(tmp_path, values)
    ordered = np.sort(values[:, 0])
    assert prune(codes, name="v").figures["p99"][0] == ordered[-(-99 * m // 100) - 1]
    legacy = prune(codes, name="w", legacy=True).figures["p99"][0]
    assert legacy == streamed_p99(values[:, 0].tolist())
    assert (legacy == ordered[-(-99 * m // 100) - 1]) == (m <= 2000)


def column_of(folder: Path, dense: NDArray[np.float32]) -> Codes:
    """Pooled codes of samples that are all for calibration."""
    lake, key = Lake.create(str(folder / "lake")), CodesKey("d", "m", "layer_3", "s", "mean")
    write_samples(lake.storage, "d", sample_table(len(dense), splits=("cal",)))
    write_codes(lake.storage, key, top_k(dense, dense.shape[1]), shard_rows=1024, chunk_rows=256)
    index(lake.storage, [key], quiet=True)
    return Codes.open(lake.storage, key)


def streamed_p99(values: list[float]) -> float:
    """As earlier code went about it, value by value."""
    held: list[float] = []
    for value in values:
        held.append(value)
        if len(held) > 2000:
            held = sorted(held, reverse=True)[:1000]
    held.sort(reverse=True)
    return held[min(int(len(held) * 0.01), len(held) - 1)]


@pytest.mark.parametrize(("m", "place"), [(1, 0), (99, 0), (100, 1), (1500, 15), (2001, 10), (2500, 14), (3002, 10)])
def test_places_of_the_legacy_percentile(m: int, place: int) -> None:
    assert p99_place(m) == place


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 6500), seed=st.integers(0, 99))
def test_the_closed_form_is_the_streamed_list(m: int, seed: int) -> None:
    values = [random.Random(seed).random() for _ in range(m)]
    assert sorted(values, reverse=True)[p99_place(m)] == streamed_p99(values)


# ------------------------------------------------------------------ criteria


def test_ties_of_strength_are_broken_by_unit() -> None:
    of = UnitFigures(
        9, np.arange(5), np.ones(5, int), np.ones(5) / 9, np.array([2, 3, 2, 3, 2], np.float32), np.ones(5)
    )
    assert np.flatnonzero(choose(of, Criteria(target=3)).kept).tolist() == [0, 1, 3]


def test_activity_is_judged_on_all_active_units() -> None:
    of = UnitFigures(
        10, np.arange(4), np.array([1, 9, 5, 2]), np.array([0.1, 0.9, 0.5, 0.2]), np.ones(4, np.float32), np.ones(4)
    )
    choice = choose(of, Criteria(dead=2, ubiquitous=0.5))
    assert choice.kept.tolist() == [False, False, True, True]  # at the bounds a unit is kept
    assert choice.removed == {"dead": 1, "ubiquitous": 1}


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 1, 1], 0), ([0, 0, 0, 5], 1), ([1, 1, 0, 0], 2 / 3)])
def test_lifetime_sparseness(values: list[float], expected: float) -> None:
    x = np.array(values, dtype=np.float64)
    found = lifetime_sparseness(np.array([x.sum()]), np.array([(x**2).sum()]), len(x))
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_lifetime_sparseness_of_one_row() -> None:
    assert lifetime_sparseness(np.array([2.0]), np.array([4.0]), 1).tolist() == [0]


STEPS = ((1, 50), (9, 60), (29, 70), (None, 80))
ADAPTIVE = AdaptivePruning(
    rule="adaptive", dead_fraction=0.75, dead_floor=2, ubiquitous_factor=1.25, strength_steps=STEPS
)


@pytest.mark.parametrize(("n", "percentile"), [(1, 50), (2, 60), (9, 60), (10, 70), (29, 70), (30, 80), (83, 80)])
def test_an_adaptive_rule_in_numbers(n: int, percentile: float) -> None:
    positives = {f"c{number}": 7 + number for number in range(n)}
    found = resolved(ADAPTIVE, Criteria(), positives=positives, rows=1000)
    assert found == Criteria(int(0.75 * 7), 1.25 * (7 + n - 1) / 1000, percentile)
    assert resolved(ADAPTIVE, Criteria(dead=9, target=4), positives=positives, rows=1000) == Criteria(
        9, found.ubiquitous, percentile, None, 4
    )
    assert resolved(ADAPTIVE, Criteria(), positives={"c": 1}, rows=10).dead == 2  # the floor


def test_a_fixed_rule_in_numbers() -> None:
    rule = FixedPruning(rule="fixed", dead_threshold=200, ubiquitous_threshold=0.02, strength_percentile=75)
    assert resolved(rule, Criteria(), positives=None, rows=5) == Criteria(200, 0.02, 75)
    assert resolved(rule, Criteria(strength_percentile=10), positives=None, rows=5) == Criteria(200, 0.02, 10)


def test_concepts_without_positives_are_refused_and_in_legacy_passed_over() -> None:
    with pytest.raises(InputError, match=r"concept 'b' and 1 more has no positive row .* --concepts"):
        resolved(ADAPTIVE, Criteria(), positives={"a": 3, "b": 0, "c": 0}, rows=9)
    assert resolved(ADAPTIVE, Criteria(), positives={"a": 4, "b": 0}, rows=9, legacy=True).dead == 3
    assert resolved(ADAPTIVE, Criteria(), positives={"a": 9}, rows=9).ubiquitous == 1
    for positives in (None, {}):
        with pytest.raises(InputError, match="there are none; give the dataset labels"):
            resolved(ADAPTIVE, Criteria(), positives=positives, rows=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dead": -1},
        {"ubiquitous": -0.1},
        {"ubiquitous": 5},
        {"strength_percentile": 101},
        {"min_selectivity": 1.1},
        {"target": 0},
        {"ubiquitous": float("nan")},
    ],
    ids=str,
)
def test_criteria_that_nothing_can_meet(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .* cannot be met"):
        Criteria(**wrong)


# --------------------------------------------------------------- composition


def test_a_view_of_a_view(drawn: Drawn) -> None:
    rows = drawn.rows("cal")
    first = prune(drawn.codes, name="first", criteria=Criteria(dead=3))
    second = prune(drawn.codes.view("first"), name="second", criteria=Criteria(strength_percentile=50))
    third = prune(drawn.codes.view("second"), name="third", criteria=Criteria(target=2))
    assert second.units.tolist() == pruned(drawn.dense, rows, {"strength_percentile": 50}, first.units.tolist())
    assert third.units.tolist() == pruned(drawn.dense, rows, {"target": 2}, second.units.tolist())
    assert (second.parent, third.parent, third.lineage) == ("first", "second", ("first", "second"))
    assert set(third.units) < set(second.units) < set(first.units)
    both = drawn.codes.view("first").view("third")
    assert prune(both, name="fourth").lineage == ("first", "second", "third")
    prune(drawn.codes, name="low", units=[0, 1, int(first.units[0])])
    prune(drawn.codes, name="high", units=[int(first.units[0]), 30, 31])
    with pytest.raises(InputError, match="several views; prune one of them"):
        prune(drawn.codes.view("low").view("high"), name="fifth")


def test_chosen_units_alone(drawn: Drawn) -> None:
    chosen = [2, 11, 5]
    view = prune(drawn.codes, name="chosen", units=chosen, criteria=Criteria(strength_percentile=50))
    assert view.units.tolist() == pruned(drawn.dense, drawn.rows("cal"), {"strength_percentile": 50}, sorted(chosen))
    with pytest.raises(MissingError, match="unit 40 does not exist"):
        prune(drawn.codes, name="outside", units=[40])


def test_the_same_again_is_nothing_and_other_criteria_are_refused(drawn: Drawn) -> None:
    for _ in range(2):
        prune(drawn.codes, name="once", criteria=Criteria(dead=2))
    with pytest.raises(ConflictError, match=r"view 'once' already, .* give the new one another name"):
        prune(drawn.codes, name="once", criteria=Criteria(dead=3))


# ------------------------------------------------------------------- refusals


def test_what_leaves_no_unit_is_told_by_criterion(drawn: Drawn) -> None:
    for criteria, last in (
        (Criteria(dead=100_000, ubiquitous=0.5), r"dead \(100000\) removed the last; removed: dead [0-9]+; .*--dead"),
        (Criteria(dead=4, ubiquitous=0), r"ubiquitous \(0\) removed the last; removed: dead [0-9]+, ubiquitous"),
        (Criteria(dead=4, min_selectivity=1), r"selectivity \(1\) removed the last; .*--min-selectivity"),
    ):
        with pytest.raises(InputError, match=f"no unit of [0-9]+ that are active in split 'cal' .*{last}"):
            prune(drawn.codes, name="nothing", criteria=criteria)
    assert "nothing" not in {row.note for row in drawn.lake.status()}


def test_splits_without_samples_and_selections_are_refused(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split 'validation' is unknown"):
        prune(drawn.codes, name="v", split="validation")
    with pytest.raises(InputError, match="selection of rows"):
        prune(drawn.codes.where(split="train"), name="v")
    codes = column_of(tmp_path, np.ones((3, 2), np.float32))
    for legacy in (False, True):
        with pytest.raises(InputError, match="no sample in split 'test'"):
            prune(codes, name="v", split="test", legacy=legacy)


def test_a_split_without_rows_or_activity_is_refused(tmp_path: Path) -> None:
    codes = column_of(tmp_path, np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match=r"no unit is active in split 'cal' of .*; choose another split"):
        prune(codes, name="v")


def test_statistics_are_computed_where_they_are_not_stored(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "lake")
    with pytest.raises(MissingError):
        drawn.codes.stats(split="cal")
    first = prune(drawn.codes, name="v", criteria=Criteria(dead=2))
    assert drawn.codes.stats(split="cal").n_rows == first.report["rows"]
    path = tmp_path / "lake" / drawn.key.stats_path(drawn.codes.run, "cal") / "ledger/c.0.0.0"
    path.unlink()  # as a killed run leaves them
    again = prune(Codes.open(drawn.lake.storage, drawn.key), name="v", criteria=Criteria(dead=2))
    assert again.units.tolist() == first.units.tolist()


# --------------------------------------------------------------------- legacy


def legacy_oracle(
    dense: NDArray[np.float32], cal: Sequence[int], sample_type: str
) -> tuple[dict[int, dict[str, float]], int]:
    """Statistics as earlier code made them: row by row over a span of row numbers."""
    size = 256 if sample_type in ("token", "patch") else 1
    start, stop = min(cal) * size, (max(cal) + 1) * size
    values: dict[int, list[float]] = {}
    for row in dense[start:stop]:
        for unit in np.flatnonzero(row > 0):
            values.setdefault(int(unit), []).append(float(row[unit]))
    return {
        unit: {"count": len(held), "fraction": len(held) / (stop - start), "p99": streamed_p99(held)}
        for unit, held in values.items()
    }, stop - start


@pytest.mark.parametrize(
    ("cal", "per_sample"),
    [([4, 5], 256), ([1, 4], 256), ([1, 3], 100)],
    ids=["contiguous", "interleaved", "text"],
)
def test_legacy_statistics_of_each_layout(tmp_path: Path, cal: list[int], per_sample: int) -> None:
    rng = np.random.default_rng(0)
    n = 6 * per_sample
    dense = rng.choice([0.25, 0.5, 1.5, 2.0], size=(n, 12)).astype(np.float32)
    dense[rng.random(dense.shape) > np.geomspace(0.9, 0.002, 12)] = 0
    lake, key = Lake.create(str(tmp_path / "lake")), CodesKey("d", "m", "layer_3", "s", "patch")
    table = sample_table(6, splits=["cal" if place in cal else "train" for place in range(6)])
    write_samples(lake.storage, "d", table)
    write_positions(
        lake.storage,
        ModelKey("d", "m"),
        offsets=np.arange(7) * per_sample,
        arrays={"special": np.zeros(n, bool)},
        digest="0" * 64,
        attributes={},
    )
    write_codes(lake.storage, key, top_k(dense, 12), shard_rows=512, chunk_rows=128)
    index(lake.storage, [key], quiet=True)
    codes = Codes.open(lake.storage, key)
    expected, counted = legacy_oracle(dense, cal, "patch")
    view = prune(codes, name="v", legacy=True)
    assert view.units.tolist() == sorted(expected)
    for column in ("count", "fraction", "p99"):
        np.testing.assert_array_equal(view.figures[column], [expected[unit][column] for unit in sorted(expected)])
    assert (view.report["rows"], view.parameters["legacy"]) == (counted, True)

    positives = {"a": 9, "b": 40, "none": 0}
    rule = AdaptivePruning(
        rule="adaptive", dead_fraction=0.75, dead_floor=0, ubiquitous_factor=1.25, strength_steps=STEPS
    )
    adaptive = prune(codes, name="w", rule=rule, positives=positives, legacy=True)
    start = {unit for unit in expected if expected[unit]["count"] >= int(0.75 * 9)}
    start &= {unit for unit in expected if expected[unit]["fraction"] <= 1.25 * 40 / counted}
    least = np.percentile([expected[unit]["p99"] for unit in start], 60)
    assert adaptive.units.tolist() == sorted(unit for unit in start if expected[unit]["p99"] >= least)


def test_legacy_span_and_special_tokens(drawn: Drawn) -> None:
    assert split_span(np.array([3, 1]), "mean", 100).counted == 3
    span = split_span(np.array([1, 4]), "token", 700)
    assert (span.start, span.stop, span.counted) == (256, 700, 4 * ITEMS_PER_SAMPLE)
    whole = split_span(np.array([0, 59]), "token", len(drawn.dense))
    for special in (False, True):
        found = span_figures(drawn.codes, whole, special=special)
        rows = drawn.rows(None, special=special)
        assert found.count.tolist() == np.count_nonzero(drawn.dense[rows], axis=0).tolist()
        sums = drawn.dense[rows].astype(np.float64)
        np.testing.assert_allclose(
            found.selectivity, lifetime_sparseness(sums.sum(axis=0), (sums**2).sum(axis=0), whole.counted), rtol=1e-12
        )


def test_legacy_through_a_view_and_in_small_reads(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    prune(drawn.codes, name="even", units=list(range(0, D_SAE, 2)))
    whole = split_span(np.array([0, 59]), "token", len(drawn.dense))
    at_once = span_figures(drawn.codes, whole, special=False)
    monkeypatch.setattr("saestore.analysis.legacy._READ_ENTRIES", 7)
    found = span_figures(drawn.codes.view("even"), whole, special=False)
    for name in ("count", "p99", "fraction"):
        np.testing.assert_array_equal(getattr(found, name), getattr(at_once, name)[found.units])
    np.testing.assert_allclose(found.selectivity, at_once.selectivity[found.units])


@pytest.mark.parametrize(
    ("active", "kept", "d_sae", "in_order"),
    [
        (8_000, 600, 65_536, False),
        (3_000, 1_000, 65_536, False),
        (50_000, 800, 65_536, False),
        (10_000, 1_200, 16_384, False),
        (19_600, 1_000, 65_536, False),
        (19_700, 1_000, 65_536, True),
        (30_000, 1_000, 65_536, True),
    ],
)
def test_legacy_columns_follow_a_set(active: int, kept: int, d_sae: int, in_order: bool) -> None:
    """What is known of earlier code (concepts.md, section 4.5): when its columns were in order, and when not."""
    rng = np.random.default_rng(0)
    units = np.sort(rng.choice(d_sae, active, replace=False)).tolist()
    left = set(rng.choice(units, kept, replace=False).tolist())
    found = column_order(units, [unit for unit in units if unit not in left])
    assert sorted(found) == sorted(left)
    assert (found == sorted(found)) == in_order


def test_write_stats_is_asked_once(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stats(drawn.lake.storage, [drawn.key], quiet=True)

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("statistics that are stored were computed again")

    monkeypatch.setattr("saestore.indexing.stats.write_stats", refuse)
    assert len(prune(drawn.codes, name="quick", criteria=Criteria(dead=1)))
