"""The sample table and the position axis come back as they were given, on every storage."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import CUTS, LENGTHS, BuiltLake, build, sample_table
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.errors import ConflictError, HoleError, InputError, MissingError
from saestore.layout import ModelKey
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.samples import SampleTable
from saestore.storage import open_storage
from saestore.tables import Positions, Samples, write_positions, write_samples


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("tables") / "lake"), cuts=request.param)


def test_samples_and_positions_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    built = build(*lake_url)
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    samples, positions = Samples.open(storage, "d"), Positions.open(storage, ModelKey("d", "m"))
    assert samples.ids.tolist() == list(built.table.ids)
    assert samples.contents().tolist() == list(built.table.contents)
    np.testing.assert_array_equal(positions.offsets, built.offsets)
    np.testing.assert_array_equal(positions.special(), built.special)
    np.testing.assert_array_equal(positions.group.read("token_id"), built.token_id)


def test_every_column_of_the_table(built: BuiltLake) -> None:
    samples, table = Samples.open(built.storage, "d"), built.table
    assert (len(samples), samples.kind, samples.dataset) == (7, "text", "d")
    assert samples.split.tolist() == list(table.split)
    assert samples.contents(2, 4).tolist() == list(table.contents[2:4])
    assert samples.contents_of(np.array([6, 0, 6])).tolist() == [table.contents[place] for place in (6, 0, 6)]
    assert samples.column_names == ("score", "source")
    np.testing.assert_array_equal(samples.column("score"), np.arange(7) / 4)
    assert samples.column("source").tolist() == list(table.columns["source"])
    assert samples.concept_names == ("red", "cube")
    assert samples.concept("cube").tolist() == [0, 1, 255, 0, 1, 255, 0]
    assert samples.index_of("sample-5") == 5
    assert samples.of_split("cal").tolist() == [1, 5]
    assert (samples.digest == table.digest()) == (not built.cuts)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda s: s.column("colour"), MissingError, r"no column 'colour'; it has \['score', 'source'\]"),
        (lambda s: s.concept("blue"), MissingError, "no concept 'blue'; it has red, cube"),
        (lambda s: s.index_of("nobody"), MissingError, "no sample 'nobody'; its first is 'sample-0'"),
        (lambda s: s.of_split("dev"), InputError, "split 'dev' is unknown; choose from train, cal, test"),
    ],
)
def test_names_that_do_not_exist(built: BuiltLake, ask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(Samples.open(built.storage, "d"))


def test_a_table_without_a_split_or_concepts() -> None:
    storage = open_storage("memory://no-split")
    table = SampleTable(ids=["a"], kind="image", contents=["a.png"])
    samples = write_samples(storage, "one", table)
    assert samples.contents().tolist() == ["a.png"]
    assert (samples.split.tolist(), samples.concept_names) == ([""], ())
    with pytest.raises(InputError, match="no sample in split 'train'; give its table a split column"):
        samples.of_split("train")
    with pytest.raises(MissingError, match="it has none"):
        samples.concept("red")


def test_a_split_without_samples_is_told_beside_the_others() -> None:
    table = SampleTable(ids=["a", "b", "c"], kind="text", contents=["x"] * 3, split=["test", "train", "test"])
    samples = write_samples(open_storage("memory://two-splits"), "two", table)
    told = r"^dataset 'two' has no sample in split 'cal'; it has train \(1\), test \(2\); name one of these$"
    with pytest.raises(InputError, match=told):
        samples.of_split("cal")


def test_the_same_table_is_kept_and_another_refused(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    assert write_samples(built.storage, "d", sample_table(7)).digest == built.table.digest()
    for other in (sample_table(6), sample_table(7, splits=("train",))):
        with pytest.raises(ConflictError, match=r"data/d/samples .* was made differently"):
            write_samples(built.storage, "d", other)


@pytest.mark.parametrize("column", ["id", "concepts", "a/b", "__x", ""])
def test_a_column_name_that_cannot_be_stored(column: str) -> None:
    table = SampleTable(ids=["a"], kind="text", contents=["A"], columns={column: ["x"]})
    with pytest.raises(InputError, match=r"column name .* cannot be used"):
        write_samples(open_storage("memory://columns"), "d", table)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\\b", "x" * 121])
def test_a_dataset_name_that_cannot_be_stored(name: str) -> None:
    with pytest.raises(InputError, match="dataset name"):
        write_samples(open_storage("memory://names"), name, sample_table(2))


def test_missing_tables(built: BuiltLake) -> None:
    with pytest.raises(MissingError, match=r"no dataset 'nope' \(its 1 datasets: 'd'\); extract or import it first"):
        Samples.open(built.storage, "nope")
    with pytest.raises(MissingError, match="data/d/other/positions"):
        Positions.open(built.storage, ModelKey("d", "other"))


def test_a_table_that_was_cut_short_is_not_read_as_empty_strings() -> None:
    storage = open_storage("memory://cut-short")
    group = RowGroup.create(
        storage,
        "data/d/samples",
        kind="samples",
        axis="sample",
        grid=Grid.plan(4, shard_rows=2, chunk_rows=2),
        arrays=[ArraySpec("id", "string", codec="zstd")],
        identity={"digest": "x"},
        attributes={"content": "text", "columns": [], "concept_names": []},
    )
    group.write_shard(0, {"id": np.array(["a", "b"], dtype=object)})
    with pytest.raises(HoleError):
        _ = Samples.open(storage, "d").ids


def test_positions(built: BuiltLake) -> None:
    positions = Positions.open(built.storage, ModelKey("d", "m"))
    assert len(positions) == sum(LENGTHS)
    assert (positions.digest == "0" * 64) == (not built.cuts)
    assert positions.has("token_id")
    assert not positions.has("box")
    np.testing.assert_array_equal(positions.special(3, 20), built.special[3:20])
    with pytest.raises(ConflictError):
        write_positions(
            built.storage,
            ModelKey("d", "m"),
            offsets=built.offsets,
            arrays={"special": built.special, "token_id": built.token_id},
            digest="1" * 64,
            attributes={},
        )


def test_patch_boxes_come_back() -> None:
    boxes = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    positions = write_positions(
        open_storage("memory://boxes"),
        ModelKey("d", "clip"),
        offsets=np.array([0, 3, 6]),
        arrays={"special": np.zeros(6, dtype=bool), "box": boxes},
        digest="b",
        attributes={},
    )
    np.testing.assert_array_equal(positions.group.read("box"), boxes)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any), data=st.data())
def test_rows_and_samples_agree_with_counting(lengths: Sequence[int], data: st.DataObject) -> None:
    n = sum(lengths)
    positions = write_positions(
        open_storage(f"memory://{lengths}"),
        ModelKey("d", "m"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        arrays={"special": np.zeros(n, dtype=bool)},
        digest=str(lengths),
        attributes={},
    )
    owner = [sample for sample, length in enumerate(lengths) for _ in range(length)]
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=6))
    assert positions.sample_of(np.array(rows, dtype=np.int64)).tolist() == [owner[row] for row in rows]
    samples = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    expected = [row for sample in samples for row in range(n) if owner[row] == sample]
    assert positions.rows_of(np.array(samples, dtype=np.int64)).tolist() == expected


def test_handles_are_sent_by_name(built: BuiltLake) -> None:
    samples, positions = Samples.open(built.storage, "d"), Positions.open(built.storage, ModelKey("d", "m"))
    _ = samples.ids, positions.offsets
    for handle in (samples, positions):
        assert len(pickle.dumps(handle)) < 1000
    assert pickle.loads(pickle.dumps(samples)).ids.tolist() == samples.ids.tolist()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(positions)).offsets, positions.offsets)
