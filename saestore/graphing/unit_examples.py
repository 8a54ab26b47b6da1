"""What units of an end stand for: the rows where they are strongest, over all data sets of the end, with their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saestore.codes import Codes
from saestore.context import places_of
from saestore.graphing.ends import End
from saestore.units import Example, Unit

_TOGETHER = 128  # units whose entries are in memory at a time

_Picked = list[tuple[int, int, float]]
"""Number of the data set, row there, value; the strongest first."""


def examples_of(end: End, units: Sequence[int], n: int) -> dict[int, list[Example]]:
    """Return the strongest rows of units, among the rows of the end.

    Of codes the strongest row of each sample counts, by magnitude; of activations rows count by value.

    Parameters
    ----------
    end : End
    units : sequence of int
        Original ids.
    n : int
        Rows of each unit; 0 for none.

    Returns
    -------
    dict
        Examples of each unit, strongest first; ties by data set and row.

    Raises
    ------
    MissingError
        Codes have no postings.
    HoleError, IntegrityError
        Rows were never written, or are damaged.
    """
    wanted = sorted(set(units))
    if not n or not wanted:
        return {unit: [] for unit in wanted}
    picked = _of_codes(end, wanted, n) if end.is_sparse else _of_activations(end, wanted, n)
    found: dict[int, list[Example]] = {unit: [] for unit in wanted}
    shown: dict[tuple[int, int], Example] = {}
    for number, selection in enumerate(end.selections):
        mine = [(unit, place) for unit in wanted for place, one in enumerate(picked[unit]) if one[0] == number]
        rows = np.array([picked[unit][place][1] for unit, place in mine], dtype=np.int64)
        for (unit, place), where in zip(mine, places_of(selection.axis, rows), strict=True):
            shown[unit, place] = Example(where, picked[unit][place][2])
    for unit in wanted:
        found[unit] = [shown[unit, place] for place in range(len(picked[unit]))]
    return found


def _of_codes(end: End, units: Sequence[int], n: int) -> dict[int, _Picked]:
    found: dict[int, _Picked] = {unit: [] for unit in units}
    for number, (source, selection) in enumerate(zip(end.sources, end.selections, strict=True)):
        assert isinstance(source, Codes)
        for first in range(0, len(units), _TOGETHER):
            for unit in source.units(units[first : first + _TOGETHER]):
                counted = selection.contains(unit.rows)
                own = Unit(unit.unit, unit.rows[counted], unit.values[counted], source)
                if len(own):
                    found[unit.unit] += [(number, pick.row, pick.value) for pick in own.picks(n, per="sample")]
    return {unit: sorted(own, key=lambda one: (-abs(one[2]), *one[:2]))[:n] for unit, own in found.items()}


def _of_activations(end: End, units: Sequence[int], n: int) -> dict[int, _Picked]:
    values = np.full((0, len(units)), -np.inf, dtype=np.float32)
    rows = np.zeros((0, len(units)), dtype=np.int64)
    first = 0
    for block in replace(end, units=np.array(units, dtype=np.int64)).blocks():
        own = np.argsort(-block, axis=0, kind="stable")[:n]
        values = np.concatenate([values, np.take_along_axis(block, own, axis=0)])
        rows = np.concatenate([rows, first + own])
        order = np.argsort(-values, axis=0, kind="stable")[:n]
        values, rows = np.take_along_axis(values, order, axis=0), np.take_along_axis(rows, order, axis=0)
        first += len(block)
    edges = np.append(0, np.cumsum(end.lengths))
    numbers = np.searchsorted(edges, rows, side="right") - 1
    found: dict[int, _Picked] = {}
    for column, unit in enumerate(units):
        found[unit] = []
        for number, row, value in zip(*(each[:, column].tolist() for each in (numbers, rows, values)), strict=True):
            place = np.array([row - edges[number]], dtype=np.int64)
            found[unit].append((number, int(end.selections[number].rows_at(place)[0]), value))
    return found
