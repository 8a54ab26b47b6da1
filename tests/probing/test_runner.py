"""Probing over a lake against the package's own runs, from the same activations and an SAE of the same codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import own
from built_lake import KnownCodes, sample_table, top_k, write_activations, write_codes

from saestore.catalogs import load_catalog
from saestore.cli import present_probes
from saestore.errors import ConflictError, InputError, IntegrityError, MissingError
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey
from saestore.probe_results import TABLE_COLUMNS
from saestore.probing import jobs
from saestore.probing.jobs import open_job
from saestore.samples import SampleTable, samples_from_entry
from saestore.tables import write_positions, write_samples
from saestore.verbs import probe

TAG, HOOK = "95_toxic_is", "blocks.4.hook_resid_post"
D_IN, D_SAE, K = 12, 48, 9
KS = (1, 4, 16)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Inconsistent values. penalty=l1:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
]


@dataclass(frozen=True)
class OwnSAE:
    """Top-K of a random projection, for the package; `dense` of the same rows is what the lake stores."""

    weights: np.ndarray

    def dense(self, x: np.ndarray) -> np.ndarray:
        z = np.maximum(x @ self.weights, 0)
        least = np.sort(z, axis=1)[:, -K, None]
        return np.where(z >= least, z, 0).astype(np.float32)

    def encode(self, x: Any) -> Any:
        import torch

        return torch.from_numpy(self.dense(x.numpy()))


def exact(dense: np.ndarray) -> KnownCodes:
    """Codes whose values are those of the dense matrix to the last bit."""
    known = top_k(dense, K)
    return KnownCodes(known.indices, np.take_along_axis(dense, known.indices.astype(np.int64), 1), known.l0, dense)


@dataclass(frozen=True)
class Made:
    lake: Lake
    sae: OwnSAE
    x: np.ndarray
    cache: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    labels = own("utils_data").get_yvals(TAG)
    folder = tmp_path_factory.mktemp("runner")
    rng = np.random.default_rng(11)
    x = rng.normal(size=(len(labels), D_IN)).astype(np.float32)
    x[:, :3] += 0.7 * labels[:, None]
    sae = OwnSAE(rng.normal(size=(D_IN, D_SAE)).astype(np.float32))
    lake = Lake.create(str(folder / "lake"))
    write_samples(lake.storage, TAG, samples_from_entry(load_catalog().dataset(f"sae-probes/{TAG}")))
    write_activations(lake.storage, ActivationsKey(TAG, "m", "layer_4", "last"), x, "float32")
    write_codes(lake.storage, CodesKey(TAG, "m", "layer_4", "s", "last"), exact(sae.dense(x)), dtype="float32")
    cache = folder / "cache" / "model_activations_m"
    cache.mkdir(parents=True)
    torch.save(torch.from_numpy(x), cache / f"{TAG}_{HOOK}.pt")
    return Made(lake, sae, x, cache.parent)


def theirs(made: Made, folder: Path, setting: str, penalty: str) -> list[dict[str, Any]]:
    """Run the package's own path and read what it writes."""
    own("run_sae_evals")
    import sae_probes

    sae_probes.run_sae_evals(
        made.sae, "m", HOOK, penalty, setting, ks=list(KS), results_path=folder, model_cache_path=made.cache,
        datasets=[TAG], device="cpu",
    )  # fmt: skip
    found = [row for path in sorted(folder.rglob("*.json")) for row in json.loads(path.read_text())]
    return sorted(found, key=lambda row: (row.get("num_train") or row.get("frac") or 0, row["k"]))


@pytest.mark.parametrize(
    ("setting", "their_setting", "penalty"),
    [
        ("normal", "normal", "l1"),
        ("normal", "normal", "l2"),
        pytest.param("imbalance", "imbalance", "l2", marks=pytest.mark.slow),
        pytest.param("scarcity", "scarcity", "l2", marks=pytest.mark.slow),
    ],
)
def test_sae_probes_are_those_of_the_package(
    made: Made, tmp_path: Path, setting: str, their_setting: str, penalty: str
) -> None:
    expected = theirs(made, tmp_path, their_setting, penalty)
    name = f"{setting}-{penalty}"
    probe(made.lake, settings=setting, methods=f"sae-{penalty}", ks=KS, name=name, quiet=True)
    (result,) = [one for one in made.lake.probes(TAG) if one.name == name]
    mine = [(cell, one) for cell in result.cells for one in cell.probes]
    assert len(mine) == len(expected) >= len(KS)
    compared = 0
    for (cell, one), row in zip(mine, expected, strict=True):
        assert one.k == row["k"]
        swapped = set(cell.units[: one.k]) ^ set(row["indices"][: one.k])
        if (
            swapped
        ):  # the package leaves open which of equally good units it takes, of which there are many for few rows
            scores = own_scores(made, cell.num_train, row)[sorted(swapped)]
            assert scores.max() - scores.min() <= 1e-5 * scores.max()
            continue
        compared += 1
        for metric in ("test_auc", "val_auc", "test_acc", "test_f1"):
            assert getattr(one, metric) == pytest.approx(row[metric], abs=1e-3)
    assert compared > 0.8 * len(mine)


def own_scores(made: Made, num_train: int, row: dict[str, Any]) -> np.ndarray:
    """The score of every unit by the definition, on the rows that train in a cell of the package."""
    data = own("utils_data")
    y = data.get_yvals(TAG)
    ratio = row.get("frac", 0.5)
    # How many rows test does not change which ones train.
    train, _ = data.get_train_test_indices(y, num_train, 100, pos_ratio=ratio)
    x, labels = made.sae.dense(made.x[train]).astype(np.float64), y[train]
    scale = np.abs(x).sum(axis=0) / ((x != 0).sum(axis=0) + 1e-6) + 1e-6
    scores: np.ndarray = np.abs(x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0)) / scale
    return scores


@pytest.mark.parametrize("method", ["logreg", "pca", "knn"])
def test_baselines_are_those_of_the_package(made: Made, tmp_path: Path, method: str) -> None:
    own("run_baselines")
    import sae_probes

    sae_probes.run_baseline_evals(
        "m", HOOK, "normal", method=method, results_path=tmp_path, model_cache_path=made.cache, datasets=[TAG],
        device="cpu",
    )  # fmt: skip
    (path,) = tmp_path.rglob("*.json")
    found = json.loads(path.read_text())
    (row,) = found if isinstance(found, list) else [found]
    probes = probe(made.lake, methods=method, name="baselines", quiet=True)
    (mine,) = probes.rows
    assert tuple(mine) == TABLE_COLUMNS
    for metric in ("test_auc", "val_auc", "test_acc", "test_f1"):
        # The package leaves PCA without a seed.
        assert mine[metric] == pytest.approx(row[metric], abs=2e-2 if method == "pca" else 1e-6)


def test_what_is_stored_is_left_alone_and_another_seed_is_a_conflict(made: Made) -> None:
    first = probe(made.lake, methods=["logreg", "sae-l2"], ks=[4], name="again", quiet=True)
    assert [task.state for task in first.tasks] == ["done", "done"]
    (path, *_) = [one.path for one in made.lake.probes() if one.name == "again"]
    before = made.lake.storage.get(f"{path}/zarr.json")
    assert probe(made.lake, methods=["logreg", "sae-l2"], ks=[4], name="again", quiet=True).rows == first.rows
    assert made.lake.storage.get(f"{path}/zarr.json") == before
    with pytest.raises(ConflictError, match=r"probed differently \(seed: 42 is stored, 7 was asked\); give another"):
        probe(made.lake, methods="logreg", seed=7, name="again", quiet=True)


def test_duplicates_between_training_and_test_are_counted(made: Made) -> None:
    (row,) = probe(made.lake, methods="logreg", name="baselines", quiet=True).rows
    data = own("utils_data")
    texts = made.lake.samples(TAG).contents()
    train, test = data.get_train_test_indices(data.get_yvals(TAG), row["num_train"], row["num_test"])
    assert row["shared"] == sum(texts[place] in set(texts[train]) for place in test) > 0


def small(folder: Path, n: int = 240) -> Lake:
    """A lake of three datasets with activations: a task, its test out of distribution, and one that is no task."""
    lake = Lake.create(str(folder / "lake"))
    rng = np.random.default_rng(3)
    for name, size in (("a", n), ("a_OOD", 30), ("b", 40), ("c", 40)):
        table = sample_table(size)
        target = ["x"] * size if name == "b" else ["no", "yes"] * (size // 2)
        write_samples(lake.storage, name, SampleTable(**{**vars(table), "columns": {"target": target}}))
        if name != "c":
            x = rng.normal(size=(size, 5)).astype(np.float32)
            x[1::2, 0] += 2
            write_activations(lake.storage, ActivationsKey(name, "m", "layer_1", "mean"), x, "float32")
    return lake


def test_what_cannot_be_probed_is_a_row_with_its_reason(tmp_path: Path) -> None:
    lake = small(tmp_path)
    found = probe(lake, ["a", "b", "c", "d"], methods="logreg", quiet=True)
    assert [(task.dataset, task.state) for task in found.tasks] == [
        ("a", "done"), ("b", "missing"), ("c", "missing"), ("d", "missing"),
    ]  # fmt: skip
    reasons = [task.reason for task in found.tasks]
    assert "has one class only (x)" in reasons[1]
    assert "data/c/m/layer_1/activations/mean" in reasons[2]
    assert "has no dataset 'd'" in reasons[3]
    assert [(row["dataset"], row["reason"]) for row in found.rows] == list(zip("abcd", reasons, strict=True))
    assert found.table()["test_auc"].notna().tolist() == [True, False, False, False]
    assert {task.dataset for task in probe(lake, methods="logreg", dry_run=True, quiet=True).tasks} == {"a", "b", "c"}


def test_rows_that_were_never_written_are_probed_when_they_are(tmp_path: Path) -> None:
    """A result that said so would stand in the way of the right one."""
    lake, key = small(tmp_path), ActivationsKey("a", "m", "layer_1", "max")
    x = lake.activations("a").read()
    write_activations(lake.storage, key, x, "float32", holes={0})
    (task,) = probe(lake, "a", methods="logreg", sample_type="max", quiet=True).tasks
    assert task.state == "missing"
    assert "rows 0 to 239 of data/a/m/layer_1/activations/max were never written" in task.reason
    assert not lake.probes("a")
    write_activations(lake.storage, key, x, "float32")
    (task,) = probe(lake, "a", methods="logreg", sample_type="max", quiet=True).tasks
    assert task.state == "done"


def test_what_several_methods_read_is_opened_once_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def counted(lake: Lake, job: Any) -> Any:
        opened.append(job.key.dataset)
        return open_job(lake, job)

    monkeypatch.setattr(jobs, "open_job", counted)
    found = probe(small(tmp_path), settings=["normal", "scarcity"], methods=["logreg", "knn"], dry_run=True, quiet=True)
    assert len(found.tasks) == 12
    assert sorted(opened) == ["a", "b", "c"]


def test_cells_that_are_too_small_or_not_finite_have_a_reason(tmp_path: Path) -> None:
    lake = small(tmp_path)
    rows = probe(lake, "a", settings="scarcity", methods="logreg", quiet=True).rows
    assert [row["num_train"] for row in rows][-1] == 1024
    assert all((row["test_auc"] is None) == (row["num_train"] > 140) == bool(row["reason"]) for row in rows)
    assert "240 rows of equal classes; scarcity needs 1,124 here" in rows[-1]["reason"]
    x = np.ones((240, 5), np.float32)
    x[3, 1] = np.nan
    write_activations(lake.storage, ActivationsKey("a", "m", "layer_1", "max"), x, "float32")
    (row,) = probe(lake, "a", methods="logreg", sample_type="max", quiet=True).rows
    assert "NaN" in row["reason"]
    write_codes(lake.storage, CodesKey("a", "m", "layer_1", "s", "max"), top_k(x, 5), dtype="float32")
    (row,) = probe(lake, "a", methods="sae-l1", ks=[1, 2], sample_type="max", quiet=True).rows
    assert "rows of data/a/m/layer_1/codes/s/max hold NaN or infinity, the first is 3" in row["reason"]


def test_out_of_distribution_trains_here_and_tests_there(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    lake = small(tmp_path, n=1400)
    found = probe(lake, settings="ood", methods="logreg", quiet=True)
    assert [task.dataset for task in found.tasks] == ["a"]
    (row,) = found.rows
    (result,) = lake.probes("a")
    c = result.cells[0].probes[0].chosen["C"]
    x = lake.activations("a").read()
    y = np.arange(len(x)) % 2
    data = own("utils_data")
    train, _ = data.get_train_test_indices(y, 1024, 0)
    order = np.random.RandomState(42).permutation(1024)
    model = LogisticRegression(C=c, max_iter=1000, random_state=42)
    model.fit(x[train][order].astype(np.float64), y[train][order])
    other = lake.activations("a_OOD").read()
    auc = roc_auc_score(np.arange(30) % 2, model.predict_proba(other)[:, 1])
    assert (row["num_train"], row["num_test"]) == (1024, 30)
    assert row["test_auc"] == pytest.approx(auc, abs=1e-9)


def test_out_of_distribution_needs_another_dataset_that_is_named_after_it(tmp_path: Path) -> None:
    lake = small(tmp_path, n=1400)
    found = probe(lake, ["a", "c"], settings="ood", methods="logreg", test_dataset="a", quiet=True)
    assert [(task.dataset, task.state) for task in found.tasks] == [("a", "missing"), ("c", "missing")]
    assert found.tasks[0].reason == "a would test what it has trained itself; give another --test-dataset"
    found = probe(lake, settings="ood", methods="logreg", test_dataset="a_OOD", dry_run=True, quiet=True)
    assert [task.dataset for task in found.tasks] == ["a", "b", "c"]
    with pytest.raises(MissingError, match=r"is named other after another one.*; give --test-dataset"):
        probe(lake, settings="ood", methods="logreg", test_dataset="other", quiet=True)


def test_classes_of_other_names_are_told(tmp_path: Path) -> None:
    lake = small(tmp_path, n=1400)
    columns = {"target": ["wrong", "right"] * 15}
    write_samples(lake.storage, "t", SampleTable(**{**vars(sample_table(30)), "columns": columns}))
    x = lake.activations("a_OOD").read()
    write_activations(lake.storage, ActivationsKey("t", "m", "layer_1", "mean"), x, "float32")
    (row,) = probe(lake, "a", settings="ood", methods="logreg", test_dataset="t", quiet=True).rows
    assert row["test_auc"] is not None
    assert "classes are no and yes in training and right and wrong in the test" in row["reason"]


def test_damage_of_one_dataset_leaves_the_others(tmp_path: Path) -> None:
    lake = small(tmp_path)
    x = np.random.default_rng(0).normal(size=(240, 5)).astype(np.float32)
    write_samples(lake.storage, "e", SampleTable(**{**vars(sample_table(240)), "columns": {"target": [0, 1] * 120}}))
    key = ActivationsKey("e", "m", "layer_1", "mean")
    write_activations(lake.storage, key, x, "float32")
    (shard,) = (tmp_path / "lake" / key.path).rglob("c/0/0")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = probe(lake, ["e", "a"], methods="logreg", quiet=True)
    assert {task.dataset: task.state for task in found.tasks} == {"e": "missing", "a": "done"}
    assert "is damaged in chunk 0 (checksum mismatch)" in next(r["reason"] for r in found.rows if r["dataset"] == "e")


def test_rows_that_exceed_the_memory_are_left_out(tmp_path: Path) -> None:
    lake = small(tmp_path)
    (task,) = probe(lake, "a", methods="logreg", memory="10KiB", quiet=True).tasks
    assert task.state == "missing"
    assert task.reason == "its rows take 42.2 KiB, the memory is 10.0 KiB; give more (--memory)"
    (task,) = probe(lake, "a", methods="logreg", memory="50KiB", quiet=True).tasks
    assert task.state == "done"


def test_several_tokens_are_probed_by_their_own_methods(tmp_path: Path) -> None:
    from saestore.probing.attention import attention_probe
    from saestore.probing.multi_token import concat_probe, pooled_design
    from saestore.probing.sae_probes import fit_probes
    from saestore.probing.settings import cells
    from saestore.probing.tasks import read_task

    lake, rng = Lake.create(str(tmp_path / "lake")), np.random.default_rng(2)
    n, place = 160, ("t", "m", "layer_3")
    table = SampleTable(**{**vars(sample_table(n)), "columns": {"label": ["no", "yes"] * (n // 2)}})
    write_samples(lake.storage, "t", table)
    offsets = np.append(0, np.cumsum(rng.integers(2, 6, n))).astype(np.int64)
    rows = int(offsets[-1])
    special = np.zeros(rows, bool)
    special[offsets[:-1]] = True
    arrays = {"special": special, "token_id": np.zeros(rows, np.uint32)}
    write_positions(lake.storage, ModelKey("t", "m"), offsets=offsets, arrays=arrays, digest="0" * 64, attributes={})
    x = rng.normal(size=(rows, D_IN)).astype(np.float32)
    x[np.repeat(np.arange(n) % 2 == 1, np.diff(offsets)), :2] += 0.6
    write_activations(lake.storage, ActivationsKey(*place, "token"), x, "float32")
    z = np.where(rng.random((rows, 20)) < 0.3, np.abs(x[:, :1] + rng.normal(size=(rows, 20))), 0).astype(np.float32)
    write_codes(lake.storage, CodesKey(*place, "s", "token"), top_k(z, 12))

    found = probe(lake, settings="multi_token", ks=[4, 16, 99], quiet=True)
    task = read_task(lake.samples("t"))
    (cell,) = cells(task, "multi_token")
    activations, codes = lake.activations("t"), lake.codes("t")
    expected = {
        ("concat", None): concat_probe(activations, task, cell).test_auc,
        ("attention", None): attention_probe(activations, task, cell).scores.test_auc,
    }
    for how in ("mean", "max"):
        design = pooled_design(codes, task, cell, how, limit=16)
        for one in fit_probes(design, ks=(4, 16)):
            expected["sae-" + how, one.k] = one.scores.test_auc
    assert {(row["method"], row["k"]): row["test_auc"] for row in found.rows} == expected
    reasons = {row["method"]: row["reason"] for row in found.rows}
    assert reasons["sae-max"] == "k = 99 left out: there are 20 units"
    assert reasons["concat"] == ""


def test_codes_that_lack_active_units_are_told(tmp_path: Path) -> None:
    lake = small(tmp_path)
    rng = np.random.default_rng(9)
    lacking = {}
    for name, size in (("a", 240), ("c", 40)):
        dense = np.where(rng.random((size, 20)) < 0.3, rng.random((size, 20)), 0).astype(np.float32)
        write_codes(lake.storage, CodesKey(name, "m", "layer_1", "s", "mean"), top_k(dense, 6))
        lacking[name] = int(((dense > 0).sum(axis=1) > 6).sum())
    assert min(lacking.values()) > 0
    found = probe(lake, methods=["logreg", "sae-l2"], ks=[2], quiet=True)
    assert {(row["dataset"], row["method"]): row["truncated"] for row in found.rows if row["num_test"] is not None} == {
        ("a", "logreg"): 0, ("a", "sae-l2"): lacking["a"], ("c", "sae-l2"): lacking["c"],
    }  # fmt: skip
    told = present_probes.probe(found, {})
    assert f"note: of s, {sum(lacking.values())} rows in 2 data sets have more active units than are stored" in told


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda content: content.pop("cells"), "is damaged .*'cells'.*; delete it and probe again"),
        (lambda content: content["cells"][0]["probes"][0].pop("test_auc"), "is damaged .*'test_auc'"),
        (lambda content: content.update(kind="codes"), "is not the result of a probe; delete it and probe again"),
    ],
)
def test_a_damaged_result_is_refused_and_named(tmp_path: Path, harm: Any, told: str) -> None:
    lake = small(tmp_path)
    probe(lake, "a", methods="logreg", quiet=True)
    (result,) = lake.probes("a")
    document = json.loads(lake.storage.get(f"{result.path}/zarr.json") or b"")
    harm(document["attributes"]["saestore"])
    lake.storage.put(f"{result.path}/zarr.json", json.dumps(document).encode())
    with pytest.raises(IntegrityError, match=f"{result.path}.*{told}") as raised:
        lake.probes("a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"settings": "usual"}, InputError, "setting 'usual' is unknown; choose from normal"),
        ({"methods": "svm"}, InputError, "method 'svm' is unknown; choose from logreg"),
        ({"settings": "multi_token"}, MissingError, "no activations fit sample type token; the lake has layer_1/mean"),
        ({"methods": "attention"}, InputError, "setting normal has no method 'attention'"),
        ({"layers": 7}, MissingError, "no activations fit layer layer_7"),
        ({"saes": "x"}, MissingError, "no codes of an SAE 'x'"),
        ({"datasets": "q*"}, MissingError, "no dataset that 'q\\*' fits"),
        ({"ks": [0]}, InputError, "numbers of units are \\[0\\]; expected different positive ones"),
        ({"seed": -1}, InputError, "seed -1; expected a whole number"),
        ({"name": "../x"}, InputError, "result name '../x' cannot be used"),
        ({"normalisation": "median", "methods": "logreg"}, InputError, "normalisation 'median'; choose mean or none"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        probe(small(tmp_path), quiet=True, **given)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(made: Made, tmp_path: Path) -> None:
    lake = small(tmp_path)
    command = [
        sys.executable, "-c", "import sys; from saestore.cli import main; sys.exit(main())", "probe", lake.url,
        "--settings", "normal", "scarcity", "--methods", "logreg", "mlp", "--quiet",
    ]  # fmt: skip
    started = subprocess.Popen(command, stderr=subprocess.PIPE)
    while started.poll() is None and not lake.probes("a"):
        pass
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    kept = {one.path: lake.storage.get(f"{one.path}/zarr.json") for one in lake.probes("a")}
    assert kept
    assert len(kept) < 4
    found = probe(lake, "a", settings=["normal", "scarcity"], methods=["logreg", "mlp"], quiet=True)
    assert [task.state for task in found.tasks] == ["done"] * 4
    for path, content in kept.items():
        assert lake.storage.get(f"{path}/zarr.json") == content
