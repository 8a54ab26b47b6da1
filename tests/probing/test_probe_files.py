"""Files of the benchmark into a lake and out again, against plain torch and the package's own readers and split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import own
from small_lake import ArrayWeights, lake_files, random_sae

from saestore.activations import Activations
from saestore.catalogs import Catalog, load_catalog
from saestore.cli import main
from saestore.codes import Codes
from saestore.errors import InputError, MissingError
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey
from saestore.probe_results import Probe, ProbedCell, ProbeResult
from saestore.probing.file_exports import export_tables
from saestore.probing.file_imports import BenchmarkFile
from saestore.saes.lake import write_sae
from saestore.verbs import encode, probe, probes_export, probes_import

torch = pytest.importorskip("torch", reason="torch is not installed")

MODEL, SAE, NAME = "toy-2b", "toy-16k", "3_width_16k_average_l0_9"
HOOK, LAYER = "blocks.3.hook_resid_post", "layer_3"
D_IN, D_SAE = 8, 40
N = {"7_a b": 240, "7_a b_c-d": 1300, "66_x-y": 150}
OOD, OOD_ROWS = "66_x-y_OOD", 30
NO_TASK = "8_number"
SAMPLES = ("mini/{name}", "mini-ood/{name}_OOD")


@dataclass(frozen=True)
class Bench:
    """A folder of data as the benchmark has it, the catalog of its texts, and the numbers in the files."""

    catalog: Catalog
    lake: Lake
    data: Path
    x: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    weights: ArrayWeights

    @property
    def activations(self) -> Path:
        return self.data / f"model_activations_{MODEL}"

    @property
    def codes(self) -> Path:
        return self.data / f"sae_activations_{MODEL}" / "normal_setting"

    def dense(self, dataset: str) -> np.ndarray:
        """JumpReLU by its definition."""
        arrays = self.weights.arrays
        z = self.x[dataset] @ arrays["W_enc"].T + arrays["b_enc"]
        return np.where(z > arrays["threshold"], np.maximum(z, 0), 0).astype(np.float32)

    def split(self, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """By the package's own function."""
        n = len(self.labels[dataset])
        num_train = min(n - 100, 1024)
        train, test = own("utils_data").get_train_test_indices(self.labels[dataset], num_train, n - num_train - 1)
        return train, test

    def imported(self, **options: Any) -> list[BenchmarkFile]:
        found = {"model": MODEL, "samples": SAMPLES, "catalog": self.catalog, "quiet": True} | options
        return probes_import(self.lake, found.pop("folder", self.data), **found)

    def stored(self, dataset: str) -> Activations:
        return Activations.open(self.lake.storage, ActivationsKey(dataset, MODEL, LAYER, "last"))

    def stored_codes(self, dataset: str) -> Codes:
        return Codes.open(self.lake.storage, CodesKey(dataset, MODEL, LAYER, SAE, "last"))


def write_csv(path: Path, targets: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "target"])
        rows.writerows([f"{path.stem}: text {row}.", target] for row, target in enumerate(targets))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    rng = np.random.default_rng(3)
    labels: dict[str, np.ndarray] = {}
    for name, n in N.items():
        labels[name] = rng.permutation(np.arange(n) % 2)
        write_csv(tmp_path / "cleaned" / f"{name}.csv", ["no" if y == 0 else "yes" for y in labels[name]])
    labels[OOD] = np.arange(OOD_ROWS) % 2
    write_csv(tmp_path / "ood" / f"{OOD}.csv", labels[OOD].tolist())
    write_csv(tmp_path / "cleaned" / f"{NO_TASK}.csv", [row / 7 for row in range(50)])
    (tmp_path / "catalog.yaml").write_text(
        "datasets:\n"
        '  "mini/{name}": {kind: text, table: "cleaned/{name}.csv", text: prompt, labels: [target]}\n'
        '  "mini-ood/{name}_OOD": {kind: text, table: "ood/{name}_OOD.csv", text: prompt, labels: [target]}\n'
    )
    lake = Lake.create(tmp_path / "lake")
    weights = random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE, hook_name=HOOK)
    write_sae(lake.storage, SAE, weights, quiet=True)
    x = {name: rng.normal(size=(len(y), D_IN)).astype(np.float32) for name, y in labels.items()}
    made = Bench(load_catalog([tmp_path / "catalog.yaml"]), lake, tmp_path / "data", x, labels, weights)
    for name, rows in x.items():
        folder = made.data / f"model_activations_{MODEL}{'_OOD' if name == OOD else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(rows), folder / f"{name}_{HOOK}.pt")
    return made


def write_codes(bench: Bench, dataset: str, *, name: str = NAME, sparse_labels: bool = False) -> None:
    """The four files as the benchmark's code writes them."""
    bench.codes.mkdir(parents=True, exist_ok=True)
    dense = bench.dense(dataset)
    for which, rows in zip(("train", "test"), bench.split(dataset), strict=True):
        torch.save(torch.from_numpy(dense[rows]).to_sparse(), bench.codes / f"{dataset}_{name}_X_{which}_sae.pt")
        y = torch.from_numpy(bench.labels[dataset][rows])
        torch.save(y.to_sparse() if sparse_labels else y, bench.codes / f"{dataset}_{name}_y_{which}.pt")


@pytest.fixture
def with_codes(bench: Bench) -> Bench:
    for number, dataset in enumerate(N):
        write_codes(bench, dataset, sparse_labels=number == 1)
    return bench


def left_out(rows: list[BenchmarkFile]) -> dict[str, str]:
    return {row.file: row.reason for row in rows if row.state == "left out"}


def test_activations_become_rows_of_their_samples(bench: Bench) -> None:
    rows = bench.imported()
    assert {(row.dataset, row.rows, row.state) for row in rows} == {
        *((name, n, "imported") for name, n in N.items()),
        (OOD, OOD_ROWS, "imported"),
    }
    for name, expected in bench.x.items():
        stored = bench.stored(name)
        assert stored.dtype == "float32"
        np.testing.assert_array_equal(stored.read(), expected)
        assert stored.group.attributes["saelens_hook_name"] == HOOK
        texts = bench.lake.samples(name).contents()
        assert texts[:2].tolist() == [f"{name}: text 0.", f"{name}: text 1."]


def test_what_is_stored_is_left_alone(with_codes: Bench, tmp_path: Path) -> None:
    with_codes.imported(sae=SAE)
    before = lake_files(tmp_path / "lake")
    again = with_codes.imported(sae=SAE)
    assert {row.state for row in again} == {"stored"}
    assert len(again) == 7
    assert lake_files(tmp_path / "lake") == before


def test_an_embedding_is_a_layer_of_its_own(bench: Bench) -> None:
    torch.save(torch.from_numpy(bench.x["66_x-y"]), bench.activations / "66_x-y_hook_embed.pt")
    rows = bench.imported(layer="hook_embed")
    assert [row.state for row in rows if row.dataset == "66_x-y"] == ["imported"]
    assert sorted(left_out(rows)) == ["7_a b_c-d_hook_embed.pt", "7_a b_hook_embed.pt"]
    assert bench.lake.layers("66_x-y", MODEL) == ["hook_embed"]


def test_ood_files_may_have_the_name_of_what_trains(bench: Bench) -> None:
    folder = bench.data / f"model_activations_{MODEL}_OOD"
    (folder / f"{OOD}_{HOOK}.pt").rename(folder / f"66_x-y_{HOOK}.pt")
    bench.imported()
    np.testing.assert_array_equal(bench.stored(OOD).read(), bench.x[OOD])
    np.testing.assert_array_equal(bench.stored("66_x-y").read(), bench.x["66_x-y"])


def test_a_folder_of_files_itself_can_be_given(bench: Bench) -> None:
    rows = bench.imported(folder=bench.activations, datasets="7_*")
    assert [(row.dataset, row.state) for row in rows] == [("7_a b", "imported"), ("7_a b_c-d", "imported")]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def with_nan(path: Path) -> None:
    rows = torch.load(path, weights_only=True)
    rows[5, 2] = float("nan")
    torch.save(rows, path)


def without_rows(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True)[:-1], path)


def of_objects(path: Path) -> None:
    torch.save({"x": Path("a")}, path)


def sparse(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True).to_sparse(), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "there is no file"),
        (damaged, "damaged or cut"),
        (with_nan, "row 5 is not finite"),
        (without_rows, "149 rows"),
        (of_objects, "Python objects"),
        (sparse, "sparse_coo"),
    ],
)
def test_a_file_of_activations_that_cannot_be_used_has_its_reason(
    bench: Bench, change: Callable[[Path], None], reason: str
) -> None:
    change(bench.activations / f"66_x-y_{HOOK}.pt")
    rows = bench.imported()
    assert list(left_out(rows)) == [f"66_x-y_{HOOK}.pt"]
    assert reason in left_out(rows)[f"66_x-y_{HOOK}.pt"]
    assert sum(row.state == "imported" for row in rows) == 3
    assert "66_x-y" not in bench.lake.datasets() or not list(bench.lake.activation_keys("66_x-y"))


def test_files_of_no_known_dataset_are_told(bench: Bench) -> None:
    (bench.activations / f"9_unknown_{HOOK}.pt").write_bytes(b"")
    found = left_out(bench.imported())
    assert list(found) == [f"9_unknown_{HOOK}.pt"]
    assert "no known data set" in found[f"9_unknown_{HOOK}.pt"]


def test_other_activations_in_the_place_are_not_replaced(bench: Bench) -> None:
    bench.imported()
    torch.save(torch.zeros(150, D_IN), bench.activations / f"66_x-y_{HOOK}.pt")
    found = left_out(bench.imported())
    assert "made differently" in found[f"66_x-y_{HOOK}.pt"]
    np.testing.assert_array_equal(bench.stored("66_x-y").read(), bench.x["66_x-y"])


def test_codes_go_back_to_their_samples(with_codes: Bench) -> None:
    rows = with_codes.imported(sae=SAE)
    codes = [row for row in rows if row.kind == "codes"]
    assert {(row.dataset, row.rows, row.state) for row in codes} == {(name, n, "imported") for name, n in N.items()}
    for name in N:
        stored = with_codes.stored_codes(name)
        expected = with_codes.dense(name)
        train, test = with_codes.split(name)
        absent = np.setdiff1d(np.arange(len(expected)), np.concatenate([train, test]))
        assert len(absent) == 1
        found = stored.dense()
        present = np.concatenate([train, test])
        np.testing.assert_array_equal(found[present], expected[present])  # to the last bit
        np.testing.assert_allclose(found[absent], expected[absent], rtol=1e-5)
        assert stored.k == np.count_nonzero(expected, axis=1).max()
        np.testing.assert_array_equal(stored.rows(slice(None)).l0, np.count_nonzero(expected, axis=1))
        attributes = stored.group.attributes
        assert attributes["source"]["encoded_here"]["rows"] == absent.tolist()
        assert (attributes["dtype"], attributes["keeps_all"]) == ("float32", True)
        assert stored.unit(3).rows.tolist() == np.flatnonzero(expected[:, 3]).tolist()


def test_codes_without_the_sae_are_left_out_for_the_row_that_no_file_has(with_codes: Bench) -> None:
    rows = with_codes.imported(sae="other", files=NAME, layer=3)
    reasons = [row.reason for row in rows if row.kind == "codes"]
    assert len(reasons) == 3
    assert all("to be encoded here" in reason and "no SAE 'other'" in reason for reason in reasons)
    assert not list(with_codes.lake.code_keys())


def test_codes_without_activations_are_left_out(with_codes: Bench) -> None:
    with_codes.imported()
    other = replace(with_codes.weights.config, hook_name="blocks.4.hook_resid_post")
    write_sae(with_codes.lake.storage, "four", replace_config(with_codes.weights, other), quiet=True)
    rows = with_codes.imported(folder=with_codes.codes, sae="four")
    assert all("its activations cannot be read" in row.reason for row in rows)
    assert len(rows) == 3


def replace_config(weights: ArrayWeights, config: Any) -> ArrayWeights:
    return ArrayWeights(config, weights.arrays)


def test_codes_of_another_sae_are_told_from_a_few_rows(with_codes: Bench) -> None:
    other = random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE, hook_name=HOOK, seed=1)
    write_sae(with_codes.lake.storage, "other", other, quiet=True)
    rows = with_codes.imported(sae="other")
    reasons = [row.reason for row in rows if row.kind == "codes"]
    assert len(reasons) == 3
    assert all("makes other codes" in reason for reason in reasons)
    narrow = random_sae("jumprelu", d_in=D_IN, d_sae=20, hook_name=HOOK)
    write_sae(with_codes.lake.storage, "narrow", narrow, quiet=True)
    rows = with_codes.imported(sae="narrow")
    assert all("of 40 units, SAE narrow has 20" in row.reason for row in rows if row.kind == "codes")


def test_another_seed_is_told_by_the_labels(with_codes: Bench) -> None:
    rows = with_codes.imported(sae=SAE, seed=43)
    reasons = [row.reason for row in rows if row.kind == "codes"]
    assert len(reasons) == 3
    assert all("seed 43" in reason for reason in reasons)


CODES = "66_x-y"


def change_codes(change: Callable[[Any], Any], part: str = "X_test_sae") -> Callable[[Bench], None]:
    def apply(bench: Bench) -> None:
        path = bench.codes / f"{CODES}_{NAME}_{part}.pt"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return apply


def coo(rows: list[int], units: list[int], values: list[float], shape: tuple[int, int] = (99, D_SAE)) -> Any:
    return torch.sparse_coo_tensor([rows, units], values, shape, check_invariants=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda bench: (bench.codes / f"{CODES}_{NAME}_y_test.pt").unlink(), f"there is no file {CODES}_{NAME}_y_test"),
        (lambda bench: (bench.codes / f"{CODES}_{NAME}_X_train_sae.pt").unlink(), "there is no file"),
        (lambda bench: damaged(bench.codes / f"{CODES}_{NAME}_X_test_sae.pt"), "damaged or cut"),
        (lambda bench: of_objects(bench.codes / f"{CODES}_{NAME}_X_test_sae.pt"), "Python objects"),
        (change_codes(lambda x: x.to_dense()), "expected one sparse COO matrix"),
        (change_codes(lambda x: x.to(torch.float64)), "float64"),
        (change_codes(lambda x: x.to_dense()[:-1].to_sparse()), "has 98 rows, the split 99"),
        (change_codes(lambda x: (x * float("nan")).coalesce()), "holds NaN"),
        (change_codes(lambda x: (x * -1).coalesce()), "a negative value"),
        (change_codes(lambda x: (x * float("inf")).coalesce()), "an infinite value"),
        (change_codes(lambda x: coo([3, 1], [0, 0], [1.0, 2.0])), "not in order"),
        (change_codes(lambda x: coo([1, 1], [5, 5], [1.0, 2.0])), "not in order"),
        (change_codes(lambda x: x.to_dense()[:, :30].to_sparse()), "30 units"),
        (change_codes(lambda y: 1 - y, "y_train"), "labels are not those"),
        (change_codes(lambda y: y[:-3], "y_train"), "has 47 labels"),
        (change_codes(lambda y: y[None], "y_train"), "no vector of labels"),
    ],
)
def test_codes_that_cannot_be_used_have_their_reason(
    with_codes: Bench, change: Callable[[Bench], Any], reason: str
) -> None:
    change(with_codes)
    rows = with_codes.imported(sae=SAE)
    (found,) = left_out(rows).values()
    assert reason in found
    assert sum(row.state == "imported" and row.kind == "codes" for row in rows) == 2
    assert not list(with_codes.lake.code_keys(CODES))


def test_values_of_0_in_a_file_are_no_active_units(with_codes: Bench) -> None:
    path = with_codes.codes / f"{CODES}_{NAME}_X_test_sae.pt"
    before = torch.load(path, weights_only=True)
    unit = int(torch.nonzero(before.to_dense()[0] == 0)[0])
    one = torch.sparse_coo_tensor([[0], [unit]], [1.0], before.shape, check_invariants=True)
    mixed = (before + one).coalesce()
    mixed.values()[int(torch.nonzero((mixed.indices()[0] == 0) & (mixed.indices()[1] == unit))[0])] = 0.0
    assert mixed._nnz() == before._nnz() + 1
    torch.save(mixed, path)
    with_codes.imported(sae=SAE)
    stored = with_codes.stored_codes(CODES)
    np.testing.assert_array_equal(stored.rows(slice(None)).l0, np.count_nonzero(with_codes.dense(CODES), axis=1))


def test_codes_of_several_saes_must_be_told_apart(with_codes: Bench) -> None:
    for dataset in N:
        write_codes(with_codes, dataset, name="9_width_16k_average_l0_5")
        write_codes(with_codes, dataset, name="3_width_16k_average_l0_7")
    with pytest.raises(InputError, match=r"codes of 3 SAEs .*--files"):
        with_codes.imported(sae=SAE)
    with pytest.raises(MissingError, match="no codes of 'nothing'"):
        with_codes.imported(sae=SAE, files="nothing")
    rows = with_codes.imported(sae=SAE, files=NAME)
    assert sum(row.kind == "codes" and row.state == "imported" for row in rows) == 3


def test_an_sae_is_found_by_its_id(with_codes: Bench) -> None:
    for dataset in N:
        write_codes(with_codes, dataset, name="3_width_16k_average_l0_7")
    config = replace(with_codes.weights.config, sae_id="layer_3/width_16k/average_l0_9")
    write_sae(with_codes.lake.storage, "by-id", replace_config(with_codes.weights, config), quiet=True)
    rows = with_codes.imported(sae="by-id")
    assert {row.file for row in rows if row.kind == "codes"} == {f"{name}_{NAME}_X_train_sae.pt" for name in N}


def test_files_of_other_settings_are_not_taken(with_codes: Bench) -> None:
    for name in (f"{NAME}_38", f"{NAME}_frac0.1"):
        write_codes(with_codes, CODES, name=name)
    torch.save(torch.zeros(3), with_codes.codes.parent / f"{CODES}.pt")  # what the notebook for OOD writes there
    rows = with_codes.imported(sae=SAE)
    assert left_out(rows) == {}
    assert sum(row.kind == "codes" for row in rows) == 3


def test_folders_of_several_models_must_be_told_apart(bench: Bench) -> None:
    (bench.data / "model_activations_other").mkdir()
    with pytest.raises(InputError, match=f"models other, {MODEL}, none of them 'third'"):
        bench.imported(model="third")
    assert left_out(bench.imported()) == {}


def test_a_folder_without_files_of_the_benchmark_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is no folder"):
        bench.imported(folder=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no files of the benchmark"):
        bench.imported(folder=tmp_path / "empty")
    with pytest.raises(MissingError, match="no files of layer_9"):
        bench.imported(layer=9)
    with pytest.raises(MissingError, match="fits nothing"):
        bench.imported(datasets="nothing")
    with pytest.raises(MissingError, match="has no codes"):
        bench.imported(sae=SAE)
    with pytest.raises(InputError, match="name their SAE with --sae"):
        bench.imported(files=NAME)


def test_codes_made_here_are_not_replaced(with_codes: Bench) -> None:
    with_codes.imported()
    encode(with_codes.lake, SAE, datasets=[CODES], sample_type="last", force=True, quiet=True)
    found = left_out(with_codes.imported(sae=SAE))
    assert "did not come from these files" in found[f"{CODES}_{NAME}_X_train_sae.pt"]
    assert len(found) == 1


def test_what_goes_out_comes_in_again(with_codes: Bench, tmp_path: Path) -> None:
    with_codes.imported(sae=SAE)
    rows = probes_export(with_codes.lake, tmp_path / "out", quiet=True)
    assert {(row.kind, row.dataset, row.state) for row in rows} == {
        *(("activations", name, "written") for name in bench_names()),
        *(("codes", name, "written") for name in N),
    }
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.pt")} == {
        path.relative_to(with_codes.data) for path in with_codes.data.rglob("*.pt")
    }
    for path in with_codes.data.rglob("*.pt"):
        theirs = torch.load(path, weights_only=True).to_dense()
        ours = torch.load(tmp_path / "out" / path.relative_to(with_codes.data), weights_only=True)
        assert torch.equal(ours.to_dense(), theirs), path
        assert ours.dtype == theirs.dtype
        if path.name.endswith("_sae.pt"):
            assert ours.is_sparse
            assert ours.is_coalesced()
            assert ours._nnz() == theirs.count_nonzero()
    other = replace(with_codes, lake=Lake.create(tmp_path / "other"), data=tmp_path / "out")
    write_sae(other.lake.storage, SAE, other.weights, quiet=True)
    assert left_out(other.imported(sae=SAE)) == {}
    for name in N:
        np.testing.assert_array_equal(other.stored(name).read(), with_codes.stored(name).read())
        np.testing.assert_array_equal(other.stored_codes(name).dense(), with_codes.stored_codes(name).dense())


def bench_names() -> list[str]:
    return [*N, OOD]


def test_the_package_reads_exported_activations(tmp_path: Path) -> None:
    data, tag, hook = own("utils_data"), "95_toxic_is", "blocks.12.hook_resid_post"
    x = np.random.default_rng(0).normal(size=(728, 6)).astype(np.float32)
    (tmp_path / "in").mkdir()
    torch.save(torch.from_numpy(x), tmp_path / "in" / f"{tag}_{hook}.pt")
    lake = Lake.create(tmp_path / "lake")
    rows = probes_import(lake, tmp_path / "in", model="toy", datasets=tag, quiet=True)
    assert [row.state for row in rows] == ["imported"]
    probes_export(lake, tmp_path / "out", what="activations", quiet=True)
    found = data.get_xy_traintest(628, tag, hook, "toy", tmp_path / "out")
    y = data.get_yvals(tag)
    train, test = data.get_train_test_indices(y, 628, 99)
    np.testing.assert_array_equal(found[0].numpy(), x[train])
    np.testing.assert_array_equal(found[2].numpy(), x[test])
    np.testing.assert_array_equal(found[1], y[train])
    assert data.get_datasets("toy", hook, tmp_path / "out") == [tag]


def test_an_export_that_cannot_be_done_has_its_reason(bench: Bench, tmp_path: Path) -> None:
    bench.imported()
    group = bench.stored(CODES).group
    for name in bench.lake.storage.names(f"{group.path}/ledger"):
        if name.startswith("c."):
            (tmp_path / "lake" / group.path / "ledger" / name).unlink()
    rows = probes_export(bench.lake, tmp_path / "out", what="activations", quiet=True)
    (reason,) = left_out(rows).values()
    assert "never written" in reason
    assert sum(row.state == "written" for row in rows) == 3
    assert not list((tmp_path / "out").rglob(f"*{CODES}_{HOOK}*"))
    assert not list((tmp_path / "out").rglob("*.partial"))
    with pytest.raises(MissingError, match="holds no codes"):
        probes_export(bench.lake, tmp_path / "out", what="codes", quiet=True)
    with pytest.raises(InputError, match="--what pictures"):
        probes_export(bench.lake, tmp_path / "out", what="pictures", quiet=True)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_tables_have_the_columns_of_the_benchmark(with_codes: Bench, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    with_codes.imported(sae=SAE, datasets=[CODES, OOD])
    results = probe(
        with_codes.lake,
        [CODES],
        settings=["normal", "scarcity", "imbalance", "label_noise"],
        methods=["logreg", "sae-l1"],
        ks=[2],
        quiet=True,
    )
    rows = probes_export(with_codes.lake, tmp_path / "out", what="tables", quiet=True)
    metrics = ["test_f1", "test_acc", "test_auc", "val_auc"]
    sae = ["k", "dataset", "layer", "sae_id", "reg_type"]
    expected = {
        f"baseline_probes_{MODEL}/normal_settings/layer3_results.csv": ["dataset", "method"],
        f"baseline_probes_{MODEL}/scarcity/all_results.csv": ["dataset", "method", "num_train"],
        f"baseline_probes_{MODEL}/corrupt/all_results.csv": ["dataset", "method", "ratio", "num_train"],
        f"sae_probes_{MODEL}/normal_setting/all_metrics.csv": sae,
        f"sae_probes_{MODEL}/scarcity_setting/all_metrics.csv": [*sae, "num_train"],
        f"sae_probes_{MODEL}/label_noise_setting/all_metrics.csv": [*sae, "corrupt_frac"],
    }
    there = {row.file.removeprefix("results/"): row.rows for row in rows}
    assert set(expected) <= set(there)
    tidy = results.table()
    for name, columns in expected.items():
        frame = pandas.read_csv(tmp_path / "out" / "results" / name, float_precision="round_trip")
        assert frame.columns.tolist() == [*columns, *metrics]
        assert len(frame) == there[name] > 0
        setting = {"normal": "normal", "scarcity": "scarcity", "corrupt": "label_noise", "label": "label_noise"}[
            name.split("/")[1].split("_")[0]
        ]
        method = "logreg" if name.startswith("baseline") else "sae-l1"
        own_rows = tidy[(tidy.setting == setting) & (tidy.method == method) & tidy.test_auc.notna()]
        np.testing.assert_array_equal(frame.test_auc.to_numpy(), own_rows.test_auc.to_numpy())


def result_of(
    key: ActivationsKey | CodesKey, setting: str, method: str, *, k: int | None, fraction: float | None
) -> Any:
    one = Probe(k, 0.1, 0.2, 0.3, None, {}, 1, 0)
    cells = (ProbedCell(64, 9, fraction, 0, "", (), (one,)), ProbedCell(2, 0, fraction, 0, "too small", (), ()))
    return ProbeResult("", key, None, "default", setting, method, "target", ("0", "1"), {}, 0, cells)


def test_tables_of_all_settings(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    baseline, embed = ActivationsKey("a b", "m", "layer_20", "last"), ActivationsKey("a b", "m", "hook_embed", "last")
    codes = CodesKey("a b", "m", "layer_20", "my sae", "last")
    results = [
        result_of(baseline, "normal", "pca", k=None, fraction=None),
        result_of(embed, "normal", "pca", k=None, fraction=None),
        result_of(baseline, "imbalance", "logreg", k=None, fraction=0.39999999999999997),
        result_of(baseline, "scarcity", "knn", k=None, fraction=None),
        result_of(embed, "scarcity", "knn", k=None, fraction=None),
        result_of(baseline, "ood", "logreg", k=None, fraction=None),
        result_of(baseline, "multi_token", "concat", k=None, fraction=None),
        result_of(codes, "imbalance", "sae-l2", k=16, fraction=0.39999999999999997),
        result_of(codes, "ood", "sae-l1", k=16, fraction=None),
    ]
    rows = list(export_tables(lake, results, tmp_path))
    assert {row.file: (tmp_path / row.file).read_text() for row in rows} == {
        f"results/{name}": f"{header}\n{line}\n"
        for name, header, line in (
            ("baseline_probes_m/normal_settings/layer20_results.csv", METHOD, "a b,pca,0.1,0.2,0.3,"),
            ("baseline_probes_m/normal_settings/layerembed_results.csv", METHOD, "a b,pca,0.1,0.2,0.3,"),
            (
                "baseline_probes_m/imbalance/all_results.csv",
                METHOD.replace("method", "method,ratio,num_train"),
                "a b,logreg,0.4,64,0.1,0.2,0.3,",
            ),
            (
                "baseline_probes_m/scarcity/layer20_all_results.csv",
                METHOD.replace("method", "method,num_train"),
                "a b,knn,64,0.1,0.2,0.3,",
            ),
            (
                "baseline_probes_m/scarcity/layerembed_all_results.csv",
                METHOD.replace("method", "method,num_train"),
                "a b,knn,64,0.1,0.2,0.3,",
            ),
            ("baseline_probes_m/ood/all_results.csv", "dataset,test_auc_baseline", "a b,0.3"),
            (
                "sae_probes_m/class_imbalance_setting/all_metrics.csv",
                OF_SAE.replace("reg_type", "reg_type,frac"),
                "16,a b,20,my sae,l2,0.39999999999999997,0.1,0.2,0.3,",
            ),
            ("sae_probes_m/OOD_setting/all_metrics.csv", OF_SAE, "16,a b,20,my sae,l1,0.1,0.2,0.3,"),
        )
    }


METHOD = "dataset,method,test_f1,test_acc,test_auc,val_auc"
OF_SAE = "k,dataset,layer,sae_id,reg_type,test_f1,test_acc,test_auc,val_auc"


def test_the_commands_print_what_is_left_out(
    with_codes: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (with_codes.activations / f"7_a b_{HOOK}.pt").unlink()
    lake = str(tmp_path / "lake")
    words = ["probes", "import", lake, str(with_codes.data), "--model", MODEL, "--samples", *SAMPLES, "--quiet"]
    words += ["--sae", SAE, "--catalog", str(tmp_path / "catalog.yaml")]
    assert main(words) == 3
    shown = capsys.readouterr().out
    assert f"7_a b_{HOOK}.pt" in shown
    assert "there is no file" in shown
    assert "has no dataset '7_a b'" in shown
    assert main([*words, "--json"]) == 3
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"stored", "left out"}
    assert main(["probes", "export", lake, str(tmp_path / "out"), "--what", "activations", "codes", "--quiet"]) == 0
    assert "written" in capsys.readouterr().out
    assert main([*words[:4], "--model", MODEL, "--samples", "mini/nothing*", "--quiet", *words[-2:]]) == 2
