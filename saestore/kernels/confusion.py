"""Scores of confusion counts: precision, recall, F1, accuracy and IoU, and how sure an F1 is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Scores of counts, floats or arrays of them; a ratio of which the denominator is 0 is 0 (docs/concepts.md).

    iou : TP / (TP + FP + FN)
    """

    precision: Any
    recall: Any
    f1: Any
    accuracy: Any
    iou: Any

    @classmethod
    def of(cls, counts: NDArray[Any]) -> Scores:
        """Return the scores of TP, FP, FN, TN along the first axis."""
        tp, fp, fn, tn = np.asarray(counts, dtype=np.float64)
        found = (
            ratio(tp, tp + fp),
            ratio(tp, tp + fn),
            ratio(2 * tp, 2 * tp + fp + fn),
            ratio(tp + tn, tp + fp + fn + tn),
            ratio(tp, tp + fp + fn),
        )
        return cls(*(float(each) if np.ndim(each) == 0 else each for each in found))

    @classmethod
    def undefined(cls) -> Scores:
        """Return the scores of nothing."""
        return cls(*(float("nan"),) * 5)


def f1_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return F1 of TP, FP, FN, TN along the first axis; 0 where there is no positive at all."""
    tp, fp, fn, _ = np.asarray(counts, dtype=np.float64)
    return ratio(2 * tp, 2 * tp + fp + fn)


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; 0 where the denominator is 0."""
    out: NDArray[np.float64] = np.divide(above, below, out=np.zeros_like(below), where=below != 0)
    return out


def bootstrap_f1(
    counts: NDArray[np.integer[Any]], rng: np.random.Generator, resamples: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval that holds a part of the F1 of resampled outcomes.

    Parameters
    ----------
    counts : (4,) integers
        TP, FP, FN, TN; drawing as many outcomes with replacement is one multinomial draw.

    References
    ----------
    docs/concepts.md: percentile interval of 1,000 resamples.
    """
    total = int(counts.sum())
    if not total or not resamples:
        return float("nan"), float("nan")
    drawn = rng.multinomial(total, np.asarray(counts, dtype=np.float64) / total, size=resamples)
    low, high = np.quantile(f1_of(drawn.T), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
