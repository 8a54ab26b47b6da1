"""How active and how strong units are, with what pruning cut off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.unit_figures import UnitFigures, figures_of
from saestore.codes import Codes
from saestore.errors import HoleError, MissingError
from saestore.report.drawing import BLUE, FAINT, ORANGE, legend_above, log_ticks, svg
from saestore.report.page import Data, Section, missing, paragraph
from saestore.report.subject import Subject
from saestore.unit_stats import ALL
from saestore.views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EACH = 5_000
"""Up to so many units each has a mark of its own; more are counted in bins."""

BINS = 48
"""Bins along either axis."""


_ORDER = ("dead", "ubiquitous", "strength", "strength_percentile", "selectivity", "min_selectivity", "target")


@dataclass(frozen=True)
class Cuts:
    """What a view kept, in the coordinates of the plot; None for a criterion that it was not chosen by."""

    least_fraction: float | None = None
    most_fraction: float | None = None
    least_p99: float | None = None


def units_section(subject: Subject) -> Section:
    """Return the plot of active fraction against 99th percentile, from stored statistics.

    With a view: over the split it was chosen on, with its cuts; else over the split that thresholds were learned on.
    """
    codes, key = subject.codes, f"units-{subject.number}"
    name = codes.view_name
    view = None if name is None or "&" in name else View.open(codes.group.storage, codes.key, codes.run, name)
    split, special = _counted(subject, view)
    whole = Codes.open(codes.group.storage, codes.key)
    try:
        figures = figures_of(whole.stats(split=None if split == ALL else split, special=special))
    except (MissingError, HoleError) as error:
        return Section(key, "Units", missing(f"The statistics of units cannot be shown: {error}"))
    shown = (figures.fraction > 0) & (figures.p99 > 0)
    kept = np.isin(figures.units, codes.kept_units)
    words = [
        f"Every unit by the part of rows in which it is active and by the 99th percentile of its active values, over "
        f"{figures.rows:,} rows of split {split}{' with special tokens' if special else ''}.",
        f"{int((kept & shown).sum()):,} units are kept and {int((~kept & shown).sum()):,} are not; "
        f"{int((~shown).sum()):,} of {len(figures.units):,} have no active value above 0 there and cannot be drawn on "
        "logarithmic axes.",
    ]
    cuts = Cuts() if view is None else _cuts(view, figures.rows)
    if view is not None:
        words.append(_chosen_by(view))
    if not shown.any():
        return Section(key, "Units", "".join(paragraph(each) for each in words))
    drawn, is_kept = figures.at(shown), kept[shown]
    mark = _Drawing(drawn, is_kept, cuts, has_view=view is not None)
    if mark.is_binned:
        words.append(
            f"More than {EACH:,} units: those that are not kept are counted in {BINS} x {BINS} bins, darker for more"
            + (", and so are those that are kept." if mark.keeps_binned else ".")
        )
    picture = svg(key, (7.4, 4.4), "active fraction of units against the 99th percentile of their values", mark.draw)
    body = "".join(paragraph(each) for each in words) + f'<div class="plot units">{picture}</div>'
    return Section(key, "Units", body, mark.data(subject.dataset))


class _Drawing:
    """Marks and bins of units, and the numbers in them."""

    def __init__(self, figures: UnitFigures, kept: NDArray[np.bool_], cuts: Cuts, *, has_view: bool) -> None:
        self.figures, self.kept, self.cuts, self.has_view = figures, kept, cuts, has_view
        self.is_binned = len(kept) > EACH
        self.keeps_binned = int(kept.sum()) > EACH
        self.edges = _edges(figures.fraction), _edges(figures.p99)

    def draw(self, figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(
            xscale="log", yscale="log", xlabel="active fraction of rows", ylabel="99th percentile of active values"
        )
        fraction, p99 = self.figures.fraction, self.figures.p99
        if self.is_binned and not self.kept.all():
            self._draw_bins(axes, ~self.kept, "Greys", 0.15, "not kept (bins)")
        elif not self.kept.all():
            axes.plot(
                *(fraction[~self.kept], p99[~self.kept]),
                **_mark("x", FAINT, 4, f"not kept ({np.count_nonzero(~self.kept):,})"),
            )
        label = "kept" if self.has_view else "all units"
        if self.keeps_binned:
            self._draw_bins(axes, self.kept, "Blues", 0.3, f"{label} (bins)")
        elif self.kept.any():
            axes.plot(
                *(fraction[self.kept], p99[self.kept]),
                **_mark("o", BLUE, 3.4, f"{label} ({np.count_nonzero(self.kept):,})"),
            )
        lines: dict[str, Any] = {"color": ORANGE, "linewidth": 1.3}
        if self.cuts.least_fraction:
            axes.axvline(self.cuts.least_fraction, linestyle="--", label="dead below", **lines)
        if self.cuts.most_fraction is not None and self.cuts.most_fraction > 0:
            axes.axvline(self.cuts.most_fraction, linestyle="-.", label="ubiquitous above", **lines)
        if self.cuts.least_p99 is not None and self.cuts.least_p99 > 0:
            axes.axhline(self.cuts.least_p99, linestyle=":", label="weak below", **lines)
        log_ticks(axes.xaxis, np.array(axes.get_xlim()))
        log_ticks(axes.yaxis, np.array(axes.get_ylim()))
        legend_above(axes, 5)

    def _draw_bins(self, axes: Axes, which: NDArray[np.bool_], colours: str, least: float, label: str) -> None:
        """Draw a square for each bin that holds a unit; matplotlib would draw the empty ones too."""
        import matplotlib
        from matplotlib.collections import PolyCollection

        columns, rows, counts = self._bins(which)
        x, y = self.edges
        corners = [
            [(x[i], y[j]), (x[i + 1], y[j]), (x[i + 1], y[j + 1]), (x[i], y[j + 1])]
            for i, j in zip(columns.tolist(), rows.tolist(), strict=True)
        ]
        depth = least + (0.72 - least) * np.log1p(counts) / max(1e-9, float(np.log1p(counts.max(initial=1))))
        shades = matplotlib.colormaps[colours](depth)
        axes.add_collection(PolyCollection(corners, facecolors=shades, edgecolors="none", linewidths=0))
        axes.plot([], [], linestyle="none", marker="s", color=shades[int(np.argmax(counts))], label=label)
        axes.set(xlim=(x[0] / 1.15, x[-1] * 1.15), ylim=(y[0] / 1.15, y[-1] * 1.15))

    def _bins(self, which: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return column, row and count of the bins that hold some of these units."""
        counts, _, _ = np.histogram2d(self.figures.fraction[which], self.figures.p99[which], bins=self.edges)
        columns, rows = np.nonzero(counts)
        return columns, rows, counts[columns, rows].astype(np.int64)

    def data(self, dataset: str) -> list[Data]:
        """Return each mark, each bin and each cut that is drawn."""
        one_by_one = self.kept if self.is_binned else np.ones(len(self.kept), dtype=bool)
        found = []
        if not self.keeps_binned:
            marks = self.figures.at(one_by_one)
            columns: dict[str, NDArray[Any]] = {
                "unit": marks.units,
                "active_rows": marks.count,
                "fraction": marks.fraction,
                "p99": marks.p99,
            }
            found.append(Data(dataset, "units", {**columns, "kept": self.kept[one_by_one].astype(int)}))
        if self.is_binned:
            found.append(Data(dataset, "unit_bins", self._bin_columns()))
        cuts = {name: value for name, value in vars(self.cuts).items() if value is not None}
        if cuts:
            found.append(Data(dataset, "unit_cuts", {"cut": list(cuts), "value": list(cuts.values())}))
        return found

    def _bin_columns(self) -> dict[str, NDArray[Any]]:
        x, y = self.edges
        parts = []
        for is_kept in (0, 1) if self.keeps_binned else (0,):
            columns, rows, counts = self._bins(self.kept if is_kept else ~self.kept)
            parts.append((x[columns], x[columns + 1], y[rows], y[rows + 1], np.full(len(counts), is_kept), counts))
        names = ("fraction_from", "fraction_to", "p99_from", "p99_to", "kept", "units")
        return {name: np.concatenate(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}


def _counted(subject: Subject, view: View | None) -> tuple[str, bool]:
    """Return whose rows the statistics are to count."""
    if view is not None:
        return str(view.parameters.get("split", ALL)), bool(view.parameters.get("special", False))
    if subject.detection is not None:
        return subject.detection.splits[0], False
    return ALL, False


def _cuts(view: View, rows: int) -> Cuts:
    criteria = view.report.get("criteria", {})
    dead = criteria.get("dead")
    return Cuts(None if dead is None else dead / rows, criteria.get("ubiquitous"), view.report.get("strength"))


def _chosen_by(view: View) -> str:
    report = view.report
    criteria = ", ".join(f"{name} {value:g}" for name, value in _in_order(report.get("criteria", {}))) or "none"
    removed = ", ".join(f"{name} {count:,}" for name, count in _in_order(report.get("removed", {})) if count)
    source = f"view {view.parent}" if view.parent else "all units"
    told = (
        f"View {view.name} was chosen from {source} by: {criteria}. Removed one after the other: {removed or 'none'}."
    )
    if view.parameters.get("legacy"):
        told += " It was chosen by rows and percentiles of earlier code, so units may lie beyond the lines drawn here."
    return told


def _in_order(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return criteria in the order in which they are applied, which stored JSON does not keep."""
    order = {name: place for place, name in enumerate(_ORDER)}
    return sorted(numbers.items(), key=lambda item: order.get(item[0], len(order)))


def _edges(values: NDArray[Any]) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low / 1.1, high * 1.1
    edges = np.geomspace(low, high, BINS + 1)
    edges[0], edges[-1] = low, high  # rounding must not leave the outermost unit out
    return edges


def _mark(marker: str, colour: str, size: float, label: str) -> dict[str, Any]:
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.4} if marker == "o" else {"markeredgewidth": 1.0}
    return {"linestyle": "none", "marker": marker, "markersize": size, "color": colour, "label": label, **edge}
