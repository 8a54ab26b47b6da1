"""Finding things in a lake by as few names as are needed, and its status."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from built_lake import BuiltLake, build, sample_table, sparse_rows, top_k, write_activations, write_codes

from saestore.errors import BudgetError, HoleError, InputError, IntegrityError, MissingError
from saestore.lake import Lake, layer_name
from saestore.layout import ActivationsKey, CodesKey, sae_path
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.samples import SampleTable
from saestore.storage import open_storage, put_group, read_document
from saestore.tables import write_samples


@pytest.fixture
def built(tmp_path: Path) -> BuiltLake:
    return build(str(tmp_path / "lake"), holes={1})


def add_sae(built: BuiltLake, name: str) -> None:
    group = RowGroup.create(
        built.storage,
        sae_path(name),
        kind="sae",
        axis="unit",
        grid=Grid.plan(50, shard_rows=32, chunk_rows=8),
        arrays=[ArraySpec("W_enc", "float32", 6, width_axis="d_in", codec="none")],
        identity={"sha": name},
    )
    group.write_shard(0, {"W_enc": np.ones((32, 6), dtype=np.float32)})


def test_create_open_and_names_on_every_storage(lake_url: tuple[str, dict[str, Any]]) -> None:
    url, options = lake_url
    with pytest.raises(MissingError, match=r"there is no lake at .*; check the path, or make one with: saestore init"):
        Lake.open(url, storage_options=options)
    created = Lake.create(url, storage_options=options)
    assert (created.datasets(), created.saes(), created.status()) == ([], [], [])
    build(url, options)
    lake = Lake.create(url, storage_options=options)  # the one that is there
    assert lake.datasets() == ["d"]
    assert lake.models("d") == ["m"]
    assert lake.layers("d", "m") == ["layer_3"]
    assert lake.codes("d", sample_type="mean").n_rows == 7
    assert {row.kind for row in lake.status()} == {"samples", "positions", "activations", "codes", "postings"}
    sent = pickle.loads(pickle.dumps(lake))
    assert sent.positions("d").has("token_id")
    assert "1 datasets" in repr(sent)


def test_a_place_that_is_no_lake(tmp_path: Path) -> None:
    put_group(open_storage(tmp_path), "", {"other": 1})
    with pytest.raises(InputError, match="holds a Zarr node that is not a lake"):
        Lake.create(tmp_path)
    with pytest.raises(MissingError):
        Lake.open(tmp_path)
    put_group(open_storage(tmp_path / "new"), "", {"saestore": {"format": 99}})
    with pytest.raises(InputError, match="has format 99, this saestore reads 1"):
        Lake.open(tmp_path / "new")


def test_layers_are_listed_from_the_first_to_the_last(built: BuiltLake) -> None:
    for layer in ("layer_20", "layer_3.mlp_out", "final"):
        write_activations(built.storage, ActivationsKey("d", "m", layer, "mean"), np.ones((7, 2), "f4"), "float32")
    assert built.lake.layers("d", "m") == ["layer_3", "layer_3.mlp_out", "layer_20", "final"]


@pytest.mark.parametrize(
    ("given_", "stored"),
    [(22, "layer_22"), ("22", "layer_22"), ("layer_22.mlp_out", "layer_22.mlp_out"), ("emb", "emb"), (None, None)],
)
def test_layer_names(given_: str | int | None, stored: str | None) -> None:
    assert layer_name(given_) == stored


def test_what_is_unique_may_be_left_out(built: BuiltLake) -> None:
    lake = built.lake
    np.testing.assert_array_equal(lake.codes("d", sample_type="mean").dense(), built.means.dense)
    np.testing.assert_array_equal(lake.codes("d", layer=3, sae="s", sample_type="mean", model="m").dense()[:, 0],
                                  built.means.dense[:, 0])  # fmt: skip
    np.testing.assert_array_equal(lake.activations("d", sample_type="token").read(), built.activations)
    assert len(lake.positions("d")) == len(built.special)
    assert lake.samples("d").ids[0] == "sample-0"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_activations_of_every_dtype_come_back_as_float32(built: BuiltLake, dtype: str) -> None:
    key = ActivationsKey("d", "m", "layer_9", "token")
    write_activations(built.storage, key, built.activations, dtype)
    activations = built.lake.activations("d", layer=9)
    assert (activations.n_rows, activations.d_in, activations.dtype) == (39, 6, dtype)
    for block, rows in (
        (activations.read(), slice(None)),
        (activations.read(5, 9), slice(5, 9)),
        (activations.take(np.array([38, 0, 0])), [38, 0, 0]),
    ):
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, built.activations[rows])


def test_activations_that_were_not_written(built: BuiltLake) -> None:
    key = ActivationsKey("d", "m", "layer_9", "token")
    write_activations(built.storage, key, built.activations, "float32", holes={0})
    with pytest.raises(HoleError, match="rows 0 to 38"):
        built.lake.activations("d", layer=9).read()
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        write_activations(built.storage, ActivationsKey("d", "m", "layer_8", "token"), np.ones((1, 1), "f4"), "int8")


def test_ambiguous_and_missing_names_say_what_there_is(built: BuiltLake) -> None:
    lake = built.lake
    write_codes(built.storage, CodesKey("d", "m", "layer_5", "wide", "token"), top_k(sparse_rows(39, 60, 5), 3))
    with pytest.raises(MissingError, match=r"3 stored groups fit dataset d: d/m/layer_3/codes/s/mean; .*name layer"):
        lake.codes("d")
    assert lake.codes("d", sae="wide").d_sae == 60
    assert lake.codes("d", layer=5).d_sae == 60
    with pytest.raises(MissingError, match=r"nothing stored fits dataset d, sae other; there is d/m/layer_3/codes/s"):
        lake.codes("d", sae="other")
    with pytest.raises(MissingError, match="nothing stored fits dataset d, layer layer_7"):
        lake.activations("d", layer=7)
    with pytest.raises(MissingError, match="2 stored groups fit"):
        lake.activations("d")
    for ask in (lake.codes, lake.activations, lake.samples):
        with pytest.raises(MissingError, match="has no dataset 'e'"):
            ask("e")
    with pytest.raises(InputError, match="dataset name"):
        lake.models("../..")
    with pytest.raises(MissingError, match="dataset 'e' has models none"):
        lake.positions("e")
    write_samples(built.storage, "e", sample_table(2))
    with pytest.raises(MissingError, match="nothing stored fits dataset e; there is nothing"):
        lake.codes("e")


def test_files_of_the_desktop_are_no_part_of_the_lake(built: BuiltLake) -> None:
    before = [row.path for row in built.lake.status()]
    for folder in ("data", "data/d", "data/d/m", "data/d/m/layer_3/codes/s"):
        (Path(built.storage.url) / folder / ".DS_Store").write_bytes(b"x")
    assert [row.path for row in built.lake.status()] == before
    assert len(list(built.lake.code_keys())) == 2


def test_status_counts_what_is_there(built: BuiltLake) -> None:
    add_sae(built, "s")
    rows = {row.path: row for row in built.lake.status()}
    assert list(rows) == [
        "saes/s",
        "data/d/samples",
        "data/d/m/positions",
        "data/d/m/layer_3/activations/mean",
        "data/d/m/layer_3/activations/token",
        "data/d/m/layer_3/codes/s/mean",
        "data/d/m/layer_3/codes/s/mean/units",
        "data/d/m/layer_3/codes/s/token",
    ]
    codes = rows["data/d/m/layer_3/codes/s/token"]
    assert (codes.kind, codes.dataset, codes.model, codes.layer) == ("codes", "d", "m", "layer_3")
    assert (codes.sae, codes.sample_type) == ("s", "token")
    assert (codes.rows, codes.written_rows, codes.state) == (39, 23, "partial")
    truncated = int((built.tokens.l0[np.r_[0:16, 32:39]] > 4).sum())
    assert codes.note == f"explained variance 0.90, L0 5; {truncated} rows have more than 4 active units"
    assert (rows["saes/s"].rows, rows["saes/s"].written_rows, rows["saes/s"].state) == (50, 32, "partial")
    assert rows["data/d/m/layer_3/activations/token"].note == "2 non-finite values"
    done = rows["data/d/m/layer_3/codes/s/mean"]
    assert (done.rows, done.written_rows, done.state) == (7, 7, "done")
    for path, row in rows.items():
        folder = Path(built.storage.url) / path
        depth = "*/*/" if row.kind == "postings" else ""
        files = [p for p in folder.glob(f"{depth}*/c/**/*") if p.is_file() and "ledger" not in p.parts]
        assert row.stored_bytes == sum(file.stat().st_size for file in files) > 0


def test_a_group_whose_creation_was_cut_short_is_not_counted(built: BuiltLake) -> None:
    (Path(built.storage.url) / "data/d/m/layer_3/codes/s/token/zarr.json").unlink()
    assert "data/d/m/layer_3/codes/s/token" not in [row.path for row in built.lake.status()]


def test_every_node_opens_in_plain_zarr_and_xarray_without_warnings(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    add_sae(built, "s")
    groups = [
        document.parent
        for document in (tmp_path / "lake").rglob("zarr.json")
        if (read_document(open_storage(document.parent), "") or {})["node_type"] == "group"
    ]
    assert len(groups) == 22
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in groups:
            group = zarr.open_group(folder, mode="r")
            for name, array in group.arrays():
                assert array.metadata.dimension_names is not None, (folder, name)
                assert array[:].shape == array.shape
            # The folders between hold no array and no consolidated metadata, which xarray must be told.
            dataset = xr.open_zarr(folder) if any(group.arrays()) else xr.open_zarr(folder, consolidated=False)
            assert set(dataset.variables) == set(group.array_keys())
            dataset.load()
        tree = zarr.open_group(tmp_path / "lake", mode="r")
        values = tree["data/d/m/layer_3/codes/s/token/values"]
        np.testing.assert_array_equal(values[:], built.tokens.values)  # type: ignore[index]
        plain = xr.open_zarr(tmp_path / "lake/data/d/m/layer_3/codes/s/token")
        np.testing.assert_array_equal(plain["indices"].values, built.tokens.indices)


def test_foreign_files_do_not_hide_the_lake(built: BuiltLake, tmp_path: Path) -> None:
    before = built.lake.status()
    root = tmp_path / "lake"
    for stray in (
        "data/notes.txt~",
        "data/d/.DS_Store",
        "data/d/m/layer_3/activations/tmp",
        "data/d/m/layer_3/codes/s/#1",
    ):
        (root / stray).mkdir(parents=True)
        (root / stray / "zarr.json").write_text("no json")
    (root / "saes").mkdir(exist_ok=True)
    (root / "saes/__pycache__").mkdir()
    assert built.lake.status() == before
    assert built.lake.datasets() == ["d"]


def test_status_names_damage_and_lists_the_rest(built: BuiltLake, tmp_path: Path) -> None:
    before = {row.path: row for row in built.lake.status()}
    codes = "data/d/m/layer_3/codes/s/mean"
    means = next(path for path in before if path == codes)
    samples = "data/d/samples"
    (tmp_path / "lake" / means / "ledger/c.0.0.0").write_bytes(b"")
    (tmp_path / "lake" / samples / "zarr.json").write_bytes(b"{")
    after = {row.path: row for row in built.lake.status()}
    assert set(after) == set(before)
    assert after[means].state == "partial"
    assert "ledger/c.0.0.0" in after[means].note
    assert after[samples].state == "missing"
    assert "not valid JSON" in after[samples].note
    assert [after[path] for path in after if path not in (means, samples)] == [
        before[path] for path in before if path not in (means, samples)
    ]
    with pytest.raises(IntegrityError, match="not valid JSON"):
        built.lake.samples("d")


@pytest.mark.parametrize("attributes", [{"saestore": [1]}, {"saestore": None}, {"saestore": {}}])
def test_a_root_of_another_kind(tmp_path: Path, attributes: dict[str, Any]) -> None:
    put_group(open_storage(tmp_path), "", attributes)
    with pytest.raises(InputError, match="has format None"):
        Lake.open(tmp_path)


def test_rows_of_samples_that_do_not_exist(built: BuiltLake) -> None:
    positions = built.lake.positions("d")
    expected = [row for sample in (6, 0, 6) for row in range(*positions.offsets[sample : sample + 2])]
    np.testing.assert_array_equal(positions.rows_of(np.array([6, 0, 6])), expected)
    assert positions.rows_of(np.array([], dtype=np.int64)).tolist() == []
    for sample in (-1, 7):
        with pytest.raises(InputError, match=f"sample {sample} does not exist: there are 7"):
            positions.rows_of(np.array([sample]))
    for sample_type in ("token", "mean"):
        codes = built.lake.codes("d", sample_type=sample_type)
        with pytest.raises(InputError, match="flatnonzero"):
            codes.rows_of_samples(np.ones(7, dtype=bool))
        for rows in ([-1], [codes.n_rows]):
            with pytest.raises(InputError, match="does not exist"):
                codes.sample_of(np.array(rows))


def test_rows_that_do_not_fit_in_memory_are_refused(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = built.lake.codes("d", sample_type="mean")
    monkeypatch.setattr("saestore.codes.parse_memory", lambda memory: 100)
    for ask in (codes.rows, codes.to_scipy):
        with pytest.raises(BudgetError, match=r"scan\(\)"):
            ask(slice(None))


@pytest.mark.parametrize("columns", [("Label", "label"), ("Text",), ("Ledger",), ("ID",)])
def test_columns_that_differ_only_in_case(tmp_path: Path, columns: tuple[str, ...]) -> None:
    table = SampleTable(
        ids=("a", "b"), kind="text", contents=("One.", "Two."), columns={c: ["x", "y"] for c in columns}
    )
    with pytest.raises(InputError, match=f"column name '{columns[0]}' differs from another one only in case"):
        write_samples(open_storage(tmp_path), "d", table)
    assert not (tmp_path / "data").exists()
