"""The commands of concept detection over a small lake, against what the library returns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_runs import Run

import saestore
from saestore.analysis.detection import Detection
from saestore.analysis.localisation import Localisation
from tests.analysis.concept_lake import CONCEPTS, ConceptLake, build


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ConceptLake:
    return build(str(tmp_path_factory.mktemp("concepts") / "lake"))


@pytest.fixture
def lake(made: ConceptLake, tmp_path: Path) -> str:
    return str(shutil.copytree(made.lake.url, tmp_path / "lake"))


def test_from_thresholds_to_places(lake: str, run: Run, tmp_path: Path) -> None:
    ran = run("prune", lake, "--datasets", "d", "--name", "strong", "--target", "20", "--dead", "1")
    assert ran.code == 0, ran.err
    of_view = ["--datasets", "d", "--view", "strong"]
    ran = run("thresholds", lake, *of_view)
    assert ran.code == 0, ran.err
    assert "learned on cal from labelled positions" in ran.out
    assert "1 of 3 concepts have no row in split cal and stay undefined: 'rare'" in ran.err
    ran = run("detect", lake, *of_view, "--out", tmp_path / "tables")
    assert ran.code == 0, ran.err
    codes = saestore.open(lake).codes("d").view("strong")
    best = {one.concept: one for one in Detection.open(codes).best()}
    lines = {line.split()[0]: line.split() for line in ran.out.splitlines() if line.startswith(CONCEPTS)}
    one = best["shape::cube"]
    assert lines["shape::cube"][1:5] == [
        str(one.unit),
        f"{one.percentile:.3f}",
        f"{one.threshold:.3f}",
        f"{one.calibration.f1:.3f}",
    ]
    for name in ("best", "counts_cal", "counts_test"):
        table = pd.read_parquet(tmp_path / f"tables/d/{name}.parquet")
        text = pd.read_csv(tmp_path / f"tables/d/{name}.csv")
        assert len(table) == len(text) > 0
        assert list(table.columns) == list(text.columns)
    stored = pd.read_parquet(tmp_path / "tables/d/best.parquet").set_index("concept")
    assert stored.loc["shape::cube", "test_f1"] == one.test.f1
    assert stored.loc["red", "unit"] == best["red"].unit
    ran = run("localise", lake, *of_view, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)[0]["best"]
    expected = Localisation.open(codes).best()
    assert [(each["concept"], each["method"], each["unit"]) for each in found] == [
        (each.concept, each.method, each.unit) for each in expected
    ]
    np.testing.assert_allclose(found[0]["test"]["iou"], expected[0].test.iou)
    ran = run("compare", lake, *of_view)
    assert ran.code == 0, ran.err
    assert "differ" not in ran.out.replace("first difference", "")
    assert ran.out.count("equal") == 18
    again = run("detect", lake, *of_view)
    assert again.out.splitlines()[: len(lines)] == run("detect", lake, *of_view).out.splitlines()[: len(lines)]


def test_baselines_stand_beside_the_units(lake: str, run: Run, tmp_path: Path) -> None:
    assert run("thresholds", lake, "--datasets", "d").code == 0
    ran = run("detect", lake, "--datasets", "d", "--baselines", "--out", tmp_path / "tables")
    assert ran.code == 0, ran.err
    table = pd.read_parquet(tmp_path / "tables/d/baselines.parquet")
    assert set(table.baseline) == {"direction", "unit"}
    assert set(table.reduction) == {"max", "mean", "last", "random"}
    assert len(table) == 3 * 2 * 4
    for line in table[table.concept == "shape::cube"].itertuples():
        assert any(
            row.split()[:3] == [line.concept, line.baseline, line.reduction] and row.split()[-1] == f"{line.f1:.3f}"
            for row in ran.out.splitlines()
        ), line


def test_adaptive_pruning_counts_labelled_positions(lake: str, made: ConceptLake, run: Run) -> None:
    ran = run("prune", lake, "--datasets", "d", "--name", "a", "--parameters", "clip-patch", "--json")
    assert ran.code == 2
    assert "'rare'" in ran.err
    few = ["--concepts", "shape::cube", "red"]
    rows = made.rows_of("cal")
    positives = [int((rows & (made.labels[:, place] == 1)).sum()) for place in (0, 1)]
    ran = run("prune", lake, "--datasets", "d", "--name", "a", "--parameters", "clip-patch", *few, "--json")
    assert f"ubiquitous ({1.25 * max(positives) / rows.sum():.6g}) removed the last" in ran.err  # half of all rows
    adapted = ["--parameters", "clip-patch", *few, "--ubiquitous", "1"]
    ran = run("prune", lake, "--datasets", "d", "--name", "a", *adapted, "--json")
    assert ran.code == 0, ran.err
    criteria = json.loads(ran.out)[0]["criteria"]
    assert criteria == {"dead": int(0.75 * min(positives)), "ubiquitous": 1, "strength_percentile": 60}


def test_tables_say_what_they_are_of(lake: str, run: Run, tmp_path: Path) -> None:
    def written() -> set[str]:
        return {each.name for each in (tmp_path / "t/d").iterdir()}

    def stored() -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in (tmp_path / "t/d").iterdir()}

    out = ["--datasets", "d", "--out", tmp_path / "t"]
    assert run("thresholds", lake, "--datasets", "d").code == 0
    assert run("detect", lake, *out, "--baselines", "--quiet").code == 0
    assert "baselines.csv" in written()
    assert run("detect", lake, *out, "--quiet").code == 0
    counts = {f"{name}{ending}" for name in ("best", "counts_cal", "counts_test") for ending in (".csv", ".parquet")}
    assert written() == {*counts, "run.json"}
    assert run("localise", lake, *out, "--quiet").code == 0
    assert run("detect", lake, *out, "--quiet").code == 0
    assert written() == {*counts, "run.json", "localisation.csv", "localisation.parquet"}
    codes = saestore.open(lake).codes("d")
    found, told = Detection.open(codes), json.loads((tmp_path / "t/d/run.json").read_text())
    assert told["verbs"]["detect"].pop("saestore") == told["verbs"]["localise"].pop("saestore") is not None
    assert told == {
        "dataset": "d",
        "codes": codes.key.path,
        "codes_run": codes.run,
        "view": None,
        "thresholds": "default",
        "detection": "default",
        "detection_run": found.pairs.group.attributes["run"],
        "splits": ["cal", "test"],
        "percentiles": found.pairs.percentiles.tolist(),
        "verbs": {
            "detect": {"seed": 42, "tables": ["best", "counts_cal", "counts_test"]},
            "localise": {
                "name": "default",
                "result": Localisation.open(codes).group.attributes["run"],
                "methods": ["direct", "two_stage"],
                "tables": ["localisation"],
            },
        },
    }
    before = stored()
    assert run("prune", lake, "--datasets", "d", "--name", "strong", "--target", "20", "--dead", "1").code == 0
    assert run("thresholds", lake, "--datasets", "d", "--view", "strong").code == 0
    ran = run("detect", lake, *out, "--view", "strong", "--quiet")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "t/d holds tables of another run (view none, and of this strong); give another --out" in ran.err
    assert run("localise", lake, *out, "--view", "strong", "--quiet").code == 2
    ran = run("localise", lake, *out, "--name", "near", "--methods", "direct", "--quiet")
    assert ran.code == 2
    assert "holds tables of another run (name default, and of this near)" in ran.err
    assert stored() == before
    (tmp_path / "t/d/run.json").unlink()
    ran = run("detect", lake, *out, "--quiet")
    assert ran.code == 2
    assert "holds best.csv and no run.json that says what it is of; give another --out" in ran.err
    (tmp_path / "t/d/run.json").write_text("[]")
    ran = run("detect", lake, *out, "--quiet")
    assert ran.code == 2
    assert "run.json cannot be read" in ran.err


def test_what_is_undefined_is_a_dash_and_null(run: Run, tmp_path: Path) -> None:
    lake = build(str(tmp_path / "lake"), absent="test").lake.url
    assert run("thresholds", lake).code == 0
    ran = run("detect", lake)
    assert ran.code == 0, ran.err
    (line,) = [line.split() for line in ran.out.splitlines() if line.startswith("rare")]
    assert line[5:] == ["-"] * 5
    assert "-" not in line[:5]
    (one,) = [one for one in json.loads(run("detect", lake, "--json").out)[0]["best"] if one["concept"] == "rare"]
    assert one["unit"] is not None
    for name in ("f1_low", "f1_high", "always_yes_f1", "oracle_unit", "oracle_f1"):
        assert one[name] is None, name
    assert set(one["test"].values()) == {None}
    ran = run("report", "concepts", lake, "--out", tmp_path / "page.html")
    assert ran.code == 0, ran.err


def test_concepts_may_be_patterns(lake: str, run: Run) -> None:
    ran = run("thresholds", lake, "--datasets", "d", "--concepts", "shape::*", "red", "--json")
    assert ran.code == 0, ran.err
    assert [each["concept"] for each in json.loads(ran.out)[0]["concepts"]] == ["shape::cube", "red"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (["thresholds", "--concepts", "blue"], "no concept 'blue'"),
        (["thresholds", "--split", "dev"], "split 'dev' is unknown"),
        (["thresholds", "--percentiles", "0.9", "0.1"], "that ascend"),
        (["thresholds", "--view", "none"], "none"),
        (["thresholds", "--by", "row"], "'row'"),
        (["detect"], "saestore thresholds"),
        (["localise"], "saestore detect"),
        (["localise", "--methods", "guess"], "method 'guess' is unknown"),
        (["compare"], "saestore detect"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(lake: str, run: Run, line: list[str], part: str) -> None:
    ran = run(line[0], lake, "--datasets", "d", *line[1:])
    assert ran.code == 2, ran.err
    errors = [each for each in ran.err.splitlines() if each.startswith("error: ")]
    assert ran.err.splitlines()[-1:] == errors, ran.err
    assert part in errors[0]
