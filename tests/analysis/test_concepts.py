"""Thresholds, detection and localisation against loops over the dense matrix."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from saestore.activations import Activations
from saestore.analysis import detection as detecting
from saestore.analysis import localisation as localising
from saestore.analysis import pairs as pairs_module
from saestore.analysis import truth as truth_module
from saestore.analysis.baselines import baselines
from saestore.analysis.dense_baseline import compare
from saestore.analysis.detection import Detection, write_detection
from saestore.analysis.localisation import Localisation, write_localisation
from saestore.analysis.maps import concept_maps
from saestore.analysis.pruning import Criteria, prune
from saestore.analysis.thresholds import PERCENTILES, Thresholds, write_thresholds
from saestore.errors import BudgetError, ConflictError, HoleError, InputError, MissingError
from saestore.layout import RESULTS
from saestore.rows import RowGroup
from saestore.storage import put_document, read_document
from tests.analysis.concept_lake import CONCEPTS, KEY, ConceptLake, build
from tests.small_lake import lake_files

QUIET = {"quiet": True}


@pytest.fixture(scope="module", params=[(), (13, 30)], ids=["one part", "three parts"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> ConceptLake:
    built = build(str(tmp_path_factory.mktemp("concepts") / "lake"), cuts=request.param)
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    write_localisation(built.codes, **QUIET)
    return built


def most(made: ConceptLake, split: str) -> np.ndarray:
    """The largest value of each unit in each sample, by a loop."""
    out = np.zeros((len(made.split), made.dense.shape[1]), np.float32)
    for row in np.flatnonzero(made.rows_of(split)):
        out[made.sample_of[row]] = np.maximum(out[made.sample_of[row]], made.dense[row])
    return out


def test_thresholds_are_quantiles_of_active_positive_rows(made: ConceptLake) -> None:
    found = Thresholds.open(made.codes)
    assert (found.split, found.by) == ("cal", "position")
    cal = made.rows_of("cal")
    for place, concept in enumerate([*CONCEPTS, None]):
        held = cal if concept is None else cal & (made.labels[:, place] == 1)
        values, n_pos = found.values(concept), found.n_pos(concept)
        for unit in range(made.dense.shape[1]):
            active = made.dense[held & (made.dense[:, unit] > 0), unit]
            assert n_pos[unit] == len(active)
            expected = (
                np.quantile(active.astype(float), 1 - np.array(PERCENTILES))
                if len(active)
                else np.full(len(PERCENTILES), np.inf)
            )
            np.testing.assert_array_equal(values[unit], expected.astype(np.float32))
    assert (found.n_pos("rare") == 0).all()


@pytest.mark.parametrize("split", ["cal", "test"])
def test_counts_of_samples(made: ConceptLake, split: str) -> None:
    found, cuts = Detection.open(made.codes), Thresholds.open(made.codes)
    counts, largest = found.counts(split), most(made, split)
    inside = made.split == split
    for place, concept in enumerate(CONCEPTS):
        has, has_not = inside & (made.samples[:, place] == 1), inside & (made.samples[:, place] == 0)
        for unit in range(made.dense.shape[1]):
            for level, cut in enumerate(cuts.values(concept)[unit]):
                fires = largest[:, unit] >= cut
                expected = [
                    (fires & has).sum(),
                    (fires & has_not).sum(),
                    (~fires & has).sum(),
                    (~fires & has_not).sum(),
                ]
                assert counts[:, unit, place, level].tolist() == expected
    assert (counts.sum(axis=0) == (inside & (made.samples.T != 255)).sum(axis=1)[None, :, None]).all()
    recall = counts[0] / np.maximum(1, counts[0] + counts[2])
    assert (np.diff(recall, axis=-1) >= 0).all()
    assert not counts[:2, 5].any(), "a unit that is never active fires nowhere"


def f1(counts: np.ndarray) -> float:
    tp, fp, fn, _ = counts
    return 0.0 if tp == 0 else 2 * tp / (2 * tp + fp + fn)


def test_unit_and_percentile_are_chosen_together_on_calibration(made: ConceptLake) -> None:
    found = Detection.open(made.codes)
    cal, test, n_pos = found.counts("cal"), found.counts("test"), Thresholds.open(made.codes)
    best = {one.concept: one for one in found.best()}
    for place, concept in enumerate(CONCEPTS[:2]):
        candidates = [
            (-f1(cal[:, unit, place, level]), level, unit)
            for unit in range(made.dense.shape[1])
            for level in range(len(PERCENTILES))
            if n_pos.n_pos(concept)[unit]
        ]
        value, level, unit = min(candidates)
        one = best[concept]
        assert (one.unit, one.percentile) == (unit, PERCENTILES[level])
        assert one.calibration.f1 == pytest.approx(-value)
        assert one.test.f1 == pytest.approx(f1(test[:, unit, place, level]))
        assert one.f1_low <= one.test.f1 <= one.f1_high
        assert one.threshold == n_pos.values(concept)[unit, level]
        assert one.oracle_f1 == max(
            f1(test[:, u, place, p]) for u in range(24) for p in range(12) if n_pos.n_pos(concept)[u]
        )
        has, all_of = found.totals("test")[:, place].tolist()[0], found.totals("test")[:, place].sum()
        assert one.always_yes_f1 == pytest.approx(2 * has / (has + all_of))
    assert best["shape::cube"].unit == 3
    assert best["rare"].unit is None
    assert np.isnan(best["rare"].test.f1)


def test_direct_localisation(made: ConceptLake) -> None:
    found, best = Localisation.open(made.codes), Detection.open(made.codes).best()
    values = Thresholds.open(made.codes)
    for split in ("cal", "test"):
        rows, largest, counts = made.rows_of(split), most(made, split), found.counts("direct", split)
        for place, one in enumerate(best):
            labels = made.labels[:, place]
            for level, percentile in enumerate(PERCENTILES):
                predicted = np.zeros(len(rows), bool)
                if one.unit is not None and percentile >= one.percentile:
                    cut = values.values(one.concept)[one.unit, level]
                    detected = largest[made.sample_of, one.unit] >= np.float32(one.threshold)
                    predicted = rows & detected & (made.dense[:, one.unit] >= cut)
                has, has_not = rows & (labels == 1), rows & (labels == 0)
                expected = [
                    (a & b).sum()
                    for a, b in ((predicted, has), (predicted, has_not), (~predicted, has), (~predicted, has_not))
                ]
                assert counts[:, place, level].tolist() == expected
    chosen = {(one.concept, one.method): one for one in found.best()}
    one = chosen["shape::cube", "direct"]
    assert one.percentile is not None
    assert one.percentile >= one.detect_percentile
    assert one.test.iou == pytest.approx(one.test.f1 / (2 - one.test.f1))
    assert chosen["rare", "direct"].percentile is None


def test_two_stage_localisation(made: ConceptLake) -> None:
    found, best = Localisation.open(made.codes), Detection.open(made.codes).best()
    x = made.activations.astype(np.float64)
    unit_rows = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    cal = made.rows_of("cal")
    for place, one in enumerate(best[:2]):
        strong = cal & (made.dense[:, one.unit] >= np.float32(one.threshold)) & (made.dense[:, one.unit] > 0)
        weights = np.exp(made.dense[strong, one.unit].astype(np.float64))
        direction = (weights / weights.sum()) @ x[strong]
        direction /= np.linalg.norm(direction)
        np.testing.assert_allclose(found.vectors()[place], direction, rtol=1e-5, atol=1e-6)
        similar = unit_rows @ direction
        cuts = None
        for split in ("cal", "test"):
            rows, largest = made.rows_of(split), most(made, split)
            detected = rows & (largest[made.sample_of, one.unit] >= np.float32(one.threshold))
            if split == "cal":
                cuts = np.quantile(similar[detected], PERCENTILES)
                np.testing.assert_allclose(found.thresholds("two_stage")[place], cuts, rtol=1e-4, atol=1e-5)
            labels = made.labels[:, place]
            counts = found.counts("two_stage", split)[:, place]
            for level in range(len(PERCENTILES)):
                sure = np.abs(similar - cuts[level]) > 1e-5  # products are summed in another order
                predicted = detected & (similar >= cuts[level])
                unsure = int((detected & ~sure).sum())
                assert abs(int(counts[0, level]) - int((predicted & (labels == 1)).sum())) <= unsure
                assert abs(int(counts[1, level]) - int((predicted & (labels == 0)).sum())) <= unsure
            assert (counts.sum(axis=0) == (rows & (labels != 255)).sum()).all()


def test_the_dense_pipeline_finds_the_same(made: ConceptLake) -> None:
    found = compare(made.codes)
    assert len(found) == 2 + 8 + 8
    assert [one.what for one in found if not one.is_equal] == []
    assert sum(one.numbers for one in found) > 8_000


def test_comparing_finds_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    write_thresholds(built.codes, **QUIET)

    def wrong(group: object, truth: object, codes: object, mine: slice) -> object:
        make = work(group, truth, codes, mine)
        return lambda units, entries: {
            name: array + (name == "test_tp") for name, array in make(units, entries).items()
        }

    work = detecting._work
    monkeypatch.setattr(detecting, "_work", wrong)
    write_detection(built.codes, **QUIET)
    differing = {one.what: one for one in compare(built.codes) if not one.is_equal}
    assert set(differing) == {"TP of samples, test", "FN of samples, test"}
    one = differing["TP of samples, test"]
    assert one.differing == one.numbers
    assert one.first.startswith("unit 0, concept 'shape::cube': ")


@pytest.mark.parametrize("entries", [1, 7, 100])
def test_blocks_and_shards_change_nothing(
    made: ConceptLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(pairs_module, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(pairs_module, "_CHUNK_PAIRS", 8)
    monkeypatch.setattr(pairs_module, "_CHUNKS_PER_SHARD", 1 + entries % 3)
    monkeypatch.setattr(truth_module, "KEPT_LABELS", 0 if entries == 7 else 1 << 20)
    built = build(str(tmp_path / "lake"))
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    expected, found = Thresholds.open(made.codes), Thresholds.open(built.codes)
    np.testing.assert_array_equal(found.pairs.read("thresholds"), expected.pairs.read("thresholds"))
    for split in ("cal", "test"):
        np.testing.assert_array_equal(
            Detection.open(built.codes).counts(split), Detection.open(made.codes).counts(split)
        )


def test_what_was_cut_short_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_CHUNK_PAIRS", 8)
    monkeypatch.setattr(pairs_module, "_CHUNKS_PER_SHARD", 2)
    built = build(str(tmp_path / "lake"))
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    before = lake_files(tmp_path / "lake")
    lost = sorted((tmp_path / "lake").rglob("default/ledger/c.1.0.0"))
    assert len(lost) == 2
    for entry in lost:
        entry.unlink()
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    assert lake_files(tmp_path / "lake") == before


def test_rows_of_other_splits_change_nothing(made: ConceptLake, tmp_path: Path) -> None:
    """Test and training data do not leak into thresholds or choices."""
    built = build(str(tmp_path / "lake"))
    assert np.array_equal(built.dense, made.dense)
    from tests.built_lake import top_k, write_codes

    other = built.dense.copy()
    outside = np.isin(built.split[built.sample_of], ["train", "test"]) | built.special
    other[outside] = np.random.default_rng(1).choice([0, 3, 7], (int(outside.sum()), other.shape[1]))
    key = type(KEY)("d", "m", "layer_3", "other", "token")
    write_codes(built.lake.storage, key, top_k(other, 24))
    from saestore.indexing.writer import index

    index(built.lake.storage, [key], quiet=True)
    codes = built.lake.codes("d", sae="other")
    write_thresholds(codes, **QUIET)
    np.testing.assert_array_equal(
        Thresholds.open(codes).pairs.read("thresholds"), Thresholds.open(made.codes).pairs.read("thresholds")
    )
    found = write_detection(codes, **QUIET)
    for one, expected in zip(found.best(), Detection.open(made.codes).best(), strict=True):
        assert (one.unit, one.percentile, one.calibration) == (
            expected.unit,
            expected.percentile,
            expected.calibration,
        ) or (one.unit is None)


def test_labels_of_samples_where_positions_have_none(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), labelled=False)
    told: list[str] = []
    found = write_thresholds(built.codes, **QUIET, say=told.append)
    assert found.by == "sample"
    assert any("all rows of labelled samples" in line for line in told)
    cal = built.rows_of("cal")
    held = cal & (built.samples[built.sample_of, 1] == 1) & (built.dense[:, 7] > 0)
    assert found.n_pos("red")[7] == held.sum()
    write_detection(built.codes, **QUIET)
    with pytest.raises(InputError, match="do not say where a concept is"):
        write_localisation(built.codes, **QUIET)
    with pytest.raises(InputError, match="have no labels 'concepts'"):
        write_thresholds(built.codes, by="position", name="other", **QUIET)


def test_wrong_requests_are_refused(made: ConceptLake, tmp_path: Path) -> None:
    codes = made.codes
    with pytest.raises(InputError, match="parts of one that ascend"):
        write_thresholds(codes, percentiles=[0.5, 0.1], name="x", **QUIET)
    with pytest.raises(InputError, match="split 'dev' is unknown"):
        write_thresholds(codes, split="dev", name="x", **QUIET)
    with pytest.raises(MissingError, match="no concept 'cub'; its 3 concepts: 'shape::cube'"):
        write_thresholds(codes, concepts=["cub"], name="x", **QUIET)
    with pytest.raises(ConflictError, match=r"was made differently \(.* was asked\); give this one another --name"):
        write_thresholds(codes, percentiles=[0.5], **QUIET)
    write_detection(codes, name="taken", **QUIET)
    told = r'splits: \["cal", "test"\] is stored, \["cal", "train"\] was asked'
    with pytest.raises(ConflictError, match=told):
        write_detection(codes, test="train", name="taken", **QUIET)
    with pytest.raises(InputError, match="split 'cal' has decided the thresholds already"):
        write_detection(codes, test="cal", name="x", **QUIET)
    with pytest.raises(MissingError, match=r"no thresholds 'none'; it has default"):
        write_detection(codes, thresholds="none", name="x", **QUIET)
    with pytest.raises(InputError, match="of all rows of the codes"):
        write_thresholds(codes.where(split="cal"), name="x", **QUIET)
    with pytest.raises(BudgetError):
        write_thresholds(codes, memory="1MiB", name="x", **QUIET)
    with pytest.raises(MissingError, match="no localisation 'none'"):
        Localisation.open(codes, "none")
    with pytest.raises(MissingError, match=r"has no detection; compute them: saestore detect"):
        Detection.open(build(str(tmp_path / "lake")).codes)


def test_activations_that_are_not_finite_have_no_direction(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    for path in (tmp_path / "lake").rglob("activations/token/ledger/c.*"):
        path.unlink()
    group = built.lake.activations("d").group
    for shard in group.missing_shards():
        rows = group.grid.shard(shard)
        group.write_shard(shard, {"activations": built.activations[rows]}, flagged={"activations": 3})
    with pytest.raises(InputError, match="holds 3 values that are not finite, which have no cosine"):
        write_localisation(built.codes, **QUIET)
    assert write_localisation(built.codes, methods=["direct"], **QUIET).methods == ("direct",)


def test_results_are_of_one_view(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    for name, units in (("a", range(12)), ("b", range(6, 20))):
        prune(built.codes, name=name, criteria=Criteria(dead=1), units=list(units))
    one, both = built.codes.view("a"), built.codes.view("a").view("b")
    write_thresholds(one, **QUIET)
    write_detection(one, **QUIET)
    found = Detection.open(one)
    assert found.pairs.units.tolist() == one.kept_units.tolist()
    assert compare(one)[1].is_equal
    with pytest.raises(InputError, match="results are stored of one view"):
        write_thresholds(both, **QUIET)
    with pytest.raises(MissingError, match=r"view 'b' of .* has no thresholds, but view 'a' has; give --view a, or"):
        write_detection(built.codes.view("b"), **QUIET)
    with pytest.raises(MissingError, match=r"token has no detection, but view 'a' has; give --view a, or compute them"):
        Detection.open(built.codes)
    with pytest.raises(MissingError, match=r"view 'a' of .* has no detection 'x'; it has default$"):
        Detection.open(one, "x")
    with pytest.raises(MissingError, match=r"no localisation; compute them: saestore localise LAKE .* --view a$"):
        Localisation.open(one)


@pytest.mark.parametrize(
    ("split", "told"), [("cal", None), ("test", "chosen on split test"), ("all", "chosen on rows of all splits")]
)
def test_units_that_were_chosen_on_the_reported_split_are_refused(tmp_path: Path, split: str, told: str | None) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    prune(built.codes, name="first", criteria=Criteria(target=9), split=split)
    prune(built.codes.view("first"), name="second", criteria=Criteria(target=6))
    for view in ("first", "second"):
        codes = built.codes.view(view)
        write_thresholds(codes, **QUIET)
        if told is None:
            write_detection(codes, **QUIET)
            continue
        with pytest.raises(InputError, match=f"units of view 'first' of .* were {told}, so that split test is no test"):
            write_detection(codes, **QUIET)
        write_thresholds(codes, name="legacy", legacy=True, **QUIET)
        write_detection(codes, name="legacy", thresholds="legacy", **QUIET)


def test_status_lists_what_was_found(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    prune(built.codes, name="a", criteria=Criteria(dead=1))
    write_thresholds(built.codes, **QUIET)
    write_thresholds(built.codes.view("a"), name="mine", **QUIET)
    write_detection(built.codes.view("a"), thresholds="mine", **QUIET)
    for path in (tmp_path / "lake").rglob("detection/default/ledger/c.*"):
        path.unlink()
    kept = len(built.codes.view("a").kept_units)
    found = [(row.kind, row.rows, row.state, row.note) for row in built.lake.status() if row.kind in RESULTS]
    assert sorted(found) == [
        ("detection", 3 * kept, "partial", "default, view a"),
        ("thresholds", 4 * kept, "done", "mine, view a"),
        ("thresholds", 4 * 24, "done", "default, all units"),
    ]


def test_a_legacy_view_needs_legacy_thresholds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.analysis.legacy.ITEMS_PER_SAMPLE", 4)
    built = build(str(tmp_path / "lake"), n=20)
    prune(built.codes, name="old", criteria=Criteria(dead=1), legacy=True)
    codes = built.codes.view("old")
    write_thresholds(codes, **QUIET)
    with pytest.raises(InputError, match="were chosen on rows of all splits"):
        write_detection(codes, **QUIET)
    write_thresholds(codes, name="old", legacy=True, **QUIET)
    assert write_detection(codes, name="old", thresholds="old", **QUIET).thresholds.is_legacy


def test_the_long_table_has_every_count(made: ConceptLake) -> None:
    found = Detection.open(made.codes)
    table = found.table("test")
    assert len(table) == 3 * 24 * 12
    one = table[(table.concept == "red") & (table.unit == 7) & (table.percentile == 0.5)].iloc[0]
    counts = found.counts("test")[:, 7, 1, PERCENTILES.index(0.5)]
    assert one[["tp", "fp", "fn", "tn"]].tolist() == counts.tolist()
    assert one.f1 == pytest.approx(f1(counts))
    assert len(found.table("cal", concept="red")) == 24 * 12


def test_maps_show_what_localisation_counts(made: ConceptLake) -> None:
    found = Localisation.open(made.codes)
    one = next(one for one in found.best() if (one.concept, one.method) == ("shape::cube", "direct"))
    samples = [f"s{place}" for place in np.flatnonzero(made.split == "test")]
    maps = concept_maps(made.codes, found, "shape::cube", samples)
    for each in maps:
        np.testing.assert_array_equal(each.values, made.dense[each.rows, 3])
        np.testing.assert_array_equal(each.labels, made.labels[each.rows, 0])
        np.testing.assert_array_equal(each.special, made.special[each.rows])
        assert each.content == f"Text {each.sample[1:]}"
    level = PERCENTILES.index(one.percentile)
    counts = found.counts("direct", "test")[:, 0, level]
    hits = sum(int((each.predicted & (each.labels == 1) & ~each.special).sum()) for each in maps)
    misses = sum(int((each.predicted & (each.labels == 0) & ~each.special).sum()) for each in maps)
    assert (hits, misses) == (counts[0], counts[1])
    with pytest.raises(MissingError, match="no concept 'cube'"):
        concept_maps(made.codes, found, "cube", samples)
    with pytest.raises(InputError, match="concept 'rare' has no unit"):
        concept_maps(made.codes, found, "rare", samples)


def test_a_concept_that_no_reported_sample_has_is_undefined(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), absent="test")
    told: list[str] = []
    thresholds = write_thresholds(built.codes, **QUIET)
    found = write_detection(built.codes, say=told.append, **QUIET)
    assert [line for line in told if "no sample in split test: 'rare'; their scores there are undefined" in line]
    one = found.best()[2]
    assert one.unit is not None
    assert one.calibration.f1 > 0
    reported = [*vars(one.test).values(), one.f1_low, one.f1_high, one.always_yes_f1, one.oracle_f1]
    assert np.isnan(reported).all()
    assert one.oracle_unit is None
    assert [np.isnan(other.test.f1) for other in found.best()[:2]] == [False, False]
    line = write_localisation(built.codes, methods=["direct"], **QUIET).best()[2]
    assert line.calibration.f1 > 0
    assert np.isnan([*vars(line.test).values()]).all()
    for other in baselines(built.codes, thresholds=thresholds, **QUIET).results:
        values = [*vars(other.test).values(), other.f1_low, other.f1_high, other.always_yes_f1]
        assert np.isnan(values).tolist() == [other.concept == "rare"] * len(values)
        assert other.calibration.f1 > 0 or other.kind == "direction"  # of which `train` has no row


def test_a_localisation_is_found_by_its_detection(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    write_thresholds(built.codes, **QUIET)
    write_thresholds(built.codes, name="few", percentiles=[0.3, 0.7], **QUIET)
    write_detection(built.codes, **QUIET)
    write_detection(built.codes, name="few", thresholds="few", **QUIET)
    write_localisation(built.codes, name="few", methods=["direct"], **QUIET)
    assert Localisation.of(built.codes).group.path.endswith("/few")
    assert len(compare(built.codes)) == 2 + 8 + 8
    told = r"no localisation of detection 'few', but of others \(few\); compute it: .* --detection few --name"
    with pytest.raises(MissingError, match=told):
        Localisation.of(built.codes, "few")
    assert len(compare(built.codes, detection="few")) == 2 + 8
    write_localisation(built.codes, name="other", detection="few", methods=["two_stage"], **QUIET)
    assert Localisation.of(built.codes, "few").detection.pairs.percentiles.tolist() == [0.3, 0.7]
    assert len(compare(built.codes, detection="few")) == 2 + 8
    write_localisation(built.codes, **QUIET)
    assert Localisation.of(built.codes).group.path.endswith("/default")


def test_other_methods_need_another_name(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20)
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    write_localisation(built.codes, methods=["direct"], **QUIET)
    told = (
        r"localisation 'default' of .* is stored with direct, and direct and two_stage was asked; .* another --name, or"
    )
    with pytest.raises(ConflictError, match=told) as raised:
        write_localisation(built.codes, **QUIET)
    assert "arrays" not in str(raised.value)
    assert write_localisation(built.codes, name="both", methods=["two_stage", "direct"], **QUIET).methods == (
        "direct",
        "two_stage",
    )
    with pytest.raises(InputError, match="localisation is of all rows of the codes"):
        write_localisation(built.codes.where(split="cal"), name="x", **QUIET)


def test_localisation_keeps_to_its_memory(made: ConceptLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(str(tmp_path / "lake"))
    write_thresholds(built.codes, **QUIET)
    write_detection(built.codes, **QUIET)
    before = lake_files(tmp_path / "lake")
    for methods in (["direct"], None):
        with pytest.raises(BudgetError, match=r"localising 3 concepts in .* rows, whose units have .* entries"):
            write_localisation(built.codes, methods=methods, memory="1MiB", **QUIET)  # type: ignore[arg-type]
    assert lake_files(tmp_path / "lake") == before
    taken: list[int] = []
    take = Activations.take
    monkeypatch.setattr(Activations, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    monkeypatch.setattr(localising, "_BLOCK_BYTES", 4 * 6 * 3)
    found, expected = write_localisation(built.codes, **QUIET), Localisation.open(made.codes)
    assert max(taken) == 3
    np.testing.assert_allclose(found.vectors(), expected.vectors(), rtol=1e-6)
    for split in found.splits:
        np.testing.assert_array_equal(found.counts("direct", split), expected.counts("direct", split))
        difference = np.abs(found.counts("two_stage", split) - expected.counts("two_stage", split))
        assert difference.max() <= 1  # a cosine that a product of other blocks rounds to the other side


def test_appended_rows_without_labels_are_told(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), n=20, cuts=(12,))
    low, high = int(built.offsets[12]), int(built.offsets[-1]) - 1
    shutil.rmtree(tmp_path / "lake" / KEY.at(1).activations.model_key.labels_path("concepts"))
    told = (
        rf"rows {low} to {high} of dataset 'd', which were appended, have no labels 'concepts'; label them from a file "
        "that speaks of their samples: saestore label LAKE d --name concepts$"
    )
    with pytest.raises(HoleError, match=told):
        write_thresholds(built.codes, **QUIET)
    part = RowGroup.open(built.lake.storage, KEY.activations.model_key.labels_path("concepts"))
    document = read_document(built.lake.storage, part.path)
    assert document is not None
    document["attributes"]["saestore"]["source"] = {"kind": "gt"}
    put_document(built.lake.storage, part.path, document)
    with pytest.raises(HoleError, match=r"label them from the file of all rows: saestore label LAKE d .* --gt FILE$"):
        write_thresholds(built.codes, **QUIET)
