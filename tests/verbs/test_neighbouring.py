"""Neighbours of a unit: edges as numpy correlates dense columns, and the strongest rows by brute force."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saestore.cli import main
from saestore.errors import InputError, MissingError
from saestore.verbs import GraphUnit, neighbours
from tests.report.graph_lakes import ENDS, N_UNITS, GraphLake, graph_lake, make


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> GraphLake:
    made = graph_lake(str(tmp_path_factory.mktemp("graph") / "lake"))
    make(made)
    make(made, "train", split=["train"], where="position < 6 and position > 1")
    make(made, "dims", saes=None, min_r=0.2)
    make(made, "pooled", pooling="mean", saes="s", min_r=0.2, max_base_rate=1.0)
    return made


def strongest(known: GraphLake, end: str, unit: int, n: int, rows: Any, *, signed: bool) -> list[tuple[float, str]]:
    """The n strongest rows, of codes one of each sample, with the word that stands there."""
    values = known.of(end)[:, unit]
    size = values if signed else np.abs(values)
    order = [row for row in np.argsort(-size, kind="stable") if rows[row] and (signed or values[row])]
    if not signed:
        seen: set[int] = set()
        order = [row for row in order if not (known.sample[row] in seen or seen.add(int(known.sample[row])))]
    return [(float(values[row]), known.words[row]) for row in order[:n]]


def shown(unit: GraphUnit) -> list[tuple[float, str]]:
    return [(example.value, example.place.marked) for example in unit.examples]


@pytest.mark.parametrize("end", ENDS)
def test_edges_are_those_of_dense_columns_and_examples_the_strongest_rows(known: GraphLake, end: str) -> None:
    unit = 5
    r = {(other, place): value for other in ENDS for place, value in enumerate(known.r(end, other)[unit])}
    del r[end, unit]
    expected = sorted((node for node in r if abs(r[node]) >= 0.3), key=lambda node: -abs(r[node]))
    assert len(expected) > 4
    found = neighbours(known.lake, unit=unit, end=end, n=100, examples=4)
    assert [(edge.other.end, edge.other.unit) for edge in found.edges] == expected
    assert found.n_edges == found.unit.degree == len(expected)
    active = {other: (known.dense[other][known.counted] != 0) for other in ENDS}
    n = int(known.counted.sum())
    for edge in found.edges:
        node = edge.other.end, edge.other.unit
        a, b = active[end][:, unit], active[node[0]][:, node[1]]
        assert edge.r == pytest.approx(r[node], abs=1e-6)
        assert (edge.n_a, edge.n_b, edge.n_ab) == (a.sum(), b.sum(), (a & b).sum())
        assert edge.lift == pytest.approx((a & b).sum() * n / (a.sum() * b.sum()))
        assert edge.jaccard == pytest.approx((a & b).sum() / (a | b).sum())
    for one in (found.unit, *(edge.other for edge in found.edges)):
        assert shown(one) == strongest(known, one.end, one.unit, 4, known.counted, signed=False)
        assert one.active == active[one.end][:, one.unit].sum()


def test_examples_are_of_the_rows_that_the_graph_is_over(known: GraphLake) -> None:
    first = np.append(True, known.sample[1:] != known.sample[:-1])
    position = np.arange(len(first)) - np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    rows = known.counted & (known.split == "train") & (position < 6) & (position > 1)
    found = neighbours(known.lake, unit=2, end=ENDS[0], graph="train", examples=50)
    assert found.notes == ()
    assert found.edges
    r = known.r(ENDS[0], found.edges[0].other.end, rows)[2, found.edges[0].other.unit]
    assert found.edges[0].r == pytest.approx(r, abs=1e-6)
    for one in (found.unit, found.edges[0].other):
        assert shown(one) == strongest(known, one.end, one.unit, 50, rows, signed=False)


def test_dimensions_of_activations_have_the_rows_of_largest_value(known: GraphLake) -> None:
    found = neighbours(known.lake, unit=0, graph="dims", examples=6)
    assert {edge.other.unit for edge in found.edges} == {1, 2}
    assert found.edges[-1].n_ab is None
    assert {edge.other.unit: edge.r > 0 for edge in found.edges} == {1: True, 2: False}
    for one in (found.unit, *(edge.other for edge in found.edges)):
        expected = strongest(known, "activations", one.unit, 6, known.counted, signed=True)
        assert shown(one) == expected
        assert one.active is None


def test_pooled_graphs_show_the_strongest_position_of_each_sample(known: GraphLake) -> None:
    found = neighbours(known.lake, unit=1, graph="pooled", examples=7)
    assert found.edges
    assert shown(found.unit) == strongest(known, ENDS[0], 1, 7, known.counted, signed=False)


def write_labels(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "wt", encoding="utf-8") as packed:
            packed.writelines(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "explanations.jsonl.gz",
            [
                {"modelId": "m", "layer": "4-topk", "index": "5", "description": " bridges\nand rivers "},
                {"modelId": "m", "layer": "4-topk", "index": "5", "description": "a second one"},
                {"modelId": "m", "layer": "9-topk", "index": "5", "description": "of another layer"},
            ],
        ),
        (
            "labels.csv",
            [{"unit": 5, "label": "bridges and rivers", "layer": 4}, {"unit": 99, "label": "x", "layer": 4}],
        ),
        (
            "labels.parquet",
            [
                {"feature": 5, "explanation": "bridges and rivers", "end": ENDS[1]},
                {"feature": 6, "explanation": None, "end": ENDS[1]},
                {"feature": 7, "explanation": "rain", "end": "layer_8/s"},
            ],
        ),
        (
            "labels.json.csv",
            [{"unit": 5, "label": "bridges and rivers", "sae": "z"}, {"unit": 7, "label": "y", "sae": "q"}],
        ),
    ],
)
def test_labels_are_joined_in_by_unit_and_end(
    known: GraphLake, tmp_path: Path, name: str, rows: list[dict[str, Any]]
) -> None:
    labels = write_labels(tmp_path / name, rows)
    found = neighbours(known.lake, unit=5, end=ENDS[0], n=100, examples=0, labels=labels)
    named = {(edge.other.end, edge.other.unit): edge.other.label for edge in found.edges if edge.other.label}
    assert named == {(ENDS[1], 5): "bridges and rivers"}
    assert found.unit.label == ""
    assert found.unit.examples == ()
    assert found.notes == (f"1 rows of {labels} are of no unit of the graph",)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"id": 5, "label": "x", "layer": 4}], "no column of units"),
        ([{"unit": 5, "text": "x", "layer": 4}], "no column of labels"),
        ([{"unit": 5, "label": "x"}], "does not say of which end"),
        ([{"unit": "five", "label": "x", "layer": 4}], "row 0 has unit 'five'"),
        ([{"unit": -1, "label": "x", "layer": 4}], "row 0 has unit '-1'"),
        ([{"unit": 5, "label": "x", "layer": 7}], "no label of a unit of graph 'default' by its layer"),
        ([{"unit": 500, "label": "x", "layer": 4}], "no label of a unit"),
        ([{"unit": 5, "label": "", "layer": 4}], "no label of a unit"),
    ],
)
def test_bad_labels_are_refused_in_one_line(
    known: GraphLake, tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    path = write_labels(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match=told) as error:
        neighbours(known.lake, unit=5, end=ENDS[0], labels=path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes_are_told(known: GraphLake, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="has 2 ends"):
        neighbours(known.lake, unit=5)
    with pytest.raises(MissingError, match=f"no unit {N_UNITS}"):
        neighbours(known.lake, unit=N_UNITS, end=ENDS[0])
    with pytest.raises(MissingError, match="no graph 'other'"):
        neighbours(known.lake, unit=5, graph="other")
    with pytest.raises(InputError, match="n is 0"):
        neighbours(known.lake, unit=5, end=ENDS[0], n=0)
    with pytest.raises(InputError, match="examples is -1"):
        neighbours(known.lake, unit=5, end=ENDS[0], examples=-1)
    with pytest.raises(MissingError, match=r"labels\.csv"):
        neighbours(known.lake, unit=5, end=ENDS[0], labels=tmp_path / "labels.csv")


def test_a_dead_unit_has_no_edges(known: GraphLake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neighbours", known.lake.url, "--unit", "20", "--end", ENDS[0]]) == 0
    assert "no edges (dead)" in capsys.readouterr().out


def test_the_command_shows_both_units_side_by_side(known: GraphLake, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["neighbours", known.lake.url, "--unit", "5", "--end", ENDS[0], "--n", "4", "--examples", "3"]
    assert main(command) == 0
    out = capsys.readouterr().out
    found = neighbours(known.lake, unit=5, end=ENDS[0], n=4, examples=3)
    assert {edge.other.end for edge in found.edges} == set(ENDS)
    lines = [line.split(" | ") for line in out.splitlines() if " | " in line]
    assert len(lines) == 4 * (1 + 3)
    for place, edge in enumerate(found.edges):
        head, *rows = lines[4 * place : 4 * place + 4]
        names = ["", ""] if edge.other.end == ENDS[0] else [f"{ENDS[0]}: ", f"{edge.other.end}: "]
        assert head[0].strip() == f"{names[0]}5"
        assert head[1] == f"{names[1]}{edge.other.unit}  r {edge.r:+.3f}"
        for row, examples in zip(rows, zip(found.unit.examples, edge.other.examples, strict=True), strict=True):
            for part, example in zip(row, examples, strict=True):
                assert f"{example.value:.3f}" in part
                assert f"[{example.place.marked}]" in part
    assert max(len(line) for line in out.splitlines() if " | " in line) <= 2 * 64 + 3
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edges"][0]["other"]["unit"] == found.edges[0].other.unit


def test_rows_that_the_words_do_not_tell_are_not_guessed(known: GraphLake) -> None:
    """The words of this choice are those of another, in which the brackets stand elsewhere."""
    make(known, "either", saes="s", where="position < 6 and (position > 1 or not split == 'test')")
    found = neighbours(known.lake, unit=5, graph="either")
    assert found.edges
    assert found.unit.examples == ()
    assert "cannot be chosen again" in found.notes[0]
    make(known, "column", saes="s", where="split == 'test'")
    assert neighbours(known.lake, unit=5, graph="column", n=1).unit.examples


def test_codes_without_postings_say_what_to_run(tmp_path: Path) -> None:
    made = graph_lake(str(tmp_path / "lake"), postings=False)
    make(made)
    with pytest.raises(MissingError, match=r"no postings.*saestore index"):
        neighbours(made.lake, unit=5, end=ENDS[0])
    assert neighbours(made.lake, unit=5, end=ENDS[0], examples=0).edges


def test_edges_stay_when_codes_are_gone_or_written_anew(tmp_path: Path) -> None:
    made = graph_lake(str(tmp_path / "lake"))
    make(made)
    before = neighbours(made.lake, unit=5, end=ENDS[0])
    shutil.rmtree(tmp_path / "lake/data/two/m/layer_3/codes/s/token")
    after = neighbours(made.lake, unit=5, end=ENDS[0])
    assert [edge.r for edge in after.edges] == [edge.r for edge in before.edges]
    assert after.unit.examples == ()
    assert [edge.other.examples for edge in after.edges if edge.other.end == ENDS[1]] == [
        edge.other.examples for edge in before.edges if edge.other.end == ENDS[1]
    ]
    (note,) = after.notes
    assert note.startswith(f"no examples of {ENDS[0]}: data/two/m/layer_3/codes/s/token is not in the lake any more")
