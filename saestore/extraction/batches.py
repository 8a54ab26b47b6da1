"""How samples are grouped: fixed windows of consecutive samples, and length-sorted batches inside a window.

The results of a forward pass differ in their last bits with the company a sample is padded with. Windows and batches
are therefore functions of the lengths alone: what is computed again after a kill is computed in the same batches, and
gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saestore.errors import InputError


def windows(lengths: npt.ArrayLike, *, tokens: int = 16384, samples: int = 1024) -> list[tuple[int, int]]:
    """Cut the samples into consecutive groups of at most `tokens` positions and `samples` samples.

    Parameters
    ----------
    lengths : (n_samples,) int
        Positions of each sample.
    tokens : int
        Most positions in a window; a sample that is longer alone is a window of its own.
    samples : int
        Most samples in a window.

    Returns
    -------
    list of (start, stop)
        Half-open ranges of samples that cover 0..n_samples in order, each as long as the limits allow.

    Examples
    --------
    >>> windows([5, 5, 5, 30, 1], tokens=10, samples=1024)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.cumsum(_checked(lengths))
    if tokens < 1 or samples < 1:
        raise InputError(f"a window of {tokens} tokens and {samples} samples holds nothing; both must be at least 1")
    cut: list[tuple[int, int]] = []
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + tokens, side="right"))
        stop = max(start + 1, min(stop, start + samples))
        cut.append((start, stop))
        start = stop
    return cut


def batches(lengths: npt.ArrayLike, *, padded_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Group the samples of a window into batches of like length.

    Parameters
    ----------
    lengths : (n,) int
        Positions of each sample of the window.
    padded_tokens : int
        Most positions of a batch with its padding: samples times the longest of them. A sample that is longer alone is
        a batch of its own.

    Returns
    -------
    list of (b,) int64 arrays
        Indices into `lengths`; every sample occurs exactly once, longest first, equal lengths in their order.

    Examples
    --------
    >>> [batch.tolist() for batch in batches([2, 9, 3, 8], padded_tokens=18)]
    [[1, 3], [2, 0]]
    """
    sizes = _checked(lengths)
    if padded_tokens < 1:
        raise InputError(f"padded_tokens is {padded_tokens}; it must be at least 1")
    order = np.argsort(-sizes, kind="stable")
    groups: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(1, int(sizes[order[start]]))
        stop = start + max(1, padded_tokens // longest)
        groups.append(order[start:stop].astype(np.int64))
        start = stop
    return groups


def _checked(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 0).any():
        raise InputError("lengths must be one non-negative number per sample")
    return sizes
