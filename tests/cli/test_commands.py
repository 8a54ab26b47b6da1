"""Commands on a small lake: what they print, as text and as JSON, against numpy and pandas."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_runs import Run

import saestore
from saestore.context import _around
from saestore.errors import InputError
from saestore.saes.lake import write_sae
from saestore.verbs.training import _shuffled, _sources
from tests.small_lake import add_activations, mirror_sae


def dense_of(lake: str, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The dense codes of a dataset, and which of its rows are special tokens."""
    codes = saestore.open(lake).codes(dataset, sample_type="token")
    return codes.to_scipy().toarray(), codes.positions.special()


def test_status_lists_every_group_and_says_what_is_not_encoded(lake: str, run: Run, tmp_path: Path) -> None:
    document = run("status", lake, "--json").json
    assert document["complete"] is True
    kinds = [group["kind"] for group in document["groups"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        **{"sae": 1, "samples": 2, "positions": 2, "activations": 8, "codes": 2, "postings": 2}
    }
    copy = shutil.copytree(lake, tmp_path / "copy")
    shutil.rmtree(copy / "data/more/mini/layer_2/codes")
    ran = run("status", copy)
    assert ran.code == 0
    assert "1 missing" in ran.out
    assert "not encoded: saestore encode LAKE --saes small --datasets 'more'" in ran.out


def test_status_expects_no_codes_of_another_width(tmp_path: Path) -> None:
    lake = saestore.init(tmp_path / "lake")
    write_sae(lake.storage, "s", mirror_sae(4), quiet=True)
    add_activations(lake, "fits", np.ones((9, 4), np.float32))
    add_activations(lake, "wider", np.ones((9, 5), np.float32))
    assert [group.dataset for group in saestore.status(lake).groups if group.state == "missing"] == ["fits"]


def test_status_of_a_partial_lake_is_exit_code_one_and_the_same_command_completes_it(
    lake: str, run: Run, tmp_path: Path
) -> None:
    copy = shutil.copytree(lake, tmp_path / "copy")
    codes = copy / "data/texts/mini/layer_2/codes/small/token"
    before = (codes / "values/c/0/0").read_bytes()
    os.remove(codes / "ledger/c.0.0.0")
    ran = run("status", copy, "--json")
    assert ran.code == 1
    assert ran.json["complete"] is False
    again = run("encode", copy, "--saes", "small", "--force", "--json")
    assert again.code == 0
    assert sorted(result["encoded_rows"] > 0 for result in again.json) == [False, True]
    assert (codes / "values/c/0/0").read_bytes() == before
    assert run("status", copy).code == 0


def test_storage_is_measured_against_files_of_the_legacy_layout(lake: str, run: Run) -> None:
    costs = run("status", lake, "--storage", "--json").json["storage"]
    assert len(costs) == 2
    for cost in costs:
        codes = saestore.open(lake).codes(cost["path"].split("/")[1], sample_type="token")
        stored = Path(lake, cost["path"])
        files = sum(
            file.stat().st_size
            for name in ("indices", "values", "l0")
            for file in stored.glob(f"{name}/c/**/*")
            if file.is_file()
        )
        assert cost["bytes_per_row"] == pytest.approx(files / codes.n_rows)
        legacy = io.BytesIO()
        rows = codes.rows(slice(None))
        torch.save(
            {
                "indices": torch.tensor(rows.indices.astype(np.int64)),
                "values": torch.tensor(rows.values),
                "format": "sparse_topk",
                "topk": 4,
            },
            legacy,
        )
        # A name inside the archive differs with the file's name, by some bytes in all.
        assert cost["legacy_pt_bytes_per_row"] == pytest.approx(legacy.tell() / codes.n_rows, abs=512 / codes.n_rows)
        assert cost["dense_pt_bytes_per_row"] >= 64 * 4


def test_rows_are_shown_with_their_strongest_units_and_token(lake: str, run: Run) -> None:
    dense, _ = dense_of(lake, "texts")
    shown = run("show", lake, "texts", "--rows", "1:4", "--units", 3, "--json").json["rows"]
    assert [row["place"]["row"] for row in shown] == [1, 2, 3]
    assert [row["place"]["marked"] for row in shown] == ["The", "old", "bridge"]
    for row in shown:
        values = dense[row["place"]["row"]]
        order = np.lexsort((np.arange(values.size), -values))[:3]
        assert row["units"] == [int(unit) for unit in order if values[unit]]
        assert row["values"] == [pytest.approx(values[unit]) for unit in order if values[unit]]
        assert row["l0"] == np.count_nonzero(values)
        assert row["place"]["sample"] == "s0"


def test_units_are_shown_with_their_strongest_rows_over_all_datasets(lake: str, run: Run) -> None:
    parts = {name: dense_of(lake, name) for name in ("more", "texts")}
    joined = np.concatenate([np.where(special[:, None], 0, dense) for dense, special in parts.values()])
    unit = int(joined.max(axis=0).argmax())
    ran = run("top", lake, "--units", unit, "-n", 4, "--json").json
    shown = ran["units"][0]
    assert ran["picked"] == ""
    assert shown["active_rows"] == np.count_nonzero(joined[:, unit])
    assert shown["rows"] == sum(int((~special).sum()) for _, special in parts.values())
    values = [example["value"] for example in shown["examples"]]
    assert values == pytest.approx(np.sort(joined[:, unit])[::-1][:4])
    for example in shown["examples"]:
        place = example["place"]
        assert parts[place["dataset"]][0][place["row"], unit] == pytest.approx(example["value"])
        assert place["marked"]
        text = saestore.open(lake).samples(place["dataset"])
        content = text.contents()[text.index_of(place["sample"])]
        assert content == place["before"] + place["marked"] + place["after"]
    assert f"[{place['marked']}]" in run("top", lake, "--units", unit, "-n", 4).out


def test_units_are_picked_by_the_rule_that_is_told(lake: str, run: Run) -> None:
    parts = [dense_of(lake, name) for name in ("more", "texts")]
    joined = np.concatenate([np.where(special[:, None], 0, dense) for dense, special in parts])
    ran = run("top", lake, "--json").json
    picked = [unit["unit"] for unit in ran["units"]]
    assert len(picked) == len(set(picked)) == 5
    total = sum(int((~special).sum()) for _, special in parts)
    count = np.count_nonzero(joined, axis=0)
    fit = (count >= 10) & (count <= 0.02 * total)
    assert not fit.any(), "the lake is too small for the rule, which is the case tested here"
    assert "none is active in 10 rows or more and in at most 2% of" in ran["picked"]
    assert picked[0] == joined.max(axis=0).argmax()
    assert ran == run("top", lake, "--json").json


@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "zarr", "csv", "parquet"])
def test_dense_writes_what_the_codes_hold(lake: str, run: Run, tmp_path: Path, ending: str) -> None:
    dense, special = dense_of(lake, "texts")
    out = tmp_path / f"block.{ending}"
    chosen = ["--rows", "3:9", "--units", 5, 60, 0, "--sample-type", "token"]
    ran = run("dense", lake, "texts", *chosen, "--out", out)
    assert ran.code == 0
    assert f"{out}: 6 rows x 3 units" in ran.out
    expected = dense[3:9][:, [5, 60, 0]]
    if ending == "npy":
        found = np.load(out)
    elif ending == "npz":
        archive = np.load(out)
        found = archive["codes"]
        assert archive["rows"].tolist() == [3, 4, 5, 6, 7, 8]
        assert archive["units"].tolist() == [5, 60, 0]
    elif ending == "pt":
        import torch

        found = torch.load(out, weights_only=True).numpy()
    elif ending == "zarr":
        import xarray as xr

        found = xr.open_zarr(out).codes.sel(unit=[5, 60, 0]).values
    else:
        frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        found = frame[["5", "60", "0"]].to_numpy()
        assert frame["row"].tolist() == [3, 4, 5, 6, 7, 8]
        assert frame["special"].tolist() == special[3:9].tolist()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert sorted(os.listdir(tmp_path)) == [out.name, f"{out.name}.units.json"]
    assert json.loads((tmp_path / f"{out.name}.units.json").read_text())["kept_units"] == [5, 60, 0]


def test_dense_writes_chosen_rows_and_says_so_in_json(lake: str, run: Run, tmp_path: Path) -> None:
    dense, special = dense_of(lake, "texts")
    out = tmp_path / "block.npy"
    chosen = ["--where", "position < 3", "--no-special", "--dtype", "float16", "--sample-type", "token"]
    document = run("dense", lake, "texts", *chosen, "--out", out, "--json").json
    positions = saestore.open(lake).codes("texts", sample_type="token").positions
    assert positions is not None
    place = np.concatenate([np.arange(length) for length in np.diff(positions.offsets)])
    rows = np.flatnonzero((place < 3) & ~special)
    assert document["rows"] == len(rows)
    assert document["units"] == 64
    assert document["path"] == str(out)
    assert document["units_file"] == f"{out}.units.json"
    assert document["bytes"] == out.stat().st_size
    np.testing.assert_array_equal(np.load(out), dense[rows].astype(np.float16))
    split = np.array(saestore.open(lake).samples("texts").split)
    lengths = np.diff(positions.offsets)
    of_split = np.flatnonzero(np.repeat(split == "test", lengths))
    assert 0 < len(of_split) < len(dense)
    chosen = ["--split", "test", "--rows", "1:3", "--units", 7, 8, "--sample-type", "token", "--json"]
    document = run("dense", lake, "texts", *chosen).json
    assert document["rows"] == of_split[1:3].tolist()
    np.testing.assert_allclose(document["codes"], dense[of_split[1:3]][:, [7, 8]], rtol=1e-6)


def test_units_and_rows_may_be_arrays_and_masks_are_refused(lake: str) -> None:
    dense, _ = dense_of(lake, "texts")
    units, rows = np.array([7, 8]), np.array([2, 0])
    block = saestore.dense(lake, "texts", sample_type="token", rows=rows, units=units)
    np.testing.assert_array_equal(block.codes.values, dense[rows][:, units])
    assert [unit.unit for unit in saestore.top(lake, units=units).units] == [7, 8]
    mask = np.arange(len(dense)) < 2
    for verb in (saestore.show, saestore.dense):
        with pytest.raises(InputError, match=r"np\.flatnonzero\(mask\)"):
            verb(lake, "texts", rows=mask)
    with pytest.raises(InputError, match=f"row {len(dense)} does not exist"):
        saestore.dense(lake, "texts", rows=[0, len(dense)], units=[1])


def test_a_token_without_characters_is_called_special_only_when_it_is() -> None:
    assert _around("two words", (3, 3), special=False)[0] == "(empty token) two words"
    assert _around("two words", (0, 0), special=True)[0] == "(special token) two words"
    assert _around("añ🙂 words", (2, 3), special=False) == ("añ", "🙂", " words")


def test_a_limit_that_leaves_one_class_is_told(lake: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a"] * 6, "label": [0, 0, 0, 1, 1, 1], "target": [1, 0] * 3})
    for limit, told in ((3, True), (4, False)):
        lines: list[str] = []
        extract = dict(model="mini", layers=[1], limit=limit, dry_run=True, quiet=True, say=lines.append)
        saestore.extract(saestore.init(tmp_path / "lake"), {"sorted": table}, **extract)
        assert any("label (1 of 2 concepts)" in line for line in lines) == told


def test_dense_prints_a_slice_and_its_json_holds_the_numbers(lake: str, run: Run) -> None:
    dense, _ = dense_of(lake, "texts")
    document = run("dense", lake, "texts", "--rows", "2,0", "--units", 7, 8, "--json").json
    assert document["rows"] == [2, 0]
    np.testing.assert_allclose(document["codes"], dense[[2, 0]][:, [7, 8]], rtol=1e-6)
    assert "<xarray.Dataset>" in run("dense", lake, "texts", "--rows", ":2").out


def test_catalog_lists_names_and_states(run: Run) -> None:
    rows = {(row["section"], row["name"]): row for row in run("catalog", "--json").json}
    assert rows["models", "mini"]["state"] == "ok"
    assert "SAESTORE_DATA" in rows["datasets", "CLEVR"]["state"]
    names = [row["name"] for row in run("catalog", "sae-probes/*_hist_fig_*", "--json").json]
    package = importlib.util.find_spec("sae_probes")
    assert package is not None
    assert package.origin is not None
    files = Path(package.origin).parent.glob("data/cleaned_data/*_hist_fig_*.csv.zst")
    assert sorted(names) == sorted(f"sae-probes/{file.name.removesuffix('.csv.zst')}" for file in files)
    assert len(names) == 6


def test_a_lake_may_be_named_as_in_the_catalog(lake: str, run: Run) -> None:
    assert run("sae", "list", "ours", "--json").json[0]["name"] == "small"
    assert run("sae", "list", "ours").out.split("\n")[1].split()[:4] == ["small", "topk", "384", "64"]


def test_what_is_done_is_said_to_be_done(lake: str, run: Run, surroundings: Path, texts: Path) -> None:
    sae = surroundings / "sae"
    training = ["--d-sae", 64, "--k", 4, "--samples", 4096, "--batch-size", 256]
    extracting = ["--model", "mini", "--layers", 1, 2, "--sample-type", "token", "mean"]
    for line in (
        ["extract", lake, "--datasets", texts, *extracting],
        ["sae", "train", lake, "--layer", 2, "--out", sae, *training],
        ["sae", "import", lake, sae, "--name", "small"],
        ["encode", lake, "--saes", "small"],
    ):
        ran = run(*line)
        assert ran.code == 0, ran.err
        assert ran.out.startswith("nothing to do: ")


def test_another_training_into_the_same_folder_is_refused(lake: str, run: Run, surroundings: Path) -> None:
    ran = run("sae", "train", lake, "--layer", 2, "--out", surroundings / "sae", "--d-sae", 64, "--k", 5)
    assert ran.code == 2
    assert "trained differently (other k, samples, batch_size)" in ran.err
    assert "--out" in ran.err


def test_a_trained_sae_is_saelens_own_and_knows_where_it_belongs(lake: str, surroundings: Path) -> None:
    from sae_lens import SAE

    sae = SAE.load_from_disk(surroundings / "sae")
    activations = saestore.open(lake).activations("texts", layer=2, sample_type="token")
    assert sae.cfg.metadata.hook_name == activations.group.attributes["saelens_hook_name"]
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (384, 64)
    record = json.loads((surroundings / "sae" / "training.json").read_text())
    assert record["activations"][activations.key.path] == activations.group.content_hash()


def test_training_sees_every_row_but_special_tokens_in_a_new_order_each_epoch(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saestore.verbs.training._BUFFER_ROWS", 100)
    opened = saestore.open(lake)
    sources = _sources(opened, "2", "token", None, None)
    blocks = list(_shuffled(sources, seed=1))
    expected = []
    for dataset in ("more", "texts"):
        rows = opened.activations(dataset, layer=2, sample_type="token").read()
        expected.append(rows[~opened.positions(dataset).special()])
    joined, everything = np.concatenate(blocks), np.concatenate(expected)
    assert len(blocks) == 2
    assert not np.array_equal(joined, everything)
    np.testing.assert_array_equal(joined[np.lexsort(joined.T)], everything[np.lexsort(everything.T)])
    np.testing.assert_array_equal(joined, np.concatenate(list(_shuffled(sources, seed=1))))
    assert not np.array_equal(joined, np.concatenate(list(_shuffled(sources, seed=2))))


def test_names_and_python_objects_are_taken_as_datasets(surroundings: Path, tmp_path: Path) -> None:
    lake = saestore.init(tmp_path / "lake")
    frame = pd.DataFrame({"text": ["One text.", "Another one."], "label": [0, 1]})
    results = saestore.extract(lake, {"listed": ["It rains."], "framed": frame}, model="mini", layers=[0], quiet=True)
    assert [(result.dataset, result.samples) for result in results] == [("listed", 1), ("framed", 2)]
    assert lake.datasets() == ["framed", "listed"]
    assert lake.samples("framed").concept("label").tolist() == [0, 1]


def test_a_data_set_grows(lake: str, run: Run, tmp_path: Path, texts: Path) -> None:
    copy = shutil.copytree(lake, tmp_path / "lake")
    lines = texts.read_text().splitlines()
    grown = tmp_path / "texts.csv"
    grown.write_text("\n".join([*lines, lines[-1].replace("27", "28", 1), ""]))
    extracting = ["--model", "mini", "--layers", "1", "2", "--sample-type", "token", "mean"]
    ran = run("extract", copy, "--datasets", grown, *extracting)
    assert ran.code == 0, ran.err
    assert "texts: its table has grown; samples 28 to 28 become part 1 of it" in ran.err
    assert run("status", copy).code == 1, "codes of the new sample are missing"
    ran = run("encode", copy, "--saes", "small", "--datasets", "texts", "--force")
    assert ran.code == 0, ran.err
    assert run("status", copy).code == 0
    codes = saestore.open(copy).codes("texts", sample_type="token")
    assert codes.samples.ids.tolist()[-2:] == ["s27", "s28"]
    last, before = codes.where(samples="s28").rows(slice(None)), codes.where(samples="s27").rows(slice(None))
    np.testing.assert_allclose(last.values, before.values, rtol=1e-2, atol=1e-3)
    ran = run("top", copy, "--datasets", "texts", "--units", last.indices[1, 0], "--n", 100, "--json")
    assert '"s28"' in ran.out, ran.out
    more = tmp_path / "more.npy"
    np.save(more, np.ones((2, 384), np.float16))
    np.save(tmp_path / "first.npy", np.ones((29, 384), np.float16))
    place = ["--dataset", "given", "--model", "other", "--layer", 3, "--sample-type", "mean"]
    assert run("import", copy, tmp_path / "first.npy", *place).code == 0
    ran = run("import", copy, more, *place, "--append")
    assert ran.out.startswith("2 rows imported: 2 rows of 2 samples at data/given/parts/1/other/layer_3/"), ran.err
    assert saestore.open(copy).activations("given").n_rows == 31


def test_activations_of_other_tools_are_imported_once(
    lake: str, run: Run, tmp_path: Path, surroundings: Path, texts: Path
) -> None:
    copy = shutil.copytree(lake, tmp_path / "lake")
    means = np.random.default_rng(0).normal(size=(28, 6)).astype(np.float32)
    np.save(tmp_path / "means.npy", means)
    place = ["--dataset", "texts", "--model", "other", "--layer", 3, "--sample-type", "mean"]
    ran = run("import", copy, tmp_path / "means.npy", *place, "--samples", texts)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("28 rows imported: 28 rows of 28 samples at data/texts/other/layer_3/")
    assert run("import", copy, tmp_path / "means.npy", *place, "--samples", texts).out.startswith("nothing to do: ")
    stored = saestore.open(copy).activations("texts", model="other").read()
    np.testing.assert_array_equal(stored, means)


def test_what_an_encode_leaves_out_is_listed_and_exit_code_three(lake: str, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(lake, tmp_path / "copy")
    ran = run("encode", copy, "--saes", "small", "none", "--datasets", "texts", "absent")
    assert ran.code == 3
    assert "nothing to do: all 1 group of codes are encoded" in ran.out
    assert "left out: 2 groups" in ran.out
    assert "small, absent: the lake has no dataset 'absent'; extract or import it" in ran.out
    assert "none: the lake" in ran.out
    document = run("encode", copy, "--saes", "small", "none", "--datasets", "texts", "absent", "--json")
    assert document.code == 3
    assert [row["state"] for row in document.json] == ["done", "left out", "left out"]
    assert run("encode", copy, "--saes", "none").code == 2


def test_statistics_are_sorted_filtered_and_kept(lake: str, run: Run, tmp_path: Path) -> None:
    copy = str(shutil.copytree(lake, tmp_path / "copy"))
    dense, special = dense_of(lake, "texts")
    counts = np.count_nonzero(dense[~special], axis=0)
    chosen = ["--datasets", "texts", "--sort", "count", "--only", "count=2:", "--limit", 7]
    (found,) = run("stats", copy, *chosen, "--json").json
    order = [int(unit) for unit in np.lexsort((np.arange(64), -counts)) if counts[unit] >= 2][:7]
    assert found["columns"]["unit"] == order
    assert found["columns"]["count"] == counts[order].tolist()
    assert (found["n_rows"], found["dead"]) == (int((~special).sum()), int((counts == 0).sum()))
    stored = saestore.open(copy).codes("texts", sample_type="token").stats()
    np.testing.assert_array_equal(stored.count, counts)
    (some,) = run("stats", copy, *chosen, "--where", "position > 1", "--json").json
    assert some["over"] == "position > 1 and no special tokens"
    assert f"{found['dead']:,} dead" in run("stats", copy, *chosen).out
    assert run("stats", copy, "--only", "count").code == 2
    assert run("stats", copy, "--sort", "conut").code == 2


def test_index_builds_what_encode_was_told_to_leave(lake: str, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(lake, tmp_path / "copy")
    shutil.rmtree(copy / "data/texts/mini/layer_2/codes")
    assert run("encode", copy, "--saes", "small", "--force", "--no-postings").code == 0
    assert "saestore index" in run("top", copy, "--datasets", "texts", "--units", 3).err
    again = run("index", copy, "--datasets", "texts", "--json")
    assert (again.code, [row["indexed_rows"] > 0 for row in again.json]) == (0, [True])
    assert run("top", copy, "--datasets", "texts", "--units", 3).code == 0
    assert "nothing to do" in run("index", copy).out
