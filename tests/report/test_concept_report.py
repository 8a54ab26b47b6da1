"""The report of concept detection: a whole page without a network, whose numbers are those that are stored."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saestore
from saestore.analysis.detection import Detection
from saestore.analysis.localisation import Localisation
from saestore.analysis.pruning import Criteria, prune
from saestore.cli import main
from saestore.codes import Codes
from saestore.errors import DependencyError, InputError, MissingError
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.report import units
from saestore.report.page import Data
from saestore.runs import RunRecord
from tests.analysis.concept_lake import KEY, build
from tests.built_lake import top_k, write_codes
from tests.report.read_page import Element, Page, number
from tests.report.report_lakes import GRID, HOSTILE, SIZES, TEXT_KEY, analyse, image_lake, text_lake

NAME = "pruned"


def same(found: list[Any], expected: Any) -> None:
    """Compare what JSON holds with numbers of which those that are not finite are null."""
    wanted = [
        None if isinstance(one, float) and not math.isfinite(one) else one for one in np.asarray(expected).tolist()
    ]
    assert found == wanted


def report(lake: Lake, datasets: str | None = None, *, view: str | None = NAME, **options: Any) -> tuple[Page, str]:
    folder = Path(options.pop("folder"))
    written = saestore.report_concepts(lake, datasets, view=view, out=folder / "report.html", **options)
    content = written.path.read_text(encoding="utf-8")
    assert written.bytes == len(content.encode())
    return Page(content), content


@pytest.fixture(scope="module", params=[(), (10, 25)], ids=["one part", "three parts"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codes:
    """Tokens with labels, a view, and all results, in one part and in three."""
    made = build(str(tmp_path_factory.mktemp("lake") / "lake"), n=60, d_sae=40, cuts=request.param)
    prune(made.codes, name=NAME, criteria=Criteria(dead=19, ubiquitous=0.42, strength_percentile=20))
    codes = made.codes.view(NAME)
    analyse(codes)
    return codes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Codes:
    folder = tmp_path_factory.mktemp("pictures")
    codes = image_lake(Lake.create(str(folder / "lake")), folder)
    analyse(codes)
    return codes


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Codes:
    codes = text_lake(Lake.create(str(tmp_path_factory.mktemp("words") / "lake")))
    analyse(codes)
    return codes


def lake_of(codes: Codes) -> Lake:
    return Lake(codes.group.storage)


# ------------------------------------------------------------------- the page


def test_the_page_stands_alone(known: Codes, pictures: Codes, words: Codes, tmp_path: Path) -> None:
    for codes, view in ((known, NAME), (pictures, None), (words, None)):
        page, content = report(lake_of(codes), view=view, folder=tmp_path)
        ids = [each.attributes["id"] for each in page.every if "id" in each.attributes]
        assert len(ids) == len(set(ids))
        for each in page.every:
            assert each.tag not in ("link", "iframe", "object", "embed", "base", "form")
            assert not [name for name in each.attributes if name.startswith(("on", "xlink"))]
            for name in ("href", "src", "action", "data", "poster", "srcset"):
                target = each.attributes.get(name, "#")
                assert target.startswith(("#", "data:image/jpeg;base64,")), target
                assert not target.startswith("#") or target == "#" or target[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", " ".join(each.attributes.values())):
                assert target[1:] in ids
        for each in (*page.root.all("style"), *page.root.all("script")):
            if "type" not in each.attributes:
                assert "//" not in each.text.replace("// ", "")
                assert "@import" not in each.text
        assert content.startswith("<!DOCTYPE html>")
        assert len(page.root.all("svg")) >= 2


def test_the_same_lake_gives_the_same_bytes(known: Codes, pictures: Codes, tmp_path: Path) -> None:
    for codes, view in ((known, NAME), (pictures, None)):
        _, first = report(lake_of(codes), view=view, folder=tmp_path)
        _, second = report(lake_of(codes), view=view, folder=tmp_path / "again")
        assert first == second
        page, stamped = report(lake_of(codes), view=view, folder=tmp_path, stamp="<made> today")
        assert page.root.all("footer")[0].text.endswith("<made> today")
        assert len(stamped) - len(first) == len(" &lt;made&gt; today")


def test_numbers_are_saved_as_csv_too(known: Codes, tmp_path: Path) -> None:
    written = saestore.report_concepts(
        lake_of(known), view=NAME, out=tmp_path / "report.html", data=tmp_path / "numbers"
    )
    page = Page(written.path.read_text(encoding="utf-8"))
    blocks = [each.attributes["id"] for each in page.root.all("script") if "id" in each.attributes]
    assert len(blocks) == len(written.data) == 7
    for path in written.data:
        name = path.relative_to(tmp_path / "numbers").with_suffix("").as_posix().replace("/", ".")
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        for column, values in page.block(name).items():
            assert [row[column] for row in rows] == ["" if value is None else str(value) for value in values]
    savers = {
        (each.attributes["data-of"], each.attributes["data-save"])
        for each in page.root.all("button", None)
        if "data-save" in each.attributes
    }
    assert savers == {(name, kind) for name in blocks for kind in ("csv", "json")}


def test_no_text_ends_a_block_of_numbers() -> None:
    from saestore.report.page import Section, _section

    hostile = Data("d", "x", {"a": ["</script><!--<script>", "\u2028", "&"], "b": [1.5, float("nan"), np.float32(2)]})
    page = Page(_section(Section("k", "t", "", (hostile,))))
    assert page.block("d.x") == {"a": ["</script><!--<script>", "\u2028", "&"], "b": [1.5, None, 2.0]}
    assert hostile.csv().splitlines()[0] == "a,b"


# ----------------------------------------------------------------- the numbers


def test_the_table_holds_the_numbers_of_the_best_units(known: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(known), folder=tmp_path)
    best = Detection.open(known).best()
    rows = page.rows("table-best-1")
    assert [row["concept"].text for row in rows] == [one.concept for one in best]
    assert any(one.unit is None for one in best)
    for row, one in zip(rows, best, strict=True):
        wanted = {
            "unit": one.unit,
            "percentile": one.percentile,
            "threshold": one.threshold,
            "rows": one.n_pos,
            "F1 cal": one.calibration.f1,
            "P test": one.test.precision,
            "R test": one.test.recall,
            "F1 test": one.test.f1,
            "95 % from": one.f1_low,
            "95 % to": one.f1_high,
            "always yes": one.always_yes_f1,
            "oracle F1 (not usable)": one.oracle_f1,
        }
        for name, value in wanted.items():
            expected = None if value is None or math.isnan(value) else value
            assert number(row[name]) == expected, name
            if expected is not None and name.startswith("F1"):
                assert row[name].text == f"{value:.3f}"
    block = page.block("d.best")
    same(block["calibration_recall"], [one.calibration.recall for one in best])
    same(block["test_f1"], [one.test.f1 for one in best])
    assert block["unit"] == [one.unit for one in best]


def test_curves_are_those_of_the_stored_counts(known: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(known), folder=tmp_path)
    detection = Detection.open(known)
    lines = page.block("d.curves")
    table = {split: detection.table(split) for split in detection.splits}
    usable = [one for one in detection.best(resamples=0) if one.unit is not None]
    assert len(lines["unit"]) == 12 * len(usable)
    for place, (concept, unit, level) in enumerate(
        zip(lines["concept"], lines["unit"], lines["percentile"], strict=True)
    ):
        for split, frame in table.items():
            row = frame[(frame.concept == concept) & (frame.unit == unit) & (frame.percentile == level)].iloc[0]
            assert lines["threshold"][place] == row.threshold
            below = 2 * row.tp + row.fp + row.fn
            assert lines[f"f1_{split}"][place] == pytest.approx(2 * row.tp / below if below else 0)
    assert len(page.root.all("div", "grid")[0].all("svg")) == len(usable)
    assert "No unit is active on rows of: rare." in page.by_id("curves-1").text


def test_units_are_drawn_from_the_statistics_of_the_view_s_split(known: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(known), folder=tmp_path)
    stats = Codes.open(known.group.storage, KEY).stats(split="cal")
    active = stats.count > 0
    block = page.block("d.units")
    same(block["unit"], stats.units[active])
    same(block["active_rows"], stats.count[active])
    same(block["fraction"], stats.fraction[active])
    same(block["p99"], stats.percentiles[active, stats.percentile_levels.index(0.99)])
    kept = set(known.kept_units.tolist())
    assert 0 < len(kept) < active.sum()
    assert block["kept"] == [int(unit in kept) for unit in stats.units[active]]
    cuts = dict(zip(*page.block("d.unit_cuts").values(), strict=True))
    assert cuts["least_fraction"] == 19 / stats.n_rows
    assert cuts["most_fraction"] == 0.42
    inside = stats.percentiles[known.kept_units, stats.percentile_levels.index(0.99)]
    assert cuts["least_p99"] == pytest.approx(inside.min())
    assert "by: dead 19, ubiquitous 0.42, strength_percentile 20." in page.by_id("units-1").text
    picture = page.root.all("div", "units")[0].all("svg")[0]
    crosses, circles = (f"not kept ({int(active.sum()) - len(kept)})", f"kept ({len(kept)})")
    assert {crosses, circles, "dead below", "ubiquitous above", "weak below"} <= set(
        each.text.strip() for each in picture.all("text")
    )


@pytest.mark.parametrize(("most", "are_kept_drawn"), [(20, True), (3, False)])
def test_many_units_are_counted_in_bins(
    known: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, are_kept_drawn: bool
) -> None:
    prune_to = Codes.open(known.group.storage, KEY)
    prune(prune_to, name="few", criteria=Criteria(target=15))
    analyse(prune_to.view("few"), localise=False)
    monkeypatch.setattr(units, "EACH", most)
    page, _ = report(lake_of(known), view="few", folder=tmp_path)
    stats = prune_to.stats(split="cal")
    p99 = stats.percentiles[:, stats.percentile_levels.index(0.99)]
    bins = page.block("d.unit_bins")
    drawn = len(page.block("d.units")["unit"]) if are_kept_drawn else 0
    assert drawn == (15 if are_kept_drawn else 0)
    assert sum(bins["units"]) + drawn == (stats.count > 0).sum()
    kept = np.isin(stats.units, prune_to.view("few").kept_units)
    largest = p99[stats.count > 0].max(), stats.fraction.max()
    for low_x, high_x, low_y, high_y, of_kept, count in zip(*bins.values(), strict=True):
        below_x = stats.fraction <= high_x if high_x == largest[1] else stats.fraction < high_x
        below_y = p99 <= high_y if high_y == largest[0] else p99 < high_y
        inside = (stats.fraction >= low_x) & below_x & (p99 >= low_y) & below_y
        assert count == (inside & (kept == bool(of_kept))).sum()
    assert "are counted in 48 x 48 bins" in page.by_id("units-1").text


def test_the_status_counts_samples_of_splits_and_names_what_is_partial(tmp_path: Path) -> None:
    made = build(str(tmp_path / "lake"), n=40)
    analyse(made.codes)
    page, _ = report(made.lake, view=None, folder=tmp_path)
    (row,) = page.rows("table-splits")
    for split in ("train", "cal", "test"):
        assert number(row[split]) == (made.split == split).sum()
    states = {row["what"].text: row for row in page.rows("table-states")}
    assert {row["state"].text for what, row in states.items() if what != "view"} == {"done"}
    assert states["view"]["state"].text == "missing"
    assert number(states["codes"]["written"]) == made.offsets[-1]
    ledger = next((tmp_path / "lake").rglob("detection/default/ledger/c.0*"))
    ledger.unlink()
    page, _ = report(made.lake, view=None, folder=tmp_path)
    states = {row["what"].text: row["state"].text for row in page.rows("table-states")}
    assert states["detection"] == "partial"
    assert states["thresholds"] == "done"
    assert "There is no detection to show" in page.by_id("best-1").text


def test_sizes_are_measured_and_times_are_those_on_record(known: Codes, tmp_path: Path) -> None:
    lake = lake_of(known)
    page, _ = report(lake, folder=tmp_path)
    sizes = {what: place for place, what in enumerate(page.block("sizes")["what"])}
    block = page.block("sizes")
    (codes,) = [group for group in lake.status() if group.kind == "codes"]
    assert block["bytes"][sizes["codes"]] == codes.stored_bytes
    assert block["bytes_per_row"][sizes["codes"]] == codes.stored_bytes / codes.rows
    assert block["bytes"][sizes["dense float32, all 40 units"]] == known.n_rows * 40 * 4
    kept = len(known.kept_units)
    assert block["bytes"][sizes[f"dense float32, {kept} units of the view"]] == known.n_rows * kept * 4
    if not lake.runs():
        assert "No run on record has encoded these codes." in page.by_id("costs").text
    record = RunRecord(lake.storage, "encode", {}, [])
    record.end("done", plan=[], outcome=[{"codes": known.parts[-1].key.path, "encoded_rows": 7}, {"codes": "other"}])
    page, _ = report(lake, folder=tmp_path)
    runs = page.block("runs")
    assert runs["encoded_rows"][-1] == 7
    stored = lake.runs()[-1]
    assert (runs["begun"][-1], runs["ended"][-1]) == (stored["begun"], stored["ended"])
    assert 0 <= runs["seconds"][-1] < 60


# -------------------------------------------------------------------- the maps


def test_maps_show_the_values_labels_and_predictions_of_every_position(known: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(known), folder=tmp_path)
    block = {name: np.array(values, dtype=object) for name, values in page.block("d.maps").items()}
    assert set(block["outcome"]) <= {"hit", "missed", "alarm", "unlabelled"}
    where = {one.concept: one for one in Localisation.open(known).best() if one.method == "direct"}
    best = {one.concept: one for one in Detection.open(known).best(resamples=0)}
    labels = lake_of(known).labels("d")
    samples = known.samples
    for concept, one in best.items():
        mine = block["concept"] == concept
        if one.unit is None:
            assert not mine.any()
            continue
        rows = block["row"][mine].astype(int)
        values = known.dense(rows, [one.unit])[:, 0]
        np.testing.assert_array_equal(block["value"][mine].astype(np.float32), values)
        np.testing.assert_array_equal(block["label"][mine].astype(int), labels.concept(concept)[rows])
        special = known.axis.special(rows)
        np.testing.assert_array_equal(block["special"][mine].astype(bool), special)
        cut, second = one.threshold, where[concept].threshold
        assert cut is not None
        assert second is not None
        for sample in dict.fromkeys(block["sample"][mine]):
            of = block["sample"][mine] == sample
            place = samples.index_of(sample)
            assert samples.split[place] == "test"
            own = np.where(special[of], 0, values[of])
            fires = bool((own >= np.float32(cut)).any())
            has = samples.concept(concept)[place]
            expected = {1: "hit", 0: "alarm", 255: "unlabelled"}[int(has)] if fires else "missed"
            assert set(block["outcome"][mine][of]) == {expected}
            assert fires or has == 1
            predicted = (own > 0) & (own >= np.float32(second)) & fires
            np.testing.assert_array_equal(block["predicted"][mine][of].astype(bool), predicted)
    # The strongest detected samples of the test split come first.
    unit = best["shape::cube"].unit
    assert unit is not None
    scores = {}
    for place in samples.of_split("test"):
        rows = known.axis.rows_of(np.array([place]))
        rows = rows[~known.axis.special(rows)]
        scores[str(samples.ids[place])] = known.dense(rows, [unit]).max(initial=0)
    first = block["sample"][block["concept"] == "shape::cube"][0]
    assert scores[first] == max(scores.values())


def test_texts_are_shown_as_they_are_and_hostile_ones_do_nothing(words: Codes, tmp_path: Path) -> None:
    page, content = report(lake_of(words), view=None, folder=tmp_path)
    blocks = [each for each in page.root.all("script") if "id" in each.attributes]
    assert len(page.root.all("script")) == len(blocks) + 1
    assert not [each for each in page.every if each.tag in ("img", "b")]
    assert "<script>alert" not in content
    shown = [each.text for each in page.root.all("p", "tokens")]
    assert f"specialirony {HOSTILE}" in shown
    strongest = next(each for each in page.root.all("p", "tokens") if HOSTILE in each.text)
    marked = strongest.all("span", "has")
    assert [each.text for each in marked] == ["irony"]
    assert marked[0].attributes["class"].split() == ["has", "found"]
    assert [each.text for each in strongest.all("span", "special")] == ["special"]
    (concept,) = words.samples.concept_names
    assert page.rows("table-best-1")[0]["concept"].text == concept
    for figure in page.root.all("figure", "of-text"):
        text = figure.all("p", "tokens")[0].text
        name = re.search(r"sample (\w+)", figure.all("figcaption")[0].text)
        assert name is not None
        place = words.samples.index_of(name[1])
        assert text == f"special{words.samples.contents()[place]}"


def test_images_have_their_patches_where_the_boxes_are(pictures: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(pictures), view=None, folder=tmp_path)
    (one,) = Detection.open(pictures).best(resamples=0)
    block = {name: np.array(values, dtype=object) for name, values in page.block("pictures.maps").items()}
    positions = pictures.positions
    assert positions is not None
    figures = page.root.all("figure", "of-image")
    names = list(dict.fromkeys(block["sample"]))
    assert len(figures) == len(names) >= 3
    sizes = set()
    for figure, name in zip(figures, names, strict=True):
        place = pictures.samples.index_of(name)
        rows = pictures.axis.rows_of(np.array([place]))
        boxes = positions.group.take("box", rows)
        values = pictures.dense(rows, [one.unit])[:, 0]  # type: ignore[list-item]
        svg = figure.all("svg")[0]
        size = SIZES[place % 3]
        sizes.add(size)
        assert [float(edge) for edge in svg.attributes["viewbox"].split()] == [0, 0, *size]
        cells = [
            [float(cell.attributes[edge]) for edge in ("x", "y", "width", "height")] for cell in svg.all("rect", "cell")
        ]
        wanted = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)[values > 0]
        np.testing.assert_allclose(cells, wanted, rtol=1e-4, atol=1e-3)
        mine = block["sample"] == name
        dots = svg.all("path", "predicted")
        centres = re.findall(r"M([\d.]+) ([\d.]+)h0", dots[0].attributes["d"]) if dots else []
        expected = ((boxes[:, :2] + boxes[:, 2:]) / 2)[block["predicted"][mine].astype(bool)]
        np.testing.assert_allclose(np.array(centres, float).reshape(-1, 2), expected, rtol=1e-4)
        assert _length(svg.all("path", "labelled")) == pytest.approx(
            _perimeter(boxes, block["label"][mine].astype(int).reshape(GRID)), rel=1e-3
        )
        (image,) = svg.all("image")
        small = Image.open(io.BytesIO(base64.b64decode(image.attributes["href"].partition(",")[2])))
        assert max(small.size) == 224
        assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.01)
        assert (image.attributes["width"], image.attributes["height"]) == tuple(map(str, size))
    assert len(sizes) > 1


def _length(paths: list[Element]) -> float:
    total = 0.0
    for path in paths:
        for x, y, way, end in re.findall(r"M([\d.]+) ([\d.]+)([HV])([\d.]+)", path.attributes["d"]):
            total += abs(float(end) - float(x if way == "H" else y))
    return total


def _perimeter(boxes: np.ndarray[Any, Any], has: np.ndarray[Any, Any]) -> float:
    total = 0.0
    for row, column in np.argwhere(has == 1):
        x0, y0, x1, y1 = boxes.reshape(*GRID, 4)[row, column]
        for down, right, length in ((-1, 0, x1 - x0), (1, 0, x1 - x0), (0, -1, y1 - y0), (0, 1, y1 - y0)):
            other = row + down, column + right
            inside = 0 <= other[0] < GRID[0] and 0 <= other[1] < GRID[1]
            total += 0 if inside and has[other] == 1 else float(length)
    return total


# ------------------------------------------------------------ what is not there


def test_images_without_files_are_a_grid_alone(tmp_path: Path) -> None:
    codes = image_lake(Lake.create(str(tmp_path / "lake")), None)
    analyse(codes)
    page, _ = report(lake_of(codes), view=None, folder=tmp_path)
    assert page.root.all("image") == []
    assert page.root.all("rect", "cell")
    assert "the grid of patches stands alone" in page.by_id("maps-1").text


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    codes = image_lake(Lake.create(str(tmp_path / "lake")), tmp_path)
    analyse(codes)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    page, _ = report(lake_of(codes), view=None, folder=tmp_path)
    assert page.root.all("image") == []
    assert page.root.all("rect", "cell")


def test_without_localisation_the_detection_s_own_threshold_marks_positions(tmp_path: Path) -> None:
    codes = text_lake(Lake.create(str(tmp_path / "lake")), labelled=False)
    analyse(codes, localise=False)
    page, _ = report(lake_of(codes), view=None, folder=tmp_path)
    assert "There is no localisation to show" in page.by_id("maps-1").text
    assert "the labels are those of whole samples" in page.by_id("maps-1").text
    assert "labels of samples" in page.by_id("dataset-1").text
    assert page.root.all("span", "found")
    assert not page.root.all("span", "has")
    (one,) = Detection.open(codes).best(resamples=0)
    block = page.block("words.maps")
    for value, special, predicted in zip(block["value"], block["special"], block["predicted"], strict=True):
        assert predicted == int(value > 0 and not special and value >= one.threshold)
    states = {row["what"].text: row["state"].text for row in page.rows("table-states")}
    assert states["labels"] == "missing"
    assert states["localisation"] == "missing"


def test_without_results_the_page_says_what_to_run(tmp_path: Path) -> None:
    made = build(str(tmp_path / "lake"))
    page, _ = report(made.lake, view=None, folder=tmp_path)
    for section in ("curves-1", "best-1", "maps-1"):
        assert "saestore detect" in page.by_id(section).text
    assert "saestore stats" in page.by_id("units-1").text
    assert page.root.all("svg") == []
    assert [
        row["state"].text for row in page.rows("table-states") if row["what"].text in ("thresholds", "detection")
    ] == [
        "missing",
        "missing",
    ]


def test_pooled_codes_have_no_maps(tmp_path: Path) -> None:
    from saestore.indexing.writer import index

    made = build(str(tmp_path / "lake"), n=60)
    rng = np.random.default_rng(0)
    key = CodesKey("d", "m", "layer_3", "s", "mean")
    dense = rng.choice([0, 0, 0.5, 1.0], (60, 24)).astype(np.float32)
    dense[made.samples[:, 0] == 1, 7] += 2
    write_codes(made.lake.storage, key, top_k(dense, 12))
    index(made.lake.storage, [key], quiet=True)
    analyse(Codes.open(made.lake.storage, key), localise=False)
    page, _ = report(made.lake, view=None, folder=tmp_path, sample_type="mean")
    assert "nothing to map" in page.by_id("maps-1").text
    assert page.rows("table-best-1")[0]["unit"].text == "7"


def test_fewer_maps_are_those_of_the_best_concepts(known: Codes, tmp_path: Path) -> None:
    page, _ = report(lake_of(known), folder=tmp_path, maps=1)
    best = [one for one in Detection.open(known).best(resamples=0) if one.unit is not None]
    assert set(page.block("d.maps")["concept"]) == {max(best, key=lambda one: one.calibration.f1).concept}
    assert "more with --maps" in page.by_id("maps-1").text
    page, _ = report(lake_of(known), folder=tmp_path, maps=0)
    assert not [each for each in page.every if each.attributes.get("id") == "d.maps"]


# --------------------------------------------------------------- the command line


def test_the_command_writes_the_page_of_several_datasets(
    words: Codes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake.create(str(tmp_path / "lake"))
    codes = text_lake(lake)
    analyse(codes)
    line = ["report", "concepts", lake.url, "--datasets", TEXT_KEY.dataset, "--out", str(tmp_path / "a.html")]
    assert main([*line, "--data", str(tmp_path / "numbers"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["datasets"] == [TEXT_KEY.dataset]
    assert all(Path(path).is_file() for path in told["data"])
    assert main(line) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.html'}: 1 dataset, ")
    Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert not list(tmp_path.glob(".*partial"))


def test_two_datasets_share_a_page(tmp_path: Path) -> None:
    lake = Lake.create(str(tmp_path / "lake"))
    analyse(text_lake(lake))
    text_lake(lake, key=CodesKey("more words", "m", "layer_3", "s", "token"))
    page, _ = report(lake, view=None, folder=tmp_path)
    assert [row["dataset"].text for row in page.rows("table-splits")] == ["more words", "words"]
    ids = [each.attributes["id"] for each in page.every if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    assert not [name for name in ids if " " in name]
    assert "There is no detection" in page.by_id("best-1").text
    assert page.rows("table-best-2")


def test_mistakes_are_told(known: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_of(known)
    with pytest.raises(MissingError, match="has no detection 'other'; it has default"):
        saestore.report_concepts(lake, view=NAME, detection="other", out=tmp_path / "r.html")
    with pytest.raises(MissingError, match="no view 'prunned'"):
        saestore.report_concepts(lake, view="prunned", out=tmp_path / "r.html")
    with pytest.raises(InputError, match="is a folder; give the file to write"):
        saestore.report_concepts(lake, view=NAME, out=tmp_path)
    with pytest.raises(InputError, match="maps -1 is below 0"):
        saestore.report_concepts(lake, view=NAME, out=tmp_path / "r.html", maps=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another place with --out"):
        saestore.report_concepts(lake, view=NAME, out=tmp_path / "file" / "r.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'saestore\[plot\]'"):
        saestore.report_concepts(lake, view=NAME, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_what_the_page_needs_is_packed_into_wheels() -> None:
    import tomllib

    root = Path(saestore.__file__).parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["saestore"]
    packed = {path for pattern in patterns for path in root.glob(pattern)}
    needed = {path for path in (root / "report").iterdir() if path.is_file() and path.suffix != ".py"}
    assert len(needed) == 3
    assert needed <= packed
