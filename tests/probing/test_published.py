"""Published tables against the numbers that were written into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report.probed_lakes import published_tables

from saestore.errors import InputError, MissingError
from saestore.layout import is_name
from saestore.probe_results import TABLE_COLUMNS
from saestore.probing.published import read_published, sae_name

METRICS = ["test_f1", "test_acc", "test_auc", "val_auc"]
NORMAL = "baseline_probes_gemma-2-9b/normal_settings/layer20_results.csv"
NOISE = "sae_probes_gemma-2-9b/label_noise_setting/all_metrics.csv"
SCARCITY = "baseline_probes_gemma-2-9b/scarcity/summary/all_results.csv"


def change(path: Path, **columns: object) -> None:
    pd.read_csv(path, index_col=0, dtype=str).assign(**columns).to_csv(path)


def test_every_row_of_every_table_is_in_the_tidy_table(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    found = read_published(tmp_path)
    assert tuple(found.table.columns) == TABLE_COLUMNS
    assert {path.relative_to(tmp_path).as_posix() for path in found.files} == set(tables)
    assert set(found.table["name"]) == {"published"}
    assert set(found.table["model"]) == {"gemma-2-9b"}
    assert set(found.table["sample_type"]) == {"last"}
    ood_saes = "sae_probes_gemma-2-9b/OOD_setting/all_metrics.csv"
    ood = "baseline_probes_gemma-2-9b/ood/all_results.csv"
    expected = sum(len(table) for path, table in tables.items() if path != ood_saes) + len(tables[ood])
    assert len(found.table) == expected
    settings = {
        "normal_settings": "normal", "normal_setting": "normal", "summary": "scarcity", "scarcity_setting": "scarcity",
        "imbalance": "imbalance", "class_imbalance_setting": "imbalance", "corrupt": "label_noise",
        "label_noise_setting": "label_noise",
    }  # fmt: skip
    for path, table in tables.items():
        if path in (ood_saes, ood):
            continue
        rows = found.table[found.table["setting"] == settings[Path(path).parent.name]]
        rows = rows[rows["sae"].notna() == ("sae_id" in table)]
        if "normal_settings" in path:
            rows = rows[
                rows["layer"] == {"embed": "embed"}.get(Path(path).name[5:-12], f"layer_{Path(path).name[5:-12]}")
            ]
        assert len(rows) == len(table), path
        np.testing.assert_array_equal(rows[METRICS].to_numpy(float), table[METRICS].to_numpy(float))
        assert rows["dataset"].tolist() == table["dataset"].tolist()
        if "sae_id" in table:
            assert set(rows["sae"]) == {"width_16k-average_l0_408"}
            assert set(rows["layer"]) == {"layer_20"}
            assert rows["method"].tolist() == ("sae-" + table["reg_type"]).tolist()
            assert rows["k"].tolist() == table["k"].tolist()
        else:
            assert rows["method"].tolist() == table["method"].tolist()
        if "num_train" in table:
            assert rows["num_train"].tolist() == table["num_train"].tolist()


def test_fractions_of_both_kinds_of_tables_are_equal(tmp_path: Path) -> None:
    published_tables(tmp_path)
    table = read_published(tmp_path).table
    for setting, fractions in (("imbalance", {0.05, 0.4, 0.95}), ("label_noise", {0.0, 0.25, 0.5})):
        of = table[table["setting"] == setting]
        assert set(of.loc[of["sae"].isna(), "fraction"]) == fractions == set(of.loc[of["sae"].notna(), "fraction"])
    assert table.loc[table["setting"].isin(["normal", "scarcity", "ood"]), "fraction"].isna().all()


def test_tables_without_a_layer_have_that_of_their_model(tmp_path: Path) -> None:
    published_tables(tmp_path, model="llama-3.1-8b", layer=16, saes=["l16r_32x"])
    table = read_published(tmp_path).table
    assert set(table.loc[table["setting"] != "normal", "layer"]) == {"layer_16"}
    assert set(table.loc[table["setting"] == "normal", "layer"]) == {"embed", "layer_9", "layer_16"}


def test_out_of_distribution_both_columns_are_rows(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    ood = tables["baseline_probes_gemma-2-9b/ood/all_results.csv"]
    found = read_published(tmp_path).table.query("setting == 'ood'")
    assert found[found["sae"].isna()]["test_auc"].tolist() == ood["test_auc_baseline"].tolist()
    probes = found[found["sae"].notna()]
    assert probes["test_auc"].tolist() == ood["test_auc_sae"].tolist()
    assert set(probes["sae"]) == {"width_131k-average_l0_114"}
    assert set(probes["k"]) == {128}
    assert found["val_auc"].isna().all()


def test_figures_out_of_distribution_that_are_ordinary_ones_are_left_out(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    path = "sae_probes_gemma-2-9b/OOD_setting/all_metrics.csv"
    found = read_published(tmp_path)
    (note,) = found.notes
    assert note.startswith(f"{len(tables[path])} SAE probes of gemma-2-9b out of distribution were left out")
    change(tmp_path / path, test_auc=(tables[path]["test_auc"] - 0.01).tolist())
    other = read_published(tmp_path)
    assert other.notes == ()
    assert len(other.table) == len(found.table) + len(tables[path])


def test_binarised_probes_are_left_out(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    half = [place % 2 == 0 for place in range(len(tables[NOISE]))]
    change(tmp_path / NOISE, binarize=half)
    found = read_published(tmp_path)
    assert any(f"{sum(half)} probes on binarised codes were left out" in note for note in found.notes)
    of = found.table[(found.table["setting"] == "label_noise") & found.table["sae"].notna()]
    kept = [not each for each in half]
    assert of["test_auc"].tolist() == tables[NOISE].loc[kept, "test_auc"].tolist()


def test_the_second_copy_of_a_table_is_not_read(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    tables[SCARCITY].to_csv(tmp_path / "baseline_probes_gemma-2-9b/scarcity/all_results.csv")
    found = read_published(tmp_path)
    assert any("is the same table" in note for note in found.notes)
    of = found.table[(found.table["setting"] == "scarcity") & found.table["sae"].isna()]
    assert len(of) == len(tables[SCARCITY])


def test_what_exists_is_read_from_the_folder_or_below_it(tmp_path: Path) -> None:
    tables = published_tables(tmp_path / "deep" / "results")
    folder = tmp_path / "deep" / "results" / "baseline_probes_gemma-2-9b"
    alone = read_published(folder)
    assert alone.table["sae"].notna().sum() == len(tables["baseline_probes_gemma-2-9b/ood/all_results.csv"])
    assert len(read_published(tmp_path).table) > len(alone.table)


@pytest.mark.parametrize(
    ("sae_id", "name"),
    [
        ("layer_20/width_16k/average_l0_408", "width_16k-average_l0_408"),
        ("l16r_32x", "l16r_32x"),
        ("('topk', 'blocks.12/trainer_0', 40, None)", "topk-blocks.12-trainer_0-40-None"),
        ("['a b', 'c']", "a_b-c"),
        ("(broken", "(broken"),
    ],
)
def test_ids_of_saes_become_names(sae_id: str, name: str) -> None:
    assert sae_name(sae_id) == name
    assert is_name(name) == (name[0] != "(")


@pytest.mark.parametrize(
    ("path", "columns", "words"),
    [
        (NORMAL, {"test_auc": "high"}, "'high' in the column test_auc; expected a number"),
        (NORMAL, {"luck": 1}, "has the unknown column luck"),
        (NORMAL, {"dataset": ""}, "a row names no dataset"),
        (NOISE, {"corrupt_frac": None}, "'' in the column corrupt_frac; expected a number"),
        (NOISE, {"k": 1.5}, "'1.5' in the column k; expected a positive whole number"),
        (NOISE, {"reg_type": "l3"}, "'l3' in the column reg_type; expected l1 or l2"),
        (NOISE, {"sae_id": "//"}, "'//' in the column sae_id; expected the id of an SAE"),
        (NOISE, {"corrupt_frac": "a lot"}, "'a lot' in the column corrupt_frac; expected a number"),
    ],
)
def test_mistakes_in_a_table_name_the_file(tmp_path: Path, path: str, columns: dict[str, object], words: str) -> None:
    published_tables(tmp_path)
    change(tmp_path / path, **columns)
    with pytest.raises(InputError) as told:
        read_published(tmp_path)
    assert str(told.value).startswith(str(tmp_path / path))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_metric_may_be_empty(tmp_path: Path) -> None:
    tables = published_tables(tmp_path)
    change(tmp_path / NORMAL, val_auc=None)
    table = read_published(tmp_path).table
    of = table[(table["setting"] == "normal") & table["sae"].isna() & (table["layer"] == "layer_20")]
    assert of["val_auc"].isna().all()
    assert of["test_auc"].tolist() == tables[NORMAL]["test_auc"].tolist()


def test_a_lacking_column_is_named_with_the_file(tmp_path: Path) -> None:
    published_tables(tmp_path)
    path = tmp_path / NOISE
    pd.read_csv(path, index_col=0).drop(columns=["corrupt_frac", "sae_id"]).to_csv(path)
    with pytest.raises(InputError, match=r"lacks columns sae_id, corrupt_frac; a published table of the label noise"):
        read_published(tmp_path)


def test_what_is_no_table_and_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no folder"):
        read_published(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="there is no result table in"):
        read_published(tmp_path)
    published_tables(tmp_path)
    (tmp_path / NORMAL).write_text("")
    with pytest.raises(InputError, match=r"layer20_results\.csv cannot be read as a table"):
        read_published(tmp_path)
    (tmp_path / NORMAL).write_bytes(b'dataset\n"a\xff')
    with pytest.raises(InputError, match=r"layer20_results\.csv cannot be read as a table"):
        read_published(tmp_path)
