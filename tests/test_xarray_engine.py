"""The xarray engine: every kind of indexing agrees with numpy on the dense matrix, and nothing more than it is read."""

from __future__ import annotations

import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from built_lake import CUTS, LENGTHS, BuiltLake, build, sparse_rows, top_k, write_activations, write_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.engine.arrays import dense_chunk_rows
from saestore.errors import BudgetError, HoleError, InputError, IntegrityError, MissingError
from saestore.layout import ActivationsKey, CodesKey
from saestore.rows import Grid, RowGroup
from saestore.xarray_engine import SaestoreBackend, to_xarray

TOKENS = sum(LENGTHS)


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("dense") / "lake"), cuts=request.param)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> BuiltLake:
    """Token rows 16 to 31 were never written."""
    return build(str(tmp_path_factory.mktemp("holed") / "lake"), holes={1})


def opened(built: BuiltLake, **options: Any) -> xr.Dataset:
    return xr.open_dataset(built.codes_url, engine="saestore", storage_options=dict(built.options) or None, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The (array, first row, last row) of every read of a stored array."""
    seen: list[tuple[str, int, int]] = []
    lock, read = threading.Lock(), RowGroup.read

    def recorded(self: RowGroup, name: str, start: int = 0, stop: int | None = None) -> Any:
        with lock:
            if stop is None or stop > start:
                seen.append((name, start, self.grid.rows if stop is None else stop))
        return read(self, name, start, stop)

    monkeypatch.setattr(RowGroup, "read", recorded)
    return seen


def test_codes_open_lazily_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    built = build(*lake_url)
    for chunks in (None, {}):
        dataset = opened(built, chunks=chunks)
        np.testing.assert_array_equal(dataset["codes"].values, built.tokens.dense)
        np.testing.assert_array_equal(dataset["l0"].values, built.tokens.l0)
    tree = xr.open_datatree(built.url(), engine="saestore", storage_options=lake_url[1] or None)
    np.testing.assert_array_equal(tree["data/d/m/layer_3/codes/s/mean/codes"].values, built.means.dense)


def test_what_a_dataset_of_codes_holds(built: BuiltLake, reads: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = opened(built)
    assert reads == [], "opening reads no array"
    assert dict(dataset.sizes) == {"row": TOKENS, "unit": 50}
    assert set(dataset.data_vars) == {"codes", "l0"}
    assert {name: str(variable.dtype) for name, variable in dataset.variables.items()} == {
        "codes": "float32",
        "l0": "uint32",
        "unit": "int64",
        "row_number": "int64",
        "sample": "object",
        "split": "object",
        "position": "int64",
        "special": "bool",
        "token_id": "uint32",
    }
    assert dataset.attrs == {
        **{"lake": built.storage.url, "dataset": "d", "model": "m", "layer": "layer_3", "sample_type": "token"},
        **{"sae": "s", "d_sae": 50, "k": 4},
    }
    owner = built.sample_of_row
    assert dataset["sample"].values.tolist() == [f"sample-{place}" for place in owner]
    assert dataset["split"].values.tolist() == [built.table.split[place] for place in owner]
    assert dataset["position"].values.tolist() == [place for length in LENGTHS for place in range(length)]
    np.testing.assert_array_equal(dataset["special"].values, built.special)
    np.testing.assert_array_equal(dataset["token_id"].values, built.token_id)
    np.testing.assert_array_equal(dataset["unit"].values, np.arange(50))


def test_rows_of_pooled_codes_are_the_samples(built: BuiltLake) -> None:
    dataset = xr.open_dataset(built.url("data/d/m/layer_3/codes/s/mean"), engine="saestore")
    np.testing.assert_array_equal(dataset["codes"].values, built.means.dense)
    assert dataset["sample"].values.tolist() == list(built.table.ids)
    assert dataset["sample"][2:4].values.tolist() == list(built.table.ids[2:4])
    assert dataset["split"].values.tolist() == list(built.table.split)
    assert set(dataset.coords) == {"row_number", "sample", "split", "unit"}


ROWS = [
    3,
    -1,
    slice(None),
    slice(2, 30),
    slice(30, 2, -3),
    slice(2, 9, -1),
    slice(5, 5),
    [7, 7, 0, 38],
    np.array([-1, 4]),
]
UNITS = [0, -50, slice(None), slice(4, 20, 5), slice(None, None, -1), [49, 0, 0], np.array([], dtype=int)]


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_isel_agrees_with_numpy(built: BuiltLake, rows: Any, chunks: Any) -> None:
    dataset, owner = opened(built, chunks=chunks), np.array([f"sample-{place}" for place in built.sample_of_row])
    for units in UNITS:
        found = dataset.isel(row=rows, unit=units)
        expected = built.tokens.dense[rows]
        expected = expected[..., units]
        np.testing.assert_array_equal(found["codes"].values, expected)
        assert found["codes"].shape == expected.shape
        np.testing.assert_array_equal(found["sample"].values, owner[rows])
        np.testing.assert_array_equal(found["token_id"].values, built.token_id[rows])
        np.testing.assert_array_equal(found["l0"].values, built.tokens.l0[rows])


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_sel_is_by_original_unit_id(built: BuiltLake, chunks: Any) -> None:
    dataset = opened(built, chunks=chunks, units=[40, 7, 0])
    assert dataset["unit"].values.tolist() == [40, 7, 0]
    dense = built.tokens.dense
    np.testing.assert_array_equal(dataset["codes"].values, dense[:, [40, 7, 0]])
    np.testing.assert_array_equal(dataset["codes"].sel(unit=7).values, dense[:, 7])
    np.testing.assert_array_equal(dataset["codes"].sel(unit=[0, 40])[9:3:-2].values, dense[9:3:-2][:, [0, 40]])
    np.testing.assert_array_equal(dataset["codes"].sel(unit=slice(7, 0)).values, dense[:, [7, 0]])
    with pytest.raises(KeyError):
        dataset.sel(unit=1)


def test_pointwise_and_boolean_selection(built: BuiltLake) -> None:
    dataset = opened(built)
    rows, units = xr.DataArray([3, 30, 3], dims="pair"), xr.DataArray([1, 0, 49], dims="pair")
    np.testing.assert_array_equal(
        dataset["codes"].isel(row=rows, unit=units).values, built.tokens.dense[[3, 30, 3], [1, 0, 49]]
    )
    train = dataset.isel(row=dataset["split"].values == "train")
    np.testing.assert_array_equal(train["codes"].values, built.tokens.dense[np.isin(built.sample_of_row, [0, 4])])


def test_computations_agree_with_numpy(built: BuiltLake) -> None:
    for chunks in (None, {}, {"row": 16}):
        dataset = opened(built, chunks=chunks)
        words = dataset["codes"].where(~dataset["special"])
        expected = built.tokens.dense[~built.special]
        np.testing.assert_allclose(words.max("row").values, expected.max(axis=0))
        by_sample = dataset["codes"].assign_coords(sample=dataset["sample"].compute()).groupby("sample").sum()
        sums = [built.tokens.dense[built.sample_of_row == place].sum(axis=0) for place in (0, 2, 3, 4, 5, 6)]
        np.testing.assert_allclose(by_sample.transpose("sample", "unit").values, sums)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_chain_of_selections(built: BuiltLake, data: st.DataObject) -> None:
    def indexer(length: int) -> Any:
        places = st.integers(-length, length - 1)
        bounds = st.none() | st.integers(-length - 2, length + 2)
        slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 7]))
        return data.draw(slices | st.lists(places, max_size=6).map(np.array))

    chunks = data.draw(st.sampled_from([None, {}, {"row": 5, "unit": 9}]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the chunks cut stored ones
        found = opened(built, chunks=chunks)["codes"]
    expected = built.tokens.dense
    for _ in range(data.draw(st.integers(1, 3))):
        for axis, dim in enumerate(("row", "unit")):
            if found.size:  # Dask itself fails on an array of places in an axis beside an empty one
                key = indexer(found.sizes[dim])
                key = key.astype(int) if isinstance(key, np.ndarray) else key
                found = found.isel({dim: key})
                expected = expected[key] if axis == 0 else expected[:, key]
    np.testing.assert_array_equal(found.values, expected)


def test_a_slice_reads_its_rows_and_nothing_else(tmp_path: Path, reads: list[tuple[str, int, int]]) -> None:
    built = build(str(tmp_path / "lake"))
    reads.clear()
    _ = opened(built)["codes"][17:21, [3, 5]].values
    assert {name for name, _, _ in reads} == {"indices", "values", "l0"}
    assert all(start >= 17 and stop <= 21 for _, start, stop in reads)
    reads.clear()
    _ = opened(built, chunks={})["codes"].isel(row=slice(17, 21), unit=3).values
    assert reads
    assert all(start >= 17 and stop <= 21 for _, start, stop in reads)


def test_dask_densifies_only_the_units_of_a_slice(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    from saestore.codes import Codes

    widths, dense = [], Codes.dense

    def recorded(self: Codes, rows: Any, units: Any = None, **options: Any) -> Any:
        widths.append(self.d_sae if units is None else len(units))
        return dense(self, rows, units, **options)

    monkeypatch.setattr(Codes, "dense", recorded)
    _ = opened(built, chunks={})["codes"].isel(unit=slice(3, 5)).values
    assert widths == [2, 2, 2]
    widths.clear()
    _ = opened(built, chunks={}, units=[9, 4, 30])["codes"].values
    assert widths == [3, 3, 3]


def test_a_dense_block_is_not_kept(built: BuiltLake, reads: list[Any]) -> None:
    """By default xarray caches what it opened without chunks; a dense block would stay as long as the dataset."""
    dataset = opened(built)
    for whole in (dataset["codes"], dataset["codes"].isel(unit=slice(0, 40))):
        _ = whole.values
        reads.clear()
        _ = whole.values
        assert reads, "the second use came from a cache"
        assert not isinstance(whole.variable._data, np.ndarray)
    kept = dataset["codes"].isel(row=[1]).load()
    reads.clear()
    np.testing.assert_array_equal(kept.values, built.tokens.dense[[1]])
    assert reads == [], "load() is how a user keeps a block"
    tree = xr.open_datatree(built.url("data/d/m/layer_3"), engine="saestore")
    for _ in range(2):
        reads.clear()
        _ = tree["activations/token/activations"].values
        assert reads


def test_reading_from_many_threads(built: BuiltLake) -> None:
    dataset = opened(built)

    def check(start: int) -> bool:
        part = dataset.isel(row=slice(start, start + 7))
        return bool((part["codes"].values == built.tokens.dense[start : start + 7]).all()) and (
            part["position"].values[0] == start - built.offsets[built.sample_of_row[start]]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, [*range(30)] * 3))


def test_a_dataset_is_sent_by_name(built: BuiltLake) -> None:
    for chunks in (None, {}):
        dataset = opened(built, chunks=chunks)
        _ = dataset["sample"].isel(row=0).values, dataset["codes"].isel(row=0).values
        sent = pickle.dumps(dataset["codes"].variable)
        assert len(sent) < 3000
        np.testing.assert_array_equal(pickle.loads(sent).values, built.tokens.dense)
        again = pickle.loads(pickle.dumps(dataset.isel(row=slice(4, 9))))
        assert again.identical(dataset.isel(row=slice(4, 9)))


def test_to_xarray_is_what_open_dataset_gives(built: BuiltLake) -> None:
    assert to_xarray(built.codes(), units=[4, 2]).identical(opened(built, units=[4, 2]))
    assert to_xarray(built.codes("mean"))["codes"].shape == (7, 50)


def test_more_than_the_budget_is_refused_before_reading(built: BuiltLake, reads: list[Any]) -> None:
    dataset = opened(built, memory=1000)
    message = r"39 rows x 50 units needs 7\.6 KiB, the budget is 1000 B; .*units=\[\.\.\.\].*\.isel\(row=.*chunks=\{\}"
    with pytest.raises(BudgetError, match=message):
        _ = dataset["codes"].values
    with pytest.raises(BudgetError):
        dataset["codes"].isel(row=slice(0, 6)).load()
    with pytest.raises(BudgetError):
        opened(built, memory="1 KiB", chunks={})["codes"].compute()  # one chunk of 16 rows is too much
    assert not {"indices", "values"} & {name for name, _, _ in reads}
    assert dataset["codes"].isel(row=slice(0, 5)).values.shape == (5, 50)
    assert dataset["codes"].sel(unit=[4, 5]).values.shape == (TOKENS, 2)
    assert opened(built, memory=1000, units=[4, 5])["codes"].values.shape == (TOKENS, 2)
    activations = xr.open_dataset(built.url("data/d/m/layer_3/activations/token"), engine="saestore", memory=100)
    with pytest.raises(BudgetError, match="39 rows x 6 dimensions needs 936 B"):
        _ = activations["activations"].values


def test_the_default_budget_is_a_share_of_the_free_memory(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(built)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2000))
    with pytest.raises(BudgetError, match=r"the budget is 1\.2 KiB"):
        _ = dataset["codes"].values
    assert dataset["codes"][:6].values.shape == (6, 50)


def test_holes_are_errors_or_nan_but_never_zeros(holed: BuiltLake) -> None:
    dataset = opened(holed)
    np.testing.assert_array_equal(dataset["codes"][:16].values, holed.tokens.dense[:16])
    for read in (dataset["codes"], dataset["l0"], dataset["codes"].isel(row=[0, 20]), opened(holed, chunks={})["l0"]):
        with pytest.raises(HoleError, match="rows 16 to 31"):
            _ = read.values
    expected, l0 = holed.tokens.dense.copy(), holed.tokens.l0.astype(np.float32)
    expected[16:32], l0[16:32] = np.nan, np.nan
    for chunks in (None, {}):
        masked = opened(holed, holes="nan", chunks=chunks)
        np.testing.assert_array_equal(masked["codes"].values, expected)
        np.testing.assert_array_equal(masked["codes"][[33, 17, 1], 4:9].values, expected[[33, 17, 1], 4:9])
        np.testing.assert_array_equal(masked["l0"].values, l0)
        np.testing.assert_array_equal(masked["l0"][[20, 2]].values, l0[[20, 2]])
        assert masked["sample"].values[20] == "sample-4"


def test_activations(built: BuiltLake) -> None:
    for chunks in (None, {}):
        dataset = xr.open_dataset(built.url("data/d/m/layer_3/activations/token"), engine="saestore", chunks=chunks)
        assert dataset["activations"].dims == ("row", "d_in")
        assert dataset["activations"].dtype == np.float32
        np.testing.assert_array_equal(dataset["activations"].values, built.activations)
        np.testing.assert_array_equal(dataset["activations"][[9, 9, 1], 2:4].values, built.activations[[9, 9, 1], 2:4])
        np.testing.assert_array_equal(dataset["activations"][5, [3, 0]].values, built.activations[5, [3, 0]])
        np.testing.assert_array_equal(dataset["special"].values, built.special)
        assert dataset.attrs["stored_dtype"] == "bfloat16"
    pooled = xr.open_dataset(built.url("data/d/m/layer_3/activations/mean"), engine="saestore")
    assert pooled["sample"].values.tolist() == list(built.table.ids)


def test_activations_in_blocks_and_with_holes(holed: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.activations._SHARD_BYTES", 6 * 4 * 10)
    monkeypatch.setattr("saestore.activations._CHUNK_BYTES", 6 * 4 * 5)
    monkeypatch.setattr("saestore._lazy_rows._COPY_BYTES", 1)
    write_activations(
        holed.storage, ActivationsKey("d", "m", "layer_4", "token"), holed.activations, "float32", holes={2}
    )
    url = holed.url("data/d/m/layer_4/activations/token")
    expected = holed.activations.copy()
    expected[20:30] = np.nan
    masked = xr.open_dataset(url, engine="saestore", holes="nan")["activations"]
    np.testing.assert_array_equal(masked.values, expected)
    np.testing.assert_array_equal(masked[[38, 25, 3]].values, expected[[38, 25, 3]])
    strict = xr.open_dataset(url, engine="saestore")["activations"]
    np.testing.assert_array_equal(strict[3:20].values, expected[3:20])
    with pytest.raises(HoleError, match="rows 20 to 29"):
        _ = strict.values


def test_samples(built: BuiltLake) -> None:
    url = built.url("data/d/samples")
    for dataset in (xr.open_dataset(url, engine="saestore"), xr.open_dataset(url, engine="saestore", chunks={})):
        assert set(dataset.coords) == {"id", "split", "concept"}
        assert set(dataset.data_vars) == {"text", "score", "source", "concepts"}
        assert dataset["text"].values.tolist() == list(built.table.contents)
        assert dataset["id"][[3, 1]].values.tolist() == ["sample-3", "sample-1"]
        np.testing.assert_array_equal(dataset["concepts"].sel(concept="cube").values, built.table.concepts[:, 1])
        np.testing.assert_array_equal(dataset["score"].values, np.arange(7) / 4)


LAYER = {f"{kind}/{pooled}" for kind in ("activations", "codes/s") for pooled in ("mean", "token")}


@pytest.mark.parametrize(
    ("base", "nodes"),
    [
        ("", {"/data/d/samples", *(f"/data/d/m/layer_3/{node}" for node in LAYER)}),
        ("data/d", {"/samples", *(f"/m/layer_3/{node}" for node in LAYER)}),
        ("data/d/m/layer_3", {f"/{node}" for node in LAYER}),
        ("data/d/m/layer_3/codes/s/token", {"/"}),
    ],
)
def test_trees_of_a_lake_a_dataset_a_layer_and_a_group(
    built: BuiltLake, base: str, nodes: set[str], reads: list[Any]
) -> None:
    url = built.url(base) if base else built.url()
    assert set(xr.open_groups(url, engine="saestore")) == nodes
    tree = xr.open_datatree(url, engine="saestore")
    assert {node.path for node in tree.subtree if node.has_data} == nodes
    assert reads == []


def test_nodes_of_a_tree_are_read_like_datasets(built: BuiltLake) -> None:
    for chunks in (None, {}):
        tree = xr.open_datatree(built.url("data/d/m/layer_3"), engine="saestore", chunks=chunks)
        np.testing.assert_array_equal(tree["codes/s/token/codes"][3].values, built.tokens.dense[3])
        np.testing.assert_array_equal(tree["activations/token/activations"].values, built.activations)


def test_a_group_whose_creation_was_cut_short_is_no_node(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    (tmp_path / "lake/data/d/m/layer_3/codes/s/token/zarr.json").unlink()
    groups = xr.open_groups(built.url("data/d/m/layer_3"), engine="saestore")
    assert set(groups) == {"/activations/mean", "/activations/token", "/codes/s/mean"}


def test_a_lake_below_folders_named_data(tmp_path: Path) -> None:
    built = build(str(tmp_path / "data/my data/lake"))
    assert opened(built)["codes"].shape == (TOKENS, 50)
    assert xr.open_dataset(Path(built.codes_url), engine="saestore")["codes"].shape == (TOKENS, 50)
    assert xr.open_dataset(built.codes_url + "/", engine="saestore")["codes"].shape == (TOKENS, 50)
    as_url = "file://" + built.codes_url.replace(" ", "%20")
    assert xr.open_dataset(as_url, engine="saestore")["codes"].shape == (TOKENS, 50)
    assert xr.open_datatree(built.url(), engine="saestore")["data/d/samples/score"].shape == (7,)


def test_the_engine_is_guessed_for_what_saestore_wrote(built: BuiltLake, tmp_path: Path) -> None:
    assert xr.open_dataset(built.codes_url)["codes"].shape == (TOKENS, 50)
    assert xr.open_datatree(built.url())["data/d/samples/score"].shape == (7,)
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/zarr.json").write_text("{")
    backend = SaestoreBackend()
    for other in (tmp_path / "other.zarr", tmp_path / "broken", tmp_path / "none", "https://host/lake", 3, b"x"):
        assert not backend.guess_can_open(other)
    assert int(xr.open_dataset(tmp_path / "other.zarr", consolidated=False)["a"][0]) == 1


@pytest.mark.parametrize(
    ("parts", "options", "error", "message"),
    [
        ("data/d/m/layer_3/codes/s/max", {}, MissingError, "nothing at data/d/m/layer_3/codes/s/max"),
        ("data/e/m/layer_3/codes/s/token", {}, MissingError, "nothing at data/e/m/layer_3/codes/s/token"),
        ("data/d/m/layer_3/codes/s/words", {}, InputError, "sample type 'words' is unknown"),
        ("data/d/m/layer_3/activations/max", {}, MissingError, "nothing at data/d/m/layer_3/activations/max"),
        ("data/e/samples", {}, MissingError, "has no dataset 'e'"),
        ("data/d/m/positions", {}, InputError, "positions is not codes/.*xr.open_zarr"),
        ("data/d/m/layer_3", {}, InputError, "xr.open_datatree opens all of these"),
        ("data/d/m/layer_3/codes/s", {}, InputError, "xr.open_datatree opens all of these"),
        ("", {}, InputError, "xr.open_datatree opens all of these"),
        ("data/d/m/layer_3/codes/s/token", {"units": [50]}, MissingError, "unit 50 does not exist"),
        ("data/d/m/layer_3/codes/s/token", {"units": []}, InputError, "not a list of unit numbers"),
        ("data/d/m/layer_3/codes/s/token", {"units": [True] * 50}, InputError, "not a list of unit numbers"),
        ("data/d/m/layer_3/codes/s/token", {"units": "3"}, InputError, "not a list of unit numbers"),
        ("data/d/m/layer_3/codes/s/token", {"memory": "lots"}, InputError, "memory 'lots' is not a size"),
        ("data/d/m/layer_3/codes/s/token", {"holes": "zero"}, InputError, "holes 'zero' is unknown; .*error, nan"),
        ("data/d/m/layer_3/activations/mean", {"units": [1]}, InputError, "units= chooses units of codes"),
    ],
)
def test_what_cannot_be_opened_says_why(
    built: BuiltLake, parts: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        xr.open_dataset(built.url(parts) if parts else built.url(), engine="saestore", **options)


def test_no_lake_and_nothing_below_a_node(built: BuiltLake, tmp_path: Path) -> None:
    for url in (str(tmp_path / "data/d/samples"), "memory://nothing/data/d/samples"):
        with pytest.raises(MissingError, match="lies in no lake"):
            xr.open_dataset(url, engine="saestore")
    with pytest.raises(MissingError, match="nothing below data/d/m/layer_9"):
        xr.open_datatree(built.url("data/d/m/layer_9"), engine="saestore")
    with pytest.raises(InputError, match="int cannot be opened"):
        SaestoreBackend().open_dataset(3)  # type: ignore[arg-type]


def test_an_axis_of_another_length_is_refused(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    write_codes(built.storage, CodesKey("d", "m", "layer_3", "odd", "mean"), top_k(sparse_rows(9, 50, 0), 2))
    with pytest.raises(IntegrityError, match="has 9 rows and its axis has 7"):
        xr.open_dataset(built.url("data/d/m/layer_3/codes/odd/mean"), engine="saestore")


def test_drop_variables(built: BuiltLake) -> None:
    assert "sample" not in opened(built, drop_variables=["sample", "unknown"]).variables
    assert "codes" not in opened(built, drop_variables="codes").variables


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 10**7),
    shard=st.integers(1, 300_000),
    chunk=st.integers(1, 9000),
    row_bytes=st.integers(4, 5 << 20),
)
def test_dask_chunks_are_bounded_and_never_straddle_stored_chunks(
    rows: int, shard: int, chunk: int, row_bytes: int
) -> None:
    grid = Grid.plan(rows, shard_rows=shard, chunk_rows=chunk)
    found = dense_chunk_rows(grid, row_bytes)
    assert 1 <= found <= rows
    assert found * row_bytes <= 128 << 20
    if found < rows:
        assert grid.chunk_rows % found == 0 or found % grid.chunk_rows == 0
        assert grid.shard_rows % found == 0


def test_dask_chunks_of_usual_shapes() -> None:
    grid = Grid.plan(1_400_000, shard_rows=262_144, chunk_rows=4096)
    assert dense_chunk_rows(grid, 16 * 4) == 262_144
    assert dense_chunk_rows(grid, 16_384 * 4) == 2048
    assert dense_chunk_rows(grid, 1024 * 4) == 32_768
    assert dense_chunk_rows(grid, 1 << 20) == 128


@pytest.mark.parametrize("what", ["codes/s/token", "activations/token"])
def test_the_accessor_selects_rows_and_says_what_stands_there(built: BuiltLake, what: str) -> None:
    dataset = xr.open_dataset(built.url(f"data/d/m/layer_3/{what}"), engine="saestore")
    name = what.split("/")[0]
    tests = dataset.isel(row=slice(3, None)).saestore.where("position > 1", split=["test", "train"], special=False)
    place = np.arange(len(built.special)) - built.offsets[built.sample_of_row]
    split = np.array(built.table.split)[built.sample_of_row]
    kept = (place > 1) & np.isin(split, ["test", "train"]) & ~built.special & (np.arange(len(place)) >= 3)
    rows = np.flatnonzero(kept)
    assert tests["row_number"].values.tolist() == rows.tolist()
    whole = built.tokens.dense if name == "codes" else built.activations
    np.testing.assert_array_equal(tests[name].values, whole[rows])
    found = tests.isel(row=[1, 0]).saestore.places()
    assert [(one.row, one.sample, one.position) for one in found] == [
        (row, f"sample-{built.sample_of_row[row]}", place[row]) for row in rows[[1, 0]]
    ]
    with pytest.raises(InputError, match="split 'tets' is unknown"):
        dataset.saestore.where(split="tets")
    with pytest.raises(InputError, match="does not name its lake and rows"):
        xr.Dataset().saestore.places()
