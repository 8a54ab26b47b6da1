"""Data sets as points in a report of probes: the quiver with SAE probes, and an SAE probe alone, against without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from saestore.report.drawing import BLUE, FAINT, ORANGE
from saestore.report.probe_part import Drawing, Part, absent, figure_part
from saestore.report.probed import Mean, Probed, mean_over_tasks, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = "Data sets one by one"
_PANELS = ("quiver", "alone")


def scatter_part(probed: Probed) -> Part:
    """Return the scatter plots of the normal setting, with the mean difference and its standard error."""
    found = scatter_points(probed)
    if found.empty:
        return absent(
            probed,
            "scatter",
            _TITLE,
            "No data set has a method without an SAE and an SAE probe in the normal setting.",
        )
    baseline, sae = probed.single("normal")
    axes = {"quiver": ("quiver without SAEs", "quiver with SAE probes"), "alone": (str(baseline), str(sae))}
    panels = [name for name in _PANELS if (found["comparison"] == name).any()]
    deltas = {name: delta(found[found["comparison"] == name]) for name in panels}
    words = ["Test AUC in the normal setting; every point is a data set, above the line where SAE probes help."]
    for name in panels:
        before, after = axes[name]
        what = (
            f"The {after} minus the {before}" if name == "quiver" else f"One SAE probe alone, {after}, minus {before}"
        )
        mean = deltas[name]
        wins = int((found.loc[found["comparison"] == name, ["without", "with"]].diff(axis=1)["with"] > 0).sum())
        words.append(
            f"{what}: {mean.mean:+.4f} ± {mean.se:.4f} (mean and standard error over {mean.tasks} data "
            f"sets; {wins} above the line)."
        )
    drawing = Drawing(
        (0.6 + 3.9 * len(panels), 4.1),
        "test AUC of each data set with SAE probes against test AUC without",
        lambda figure: _draw(figure, found, panels, axes, deltas),
    )
    return figure_part(probed, "scatter", _TITLE, words, drawing, found)


def scatter_points(probed: Probed) -> pd.DataFrame:
    """Return the points: comparison (`quiver` or `alone`), dataset, without, with, and the probes they are of."""
    quivers = probed.quivers("normal")
    columns = ["dataset", "without", "with", "probe_without", "probe_with"]
    frames = [quivers[columns].assign(comparison="quiver")]
    baseline, sae = probed.single("normal")
    if baseline is not None and sae is not None:
        wide = side_by_side(probed.rows("normal"), [baseline, sae]).rename(columns={baseline: "without", sae: "with"})
        frames.append(wide.assign(probe_without=baseline, probe_with=sae, comparison="alone"))
    kept = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(kept, ignore_index=True)[["comparison", *columns]]


def delta(points: pd.DataFrame) -> Mean:
    """Return the mean difference of points and its standard error, paired by data set."""
    return mean_over_tasks(points.assign(_delta=points["with"] - points["without"]), "_delta")


def _draw(
    figure: Figure,
    found: pd.DataFrame,
    panels: list[str],
    axes_names: dict[str, tuple[str, str]],
    deltas: dict[str, Mean],
) -> None:
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, name in zip(grid, panels, strict=True):
        of = found[found["comparison"] == name]
        low = max(0.0, float(of[["without", "with"]].to_numpy().min()) - 0.02)
        axes.plot([low, 1.01], [low, 1.01], color=FAINT, linewidth=1, zorder=1)
        shade = ORANGE if name == "quiver" else BLUE
        axes.scatter(of["without"], of["with"], s=22, color=shade, alpha=0.75, edgecolors="white", linewidths=0.4)
        mean = deltas[name]
        told = f"mean difference {mean.mean:+.4f} ± {mean.se:.4f}"
        axes.annotate(told, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=8.5)
        before, after = axes_names[name]
        axes.set(xlabel=f"test AUC, {before}", ylabel=f"test AUC, {after}", xlim=(low, 1.01), ylim=(low, 1.01))
        axes.set_aspect("equal")
