"""The quivers in a report of probes: what validation chose how often, and each method alone beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saestore.report.drawing import INK
from saestore.report.probe_part import SETTING_NAMES, Z95, Drawing, Part, absent, colour, figure_part, limits
from saestore.report.probed import QUIVER_SETTINGS, QUIVERS, Probed, baselines_of, mean_over_tasks, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LISTED_PROBES = 8
"""More SAE probes than these are shown together, by k."""


def quiver_part(probed: Probed) -> Part:
    """Return how often validation chose each method, and the mean test AUC of each alone beside the quivers."""
    title = "Quivers: what validation chose, and what each method gives alone"
    found = quiver_means(probed)
    if found.empty:
        return absent(
            probed, "quiver", title, "A quiver needs methods without an SAE and SAE probes on the same training sets."
        )
    settings = list(found["setting"].drop_duplicates())
    more = len(probed.competing) - _LISTED_PROBES
    names = "; ".join(probed.competing[:_LISTED_PROBES]) + (f"; and {more:,} more" if more > 0 else "")
    words = [
        "A quiver takes for each training set the method with the highest validation AUC, and counts its test AUC. "
        "Among equals the first is taken: logreg, pca, knn, xgboost, mlp, then SAE probes by name and k.",
        f"SAE probes that compete ({len(probed.competing)}): {names}. Means are over the training sets that every "
        "method here was fitted on.",
    ]
    gaps = found[(found["setting"] == settings[0]) & found["gap"].notna()]
    if len(gaps):
        told = ", ".join(f"{name} {gap:+.3f}" for name, gap in zip(gaps["method"], gaps["gap"], strict=True))
        words.append(f"Mean validation AUC minus mean test AUC, {SETTING_NAMES[settings[0]]}: {told}.")
    heights = [0.55 + 0.24 * int((found["setting"] == setting).sum()) for setting in settings]
    drawing = Drawing(
        (8.6, sum(heights) + 0.5),
        "how often the quiver chose each method, and mean test AUC of each method and of the quivers",
        lambda figure: _draw_quiver(figure, found, settings, heights),
    )
    return figure_part(probed, "quiver", title, words, drawing, found)


def quiver_means(probed: Probed) -> pd.DataFrame:
    """Return the numbers: setting, method, probes, chosen, share, datasets, cells, mean, se, mean val AUC and its gap.

    Many SAE probes are taken together by k: chosen times are added, means are averaged over them.
    """
    lines: list[tuple[object, ...]] = []
    for setting in [name for name in probed.settings if name in QUIVER_SETTINGS]:
        arms = probed.quivers(setting)
        if arms.empty:
            continue
        rows = probed.rows(setting)
        competing = probed.competing_in(setting)
        groups = {name: [name] for name in baselines_of(rows)} | _grouped(rows, competing)
        members = [name for group in groups.values() for name in group]
        wide = side_by_side(rows, members)
        validated = rows[rows["probe"].isin(members)].pivot(
            index=["dataset", "cell"], columns="probe", values="val_auc"
        )
        for name, group in groups.items():
            mean = mean_over_tasks(wide.assign(_mean=wide[group].mean(axis=1)), "_mean")
            within = validated[group].mean(axis=1).reset_index(name="_val").merge(wide[["dataset", "cell"]])
            value = mean_over_tasks(within.dropna(), "_val").mean
            chosen = int(arms["probe_with"].isin(group).sum())
            lines.append(
                (
                    *(setting, name, len(group), chosen, chosen / len(arms)),
                    *(mean.tasks, mean.cells, mean.mean, mean.se, value, value - mean.mean),
                )
            )
        both = arms.merge(wide[["dataset", "cell"]]) if len(wide) else arms
        for name, column in zip(QUIVERS, ("without", "with"), strict=True):
            mean = mean_over_tasks(both, column)
            lines.append((setting, name, 0, None, None, mean.tasks, mean.cells, mean.mean, mean.se, None, None))
    columns = ["setting", "method", "probes", "chosen", "share", "datasets", "cells", "mean", "se", "mean_val", "gap"]
    return pd.DataFrame(lines, columns=columns)


def _grouped(rows: pd.DataFrame, competing: list[str]) -> dict[str, list[str]]:
    """Return SAE probes one by one, or those of a k together where they are many."""
    if len(competing) <= _LISTED_PROBES:
        return {name: [name] for name in competing}
    ks = rows[rows["probe"].isin(competing)].drop_duplicates("probe").set_index("probe")["k"]
    return {
        f"SAE probes, k={k:.0f} ({int((ks == k).sum())})": [name for name in competing if ks[name] == k]
        for k in sorted(set(ks))
    }


def _draw_quiver(figure: Figure, found: pd.DataFrame, settings: list[str], heights: list[float]) -> None:
    grid = figure.subplots(len(settings), 2, squeeze=False, height_ratios=heights, width_ratios=(1, 1.15))
    lowest = limits(found)[0]
    for (left, right), setting in zip(grid, settings, strict=True):
        of = found[found["setting"] == setting].iloc[::-1]
        places, shades = np.arange(len(of)), [colour(name) for name in of["method"]]
        share = of["share"].astype(float).to_numpy()
        left.barh(places, np.nan_to_num(share) * 100, color=shades, height=0.72)
        for place, part in zip(places, share, strict=True):
            if np.isfinite(part):
                left.annotate(f"{part:.0%}", (part * 100, place), (3, 0), textcoords="offset points", va="center")
        names = list(of["method"])
        left.set_yticks(places, names)
        left.set(xlabel="% of training sets that chose it", title=SETTING_NAMES[setting])
        left.margins(x=0.14)
        right.barh(places, of["mean"], color=shades, height=0.72)
        right.errorbar(
            of["mean"], places, xerr=Z95 * of["se"].fillna(0), fmt="none", ecolor=INK, elinewidth=1, capsize=2
        )
        for place, mean, up in zip(places, of["mean"], Z95 * of["se"].fillna(0), strict=True):
            right.annotate(f"{mean:.4f}", (mean + up, place), (3, 0), textcoords="offset points", va="center")
        right.set_yticks(places, [""] * len(of))
        right.set(xlabel="mean test AUC", xlim=(lowest, 1.08))
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.title.set(fontsize=9, fontweight="bold", ha="left", position=(0, 1))
