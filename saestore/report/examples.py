"""Which samples show best what a concept's unit does: its strongest ones, one that it misses, one false alarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.detection import BestUnit, Detection, same_truth
from saestore.analysis.truth import UNLABELLED
from saestore.codes import Codes

Outcome = Literal["hit", "missed", "alarm", "unlabelled"]


@dataclass(frozen=True)
class Example:
    """A sample of the reported split.

    score : the unit's largest counted value in it, 0 where it is not active
    outcome : `hit`, or `alarm` where the sample has not the concept; `missed`; `unlabelled` where it is not known
    """

    sample: str
    score: float
    outcome: Outcome


class Examples:
    """Chooses samples of the split that a detection reports.

    Parameters
    ----------
    codes : Codes
        Those that the detection is of; rows are positions.
    detection : Detection
    """

    def __init__(self, codes: Codes, detection: Detection) -> None:
        self._codes = codes
        self._split = detection.splits[1]
        self._truth = same_truth(codes, detection.thresholds)
        self._counted = self._truth.rows_of(self._split)

    def of(self, one: BestUnit, *, strongest: int = 3) -> list[Example]:
        """Return the samples with the highest values of a concept's best unit, then a missed one and a false alarm.

        Those at the end are the strongest of their kind, and left out where there is none or it is there already.
        """
        if one.unit is None or one.threshold is None:
            return []
        scores, has = self._scores(one.unit), self._truth.samples[self._truth.options.concepts.index(one.concept)]
        places = self._codes.samples.of_split(self._split)
        order = places[np.argsort(-scores[places], kind="stable")]
        fires = scores[order] >= np.float32(one.threshold)
        chosen = order[fires][:strongest].tolist()
        for kind in (order[~fires & (has[order] == 1)], order[fires & (has[order] == 0)]):
            chosen += [place for place in kind[:1].tolist() if place not in chosen]
        found = []
        for place in chosen:
            does = bool(scores[place] >= np.float32(one.threshold))
            outcome: Outcome = "unlabelled" if has[place] == UNLABELLED else "hit" if has[place] else "alarm"
            name = str(self._codes.samples.ids[place])
            found.append(Example(name, float(scores[place]), outcome if does else "missed"))
        return found

    def _scores(self, unit: int) -> NDArray[np.float32]:
        """Return the largest counted value of a unit in each sample."""
        active = self._codes.unit(unit)
        counted = self._counted[active.rows]
        scores = np.zeros(len(self._codes.samples), dtype=np.float32)
        np.maximum.at(scores, self._truth.sample_of_row[active.rows[counted]], active.values[counted])
        return scores
