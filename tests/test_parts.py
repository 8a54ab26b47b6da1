"""Datasets that have grown: their parts read as one, against arrays that were never cut."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import LENGTHS, BuiltLake, build, sample_table, sparse_rows, top_k, write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_lake import lake_files

from saestore.code_rows import row_blocks
from saestore.codes import Codes
from saestore.errors import ConflictError, HoleError, IntegrityError
from saestore.indexing.stats import write_stats
from saestore.indexing.writer import index
from saestore.layout import ActivationsKey, CodesKey, ModelKey, samples_path
from saestore.parts import Absent, RowParts
from saestore.prefetch import together
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.samples import SampleTable
from saestore.storage import Storage, open_storage
from saestore.tables import Positions, Samples, table_parts, write_positions, write_samples

TOKEN = CodesKey("d", "m", "layer_3", "s", "token")


def group_of(storage: Storage, path: str, content: np.ndarray[Any, Any], *, shard: int, holes: set[int]) -> RowGroup:
    specs = [ArraySpec("wide", "uint16", content.shape[1]), ArraySpec("first", "uint16")]
    grid = Grid.plan(len(content), shard_rows=shard, chunk_rows=2)
    group = RowGroup.create(
        storage, path, kind="codes", axis="row", grid=grid, arrays=specs, identity={"path": path, "digest": path}
    )
    for number in set(group.missing_shards()) - holes:
        rows = group.grid.shard(number)
        group.write_shard(number, {"wide": content[rows], "first": content[rows, 0]})
    return group


@st.composite
def parted(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, set[int]]], int]:
    """Rows, width, shard and holes of each part; which part nothing is stored of (0: none)."""
    parts = draw(
        st.lists(
            st.tuples(st.integers(1, 9), st.integers(1, 3), st.sampled_from([2, 4]), st.sets(st.integers(0, 3))),
            min_size=2,
            max_size=4,
        )
    )
    return parts, draw(st.integers(0, len(parts) - 1))


@settings(max_examples=60, deadline=None)
@given(parted(), st.data())
def test_parts_read_as_one(given_parts: Any, data: st.DataObject) -> None:
    parts, absent = given_parts
    storage = open_storage(f"memory://parts-{np.random.default_rng().integers(1 << 60)}")
    width = max(width for number, (_, width, _, _) in enumerate(parts) if number != absent or not number)
    groups: list[RowGroup | Absent] = []
    expected, written = [], []
    for number, (rows, own, shard, holes) in enumerate(parts):
        content = np.arange(1, rows * own + 1, dtype=np.uint16).reshape(rows, own) + 100 * number
        if number and number == absent:
            groups.append(Absent("nowhere", rows))
            written.append(np.zeros(rows, bool))
            expected.append(np.zeros((rows, width), np.uint16))
            continue
        groups.append(group_of(storage, f"g{number}", content, shard=shard, holes=holes))
        written.append(~np.isin(np.arange(rows) // groups[-1].grid.shard_rows, list(holes)))
        expected.append(np.pad(content, ((0, 0), (0, width - own))))
    joined, wide, there = RowParts(groups), np.concatenate(expected), np.concatenate(written)
    n = len(wide)
    assert joined.grid.rows == n
    assert joined.written_rows() == there.sum()
    assert joined.is_complete == there.all()
    starts, stops = joined.written_ranges()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]])))
    np.testing.assert_array_equal(np.stack([starts, stops], axis=1).ravel(), edges)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    some = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=8)), dtype=np.int64)
    for name, whole in (("wide", wide), ("first", wide[:, 0])):
        if there[start:stop].all():
            np.testing.assert_array_equal(joined.read(name, start, stop), whole[start:stop])
        else:
            with pytest.raises(HoleError, match="never written"):
                joined.read(name, start, stop)
        if there[some].all():
            np.testing.assert_array_equal(joined.take(name, some), whole[some])
        else:
            with pytest.raises(HoleError, match="never written"):
                joined.take(name, some)
    for choice in (slice(start, stop), some):
        wanted = np.arange(n)[choice]
        out = np.full(len(wanted), -1, dtype=np.int64)
        for places, rows in row_blocks(joined, choice, 3, "nan"):
            out[places] = joined.take("first", np.arange(n)[rows])
        np.testing.assert_array_equal(out, np.where(there[wanted], wide[wanted, 0].astype(int), -1))


def test_many_readers_of_many_parts_do_not_wait_for_each_other() -> None:
    """Parts are read at once, also by those who read several things at once."""
    storage = open_storage("memory://parts-at-once")
    contents = [np.full((3, 2), number, np.uint16) for number in range(40)]
    joined = RowParts(
        [group_of(storage, f"g{place}", content, shard=2, holes=set()) for place, content in enumerate(contents)]
    )
    everything = np.concatenate(contents)
    for found in together(lambda _: joined.read("wide"), range(40)):
        np.testing.assert_array_equal(found, everything)
    some = np.array([117, 0, 60, 61])
    for found in together(lambda _: joined.take("wide", some), range(40)):
        np.testing.assert_array_equal(found, everything[some])


@pytest.fixture
def grown(tmp_path: Path) -> BuiltLake:
    return build(str(tmp_path / "lake"), cuts=(3, 4))


def test_statistics_are_those_of_the_whole(grown: BuiltLake, tmp_path: Path) -> None:
    whole = build(str(tmp_path / "whole"))
    for built in (grown, whole):
        write_stats(built.storage, [TOKEN], quiet=True)
    for split in (None, "train", "cal", "test", "none"):
        found, expected = grown.codes().stats(split=split), whole.codes().stats(split=split)
        assert (found.n_rows, found.n_samples) == (expected.n_rows, expected.n_samples)
        for name in expected.column_names:
            np.testing.assert_array_equal(found.column(name), expected.column(name), err_msg=name)


def test_what_was_there_stays_as_it_is(tmp_path: Path) -> None:
    """Postings of what is appended are added, and no file of what was there is written again."""
    first = build(str(tmp_path / "lake"))
    before = lake_files(tmp_path / "lake")
    more = sample_table(10)
    more = SampleTable(
        ids=[f"new-{name}" for name in more.ids],
        kind="text",
        contents=more.contents,
        split=more.split,
        columns=more.columns,
        concept_names=more.concept_names,
        concepts=more.concepts,
    )
    offsets = np.arange(0, 41, 4)
    write_samples(first.storage, "d", more, 1)
    arrays = {"special": np.zeros(40, bool), "token_id": np.zeros(40, np.uint32)}
    about = {"tokenizer": "t"}
    write_positions(
        first.storage, ModelKey("d", "m", 1), offsets=offsets, arrays=arrays, digest="1" * 64, attributes=about
    )
    codes = Codes.open(first.storage, TOKEN)
    assert codes.n_rows == 79
    np.testing.assert_array_equal(codes.dense(slice(0, 39)), first.tokens.dense)
    with pytest.raises(HoleError, match=r"rows 39 to 78 of .* nothing is at data/d/parts/1/m/layer_3/codes/s/token"):
        codes.rows(40)
    with pytest.raises(HoleError, match="rows 39 to 78"):
        codes.unit(3)
    assert np.isnan(codes.dense(slice(30, 50), holes="nan")[9:]).all()
    result = index(first.storage, [TOKEN], quiet=True)[0]
    assert (result.indexed_rows, "rows 39 to 78" in result.reason) == (0, True)

    known = top_k(sparse_rows(40, 50, 9), 3)  # fewer slots than the first part has
    write_codes(first.storage, TOKEN.at(1), known)
    with pytest.raises(HoleError, match=r"rows 39 to 78 of .* have no postings; build them: saestore index"):
        Codes.open(first.storage, TOKEN).unit(3)
    result = index(first.storage, [TOKEN, TOKEN.at(1)], quiet=True)
    assert [(one.rows, one.indexed_rows, one.reason) for one in result] == [(79, 40, "")]
    codes = Codes.open(first.storage, TOKEN)
    dense = np.concatenate([first.tokens.dense, known.dense])
    np.testing.assert_array_equal(codes.dense(), dense)
    for unit in codes.units(range(50)):
        assert unit.rows.tolist() == np.flatnonzero(dense[:, unit.unit]).tolist()
        np.testing.assert_array_equal(unit.values, dense[unit.rows, unit.unit])
    assert codes.unit(3).samples[-1].startswith("new-")
    after = lake_files(tmp_path / "lake")
    assert {name: after[name] for name in before} == before
    assert all("/parts/" in name for name in set(after) - set(before))


def test_an_axis_ends_where_it_is_not_complete(grown: BuiltLake, tmp_path: Path) -> None:
    """While a part is being appended, readers see the dataset as it was."""
    write_samples(grown.storage, "d", _renamed(sample_table(2)), 3)
    assert len(Samples.open(grown.storage, "d")) == 9
    codes = Codes.open(grown.storage, TOKEN)  # without positions the samples are not on the axis of the rows
    assert (codes.n_rows, len(codes.samples)) == (39, 7)
    assert codes.where(samples="sample-6").n_rows == LENGTHS[6]
    entry = tmp_path / "lake" / samples_path("d", 3) / "ledger" / "c.0.0.0"
    entry.unlink()
    assert len(Samples.open(grown.storage, "d")) == 7
    means = Codes.open(grown.storage, CodesKey("d", "m", "layer_3", "s", "mean"))
    np.testing.assert_array_equal(means.dense(), grown.means.dense)


def _renamed(table: SampleTable) -> SampleTable:
    return SampleTable(
        ids=[f"late-{name}" for name in table.ids],
        kind=table.kind,
        contents=table.contents,
        split=table.split,
        columns=table.columns,
        concept_names=table.concept_names,
        concepts=table.concepts,
    )


def test_status_counts_all_parts(grown: BuiltLake) -> None:
    write_samples(grown.storage, "d", _renamed(sample_table(2)), 3)
    arrays = {"special": np.zeros(6, bool), "token_id": np.zeros(6, np.uint32)}
    key = ModelKey("d", "m", 3)
    write_positions(
        grown.storage, key, offsets=np.array([0, 3, 6]), arrays=arrays, digest="4", attributes={"tokenizer": "t"}
    )
    status = {(row.kind, row.sample_type): (row.written_rows, row.rows, row.state) for row in grown.lake.status()}
    assert status["samples", ""] == (9, 9, "done")
    assert status["positions", ""] == (45, 45, "done")
    assert status["codes", "token"] == (39, 45, "partial")
    assert status["postings", "token"] == (39, 45, "partial")
    assert status["codes", "mean"] == (7, 9, "partial")
    assert status["activations", "token"] == (39, 45, "partial")


def test_readers_of_parts_go_to_other_processes(grown: BuiltLake) -> None:
    for opened in (
        grown.codes(),
        grown.codes().where(split="train"),
        grown.lake.samples("d"),
        grown.lake.positions("d"),
    ):
        again = pickle.loads(pickle.dumps(opened))
        assert len(again) == len(opened)
        assert again.group.content_hash() == opened.group.content_hash()
    activations = pickle.loads(pickle.dumps(grown.lake.activations("d", sample_type="token")))
    np.testing.assert_array_equal(activations.read(3, 30), grown.activations[3:30])
    np.testing.assert_array_equal(activations.take(np.array([38, 0, 17])), grown.activations[[38, 0, 17]])


def test_a_grown_table_is_cut_where_the_parts_are(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    table = sample_table(9)
    assert [piece.ids for piece in table_parts(storage, "d", table[:4])] == [table.ids[:4]]
    write_samples(storage, "d", table[:4])
    assert [piece.ids for piece in table_parts(storage, "d", table[:6])] == [table.ids[:4], table.ids[4:6]]
    write_samples(storage, "d", table[4:6], 1)
    for stop, expected in ((4, [4]), (6, [4, 2]), (9, [4, 2, 3])):
        pieces = table_parts(storage, "d", table[:stop])
        assert [len(piece) for piece in pieces] == expected
        assert list(itertools.chain.from_iterable(piece.ids for piece in pieces)) == list(table.ids[:stop])
    with pytest.raises(ConflictError, match=r"samples 4 to 5 of dataset 'd' .*2 samples against 1.* at the end only"):
        table_parts(storage, "d", table[:5])
    with pytest.raises(ConflictError, match=r"samples 0 to 3 .*the id of number 0 is 'sample-0', and 'sample-1'"):
        table_parts(storage, "d", table[1:])
    with pytest.raises(ConflictError, match=r"the split of number 1 is 'cal', and 'train' in the table"):
        table_parts(storage, "d", sample_table(9, splits=("train",)))
    (tmp_path / samples_path("d", 1) / "ledger" / "c.0.0.0").unlink()
    assert len(table_parts(storage, "d", table)) == 3
    with pytest.raises(ConflictError, match=r"samples 4 to 5 .*\(what data/d/parts/1/samples was begun with; delete"):
        table_parts(storage, "d", replace(table, ids=[*table.ids[:4], *(f"late-{name}" for name in table.ids[4:])]))
    plain = SampleTable(ids=table.ids, kind="text", contents=table.contents, split=table.split)
    with pytest.raises(ConflictError, match=r"columns \['score', 'source'\] against \[\]"):
        table_parts(storage, "d", plain)


def test_parts_that_are_made_differently_are_refused(grown: BuiltLake) -> None:
    with pytest.raises(ConflictError, match=r"concept names \['red', 'cube'\] and what is to be appended \[\]"):
        write_samples(
            grown.storage,
            "d",
            SampleTable(ids=["x"], kind="text", contents=["X"], columns={"score": [0.5], "source": ["a"]}),
            3,
        )
    write_codes(grown.storage, CodesKey("d", "m", "layer_3", "mixed", "mean"), grown.means[:3])
    write_codes(grown.storage, CodesKey("d", "m", "layer_3", "mixed", "mean", 1), grown.means[3:4], dtype="float32")
    with pytest.raises(IntegrityError, match=r"parts/1/.* is made differently \(dtype, values\)"):
        Codes.open(grown.storage, CodesKey("d", "m", "layer_3", "mixed", "mean"))


@pytest.mark.parametrize("part", [0, 3, 12])
def test_keys_name_parts_by_their_paths(part: int) -> None:
    key = CodesKey("d", "m", "layer_3", "s", "token", part)
    base = f"data/d/parts/{part}" if part else "data/d"
    assert key.path == f"{base}/m/layer_3/codes/s/token"
    assert key.activations == ActivationsKey("d", "m", "layer_3", "token", part)
    assert key.activations.path == f"{base}/m/layer_3/activations/token"
    assert key.activations.model_key.positions_path == f"{base}/m/positions"
    assert CodesKey.of(key.activations, "s") == key
    assert samples_path("d", part) == f"{base}/samples"


def test_offsets_go_on_over_parts(grown: BuiltLake) -> None:
    positions = Positions.open(grown.storage, ModelKey("d", "m"))
    np.testing.assert_array_equal(positions.offsets, grown.offsets)
    np.testing.assert_array_equal(positions.rows_of(np.array([4, 2])), np.r_[15:29, 5:14])
