"""Maps of a concept: for one sample what its unit does at every position, on the image's grid or along the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.detection import same_truth
from saestore.analysis.localisation import Localisation
from saestore.analysis.thresholds import Thresholds
from saestore.codes import Codes
from saestore.errors import InputError, MissingError


@dataclass(frozen=True)
class ConceptMap:
    """The best unit of a concept at each position of one sample.

    rows : (n,) int64, on the row axis
    values : (n,) float32, activations of the unit
    labels : (n,) uint8, what the labels say: 1, 0, or 255 where they say nothing
    detected : whether the unit fires in the sample
    predicted : (n,) bool, the positions of a detected sample that reach the threshold of positions
    special : (n,) bool, positions that were left out
    content : the text, or the path of the image
    spans : (n, 2) int32, characters of the text; None for images
    boxes : (n, 4) float32, x0 y0 x1 y1 in pixels of the original image; None for texts
    grid : rows and columns of the image's patches; None for texts
    """

    concept: str
    unit: int
    sample: str
    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    detected: bool
    predicted: NDArray[np.bool_]
    special: NDArray[np.bool_]
    content: str
    spans: NDArray[np.int32] | None
    boxes: NDArray[np.float32] | None
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class MapChoice:
    """Which unit stands for a concept, from which percentile on it detects, and from which value on it localises."""

    concept: str
    unit: int
    detect_percentile: float
    threshold: float


def concept_maps(codes: Codes, localisation: Localisation, concept: str, samples: Sequence[str]) -> list[ConceptMap]:
    """Return what the unit of a concept does in chosen samples.

    Parameters
    ----------
    codes : Codes
        Those that the localisation is of.
    concept : str
    samples : sequence of str
        Ids.

    Raises
    ------
    MissingError
        The concept or a sample does not exist.
    InputError
        The concept has no unit, or rows are not positions.

    Examples
    --------
    >>> maps = concept_maps(codes, Localisation.open(codes), "shape::cube", ["12"])  # doctest: +SKIP
    >>> maps[0].values.reshape(maps[0].grid)  # doctest: +SKIP
    """
    best = {one.concept: one for one in localisation.best() if one.method == "direct"}
    if concept not in best:
        known = ", ".join(list(best)[:10])
        raise MissingError(f"{localisation.group.path} has no concept {concept!r}; it has {known}")
    one = best[concept]
    if one.unit is None or one.threshold is None or one.detect_percentile is None:
        raise InputError(f"concept {concept!r} has no unit: none is active on its calibration rows")
    choice = MapChoice(concept, one.unit, one.detect_percentile, one.threshold)
    return unit_maps(codes, localisation.detection.thresholds, choice, samples)


def unit_maps(codes: Codes, learned: Thresholds, choice: MapChoice, samples: Sequence[str]) -> list[ConceptMap]:
    """Return what a unit does in chosen samples, whatever chose it.

    Parameters
    ----------
    codes : Codes
        Those that the thresholds are of.
    learned : Thresholds
        What says which labels are believed, and from which value on the unit detects.
    choice : MapChoice
    samples : sequence of str
        Ids.

    Raises
    ------
    MissingError
        The concept, the unit or a sample does not exist.
    InputError
        Rows are not positions.
    """
    axis = codes.axis
    if axis.positions is None:
        raise InputError(f"rows of {codes.key.path} are samples, not positions; map codes of tokens or patches")
    truth = same_truth(codes, learned)
    labels = truth.row_labels(learned.pairs.place_of(choice.concept))
    level = int(np.flatnonzero(learned.pairs.percentiles == choice.detect_percentile)[0])
    cut = learned.values(choice.concept)[learned.pairs.place_of_unit(choice.unit), level]
    unit = codes.unit(choice.unit)
    found = []
    for name in samples:
        place = axis.samples.index_of(name)
        start, stop = (int(edge) for edge in axis.positions.offsets[place : place + 2])
        rows = np.arange(start, stop)
        values = np.zeros(len(rows), dtype=np.float32)
        inside = slice(*np.searchsorted(unit.rows, [start, stop]))
        values[unit.rows[inside] - start] = unit.values[inside]
        special = axis.special(rows)
        counted = truth.options.special | ~special
        if learned.is_legacy:  # thresholds of 0 are reached where the unit is not active too
            values = np.maximum(values, 0)
        else:
            counted &= values > 0
        detected = bool((counted & (values >= cut)).any())
        group = axis.positions.group
        about = group.attributes
        found.append(
            ConceptMap(
                concept=choice.concept,
                unit=choice.unit,
                sample=name,
                rows=rows,
                values=values,
                labels=labels[start:stop],
                detected=detected,
                predicted=counted & detected & (values >= np.float32(choice.threshold)),
                special=special,
                content=str(axis.samples.contents_of(np.array([place]))[0]),
                spans=np.stack([group.read(edge, start, stop) for edge in ("char_start", "char_end")], axis=1)
                if axis.positions.has("char_start")
                else None,
                boxes=group.read("box", start, stop) if axis.positions.has("box") else None,
                grid=(int(about["patch_rows"]), int(about["patch_columns"])) if "patch_rows" in about else None,
            )
        )
    return found
