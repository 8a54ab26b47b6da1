"""What the verbs of concept detection print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saestore.budget import readable_bytes
from saestore.cli.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    from saestore.verbs import WrittenReport
    from saestore.verbs.concepts import (
        Analysed,
        ComparedConcepts,
        DetectedConcepts,
        LearnedThresholds,
        LocalisedConcepts,
    )

Options = Mapping[str, Any]

_NONE = "-"  # what is undefined, so that columns can be counted


def thresholds(result: list[LearnedThresholds], options: Options) -> str:
    """Return the text of `thresholds`."""
    parts = []
    for found in result:
        rows = [[each.concept, each.units, each.most_rows] for each in found.concepts]
        whose = "labelled positions" if found.by == "position" else "all rows of labelled samples"
        parts.append(
            f"{_of(found.of)}: thresholds {found.of.name!r} of {len(found.percentiles)} percentiles, learned on "
            f"{found.split} from {whose}\n" + table(["concept", "units with thresholds", "most rows of one"], rows)
        )
    return "\n\n".join(parts)


def detect(result: list[DetectedConcepts], options: Options) -> str:
    """Return the text of `detect`."""
    parts = []
    for found in result:
        decide, report = found.splits
        rows = [
            [
                one.concept,
                _NONE if one.unit is None else str(one.unit),
                _number(one.percentile),
                _number(one.threshold),
                _number(one.calibration.f1),
                _number(one.test.precision),
                _number(one.test.recall),
                _number(one.test.f1),
                _NONE if math.isnan(one.f1_low) else f"{one.f1_low:.3f}-{one.f1_high:.3f}",
                _number(one.always_yes_f1),
            ]
            for one in found.best
        ]
        headers = ["concept", "unit", "percentile", "threshold", f"F1 {decide}"]
        headers += [f"P {report}", f"R {report}", f"F1 {report}", "95 %", "F1 always yes"]
        parts.append(f"{_of(found.of)}: chosen on {decide}, reported on {report}\n{table(headers, rows)}")
        if found.baselines:
            others = [
                [one.concept, one.kind, one.reduction, _number(one.calibration.f1), _number(one.test.f1)]
                for one in found.baselines
            ]
            parts.append(table(["concept", "baseline", "by", f"F1 {decide}", f"F1 {report}"], others))
        parts += _files(found.files)
    return "\n\n".join(parts)


def localise(result: list[LocalisedConcepts], options: Options) -> str:
    """Return the text of `localise`."""
    parts = []
    for found in result:
        decide, report = found.splits
        rows = [
            [
                one.concept,
                one.method,
                _NONE if one.unit is None else str(one.unit),
                _number(one.percentile),
                _number(one.calibration.f1),
                *(_number(getattr(one.test, name)) for name in ("precision", "recall", "f1", "accuracy", "iou")),
            ]
            for one in found.best
        ]
        headers = ["concept", "method", "unit", "percentile", f"F1 {decide}"]
        headers += [f"{name} {report}" for name in ("P", "R", "F1", "accuracy", "IoU")]
        parts.append(f"{_of(found.of)}: positions, chosen on {decide}, reported on {report}\n{table(headers, rows)}")
        parts += _files(found.files)
    return "\n\n".join(parts)


def compare(result: list[ComparedConcepts], options: Options) -> str:
    """Return the text of `compare`."""
    parts = []
    for found in result:
        rows = [
            [one.what, one.numbers, "equal" if one.is_equal else f"{one.differing:,} differ", one.first]
            for one in found.numbers
        ]
        parts.append(
            f"{_of(found.of)}: against the dense matrix\n"
            + table(["what", "numbers", "result", "first difference"], rows)
        )
    return "\n\n".join(parts)


def report(result: WrittenReport, options: Options) -> str:
    """Return the text of `report concepts`."""
    count = len(result.datasets)
    told = f"{result.path}: {count} dataset{'' if count == 1 else 's'}, {readable_bytes(result.bytes)}"
    return "\n".join([told, *(str(file) for file in result.data)])


def _of(analysed: Analysed) -> str:
    view = f", view {analysed.view}" if analysed.view else ""
    return (
        f"{analysed.dataset}, SAE {analysed.sae}, {analysed.layer}, {analysed.sample_type}{view}, "
        f"{analysed.units:,} units"
    )


def _files(files: Sequence[Path]) -> list[str]:
    return ["\n".join(str(file) for file in files)] if files else []


def _number(value: float | None) -> str:
    return _NONE if value is None or math.isnan(value) else f"{value:.3f}"
