"""Localising concepts: which rows of detected samples reach a second threshold, and what the labels say of them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def detected_samples(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counted: NDArray[np.bool_],
    sample_of_row: NDArray[np.uint32],
    n_samples: int,
    threshold: float,
) -> NDArray[np.bool_]:
    """Return the samples of which some counted row reaches a threshold: (n_samples,) bool."""
    found = np.zeros(n_samples, dtype=bool)
    found[sample_of_row[rows[counted[rows] & (scores > 0) & (scores >= np.float32(threshold))]]] = True
    return found


def counts_above(
    scores: NDArray[np.float32], labels: NDArray[np.uint8], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count rows that reach each threshold: those labelled 1, and those labelled 0, (p,) int64 each.

    Parameters
    ----------
    scores : (n,) float32
        Of the rows that may be predicted.
    labels : (n,) uint8
    thresholds : (p,) float32
    """
    hits, misses = np.zeros(len(thresholds), dtype=np.int64), np.zeros(len(thresholds), dtype=np.int64)
    _counts_above(scores, labels, thresholds, hits, misses)
    return hits, misses


@numba.njit(nogil=True, cache=True)
def _counts_above(scores: Any, labels: Any, thresholds: Any, hits: Any, misses: Any) -> None:
    for j in range(len(scores)):
        for p in range(len(thresholds)):
            if scores[j] >= thresholds[p]:
                hits[p] += labels[j] == 1
                misses[p] += labels[j] == 0


def softmax(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the shares of rows in a mean: the softmax of their weights, (n,) float64.

    References
    ----------
    docs/concepts.md: no temperature, so that large activations take nearly all of the weight.
    """
    shares = np.exp(weights.astype(np.float64) - np.float64(weights.max()))
    shares /= shares.sum()
    return shares


def unit_length(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a vector scaled to length 1, as float32; zeros where it is zero."""
    length = np.linalg.norm(vector)
    out: NDArray[np.float32] = (vector / length if length else vector).astype(np.float32)
    return out


def cosines(x: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of rows with directions of length 1: (n, c) float32; 0 for rows of zeros."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    out: NDArray[np.float32] = np.divide(
        x @ directions.T, lengths, out=np.zeros((len(x), len(directions)), np.float32), where=lengths > 0
    )
    return out
