"""What a report of probes compares: results of one model, the probes that stand for SAEs in it, and means over tasks.

The task, one dataset, is what counts once: an AUC is first averaged over the training sets of a task and then over
tasks, and standard errors are those over tasks. Methods are only compared on training sets that all of them have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from saestore._natural_order import natural
from saestore.layout import POSITION_TYPES
from saestore.probing.quiver import BASELINES, CANDIDATE, choose, tie_places

SETTINGS = ("normal", "scarcity", "imbalance", "label_noise", "ood", "multi_token")
QUIVER_SETTINGS = ("normal", "scarcity", "imbalance", "multi_token")
"""Where methods compete; with label noise and out of distribution the benchmark compares one with one."""

QUIVERS = ("quiver", "quiver with SAEs")
_KS = (16, 128)
_NUMBERS = (
    "k", "num_train", "num_test", "fraction", "test_f1", "test_acc", "test_auc", "val_auc", "shared", "fits",
    "unconverged",
)  # fmt: skip
_CELL = ["dataset", "cell"]
_FRACTION_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Probed:
    """Results of one model under one name.

    number : place on the page, from 1
    source : where they are from
    table : rows of the tidy table with a test AUC or a reason, and with two columns more: `cell`, what the training
        sets of a task in a setting differ by (rows, fraction, or 0), and `probe`, the name of a probe on the page
    layer : of which everything is, but for the comparison of layers
    sae_probe : the one SAE probe that is compared with logreg; None without any
    competing : SAE probes that take part in the quiver
    classes : of each task, where they are known
    sizes : samples of each task, where they are known
    """

    number: int
    source: Literal["lake", "published"]
    model: str
    name: str
    sample_type: str
    table: pd.DataFrame
    layer: str
    sae_probe: str | None
    competing: tuple[str, ...]
    classes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of its folder, and of its blocks on the page."""
        parts = ("published", self.model) if self.source == "published" else ("lake", *self.of)
        return "-".join(parts)

    @property
    def of(self) -> tuple[str, str, str]:
        """Model, sample type and name."""
        return self.model, self.sample_type, self.name

    @property
    def datasets(self) -> list[str]:
        """Names of the tasks."""
        return sorted(self.table["dataset"].unique(), key=natural)

    @property
    def settings(self) -> list[str]:
        """Settings with a fitted probe at the layer."""
        there = set(self.fitted["setting"])
        return [name for name in SETTINGS if name in there]

    @cached_property
    def fitted(self) -> pd.DataFrame:
        """The rows of the layer that have a test AUC."""
        return self.table[(self.table["layer"] == self.layer) & self.table["test_auc"].notna()]

    def rows(self, setting: str) -> pd.DataFrame:
        """Return the fitted rows of a setting."""
        return self.fitted[self.fitted["setting"] == setting]

    def single(self, setting: str) -> tuple[str | None, str | None]:
        """Return the baseline and the SAE probe that are compared one to one in a setting; None where there is none.

        Where the SAE probe of the page was not fitted, another one stands for it: that with the highest mean validation
        AUC.
        """
        rows = self.rows(setting)
        there = set(rows["probe"])
        baseline = next((name for name in ("logreg", "attention", "concat") if name in there), None)
        if self.sae_probe in there:
            return baseline, self.sae_probe
        return baseline, _leading(rows[rows["sae"].notna()])

    def competing_in(self, setting: str) -> list[str]:
        """Return the SAE probes of the quiver in a setting: those of the page, and of tokens all."""
        rows = self.rows(setting)
        saes = rows[rows["sae"].notna()]
        return [name for name in probes_in_order(saes) if setting == "multi_token" or name in self.competing]

    def quivers(self, setting: str) -> pd.DataFrame:
        """Return what the quivers without and with SAE probes chose, on training sets that have both kinds.

        Returns
        -------
        pandas.DataFrame
            Columns `dataset`, `cell`, `without` and `with` (test AUC), `probe_without` and `probe_with`.
        """
        rows = self.rows(setting)
        saes = rows[rows["probe"].isin(self.competing_in(setting))]
        without = rows[rows["sae"].isna()]
        arms = []
        for arm, name in ((without, "without"), (pd.concat([without, saes]), "with")):
            chosen = choose(arm, _CELL)[[*_CELL, "test_auc", "probe"]]
            arms.append(chosen.rename(columns={"test_auc": name, "probe": f"probe_{name}"}))
        both = arms[0].merge(saes[_CELL].drop_duplicates(), on=_CELL).merge(arms[1], on=_CELL)
        return _sorted(both)


@dataclass(frozen=True)
class Mean:
    """A mean over tasks.

    tasks, cells : tasks, and training sets of them
    se : standard error over tasks; NaN of one
    """

    tasks: int
    cells: int
    mean: float
    se: float


def mean_over_tasks(frame: pd.DataFrame, column: str) -> Mean:
    """Return the mean of a column over tasks, each of which counts once, and its standard error."""
    by_task = frame.groupby("dataset")[column].mean().to_numpy(dtype=np.float64)
    n = len(by_task)
    mean = float(by_task.mean()) if n else float("nan")
    return Mean(n, len(frame), mean, float(by_task.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"))


def side_by_side(rows: pd.DataFrame, probes: Sequence[str]) -> pd.DataFrame:
    """Return the test AUC of some probes, a column each, on the training sets that all of them have."""
    wide = rows[rows["probe"].isin(list(probes))].pivot(index=_CELL, columns="probe", values="test_auc")
    return _sorted(wide.reindex(columns=list(probes)).dropna().reset_index())


def probes_in_order(rows: pd.DataFrame) -> list[str]:
    """Return the names of the probes of some rows, in the order that breaks ties."""
    each = rows.drop_duplicates("probe")
    return list(each.assign(_place=tie_places(each)).sort_values("_place")["probe"])


def open_probed(
    table: pd.DataFrame,
    source: Literal["lake", "published"],
    *,
    first: int,
    classes: Mapping[str, tuple[str, str]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Probed]:
    """Return the results of a tidy table by model, sample type and name.

    Probes of tokens have rows of another sample type; they are put with the results of the same model and name.

    Parameters
    ----------
    table : pandas.DataFrame
    source : {"lake", "published"}
    first : int
        Number of the first one on the page.
    """
    made: list[Probed] = []
    if table.empty:
        return made
    prepared = _prepared(table)
    for (model, name), of in prepared.groupby(["model", "name"], sort=True):
        is_tokens = of["sample_type"].isin(POSITION_TYPES)
        tokens = of[is_tokens]
        types = sorted(set(of.loc[~is_tokens, "sample_type"]), key=lambda each: (each != "last", each))
        for place, sample_type in enumerate(types or sorted(set(tokens["sample_type"]))):
            rows = of[of["sample_type"] == sample_type]
            if types and not place:
                rows = pd.concat([rows, tokens])
            layer = _layer(rows)
            at = rows[(rows["layer"] == layer) & rows["test_auc"].notna() & (rows["setting"] != "multi_token")]
            saes = _of_one_penalty(at[at["sae"].notna()])
            made.append(
                Probed(
                    number=first + len(made),
                    source=source,
                    model=str(model),
                    name=str(name),
                    sample_type=sample_type,
                    table=rows,
                    layer=layer,
                    sae_probe=_leading(saes),
                    competing=_competing(saes),
                    classes=classes or {},
                    sizes=sizes or {},
                )
            )
    return made


def layer_order(name: str) -> tuple[bool, Any]:
    """Return a key that sorts layers from the first to the last; those without a number, as embeddings, are first."""
    return any(sign.isdigit() for sign in name), natural(name)


def _prepared(table: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: pd.to_numeric(table[name]).astype("float64") for name in _NUMBERS}
    texts = {name: table[name].astype(object).where(table[name].notna(), None) for name in ("sae", "view")}
    out = table.assign(**numbers, **texts, reason=table["reason"].fillna(""), layer=table["layer"].fillna(""))
    by_size, by_fraction = out["setting"] == "scarcity", out["setting"].isin(["imbalance", "label_noise"])
    cell = np.select([by_size, by_fraction], [out["num_train"], out["fraction"].round(_FRACTION_DIGITS)], 0.0)
    out["cell"] = cell
    out["probe"] = [_probe_name(*of) for of in zip(*(out[name] for name in CANDIDATE), strict=True)]
    out = out[out["test_auc"].notna() | (out["reason"] != "")]
    same = ["dataset", "model", "name", "layer", "sample_type", "setting", "cell", "probe"]
    return out.drop_duplicates(same).reset_index(drop=True)


def _probe_name(method: str, sae: str | None, view: str | None, k: float) -> str:
    if sae is None:
        return method
    how = "" if method == "sae-l1" else f", {method.removeprefix('sae-')}"
    return f"{sae}{f'/{view}' if view else ''}, k={'?' if np.isnan(k) else f'{k:.0f}'}{how}"


def _layer(rows: pd.DataFrame) -> str:
    """Return the layer with most SAE probes of tasks, else with most probes; of equals the first."""
    fitted = rows[rows["test_auc"].notna()]
    of = fitted[fitted["sae"].notna()] if fitted["sae"].notna().any() else fitted
    if of.empty:
        of = rows
    counts = of.drop_duplicates(["layer", "setting", "dataset", "probe"])["layer"].value_counts()
    return str(min(counts.index, key=lambda name: (-counts[name], layer_order(str(name)))))


def _of_one_penalty(saes: pd.DataFrame) -> pd.DataFrame:
    method = "sae-l1" if (saes["method"] == "sae-l1").any() else "sae-l2"
    return saes[saes["method"] == method]


def _leading(saes: pd.DataFrame) -> str | None:
    """Return the SAE probe of most settings, then most training sets, then the highest mean validation AUC."""
    if saes.empty:
        return None
    normal = saes[saes["setting"] == "normal"]
    validated = (normal if len(normal) else saes).groupby("probe")["val_auc"].mean()
    settings = saes.groupby("probe")["setting"].nunique()
    sets = saes.groupby("probe").size()
    places = {name: place for place, name in enumerate(probes_in_order(saes))}

    def order(name: str) -> tuple[float, float, float, int]:
        value = float(validated.get(name, np.nan))
        return -settings[name], -sets[name], np.inf if np.isnan(value) else -value, places[name]

    return min(places, key=order)


def _competing(saes: pd.DataFrame) -> tuple[str, ...]:
    """Return the SAE probes of the quiver.

    Of the benchmark's k, 16 and 128, where there are such; of the SAEs that scarcity or imbalance were probed with
    too, where there are such: else every probe that was ever fitted would compete in the normal setting.
    """
    some = saes[saes["k"].isin(_KS)]
    some = some if len(some) else saes
    elsewhere = some[some["setting"].isin(["scarcity", "imbalance"])][["sae", "view"]].drop_duplicates()
    if len(elsewhere):
        keys = set(zip(elsewhere["sae"], elsewhere["view"], strict=True))
        some = some[[of in keys for of in zip(some["sae"], some["view"], strict=True)]]
    return tuple(probes_in_order(some))


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    keys = {name: natural(name) for name in frame["dataset"].unique()}
    order = sorted(range(len(frame)), key=lambda place: (keys[frame["dataset"].iloc[place]], frame["cell"].iloc[place]))
    return frame.iloc[order].reset_index(drop=True)


def baselines_of(rows: pd.DataFrame) -> list[str]:
    """Return the names of the methods without an SAE, the benchmark's first."""
    there = probes_in_order(rows[rows["sae"].isna()]) if rows["sae"].isna().any() else []
    return [*(name for name in BASELINES if name in there), *(name for name in there if name not in BASELINES)]
