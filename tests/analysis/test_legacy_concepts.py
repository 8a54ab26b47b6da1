"""Legacy thresholds, detection and localisation against a literal reading of what earlier code did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saestore.analysis import legacy_concepts
from saestore.analysis.dense_baseline import compare
from saestore.analysis.detection import write_detection
from saestore.analysis.localisation import write_localisation
from saestore.analysis.maps import concept_maps
from saestore.analysis.thresholds import PERCENTILES, write_thresholds
from saestore.errors import InputError
from tests.analysis.concept_lake import CONCEPTS, ConceptLake, build


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ConceptLake:
    return build(str(tmp_path_factory.mktemp("legacy") / "lake"), n=50, seed=3)


def learned(made: ConceptLake, size: int) -> np.ndarray:
    """Thresholds (unit, concept, percentile) by the old loops: quantiles of blocks, then torch's lower median."""
    cal = made.rows_of("cal")
    positives = [np.flatnonzero(cal & (made.labels[:, c] == 1)) for c in range(len(CONCEPTS))]
    everything = np.unique(np.concatenate(positives))
    blocks = [everything[start : start + size] for start in range(0, len(everything), size)]
    out = np.zeros((made.dense.shape[1], len(CONCEPTS), len(PERCENTILES)), np.float32)
    for unit in range(made.dense.shape[1]):
        for concept, rows in enumerate(positives):
            each = []
            for block in blocks:
                inside = np.intersect1d(rows, block)
                if not len(inside):
                    continue
                values = torch.from_numpy(made.dense[inside, unit])
                values = values[values > 0]
                each.append(
                    [float(torch.quantile(values.double(), 1 - p)) if len(values) else 0.0 for p in PERCENTILES]
                )
            if each:
                out[unit, concept] = torch.tensor(each, dtype=torch.float32).median(dim=0).values.numpy()
    return out


@pytest.mark.parametrize("size", [5, 13, 100_000])
def test_thresholds_are_medians_of_blocks(made: ConceptLake, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(legacy_concepts, "BLOCK_POSITIONS", size)
    found = write_thresholds(made.codes, name=f"legacy-{size}", legacy=True, quiet=True)
    assert found.is_legacy
    expected = learned(made, size)
    np.testing.assert_array_equal(found.pairs.read("thresholds")[:, : len(CONCEPTS)], expected)
    assert (expected[5] == 0).all(), "a unit that is never active has 0 everywhere"


def test_units_are_chosen_on_the_test_split_and_zero_fires_everywhere(made: ConceptLake) -> None:
    write_thresholds(made.codes, name="old", legacy=True, quiet=True)
    found = write_detection(made.codes, name="old", thresholds="old", quiet=True)
    cuts = learned(made, 100_000)
    scores = {}
    for split in ("cal", "test"):
        rows, inside = made.rows_of(split), made.split == split
        most = np.zeros((len(made.split), made.dense.shape[1]), np.float32)
        np.maximum.at(most, made.sample_of[rows], made.dense[rows])
        fires = most[:, :, None, None] >= cuts  # samples, units, concepts, percentiles
        for name, label in (("tp", 1), ("fp", 0)):
            has = (inside[:, None] & (made.samples == label))[:, None, :, None]
            scores[split, name] = (fires & has).sum(axis=0)
        counts = found.counts(split)
        np.testing.assert_array_equal(counts[0], scores[split, "tp"])
        np.testing.assert_array_equal(counts[1], scores[split, "fp"])
    for place, one in enumerate(found.best()):
        chosen = {}
        for split in ("cal", "test"):
            tp, fp = scores[split, "tp"][:, place], scores[split, "fp"][:, place]
            positives = int(((made.split == split) & (made.samples[:, place] == 1)).sum())
            f1 = np.divide(2.0 * tp, tp + fp + positives, out=np.zeros(tp.shape), where=tp + fp + positives > 0)
            best = -1.0
            for level in range(len(PERCENTILES)):
                for unit in range(f1.shape[0]):
                    if f1[unit, level] > best:
                        best, chosen[split] = f1[unit, level], (unit, level)
        assert one.unit == chosen["test"][0]
        assert one.percentile == PERCENTILES[chosen["cal"][1]]


def test_superdetectors_are_of_all_splits_and_the_rank_is_the_tests_own(made: ConceptLake) -> None:
    write_thresholds(made.codes, name="two", legacy=True, quiet=True)
    detection = write_detection(made.codes, name="two", thresholds="two", quiet=True)
    found = write_localisation(made.codes, name="two", detection="two", quiet=True)
    x = made.activations.astype(np.float64)
    strongs = [made.dense[:, one.unit] > np.float32(one.threshold) for one in detection.best()]
    place = next(place for place, rows in enumerate(strongs) if rows.any())
    one, strong = detection.best()[place], strongs[place]
    weights = np.exp(made.dense[strong, one.unit].astype(np.float64))
    direction = (weights / weights.sum()) @ x[strong]
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(found.vectors()[place], direction, rtol=1e-5, atol=1e-6)
    similar = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)) @ direction
    rows = made.rows_of("test")
    most = np.zeros(len(made.split), np.float32)
    np.maximum.at(most, made.sample_of[rows], made.dense[rows, one.unit])
    detected = rows & (most >= np.float32(one.threshold))[made.sample_of]
    pool = similar[detected & (similar > -0.5)]
    counts = found.counts("two_stage", "test")[:, place]
    for level, q in enumerate(PERCENTILES):
        cut = np.quantile(pool, q)
        unsure = int((detected & (np.abs(similar - cut) < 1e-5)).sum())
        predicted = detected & (similar >= cut)
        assert abs(int(counts[:2, level].sum()) - int((predicted & (made.labels[:, place] != 255)).sum())) <= unsure


def test_a_threshold_of_0_is_reached_by_every_counted_row(made: ConceptLake) -> None:
    write_thresholds(made.codes, name="zero", legacy=True, quiet=True)
    detection = write_detection(made.codes, name="zero", thresholds="zero", quiet=True)
    found = write_localisation(made.codes, name="zero", detection="zero", quiet=True)
    rare = detection.best()[2]
    assert rare.threshold == 0
    for split in ("cal", "test"):
        rows, labels = made.rows_of(split), made.labels[:, 2]
        expected = [int((rows & (labels == 1)).sum()), int((rows & (labels == 0)).sum()), 0, 0]
        assert (found.counts("direct", split)[:, 2] == np.array(expected)[:, None]).all()
    ids = made.codes.samples.ids[made.split == "test"]
    for one in concept_maps(made.codes, found, "rare", [str(name) for name in ids]):
        assert one.detected == (~one.special).any()
        np.testing.assert_array_equal(one.predicted, ~one.special)
    # Every counted row is of a detected sample, so that the ranks of two_stage are those of all of them.
    x = made.activations.astype(np.float64)
    similar = x @ found.vectors()[2] / np.maximum(np.linalg.norm(x, axis=1), 1e-30)
    pool = similar[made.rows_of("cal") & (similar > -0.5)]
    np.testing.assert_allclose(found.thresholds("two_stage")[2], np.quantile(pool, PERCENTILES), atol=1e-5)


def test_legacy_is_said_and_not_compared(made: ConceptLake, tmp_path: Path) -> None:
    told: list[str] = []
    write_thresholds(made.codes, name="said", legacy=True, quiet=True, say=told.append)
    assert any("for comparison only" in line for line in told)
    write_detection(made.codes, name="said", thresholds="said", quiet=True)
    with pytest.raises(InputError, match="is legacy, and this compares with what is right"):
        compare(made.codes, detection="said")
    bare = build(str(tmp_path / "lake"), labelled=False)
    with pytest.raises(InputError, match="legacy thresholds of positions need labels of positions"):
        write_thresholds(bare.codes, legacy=True, quiet=True)
