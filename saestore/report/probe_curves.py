"""Curves of a report of probes: AUC by k, by what a setting varies, and by layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.probing.quiver import choose
from saestore.report.drawing import BLUE, FAINT, GREEN, INK, OLIVE, ORANGE, SKY, VIOLET, legend_above
from saestore.report.probe_part import Z95, Drawing, Part, absent, colour, figure_part
from saestore.report.probed import (
    QUIVERS,
    Probed,
    baselines_of,
    layer_order,
    mean_over_tasks,
    probes_in_order,
    side_by_side,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LISTED_SAES = 9
_LINES = (ORANGE, BLUE, GREEN, VIOLET, OLIVE, SKY, "#a3330f", "#0f766e", "#b0457b")
_L0 = re.compile(r"[-_. ]*(?:average[-_])?l0[-_]?([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_PANEL_COLUMNS = 4

VARIED = {
    "scarcity": "training rows",
    "imbalance": "fraction of positive rows",
    "label_noise": "fraction of flipped labels",
}


# ------------------------------------------------------------------- by k


def k_part(probed: Probed) -> Part:
    """Return the mean test AUC in the normal setting by k, one line for each SAE."""
    title = "Number of units"
    found = k_means(probed)
    saes = found[found["sae"] != ""]
    if saes.empty:
        return absent(probed, "k", title, "There are no SAE probes in the normal setting.")
    best = found[found["sae"] == ""].nlargest(1, "mean")
    low, high = int(found["datasets"].min()), int(found["datasets"].max())
    words = [
        f"Mean test AUC in the normal setting over {low if low == high else f'{low} to {high}'} data sets, by the "
        "number of units of the probe."
    ]
    if len(best):
        name, mean = best["probe"].iloc[0], best["mean"].iloc[0]
        words.append(
            f"The broken line is {name} ({mean:.4f}), the highest mean test AUC of the methods without an SAE."
        )
    lines = _lines(saes)
    drawing = _k_panels(lines, best) if _has_l0(lines) else _k_axes(lines, best)
    return figure_part(probed, "k", title, words, drawing, found)


def k_means(probed: Probed) -> pd.DataFrame:
    """Return the numbers: probe, sae, view, method, k, datasets, mean and se; `sae` is empty of baselines."""
    rows = probed.rows("normal")
    lines = []
    for probe in probes_in_order(rows):
        mine = rows[rows["probe"] == probe]
        one, mean = mine.iloc[0], mean_over_tasks(mine, "test_auc")
        k = None if np.isnan(one["k"]) else int(one["k"])
        lines.append((probe, one["sae"] or "", one["view"] or "", one["method"], k, mean.tasks, mean.mean, mean.se))
    found = pd.DataFrame(lines, columns=["probe", "sae", "view", "method", "k", "datasets", "mean", "se"])
    shown = "sae-l1" if (found["method"] == "sae-l1").any() else "sae-l2"
    return found[(found["sae"] == "") | ((found["method"] == shown) & found["k"].notna())]


def _lines(saes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the points of each SAE or view of one."""
    names = saes["sae"] + np.where(saes["view"] == "", "", "/" + saes["view"])
    return {str(name): of.sort_values("k") for name, of in saes.groupby(names, sort=False)}


def _has_l0(lines: dict[str, pd.DataFrame]) -> bool:
    """Whether there are many SAEs whose names tell their L0."""
    return len(lines) > _LISTED_SAES and all(_L0.search(name) for name in lines)


def _k_axes(lines: dict[str, pd.DataFrame], best: pd.DataFrame) -> Drawing:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (name, of) in enumerate(lines.items()):
            axes.plot(of["k"], of["mean"], marker="o", markersize=3.2, color=_LINES[place % len(_LINES)], label=name)
        _finish_k(axes, lines, best, 12)
        axes.set(ylabel="mean test AUC")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)

    rows = -(-(len(lines) + 1) // 3)
    return Drawing((6.6, 3.3 + 0.19 * rows), "mean test AUC by the number of units of SAE probes", draw)


def _k_panels(lines: dict[str, pd.DataFrame], best: pd.DataFrame) -> Drawing:
    """Return a panel for each kind of SAE, whose lines are coloured by L0."""
    l0 = {name: float(found[1]) for name in lines if (found := _L0.search(name)) is not None}
    kinds: dict[str, list[str]] = {}
    for name in lines:
        kinds.setdefault(_L0.sub("", name).strip("-_. ") or "SAE", []).append(name)
    columns = min(_PANEL_COLUMNS, len(kinds))
    rows = -(-len(kinds) // columns)

    def draw(figure: Figure) -> None:
        import matplotlib
        from matplotlib.colors import LogNorm

        norm = LogNorm(max(1.0, min(l0.values())), max(l0.values()) * 1.001)
        shades = matplotlib.colormaps["viridis_r"]
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (kind, names) in zip(grid.flat, kinds.items(), strict=False):
            for name in sorted(names, key=l0.__getitem__):
                of = lines[name]
                axes.plot(of["k"], of["mean"], marker="o", markersize=2.4, linewidth=1.1, color=shades(norm(l0[name])))
            _finish_k(axes, lines, best, 5)
            axes.set_title(kind, fontsize=8.5)
        for axes in grid.flat[len(kinds) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("mean test AUC")
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, shades), ax=grid, label="L0", shrink=0.85, aspect=30)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.ax.yaxis.set_minor_formatter(lambda *_: "")

    size = (1.6 + 2.15 * columns, 0.6 + 1.95 * rows)
    return Drawing(size, "mean test AUC by the number of units of SAE probes, a panel for each kind of SAE", draw)


def _finish_k(axes: Axes, lines: dict[str, pd.DataFrame], best: pd.DataFrame, ticks: int) -> None:
    if len(best):
        axes.axhline(best["mean"].iloc[0], color=INK, linestyle="--", linewidth=1.1, label=best["probe"].iloc[0])
    ks = np.unique(np.concatenate([of["k"].to_numpy(dtype=float) for of in lines.values()]))
    _log2(axes, ks, ticks)
    axes.set(xlabel="k, units of the probe")


# ------------------------------------------------ by what a setting varies


def cells_part(probed: Probed) -> Part:
    """Return mean AUC with and without SAE probes by training rows, positive rows and flipped labels."""
    title = "Few rows, unequal classes, wrong labels"
    found = cell_means(probed)
    if found.empty:
        why = "No method without an SAE and SAE probe were fitted on the same training sets of scarcity, imbalance or "
        return absent(probed, "cells", title, f"{why}label noise.")
    settings = list(found["setting"].drop_duplicates())
    lacking = [VARIED[name] for name in VARIED if name not in settings]
    words = [
        "Above, mean test AUC of the quiver of methods without SAEs and of that with SAE probes; below, the second "
        "minus the first, with a band of 1.96 sqrt(SE² + SE²), as in the benchmark, which takes the two as "
        "independent. They are paired by data set; the standard error of the paired difference is among the numbers.",
    ]
    if "label_noise" in settings:
        words.append(
            "Of label noise, where the benchmark has no quiver, it is "
            f"{' against '.join(filter(None, probed.single('label_noise')))}."
        )
    if lacking:
        words.append(f"Not probed: {', '.join(lacking)}.")
    drawing = Drawing(
        (1.2 + 3.0 * len(settings), 4.4),
        "mean test AUC with and without SAE probes and their difference, by what each setting varies",
        lambda figure: _draw_cells(figure, found, settings),
    )
    return figure_part(probed, "cells", title, words, drawing, found)


def cell_means(probed: Probed) -> pd.DataFrame:
    """Return the numbers: setting, cell, datasets, without, with and their SE, delta, band, and paired SE of delta."""
    lines = []
    for setting in VARIED:
        for cell, of in arms(probed, setting).groupby("cell"):
            without, both = mean_over_tasks(of, "without"), mean_over_tasks(of, "with")
            paired = mean_over_tasks(of.assign(_delta=of["with"] - of["without"]), "_delta")
            band = Z95 * float(np.hypot(without.se, both.se))
            values = (without.mean, without.se, both.mean, both.se, paired.mean, band, paired.se)
            lines.append((setting, cell, without.tasks, *values))
    columns = ["setting", "cell", "datasets", "without", "se_without", "with", "se_with", "delta", "band", "se_paired"]
    return pd.DataFrame(lines, columns=columns)


def arms(probed: Probed, setting: str) -> pd.DataFrame:
    """Return test AUC `without` and `with` SAE probes by `dataset` and `cell`: of quivers, or of one probe each."""
    if setting != "label_noise":
        return probed.quivers(setting)
    baseline, sae = probed.single(setting)
    if baseline is None or sae is None:
        return pd.DataFrame({"dataset": [], "cell": [], "without": [], "with": []})
    wide = side_by_side(probed.rows(setting), [baseline, sae])
    return wide.rename(columns={baseline: "without", sae: "with"})


def _draw_cells(figure: Figure, found: pd.DataFrame, settings: list[str]) -> None:
    grid = figure.subplots(2, len(settings), squeeze=False, sharex="col", sharey="row", height_ratios=(1.25, 1))
    for place, setting in enumerate(settings):
        of = found[found["setting"] == setting]
        above, below = grid[:, place]
        for name, shade, line, label in (
            ("without", INK, "-", "without SAEs"),
            ("with", ORANGE, "--", "with SAE probes"),
        ):
            above.plot(of["cell"], of[name], line, color=shade, marker="o", markersize=2.6, linewidth=1.3, label=label)
        below.axhline(0, color=FAINT, linewidth=1)
        below.fill_between(of["cell"], of["delta"] - of["band"], of["delta"] + of["band"], color=ORANGE, alpha=0.18)
        below.plot(of["cell"], of["delta"], color=ORANGE, marker="o", markersize=2.6, linewidth=1.3)
        below.set_xlabel(VARIED[setting])
        if setting == "scarcity":
            _log2(below, of["cell"].to_numpy(dtype=float))
        for axes in (above, below):
            axes.margins(x=0.03)
    grid[0, 0].set_ylabel("mean test AUC")
    grid[1, 0].set_ylabel("difference")
    legend_above(grid[0, 0], 2)


# --------------------------------------------------------------- by layer


def layers_part(probed: Probed) -> Part:
    """Return the mean test AUC of each method in the normal setting by layer."""
    title = "Layers"
    found = layer_means(probed)
    if found["layer"].nunique() < 2:
        return absent(probed, "layers", title, "The normal setting was probed at one layer alone, or at none.")
    words = [
        "Mean test AUC in the normal setting, each mean over the data sets that have the method at that layer.",
    ]
    if (found["method"] == "SAE probe").any():
        words.append(
            "The SAE probe of a layer is that with the highest mean validation AUC there; the quivers choose among all "
            "of the layer's methods, with its SAE probes and without."
        )
    layers = sorted(set(found["layer"]), key=layer_order)
    drawing = Drawing(
        (max(5.0, 2.6 + 0.75 * len(layers)), 3.6),
        "mean test AUC of each method by layer",
        lambda figure: _draw_layers(figure, found, layers),
    )
    return figure_part(probed, "layers", title, words, drawing, found)


def layer_means(probed: Probed) -> pd.DataFrame:
    """Return the numbers: layer, method, probe, datasets, mean and se."""
    table = probed.table[(probed.table["setting"] == "normal") & probed.table["test_auc"].notna()]
    lines = []
    for layer in sorted(set(table["layer"]), key=layer_order):
        rows = table[table["layer"] == layer]
        saes = rows[rows["sae"].notna()]
        shown: list[tuple[str, str, pd.DataFrame]] = [
            (name, name, rows[rows["probe"] == name]) for name in baselines_of(rows)
        ]
        if len(saes):
            means = saes.groupby("probe")["val_auc"].mean().fillna(-1)
            leading = max(probes_in_order(saes), key=lambda name: float(means[name]))
            shown.append(("SAE probe", leading, saes[saes["probe"] == leading]))
        for name, of in ((QUIVERS[0], rows[rows["sae"].isna()]), (QUIVERS[1], rows if len(saes) else saes)):
            if len(set(of["probe"])) > 1:
                shown.append((name, "", choose(of, ["dataset"])))
        for method, probe, of in shown:
            mean = mean_over_tasks(of, "test_auc")
            lines.append((layer, method, probe, mean.tasks, mean.mean, mean.se))
    return pd.DataFrame(lines, columns=["layer", "method", "probe", "datasets", "mean", "se"])


def _draw_layers(figure: Figure, found: pd.DataFrame, layers: list[str]) -> None:
    axes = figure.subplots()
    for method in found["method"].drop_duplicates():
        of = found[found["method"] == method]
        places = [layers.index(layer) for layer in of["layer"]]
        line, width = ("--", 1.6) if method in (*QUIVERS, "SAE probe") else ("-", 1.3)
        axes.plot(
            places, of["mean"], line, marker="o", markersize=3, linewidth=width, color=colour(method), label=method
        )
    axes.set_xticks(range(len(layers)), [name.removeprefix("layer_") for name in layers])
    axes.set(xlabel="layer", ylabel="mean test AUC")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _log2(axes: Axes, values: NDArray[Any], most: int = 6) -> None:
    """Make the x axis logarithmic to base 2, with whole powers of 2 as plain numbers."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    low, high = np.floor(np.log2(values.min())), np.ceil(np.log2(values.max()))
    step = max(1, int(np.ceil((high - low) / most)))
    ticks = 2.0 ** np.arange(low, high + 1, step)
    axes.xaxis.set_ticks(ticks[(ticks >= values.min() / 1.05) & (ticks <= values.max() * 1.05)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
