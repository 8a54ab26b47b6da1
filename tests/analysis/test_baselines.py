"""Baselines against scikit-learn and loops over dense arrays; what is chosen never depends on the test split."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from saestore.activations import Activations
from saestore.analysis import directions as directions_module
from saestore.analysis import single_units
from saestore.analysis.baselines import RIDGES, Baseline, Baselines, baselines
from saestore.analysis.counted_rows import CountedRows
from saestore.analysis.detection import same_truth, write_detection
from saestore.analysis.thresholds import Thresholds, write_thresholds
from saestore.codes import Codes
from saestore.errors import BudgetError, ConflictError, HoleError, InputError, MissingError
from saestore.indexing.writer import index
from saestore.kernels.baselines import COUNTED, LAST, RANDOM, REDUCTIONS
from saestore.kernels.linear_direction import directions
from saestore.labels import write_labels
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from saestore.views import View, write_view
from tests.analysis.concept_lake import build
from tests.built_lake import top_k, write_activations, write_codes

CONCEPTS = ("cube", "red", "half", "rare")
D_SAE = 20
D_IN = 40
LEVELS = (0.05, 0.2, 0.5, 0.8, 0.95)


@dataclass(frozen=True, repr=False)
class Content:
    """What is written. `half` is labelled in some rows only, and no row of split `train` has `rare`."""

    split: NDArray[np.str_]
    offsets: NDArray[np.int64]
    special: NDArray[np.bool_]
    samples: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    dense: NDArray[np.float32]
    activations: NDArray[np.float32]

    @property
    def sample_of(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.split)), np.diff(self.offsets))

    def counted(self, split: str, special: bool = False) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self.split[self.sample_of] == split) & (special | ~self.special)
        return found

    def row_labels(self, by: str) -> NDArray[np.uint8]:
        return self.labels if by == "position" else self.samples[self.sample_of]


def content(n: int = 60, seed: int = 0) -> Content:
    rng = np.random.default_rng(seed)
    split = np.array([("train", "train", "cal", "test", "")[place % 5] for place in range(n)])
    rng.shuffle(split)
    lengths = rng.integers(0, 9, n)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    rows, sample_of = int(offsets[-1]), np.repeat(np.arange(n), lengths)
    special = np.zeros(rows, bool)
    special[offsets[:-1][lengths > 0]] = True
    labels = (rng.random((rows, 4)) < (0.15, 0.2, 0.3, 0.1)).astype(np.uint8)
    labels[split[sample_of] == "train", 3] = 0
    labels[rng.random(rows) < 0.4, 2] = 255
    samples = np.zeros((n, 4), np.uint8)
    np.maximum.at(samples, sample_of, labels == 1)
    samples[rng.random((n, 4)) < 0.08] = 255
    samples[split == "train", 3] = 0
    dense = rng.choice([0, 0, 0, 0.5, 1.25, 2, -1], (rows, D_SAE)).astype(np.float32)
    for concept in range(3):
        dense[labels[:, concept] == 1, concept] += rng.choice([1.0, 2.0, 3.0])
    dense[:, 5] = 0
    activations = rng.integers(-32, 33, (rows, D_IN)).astype(np.float32) / 8 + 30
    for concept in range(3):
        activations[labels[:, concept] == 1, concept] += 3
    return Content(split, offsets, special, samples, labels, top_k(dense, 8).dense, activations)


def store(
    folder: Path,
    made: Content,
    *,
    cuts: tuple[int, ...] = (),
    labelled: bool = True,
    activations: bool = True,
    pooled: bool = False,
) -> Codes:
    """Write it; `pooled`: the first rows as codes and activations of samples."""
    lake, n = Lake.create(str(folder)), len(made.split)
    key = CodesKey("d", "m", "layer_3", "s", "mean" if pooled else "token")
    for part, (first, last) in enumerate(itertools.pairwise([0, *cuts, n])):
        mine = slice(first, last)
        own = mine if pooled else slice(int(made.offsets[first]), int(made.offsets[last]))
        table = SampleTable(
            ids=[f"s{place}" for place in range(first, last)],
            kind="text",
            contents=[f"Text {place}" for place in range(first, last)],
            split=made.split[mine].tolist(),
            concept_names=CONCEPTS,
            concepts=made.samples[mine],
        )
        write_samples(lake.storage, "d", table, part)
        model = ModelKey("d", "m", part)
        if not pooled:
            offsets = made.offsets[first : last + 1] - made.offsets[first]
            write_positions(
                lake.storage, model, offsets=offsets, arrays={"special": made.special[own]}, digest="0", attributes={}
            )
        write_codes(lake.storage, key.at(part), top_k(made.dense, 8)[own], shard_rows=64, chunk_rows=16)
        if activations:
            layer = ActivationsKey("d", "m", "layer_3", key.sample_type, part)
            write_activations(lake.storage, layer, made.activations[own], "float32")
        if labelled and not pooled:
            write_labels(lake.storage, model, "concepts", made.labels[own], CONCEPTS, {})
    index(lake.storage, [key], quiet=True)
    return Codes.open(lake.storage, key)


def learned(codes: Codes, **options: object) -> Thresholds:
    return write_thresholds(codes, percentiles=LEVELS, quiet=True, **options)  # type: ignore[arg-type]


def run(codes: Codes, thresholds: Thresholds, **options: object) -> Baselines:
    return baselines(codes, thresholds=thresholds, quiet=True, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> Content:
    return content()


@pytest.fixture(scope="module", params=[(), (17, 40)], ids=["one part", "three parts"])
def codes(made: Content, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Codes:
    return store(tmp_path_factory.mktemp("baselines") / "lake", made, cuts=request.param)


@pytest.fixture(scope="module")
def thresholds(codes: Codes) -> Thresholds:
    return learned(codes)


# --------------------------------------------------------------------------------------------------------- oracles


def drawn(made: Content, split: str, seed: int, special: bool) -> dict[int, NDArray[np.int64]]:
    """The counted rows of each sample of a split that has some, and at its end the row that was drawn."""
    draws = np.random.default_rng(seed).random(len(made.split))
    found = {}
    for sample in np.flatnonzero(made.split == split):
        rows = np.flatnonzero(made.counted(split, special) & (made.sample_of == sample))
        if len(rows):
            found[int(sample)] = np.append(rows, rows[int(draws[sample] * len(rows))])
    return found


def reduced(values: NDArray[np.float64], how: str) -> float:
    """One number of the values of rows and, at the end, of the one that was drawn."""
    rows, one = values[:-1], values[-1]
    return float({"max": rows.max(), "mean": rows.mean(), "last": rows[-1], "random": one}[how])


def counts_of(scores: dict[int, float], labels: NDArray[np.uint8], samples: NDArray[np.int64], cut: float) -> list[int]:
    out = [0, 0, 0, 0]
    for sample in samples.tolist():
        if labels[sample] != 255:
            fires = sample in scores and scores[sample] >= cut
            out[(0 if labels[sample] else 1) if fires else (2 if labels[sample] else 3)] += 1
    return out


def f1(counts: list[int]) -> float:
    return 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]) if counts[0] else 0.0


def expected_direction(
    made: Content, concept: int, how: str, by: str, special: bool
) -> tuple[float, float, float, int, list[int], list[int]] | None:
    """Ridge, percentile, threshold, samples it rests on, and counts on both splits."""
    labels = made.row_labels(by)[:, concept]
    train = made.counted("train", special) & (labels != 255)
    if len(set(labels[train])) < 2:
        return None
    x, candidates = made.activations.astype(np.float64), []
    for ridge in RIDGES:
        spread = float(((x[train] - x[train].mean(axis=0)) ** 2).sum()) / x.shape[1]
        model = Ridge(alpha=ridge * spread, solver="svd").fit(x[train], labels[train])
        of_row = model.predict(x)
        scores = {
            split: {sample: reduced(of_row[rows], how) for sample, rows in drawn(made, split, 42, special).items()}
            for split in ("cal", "test")
        }
        known = [score for sample, score in scores["cal"].items() if made.samples[sample, concept] == 1]
        for level in LEVELS:
            # Half of the gaps between scores: room for rounding, which none of these scores is as near as.
            cut = float(np.quantile(known, 1 - level)) - 1e-7
            counts = [
                counts_of(scores[split], made.samples[:, concept], np.flatnonzero(made.split == split), cut)
                for split in ("cal", "test")
            ]
            candidates.append((-f1(counts[0]), level, ridge, cut, len(known), *counts))
    _, level, ridge, cut, n_pos, cal, test = min(candidates, key=lambda one: one[:3])
    return ridge, level, cut, n_pos, cal, test


def expected_unit(
    made: Content, concept: int, how: str, special: bool, units: list[int]
) -> tuple[int, float, float, int, list[int], list[int]] | None:
    """Unit, percentile, threshold, samples it rests on, and counts on both splits."""
    candidates = []
    for unit in units:
        of_row = np.maximum(made.dense[:, unit], 0).astype(np.float64)
        scores: dict[str, dict[int, float]] = {}
        for split in ("cal", "test"):
            every = {s: float(np.float32(reduced(of_row[r], how))) for s, r in drawn(made, split, 42, special).items()}
            scores[split] = {sample: score for sample, score in every.items() if score > 0}
        known = [score for sample, score in scores["cal"].items() if made.samples[sample, concept] == 1]
        for level in LEVELS if known else ():
            cut = float(np.float32(np.quantile(known, 1 - level)))
            counts = [
                counts_of(scores[split], made.samples[:, concept], np.flatnonzero(made.split == split), cut)
                for split in ("cal", "test")
            ]
            candidates.append((-f1(counts[0]), level, unit, cut, len(known), *counts))
    if not candidates:
        return None
    _, level, unit, cut, n_pos, cal, test = min(candidates, key=lambda one: one[:3])
    return unit, level, cut, n_pos, cal, test


def check(one: Baseline, expected: tuple | None, tolerance: float) -> None:
    if expected is None:
        assert (one.unit, one.ridge, one.percentile, one.threshold, one.counts, one.n_pos) == (None,) * 5 + (0,)
        assert np.isnan([one.test.f1, one.test.precision, one.calibration.f1, one.f1_low, one.f1_high]).all()
        return
    choice, level, cut, n_pos, cal, test = expected
    assert (one.ridge if one.kind == "direction" else one.unit) == choice
    assert (one.unit if one.kind == "direction" else one.ridge) is None
    assert (one.percentile, one.n_pos, one.counts) == (level, n_pos, tuple(test))
    assert one.threshold == pytest.approx(cut, abs=tolerance)
    assert one.calibration.f1 == pytest.approx(f1(cal))
    tp, fp, fn, tn = test
    assert one.test.f1 == pytest.approx(f1(test))
    assert one.test.accuracy == pytest.approx((tp + tn) / sum(test))
    assert one.test.precision == pytest.approx(tp / max(1, tp + fp))
    assert one.test.recall == pytest.approx(tp / max(1, tp + fn))
    assert one.f1_low <= one.test.f1 <= one.f1_high
    assert one.always_yes_f1 == pytest.approx(2 * (tp + fn) / (2 * (tp + fn) + fp + tn))


@pytest.mark.parametrize(("by", "special"), [("position", False), ("sample", True)])
def test_directions_are_those_of_scikit_learn(made: Content, codes: Codes, by: str, special: bool) -> None:
    known = learned(codes, by=by, special=special, name=f"{by}-direction")
    found = run(codes, known, which=["direction"]).results
    assert [(one.concept, one.reduction) for one in found] == list(itertools.product(CONCEPTS, REDUCTIONS))
    assert {one.kind for one in found} == {"direction"}
    for one in found:
        check(one, expected_direction(made, CONCEPTS.index(one.concept), one.reduction, by, special), 1e-5)
    assert found[-1].percentile is None, "no row of split train has the last concept"
    assert len({one.ridge for one in found}) > 2, "the ridge is chosen"


@pytest.mark.parametrize(("by", "special"), [("position", False), ("sample", True)])
def test_units_are_those_of_loops(made: Content, codes: Codes, by: str, special: bool) -> None:
    known = learned(codes, by=by, special=special, name=f"{by}-unit")
    found = run(codes, known, which=["unit"]).results
    assert [(one.concept, one.reduction) for one in found] == list(itertools.product(CONCEPTS, REDUCTIONS))
    for one in found:
        expected = expected_unit(made, CONCEPTS.index(one.concept), one.reduction, special, list(range(D_SAE)))
        check(one, expected, 0)
        assert one.threshold is not None
        assert one.threshold > 0
        assert one.unit != 5


def test_a_view_chooses_among_its_units(made: Content, tmp_path: Path) -> None:
    codes = store(tmp_path / "lake", made)
    units = [2, 5, 9, 13]
    write_view(codes.group.storage, codes.key, codes.run, View("few", np.array(units), {}, {}))
    view = codes.view("few")
    for one in run(view, learned(view), which=["unit"]).results:
        check(one, expected_unit(made, CONCEPTS.index(one.concept), one.reduction, False, units), 0)


def test_of_pooled_rows_the_largest_value_is_the_detection(made: Content, tmp_path: Path) -> None:
    codes = store(tmp_path / "lake", made, pooled=True)
    known = learned(codes)
    found = run(codes, known).results
    assert [(one.concept, one.kind, one.reduction) for one in found] == [
        (concept, kind, "max") for concept in CONCEPTS for kind in ("direction", "unit")
    ]
    best = write_detection(codes, quiet=True).best()
    for one, detected in zip(found[1::2], best, strict=True):
        assert (one.unit, one.percentile, one.threshold) == (detected.unit, detected.percentile, detected.threshold)
        assert (one.n_pos, one.calibration, one.test) == (detected.n_pos, detected.calibration, detected.test)
        assert one.always_yes_f1 == detected.always_yes_f1


# ------------------------------------------------------------------------------------------------------ invariants


def choices(found: Baselines) -> list[tuple]:
    names = "concept", "kind", "reduction", "unit", "ridge", "percentile", "threshold", "n_pos", "calibration"
    return [tuple(getattr(one, name) for name in names) for one in found.results]


def test_the_test_split_decides_nothing(made: Content, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows, samples = made.split[made.sample_of] == "test", made.split == "test"
    changed = [np.array(each) for each in (made.samples, made.labels, made.dense, made.activations)]
    changed[0][samples] = rng.integers(0, 2, changed[0][samples].shape)
    changed[1][rows] = rng.integers(0, 2, changed[1][rows].shape)
    changed[2][rows] = rng.choice([0, 0, 0, 7, 9], changed[2][rows].shape)
    changed[3][rows] = rng.normal(0, 100, changed[3][rows].shape)
    names = "samples", "labels", "dense", "activations"
    other = replace(made, **dict(zip(names, changed, strict=True)))
    found = []
    for number, one in enumerate((made, other)):
        codes = store(tmp_path / f"{number}", one)
        found.append(run(codes, learned(codes)))
    undefined = [one.percentile is None for one in found[0].results]
    assert undefined.count(True) == 4
    for before, after, nothing in zip(*map(choices, found), undefined, strict=True):
        assert nothing or before == after
    assert [one.counts for one in found[0].results] != [one.counts for one in found[1].results]


def test_any_block_gives_the_same(codes: Codes, thresholds: Thresholds, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(codes, thresholds).table()
    for row_bytes, entries in ((1, 1), (4 * D_IN * 5, 40)):
        monkeypatch.setattr(directions_module, "_BLOCK_BYTES", row_bytes)
        monkeypatch.setattr(single_units, "BLOCK_ENTRIES", entries)
        pd.testing.assert_frame_equal(run(codes, thresholds).table(), whole, check_exact=False, rtol=1e-5)


def test_memory_for_one_set_of_sums_and_one_concept_gives_the_same(
    codes: Codes, thresholds: Thresholds, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(codes, thresholds, which=["direction"])
    passes: list[str] = []
    original = directions_module.LabelledRows._blocks

    def counting(self: directions_module.LabelledRows, counted: CountedRows) -> object:
        passes.append(counted.split)
        return original(self, counted)

    monkeypatch.setattr(directions_module.LabelledRows, "_blocks", counting)
    run(codes, thresholds, which=["direction"])
    assert passes == ["train", "cal", "test"], "each split is read once"
    passes.clear()
    # Blocks of so many rows that the sums of one set and the scores of one concept need about as much.
    blocks = 4 * D_IN * 480
    monkeypatch.setattr(directions_module, "_BLOCK_BYTES", blocks)
    monkeypatch.setattr(directions_module, "parse_memory", lambda _: 45_000 + directions_module._BLOCK_COPIES * blocks)
    few = run(codes, thresholds, which=["direction"])
    assert len(passes) == 2 + 2 * 3, "two sets of rows that are labelled alike, three concepts with a direction"
    for before, after in zip(choices(whole), choices(few), strict=True):
        assert before[:6] == after[:6]
    assert [one.counts for one in whole.results] == [one.counts for one in few.results]


def test_the_seed_chooses_the_random_rows_alone(codes: Codes, thresholds: Thresholds) -> None:
    found = [choices(run(codes, thresholds, seed=seed)) for seed in (42, 42, 1)]
    assert repr(found[0]) == repr(found[1])
    for first, other in zip(found[0], found[2], strict=True):
        if first[2] != "random":
            assert repr(first) == repr(other)
    assert repr(found[0]) != repr(found[2])


@pytest.mark.parametrize("special", [False, True])
def test_rows_that_speak_for_their_sample(made: Content, codes: Codes, special: bool) -> None:
    known = learned(codes, special=special, name=f"rows-{special}")
    found = CountedRows.of(same_truth(codes, known), "cal", 3)
    counted = made.counted("cal", special)
    np.testing.assert_array_equal(found.marks & COUNTED != 0, counted)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(counted))
    np.testing.assert_array_equal(found.samples, np.flatnonzero(made.split == "cal"))
    assert found.rows_of_sample.tolist() == [(counted & (made.sample_of == s)).sum() for s in range(len(made.split))]
    for sample in range(len(made.split)):
        mine = np.flatnonzero(counted & (made.sample_of == sample))
        marks = found.marks[mine]
        assert (marks & RANDOM != 0).sum() == min(1, len(mine))
        assert (marks & LAST != 0).tolist() == [False] * (len(mine) - 1) + [True] * min(1, len(mine))


def test_the_table_has_a_line_for_each_result(codes: Codes, thresholds: Thresholds) -> None:
    found = run(codes, thresholds, reductions=["mean", "max"])
    assert found.splits == ("cal", "test")
    table = found.table()
    assert table["reduction"].tolist() == ["max", "mean"] * 2 * len(CONCEPTS)
    assert table["baseline"].tolist() == ["direction", "direction", "unit", "unit"] * len(CONCEPTS)
    for (_, line), one in zip(table.iterrows(), found.results, strict=True):
        assert line["concept"] == one.concept
        assert pd.isna(line["f1"]) if one.percentile is None else line["f1"] == one.test.f1
        assert pd.isna(line["tp"]) if one.counts is None else tuple(line[["tp", "fp", "fn", "tn"]]) == one.counts
        assert line["always_yes_f1"] == one.always_yes_f1
    assert table["unit"].isna().tolist() == [True, True, False, False] * len(CONCEPTS)


# --------------------------------------------------------------------------------------------------- what is refused


def test_without_activations_directions_are_left_out(made: Content, tmp_path: Path) -> None:
    codes = store(tmp_path / "lake", made, activations=False)
    known, said = learned(codes), []
    assert {one.kind for one in run(codes, known, say=said.append).results} == {"unit"}
    assert [line for line in said if "the activations are not in the lake" in line and "left out" in line]
    with pytest.raises(MissingError, match="activations are not in the lake; extract or import them"):
        run(codes, known, which=["direction", "unit"])


def test_without_train_samples_directions_are_left_out(made: Content, tmp_path: Path) -> None:
    split = np.where(made.split == "train", "", made.split)
    codes = store(tmp_path / "lake", replace(made, split=split))
    known, said = learned(codes), []
    assert {one.kind for one in run(codes, known, say=said.append).results} == {"unit"}
    assert [line for line in said if "no sample in split 'train'" in line]
    with pytest.raises(InputError, match="no sample in split 'train'"):
        run(codes, known, which=["direction"])


@pytest.mark.parametrize(("decide", "test"), [("train", "test"), ("cal", "train")])
def test_the_split_of_the_fit_neither_decides_nor_tests(codes: Codes, decide: str, test: str) -> None:
    known = learned(codes, split=decide, name=f"by-{decide}-{test}")
    assert {one.kind for one in run(codes, known, test=test).results} == {"unit"}
    with pytest.raises(InputError, match="fitted on split 'train', which the thresholds or the test use"):
        run(codes, known, which=["direction"], test=test)


def test_what_cannot_be_learned_is_said(made: Content, tmp_path: Path) -> None:
    samples = made.samples.copy()
    samples[(made.split == "cal") & (samples[:, 1] == 1), 1] = 0
    codes = store(tmp_path / "lake", replace(made, samples=samples))
    said: list[str] = []
    found = {(one.concept, one.kind, one.reduction): one for one in run(codes, learned(codes), say=said.append).results}
    for concept, kind, undefined in (
        ("red", "unit", True),
        ("red", "direction", True),
        ("rare", "direction", True),
        ("rare", "unit", False),
        ("cube", "direction", False),
    ):
        assert (found[concept, kind, "max"].percentile is None) == undefined
    assert [line for line in said if "('red') have no sample in split cal" in line]
    assert [line for line in said if "('rare') have no direction" in line and "split train" in line]


def test_samples_without_a_row_that_counts_are_never_said_to_have_a_concept(made: Content, tmp_path: Path) -> None:
    empty = (np.diff(made.offsets) < 2) & (made.split != "train")
    assert empty[made.split == "cal"].any()
    assert empty[made.split == "test"].any()
    samples = made.samples.copy()
    samples[:, 0] = 1
    codes = store(tmp_path / "lake", replace(made, samples=samples))
    for one in run(codes, learned(codes)).results[: 2 * len(REDUCTIONS)]:
        assert one.counts is not None
        assert one.counts[2] >= empty[made.split == "test"].sum()
        assert one.n_pos <= (~empty[made.split == "cal"]).sum()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("split", ["train", "cal", "test"])
def test_activations_that_are_not_finite_are_refused(made: Content, tmp_path: Path, value: float, split: str) -> None:
    activations = made.activations.copy()
    activations[np.flatnonzero(made.counted(split))[3], 2] = value
    codes = store(tmp_path / "lake", replace(made, activations=activations))
    with pytest.raises(InputError, match=f"activations of split '{split}' that are not finite"):
        run(codes, learned(codes))


def test_activations_that_are_missing_are_not_zeros(made: Content, tmp_path: Path) -> None:
    codes = store(tmp_path / "lake", made, activations=False)
    layer = ActivationsKey("d", "m", "layer_3", "token")
    write_activations(codes.group.storage, layer, made.activations, "float32", holes=(0,))
    with pytest.raises(HoleError):
        run(codes, learned(codes))


def test_what_is_refused(codes: Codes, thresholds: Thresholds) -> None:
    for options, message in (
        ({"ridges": []}, "ridges"),
        ({"ridges": [0.0]}, "numbers above 0"),
        ({"ridges": [float("nan")]}, "numbers above 0"),
        ({"reductions": ["median"]}, "choose from max, mean, last, random"),
        ({"reductions": []}, "reductions"),
        ({"which": ["probe"]}, "choose from direction, unit"),
        ({"which": []}, "baselines"),
        ({"test": "cal"}, "cannot be the test"),
        ({"test": "validation"}, "validation"),
    ):
        with pytest.raises(InputError, match=message):
            run(codes, thresholds, **options)
    with pytest.raises(InputError, match="leave the selection out"):
        run(codes.where(split="cal"), thresholds)
    with pytest.raises(BudgetError):
        run(codes, thresholds, memory=psutil.Process().memory_info().rss + (1 << 20))


def test_other_labels_are_refused(made: Content, tmp_path: Path) -> None:
    first, second = (store(tmp_path / name, each) for name, each in (("a", made), ("b", content(seed=1))))
    learned(second)
    with pytest.raises(ConflictError, match="labels have changed"):
        run(second, learned(first))


def test_directions_are_of_the_rows_that_are_labelled(tmp_path: Path) -> None:
    """Of three concepts with labels missing in different rows, each against sums over its own rows."""
    built = build(str(tmp_path / "lake"), n=150)
    known = write_thresholds(built.codes, quiet=True)
    truth = same_truth(built.codes, known)
    source = directions_module.LabelledRows(
        Activations.open(built.lake.storage, built.codes.key.activations), truth, memory=None, quiet=True
    )
    fitted = source.fit(CountedRows.of(truth, "train", 0), [0.1])
    for concept in range(3):
        kept = built.rows_of("train") & (built.labels[:, concept] != 255)
        assert kept.sum() < built.rows_of("train").sum()
        moments = directions_module.Moments.empty(built.activations[kept][0], 1)
        moments.add(built.activations[kept], built.labels[kept][:, [concept]])
        weights, intercepts, defined = directions(moments, [0.1])
        assert fitted.defined[concept] == defined[0]
        np.testing.assert_allclose(fitted.weights[:, concept], weights[:, 0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(fitted.intercepts[:, concept], intercepts[:, 0], rtol=1e-9)
