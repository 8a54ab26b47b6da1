"""Codes through a view read as the dense matrix with the other units' columns left out, by every reader."""

from __future__ import annotations

import itertools
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from built_lake import CUTS, LENGTHS, BuiltLake, build, sparse_rows, top_k, write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import saestore.codes as codes_module
from saestore.codes import Codes
from saestore.errors import BudgetError, ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.indexing.stats import write_stats
from saestore.joining import per_sample
from saestore.kernels.restrict import restrict
from saestore.layout import CodesKey
from saestore.storage import open_storage
from saestore.views import UnitChoice, View, view_names, write_view
from saestore.xarray_engine import to_xarray

TOKENS = sum(LENGTHS)
KEPT = np.array([0, 3, 7, 8, 20, 21, 33, 49])
OTHER = np.array([3, 5, 8, 49])
ROWS = [7, slice(None), slice(3, 29), slice(30, 5), [5, 5, 2], [], np.array([38])]


def store(codes: Codes, name: str, units: NDArray[np.int64], **options: Any) -> View:
    view = View(name, units, {"count": np.arange(len(units), dtype=np.uint32)}, **options)
    return write_view(codes.group.storage, codes.key, codes.run, view)


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    built = build(str(tmp_path_factory.mktemp("views") / "lake"), cuts=request.param)
    for sample_type in ("token", "mean"):
        store(built.codes(sample_type), "kept", KEPT, parameters={"dead": 3}, report={"rows": 5})
        store(built.codes(sample_type), "other", OTHER)
        store(built.codes(sample_type), "child", np.array([7, 49]), lineage=("kept",))
        store(built.codes(sample_type), "apart", np.array([1, 2]))
    return built


@pytest.fixture(scope="module")
def seen(built: BuiltLake) -> Codes:
    return built.codes().view("kept")


def oracle(built: BuiltLake, units: NDArray[np.int64] = KEPT) -> NDArray[np.float32]:
    return built.tokens.dense[:, units]


def packed(
    indices: NDArray[Any], values: NDArray[Any], kept: set[int]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Slot by slot."""
    out_indices, out_values = np.zeros_like(indices), np.zeros_like(values)
    filled = np.zeros(len(indices), dtype=np.int64)
    for row in range(len(indices)):
        for unit, value in zip(indices[row], values[row], strict=True):
            if value != 0 and int(unit) in kept:
                out_indices[row, filled[row]], out_values[row, filled[row]] = unit, value
                filled[row] += 1
    return out_indices, out_values, filled


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_restricting_is_the_same_slot_by_slot(data: st.DataObject) -> None:
    n, k, d_sae = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 8)), data.draw(st.sampled_from([1, 12, 300]))
    block = data.draw(st.sampled_from([1, 13, 1 << 17]))
    known = top_k(sparse_rows(n, d_sae, seed=data.draw(st.integers(0, 99))), k)
    kept = data.draw(st.sets(st.integers(0, d_sae - 1)))
    values = known.values.astype(np.float32) * data.draw(st.sampled_from([1, -1]))
    wanted = np.isin(np.arange(d_sae), list(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saestore.kernels.restrict._BLOCK_SLOTS", block)
        found = restrict(np.asfortranarray(known.indices), values, wanted)
    for mine, theirs in zip(found, packed(known.indices, values, kept), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (found[0].dtype, found[1].dtype) == (known.indices.dtype, np.float32)


def test_the_views_of_the_oracle_are_worth_reading(built: BuiltLake) -> None:
    dense = oracle(built)
    assert dense[:, 0].any(), "unit 0, which empty slots point to, is nowhere active"
    held = np.count_nonzero(dense, axis=1)
    assert (held == 0).any()
    assert (held > 1).any()
    assert (held < np.count_nonzero(built.tokens.dense, axis=1)).any()


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_dense_and_scipy(built: BuiltLake, seen: Codes, rows: Any) -> None:
    places = np.atleast_1d(np.arange(TOKENS)[np.asarray(rows, dtype=int) if isinstance(rows, list) else rows])
    block = seen.rows(rows)
    values = built.tokens.values.astype(np.float32)
    for mine, theirs in zip(
        (block.indices, block.values, block.l0),
        packed(built.tokens.indices[places], values[places], set(KEPT.tolist())),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert block.l0.dtype == np.uint32
    np.testing.assert_array_equal(block.rows, places)
    dense = oracle(built)[places]
    np.testing.assert_array_equal(seen.dense(rows), dense)
    np.testing.assert_array_equal(seen.dense(rows, [49, 0, 0, 7]), built.tokens.dense[places][:, [49, 0, 0, 7]])
    for form in ("csr", "csc"):
        matrix = seen.to_scipy(rows, format=form)  # type: ignore[arg-type]
        assert matrix.shape == dense.shape
        matrix.check_format(full_check=True)
        np.testing.assert_array_equal(matrix.toarray(), dense)


def test_a_selection_of_rows_and_a_view_in_either_order(built: BuiltLake) -> None:
    chosen = built.table.split
    rows = np.isin(built.sample_of_row, np.flatnonzero(np.array(chosen) == "train")) & ~built.special
    for codes in (
        built.codes().view("kept").where(split="train", special=False),
        built.codes().where(split="train", special=False).view("kept"),
    ):
        np.testing.assert_array_equal(codes.dense(), oracle(built)[rows])
        np.testing.assert_array_equal(codes.rows(slice(None)).rows, np.flatnonzero(rows))
        assert codes.view_name == "kept"
        np.testing.assert_array_equal(codes.unit(7).rows, np.flatnonzero(rows & (built.tokens.dense[:, 7] != 0)))
        again = pickle.loads(pickle.dumps(codes))
        assert repr(again) == repr(codes)
        np.testing.assert_array_equal(again.dense(), codes.dense())
        assert "view kept of 8 of 50 units" in repr(codes)
        assert "split train" in repr(codes)


def test_blocks_of_a_long_read_join_without_seams(
    built: BuiltLake, seen: Codes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "_SCAN_BYTES", 4 * 10)
    monkeypatch.setattr("saestore.code_rows._DENSE_BYTES", 50 * 4)
    np.testing.assert_array_equal(seen.dense(), oracle(built))
    np.testing.assert_array_equal(
        np.concatenate([block.l0 for block in seen.scan()]), np.count_nonzero(oracle(built), axis=1)
    )


@pytest.mark.parametrize("rows", [slice(None), slice(3, 30), [5, 30, 5, 0]], ids=str)
def test_dense_by_unit_is_dense_by_row(
    built: BuiltLake, seen: Codes, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "_WORTH_POSTINGS", 0)
    monkeypatch.setattr(codes_module, "_UNIT_SLOTS", -1_000)
    taken: list[Any] = []
    by_unit = Codes._dense_by_unit
    monkeypatch.setattr(
        Codes, "_dense_by_unit", lambda self, *given: (taken.append(given[2]), by_unit(self, *given))[1]
    )
    np.testing.assert_array_equal(seen.dense(rows), oracle(built)[rows])
    np.testing.assert_array_equal(taken[0], KEPT)


def test_units_outside_are_refused_by_every_reader(seen: Codes) -> None:
    asks = [
        lambda: seen.dense(units=[3, 4]),
        lambda: seen.unit(4),
        lambda: seen.units([3, 4]),
        lambda: seen.top([4]),
        lambda: seen.to_dask(units=[4]),
        lambda: to_xarray(seen, units=[4]),
        lambda: per_sample(seen, "max", units=[4]),
    ]
    for ask in asks:
        with pytest.raises(MissingError, match=r"unit 4 is not in view 'kept' of .*, which keeps 8 of 50 units"):
            ask()
    with pytest.raises(MissingError, match="unit 50 does not exist"):
        seen.dense(units=[50])


def test_torch(built: BuiltLake, seen: Codes) -> None:
    for layout in ("sparse_csr", "sparse_coo"):
        np.testing.assert_array_equal(seen.to_torch(layout=layout).to_dense().numpy(), oracle(built))  # type: ignore
    indices, values = seen.to_torch(layout="topk")
    block = seen.rows(slice(None))
    np.testing.assert_array_equal(indices.numpy(), block.indices)  # original ids
    np.testing.assert_array_equal(values.numpy(), block.values)


def test_long_tables_hold_original_units(built: BuiltLake, seen: Codes) -> None:
    frame = seen.to_pandas()
    dense = np.zeros_like(built.tokens.dense)
    dense[frame["row"], frame["unit"]] = frame["value"]
    expected = built.tokens.dense.copy()
    expected[:, np.setdiff1d(np.arange(50), KEPT)] = 0
    np.testing.assert_array_equal(dense, expected)
    assert len(frame) == np.count_nonzero(expected)
    assert seen.to_arrow().to_pandas()["unit"].tolist() == frame["unit"].tolist()


def test_dask_and_anndata(built: BuiltLake, seen: Codes) -> None:
    lazy = seen.to_dask(chunk_rows=8)
    assert lazy.shape == (TOKENS, len(KEPT))
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), oracle(built))
    np.testing.assert_array_equal(lazy[5:20, 2:4].compute(scheduler="synchronous"), oracle(built)[5:20, 2:4])
    for by in ("row", "unit"):
        annotated = seen.to_anndata(by=by)  # type: ignore[arg-type]
        assert annotated.var["unit"].tolist() == KEPT.tolist()
        assert annotated.var_names.tolist() == [str(unit) for unit in KEPT]
        assert annotated.uns["view"] == "kept"
        np.testing.assert_array_equal(annotated[:, ["49", "7"]].to_memory().X.toarray(), oracle(built)[:, [7, 2]])
        np.testing.assert_array_equal(annotated.to_memory().X.toarray(), oracle(built))
    assert "view" not in built.codes().to_anndata().uns


@pytest.mark.parametrize("chunks", [None, {}])
def test_xarray(built: BuiltLake, seen: Codes, chunks: Any) -> None:
    opened = xr.open_dataset(built.codes_url, engine="saestore", view="kept", chunks=chunks)
    for dataset in (opened, to_xarray(seen)):
        assert dataset["unit"].values.tolist() == KEPT.tolist()
        assert dataset.attrs["view"] == "kept"
        np.testing.assert_array_equal(dataset["codes"].values, oracle(built))
        np.testing.assert_array_equal(dataset["l0"].values, np.count_nonzero(oracle(built), axis=1))
        np.testing.assert_array_equal(dataset["codes"].sel(unit=[49, 3])[4:9].values, oracle(built)[4:9][:, [7, 1]])
        np.testing.assert_array_equal(dataset["l0"][[9, 2]].values, np.count_nonzero(oracle(built), axis=1)[[9, 2]])
    named = xr.open_dataset(built.codes_url, engine="saestore", view="kept", units=[21, 0], chunks=chunks)
    np.testing.assert_array_equal(named["codes"].values, built.tokens.dense[:, [21, 0]])
    with pytest.raises(MissingError, match="not in view 'kept'"):
        xr.open_dataset(built.codes_url, engine="saestore", view="kept", units=[1])
    with pytest.raises(InputError, match="view= chooses units"):
        xr.open_dataset(built.url("data/d/samples"), engine="saestore", view="kept")
    selected = to_xarray(seen.where(special=False))
    np.testing.assert_array_equal(selected["codes"].values, oracle(built)[~built.special])


def test_holes_are_nan_through_a_view(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), holes={1})
    codes = built.codes()
    store(codes, "kept", KEPT)
    expected = oracle(built).copy()
    expected[16:32] = np.nan
    np.testing.assert_array_equal(codes.view("kept").dense(holes="nan"), expected)
    dataset = xr.open_dataset(built.codes_url, engine="saestore", view="kept", holes="nan")
    np.testing.assert_array_equal(dataset["codes"].values, expected)
    active = np.where(np.isnan(expected[:, 0]), np.nan, np.count_nonzero(oracle(built), axis=1))
    np.testing.assert_array_equal(dataset["l0"].values, active)
    with pytest.raises(HoleError):
        codes.view("kept").rows(slice(None))


@pytest.mark.parametrize("how", ["max", "mean", "count"])
def test_per_sample(built: BuiltLake, seen: Codes, how: Any) -> None:
    everything, found = per_sample(built.codes(), how), per_sample(seen, how)
    assert found.units.tolist() == KEPT.tolist()
    np.testing.assert_array_equal(found.values.toarray(), everything.values.toarray()[:, KEPT])


def test_units_top_and_statistics(built: BuiltLake, seen: Codes) -> None:
    whole = built.codes()
    for mine, theirs in zip(seen.units([20, 3]), whole.units([20, 3]), strict=True):
        np.testing.assert_array_equal(mine.rows, theirs.rows)
        np.testing.assert_array_equal(mine.values, theirs.values)
    assert [found.unit for found in seen.top([49, 7], n=2)] == [49, 7]
    write_stats(built.storage, [whole.key], quiet=True)
    for codes, everything in (
        (seen, whole.stats(split="train")),
        (seen.where("position >= 0"), whole.where("position >= 0").stats(split="train")),
    ):
        stats = codes.stats(split="train")
        assert len(stats) == len(KEPT)
        assert stats.units.tolist() == KEPT.tolist()
        table = stats.table(sort_by="count", limit=None)
        assert sorted(table["unit"].tolist()) == KEPT.tolist()
        for name in stats.column_names:
            np.testing.assert_array_equal(table[name], everything.column(name)[table["unit"]])
    assert everything.units.tolist() == list(range(50))


def test_pooled_codes_have_views_of_their_own(built: BuiltLake) -> None:
    np.testing.assert_array_equal(built.codes("mean").view("kept").dense(), built.means.dense[:, KEPT])


def test_views_compose(built: BuiltLake) -> None:
    codes = built.codes()
    both = codes.view("kept").view("other")
    assert both.kept_units.tolist() == [3, 8, 49]
    assert both.view_name == "kept & other"
    np.testing.assert_array_equal(both.dense(), built.tokens.dense[:, [3, 8, 49]])
    np.testing.assert_array_equal(codes.view("other").view("kept").dense(), both.dense())
    child = codes.view("kept").view("child")
    assert (child.view_name, child.kept_units.tolist()) == ("child", [7, 49])
    assert codes.view("child").view("kept").view_name == "child"
    assert codes.view("kept").view("kept").view_name == "kept"
    with pytest.raises(InputError, match=r"'kept' and 'apart' .* no unit in common"):
        codes.view("kept").view("apart")
    assert (codes.view_name, codes.kept_units.tolist()) == (None, list(range(50)))


def test_what_is_stored_comes_back(built: BuiltLake) -> None:
    codes = built.codes()
    view = View.open(built.storage, codes.key, codes.run, "kept")
    np.testing.assert_array_equal(view.units, KEPT)
    np.testing.assert_array_equal(view.figures["count"], np.arange(8))
    assert (view.parameters, view.report, view.parent, view.lineage) == ({"dead": 3}, {"rows": 5}, None, ())
    child = View.open(built.storage, codes.key, codes.run, "child")
    assert (child.parent, child.lineage) == ("kept", ("kept",))
    assert view_names(built.storage, codes.key, codes.run) == ["apart", "child", "kept", "other"]
    assert repr(child) == "<View child: 2 units, from kept>"


@settings(max_examples=30, deadline=None)
@given(units=st.sets(st.integers(0, 69_999), min_size=1, max_size=40))
def test_units_and_columns_are_each_others_inverse(units: set[int]) -> None:
    """Original id to column to original id, in ascending order."""
    storage = open_storage(f"memory://{uuid.uuid4()}")
    key = CodesKey("d", "m", "l", "s", "mean")
    write_view(storage, key, "0" * 16, View("v", np.array(sorted(units))))
    choice = UnitChoice.of(storage, key, "0" * 16, ["v"], 70_000)
    assert choice.units.tolist() == sorted(units)
    assert choice.lookup.column[choice.units].tolist() == list(range(len(units)))
    assert np.flatnonzero(choice.lookup.wanted).tolist() == sorted(units)


def test_writing_again_is_nothing_and_writing_otherwise_is_refused(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake")).codes()
    store(codes, "v", KEPT, parameters={"dead": 3, "legacy": False})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*")}
    store(codes, "v", KEPT, parameters={"dead": 3, "legacy": False})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*")} == before
    for units, options, told in (
        (KEPT, {"parameters": {"dead": 4, "legacy": False}}, "8 units, which was made with dead 3"),
        (KEPT, {"parameters": {"dead": 3, "legacy": True}}, "made with legacy false"),
        (OTHER, {"parameters": {"dead": 3, "legacy": False}}, "keeps other units"),
        (KEPT, {"parameters": {"dead": 3, "legacy": False}, "lineage": ("w",)}, "made from all units"),
    ):
        with pytest.raises(ConflictError, match=f"'v' already, .*{told}; give the new one another name"):
            store(codes, "v", units, **options)  # type: ignore[arg-type]


def test_a_refused_view_says_what_the_stored_one_was_made_with_rather_than_what_it_was_not(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake")).codes()
    store(codes, "v", KEPT, parameters={"criteria": {}, "rule": {"dead": 3}})
    with pytest.raises(ConflictError, match=r'made with rule \{"dead": 3\}; give'):
        store(codes, "v", KEPT, parameters={"criteria": {"dead": 5}, "rule": None})


def test_a_view_that_was_not_written_to_its_end_is_finished(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake")).codes()
    store(codes, "v", KEPT)
    entry = tmp_path / "lake" / codes.key.view_path(codes.run, "v") / "ledger/c.0.0.0"
    entry.unlink()
    with pytest.raises(HoleError, match="views"):
        codes.view("v")
    store(codes, "v", KEPT)
    assert codes.view("v").kept_units.tolist() == KEPT.tolist()


def test_names_that_cannot_be_and_views_that_keep_nothing(built: BuiltLake) -> None:
    for name in ("all", "ALL", "a/b", "", "..", "a & b"):
        with pytest.raises(InputError, match="name"):
            store(built.codes(), name, KEPT)
    with pytest.raises(InputError, match="would keep no unit"):
        store(built.codes(), "none", np.array([], dtype=np.int64))


def test_unknown_views_name_the_nearest(built: BuiltLake) -> None:
    codes = built.codes()
    for name in ("kep", "all"):
        with pytest.raises(MissingError, match=f"no view '{name}'; .*saestore prune"):
            codes.view(name)
    with pytest.raises(MissingError, match="nearest of 4 views: 'kept'"):
        codes.view("kep")
    with pytest.raises(InputError, match="view name"):
        codes.view("../kept")
    with pytest.raises(MissingError, match=r"no view 'kept'; it has no views; make one with: saestore prune"):
        write_and_open(f"memory://{uuid.uuid4()}").view("kept")


def write_and_open(url: str) -> Codes:
    storage, key = open_storage(url), CodesKey("d", "m", "l", "s", "mean")
    write_codes(storage, key, top_k(sparse_rows(9, 50, seed=1), 4))
    return Codes.open(storage, key)


def test_views_of_older_codes_are_not_found(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake")).codes()
    folder = tmp_path / "lake" / codes.key.views_root
    store(codes, "v", KEPT)
    (folder / codes.run).rename(folder / ("0" * 16))
    with pytest.raises(MissingError, match=r"'v' only of older codes: the codes were re-encoded.*saestore prune"):
        codes.view("v")
    with pytest.raises(MissingError, match="no view 'w'"):
        codes.view("w")


def test_a_group_that_is_no_view_is_refused(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake")).codes()
    write_stats(codes.group.storage, [codes.key], quiet=True)
    stats = tmp_path / "lake" / codes.key.stats_path(codes.run, "all")
    views = tmp_path / "lake" / codes.key.views_path(codes.run)
    views.mkdir(parents=True)
    stats.rename(views / "v")
    with pytest.raises(IntegrityError, match=r"views/.* is not a view; delete it"):
        codes.view("v")


def test_more_than_the_memory_is_refused_by_the_width_of_the_view(seen: Codes) -> None:
    with pytest.raises(BudgetError, match="39 rows x 8 units"):
        seen.dense(memory=100)


def test_status_lists_views(built: BuiltLake) -> None:
    found = {(row.note, row.rows, row.state) for row in built.lake.status() if row.kind == "view"}
    assert found == {("kept", 8, "done"), ("other", 4, "done"), ("child", 2, "done"), ("apart", 2, "done")}


def test_what_lies_below_a_view_is_no_view(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    codes = built.codes()
    store(codes, "v", KEPT)
    for name in ("v", "all"):
        (tmp_path / "lake" / codes.key.result_path(codes.run, name, "thresholds", "t")).mkdir(parents=True)
    assert view_names(built.storage, codes.key, codes.run) == ["v"]
    assert [row.note for row in built.lake.status() if row.kind == "view"] == ["v"]
    assert list(itertools.chain(built.lake.code_keys())) == list(built.lake.code_keys())


def test_decode_uses_the_units_of_the_view_alone(tmp_path: Path) -> None:
    from small_lake import random_sae

    from saestore.saes.lake import write_sae

    built = build(str(tmp_path / "lake"))
    sae = random_sae("jumprelu", d_in=6, d_sae=50)
    write_sae(built.storage, "s", sae)
    store(built.codes(), "kept", KEPT)
    expected = oracle(built) @ sae.rows("W_dec", slice(0, 50))[KEPT]
    np.testing.assert_allclose(built.codes().view("kept").decode(), expected, rtol=1e-4, atol=1e-5)
