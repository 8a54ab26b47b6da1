"""Runs of consecutive numbers, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ramps(first: NDArray[np.integer[Any]], counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return `first[0], first[0] + 1, ...` with `counts[0]` numbers, then the same of the others.

    Examples
    --------
    >>> ramps(np.array([7, 0]), np.array([2, 3]))
    array([7, 8, 0, 1, 2])
    """
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum(), dtype=np.int64)
