"""The report of probes: a whole page without a network, whose numbers are those of the results by brute force."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import sample_table, write_activations
from PIL import Image

from saestore.cli import main
from saestore.errors import DependencyError, InputError, MissingError
from saestore.lake import Lake
from saestore.layout import ActivationsKey
from saestore.probe_results import ProbedCell
from saestore.tables import write_samples
from saestore.verbs import report_probes
from tests.report.probed_lakes import (
    BASELINES,
    FLIPPED,
    POSITIVES,
    SIZES,
    TEST,
    add_dataset,
    probe,
    probed_lake,
    published_tables,
    write,
)
from tests.report.read_page import Page, number

DATASETS = ("5_b", "41_a", "7_c", "100_d")
NATURAL = ["5_b", "7_c", "41_a", "100_d"]
KEY = "lake-m-last-default"
COMPETING = ("sae_10, k=16", "sae_10, k=128")
FIGURES = ("settings", "k", "scatter", "cells", "quiver", "ood", "layers")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = probed_lake(str(tmp_path_factory.mktemp("probed") / "lake"), datasets=DATASETS)
    write_samples(made.storage, "9_never", sample_table(4))
    return made


@pytest.fixture(scope="module")
def page(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Page:
    written = report_probes(lake, out=tmp_path_factory.mktemp("page") / "r.html")
    return Page(written.path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(lake: Lake) -> Rows:
    """Every probe of the second layer as one line, straight from the stored results."""
    return list(lines(lake, "layer_20"))


def lines(lake: Lake, layer: str) -> Iterator[dict[str, Any]]:
    for result in lake.probes():
        if result.key.layer != layer:
            continue
        for cell in result.cells:
            for one in cell.probes:
                yield {
                    "dataset": result.key.dataset,
                    "setting": result.setting,
                    "probe": result.method if result.sae is None else f"{result.sae}, k={one.k}",
                    "cell": {"scarcity": cell.num_train, "imbalance": cell.fraction, "label_noise": cell.fraction}.get(
                        result.setting, 0
                    ),
                    "auc": one.test_auc,
                    "val": one.val_auc,
                    "shared": cell.shared,
                }


def quiver(rows: Rows, setting: str, *, saes: bool) -> dict[tuple[str, Any], tuple[float, str]]:
    """Test AUC and probe that validation chooses of each training set that has both kinds, ties by hand."""
    order = [*BASELINES, *(COMPETING if saes else ())]
    cells = {(row["dataset"], row["cell"]) for row in rows if row["setting"] == setting and row["probe"] in COMPETING}
    chosen = {}
    for place in cells:
        mine = {
            row["probe"]: row
            for row in rows
            if row["setting"] == setting and (row["dataset"], row["cell"]) == place and row["probe"] in order
        }
        best = max(mine, key=lambda name: (-1.0 if (val := mine[name]["val"]) is None else val, -order.index(name)))
        chosen[place] = mine[best]["auc"], best
    return chosen


def over_tasks(values: dict[tuple[str, Any], float]) -> tuple[int, float, float]:
    """Tasks, the mean over tasks of the mean over their training sets, and its standard error."""
    tasks = {name: [value for (of, _), value in values.items() if of == name] for name, _ in values}
    means = [sum(each) / len(each) for each in tasks.values()]
    mean = sum(means) / len(means)
    if len(means) == 1:
        return 1, mean, math.nan
    spread = math.sqrt(sum((each - mean) ** 2 for each in means) / (len(means) - 1))
    return len(means), mean, spread / math.sqrt(len(means))


def of_probe(rows: Rows, setting: str, name: str) -> dict[tuple[str, Any], float]:
    return {
        (row["dataset"], row["cell"]): row["auc"] for row in rows if row["setting"] == setting and row["probe"] == name
    }


def block(page: Page, name: str) -> Rows:
    columns = page.block(f"{KEY}.{name}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def close(found: float | None, expected: float) -> bool:
    return (found is None and math.isnan(expected)) or found == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------- the page


def test_the_page_stands_alone(page: Page, lake: Lake, tmp_path: Path) -> None:
    ids = [each.attributes["id"] for each in page.every if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in page.every:
        assert each.tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "image")
        for name in ("href", "src"):
            target = each.attributes.get(name, "#")
            assert target.startswith("#")
            assert target == "#" or target[1:] in ids
        for target in re.findall(r"url\(([^)]*)\)", " ".join(each.attributes.values())):
            assert target[1:] in ids
    assert len(page.root.all("svg")) == len(FIGURES)
    first, second = (report_probes(lake, out=tmp_path / name).path.read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    stamped = report_probes(lake, out=tmp_path / "c.html", stamp="today").path.read_text(encoding="utf-8")
    assert Page(stamped).root.all("footer")[0].text.endswith("today")


def test_numbers_and_figures_are_files_too(lake: Lake, page: Page, tmp_path: Path) -> None:
    written = report_probes(lake, out=tmp_path / "r.html", data=tmp_path / "numbers", png=tmp_path / "figures")
    blocks = {each.attributes["id"] for each in page.root.all("script") if "id" in each.attributes}
    names = {path.relative_to(tmp_path / "numbers").with_suffix("").as_posix() for path in written.data}
    assert {name.replace("/", ".") for name in names} == blocks
    assert {f"{KEY}/{name}" for name in (*FIGURES, "tasks", "skipped")} | {"summary", "unprobed"} == names
    for path in written.data:
        name = path.relative_to(tmp_path / "numbers").with_suffix("").as_posix().replace("/", ".")
        found = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        for column, values in page.block(name).items():
            assert [row[column] for row in found] == ["" if value is None else str(value) for value in values]
    assert {path.relative_to(tmp_path / "figures").as_posix() for path in written.pictures} == {
        f"{KEY}/{name}.png" for name in FIGURES
    }
    for path in written.pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("L"))
            assert min(pixels.shape) > 500
            assert pixels.max() == 255 > pixels.min() + 50


def test_the_page_says_what_its_numbers_do_not(page: Page, rows: Rows) -> None:
    told = page.by_id("caveats").text
    assert "validation AUC, which is optimistic" in told
    assert "at most 3 rows train" in told
    shared = [4 * place / TEST for place in range(len(DATASETS))]
    assert f"over 4 data sets {sum(shared) / len(shared):.1%} of the test rows have the text" in told


# ----------------------------------------------------------------- the numbers


def test_bars_of_settings_are_means_over_tasks_of_common_training_sets(page: Page, rows: Rows) -> None:
    found = block(page, "settings")
    assert [row["setting"] for row in found] == [
        name for name in ("normal", "scarcity", "imbalance", "label_noise", "ood") for _ in range(2)
    ]
    for row in found:
        pair = [of_probe(rows, row["setting"], name) for name in ("logreg", "sae_10, k=128")]
        common = pair[0].keys() & pair[1].keys()
        mine = {place: value for place, value in pair[row["role"] == "SAE"].items() if place in common}
        assert row["probe"] == ("sae_10, k=128" if row["role"] == "SAE" else "logreg")
        tasks, mean, se = over_tasks(mine)
        assert (row["datasets"], row["cells"]) == (tasks, len(mine))
        assert close(row["mean"], mean)
        assert close(row["se"], se)
    # One task is too small for the largest training set.
    assert next(row["cells"] for row in found if row["setting"] == "scarcity") == len(DATASETS) * len(SIZES) - 1


def test_every_probe_has_its_mean_in_the_table(page: Page, rows: Rows) -> None:
    shown = page.rows("table-means-1")
    names = {(row["setting"], row["probe"]) for row in rows}
    assert len(shown) == len(names)
    settings = {"label noise": "label_noise", "out of distribution": "ood"}
    for row in shown:
        setting = settings.get(row["setting"].text, row["setting"].text)
        name = f"{row['SAE'].text}, k={row['k'].text}" if row["SAE"].text else row["method"].text
        tasks, mean, _ = over_tasks(of_probe(rows, setting, name))
        assert number(row["data sets"]) == tasks
        assert number(row["mean test AUC"]) == pytest.approx(mean, abs=1e-12)


def test_lines_by_k_are_means_of_the_normal_setting(page: Page, rows: Rows) -> None:
    found = block(page, "k")
    assert [(row["sae"], row["k"]) for row in found] == [
        *(("", None) for _ in BASELINES), *(("sae_2", k) for k in (1, 16, 128)), *(("sae_10", k) for k in (1, 16, 128))
    ]  # fmt: skip
    for row in found:
        tasks, mean, se = over_tasks(of_probe(rows, "normal", row["probe"]))
        assert row["datasets"] == tasks
        assert close(row["mean"], mean)
        assert close(row["se"], se)
    best = max((row for row in found if not row["sae"]), key=lambda row: row["mean"])
    assert f"The broken line is {best['probe']} ({best['mean']:.4f})" in page.by_id("k-1").text


def test_points_are_the_choices_of_quivers_and_single_probes(page: Page, rows: Rows) -> None:
    found = block(page, "scatter")
    without, with_saes = (quiver(rows, "normal", saes=saes) for saes in (False, True))
    for comparison in ("quiver", "alone"):
        mine = [row for row in found if row["comparison"] == comparison]
        assert [row["dataset"] for row in mine] == NATURAL
        differences = {}
        for row in mine:
            place = (row["dataset"], 0)
            if comparison == "quiver":
                expected = (*without[place], *with_saes[place])
            else:
                one, other = (of_probe(rows, "normal", name)[place] for name in ("logreg", "sae_10, k=128"))
                expected = (one, "logreg", other, "sae_10, k=128")
            assert (row["without"], row["probe_without"], row["with"], row["probe_with"]) == expected
            differences[place] = row["with"] - row["without"]
        _, mean, se = over_tasks(differences)
        assert f"{mean:+.4f} ± {se:.4f} (mean and standard error over 4 data sets" in page.by_id("scatter-1").text


def test_curves_are_quivers_cell_by_cell(page: Page, rows: Rows) -> None:
    found = block(page, "cells")
    cells = {"scarcity": SIZES, "imbalance": POSITIVES, "label_noise": FLIPPED}
    assert [(row["setting"], row["cell"]) for row in found] == [
        (setting, pytest.approx(cell)) for setting, each in cells.items() for cell in each
    ]
    for row in found:
        arms = [
            {place: auc for place, (auc, _) in quiver(rows, row["setting"], saes=saes).items()}
            for saes in (False, True)
        ]
        if row["setting"] == "label_noise":
            arms = [of_probe(rows, "label_noise", name) for name in ("logreg", "sae_10, k=128")]
        here = [{place: auc for place, auc in arm.items() if place[1] == pytest.approx(row["cell"])} for arm in arms]
        (tasks, without, se), (_, both, se_with) = map(over_tasks, here)
        assert row["datasets"] == tasks
        assert close(row["without"], without)
        assert close(row["with"], both)
        assert close(row["delta"], both - without)
        assert close(row["band"], 1.96 * math.sqrt(se**2 + se_with**2))
        paired = over_tasks({place: here[1][place] - auc for place, auc in here[0].items()})
        assert close(row["se_paired"], paired[2])
    assert {row["datasets"] for row in found if row["cell"] == SIZES[-1]} == {len(DATASETS) - 1}


def test_bars_of_the_quiver_count_what_validation_chose(page: Page, rows: Rows) -> None:
    found = block(page, "quiver")
    for setting in ("normal", "scarcity", "imbalance"):
        mine = {row["method"]: row for row in found if row["setting"] == setting}
        assert list(mine) == [*BASELINES, *COMPETING, "quiver", "quiver with SAEs"]
        arms = [quiver(rows, setting, saes=saes) for saes in (False, True)]
        for name in (*BASELINES, *COMPETING):
            chosen = sum(probe == name for _, probe in arms[1].values())
            assert mine[name]["chosen"] == chosen
            assert close(mine[name]["share"], chosen / len(arms[1]))
            values = of_probe(rows, setting, name)
            assert close(mine[name]["mean"], over_tasks(values)[1])
            validated = {
                (row["dataset"], row["cell"]): row["val"]
                for row in rows
                if (row["setting"], row["probe"]) == (setting, name) and row["val"] is not None
            }
            assert close(mine[name]["mean_val"], over_tasks(validated)[1])
        for name, arm in zip(("quiver", "quiver with SAEs"), arms, strict=True):
            _, mean, se = over_tasks({place: auc for place, (auc, _) in arm.items()})
            assert close(mine[name]["mean"], mean)
            assert close(mine[name]["se"], se)
            assert mine[name]["chosen"] is None
    assert not [row for row in found if row["setting"] in ("label_noise", "ood")]


def test_out_of_distribution_every_data_set_has_its_bars(page: Page, rows: Rows) -> None:
    found = block(page, "ood")
    assert [row["dataset"] for row in found] == NATURAL
    for row in found:
        assert row["baseline"] == of_probe(rows, "ood", "logreg")[row["dataset"], 0]
        assert row["sae"] == of_probe(rows, "ood", "sae_10, k=128")[row["dataset"], 0]


def test_layers_have_the_means_of_their_methods(page: Page, lake: Lake) -> None:
    found = block(page, "layers")
    assert list(dict.fromkeys(row["layer"] for row in found)) == ["layer_9", "layer_20"]
    for layer in ("layer_9", "layer_20"):
        mine = {row["method"]: row for row in found if row["layer"] == layer}
        assert list(mine) == [*BASELINES, "SAE probe", "quiver", "quiver with SAEs"]
        rows = list(lines(lake, layer))
        for name in BASELINES:
            assert close(mine[name]["mean"], over_tasks(of_probe(rows, "normal", name))[1])
        saes = dict.fromkeys(row["probe"] for row in rows if row["setting"] == "normal" and "k=" in row["probe"])
        vals = {
            name: np.mean([row["val"] for row in rows if (row["setting"], row["probe"]) == ("normal", name)])
            for name in saes
        }
        assert vals[mine["SAE probe"]["probe"]] == max(vals.values())
        assert close(mine["SAE probe"]["mean"], over_tasks(of_probe(rows, "normal", mine["SAE probe"]["probe"]))[1])


def test_the_table_has_a_line_for_each_data_set(page: Page, rows: Rows) -> None:
    shown = page.rows("table-tasks-1")
    assert [row["data set"].text for row in shown] == NATURAL
    quivers = [quiver(rows, "normal", saes=saes) for saes in (False, True)]
    for row in shown:
        name = row["data set"].text
        assert (row["0"].text, row["1"].text, row["samples"].text) == ("no", "yes", "6")
        assert (number(row["train"]), number(row["test"])) == (400, TEST)
        assert number(row["leak"]) == 4 * DATASETS.index(name) / TEST
        aucs = {method: of_probe(rows, "normal", method)[name, 0] for method in BASELINES}
        aucs["SAE probe"] = of_probe(rows, "normal", "sae_10, k=128")[name, 0]
        for method, value in aucs.items():
            assert number(row[method]) == value
        assert number(row["quiver"]) == quivers[0][name, 0][0]
        assert number(row["quiver with SAEs"]) == quivers[1][name, 0][0]
        assert row["best"].text == max(aucs, key=aucs.__getitem__)


def test_what_was_not_probed_is_listed_with_its_reason(page: Page) -> None:
    (row,) = block(page, "skipped")
    assert row == {
        "dataset": "5_b",
        "setting": "scarcity",
        "methods": "knn, logreg, mlp, pca, sae-l1, xgboost",
        "cells": 1,
        "reason": "too few rows of equal classes",
    }
    (never,) = page.rows("table-unprobed")
    assert never["data set"].text == "9_never"
    assert "no label column named label or target" in never["reason"].text


# ------------------------------------------------------------ what is not there


def test_figures_without_results_are_absent_and_say_why(tmp_path: Path) -> None:
    lake = probed_lake(str(tmp_path / "lake"), layers=("layer_9",), saes=(), settings=("normal",))
    written = report_probes(lake, out=tmp_path / "r.html", png=tmp_path / "figures", data=tmp_path / "numbers")
    page = Page(written.path.read_text(encoding="utf-8"))
    assert [path.name for path in written.pictures] == ["settings.png"]
    assert len(page.root.all("svg")) == 1
    for kind, words in {
        "k": "There are no SAE probes in the normal setting",
        "scatter": "No data set has a method without an SAE and an SAE probe",
        "cells": "No method without an SAE and SAE probe were fitted on the same training sets",
        "quiver": "A quiver needs methods without an SAE and SAE probes",
        "ood": "No probe was tested out of distribution",
        "layers": "probed at one layer alone",
        "skipped": "Nothing of these results was skipped",
    }.items():
        section = page.by_id(f"{kind}-1")
        assert words in section.all("p", "absent")[0].text
        assert not section.all("svg")
        assert f"{KEY}.{kind}" not in [each.attributes.get("id") for each in page.every]
    assert len(page.rows("table-tasks-1")) == 3


def test_sae_probes_alone_are_reported(tmp_path: Path) -> None:
    lake = probed_lake(str(tmp_path / "lake"), layers=("layer_9",))
    for path in (tmp_path / "lake").rglob("probes/last"):
        shutil.rmtree(path)
    page = Page(report_probes(lake, out=tmp_path / "r.html").path.read_text(encoding="utf-8"))
    assert {row["role"] for row in block(page, "settings")} == {"SAE"}
    assert len(block(page, "k")) == 6
    assert page.by_id("quiver-1").all("p", "absent")
    assert {row["sae"] for row in block(page, "ood")} != {None}
    assert "baseline" not in page.block(f"{KEY}.ood")


def test_a_lake_of_skipped_tasks_alone_is_reported(tmp_path: Path) -> None:
    lake = Lake.create(str(tmp_path / "lake"))
    add_dataset(lake, "tiny", ["layer_9"], [])
    cells = [ProbedCell(0, 0, None, 0, "6 rows of equal classes", (), ())]
    write(lake, ActivationsKey("tiny", "m", "layer_9", "last"), "normal", "logreg", cells)
    page = Page(report_probes(lake, out=tmp_path / "r.html").path.read_text(encoding="utf-8"))
    assert page.root.all("svg") == []
    assert [row["reason"] for row in block(page, "skipped")] == ["6 rows of equal classes"]
    assert page.by_id("tasks-1").all("p", "absent")


def test_one_data_set_has_no_standard_error(tmp_path: Path) -> None:
    lake = probed_lake(str(tmp_path / "lake"), datasets=["7_c"])
    page = Page(report_probes(lake, out=tmp_path / "r.html").path.read_text(encoding="utf-8"))
    assert {row["se"] for row in block(page, "settings")} == {None}
    assert {row["band"] for row in block(page, "cells")} == {None}


def test_results_of_other_names_and_tokens_have_their_places(tmp_path: Path) -> None:
    lake = probed_lake(str(tmp_path / "lake"), layers=("layer_9",), settings=("normal",))
    key = ActivationsKey("7_c", "m", "layer_9", "last")
    write(lake, key, "normal", "logreg", [_one(0.625)], name="again")
    tokens = ActivationsKey("7_c", "m", "layer_9", "token")
    write_activations(lake.storage, tokens, np.ones((9, 3), np.float32), "float32")
    write(lake, tokens, "multi_token", "attention", [_one(0.75)])
    written = report_probes(lake, out=tmp_path / "r.html")
    assert written.results == ("lake-m-last-again", KEY)
    page = Page(written.path.read_text(encoding="utf-8"))
    again = page.block("lake-m-last-again.settings")
    assert (again["probe"], again["mean"]) == (["logreg"], [0.625])
    mine = [row for row in block(page, "settings") if row["setting"] == "multi_token"]
    assert [(row["probe"], row["mean"]) for row in mine] == [("attention", 0.75)]


def _one(auc: float) -> ProbedCell:
    return ProbedCell(400, TEST, None, 0, "", (), (probe(None, (auc, auc)),))


# -------------------------------------------------------------- published tables


def test_published_results_have_a_chapter_of_their_own(lake: Lake, tmp_path: Path) -> None:
    tables = published_tables(tmp_path / "tables", saes=[f"16k/average_l0_{n}" for n in range(10, 110, 10)])
    written = report_probes(lake, out=tmp_path / "r.html", published=tmp_path / "tables")
    assert written.results == (KEY, "published-gemma-2-9b")
    page = Page(written.path.read_text(encoding="utf-8"))
    summary = page.block("summary")
    of = {
        (name, setting): value
        for name, setting, value in zip(summary["results"], summary["setting"], summary["baseline_auc"], strict=True)
    }
    normal = tables["baseline_probes_gemma-2-9b/normal_settings/layer20_results.csv"]
    expected = normal.loc[normal["method"] == "logreg", "test_auc"].mean()
    assert of["published-gemma-2-9b", "normal"] == pytest.approx(expected, abs=1e-12)
    assert (KEY, "normal") in of
    assert "were left out: their figures are those of the ordinary test rows" in page.by_id("caveats").text
    assert len(page.by_id("k-2").all("svg")) == 1
    assert "SAE probes that compete (20): " in page.by_id("quiver-2").text
    methods = page.block("published-gemma-2-9b.quiver")["method"]
    assert "SAE probes, k=16 (10)" in methods
    layers = page.block("published-gemma-2-9b.layers")["layer"]
    assert list(dict.fromkeys(layers)) == ["embed", "layer_9", "layer_20"]
    cells = page.block("published-gemma-2-9b.cells")
    assert [cell for cell, setting in zip(cells["cell"], cells["setting"], strict=True) if setting == "imbalance"] == [
        0.05, 0.4, 0.95,
    ]  # fmt: skip


def test_published_results_do_for_a_lake_without_any(tmp_path: Path) -> None:
    lake = Lake.create(str(tmp_path / "lake"))
    with pytest.raises(MissingError, match=r"has no results of probes; make some with: saestore probe"):
        report_probes(lake, out=tmp_path / "r.html")
    published_tables(tmp_path / "tables")
    written = report_probes(lake, out=tmp_path / "r.html", published=tmp_path / "tables")
    assert written.results == ("published-gemma-2-9b",)


# --------------------------------------------------------------- the command line


def test_the_command_writes_the_page_and_says_where(
    lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["report", "probes", lake.url, "--out", str(tmp_path / "a.html")]
    assert main([*line, "--data", str(tmp_path / "numbers"), "--png", str(tmp_path / "figures"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"] == [KEY]
    assert all(Path(path).is_file() for path in (*told["data"], *told["pictures"]))
    assert main(line) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.html'}: {KEY}; ")
    assert not list(tmp_path.rglob(".*partial"))


def test_mistakes_are_told(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is a folder; give the file to write"):
        report_probes(lake, out=tmp_path)
    with pytest.raises(MissingError, match="there is no folder"):
        report_probes(lake, out=tmp_path / "r.html", published=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for option in ("data", "png"):
        with pytest.raises(InputError, match=rf"cannot write .*choose another place with --{option}"):
            report_probes(lake, out=tmp_path / "r.html", **{option: tmp_path / "file"})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'saestore\[plot\]'"):
        report_probes(lake, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.browser
def test_a_browser_shows_the_page(lake: Lake, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("NO BROWSER TEST: Chromium is not installed; apt-get install chromium")
    written = report_probes(lake, out=tmp_path / "r.html")
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1200,3000", f"--screenshot={picture}", written.path.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(picture) as shown:
        colours = {colour for _, colour in shown.convert("RGB").getcolors(1 << 24)}
    assert {(0x1F, 0x5F, 0xA8), (0xD6, 0x54, 0x14)} <= colours
