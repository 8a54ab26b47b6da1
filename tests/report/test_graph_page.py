"""The report of a feature graph: a whole page without a network, whose numbers are those of numpy on dense columns."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from PIL import Image
from scipy.sparse.csgraph import connected_components

from saestore.cli import main
from saestore.errors import InputError, MissingError
from saestore.report import graph_tables, graph_view
from saestore.report.graph_maps import clustered_order
from saestore.verbs import WrittenGraphReport, report_graph
from tests.report.graph_lakes import ENDS, HOSTILE, N_UNITS, GraphLake, graph_lake, make
from tests.report.read_page import Page, number

PAIRS = ((0, 0), (0, 1), (1, 1))
MIN_R = 0.3


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> GraphLake:
    made = graph_lake(str(tmp_path_factory.mktemp("graph") / "lake"))
    make(made)
    make(made, "dims", saes=None, min_r=0.2)
    make(made, "none", saes="s", min_r=0.99, null=True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def written(known: GraphLake, folder: Path) -> WrittenGraphReport:
    return report_graph(known.lake, out=folder / "g.html", data=folder / "numbers", png=folder / "figures", examples=3)


@pytest.fixture(scope="module")
def page(written: WrittenGraphReport) -> Page:
    return Page(written.path.read_text(encoding="utf-8"))


def dense_r(known: GraphLake) -> np.ndarray[Any, Any]:
    """All correlations of both ends' units, one end after the other."""
    return np.block([[known.r(a, b) for b in ENDS] for a in ENDS])


def adjacency(known: GraphLake) -> np.ndarray[Any, Any]:
    r = dense_r(known)
    np.fill_diagonal(r, 0)
    return np.where(np.abs(r) >= MIN_R, r, 0)


def place(end: str, unit: Any) -> int:
    return ENDS.index(end) * N_UNITS + int(unit)


def map_of(a: str, b: str) -> str:
    return f"correlation_{a}_{b}".replace("/", ".")


def test_the_page_stands_alone(written: WrittenGraphReport, page: Page) -> None:
    content = written.path.read_text(encoding="utf-8")
    assert content.startswith("<!DOCTYPE html>")
    ids = [each.attributes["id"] for each in page.every if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in page.every:
        assert each.tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in each.attributes if name.startswith(("on", "xlink"))]
        for name in ("href", "src", "action", "data", "poster", "srcset"):
            target = each.attributes.get(name, "#")
            assert target.startswith(("#", "data:image/png;base64,")), target
            assert not target.startswith("#") or target == "#" or target[1:] in ids
        for target in re.findall(r"url\(([^)]*)\)", " ".join(each.attributes.values())):
            assert target[1:] in ids
    for each in (*page.root.all("style"), *page.root.all("script")):
        if "type" not in each.attributes:
            assert "//" not in each.text.replace("// ", "")
            assert "@import" not in each.text
    assert written.bytes == len(content.encode())


def test_counts_of_the_summary_are_those_of_dense_columns(known: GraphLake, page: Page) -> None:
    found = adjacency(known)
    block = page.block("counts")
    for number_of, (kind, ends) in enumerate(zip(block["kind"], block["ends"], strict=True)):
        a, b = (ends, ends) if kind == "within" else ends.split(" x ")
        part = found[ENDS.index(a) * N_UNITS :][:N_UNITS, ENDS.index(b) * N_UNITS :][:, :N_UNITS]
        part = np.triu(part) if a == b else part
        assert block["edges"][number_of] == np.count_nonzero(part)
        assert block["positive"][number_of] == np.count_nonzero(part > 0)
        assert block["negative"][number_of] == np.count_nonzero(part < 0)
    assert len(block["kind"]) == 3
    words = page.by_id("summary-section").text
    connected = int((found != 0).any(axis=0).sum())
    assert f"{np.count_nonzero(np.triu(found)):,} pairs of units have |r| of 0.3 or more" in words
    assert f"{connected:,} of {2 * N_UNITS:,} units have edges" in words
    assert "1 dead" in words


def test_heat_maps_hold_all_correlations_in_one_order(known: GraphLake, page: Page, folder: Path) -> None:
    below = 0
    orders: dict[str, set[tuple[int, ...]]] = {end: set() for end in ENDS}
    for a, b in ((ENDS[a], ENDS[b]) for a, b in PAIRS):
        block = page.block(map_of(a, b))
        rows = block.pop("unit")
        columns = [int(name.removeprefix("unit_")) for name in block]
        expected = known.r(a, b)[np.ix_(rows, columns)]
        np.testing.assert_allclose(np.array(list(block.values())).T, expected, atol=1.1e-6)
        stored = np.load(folder / "numbers" / f"{map_of(a, b)}.npy", allow_pickle=False)
        np.testing.assert_allclose(stored, expected, atol=1e-6)
        below += np.count_nonzero((np.abs(expected) < MIN_R) & (expected != 0))
        orders[a].add(tuple(rows))
        orders[b].add(tuple(columns))
    assert below > 100  # those that are no edges are there too
    connected = (adjacency(known) != 0).any(axis=0)
    for end, found in orders.items():
        (order,) = found
        assert sorted(order) == [unit for unit in range(N_UNITS) if connected[place(end, unit)]]
    assert "All correlations are drawn" in page.by_id("maps-section").text
    assert len(page.root.all("figure", "heat")) == 3


def test_units_of_one_cause_stand_together() -> None:
    rng = np.random.default_rng(0)
    of = rng.permutation(np.repeat(np.arange(4), 5))
    r = np.where(of[:, None] == of, 0.8, 0.05)
    np.fill_diagonal(r, 1)
    found = of[clustered_order(r)]
    assert np.count_nonzero(np.diff(found)) == 3


def test_only_the_most_connected_units_are_drawn(
    known: GraphLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saestore.report.graph_maps.MOST_UNITS", 5)
    found = Page(report_graph(known.lake, out=tmp_path / "g.html", examples=0).path.read_text(encoding="utf-8"))
    degrees = np.count_nonzero(adjacency(known), axis=0)
    for number_of, end in enumerate(ENDS):
        own = degrees[number_of * N_UNITS :][:N_UNITS]
        drawn = found.block(map_of(end, end))["unit"]
        assert len(drawn) == 5
        assert min(own[drawn]) >= np.sort(own)[::-1][4]


def test_without_the_codes_the_edges_alone_are_drawn(tmp_path: Path) -> None:
    made = graph_lake(str(tmp_path / "lake"))
    make(made)
    shutil.rmtree(tmp_path / "lake/data/one/m/layer_4")
    found = Page(report_graph(made.lake, out=tmp_path / "g.html").path.read_text(encoding="utf-8"))
    words = found.by_id("maps-section").text
    assert "Only the edges are drawn, all else as 0: data/one/m/layer_4/codes/z/token is not in the lake" in words
    r = adjacency(made)
    np.fill_diagonal(r, 1)
    for a, b in ((ENDS[a], ENDS[b]) for a, b in PAIRS):
        block = found.block(map_of(a, b))
        rows = [place(a, unit) for unit in block.pop("unit")]
        columns = [place(b, name.removeprefix("unit_")) for name in block]
        np.testing.assert_allclose(np.array(list(block.values())).T, r[np.ix_(rows, columns)], atol=1.1e-6)
    assert f"{ENDS[1]} has no examples here" in found.by_id("walk-section").text


def test_degrees_and_components_are_those_of_the_adjacency(known: GraphLake, page: Page) -> None:
    found = adjacency(known)
    degrees = np.count_nonzero(found, axis=0)
    rows = page.rows("table-degrees")
    assert len(rows) == min(50, np.count_nonzero(degrees))
    for row in rows:
        at = place(row["end"].text, row["unit"].text)
        assert number(row["edges"]) == degrees[at]
        assert number(row["sum of |r|"]) == pytest.approx(np.abs(found[at]).sum(), abs=1e-5)
    listed = [number(row["edges"]) for row in rows]
    assert listed == sorted(degrees[degrees > 0], reverse=True)[: len(rows)]
    block = page.block("degrees")
    for end, degree, units in zip(*block.values(), strict=True):
        assert np.count_nonzero(degrees[place(end, 0) :][:N_UNITS] == degree) == units
    assert sum(block["units"]) == np.count_nonzero(degrees)
    strengths = page.block("strengths")
    values = found[np.triu(found) != 0]
    for low, high, edges in zip(*strengths.values(), strict=True):
        assert np.count_nonzero((values >= low) & (values < high)) == edges
    _, members = connected_components(scipy.sparse.csr_array(found), directed=False)
    sizes = np.bincount(members[degrees > 0])
    components = page.block("components")
    assert components["units"] == sorted(sizes[sizes > 0].tolist(), reverse=True)
    assert sum(components["edges"]) == np.count_nonzero(np.triu(found))
    counted = page.block("component_sizes")
    assert dict(zip(counted["units"], counted["components"], strict=True)) == {
        size: components["units"].count(size) for size in set(components["units"])
    }


def test_communities_name_their_strongest_members(known: GraphLake, page: Page) -> None:
    found = np.abs(adjacency(known))
    units = known.lake.open_graph().units()
    block = page.block("communities")
    sizes = units["community"].value_counts()
    assert dict(zip(block["community"], block["units"], strict=True)) == sizes.to_dict()
    shown = page.by_id("communities-section").all("details")
    assert len(shown) == sum(size > 2 for size in block["units"][:12])
    for details in shown:
        head = details.all("summary")[0].text
        community, size, edges = map(
            int, re.fullmatch(r"Community (\d+): (\d+) units, (\d+) edges inside", head).groups()
        )
        members = np.flatnonzero((units["community"] == community).fillna(value=False))
        inside = found[np.ix_(members, members)]
        assert (size, edges) == (len(members), np.count_nonzero(np.triu(inside)))
        first = details.all("h5")[0].text
        end, unit = first.split(": ")
        assert inside.sum(axis=0).max() == pytest.approx(inside[:, list(members).index(place(end, unit))].sum())


def test_the_strongest_edges_stand_with_examples_of_both_units(known: GraphLake, page: Page) -> None:
    found = np.triu(adjacency(known))
    strongest = np.sort(np.abs(found[found != 0]))[::-1][: graph_tables.MOST_EDGES]
    rows = page.rows("table-edges")
    for row, expected in zip(rows, strongest, strict=True):
        at = place(row["end a"].text, row["unit a"].text), place(row["end b"].text, row["unit b"].text)
        assert number(row["r"]) == pytest.approx(found[at], abs=1e-6)
        assert abs(number(row["r"]) or 0) == pytest.approx(expected, abs=1e-6)
        both = known.counted.copy()
        for end, unit in ((row["end a"], row["unit a"]), (row["end b"], row["unit b"])):
            both &= known.dense[end.text][:, int(unit.text)] != 0
        assert number(row["n ab"]) == both.sum()
    pairs = page.by_id("edges-section").all("div", "pair")
    assert len(pairs) == 3 * 8
    for one in pairs:
        sides = one.all("div", "card")
        assert len(sides) == 2
        for side in sides:
            end, unit = side.all("h5")[0].text.split(": ")
            values = np.where(known.counted, known.dense[end][:, int(unit)], 0)
            largest = [values[known.sample == sample].max() for sample in range(int(known.sample[-1]) + 1)]
            shown = [float(each.text) for each in side.all("span", "value")]
            assert shown == pytest.approx(sorted(largest, reverse=True)[:3], rel=6e-3)
            assert all(each.text in known.words for each in side.all("b"))


def test_the_view_has_the_strongest_edges_and_says_so(
    known: GraphLake, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.triu(adjacency(known))
    monkeypatch.setattr(graph_view, "MOST_EDGES", 7)
    cut = Page(report_graph(known.lake, out=tmp_path / "g.html", examples=1).path.read_text(encoding="utf-8"))
    for one, count in ((page, np.count_nonzero(whole)), (cut, 7)):
        units, edges = one.block("graph_units"), one.block("graph_edges")
        found = np.zeros_like(whole)
        for a, b, r in zip(edges["place_a"], edges["place_b"], edges["r"], strict=True):
            found[tuple(place(units["end"][at], units["unit"][at]) for at in (a, b))] = r
        least = np.sort(np.abs(whole[whole != 0]))[::-1][count - 1]
        np.testing.assert_allclose(found, np.where(np.abs(whole) >= least, whole, 0), atol=1e-6)
        degrees = np.count_nonzero(adjacency(known), axis=0)
        assert units["edges"] == [degrees[place(*node)] for node in zip(units["end"], units["unit"], strict=True)]
        examples = one.block("graph_examples")
        assert set(examples["unit_place"]) == set(range(len(units["unit"])))
        assert len(examples["value"]) == (3 if one is page else 1) * len(units["unit"])
    told = "The page holds the strongest 7 of"
    assert told in cut.by_id("walk-section").text
    assert told not in page.by_id("walk-section").text


def test_the_same_graph_gives_the_same_bytes(known: GraphLake, written: WrittenGraphReport, tmp_path: Path) -> None:
    again = report_graph(known.lake, out=tmp_path / "g.html", examples=3)
    assert again.path.read_bytes() == written.path.read_bytes()
    stamped = report_graph(known.lake, out=tmp_path / "s.html", examples=3, stamp="today").path.read_text("utf-8")
    assert "one file. today" in stamped


def test_numbers_and_pictures_are_files_too(written: WrittenGraphReport, page: Page, folder: Path) -> None:
    blocks = [each for each in page.root.all("script") if each.attributes.get("type") == "application/json"]
    tables = [file for file in written.data if file.suffix == ".csv"]
    assert sorted(file.stem for file in tables) == sorted(each.attributes["id"] for each in blocks)
    for file in tables:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
        columns = page.block(file.stem)
        assert rows[0] == list(columns)
        shown = [["" if value is None else str(value) for value in row] for row in zip(*columns.values(), strict=True)]
        assert rows[1:] == shown
    assert sorted(file.stem for file in written.data if file.suffix == ".npy") == sorted(
        map_of(ENDS[a], ENDS[b]) for a, b in PAIRS
    )
    assert sorted(file.stem for file in written.pictures) == sorted(
        ["degrees", *(map_of(ENDS[a], ENDS[b]) for a, b in PAIRS)]
    )
    for file in written.pictures:
        with Image.open(file) as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_hostile_texts_and_labels_do_nothing(known: GraphLake, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    with open(labels, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["layer", "unit", "label"])
        rows.writerows([[layer, unit, f"{unit} {HOSTILE}"] for layer in (3, 4) for unit in range(N_UNITS)])
    out = tmp_path / "g.html"
    assert (
        main(["report", "graph", known.lake.url, "--out", str(out), "--labels", str(labels), "--examples", "40"]) == 0
    )
    content = out.read_text(encoding="utf-8")
    assert "<img" not in content
    found = Page(content)  # which refuses elements that are not closed
    assert len(found.root.all("script")) == content.count("</script>")
    assert set(found.block("graph_units")["label"]) <= {f"{unit} {HOSTILE}" for unit in range(N_UNITS)}
    (row, *_) = found.rows("table-degrees")
    assert row["label"].text == f"{row['unit'].text} {HOSTILE}"
    assert any("<script>" in text for text in found.block("graph_examples")["after"])


def test_graphs_of_activations_have_no_counts_of_rows(known: GraphLake, tmp_path: Path) -> None:
    found = Page(report_graph(known.lake, graph="dims", out=tmp_path / "g.html").path.read_text(encoding="utf-8"))
    rows = found.rows("table-edges")
    assert {frozenset((row["unit a"].text, row["unit b"].text)) for row in rows} == {
        frozenset("01"),
        frozenset("02"),
        frozenset("12"),
    }
    assert "n ab" not in rows[0]
    block = found.block(map_of("layer_3", "layer_3"))
    r = np.corrcoef(known.activations[known.counted].astype(np.float64), rowvar=False)
    order = block.pop("unit")
    np.testing.assert_allclose(np.array(list(block.values())), r[np.ix_(order, order)], atol=1.1e-6)
    assert set(found.block("graph_units")["active"]) == {None}


def test_a_graph_without_edges_is_told(known: GraphLake, tmp_path: Path) -> None:
    found = Page(report_graph(known.lake, graph="none", out=tmp_path / "g.html").path.read_text(encoding="utf-8"))
    for section in ("walk", "edges", "degrees", "components", "communities", "maps"):
        assert found.by_id(f"{section}-section").all("p", "absent"), section
    assert "random order (seed 42) 0 pairs are kept" in found.by_id("summary-section").text


def test_codes_without_postings_are_drawn_without_examples(tmp_path: Path) -> None:
    made = graph_lake(str(tmp_path / "lake"), postings=False)
    make(made)
    found = Page(report_graph(made.lake, out=tmp_path / "g.html").path.read_text(encoding="utf-8"))
    words = found.by_id("walk-section").text
    for end in ENDS:
        assert f"{end} has no examples here: data/one/m/{end.split('/')[0]}/codes" in words
    assert "saestore index" in words
    assert found.block("graph_examples")["value"] == []
    assert "All correlations are drawn" in found.by_id("maps-section").text


def test_mistakes_are_told(known: GraphLake, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no graph 'other'"):
        report_graph(known.lake, graph="other", out=tmp_path / "g.html")
    with pytest.raises(InputError, match="examples -1 is below 0"):
        report_graph(known.lake, out=tmp_path / "g.html", examples=-1)
    with pytest.raises(InputError, match="is a folder"):
        report_graph(known.lake, out=tmp_path)
    assert not (tmp_path / "g.html").exists()


@pytest.mark.browser
def test_a_reader_finds_a_unit_and_walks_on(known: GraphLake, written: WrittenGraphReport, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("NO BROWSER TEST: Chromium is not installed; apt-get install chromium")
    walk = """
    var tell = function () {
      return { here: document.querySelector('.node.here').getAttribute('aria-label').trim(),
               nodes: document.querySelectorAll('#walk-drawn .node').length,
               lines: document.querySelectorAll('#walk-drawn line:not(.faint)').length,
               listed: document.querySelectorAll('#walk-told [data-go]').length };
    };
    var find = document.getElementById('walk-find'), seen = [];
    find.value = 'layer_4 7';
    find.dispatchEvent(new Event('input'));
    var offered = document.querySelectorAll('#walk-found button');
    seen.push(offered[0].textContent);
    offered[0].click();
    seen.push(tell());
    document.querySelector('#walk-drawn .node:not(.here)').dispatchEvent(new Event('click'));
    seen.push(tell());
    document.querySelector('#walk-told [data-go]').click();
    document.getElementById('walk-back').click();
    document.getElementById('walk-back').click();
    seen.push(tell());
    var out = document.createElement('pre');
    out.id = 'seen';
    out.textContent = JSON.stringify(seen);
    document.body.appendChild(out);
    """
    content = written.path.read_text(encoding="utf-8").replace("</body>", f"<script>{walk}</script></body>")
    (tmp_path / "walk.html").write_text(content, encoding="utf-8")
    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1200,3000", "--dump-dom", (tmp_path / "walk.html").as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=120,
        text=True,
    ).stdout
    offered, first, second, back = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', shown, re.DOTALL)[1])
    degrees = np.count_nonzero(adjacency(known), axis=0)
    asked = int(degrees[place(ENDS[1], 7)])
    assert offered == f"{ENDS[1]}: 7 ({asked})"
    assert first == {"here": f"Unit {ENDS[1]}: 7", "nodes": asked + 1, "lines": asked, "listed": asked}
    end, unit = second["here"].removeprefix("Unit ").split(": ")
    assert adjacency(known)[place(ENDS[1], 7), place(end, unit)] != 0
    assert second["listed"] == degrees[place(end, unit)]
    assert back == first
