"""`saestore prune` and `--view` on the command line and from Python: the same views, told in numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_runs import Run

import saestore
from saestore.catalogs import load_catalog


@pytest.fixture(scope="module")
def place(lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lake, so that its views are nobody else's."""
    copy = tmp_path_factory.mktemp("prune") / "lake"
    shutil.copytree(lake, copy)
    return copy


def test_prune_says_what_each_criterion_removed(place: Path, run: Run) -> None:
    line = ["prune", place, "--name", "strong", "--dead", "2", "--strength-percentile", "50"]
    found = run(*line, "--json", "--quiet")
    assert found.code == 0, found.err
    lake = saestore.open(str(place))
    assert [view["dataset"] for view in found.json] == ["more", "texts"]
    for view in found.json:
        codes = lake.codes(view["dataset"])
        stats = codes.stats(split="cal")
        assert (view["rows"], view["active"], view["d_sae"]) == (stats.n_rows, int((stats.count > 0).sum()), 64)
        left = stats.count >= 2
        p99 = stats.percentiles[:, 4]
        assert view["strength"] == np.percentile(p99[left].astype(float), 50)
        kept = np.flatnonzero(left & (np.nan_to_num(p99) >= view["strength"]))
        assert codes.view("strong").kept_units.tolist() == kept.tolist()
        assert view["kept"] == len(kept) > 0
        assert view["criteria"] == {"dead": 2, "strength_percentile": 50}
        assert view["removed"] == {
            "dead": int(((stats.count > 0) & ~left).sum()),
            "strength": int(left.sum()) - len(kept),
        }
    text = run(*line, "--quiet")  # the same again
    assert text.code == 0
    lines = text.out.splitlines()
    assert lines[0] == "view strong of 64 units: SAE small, layer_2, token, over split cal"
    assert lines[1].split() == ["dataset", "rows", "active", "-", "dead", "-", "strength", "kept", "criteria"]
    assert f"p99 >= {found.json[0]['strength']:.4g}" in lines[2]


def test_a_view_is_read_by_show_top_stats_and_status(place: Path, run: Run) -> None:
    made = run("prune", place, "--datasets", "texts", "--name", "few", "--target", "3", "--quiet", "--json")
    assert made.code == 0, made.err
    units = saestore.open(str(place)).codes("texts").view("few").kept_units.tolist()
    assert len(units) == 3
    shown = run("show", place, "texts", "--rows", ":", "--view", "few", "--json").json
    assert {unit for row in shown["rows"] for unit in row["units"]} == set(units)
    assert all(row["l0"] == len(row["units"]) for row in shown["rows"])
    found = run("top", place, "--datasets", "texts", "--view", "few", "--json").json
    assert {unit["unit"] for unit in found["units"]} <= set(units)
    named = run("top", place, "--datasets", "texts", "--view", "few", "--units", units[1], "--json")
    assert named.json["units"][0]["unit"] == units[1]
    outside = next(unit for unit in range(64) if unit not in units)
    refused = run("top", place, "--datasets", "texts", "--view", "few", "--units", outside)
    assert refused.code == 2
    assert f"unit {outside} is not in view 'few'" in refused.err
    (table,) = run("stats", place, "--datasets", "texts", "--view", "few", "--json", "--quiet").json
    assert sorted(table["columns"]["unit"]) == units
    assert table["d_sae"] == 3
    block = run("dense", place, "texts", "--view", "few", "--rows", "0:9", "--json").json
    assert block["units"] == units
    np.testing.assert_array_equal(block["codes"], saestore.open(str(place)).codes("texts").dense(slice(0, 9), units))
    missing = run("show", place, "more", "--view", "few")
    assert missing.code == 2
    assert "data/more/" in missing.err
    assert "no view 'few'" in missing.err
    status = run("status", place, "--json").json["groups"]
    assert [
        (row["note"], row["rows"], row["state"]) for row in status if row["kind"] == "view" if row["rows"] == 3
    ] == [("few", 3, "done")]


def test_units_are_picked_from_what_every_dataset_keeps(place: Path, run: Run) -> None:
    lake = saestore.open(str(place))
    both = [lake.codes(name).stats(split="cal") for name in ("more", "texts")]
    shared = np.flatnonzero((both[0].count > 0) & (both[1].count > 0)).tolist()
    assert len(shared) > 4
    for name, units in (("more", shared[:3]), ("texts", shared[1:4])):
        assert saestore.prune(lake, name, name="crossed", units=units)[0].kept == 3
    found = run("top", place, "--view", "crossed", "--json").json
    assert {unit["unit"] for unit in found["units"]} <= set(shared[1:3])


def test_a_view_of_a_view(place: Path, run: Run) -> None:
    assert run("prune", place, "--name", "wide", "--dead", "1", "--quiet").code == 0
    found = run("prune", place, "--name", "narrow", "--view", "wide", "--target", "2", "--quiet")
    assert found.out.startswith("view narrow of view wide: ")
    conflict = run("prune", place, "--name", "narrow", "--view", "wide", "--target", "3", "--quiet")
    assert conflict.code == 2
    assert "view 'narrow' already, of 2 units" in conflict.err


def test_legacy_is_said_aloud(place: Path, run: Run) -> None:
    line = ["prune", place, "--name", "old", "--dead", "1", "--legacy"]
    found = run(*line, "--datasets", "texts")
    assert found.code == 0, found.err
    assert "legacy: rows and 99th percentiles are those of earlier code" in found.err
    assert "legacy rows and percentiles" in found.out
    assert run(*line, "--datasets", "texts", "--json", "--quiet").json[0]["legacy"] is True
    nothing = run(*line, "--datasets", "more")
    assert nothing.code == 2
    assert (
        "no unit is active in the legacy rows of split 'cal'" in nothing.err
    )  # at 256 a sample they lie beyond the end


def test_a_parameter_set_of_the_catalog(place: Path, run: Run, tmp_path: Path) -> None:
    """The rarest and the commonest label in calibration rows decide."""
    catalog = tmp_path / "catalog.yaml"
    rule = {"rule": "adaptive", "dead_fraction": 0.1, "ubiquitous_factor": 1.5, "strength_steps": [[1, 25], [None, 80]]}
    catalog.write_text(json.dumps({"parameters": {"mine": {"prune": rule}, "grid": {"k": 3}}}))
    line = ["prune", place, "--datasets", "texts", "--quiet", "--json", f"--catalog={catalog}"]
    found = run(*line, "--name", "adaptive", "--parameters", "mine")
    assert found.code == 0, found.err
    codes = saestore.open(str(place)).codes("texts")
    positive = len(codes.where("label == 1", split="cal", special=False))
    rows = len(codes.where(split="cal", special=False))
    assert found.json[0]["criteria"] == {
        "dead": int(0.1 * positive),
        "ubiquitous": 1.5 * positive / rows,
        "strength_percentile": 25,
    }
    refused = run(*line, "--name", "none", "--parameters", "grid")
    assert refused.code == 2
    assert "'grid' has no pruning rule" in refused.err
    assert "mine" in refused.err
    known = load_catalog([catalog])
    again = saestore.prune(str(place), "texts", name="adaptive", parameters="mine", quiet=True, catalog=known)
    assert again[0].kept == found.json[0]["kept"]


def test_pooled_codes_need_no_criteria(place: Path, run: Run) -> None:
    assert run("encode", place, "--saes", "small", "--sample-type", "mean", "--force", "--quiet").code == 0
    found = run("prune", place, "--name", "active", "--sample-type", "mean", "--quiet", "--json")
    assert found.code == 0, found.err
    assert all(view["kept"] == view["active"] and view["removed"] == {} for view in found.json)
