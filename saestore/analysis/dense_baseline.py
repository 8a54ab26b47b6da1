"""The verb `compare`: the same analyses on the dense matrix, and where stored results differ from them.

Nothing is shared with what computed the results but the reading of codes and labels: the dense matrix is made from the
rows, not from the postings, and every number by numpy from its definition in docs/concepts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.detection import Detection, same_truth
from saestore.analysis.localisation import Localisation
from saestore.analysis.thresholds import DEFAULT
from saestore.analysis.truth import Truth
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.errors import InputError, MissingError

Matrix = NDArray[np.float32]

_UNITS_AT_ONCE = 64


@dataclass(frozen=True)
class Comparison:
    """One kind of number, computed twice.

    numbers, differing : how many there are, and how many are not the same
    largest : the largest difference, relative for thresholds
    first : where the first differing one is, empty if all are equal
    """

    what: str
    numbers: int
    differing: int
    largest: float
    first: str

    @property
    def is_equal(self) -> bool:
        """Whether all numbers are the same."""
        return self.differing == 0


def compare(codes: Codes, *, detection: str = DEFAULT, memory: str | int | None = None) -> list[Comparison]:
    """Compare stored thresholds, detection and localisation with those of the dense matrix.

    Counts must be equal, and thresholds equal to float32.

    Parameters
    ----------
    codes : Codes
        All units, or the view that the results are of.
    detection : str
        Name of the detection; the localisation that was made from it is compared too, where there is one.
    memory : str or int, optional
        The most that the dense matrix may take.

    Raises
    ------
    MissingError
        There is no such detection.
    InputError
        The detection is legacy.
    BudgetError
        The dense matrix does not fit the memory.
    """
    known = Detection.open(codes, detection)
    if known.thresholds.is_legacy:
        raise InputError(f"{known.pairs.group.path} is legacy, and this compares with what is right; compare another")
    truth = same_truth(codes, known.thresholds)
    units = known.pairs.units
    n = codes.n_rows
    require_memory(
        2 * n * len(units) * 4,
        budget=parse_memory(memory),
        what=f"the dense matrix of {n:,} rows x {len(units):,} units, twice,",
        remedy="compare a view of fewer units",
    )
    dense = np.concatenate(
        [codes.dense(slice(start, min(start + 65_536, n)), units.tolist()) for start in range(0, n, 65_536)]
    )
    dense[dense < 0] = 0
    found = list(_thresholds(known, truth, dense)) + list(_detection(known, truth, dense))
    try:
        localisation = Localisation.of(codes, detection)
    except MissingError:
        return found
    return found + (list(_direct(localisation, truth, dense)) if "direct" in localisation.methods else [])


def _thresholds(known: Detection, truth: Truth, dense: Matrix) -> Iterator[Comparison]:
    learned = known.thresholds
    rows = truth.rows_of(learned.split)
    cuts, n_pos = learned.pairs.read("thresholds"), learned.pairs.read("n_pos")
    expected, counts = np.full_like(cuts, np.inf), np.zeros_like(n_pos)
    concepts = learned.pairs.concepts
    counted = np.flatnonzero(rows)
    has = [truth.row_labels(place)[counted] == 1 for place in range(len(concepts))]
    for start in range(0, dense.shape[1], _UNITS_AT_ONCE):
        block = dense[counted, start : start + _UNITS_AT_ONCE]
        for place in range(len(concepts) + 1):
            held = block if place == len(concepts) else block[has[place]]
            for unit in range(held.shape[1]):
                values = held[:, unit]
                values = values[values > 0].astype(np.float64)
                counts[start + unit, place] = len(values)
                if len(values):
                    expected[start + unit, place] = np.quantile(values, 1 - learned.pairs.percentiles)
    named = [*concepts, "all rows"]
    yield _compared("rows that thresholds rest on", counts, n_pos, known, named)
    yield _compared("thresholds", expected, cuts, known, named)


def _detection(known: Detection, truth: Truth, dense: Matrix) -> Iterator[Comparison]:
    cuts = known.thresholds.pairs.read("thresholds")[:, : len(known.pairs.concepts)]
    for split in known.splits:
        most = _largest(dense, truth, split)
        labels = truth.labels_in(split)
        expected = np.zeros((4, *cuts.shape), dtype=np.int64)
        for place in range(len(known.pairs.concepts)):
            for number, label in enumerate((1, 0)):
                fires = most[labels[place] == label][:, :, None] >= cuts[:, place]
                expected[number, :, place] = fires.sum(axis=0)
                expected[number + 2, :, place] = (~fires).sum(axis=0)
        for name, mine, theirs in zip(("TP", "FP", "FN", "TN"), expected, known.counts(split), strict=True):
            yield _compared(f"{name} of samples, {split}", mine, theirs, known, known.pairs.concepts)


def _direct(localisation: Localisation, truth: Truth, dense: Matrix) -> Iterator[Comparison]:
    known = localisation.detection
    best = known.best(resamples=0)
    cuts = localisation.thresholds("direct")
    for split in localisation.splits:
        rows = truth.rows_of(split)
        most = _largest(dense, truth, split)
        expected = np.zeros((4, *cuts.shape), dtype=np.int64)
        for place, one in enumerate(best):
            labels = truth.row_labels(place)
            has, has_not = rows & (labels == 1), rows & (labels == 0)
            predicted = np.zeros((dense.shape[0], cuts.shape[1]), dtype=bool)
            if one.unit is not None:
                unit = known.pairs.place_of_unit(one.unit)
                detected = most[:, unit] >= np.float32(one.threshold)
                inside = rows & detected[truth.sample_of_row] & (dense[:, unit] > 0)
                predicted = inside[:, None] & (dense[:, unit, None] >= cuts[place])
            expected[0, place] = (predicted & has[:, None]).sum(axis=0)
            expected[1, place] = (predicted & has_not[:, None]).sum(axis=0)
            expected[2, place] = (~predicted & has[:, None]).sum(axis=0)
            expected[3, place] = (~predicted & has_not[:, None]).sum(axis=0)
        counts = localisation.counts("direct", split)
        for name, mine, theirs in zip(("TP", "FP", "FN", "TN"), expected, counts, strict=True):
            yield _compared(f"{name} of positions, {split}", mine[None], theirs[None], known, localisation.concepts)


def _largest(dense: Matrix, truth: Truth, split: str) -> Matrix:
    """Return the largest value of each unit in the counted rows of each sample, 0 where there is none."""
    out = np.zeros((len(truth.axis.samples), dense.shape[1]), dtype=np.float32)
    rows = truth.rows_of(split)
    np.maximum.at(out, truth.sample_of_row[rows], dense[rows])
    return out


def _compared(
    what: str,
    expected: NDArray[np.generic],
    stored: NDArray[np.generic],
    known: Detection,
    concepts: list[str] | tuple[str, ...],
) -> Comparison:
    """Compare arrays whose first axes are units (or one) and concepts."""
    mine, theirs = expected.astype(np.float64), stored.astype(np.float64)
    same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
    differing = int((~same).sum())
    if not differing:
        return Comparison(what, mine.size, 0, 0.0, "")
    place = np.unravel_index(int(np.argmax(~same)), same.shape)
    with np.errstate(invalid="ignore"):
        largest = float(np.nanmax(np.abs(mine - theirs)[~same]))
    unit = f"unit {known.pairs.units[place[0]]}, " if mine.shape[0] > 1 else ""
    first = f"{unit}concept {concepts[place[1]]!r}: {theirs[place]:g} is stored, {mine[place]:g} is dense"
    return Comparison(what, mine.size, differing, largest, first)
