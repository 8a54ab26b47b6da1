"""Statistics that are written, against numpy on codes made dense; resuming, memory, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saestore.codes import Codes
from saestore.errors import BudgetError, HoleError, InputError, IntegrityError, MissingError
from saestore.indexing.stats import write_stats
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.tables import write_positions, write_samples
from saestore.unit_stats import ALWAYS_ON, PERCENTILES, UnitStats
from tests.built_lake import KnownCodes, build, sample_table, top_k, write_codes
from tests.small_lake import lake_files

D_SAE = 50
KEY = CodesKey("d", "m", "layer_3", "s", "token")
ARRAYS = ("count", "samples", "sum", "sum_squares", "max", "min", "first_row", "last_row", "percentiles")


def random_codes(n: int, *, signed: bool, seed: int) -> KnownCodes:
    """Unit 0 is active in every row, the last ten in none; few distinct values, so that ties occur."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0.25, 0.5, 1.5, 2.0, 3.75], size=(n, D_SAE)).astype(np.float32)
    if signed:
        dense *= rng.choice([-1, 1], dense.shape)
    dense[rng.random((n, D_SAE)) > np.geomspace(1, 0.003, D_SAE)] = 0
    dense[:, -10:] = 0
    dense[:, 0] = 4
    return top_k(dense, 20)


def build_lake(
    folder: Path,
    *,
    n_samples: int = 40,
    splits: tuple[str, ...] = ("train", "cal", "test", ""),
    dtype: str = "float16",
    signed: bool = False,
    holes: tuple[int, ...] = (),
    rng_seed: int = 0,
) -> Codes:
    rng = np.random.default_rng(rng_seed)
    lake = Lake.create(str(folder))
    lengths = rng.integers(0, 15, n_samples)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    n = int(offsets[-1])
    special = np.zeros(n, dtype=bool)
    special[offsets[:-1][lengths > 0]] = True
    write_samples(lake.storage, "d", sample_table(n_samples, splits=splits))
    write_positions(
        lake.storage,
        ModelKey("d", "m"),
        offsets=offsets,
        arrays={"special": special, "token_id": np.zeros(n, np.uint32)},
        digest="0" * 64,
        attributes={},
    )
    write_codes(lake.storage, KEY, random_codes(n, signed=signed, seed=rng_seed), dtype=dtype, holes=holes)
    return Codes.open(lake.storage, KEY)


def indexed(codes: Codes) -> Codes:
    index(codes.group.storage, [codes.key], quiet=True)
    return codes


def dense(codes: Codes) -> np.ndarray:
    rows = codes.rows(slice(None))
    matrix = np.zeros((codes.n_rows, codes.d_sae), np.float32)
    for row in range(codes.n_rows):
        filled = rows.values[row] != 0
        matrix[row, rows.indices[row][filled]] = rows.values[row][filled]
    return matrix


def sample_of_row(codes: Codes) -> np.ndarray:
    if codes.positions is None:
        return np.arange(codes.n_rows)
    return np.repeat(np.arange(len(codes.samples)), np.diff(codes.positions.offsets))


def check(codes: Codes, split: str | None, *, special: bool = False) -> None:
    """Compare everything stored of one split with a loop over the units."""
    stats = codes.stats(split=split, special=special)
    sample = sample_of_row(codes)
    counted = np.ones(codes.n_rows, bool)
    if codes.positions is not None and not special:
        counted &= ~codes.positions.special()
    if split is not None:
        counted &= codes.samples.split[sample] == ("" if split == "none" else split)
    assert stats.over == (split or "all") + (", special tokens included" if special else "")
    compare(stats, codes, counted)


def compare(stats: UnitStats, codes: Codes, counted: NDArray[np.bool_]) -> None:
    """Compare statistics over some rows with a loop over the units."""
    matrix, sample = dense(codes), sample_of_row(codes)
    assert len(stats) == codes.d_sae
    assert (stats.n_rows, stats.n_samples) == (counted.sum(), len(np.unique(sample[counted])))
    for unit in range(codes.d_sae):
        rows = np.flatnonzero(counted & (matrix[:, unit] != 0))
        values = matrix[rows, unit]
        assert stats.count[unit] == len(rows)
        assert stats.samples[unit] == len(np.unique(sample[rows]))
        assert stats.sum[unit] == values.astype(float).sum()  # quarters: every sum is exact
        assert stats.sum_squares[unit] == (values.astype(float) ** 2).sum()
        if len(rows):
            assert (stats.max[unit], stats.min[unit]) == (values.max(), values.min())
            assert (stats.first_row[unit], stats.last_row[unit]) == (rows[0], rows[-1])
            right = np.quantile(values, PERCENTILES, method="inverted_cdf")
            np.testing.assert_array_equal(stats.percentiles[unit], right)
            assert stats.mean[unit] == values.astype(float).sum() / len(rows)
        else:
            assert np.isnan([stats.max[unit], stats.min[unit], stats.mean[unit], *stats.percentiles[unit]]).all()
            assert (stats.first_row[unit], stats.last_row[unit]) == (-1, -1)
        if counted.any():
            assert stats.fraction[unit] == len(rows) / counted.sum()
            np.testing.assert_allclose(stats.mean_all[unit], matrix[counted, unit].mean(dtype=float), atol=1e-12)
    np.testing.assert_array_equal(stats.is_dead, stats.count == 0)
    np.testing.assert_array_equal(stats.is_always_on, stats.count >= ALWAYS_ON * stats.n_rows)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments cut samples in two."""
    monkeypatch.setattr("saestore.postings.SEGMENT_ROWS", 50)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("saestore.unit_stats", "saestore.indexing.stats"):
        monkeypatch.setattr(f"{module}.SHARD_UNITS", 16)
    monkeypatch.setattr("saestore.unit_stats.CHUNK_UNITS", 8)


@pytest.mark.usefixtures("small_segments", "small_shards")
@pytest.mark.parametrize(
    ("dtype", "signed", "block"),
    [
        ("float16", False, 1 << 22),
        ("float16", True, 150),
        ("float16", True, 1),
        ("float32", True, 1 << 22),
        ("float32", True, 1),
        ("bfloat16", True, 150),
    ],
)
def test_statistics_are_those_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, signed: bool, block: int
) -> None:
    """A block of 150 entries holds several rare units, and is exceeded by frequent ones; one of 1 by all."""
    monkeypatch.setattr("saestore.tallying.MOST_ENTRIES", block)
    codes = indexed(build_lake(tmp_path / "lake", dtype=dtype, signed=signed))
    assert len(codes.postings.segments) > 4
    (result,) = write_stats(codes.group.storage, [KEY], quiet=True)
    assert result.splits == ("all", "train", "cal", "test", "none")
    assert (result.rows, result.units, result.written_units) == (codes.n_rows, D_SAE, D_SAE)
    for split in (None, *result.splits[1:]):
        check(codes, split)


def test_special_tokens_are_counted_on_request_and_beside_the_others(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake"))
    for special in (True, False):
        write_stats(codes.group.storage, [KEY], special=special, quiet=True)
    for split in (None, "train", "none"):
        check(codes, split, special=True)
        check(codes, split)


@pytest.mark.parametrize(
    ("splits", "stored"),
    [
        (("",), ("all",)),
        (("train",), ("all", "train")),
        (("test", "train"), ("all", "train", "test")),
        (("cal", ""), ("all", "cal", "none")),
    ],
)
def test_only_splits_of_the_dataset_have_statistics(
    tmp_path: Path, splits: tuple[str, ...], stored: tuple[str, ...]
) -> None:
    codes = indexed(build_lake(tmp_path / "lake", splits=splits))
    (result,) = write_stats(codes.group.storage, [KEY], quiet=True)
    assert result.splits == stored
    for split in (None, *stored[1:]):
        check(codes, split)


def test_pooled_rows_are_samples(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    codes = indexed(built.codes("mean"))
    write_stats(built.storage, [codes.key], quiet=True)
    for split in (None, "train", "cal", "test", "none"):
        check(codes, split)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_statistics_of_a_selection_are_computed_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("saestore.tallying.MOST_ENTRIES", block)
    codes = indexed(build_lake(tmp_path / "lake"))
    before = lake_files(tmp_path / "lake")
    sample = sample_of_row(codes)
    place = np.arange(codes.n_rows) - codes.axis.positions.offsets[sample]  # type: ignore[union-attr]
    some = codes.where("position > 2", split=["train", "cal"])
    chosen = (place > 2) & np.isin(codes.samples.split[sample], ["train", "cal"])
    compare(some.stats(special=True), codes, chosen)
    compare(some.stats(), codes, chosen & ~codes.axis.special(np.arange(codes.n_rows)))
    compare(some.stats(split="cal", special=True), codes, chosen & (codes.samples.split[sample] == "cal"))
    assert lake_files(tmp_path / "lake") == before


def test_codes_in_which_no_unit_is_active(tmp_path: Path) -> None:
    codes = build_lake(tmp_path / "lake")
    key = CodesKey("d", "m", "layer_3", "empty", "token")
    write_codes(codes.group.storage, key, top_k(np.zeros((codes.n_rows, 7), np.float32), 3))
    empty = indexed(Codes.open(codes.group.storage, key))
    write_stats(codes.group.storage, [key], quiet=True)
    check(empty, None)
    check(empty, "test")


@pytest.mark.usefixtures("small_segments", "small_shards")
def test_the_bytes_depend_neither_on_memory_nor_on_threads_nor_on_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str, work: Callable[[Codes], None]) -> dict[str, bytes]:
        codes = indexed(build_lake(tmp_path / name / "lake", signed=True, dtype="float32"))
        work(codes)
        return lake_files(tmp_path / name)

    def plainly(codes: Codes) -> None:
        write_stats(codes.group.storage, [KEY], quiet=True)

    def resumed(codes: Codes) -> None:
        storage = codes.group.storage
        write_stats(storage, [KEY], quiet=True)
        assert write_stats(storage, [KEY], quiet=True)[0].written_units == 0
        path = Path(storage.url) / KEY.stats_path(codes.run, "cal")
        (path / "ledger" / "c.1.0.0").unlink()
        for array in ARRAYS:
            for file in (path / array / "c" / "1").rglob("*"):
                if file.is_file():
                    file.write_bytes(b"half")
        with pytest.raises(HoleError, match="16 to 31"):
            _ = UnitStats.open(storage, KEY, run=codes.run, split="cal").count
        assert write_stats(storage, [KEY], quiet=True)[0].written_units == 16

    whole = written("whole", plainly)
    assert written("resumed", resumed) == whole
    monkeypatch.setattr("saestore.tallying.MOST_ENTRIES", 97)
    assert written("blocks", plainly) == whole
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert written("threads", plainly) == whole


def test_codes_without_postings_are_refused(tmp_path: Path) -> None:
    codes = build_lake(tmp_path / "lake")
    with pytest.raises(MissingError, match=r"has no postings.*saestore index --datasets d"):
        write_stats(codes.group.storage, [KEY], quiet=True)
    assert not (tmp_path / "lake" / KEY.stats_root).exists()


@pytest.mark.usefixtures("small_segments")
def test_rows_that_were_never_written_are_not_counted_as_zeros(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake", holes=(5,)))
    with pytest.raises(HoleError, match="rows 80 to 95"):
        write_stats(codes.group.storage, [KEY], quiet=True)


def test_lost_postings_are_named(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake"))
    (tmp_path / "lake" / KEY.segment_path(codes.run, 0) / "ledger" / "c.0.0.0").unlink()
    with pytest.raises(HoleError, match=r"postings of rows 0 to 276 .* saestore index"):
        write_stats(codes.group.storage, [KEY], quiet=True)
    assert not (tmp_path / "lake" / KEY.stats_root).exists()


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake"))
    with pytest.raises(BudgetError, match=r"the statistics of data/d.* the budget is 1.0 MiB; give more with --memory"):
        write_stats(codes.group.storage, [KEY], memory="1MiB", quiet=True)
    assert not (tmp_path / "lake" / KEY.stats_root).exists()


def test_statistics_that_are_not_there_are_told_with_the_remedy(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake", splits=("train", "test")))
    storage = codes.group.storage
    with pytest.raises(MissingError, match=r"has no unit statistics; compute them: saestore stats --datasets d"):
        UnitStats.open(storage, KEY, run=codes.run)
    write_stats(storage, [KEY], quiet=True)
    with pytest.raises(MissingError, match="of split 'cal', only of all, train, test"):
        UnitStats.open(storage, KEY, run=codes.run, split="cal")
    with pytest.raises(MissingError, match="has no unit statistics with special tokens; compute"):
        UnitStats.open(storage, KEY, run=codes.run, special=True)
    with pytest.raises(MissingError, match="only the unit statistics of older codes"):
        UnitStats.open(storage, KEY, run="0" * 16)
    with pytest.raises(InputError, match=r"split 'tests' is unknown; nearest of 5 splits: 'test'"):
        UnitStats.open(storage, KEY, run=codes.run, split="tests")


def test_damaged_statistics_are_not_read(tmp_path: Path) -> None:
    codes = indexed(build_lake(tmp_path / "lake"))
    write_stats(codes.group.storage, [KEY], quiet=True)
    path = tmp_path / "lake" / KEY.stats_path(codes.run, "all") / "percentiles" / "c" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    stats = UnitStats.open(codes.group.storage, KEY, run=codes.run)
    assert stats.count.sum() > 0
    with pytest.raises(IntegrityError, match="percentiles"):
        _ = stats.percentiles


@pytest.fixture
def stats(tmp_path: Path) -> UnitStats:
    codes = indexed(build_lake(tmp_path / "lake", signed=True))
    write_stats(codes.group.storage, [KEY], quiet=True)
    return UnitStats.open(codes.group.storage, KEY, run=codes.run)


def test_tables_are_sorted_and_cut(stats: UnitStats) -> None:
    table = stats.table()
    assert tuple(table) == stats.column_names
    assert len(table["unit"]) == 20
    order = sorted(range(D_SAE), key=lambda unit: (-stats.fraction[unit], unit))
    assert table["unit"].tolist() == order[:20]
    for name, values in (("p99", stats.percentiles[:, 4]), ("p99.9", stats.percentiles[:, 5]), ("min", stats.min)):
        np.testing.assert_array_equal(table[name], values[table["unit"]])
    ascending = stats.table("count", descending=False, limit=None)
    assert ascending["unit"].tolist() == sorted(range(D_SAE), key=lambda unit: (stats.count[unit], unit))
    assert stats.table(limit=0)["unit"].tolist() == []


@pytest.mark.parametrize("descending", [True, False])
def test_units_without_a_value_come_last(stats: UnitStats, descending: bool) -> None:
    units = stats.table("mean", descending=descending, limit=None)["unit"]
    dead = stats.is_dead.sum()
    assert dead >= 10
    assert stats.is_dead[units[-dead:]].all()
    means = stats.mean[units[:-dead]]
    assert (np.diff(means) <= 0).all() if descending else (np.diff(means) >= 0).all()


def test_tables_are_filtered(stats: UnitStats) -> None:
    found = stats.table(limit=None, where={"count": (5, 100), "mean": (None, 0.5)})["unit"]
    right = [u for u in range(D_SAE) if 5 <= stats.count[u] <= 100 and stats.mean[u] <= 0.5]
    assert right
    assert sorted(found.tolist()) == right
    alive = stats.table(limit=None, where={"max": (None, None), "is_dead": (None, 0)})["unit"]
    assert sorted(alive.tolist()) == np.flatnonzero(stats.count).tolist()
    assert stats.table(where={"is_always_on": (1, None)})["unit"].tolist() == [0]


def test_wrong_columns_limits_and_bounds_are_refused(stats: UnitStats) -> None:
    with pytest.raises(InputError, match=r"column 'fractoin' is unknown; nearest of 18 columns: 'fraction'"):
        stats.table("fractoin")
    with pytest.raises(InputError, match="column 'group' is unknown"):
        stats.table(where={"group": (0, 1)})
    with pytest.raises(InputError, match="limit -1 is below 0"):
        stats.table(limit=-1)
    with pytest.raises(InputError, match=r"bounds 3 of column 'count' are not a pair"):
        stats.table(where={"count": 3})  # type: ignore[dict-item]
