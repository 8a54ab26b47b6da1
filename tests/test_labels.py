"""Labels of positions come back as they were given, on every storage, over parts, and after a writer was stopped."""

from __future__ import annotations

import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marked_lake import KEY, add_texts, text_lake
from small_lake import lake_files

from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.labels import Labels, write_labels
from saestore.lake import Lake
from saestore.storage import open_storage
from saestore.tables import write_positions

TEXTS = ("It rains in Paris.", "", "No rain, no clouds.", "Sun", "The last of them, and the longest.")
NAMES = ("rain", "shape::cube")


def random_labels(n: int, width: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 0, 0, 1, 255], np.uint8), size=(n, width))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return text_lake(str(tmp_path / "lake"), TEXTS)[0]


def test_labels_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    lake = Lake.create(lake_url[0], storage_options=lake_url[1])
    n = 40
    write_positions(
        lake.storage,
        KEY,
        offsets=np.array([0, 15, n]),
        arrays={"special": np.zeros(n, bool)},
        digest="p" * 64,
        attributes={},
    )
    content = random_labels(n)
    written = write_labels(lake.storage, KEY, "concepts", content, NAMES, {"source": {"kind": "spans"}})
    labels = Labels.open(open_storage(lake_url[0], storage_options=lake_url[1]), KEY)
    assert (len(labels), labels.concept_names, labels.name) == (n, NAMES, "concepts")
    assert labels.digest == written.digest
    assert labels.group.attributes["source"] == {"kind": "spans"}
    np.testing.assert_array_equal(labels.read(), content)
    np.testing.assert_array_equal(labels.read(3, 17), content[3:17])
    np.testing.assert_array_equal(labels.take(np.array([39, 0, 17])), content[[39, 0, 17]])
    np.testing.assert_array_equal(labels.concept("shape::cube"), content[:, 1])
    again = pickle.loads(pickle.dumps(labels))
    np.testing.assert_array_equal(again.read(), content)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.data())
def test_any_cut_into_blocks_gives_the_same(n: int, width: int, data: st.DataObject) -> None:
    storage = open_storage(f"memory://{uuid.uuid4().hex}")
    arrays = {"special": np.zeros(n, bool)}
    write_positions(storage, KEY, offsets=np.array([0, n]), arrays=arrays, digest="p", attributes={})
    content, names = random_labels(n, width), [f"c{place}" for place in range(width)]
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=4)))
    labels = write_labels(storage, KEY, "whole", content, names)
    blocks = write_labels(storage, KEY, "blocks", iter(np.split(content, cuts)), names)
    assert labels.digest == blocks.digest
    assert labels.group.content_hash() == blocks.group.content_hash()
    np.testing.assert_array_equal(blocks.read(), content)


def test_many_rows_are_shards_that_are_written_once_each(tmp_path: Path) -> None:
    storage, n = open_storage(tmp_path / "lake"), 300_000
    arrays = {"special": np.zeros(n, bool)}
    write_positions(storage, KEY, offsets=np.array([0, n]), arrays=arrays, digest="p", attributes={})
    content = random_labels(n, 3)
    labels = write_labels(storage, KEY, "concepts", content, "abc")
    assert labels.group.grid.n_shards == 2
    before = lake_files(tmp_path / "lake")
    stopped = tmp_path / "lake" / KEY.labels_path("concepts") / "ledger" / "c.1.0.0"
    stopped.unlink()
    with pytest.raises(HoleError, match="rows 262144 to 299999"):
        Labels.open(storage, KEY).concept("b")
    untouched = (stopped.parents[1] / "concepts" / "c" / "0" / "0").stat().st_mtime_ns
    write_labels(storage, KEY, "concepts", content, "abc")
    assert lake_files(tmp_path / "lake") == before
    assert (stopped.parents[1] / "concepts" / "c" / "0" / "0").stat().st_mtime_ns == untouched
    np.testing.assert_array_equal(Labels.open(storage, KEY).concept("b"), content[:, 1])


def test_parts_are_one_axis_and_what_is_not_labelled_is_an_error(tmp_path: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS[:3])
    n = sum(map(len, tokens))
    content = random_labels(n)
    write_labels(lake.storage, KEY, "concepts", content, NAMES)
    digest = lake.labels("d").digest
    longer = [*tokens, [(0, 0), (0, 3)], [(0, 0), (0, 4), (4, 9)]]
    add_texts(lake, TEXTS, longer, {}, 1, 3, 5)
    labels = lake.labels("d")
    assert len(labels) == n + 5
    np.testing.assert_array_equal(labels.read(0, n), content)
    for ask in (lambda: labels.read(), lambda: labels.concept("rain"), lambda: labels.take(np.array([0, n]))):
        with pytest.raises(HoleError, match=rf"rows {n} to {n + 4} of .* run the command that wrote the others again"):
            ask()
    assert [row.note for row in lake.status() if row.kind == "labels"] == ["concepts: 2 concepts"]
    assert [(row.state, row.written_rows) for row in lake.status() if row.kind == "labels"] == [("partial", n)]
    more = random_labels(5, seed=1)
    with pytest.raises(ConflictError, match=r"concept names \['rain', 'shape::cube'\] .* to be appended \['rain'\]"):
        write_labels(lake.storage, KEY.at(1), "concepts", more[:, :1], ["rain"])
    write_labels(lake.storage, KEY.at(1), "concepts", more, NAMES)
    labels = lake.labels("d")
    np.testing.assert_array_equal(labels.read(), np.concatenate([content, more]))
    np.testing.assert_array_equal(labels.concept("rain"), np.concatenate([content, more])[:, 0])
    np.testing.assert_array_equal(Labels.open_part(lake.storage, KEY.at(1)).read(), more)
    assert labels.digest != digest
    assert Labels.open(lake.storage, KEY, parts=1).digest == digest
    assert [(row.state, row.rows) for row in lake.status() if row.kind == "labels"] == [("done", n + 5)]


def test_a_part_cannot_be_labelled_before_the_first(tmp_path: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, cuts=[3])
    content = random_labels(sum(map(len, tokens[3:])))
    with pytest.raises(ConflictError, match="label the first part first"):
        write_labels(lake.storage, KEY.at(1), "concepts", content, NAMES)


def test_other_labels_of_the_same_name_are_refused(lake: Lake) -> None:
    n = len(lake.positions("d"))
    write_labels(lake.storage, KEY, "concepts", random_labels(n), NAMES)
    with pytest.raises(ConflictError, match=r"made differently \(digest: .*another name"):
        write_labels(lake.storage, KEY, "concepts", random_labels(n, seed=1), NAMES)
    write_labels(lake.storage, KEY, "other", random_labels(n, seed=1), NAMES)
    assert lake.label_names("d") == ["concepts", "other"]
    assert lake.layers("d", "m") == []
    assert [(row.kind, row.note) for row in lake.status()][2:] == [
        ("labels", "concepts: 2 concepts"),
        ("labels", "other: 2 concepts"),
    ]


@pytest.mark.parametrize(
    ("rows", "names", "change", "message"),
    [
        (-1, NAMES, {}, "rows of labels were given for the .* positions"),
        (1, NAMES, {}, "rows of labels were given for the .* positions"),
        (0, NAMES, {(2, 1): 7}, "a label for .* is 7; expected 1"),
        (0, ("a",), {}, r"labels of shape .* expected \(n, 1\) uint8"),
        (0, ("a", "a"), {}, "concept 'a' is named twice"),
        (0, ("a", ""), {}, "concept name '' cannot be used"),
        (0, (), {}, "labels of no concept"),
    ],
)
def test_labels_that_are_none(
    lake: Lake, rows: int, names: tuple[str, ...], change: dict[tuple[int, int], int], message: str
) -> None:
    content = random_labels(len(lake.positions("d")) + rows)
    for place, value in change.items():
        content[place] = value
    with pytest.raises(InputError, match=message):
        write_labels(lake.storage, KEY, "concepts", content, names)
    assert lake.label_names("d") == []


def test_fractions_are_no_labels(lake: Lake) -> None:
    with pytest.raises(InputError, match="float64"):
        write_labels(lake.storage, KEY, "concepts", np.zeros((len(lake.positions("d")), 1)), ["a"])


def test_names_that_do_not_exist(lake: Lake) -> None:
    with pytest.raises(MissingError, match=r"no labels 'concepts' \(it has no names\); make them with: saestore label"):
        lake.labels("d")
    write_labels(lake.storage, KEY, "concepts", random_labels(len(lake.positions("d"))), NAMES)
    with pytest.raises(MissingError, match=r"no labels 'concept' .*'concepts'"):
        lake.labels("d", "concept")
    with pytest.raises(MissingError, match="no concept 'rains'; nearest of 2 concepts: 'rain'"):
        lake.labels("d").concept("rains")


def test_labels_of_other_positions_are_not_read(lake: Lake, tmp_path: Path) -> None:
    import shutil

    n = len(lake.positions("d"))
    write_labels(lake.storage, KEY, "concepts", random_labels(n), NAMES)
    shutil.rmtree(tmp_path / "lake" / KEY.positions_path)
    arrays = {"special": np.zeros(n, bool)}
    write_positions(lake.storage, KEY, offsets=np.array([0, n]), arrays=arrays, digest="new", attributes={})
    for ask in (lambda: lake.labels("d"), lambda: Labels.open_part(lake.storage, KEY)):
        with pytest.raises(IntegrityError, match=r"made for other positions than those at .*; delete "):
            ask()
    assert next(row.note for row in lake.status() if row.kind == "labels").startswith(
        "data/d/m/labels/concepts was made"
    )
