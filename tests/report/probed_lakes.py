"""Made-up results of probes: in a lake, and as tables in the shapes that the benchmark's authors published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from built_lake import sample_table, sparse_rows, top_k, write_activations, write_codes

from saestore.codes import Codes
from saestore.lake import Lake
from saestore.layout import ALL_UNITS, PROBES, ActivationsKey, CodesKey, RowsKey
from saestore.probe_results import Probe, ProbedCell, ProbeResult, write_result
from saestore.tables import write_samples

BASELINES = ("logreg", "pca", "knn", "xgboost", "mlp")
SIZES = (2, 5, 20, 100, 400)
POSITIVES = (0.05, 0.39999999999999997, 0.95)
FLIPPED = (0.0, 0.25, 0.5)
CELLS: dict[str, list[tuple[int, float | None]]] = {
    "normal": [(400, None)],
    "scarcity": [(size, None) for size in SIZES],
    "imbalance": [(200, fraction) for fraction in POSITIVES],
    "label_noise": [(400, fraction) for fraction in FLIPPED],
    "ood": [(1024, None)],
}
N, TEST = 6, 40
SKILL = {"logreg": 0.0, "pca": -0.006, "knn": -0.05, "xgboost": -0.015, "mlp": -0.01}


class Scores:
    """Scores of made-up probes: rounded, so that validation AUC is often equal."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.hardness: dict[str, float] = {}

    def of(self, dataset: str, setting: str, size: int, fraction: float | None, skill: float) -> tuple[float, float]:
        hard = self.hardness.setdefault(dataset, float(self.rng.beta(1.2, 6)))
        loss = hard + {"ood": 0.09}.get(setting, 0.0) + 0.25 / np.sqrt(size)
        if setting == "label_noise" and fraction is not None:
            loss += 0.5 * fraction**2
        if setting == "imbalance" and fraction is not None:
            loss += 0.08 * abs(fraction - 0.5)
        test = float(np.clip(1 - loss + skill + self.rng.normal(0, 0.012), 0.3, 1))
        return test, round(float(np.clip(test + abs(self.rng.normal(0, 0.02)), 0.3, 1)), 2)


def probe(k: int | None, scores: tuple[float, float], *, validated: bool = True) -> Probe:
    test, val = scores
    return Probe(k, test - 0.02, test - 0.03, test, val if validated else None, {"C": 1.0}, 11, 1 if k else 0)


def sae_skill(k: int, quality: float) -> float:
    return quality - 0.12 / np.sqrt(k)


def write(
    lake: Lake, key: RowsKey, setting: str, method: str, cells: Sequence[ProbedCell], *, name: str = "default"
) -> ProbeResult:
    if isinstance(key, CodesKey):
        root = key.results_path(Codes.open(lake.storage, key).run, ALL_UNITS, PROBES)
    else:
        root = key.probes_path
    result = ProbeResult(
        path=f"{root}/{name}/{setting}-{method}",
        key=key,
        view=None,
        name=name,
        setting=setting,
        method=method,
        label="target",
        classes=("no", "yes"),
        identity={"seed": 42},
        truncated=0,
        cells=tuple(cells),
    )
    write_result(lake.storage, result)
    return result


def add_dataset(lake: Lake, dataset: str, layers: Sequence[str], saes: Sequence[str]) -> None:
    """Put samples, activations and codes of a few rows, which results lie beside."""
    write_samples(lake.storage, dataset, sample_table(N))
    for layer in layers:
        write_activations(
            lake.storage, ActivationsKey(dataset, "m", layer, "last"), np.ones((N, 3), np.float32), "float32"
        )
        for sae in saes:
            write_codes(lake.storage, CodesKey(dataset, "m", layer, sae, "last"), top_k(sparse_rows(N, 20, 0), 3))


def probed_lake(
    url: str,
    *,
    datasets: Sequence[str] = ("5_b", "41_a", "7_c"),
    layers: Sequence[str] = ("layer_9", "layer_20"),
    saes: Sequence[str] = ("sae_2", "sae_10"),
    settings: Sequence[str] = tuple(CELLS),
    seed: int = 0,
) -> Lake:
    """A lake with results of all settings at the second layer, of the normal setting at the first, one set too small.

    Its SAEs have probes of k 1, 16 and 128 in the normal setting, the last of them alone in others.
    """
    lake, scores = Lake.create(url), Scores(seed)
    for place, dataset in enumerate(datasets):
        add_dataset(lake, dataset, layers, saes)
        for layer in layers:
            key = ActivationsKey(dataset, "m", layer, "last")
            for setting in settings if layer == layers[-1] else ("normal",):
                methods = BASELINES if setting in ("normal", "scarcity", "imbalance") else ("logreg",)
                for method in methods:
                    made = list(_cells(scores, dataset, place, setting, (None,), lambda _, m=method: SKILL[m]))
                    write(lake, key, setting, method, made)
                for number, sae in enumerate(saes):
                    if setting != "normal" and number < len(saes) - 1:
                        continue
                    ks = (1, 16, 128) if setting == "normal" else (16, 128)
                    made = list(
                        _cells(scores, dataset, place, setting, ks, lambda k, n=number: sae_skill(k, 0.004 * n))
                    )
                    write(lake, CodesKey(dataset, "m", layer, sae, "last"), setting, "sae-l1", made)
    return lake


def _cells(
    scores: Scores, dataset: str, place: int, setting: str, ks: Sequence[int | None], skill: Any
) -> Iterator[ProbedCell]:
    for size, fraction in CELLS[setting]:
        if place == 0 and size == SIZES[-1] and setting == "scarcity":
            yield ProbedCell(size, 0, fraction, 0, "too few rows of equal classes", (), ())
            continue
        probes = [
            probe(k, scores.of(dataset, setting, size, fraction, skill(k)), validated=size > 2 or k is None) for k in ks
        ]
        yield ProbedCell(size, TEST, fraction, min(4 * place, TEST), "", (), tuple(probes))


def published_tables(
    folder: Path,
    *,
    model: str = "gemma-2-9b",
    layer: int = 20,
    n: int = 5,
    saes: Sequence[str] = ("16k/average_l0_408",),
    seed: int = 1,
) -> dict[str, pd.DataFrame]:
    """Write tables of every published shape, and return them by path."""
    scores = Scores(seed)
    datasets = [f"{place + 5}_set" for place in range(n)]
    base, sae = f"baseline_probes_{model}", f"sae_probes_{model}"
    ids = [f"layer_{layer}/width_{name}" for name in saes]
    tables: dict[str, pd.DataFrame] = {}

    def metrics(values: tuple[float, float]) -> dict[str, float]:
        return {"test_f1": values[0] - 0.1, "test_acc": values[0] - 0.05, "test_auc": values[0], "val_auc": values[1]}

    def baselines(setting: str, methods: Sequence[str], **varied: str) -> pd.DataFrame:
        return pd.DataFrame(
            {"dataset": dataset, "method": method}
            | {column: {"size": size, "fraction": fraction}[what] for column, what in varied.items()}
            | metrics(scores.of(dataset, setting, size, fraction, SKILL[method]))
            for dataset in datasets
            for method in methods
            for size, fraction in CELLS[setting]
        )

    def probes(setting: str, ks: Sequence[int], **varied: str) -> pd.DataFrame:
        return pd.DataFrame(
            metrics(scores.of(dataset, setting, size, fraction, sae_skill(k, 0.002 * number)))
            | {"k": k, "dataset": dataset, "layer": layer, "sae_id": sae_id, "reg_type": penalty}
            | {column: {"size": size, "fraction": fraction}[what] for column, what in varied.items()}
            for number, sae_id in enumerate(ids)
            for dataset in datasets
            for penalty in ("l1", "l2")
            for k in ks
            for size, fraction in CELLS[setting]
        )

    for each in ("embed", 9, layer):
        tables[f"{base}/normal_settings/layer{each}_results.csv"] = baselines("normal", BASELINES)
    tables[f"{base}/scarcity/summary/all_results.csv"] = baselines("scarcity", BASELINES, num_train="size")
    imbalance = baselines("imbalance", BASELINES, ratio="fraction", num_train="size")
    tables[f"{base}/imbalance/all_results.csv"] = imbalance.assign(ratio=imbalance["ratio"].round(2))
    tables[f"{base}/corrupt/all_results.csv"] = baselines("label_noise", ["logreg"], ratio="fraction", num_train="size")
    ood = {"test_auc_baseline": [0.9] * n, "test_auc_sae": [0.8 + 0.01 * place for place in range(n)]}
    tables[f"{base}/ood/all_results.csv"] = pd.DataFrame({"dataset": datasets, **ood})
    normal = probes("normal", (1, 16, 128))
    tables[f"{sae}/normal_setting/all_metrics.csv"] = normal
    tables[f"{sae}/scarcity_setting/all_metrics.csv"] = probes("scarcity", (16, 128), num_train="size")
    tables[f"{sae}/class_imbalance_setting/all_metrics.csv"] = probes("imbalance", (16, 128), frac="fraction")
    tables[f"{sae}/label_noise_setting/all_metrics.csv"] = probes("label_noise", (16, 128), corrupt_frac="fraction")
    tables[f"{sae}/OOD_setting/all_metrics.csv"] = normal[normal["k"] > 1].reset_index(drop=True)
    for path, table in tables.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / path)  # with the index, a column without a name
    return tables
