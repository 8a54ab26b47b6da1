"""Bars of a report of probes: means of each setting, and the data sets that were tested out of distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.report.drawing import BLUE, FAINT, INK, ORANGE, legend_above
from saestore.report.page import Cell, number, table, whole
from saestore.report.probe_part import CHANCE, SETTING_NAMES, Z95, Drawing, Part, absent, figure_part, limits, several
from saestore.report.probed import Probed, mean_over_tasks, probes_in_order, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 0.38


def settings_part(probed: Probed) -> Part:
    """Return the mean test AUC of the baseline and of the SAE probe in each setting."""
    title = "Settings: logistic regression against an SAE probe"
    found = setting_means(probed)
    if found.empty:
        return absent(probed, "settings", title, "No probe of this layer was fitted.")
    words = [
        "Mean test AUC over data sets, each of which counts once however many training sets it has, with 1.96 standard "
        "errors to either side. Both bars of a setting are over the training sets that both were fitted on."
    ]
    if probed.sae_probe is not None:
        words.append(
            f"The SAE probe is {probed.sae_probe}: of those in most settings, then on most training sets, the one with "
            "the highest mean validation AUC in the normal setting. Where it was not fitted, the one that leads "
            "there by the same rule stands for it."
        )
    drawing = Drawing(
        (max(4.2, 1.3 + 1.25 * found["setting"].nunique()), 3.1),
        "mean test AUC of logistic regression and of an SAE probe in each setting",
        lambda figure: _draw_settings(figure, found),
    )
    return figure_part(probed, "settings", title, words, drawing, found, _all_means(probed))


def setting_means(probed: Probed) -> pd.DataFrame:
    """Return the numbers of the bars: setting, role, probe, datasets, cells, mean and se."""
    lines = []
    for setting in probed.settings:
        rows = probed.rows(setting)
        pair = dict(zip(("baseline", "SAE"), probed.single(setting), strict=True))
        there = {role: probe for role, probe in pair.items() if probe is not None}
        wide = side_by_side(rows, list(there.values()))
        for role, probe in there.items():
            both = wide if len(wide) else side_by_side(rows, [probe])
            mean = mean_over_tasks(both, probe)
            lines.append((setting, role, probe, mean.tasks, mean.cells, mean.mean, mean.se))
    return pd.DataFrame(lines, columns=["setting", "role", "probe", "datasets", "cells", "mean", "se"])


def _draw_settings(figure: Figure, found: pd.DataFrame) -> None:
    axes = figure.subplots()
    settings = list(found["setting"].drop_duplicates())
    for role, shift, shade in (("baseline", -_WIDTH / 2, BLUE), ("SAE", _WIDTH / 2, ORANGE)):
        of = found[found["role"] == role]
        places = np.array([settings.index(setting) for setting in of["setting"]], dtype=float) + shift
        label = "logistic regression (of tokens: attention or concat)" if role == "baseline" else "SAE probe"
        if role == "baseline" and set(of["probe"]) <= {"logreg"}:
            label = "logistic regression"
        draw_bars(axes, places, of, shade, label)
    counts = found.groupby("setting")["datasets"].max()
    names = [f"{SETTING_NAMES[name]}\n{several(int(counts[name]), 'data set')}" for name in settings]
    axes.set_xticks(range(len(settings)), names)
    axes.set(ylabel="mean test AUC", ylim=limits(found))
    axes.grid(visible=False, axis="x")
    if len(found):
        legend_above(axes, 2)


def draw_bars(axes: Axes, places: NDArray[Any], of: pd.DataFrame, shade: str, label: str) -> None:
    """Draw bars with their intervals, and their heights as numbers."""
    if of.empty:
        return
    axes.bar(places, of["mean"], width=_WIDTH, color=shade, label=label)
    error = Z95 * of["se"].fillna(0)
    axes.errorbar(places, of["mean"], yerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for place, mean, up in zip(places, of["mean"], error, strict=True):
        axes.annotate(f"{mean:.3f}", (place, mean + up), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)


def _all_means(probed: Probed) -> str:
    """Return the means of every probe as a table that is folded up."""
    headers = [("setting", ""), ("method", ""), ("SAE", ""), ("view", ""), ("k", "units"), ("data sets", "")]
    headers += [("training sets", ""), ("mean test AUC", ""), ("SE", "over data sets"), ("mean val AUC", "")]
    rows: list[list[Cell | str]] = []
    for setting in probed.settings:
        of = probed.rows(setting)
        for probe in probes_in_order(of):
            mine = of[of["probe"] == probe]
            one, mean = mine.iloc[0], mean_over_tasks(mine, "test_auc")
            k = None if np.isnan(one["k"]) else int(one["k"])
            validated = mean_over_tasks(mine[mine["val_auc"].notna()], "val_auc").mean
            rows.append(
                [
                    *(SETTING_NAMES[setting], one["method"], one["sae"] or "", one["view"] or "", whole(k)),
                    *(whole(mean.tasks), whole(mean.cells)),
                    *(number(value, ".4f") for value in (mean.mean, mean.se, validated)),
                ]
            )
    shown = table(f"table-means-{probed.number}", headers, rows)
    told = f"Means of all probes, each over what it was fitted on: {several(len(rows), 'line')}"
    return f"<details><summary>{told}</summary>{shown}</details>"


def ood_part(probed: Probed) -> Part:
    """Return test AUC out of distribution, data set by data set."""
    title = "Out of distribution, by data set"
    if "ood" not in probed.settings:
        return absent(probed, "ood", title, "No probe was tested out of distribution.")
    baseline, sae = probed.single("ood")
    there = [name for name in (baseline, sae) if name is not None]
    wide = side_by_side(probed.rows("ood"), there)
    if wide.empty:
        return absent(probed, "ood", title, "No data set was tested with logistic regression and with an SAE probe.")
    found = wide[["dataset", *there]].rename(columns={name: "baseline" for name in [baseline] if name})
    found = found.rename(columns={name: "sae" for name in [sae] if name})
    names = " against ".join(there)
    words = [f"Test AUC on another data set than the one that trained: {names}. The last bars are means, ± 1.96 SE."]
    drawing = Drawing(
        (min(10.5, max(4.4, 1.4 + 0.72 * (len(found) + 1))), 3.5),
        "test AUC out of distribution of each data set",
        lambda figure: _draw_ood(figure, found, dict(zip(found.columns[1:], there, strict=True))),
    )
    named = dict(zip((f"probe_{name}" for name in found.columns[1:]), there, strict=True))
    return figure_part(probed, "ood", title, words, drawing, found.assign(**named))


def _draw_ood(figure: Figure, found: pd.DataFrame, probes: dict[str, str]) -> None:
    axes = figure.subplots()
    shades = {"baseline": BLUE, "sae": ORANGE}
    shifts = {name: (place - (len(probes) - 1) / 2) * _WIDTH for place, name in enumerate(probes)}
    places, lowest = np.arange(len(found), dtype=float), CHANCE
    for name, probe in probes.items():
        mean = mean_over_tasks(found, name)
        label = f"{probe} (mean {mean.mean:.3f})"
        at, heights = [*places, len(found) + 0.3], [*found[name], mean.mean]
        axes.bar(np.array(at) + shifts[name], heights, width=_WIDTH, color=shades[name], label=label)
        if np.isfinite(mean.se):
            of_mean = (at[-1] + shifts[name], mean.mean, Z95 * mean.se)
            axes.errorbar(*of_mean, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        lowest = min(lowest, np.floor(float(found[name].min()) * 20) / 20)
    axes.axvline(len(found) - 0.35, color=FAINT, linewidth=0.8)
    labels = [*found["dataset"], "mean"]
    axes.set_xticks([*places, len(found) + 0.3], labels, rotation=35, ha="right")
    axes.set(ylabel="test AUC", ylim=(max(0.0, lowest), 1.04))
    axes.grid(visible=False, axis="x")
    legend_above(axes, 2)
