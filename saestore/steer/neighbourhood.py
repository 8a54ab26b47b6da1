"""The units around chosen ones in a graph, and the edges between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def neighbourhood(
    a: NDArray[np.integer],
    b: NDArray[np.integer],
    r: NDArray[np.floating],
    seeds: NDArray[np.integer],
    *,
    n: int,
    depth: int,
    top: int | None = None,
) -> tuple[Places, Places]:
    """Follow edges from chosen nodes, and return the nodes reached and the edges between them.

    Parameters
    ----------
    a, b : (e,) int
        Places among the nodes of the ends of each edge; a pair is given once, in either order.
    r : (e,) float
        Weight of each edge; the larger |r|, the stronger. Of equal ones the first counts as stronger.
    seeds : (s,) int
        Places of the chosen nodes.
    n : int
        How many nodes there are.
    depth : int
        How many edges away from a seed a node may be; with 0, seeds alone are taken.
    top : int, optional
        From each node only so many of its strongest edges are followed, and an edge is left out that counts for neither
        of its nodes. Default: all.

    Returns
    -------
    nodes : (m,) int64
        Places of seeds and of what was reached, ascending.
    edges : (f,) int64
        Which edges join two of them, ascending.
    """
    ends = np.stack([a, b], axis=1).astype(np.int64)
    counts = np.ones(ends.shape, dtype=bool) if top is None else _ranks(ends, r, n) < top
    is_taken = np.zeros(n, dtype=bool)
    is_taken[seeds] = True
    border = is_taken.copy()
    for _ in range(depth):
        reached = np.zeros(n, dtype=bool)
        for here, there in ((0, 1), (1, 0)):
            reached[ends[counts[:, here] & border[ends[:, here]], there]] = True
        border = reached & ~is_taken
        if not border.any():
            break
        is_taken |= border
    kept = is_taken[ends].all(axis=1) & counts.any(axis=1)
    return np.flatnonzero(is_taken), np.flatnonzero(kept)


def _ranks(ends: Places, r: NDArray[np.floating], n: int) -> Places:
    """Return, for both nodes of each edge, how many edges of that node are stronger: (e, 2) int64."""
    strongest = np.argsort(-np.abs(r), kind="stable")
    nodes = ends[strongest].ravel()
    order = np.argsort(nodes, kind="stable")
    first = np.append(0, np.cumsum(np.bincount(nodes, minlength=n)))
    ranks = np.empty(len(nodes), dtype=np.int64)
    ranks[order] = np.arange(len(nodes)) - first[nodes[order]]
    found = np.empty_like(ends)
    found[strongest] = ranks.reshape(-1, 2)
    return found
