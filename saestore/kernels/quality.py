"""How well codes stand for activations: explained variance, L0 and dead units, as sums that can be merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows that are widened to float64 at once.
_ROWS = 1024


@dataclass(frozen=True)
class QualitySums:
    """Sums over rows; begin with `empty`, `add` blocks of rows, `merge` the sums of shards.

    Attributes
    ----------
    rows
        Rows so far.
    mean : (d_in,) float64
        Mean activation.
    scatter
        Sum over rows of ``||x - mean||^2``.
    residual
        Sum over rows of ``||x - x_hat||^2``.
    l0_total
        Sum of the true numbers of active units.
    alive : (d_sae,) bool
        Units that were stored for at least one row.

    References
    ----------
    Merging of means and scatter: Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance",
    The American Statistician 37(3). A difference of two large sums would lose all digits where the mean is large.
    """

    rows: int
    mean: NDArray[np.float64]
    scatter: float
    residual: float
    l0_total: int
    alive: NDArray[np.bool_]

    @staticmethod
    def empty(d_in: int, d_sae: int) -> QualitySums:
        """The sums of no rows."""
        return QualitySums(0, np.zeros(d_in), 0.0, 0.0, 0, np.zeros(d_sae, dtype=np.bool_))

    def add(
        self,
        x: NDArray[Any],
        x_hat: NDArray[Any],
        *,
        indices: NDArray[Any],
        values: NDArray[Any],
        l0: NDArray[Any],
    ) -> QualitySums:
        """The sums with a block of rows more.

        Parameters
        ----------
        x, x_hat : (n, d_in)
            Activations and their reconstruction, in the same (original) scale; arrays or CPU tensors.
        indices, values : (n, k)
            Codes; a unit in a slot with a value other than 0 is alive.
        l0 : (n,)
            True numbers of active units.
        """
        true, rebuilt = np.asarray(x), np.asarray(x_hat)
        alive = self.alive.copy()
        alive[np.asarray(indices)[np.asarray(values) != 0]] = True
        total = QualitySums(
            self.rows, self.mean, self.scatter, self.residual, self.l0_total + int(np.sum(l0, dtype=np.int64)), alive
        )
        for start in range(0, len(true), _ROWS):
            block = true[start : start + _ROWS].astype(np.float64)
            residual = float(np.sum((block - rebuilt[start : start + _ROWS]) ** 2))
            mean = block.mean(axis=0)
            scatter = float(np.sum((block - mean) ** 2))
            total = total.merge(QualitySums(len(block), mean, scatter, residual, 0, alive))
        return total

    def merge(self, other: QualitySums) -> QualitySums:
        """The sums of both sets of rows."""
        rows = self.rows + other.rows
        share = other.rows / rows if rows else 0.0
        gap = other.mean - self.mean
        return QualitySums(
            rows=rows,
            mean=self.mean + gap * share,
            scatter=self.scatter + other.scatter + float(gap @ gap) * self.rows * share,
            residual=self.residual + other.residual,
            l0_total=self.l0_total + other.l0_total,
            alive=self.alive | other.alive,
        )

    @property
    def explained_variance(self) -> float:
        """``1 - sum ||x - x_hat||^2 / sum ||x - mean||^2``; NaN without rows.

        References
        ----------
        The same as SAELens (``sae_lens.evals.ExplainedVarianceCalculator``): one ratio of sums over all rows and
        dimensions. Where the rows have no variance it is 1 for a perfect reconstruction and 0 otherwise.
        """
        if not self.rows:
            return float("nan")
        if self.scatter / self.rows < 1e-10:
            return 1.0 if self.residual / self.rows < 1e-10 else 0.0
        return 1.0 - self.residual / self.scatter

    @property
    def mean_l0(self) -> float:
        """Mean number of active units per row; NaN without rows."""
        return self.l0_total / self.rows if self.rows else float("nan")

    @property
    def dead_units(self) -> NDArray[np.int64]:
        """Units that were stored for no row of the sample, ascending.

        Where rows are truncated (``l0 > k``) a unit may be active without ever being stored.
        """
        return np.flatnonzero(~self.alive)
