"""Pearson correlation of dense columns by matrix products, block by block of rows.

Columns are moved by the mean of the first block before they are multiplied: with S the sums of what is left,

    r = (S_xy - S_x S_y / n) / sqrt((S_xx - S_x^2 / n) (S_yy - S_y^2 / n))

which is exact for any move (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", The American
Statistician 37(3)), and does not lose the digits of columns whose mean is far larger than their deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_CONSTANT = 1e-12
"""A variance below this part of the mean square is rounding."""


class DenseSums:
    """Sums over the rows so far of two ends of `a` and `b` columns; rows are added block by block.

    Products are float64 on the CPU and CUDA. MPS has no float64: there the products of a block are float32, and are
    added up on the host in float64.

    Parameters
    ----------
    a, b : int
        Columns of each end.
    device : str
        Where blocks are multiplied.
    """

    def __init__(self, a: int, b: int, *, device: str = "cpu") -> None:
        self.n = 0
        self._device = torch.device(device)
        self._dtype = torch.float32 if self._device.type == "mps" else torch.float64
        # Where sums are added up.
        self._home = home = torch.device("cpu") if self._device.type == "mps" else self._device
        self._first = [torch.zeros(width, dtype=torch.float64) for width in (a, b)]
        self._sums = [torch.zeros(width, dtype=torch.float64, device=home) for width in (a, b)]
        self._squares = [torch.zeros(width, dtype=torch.float64, device=home) for width in (a, b)]
        self._products = torch.zeros(a, b, dtype=torch.float64, device=home)

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Add a block of rows.

        Parameters
        ----------
        x : (n, a) float16, float32 or float64
        y : (n, b) likewise
            The same rows of the other end.

        Raises
        ------
        ValueError
            The blocks are not of the same rows, or not of the columns of the ends.
        """
        widths = tuple(len(sums) for sums in self._sums)
        if len(x) != len(y) or (x.shape[1], y.shape[1]) != widths:
            raise ValueError(
                f"blocks of shapes {x.shape} and {y.shape} are not rows of {widths[0]} and {widths[1]} columns"
            )
        if not len(x):
            return
        if not self.n:
            self._first = [torch.from_numpy(each.mean(axis=0, dtype=np.float64)) for each in (x, y)]
        moved = []
        for place, each in enumerate((x, y)):
            # Moved in float64 on the host: float32 would round what is large before the mean is taken away.
            block = torch.from_numpy(np.array(each, dtype=np.float64)).sub_(self._first[place])
            block = block.to(self._dtype).to(self._device)
            self._sums[place] += self._total(block.sum(dim=0))
            self._squares[place] += self._total(block.square().sum(dim=0))
            moved.append(block)
        self._products += self._total(moved[0].T @ moved[1])
        self.n += len(x)

    @property
    def usable_a(self) -> NDArray[np.bool_]:
        """Columns of the first end that are not constant: (a,) bool."""
        return self._usable(0)

    @property
    def usable_b(self) -> NDArray[np.bool_]:
        """Columns of the second end that are not constant: (b,) bool."""
        return self._usable(1)

    def r(self) -> NDArray[np.float64]:
        """Return the correlations of all columns with all: (a, b) float64 in [-1, 1], 0 where one is constant."""
        n = max(self.n, 1)
        sums_a, sums_b = self._sums
        joint = (self._products - torch.outer(sums_a, sums_b) / n).cpu().numpy()
        roots = [np.sqrt(np.where(self._usable(place), self._scatter(place), np.inf)) for place in (0, 1)]
        r: NDArray[np.float64] = np.clip(joint / roots[0][:, None] / roots[1], -1.0, 1.0)
        return r

    def _total(self, sums: torch.Tensor) -> torch.Tensor:
        return sums.to(self._home).to(torch.float64)

    def _scatter(self, place: int) -> NDArray[np.float64]:
        """Sum of squares about the mean."""
        scatter: NDArray[np.float64] = (self._squares[place] - self._sums[place] ** 2 / max(self.n, 1)).cpu().numpy()
        return scatter

    def _usable(self, place: int) -> NDArray[np.bool_]:
        n = max(self.n, 1)
        mean = self._first[place].numpy() + (self._sums[place] / n).cpu().numpy()
        scatter = self._scatter(place)
        varies: NDArray[np.bool_] = scatter > _CONSTANT * (scatter + n * mean**2)
        return varies
