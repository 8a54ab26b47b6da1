"""Postings against a sort of the codes in memory: any memory, any order, killed and resumed, in segments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr
from built_lake import KnownCodes, sample_table, sparse_rows, top_k, write_codes

from saestore import postings
from saestore.codes import Codes
from saestore.errors import BudgetError, HoleError, IntegrityError, MissingError
from saestore.indexing import task, writer
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.storage import RemoteStorage
from saestore.tables import write_samples
from tests.small_lake import lake_files

KEY = CodesKey("d", "m", "layer_3", "s", "mean")
N, D_SAE, K = 100, 40, 6


def small_lake(folder: Path, *, dtype: str = "float16", holes: tuple[int, ...] = ()) -> tuple[Lake, KnownCodes]:
    lake = Lake.create(folder)
    known = top_k(sparse_rows(N, D_SAE, 3), K)
    write_samples(lake.storage, "d", sample_table(N))
    write_codes(lake.storage, KEY, known, dtype=dtype, holes=holes)
    return lake, known


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three segments, several shards in each, several blocks of rows."""
    monkeypatch.setattr(postings, "SEGMENT_ROWS", 40)
    monkeypatch.setattr(postings, "SHARD_ENTRIES", 32)
    monkeypatch.setattr(writer, "SHARD_ENTRIES", 32)
    monkeypatch.setattr(postings, "CHUNK_ENTRIES", 8)
    monkeypatch.setattr(task, "BLOCK_BYTES", 12 * K * 4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_units_are_the_columns_of_the_codes(tmp_path: Path, small_pieces: None, dtype: str) -> None:
    lake, known = small_lake(tmp_path / "lake", dtype=dtype)
    (result,) = index(lake.storage, [KEY], quiet=True)
    assert (result.rows, result.indexed_rows, result.reason) == (N, N, "")
    assert result.entries == np.count_nonzero(known.dense)
    codes = Codes.open(lake.storage, KEY)
    assert codes.postings.counts.tolist() == np.count_nonzero(known.dense, axis=0).tolist()
    for unit in range(D_SAE):
        found = codes.unit(unit)
        assert found.rows.tolist() == np.flatnonzero(known.dense[:, unit]).tolist()
        np.testing.assert_array_equal(found.values, known.dense[found.rows, unit])
    chosen = [7, 3, 7, 39, 0]
    for unit, found in zip(chosen, codes.units(chosen), strict=True):
        assert (found.unit, found.rows.tolist()) == (unit, np.flatnonzero(known.dense[:, unit]).tolist())
    assert codes.units([]) == []


def test_any_zarr_reader_can_read_them_as_the_format_says(tmp_path: Path, small_pieces: None) -> None:
    lake, known = small_lake(tmp_path / "lake")
    index(lake.storage, [KEY], quiet=True)
    run = Codes.open(lake.storage, KEY).run
    for number, start in enumerate(range(0, N, 40)):
        group = zarr.open_group(tmp_path / "lake" / KEY.segment_path(run, number), mode="r")
        part = known.dense[start : start + 40]
        indptr = np.asarray(group["indptr"])
        for unit in range(D_SAE):
            entries = slice(int(indptr[unit]), int(indptr[unit + 1]))
            rows = np.cumsum(np.asarray(group["row_gaps"])[entries])
            assert rows.tolist() == np.flatnonzero(part[:, unit]).tolist()
            np.testing.assert_array_equal(np.asarray(group["values"])[entries], part[rows, unit])


def test_memory_and_workers_do_not_change_a_byte(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _ = small_lake(tmp_path / "one")
    said: list[str] = []
    index(lake.storage, [KEY], quiet=True, say=said.append)
    assert re.search(r"\b1 pass over", said[0])
    expected = lake_files(tmp_path / "one")
    lake, _ = small_lake(tmp_path / "many")
    monkeypatch.setattr(writer, "_shards_per_task", lambda *given: 1)
    monkeypatch.setattr(task.os, "cpu_count", lambda: 5)
    monkeypatch.setattr(task, "BLOCK_BYTES", 1)
    said.clear()
    index(lake.storage, [KEY], quiet=True, say=said.append)
    assert int(re.search(r"(\d+) passes over", said[0])[1]) > 1  # type: ignore[index]
    assert lake_files(tmp_path / "many") == expected


def test_what_is_missing_is_built_and_nothing_else(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _ = small_lake(tmp_path / "lake")
    index(lake.storage, [KEY], quiet=True)
    expected = lake_files(tmp_path / "lake")
    segment = tmp_path / "lake" / KEY.segment_path(Codes.open(lake.storage, KEY).run, 1)
    (segment / "ledger/c.1.0.0").unlink()
    (segment / "values/c/1").unlink()
    with pytest.raises(
        HoleError, match=r"postings of rows 40 to 79 in .* are not complete; build the rest with saestore index"
    ):
        Codes.open(lake.storage, KEY).units(range(D_SAE))
    done: list[tuple[int, int, int]] = []
    run = task.IndexTask.run
    monkeypatch.setattr(
        task.IndexTask, "run", lambda self, tick: (done.append((self.segment, self.first, self.stop)), run(self, tick))
    )
    (state,) = (row for row in lake.status() if row.kind == "postings")
    assert (state.rows, state.written_rows, state.state) == (N, 60, "partial")
    (result,) = index(lake.storage, [KEY], quiet=True)
    (state,) = (row for row in lake.status() if row.kind == "postings")
    assert (state.written_rows, state.state, state.note) == (N, "done", "")
    assert done == [(1, 1, 2)]
    assert result.indexed_rows == 40
    assert lake_files(tmp_path / "lake") == expected
    assert index(lake.storage, [KEY], quiet=True)[0].indexed_rows == 0


def test_segments_without_holes_are_built_and_the_others_named(tmp_path: Path, small_pieces: None) -> None:
    lake, known = small_lake(tmp_path / "lake", holes=(0,))
    (result,) = index(lake.storage, [KEY], quiet=True)
    assert result.indexed_rows == 60
    assert "rows 0 to 15" in result.reason
    with pytest.raises(HoleError, match=r"rows 0 to 15 of data/d/m/layer_3/codes/s/mean were never written"):
        Codes.open(lake.storage, KEY).unit(3)
    before = lake_files(tmp_path / "lake")
    write_codes(lake.storage, KEY, known)
    with pytest.raises(HoleError, match=r"rows 0 to 39 of data/d/m/layer_3/codes/s/mean have no postings.*index"):
        Codes.open(lake.storage, KEY).unit(3)
    (result,) = index(lake.storage, [KEY], quiet=True)
    assert (result.indexed_rows, result.reason) == (40, "")
    after = lake_files(tmp_path / "lake")
    assert {name: after[name] for name in before} == before  # what was built stays as it is
    codes = Codes.open(lake.storage, KEY)
    assert [unit.rows.tolist() for unit in codes.units(range(D_SAE))] == [
        np.flatnonzero(column).tolist() for column in known.dense.T
    ]


def test_postings_of_other_codes_are_not_read(tmp_path: Path) -> None:
    lake, known = small_lake(tmp_path / "lake")
    with pytest.raises(MissingError, match=r"has no postings.*saestore index --datasets d$"):
        Codes.open(lake.storage, KEY).unit(3)
    index(lake.storage, [KEY], quiet=True)
    folder = tmp_path / "lake" / KEY.path
    for name in ("zarr.json", "ledger/zarr.json"):
        (folder / name).unlink()
    for file in (folder / "ledger").iterdir():
        file.unlink()
    write_codes(lake.storage, KEY, known, dtype="float32")
    with pytest.raises(MissingError, match=r"only the postings of older codes.*saestore index --datasets d$"):
        Codes.open(lake.storage, KEY).unit(3)
    (state,) = (row for row in lake.status() if row.kind == "postings")
    assert (state.written_rows, state.state) == (0, "missing")
    assert "older codes" in state.note
    index(lake.storage, [KEY], quiet=True)
    assert Codes.open(lake.storage, KEY).unit(3).rows.tolist() == np.flatnonzero(known.dense[:, 3]).tolist()


def test_codes_without_any_active_unit(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    write_samples(lake.storage, "d", sample_table(8))
    write_codes(lake.storage, KEY, top_k(np.zeros((8, 5), np.float32), 2))
    assert index(lake.storage, [KEY], quiet=True)[0].entries == 0
    assert [len(unit) for unit in Codes.open(lake.storage, KEY).units(range(5))] == [0] * 5


def test_too_little_memory_is_refused_with_what_is_enough(tmp_path: Path) -> None:
    lake, _ = small_lake(tmp_path / "lake")
    before = lake_files(tmp_path / "lake")
    with pytest.raises(BudgetError, match=r"sorting one shard of the postings of .* needs .*, the budget is 1.0 MiB"):
        index(lake.storage, [KEY], memory="1MiB", quiet=True)
    assert lake_files(tmp_path / "lake") == before


def test_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    lake, _ = small_lake(tmp_path / "lake")
    index(lake.storage, [KEY], quiet=True)
    codes = Codes.open(lake.storage, KEY)
    file = tmp_path / "lake" / KEY.segment_path(codes.run, 0) / "row_gaps/c/0"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="row_gaps/c/0"):
        codes.units(range(D_SAE))


def test_a_unit_takes_few_requests_to_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first query of opened codes; each range of bytes counts as a request."""
    lake = Lake.create("memory://requests")
    known = top_k(sparse_rows(N, D_SAE, 3), K)
    write_samples(lake.storage, "d", sample_table(N))
    write_codes(lake.storage, KEY, known)
    index(lake.storage, [KEY], quiet=True)
    requests: list[str] = []
    get, get_ranges = RemoteStorage.get, RemoteStorage.get_ranges

    def counted_get(self: RemoteStorage, key: str) -> bytes | None:
        requests.append(key)
        return get(self, key)

    def counted_ranges(self: RemoteStorage, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        requests.extend([key] * len(ranges))
        return get_ranges(self, key, ranges)

    monkeypatch.setattr(RemoteStorage, "get", counted_get)
    monkeypatch.setattr(RemoteStorage, "get_ranges", counted_ranges)
    codes = Codes.open(lake.storage, KEY)
    assert codes.postings.segments
    requests.clear()
    unit = int(np.count_nonzero(known.dense, axis=0).argmax())
    assert codes.unit(unit).rows.tolist() == np.flatnonzero(known.dense[:, unit]).tolist()
    assert len(requests) <= 6, requests
    requests.clear()
    codes.unit(0)
    assert len(requests) <= 2, requests
    requests.clear()
    assert len(codes.units(range(D_SAE))) == D_SAE
    assert len(requests) <= 2, requests  # neighbours are fetched together
