"""The best unit of each concept as a table, and its thresholds and scores at every percentile as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.detection import BestUnit
from saestore.kernels.confusion import Scores
from saestore.report.drawing import BLUE, GREEN, INK, ORANGE, svg
from saestore.report.page import Cell, Data, Section, missing, number, paragraph, table, text, whole
from saestore.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCORES = ("precision", "recall", "f1", "accuracy", "iou")


def best_section(subject: Subject) -> Section:
    """Return the table of best units, every number as `Detection.best` gives it."""
    key, title = f"best-{subject.number}", "Best unit of each concept"
    if subject.detection is None:
        return Section(key, title, missing(_no_detection(subject)))
    decide, report = subject.detection.splits
    words = (
        f"Unit and percentile were chosen together by F1 on split {decide}; split {report} was only reported, with the "
        f"interval that holds 95 % of F1 over resampled samples. Always yes is what F1 on {report} would be without "
        f"looking. The oracle is the best unit on {report} itself: no choice may use it, it only says what a better "
        "choice could gain."
    )
    headers = [
        ("concept", ""),
        ("unit", "original id"),
        ("percentile", "part of the active rows of the concept that reaches the threshold"),
        ("threshold", "the unit fires in a sample where it reaches this value"),
        ("rows", "rows that the threshold rests on"),
        (f"F1 {decide}", "what was chosen by"),
        (f"P {report}", "precision"),
        (f"R {report}", "recall"),
        (f"F1 {report}", ""),
        ("95 % from", "of F1"),
        ("95 % to", "of F1"),
        ("always yes", f"F1 on {report} of firing in every sample"),
        ("oracle F1 (not usable)", f"of the best unit on {report} itself"),
    ]
    rows: list[list[Cell | str]] = [
        [
            one.concept,
            # Ids are names: without separators, so that they can be searched for.
            Cell(one.unit, "none" if one.unit is None else str(one.unit)),
            number(one.percentile, "g"),
            number(one.threshold, ".4g"),
            whole(one.n_pos),
            number(one.calibration.f1),
            number(one.test.precision),
            number(one.test.recall),
            number(one.test.f1),
            number(one.f1_low),
            number(one.f1_high),
            number(one.always_yes_f1),
            number(one.oracle_f1),
        ]
        for one in subject.best
    ]
    body = paragraph(words) + table(f"table-{key}", headers, rows)
    return Section(key, title, body, (_best_data(subject.dataset, subject.best),))


def curves_section(subject: Subject) -> Section:
    """Return for each concept the thresholds of its best unit and the scores there, over all percentiles."""
    key, title = f"curves-{subject.number}", "Thresholds and scores by percentile"
    detection = subject.detection
    if detection is None:
        return Section(key, title, missing(_no_detection(subject)))
    decide, report = detection.splits
    pairs, scores = detection.pairs, {split: detection.counts(split) for split in detection.splits}
    cuts = detection.thresholds.pairs.read("thresholds")
    levels = pairs.percentiles
    pictures, without, lines = [], [], []
    for place, one in enumerate(subject.best):
        if one.unit is None:
            without.append(one.concept)
            continue
        row = pairs.place_of_unit(one.unit)
        cut = cuts[row, place]
        f1 = {split: np.asarray(Scores.of(counts[:, row, place]).f1) for split, counts in scores.items()}
        picture = svg(
            f"{key}-{place}",
            (4.6, 1.9),
            f"threshold, and F1 on {decide} and {report}, by percentile",
            lambda figure, one=one, cut=cut, f1=f1: _draw(  # type: ignore[misc]
                figure, one, levels, cut, f1[decide], f1[report]
            ),
        )
        pictures.append(
            f"<figure><h4>{text(one.concept)}: unit {one.unit}</h4><div class='plot'>{picture}</div></figure>"
        )
        for level, value, first, second in zip(levels, cut, f1[decide], f1[report], strict=True):
            lines.append((one.concept, one.unit, level, value, first, second))
    words = (
        "The best unit of each concept. Left its threshold; right F1, blue on split "
        f"{decide}, orange and broken on split {report}, and dotted green that of firing in every sample of {report}. "
        f"The grey line is the percentile that F1 on {decide} chose."
    )
    if without:
        words += f" No unit is active on rows of: {', '.join(without)}."
    names = ("concept", "unit", "percentile", "threshold", f"f1_{decide}", f"f1_{report}")
    columns = dict(zip(names, map(list, zip(*lines, strict=True)) if lines else ([],) * len(names), strict=True))
    body = paragraph(words) + f'<div class="grid">{"".join(pictures)}</div>'
    return Section(key, title, body, (Data(subject.dataset, "curves", columns),))


def _draw(
    figure: Figure,
    one: BestUnit,
    levels: NDArray[np.float64],
    cut: NDArray[np.float32],
    f1_decide: NDArray[np.float64],
    f1_report: NDArray[np.float64],
) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(levels, np.where(np.isfinite(cut), cut, np.nan), color=INK, marker="o", markersize=2.6, linewidth=1.2)
    left.set(xlabel="percentile", ylabel="threshold", ylim=(0, None))
    for f1, colour, line in ((f1_decide, BLUE, "-"), (f1_report, ORANGE, "--")):
        right.plot(levels, f1, line, color=colour, marker="o", markersize=2.6, linewidth=1.2)
    right.axhline(one.always_yes_f1, color=GREEN, linewidth=0.9, linestyle=":")
    right.set(xlabel="percentile", ylabel="F1", ylim=(0, 1.02))
    for axes in (left, right):
        axes.set_xlim(0, 1)
        if one.percentile is not None:
            axes.axvline(one.percentile, color="#b8c0ca", linewidth=2.4, zorder=0)


def _best_data(dataset: str, best: Sequence[BestUnit]) -> Data:
    plain = ("concept", "unit", "percentile", "threshold", "n_pos", "f1_low", "f1_high", "always_yes_f1")
    columns: dict[str, list[object]] = {name: [getattr(one, name) for one in best] for name in plain}
    for split in ("calibration", "test"):
        columns |= {f"{split}_{name}": [getattr(getattr(one, split), name) for one in best] for name in _SCORES}
    columns |= {name: [getattr(one, name) for one in best] for name in ("oracle_unit", "oracle_f1")}
    return Data(dataset, "best", columns)


def _no_detection(subject: Subject) -> str:
    return f"There is no detection to show: {subject.remarks.get('detection', '')}"
