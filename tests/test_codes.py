"""Reading codes agrees with the dense matrix that they stand for, on every storage and for any chunking."""

from __future__ import annotations

import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import CUTS, LENGTHS, QUALITY, BuiltLake, build, sample_table, sparse_rows, top_k, write_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.codes import Codes
from saestore.errors import BudgetError, HoleError, InputError, MissingError
from saestore.indexing.writer import index
from saestore.layout import CodesKey
from saestore.storage import open_storage
from saestore.tables import write_samples

TOKENS = sum(LENGTHS)


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("codes") / "lake"), cuts=request.param)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> BuiltLake:
    """Token rows 16 to 31 were never written."""
    return build(str(tmp_path_factory.mktemp("holed") / "lake"), holes={1})


def test_reads_the_same_from_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    built = build(*lake_url)
    codes = Codes.open(
        open_storage(lake_url[0], storage_options=lake_url[1]), CodesKey("d", "m", "layer_3", "s", "token")
    )
    np.testing.assert_array_equal(codes.dense(), built.tokens.dense)
    block = codes.rows([38, 0, 17])
    np.testing.assert_array_equal(block.indices, built.tokens.indices[[38, 0, 17]])
    np.testing.assert_array_equal(block.values, built.tokens.values[[38, 0, 17]])
    np.testing.assert_array_equal(block.l0, built.tokens.l0[[38, 0, 17]])


def test_the_content_of_the_oracle_is_worth_reading(built: BuiltLake) -> None:
    assert (built.tokens.l0 > 4).any(), "no row is truncated"
    assert (built.tokens.l0 == 0).any(), "no row is without active units"
    assert built.tokens.dense[:, 0].any(), "unit 0, which empty slots point to, is nowhere active"


def test_attributes(built: BuiltLake) -> None:
    codes = built.codes()
    assert (len(codes), codes.n_rows, codes.k, codes.d_sae) == (TOKENS, TOKENS, 4, 50)
    assert codes.quality == {**QUALITY, "rows": 100 * (1 + len(built.cuts))}
    assert "39 rows, 50 units, k 4" in repr(codes)


@pytest.mark.parametrize(
    "rows",
    [7, -0, slice(None), slice(3, 29), slice(-5, None), slice(30, 5), slice(35, 99), [5, 5, 2], [], np.array([38])],
    ids=str,
)
def test_rows_and_dense_and_scipy_for_any_choice_of_rows(built: BuiltLake, rows: Any) -> None:
    codes, expected = built.codes(), built.tokens
    places = np.atleast_1d(np.arange(TOKENS)[np.asarray(rows, dtype=int) if isinstance(rows, list) else rows])
    block = codes.rows(rows)
    np.testing.assert_array_equal(block.rows, places)
    np.testing.assert_array_equal(block.indices, expected.indices[places])
    np.testing.assert_array_equal(block.values, expected.values[places])
    np.testing.assert_array_equal(block.l0, expected.l0[places])
    assert block.values.dtype == np.float32
    np.testing.assert_array_equal(codes.dense(rows), expected.dense[places])
    np.testing.assert_array_equal(codes.dense(rows, [49, 0, 0, 7]), expected.dense[places][:, [49, 0, 0, 7]])
    sparse = codes.to_scipy(rows)
    assert sparse.shape == (places.size, 50)
    assert sparse.nnz == np.count_nonzero(expected.dense[places])
    np.testing.assert_array_equal(sparse.toarray(), expected.dense[places])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_chunking_and_selection_reads_the_same(data: st.DataObject) -> None:
    n, d_sae = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 9, 70_000]))
    k = data.draw(st.integers(1, 10))
    known = top_k(sparse_rows(n, 9 if d_sae > 9 else d_sae, seed=n), k)
    if d_sae == 70_000:  # the high unit ids that need uint32
        wide = np.zeros((n, d_sae), dtype=np.float32)
        wide[:, -9:] = known.dense
        indices = np.where(known.values != 0, known.indices.astype(np.uint32) + (d_sae - 9), 0).astype(np.uint32)
        known = type(known)(indices, known.values, known.l0, wide)
    shard_rows, chunk_rows = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    holes = data.draw(st.sets(st.integers(0, 3), max_size=2))
    key = CodesKey("d", "m", "l", "s", "mean")
    storage = open_storage(f"memory://{uuid.uuid4()}")
    group = write_codes(storage, key, known, shard_rows=shard_rows, chunk_rows=chunk_rows, holes=holes)
    codes = Codes.open(storage, key)

    expected = known.dense.copy()
    for shard in holes & set(range(group.grid.n_shards)):
        expected[shard * group.grid.shard_rows : (shard + 1) * group.grid.shard_rows] = np.nan
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=9))
    units = data.draw(st.lists(st.integers(max(0, d_sae - 9), d_sae - 1), min_size=1, max_size=5))
    for rows in (slice(start, stop), np.array(places, dtype=int)):
        for chosen in (units, None) if d_sae < 100 else (units,):
            wanted = expected[rows] if chosen is None else expected[rows][:, chosen]
            np.testing.assert_array_equal(codes.dense(rows, chosen, holes="nan"), wanted)
            if np.isnan(expected[rows]).any():
                with pytest.raises(HoleError):
                    codes.dense(rows, chosen)
            else:
                np.testing.assert_array_equal(codes.dense(rows, chosen), wanted)


def test_blocks_of_a_long_read_join_without_seams(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one stored chunk, densified row by row, as in a lake that is larger than memory."""
    monkeypatch.setattr("saestore.codes._SCAN_BYTES", 4 * 10)
    monkeypatch.setattr("saestore.code_rows._DENSE_BYTES", 50 * 4)
    codes, order = built.codes(), np.random.default_rng(0).permutation(TOKENS)
    blocks = list(codes.scan(3, 30))
    assert [len(block.rows) for block in blocks] == [4, 4, 4, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), np.arange(3, 30))
    np.testing.assert_array_equal(np.concatenate([block.values for block in blocks]), built.tokens.values[3:30])
    np.testing.assert_array_equal(codes.dense(slice(3, 30)), built.tokens.dense[3:30])
    np.testing.assert_array_equal(codes.dense(order), built.tokens.dense[order])
    np.testing.assert_array_equal(codes.dense(order, holes="nan"), built.tokens.dense[order])


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_top_rows_are_those_of_a_full_sort(built: BuiltLake, special: bool, n: int) -> None:
    dense = built.tokens.dense.copy()
    if not special:
        dense[built.special] = 0
    units = [int(np.count_nonzero(dense, axis=0).argmax()), 0, 49, 0]
    for unit, found in zip(units, built.codes().top(units, n, special=special), strict=True):
        active = np.flatnonzero(dense[:, unit])
        expected = sorted(active, key=lambda row: (-dense[row, unit], row))[:n]
        assert found.unit == unit
        assert found.active_rows == len(active)
        assert found.rows.tolist() == expected
        np.testing.assert_array_equal(found.values, dense[expected, unit])


def test_top_rows_of_signed_codes_are_the_largest_magnitudes() -> None:
    dense = np.array([[1, -2], [-3, -0.5], [0, -2], [3, 0]], np.float32)
    storage, key = open_storage(f"memory://{uuid.uuid4()}"), CodesKey("d", "m", "l", "s", "mean")
    write_samples(storage, "d", sample_table(4))
    write_codes(storage, key, top_k(dense, 2))
    index(storage, [key], quiet=True)
    first, second = Codes.open(storage, key).top([0, 1], 3)
    assert (first.rows.tolist(), first.values.tolist(), first.active_rows) == ([1, 3, 0], [-3, 3, 1], 3)
    assert (second.rows.tolist(), second.values.tolist(), second.active_rows) == ([0, 2, 1], [-2, -2, -0.5], 3)


def test_top_of_pooled_codes_is_over_samples(built: BuiltLake) -> None:
    dense = built.means.dense
    unit = int(dense.max(axis=0).argmax())
    (found,) = built.codes("mean").top([unit], 1)
    assert found.rows.tolist() == [int(dense[:, unit].argmax())]


def test_rows_and_samples(built: BuiltLake) -> None:
    codes = built.codes()
    np.testing.assert_array_equal(codes.sample_of(np.arange(TOKENS)), built.sample_of_row)
    rows = codes.rows_of_samples(np.array([4, 1, 0]))
    assert rows.tolist() == [*np.flatnonzero(built.sample_of_row == 4), *range(LENGTHS[0])]
    assert codes.rows_of_samples(np.array([1])).size == 0
    pooled = built.codes("mean")
    assert pooled.positions is None
    assert pooled.sample_of(np.array([3, 1])).tolist() == [3, 1]
    assert pooled.rows_of_samples(np.array([6])).tolist() == [6]


def test_holes_are_errors_or_nan_but_never_zeros(holed: BuiltLake) -> None:
    codes, expected = holed.codes(), holed.tokens.dense.copy()
    expected[16:32] = np.nan
    np.testing.assert_array_equal(codes.dense(slice(0, 16)), expected[:16])
    np.testing.assert_array_equal(codes.dense(holes="nan"), expected)
    np.testing.assert_array_equal(codes.dense([33, 20, 0], [1, 2], holes="nan"), expected[[33, 20, 0]][:, [1, 2]])
    assert np.isnan(codes.dense(slice(17, 20), holes="nan")).all()
    for read in (
        lambda: codes.dense(),
        lambda: codes.dense([0, 20]),
        lambda: codes.rows(slice(0, 17)),
        lambda: codes.rows(31),
        lambda: codes.to_scipy(),
        lambda: list(codes.scan()),
        lambda: codes.top([3]),
    ):
        with pytest.raises(HoleError, match="rows 16 to 31"):
            read()


def test_more_than_the_budget_is_refused(built: BuiltLake) -> None:
    codes = built.codes()
    with pytest.raises(BudgetError, match=r"39 rows x 50 units needs 7\.6 KiB, the budget is 1000 B; .*units=\["):
        codes.dense(memory=1000)
    assert codes.dense(slice(0, 5), memory=1000).shape == (5, 50)
    assert codes.dense(units=[1, 2, 3], memory="1 KiB").shape == (TOKENS, 3)
    with pytest.raises(BudgetError):
        codes.dense(np.arange(6), memory=1000)
    with pytest.raises(InputError, match="not a size"):
        codes.dense(memory="much")


@pytest.mark.parametrize(
    ("rows", "units", "error", "message"),
    [
        ([0, 39], None, InputError, "row 39 does not exist: .*rows 0 to 38"),
        ([-1], None, InputError, "row -1 does not exist"),
        (39, None, InputError, "row 39"),
        (slice(0, 9, 2), None, InputError, "has a step"),
        ([0.5], None, InputError, "rows of type float64"),
        (np.zeros(39, dtype=bool), None, InputError, "np.flatnonzero"),
        (slice(None), [50], MissingError, "unit 50 does not exist: this SAE has units 0 to 49"),
        (slice(None), [-1], MissingError, "unit -1"),
        (slice(None), np.zeros(50, dtype=bool), InputError, "units of type bool"),
    ],
)
def test_rows_and_units_that_do_not_exist(
    built: BuiltLake, rows: Any, units: Any, error: type[Exception], message: str
) -> None:
    for holes in ("error", "nan"):
        with pytest.raises(error, match=message):
            built.codes().dense(rows, units, holes=holes)  # type: ignore[arg-type]


def test_top_of_units_that_do_not_exist(built: BuiltLake) -> None:
    with pytest.raises(MissingError, match="unit 99"):
        built.codes().top([99])


def test_missing_codes(built: BuiltLake) -> None:
    with pytest.raises(MissingError, match="data/d/m/layer_3/codes/s/max"):
        built.codes("max")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_values_of_every_dtype_come_back_as_float32(dtype: str) -> None:
    storage, key = open_storage(f"memory://values-{dtype}"), CodesKey("d", "m", "l", "s", "mean")
    known = top_k(sparse_rows(20, 50, 3), 6)
    assert write_codes(storage, key, known, dtype=dtype).read("values").dtype == np.dtype(
        "uint16" if dtype == "bfloat16" else dtype
    )
    codes = Codes.open(storage, key)
    assert codes.rows(slice(None)).values.dtype == np.float32
    np.testing.assert_array_equal(codes.dense(), known.dense)
    np.testing.assert_array_equal(codes.to_scipy().toarray(), known.dense)


def test_a_handle_is_sent_by_name(built: BuiltLake) -> None:
    codes = built.codes()
    _ = codes.samples.ids, codes.positions.offsets if codes.positions else None
    sent = pickle.dumps(codes)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).dense(), built.tokens.dense)


def test_reading_needs_no_model_library(built: BuiltLake) -> None:
    """A reader's machine has neither torch nor numba."""
    program = """
import sys
import xarray as xr
from saestore.lake import Lake
lake = Lake.open(sys.argv[1])
codes = lake.codes("d", sample_type="token")
codes.rows([1]), codes.top([3]), codes.dense(units=[1]), lake.status()
lake.activations("d", sample_type="token").read()
dataset = xr.open_dataset(sys.argv[2], engine="saestore", units=[3, 1], chunks={})
print(float(dataset.load()["codes"].sum()))
print([name for name in ("torch", "numba", "sae_lens", "transformers", "sklearn") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(built.storage.url)), built.codes_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, loaded = done.stdout.splitlines()
    assert float(total) == built.tokens.dense[:, [3, 1]].sum() > 0
    assert loaded == "[]"
