"""Where to cut a row of things: into parts of at most some size, or into as many shares as there are threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def cuts(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where to cut a row of things, so that each part has a size of at most `most`, or is one thing.

    Parameters
    ----------
    sizes : (n,) int64

    Returns
    -------
    (parts + 1,) int64
        The first thing of each part, and n.
    """
    before = np.append(0, np.cumsum(sizes))
    edges = [0]
    while edges[-1] < len(sizes):
        fitting = int(np.searchsorted(before, before[edges[-1]] + most, side="right")) - 1
        edges.append(max(fitting, edges[-1] + 1))
    return np.array(edges, dtype=np.int64)


def unit_shares(edges: NDArray[np.int64], threads: int) -> list[range]:
    """Cut units into ranges of about as many entries each, one for each thread at most.

    Parameters
    ----------
    edges : (m + 1,) int64
        The entries of unit i are as many as `edges[i + 1] - edges[i]`.
    threads : int
    """
    places = np.searchsorted(edges, np.linspace(0, edges[-1], threads + 1).astype(np.int64))
    places[0], places[-1] = 0, len(edges) - 1
    return [range(low, high) for low, high in pairwise(places.tolist()) if high > low]
