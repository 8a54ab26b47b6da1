"""What units are chosen by: how often they are active, how strongly, and how selectively."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.unit_stats import UnitStats

STRENGTH = 0.99


@dataclass(frozen=True, eq=False)
class UnitFigures:
    """Figures of units over counted rows; those of units that are never active are NaN but for count and fraction.

    rows : counted rows
    units : (m,) int64, original ids, ascending
    count : (m,) int64, rows in which each is active
    fraction : (m,) float64, of the counted rows
    p99 : (m,) float32, 99th percentile of the active values
    selectivity : (m,) float64, from 0 (the same in every row) to 1 (active in one row), see `lifetime_sparseness`
    """

    rows: int
    units: NDArray[np.int64]
    count: NDArray[np.int64]
    fraction: NDArray[np.float64]
    p99: NDArray[np.float32]
    selectivity: NDArray[np.float64]

    def at(self, places: NDArray[Any]) -> UnitFigures:
        """Return the figures of some of these units, by a mask or by places."""
        chosen = {name: getattr(self, name)[places] for name in _COLUMNS}
        return UnitFigures(rows=self.rows, **chosen)

    def stored(self) -> Mapping[str, NDArray[Any]]:
        """Return the figures as they are stored beside units."""
        named = {name: getattr(self, name) for name in _COLUMNS if name != "units"}
        return {**named, "count": self.count.astype(np.uint32)}


_COLUMNS = tuple(field.name for field in fields(UnitFigures) if field.name != "rows")


def figures_of(stats: UnitStats) -> UnitFigures:
    """Return the figures that stored statistics hold."""
    return UnitFigures(
        rows=stats.n_rows,
        units=stats.units,
        count=stats.count,
        fraction=stats.fraction,
        p99=stats.percentiles[:, stats.percentile_levels.index(STRENGTH)],
        selectivity=lifetime_sparseness(stats.sum, stats.sum_squares, stats.n_rows),
    )


def lifetime_sparseness(sums: NDArray[np.float64], sum_squares: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Return how selective units are: (1 - (S/n)^2 / (Q/n)) / (1 - 1/n), in [0, 1]; NaN where Q is 0.

    Of one row nothing can be said; it gives 0.

    Parameters
    ----------
    sums, sum_squares : (m,) float64
        S and Q of the values over all n rows, zeros included.
    rows : int
        n.

    References
    ----------
    Vinje and Gallant (2000), Sparse coding and decorrelation in primary visual cortex during natural vision, Science
    287, 1273-1276.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        evenness = sums**2 / (rows * sum_squares)
        scale = 1 - 1 / rows if rows > 1 else np.inf
        sparse: NDArray[np.float64] = np.clip((1 - evenness) / scale, 0, 1)
    return sparse
