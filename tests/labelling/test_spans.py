"""Labels from spans of characters, against a loop over every character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marked_lake import text_lake

from saestore.errors import InputError, MissingError
from saestore.lake import Lake
from saestore.verbs import label

TEXTS = ("It rains in Paris.", "Éa d’eau ☂️!", "")


def by_character(tokens: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    marked = {character for start, end in spans for character in range(start, end)}
    return [int(any(character in marked for character in range(start, end))) for start, end in tokens]


def write_spans(path: Path, rows: list[tuple[str, str, Any, Any]]) -> Path:
    lines = ["sample,concept,start,end", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_token_that_shares_a_character(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("spans")
    texts = data.draw(st.lists(st.text(alphabet="ab é☂", max_size=25), min_size=1, max_size=5))
    texts = [text if any(texts) else "x" for text in texts]
    lake, tokens = text_lake(str(folder / "lake"), texts)
    spans: dict[tuple[int, str], list[tuple[int, int]]] = {}
    rows: list[tuple[str, str, int, int]] = []
    filled = [place for place, text in enumerate(texts) if text]
    for _ in range(data.draw(st.integers(1, 8))):
        sample, concept = data.draw(st.sampled_from(filled)), data.draw(st.sampled_from(["a::b", "rain"]))
        start = data.draw(st.integers(0, len(texts[sample]) - 1))
        end = data.draw(st.integers(start + 1, len(texts[sample])))
        spans.setdefault((sample, concept), []).append((start, end))
        rows.append((f"s{sample}", concept, start, end))
    label(lake, "d", spans=write_spans(folder / "spans.csv", rows), quiet=True)
    labels = lake.labels("d")
    assert labels.concept_names == tuple(dict.fromkeys(row[1] for row in rows))
    for concept in labels.concept_names:
        expected = [by_character(of_text, spans.get((i, concept), [])) for i, of_text in enumerate(tokens)]
        assert labels.concept(concept).tolist() == [value for of_text in expected for value in of_text]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    tokens = [[(0, 0), (0, 2), (2, 8), (8, 18)], [(0, 0), (0, 2), (2, 8), (8, 12)], [(0, 0)]]
    return text_lake(str(tmp_path / "lake"), TEXTS, tokens=tokens)[0]


def test_parquet_and_json_lines_say_the_same(lake: Lake, tmp_path: Path) -> None:
    columns = {"sample": ["s0", "s1"], "concept": ["rain", "water"], "start": [3, 5], "end": [8, 9]}
    pq.write_table(pa.table(columns), tmp_path / "spans.parquet")
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    expected = np.zeros((9, 2), np.uint8)
    expected[2, 0] = expected[6, 1] = expected[7, 1] = 1
    for kind in ("parquet", "jsonl"):
        label(lake, "d", spans=tmp_path / f"spans.{kind}", name=kind, quiet=True)
        np.testing.assert_array_equal(lake.labels("d", kind).read(), expected)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (("s9", "rain", 0, 1), MissingError, "dataset 'd' has no sample 's9'; nearest of 3 samples"),
        (("s0", "rain", 5, 5), InputError, "row 0: the span 5 to 5 is none"),
        (("s0", "rain", -1, 5), InputError, "row 0: the span -1 to 5 is none"),
        (("s0", "rain", 0.5, 5), InputError, "row 0: the span 0.5 to 5 is none"),
        (("s0", "rain", "x", 5), InputError, "row 0: start is 'x'; expected a number"),
        (("s0", "rain", 0, "nan"), InputError, "row 0: end is 'nan'; expected a number"),
        (("s0", "rain", 0, 19), InputError, "ends at character 19, and the text of sample 's0' has 18"),
        (("", "rain", 0, 1), InputError, "row 0: id 'sample' is ''"),
        (("s0", "", 0, 1), InputError, "row 0: concept is ''"),
    ],
)
def test_spans_that_are_none(lake: Lake, tmp_path: Path, row: Any, error: type[Exception], message: str) -> None:
    path = write_spans(tmp_path / "spans.csv", [row])
    with pytest.raises(error, match=message) as raised:
        label(lake, "d", spans=path, quiet=True)
    assert str(path) in str(raised.value)
    assert lake.label_names("d") == []


def test_a_column_that_is_not_there(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "spans.csv"
    path.write_text("sample,concept,start\ns0,rain,3\n")
    with pytest.raises(MissingError, match="no column 'end'; expected sample, concept, start, end, the columns are"):
        label(lake, "d", spans=path, quiet=True)
