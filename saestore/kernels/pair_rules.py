"""Which pairs of units are kept, from their joint sums: moments of units, the rule, and the correlation of a pair.

With s the sum of the products of two units over all n rows, zeros included, and population standard deviations d,

    r = (s - sum_a mean_b) / (n d_a d_b)

which is Pearson's correlation (Pearson 1895) of the two dense columns. Each way of making s, on any device, ends here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.entry_orders import RowMajor

_CONSTANT = 1e-8
"""A variance below this part of the mean square is rounding: sums of some 10^8 equal numbers are good to as much."""

_BINS = 100


@dataclass
class Moments:
    """Sums over the rows so far of each of m units; begin with `empty`, and `add` blocks of rows.

    n : int
        Rows, those without entries too.
    active : (m,) int64
        Rows where the unit is active.
    sums, squares : (m,) float64
        Of its values there.
    """

    n: int
    active: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, m: int) -> Moments:
        """Return the sums over no rows."""
        return cls(0, np.zeros(m, dtype=np.int64), np.zeros(m), np.zeros(m))

    @classmethod
    def of(cls, rows: RowMajor) -> Moments:
        """Return the sums over all rows of an end."""
        moments = cls.empty(rows.n_units)
        moments.add(rows.units, rows.values, rows.n_rows)
        return moments

    def add(self, units: NDArray[Any], values: NDArray[np.float32], n_rows: int) -> None:
        """Add the entries of a block of rows.

        Parameters
        ----------
        units : (e,) unsigned integers
            Places among the m units.
        values : (e,) float32
            None of them 0.
        n_rows : int
            Rows of the block, those without entries too.

        Raises
        ------
        IndexError
            A unit is not below m.
        """
        if len(units) and int(units.max()) >= len(self.active):
            raise IndexError(f"a unit is not below {len(self.active)}")
        _add(units, values, self.active, self.sums, self.squares)
        self.n += n_rows

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over all rows, zeros included: (m,) float64."""
        return self.sums / max(self.n, 1)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Units that are neither dead nor constant, so that they have a correlation: (m,) bool."""
        square = self.squares / max(self.n, 1)
        varies: NDArray[np.bool_] = square - self.mean**2 > _CONSTANT * square
        return varies & (self.active > 0)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Population standard deviation over all rows, zeros included, 0 where not usable: (m,) float64."""
        variance = self.squares / max(self.n, 1) - self.mean**2
        return np.sqrt(np.where(self.usable, variance, 0.0))


@dataclass(frozen=True)
class Rule:
    """Which pairs are kept: those with ``|r| >= min_r`` and ``max(n_ab, n_a n_b / n) >= min_support``.

    The larger of the joint count and of what chance would make it, so that units which avoid each other are kept too,
    if they would often have met. Of pairs `within` one end only those whose place in b is above that in a.
    """

    min_r: float
    min_support: int
    within: bool


@dataclass(frozen=True)
class Found:
    """Kept pairs, ordered by (a, b).

    a, b : (p,) uint32
        Places among the units of each end.
    r : (p,) float64
        Pearson correlation over all rows, zeros included, in [-1, 1].
    n_ab : (p,) int64
        Rows where both are active.
    """

    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    r: NDArray[np.float64]
    n_ab: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: list[Found]) -> Found:
        """Return the pairs of parts that follow each other."""
        none = cls(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint32), np.empty(0), np.empty(0, dtype=np.int64))
        every = [none, *parts]
        return cls(*(np.concatenate([getattr(part, name) for part in every]) for name in ("a", "b", "r", "n_ab")))


class TooManyPairs(Exception):  # noqa: N818 (what it is, not an error of the data)
    """More pairs are kept than the caller wants to hold.

    Attributes
    ----------
    count : int
        Pairs kept of the units done, more than the limit.
    units_done : int
        Units of a that were done: from the first on, unless the last of them alone has more than the limit.
    histogram : (100,) int64
        Pairs by |r|, in steps of 0.01 from 0 to 1: what a higher threshold would have left of them.
    """

    def __init__(self, found: list[Found], units_done: int) -> None:
        self.count = sum(len(part.r) for part in found)
        self.units_done = units_done
        self.histogram: NDArray[np.int64] = sum(
            (np.histogram(np.abs(part.r), _BINS, (0.0, 1.0))[0] for part in found), np.zeros(_BINS, dtype=np.int64)
        )
        super().__init__(f"{self.count} pairs are kept of the first {units_done} units")


@dataclass(frozen=True)
class Ends:
    """What both ends must tell for r, ready for use: sums, counts and deviations of the units that take part.

    Of `deviation_b` those that take no part are infinite, so that no pair of theirs reaches any threshold.
    """

    n: int
    sum_a: NDArray[np.float64]
    deviation_a: NDArray[np.float64]
    active_a: NDArray[np.int64]
    mean_b: NDArray[np.float64]
    deviation_b: NDArray[np.float64]
    active_b: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        places_a: NDArray[np.integer[Any]],
        moments_a: Moments,
        moments_b: Moments,
        mask_a: NDArray[np.bool_] | None,
        mask_b: NDArray[np.bool_] | None,
    ) -> Ends:
        """Take the chosen units of a, with a deviation of 0 for those that take no part, and all of b."""
        takes_a = moments_a.usable if mask_a is None else moments_a.usable & mask_a
        takes_b = moments_b.usable if mask_b is None else moments_b.usable & mask_b
        return cls(
            moments_a.n,
            moments_a.sums[places_a],
            np.where(takes_a, moments_a.deviation, 0.0)[places_a],
            moments_a.active[places_a],
            moments_b.mean,
            np.where(takes_b, moments_b.deviation, np.inf),
            moments_b.active,
        )

    def correlation(
        self, a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]], products: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return r of pairs from the sums of their products; `a` counts the chosen units."""
        below = self.n * self.deviation_a[a] * self.deviation_b[b]
        r: NDArray[np.float64] = np.clip((products - self.sum_a[a] * self.mean_b[b]) / below, -1.0, 1.0)
        return r


@numba.njit(nogil=True, cache=True)
def _add(units: Any, values: Any, active: Any, sums: Any, squares: Any) -> None:
    for place in range(len(units)):
        unit, value = units[place], np.float64(values[place])
        active[unit] += 1
        sums[unit] += value
        squares[unit] += value * value
