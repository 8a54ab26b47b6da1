"""Row groups: what is written comes back, what is not written is an error, and every Zarr reader agrees."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.rows import LEDGER_FIELDS, ArraySpec, Grid, RowGroup
from saestore.shards import checksum_bytes
from saestore.storage import Storage, open_storage

SPECS = (
    ArraySpec("indices", "uint16", 4),
    ArraySpec("values", "float16", 4, codec="shuffle"),
    ArraySpec("l0", "uint32"),
    ArraySpec("name", "string", codec="zstd"),
    ArraySpec("weight", "float32", 3, width_axis="d_in", codec="none"),
)


def contents(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "indices": rng.integers(0, 60_000, (n, 4)).astype("uint16"),
        "values": rng.random((n, 4)).astype("float16"),
        "l0": rng.integers(0, 9, n).astype("uint32"),
        "name": np.array([f"sample {i} é" if i % 3 else "" for i in range(n)], dtype=object),
        "weight": rng.random((n, 3)).astype("float32"),
    }


def create(storage: Storage, n: int = 100, shard: int = 32, chunk: int = 8, **identity: Any) -> RowGroup:
    return RowGroup.create(
        storage,
        "data/d/samples",
        kind="test",
        axis="row",
        grid=Grid.plan(n, shard_rows=shard, chunk_rows=chunk),
        arrays=SPECS,
        identity={"seed": 1, **identity},
        whole={"offsets": (np.arange(7, dtype="int64"), ("edge",))},
    )


def fill(group: RowGroup, table: dict[str, Any], shards: list[int] | None = None) -> None:
    for shard in range(group.grid.n_shards) if shards is None else shards:
        rows = group.grid.shard(shard)
        group.write_shard(shard, {k: v[rows] for k, v in table.items()}, flagged={"l0": shard})


def test_round_trip_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    storage = open_storage(lake_url[0], storage_options=lake_url[1])
    group, table = create(storage), contents(100)
    assert group.missing_shards() == [0, 1, 2, 3]
    fill(group, table)
    again = RowGroup.open(open_storage(lake_url[0], storage_options=lake_url[1]), "data/d/samples")
    for name, expected in table.items():
        np.testing.assert_array_equal(again.read(name), expected)
        np.testing.assert_array_equal(again.read(name, 30, 71), expected[30:71])
        order = np.array([99, 3, 3, 40, 0])
        np.testing.assert_array_equal(again.take(name, order), expected[order])
    np.testing.assert_array_equal(again.whole("offsets"), np.arange(7))
    assert again.is_complete
    assert again.flagged("l0") == 6
    assert again.content_hash() == group.content_hash()


def test_other_readers_open_it(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    fill(group, table)
    plain = zarr.open_group(tmp_path / "data/d/samples", mode="r")
    for name, expected in table.items():
        np.testing.assert_array_equal(plain[name][:], expected)
    ledger = plain["ledger"][:]
    assert ledger.shape == (4, 5, 4)
    for shard, row in group.entries(range(4)).items():
        assert row is not None
        assert [[e.crc32c, e.bytes, e.flagged, e.run] for e in row] == ledger[shard].tolist()
    assert int(ledger[:, :, 1].sum()) + group.attributes["whole"]["offsets"]["bytes"] == group.stored_bytes()
    dataset = xr.open_zarr(tmp_path / "data/d/samples")
    assert dataset["weight"].dims == ("row", "d_in")
    np.testing.assert_array_equal(dataset["weight"].values, table["weight"])
    np.testing.assert_array_equal(dataset["offsets"].values, np.arange(7))


def test_a_hole_is_an_error_and_names_the_rows(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    fill(group, table, [0, 2, 3])
    np.testing.assert_array_equal(group.read("l0", 0, 32), table["l0"][:32])
    with pytest.raises(HoleError, match="rows 32 to 63"):
        group.read("l0", 31, 33)
    with pytest.raises(HoleError):
        group.take("l0", np.array([0, 50]))
    with pytest.raises(HoleError):
        group.content_hash()
    assert group.missing_shards() == [1]
    assert group.written_rows() == 68


@pytest.mark.parametrize("harm", ["lose", "empty", "shorten", "flip"])
@pytest.mark.parametrize("name", ["indices", "name", "weight", "offsets"])
def test_damage_is_never_read_as_data(tmp_path: Path, harm: str, name: str) -> None:
    group = create(open_storage(tmp_path))
    fill(group, contents(100))
    victim = sorted((tmp_path / "data/d/samples" / name / "c").rglob("*"))[-1]
    content = victim.read_bytes()
    if harm == "lose":
        victim.unlink()
    elif harm == "empty":
        victim.write_bytes(b"")
    elif harm == "shorten":
        victim.write_bytes(content[:-1])
    else:
        middle = len(content) - 20
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    again = RowGroup.open(open_storage(tmp_path), "data/d/samples")
    with pytest.raises(IntegrityError):
        again.whole(name) if name == "offsets" else again.read(name)


def test_damaged_ledger_is_reported(tmp_path: Path) -> None:
    group = create(open_storage(tmp_path))
    fill(group, contents(100))
    entry = tmp_path / "data/d/samples/ledger/c.2.0.0"
    entry.write_bytes(b"x" + entry.read_bytes()[1:])
    with pytest.raises(IntegrityError, match="shard 2"):
        RowGroup.open(open_storage(tmp_path), "data/d/samples").read("l0")


def test_all_zero_shards_are_objects_too(tmp_path: Path) -> None:
    group = create(open_storage(tmp_path))
    zeros = {k: (np.full_like(v, "") if v.dtype == object else np.zeros_like(v)) for k, v in contents(100).items()}
    fill(group, zeros)
    np.testing.assert_array_equal(RowGroup.open(group.storage, group.path).read("values"), zeros["values"])


def test_same_plan_continues_and_another_conflicts(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    fill(create(storage), contents(100), [1])
    assert create(storage).missing_shards() == [0, 2, 3]
    with pytest.raises(ConflictError, match="seed: 1 is stored, 2 was asked"):
        create(storage, seed=2)


def test_two_orders_of_writing_give_equal_bytes(tmp_path: Path) -> None:
    table = contents(100)
    for name, shards in (("a", [0, 1, 2, 3]), ("b", [3, 1, 0, 2])):
        fill(create(open_storage(tmp_path / name)), table, shards)
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(files) > 20
    for path, content in files.items():
        assert (tmp_path / "b" / path).read_bytes() == content


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 70), shard=st.integers(1, 40), chunk=st.integers(1, 40), ranges=st.data())
def test_any_chunking_reads_the_same(n: int, shard: int, chunk: int, ranges: st.DataObject) -> None:
    import uuid

    group = create(open_storage(f"memory://{uuid.uuid4()}"), n, shard, chunk)
    table = contents(n)
    fill(group, table)
    assert sum(group.grid.shard(i).stop - group.grid.shard(i).start for i in range(group.grid.n_shards)) == n
    start = ranges.draw(st.integers(0, n))
    stop = ranges.draw(st.integers(start, n))
    rows = np.array(ranges.draw(st.lists(st.integers(0, n - 1), max_size=9)), dtype=np.int64)
    for name, expected in table.items():
        np.testing.assert_array_equal(group.read(name, start, stop), expected[start:stop])
        np.testing.assert_array_equal(group.take(name, rows), expected[rows])


def test_handles_can_be_sent_to_another_process(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    fill(group, table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(group)).read("l0"), table["l0"])


def test_wrong_rows_and_paths(tmp_path: Path) -> None:
    group = create(open_storage(tmp_path))
    fill(group, contents(100))
    with pytest.raises(InputError, match="100 rows"):
        group.read("l0", 0, 101)
    with pytest.raises(InputError):
        group.take("l0", np.array([-1]))
    with pytest.raises(MissingError):
        RowGroup.open(group.storage, "data/other")
    with pytest.raises(InputError, match="at least one"):
        Grid.plan(0, shard_rows=4, chunk_rows=2)


@pytest.mark.parametrize(
    ("identity", "told"),
    [
        ({"how": "other"}, r'\(how: "this" is stored, "other" was asked\)'),
        ({"how": "this"}, r'\(arrays: \["a"\] is stored, \["a", "b"\] was asked\)'),
    ],
)
def test_other_arrays_are_told_where_nothing_else_differs(tmp_path: Path, identity: dict[str, str], told: str) -> None:
    storage, plan = open_storage(tmp_path), {"kind": "labels", "axis": "row", "grid": Grid(4, 4, 4)}
    one, other = ArraySpec("a", "uint8"), ArraySpec("b", "uint8")
    RowGroup.create(storage, "data/x", arrays=[one], identity={"how": "this"}, **plan)
    with pytest.raises(ConflictError, match=told):
        RowGroup.create(storage, "data/x", arrays=[one, other], identity=identity, **plan)


def test_of_two_plans_at_once_one_gets_the_place(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    start = threading.Barrier(8)

    def begin(seed: int) -> RowGroup | None:
        start.wait()
        try:
            return create(storage, seed=seed)
        except ConflictError:
            return None

    with ThreadPoolExecutor(8) as pool:
        groups = [group for group in pool.map(begin, [1, 2, 1, 2, 1, 2, 1, 2]) if group is not None]
    assert groups
    assert len({group.run for group in groups}) == 1
    for group in groups:
        fill(group, contents(100))
    assert RowGroup.open(storage, groups[0].path).is_complete
    np.testing.assert_array_equal(RowGroup.open(storage, groups[0].path).read("l0"), contents(100)["l0"])


def test_a_plan_stopped_before_the_group_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    put = storage.put
    monkeypatch.setattr(storage, "put", lambda key, content: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        create(storage)
    monkeypatch.setattr(storage, "put", put)
    with pytest.raises(MissingError):
        RowGroup.open(storage, "data/d/samples")
    with pytest.raises(ConflictError, match=r"left half created .* delete data/d/samples"):
        create(storage, seed=2)
    fill(create(storage), contents(100))
    assert RowGroup.open(storage, "data/d/samples").is_complete


def rewrite_entry(group: RowGroup, shard: int, change: Callable[[Any], None]) -> None:
    key = f"{group.path}/ledger/c.{shard}.0.0"
    content = group.storage.get(key)
    assert content is not None
    table = np.frombuffer(content[:-4], dtype="<u8").reshape(-1, len(LEDGER_FIELDS)).copy()
    change(table)
    group.storage.put(key, table.tobytes() + checksum_bytes(table.tobytes()))


@pytest.mark.parametrize(("field", "match"), [("run", "another run"), ("bytes", "no stored bytes")])
def test_entries_that_are_not_of_this_run(tmp_path: Path, field: str, match: str) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    fill(group, table)

    def change(entries: Any) -> None:
        entries[3, LEDGER_FIELDS.index(field)] = 0

    rewrite_entry(group, 1, change)
    again = RowGroup.open(group.storage, group.path)
    np.testing.assert_array_equal(again.read("l0", 0, 32), table["l0"][:32])
    with pytest.raises(IntegrityError, match=rf"ledger/c\.1\.0\.0 in .* {match}.*; delete that file"):
        again.read("l0", 31, 33)
    (tmp_path / "data/d/samples/ledger/c.1.0.0").unlink()  # the remedy that the message names
    assert again.missing_shards() == [1]
    fill(again, table, [1])
    np.testing.assert_array_equal(again.read("l0"), table["l0"])


def test_an_object_that_another_writer_replaced(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    fill(group, table)
    other = create(open_storage(tmp_path / "other"))
    fill(other, {**table, "name": np.full_like(table["name"], "")})
    key = "data/d/samples/name/c/1"
    content = other.storage.get(key)
    assert content is not None
    assert len(content) != (tmp_path / key).stat().st_size, "compressed shards of other rows have other sizes"
    group.storage.put(key, content)
    with pytest.raises(IntegrityError, match="not the object that its ledger entry is about"):
        RowGroup.open(group.storage, group.path).read("name")


def test_a_handle_that_writes_a_shard_anew_reads_the_new_one(tmp_path: Path) -> None:
    group = create(open_storage(tmp_path))
    for table in (contents(100), {**contents(100, 1), "name": np.full(100, "", dtype=object)}):
        fill(group, table)
        for name, expected in table.items():
            np.testing.assert_array_equal(group.read(name), expected)
        assert group.content_hash() == RowGroup.open(group.storage, group.path).content_hash()


def test_a_shard_of_other_types_is_not_cast(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path)), contents(100)
    for wrong in (
        {"values": np.full((100, 4), 1e6, "float32")},
        {"l0": np.full(100, -1)},
        {"l0": table["l0"][:, None]},
    ):
        with pytest.raises(AssertionError):
            fill(group, {**table, **wrong})
    assert not group.written().any()


def test_reading_from_many_threads(tmp_path: Path) -> None:
    group, table = create(open_storage(tmp_path), n=400), contents(400)
    fill(group, table)
    again = RowGroup.open(group.storage, group.path)

    def look(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start, stop = sorted(rng.integers(0, 401, 2).tolist())
        rows = rng.integers(0, 400, 20)
        np.testing.assert_array_equal(again.read("name", start, stop), table["name"][start:stop])
        np.testing.assert_array_equal(again.take("indices", rows), table["indices"][rows])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(40)))


def test_a_lake_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(create(open_storage(tmp_path)), contents(100))
    storage = open_storage(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("reading writes")

    for name in ("put", "put_if_absent", "_put"):
        monkeypatch.setattr(storage, name, refuse)
    group = create(storage)  # the same plan is there
    np.testing.assert_array_equal(group.read("l0"), contents(100)["l0"])
    np.testing.assert_array_equal(group.whole("offsets"), np.arange(7))
    assert group.is_complete


def test_a_billion_rows_by_metadata_alone(tmp_path: Path) -> None:
    group = RowGroup.create(
        open_storage(tmp_path),
        "g",
        kind="codes",
        axis="row",
        grid=Grid.plan(1_000_000_001, shard_rows=262_144, chunk_rows=8_192),
        arrays=[ArraySpec("l0", "uint32")],
        identity={},
    )
    assert group.grid.n_shards == 3815
    last = group.grid.shard(3814)
    group.write_shard(3814, {"l0": np.arange(last.stop - last.start, dtype="uint32")})
    again = RowGroup.open(group.storage, "g")
    assert again.written_rows() == last.stop - last.start
    assert len(again.missing_shards()) == 3814
    np.testing.assert_array_equal(
        again.take("l0", np.array([1_000_000_000, last.start])), [1_000_000_000 - last.start, 0]
    )
    with pytest.raises(HoleError, match="rows 999555072 to 999817215 of g") as caught:
        again.read("l0", last.start - 1, last.start + 1)
    assert "more shards" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"grid": {"rows": 100, "shard_rows": 0, "chunk_rows": 8}},
        {"grid": {"rows": -1, "shard_rows": 32, "chunk_rows": 8}},
        {"grid": {"rows": 100, "shard_rows": 16, "chunk_rows": 8}},
        {"grid": {"rows": 99, "shard_rows": 32, "chunk_rows": 8}},
        {"grid": {"rows": "100", "shard_rows": 32, "chunk_rows": 8}},
        {"grid": {"rows": 100}},
        {"grid": 3},
        {"arrays": ["../../../outside"]},
        {"arrays": ["l0", "l0"]},
        {"arrays": ["ledger"]},
        {"arrays": ["nothing"]},
        {"arrays": []},
        {"run": "xyz"},
        {"run": None},
        {"axis": None, "grid": None},
    ],
)
def test_attributes_of_others_are_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(create(open_storage(tmp_path)), contents(100))
    path = tmp_path / "data/d/samples/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["saestore"].update(change)
    documents = document["consolidated_metadata"]["metadata"]
    documents["../../../outside"] = documents["l0"]
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="data/d/samples") as caught:
        RowGroup.open(open_storage(tmp_path), "data/d/samples")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [{}, {"attributes": {"saestore": [1]}}, {"attributes": {"saestore": {}}}])
def test_nodes_that_are_no_row_groups(tmp_path: Path, document: dict[str, Any]) -> None:
    storage = open_storage(tmp_path)
    storage.put("g/zarr.json", json.dumps(document).encode())
    with pytest.raises(IntegrityError, match="not a row group"):
        RowGroup.open(storage, "g")


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    group = create(open_storage(tmp_path))
    for read in (group.read, group.whole):
        with pytest.raises(MissingError, match="has no array 'nothing'"):
            read("nothing")
    with pytest.raises(InputError, match="at least one row"):
        Grid.plan(5, shard_rows=0, chunk_rows=2)
