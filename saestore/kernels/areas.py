"""How much of boxes is covered: by other boxes, or by the pixels of a mask.

Boxes are x0, y0, x1, y1, and pixel (x, y) is the square from (x, y) to (x + 1, y + 1). Areas over a mask come from its
summed-area table (F. C. Crow, Summed-area tables for texture mapping, SIGGRAPH 1984), which between whole numbers is
bilinear, since a mask is constant within a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Edges of patches are float32: at 10,000 pixels they are off by up to 0.0005, which must not touch one pixel more.
TOLERANCE = 1e-3


def snapped(boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return boxes whose edges are whole numbers where they are within 0.001 of one, (n, 4) float64."""
    exact = boxes.astype(np.float64)
    whole = np.rint(exact)
    return np.where(np.abs(exact - whole) < TOLERANCE, whole, exact)


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas of boxes, (n,) float64; 0 of one that ends where it begins.

    Examples
    --------
    >>> box_areas(np.array([[0.0, 0.0, 2.0, 1.5], [3.0, 3.0, 3.0, 9.0]])).tolist()
    [3.0, 0.0]
    """
    sides: NDArray[np.float64] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def shared_areas(boxes: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that each box shares with one other box of shape (4,), (n,) float64."""
    common = np.concatenate([np.maximum(boxes[:, :2], other[:2]), np.minimum(boxes[:, 2:], other[2:])], axis=1)
    return box_areas(common)


def summed_area_table(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of pixels of a mask above and left of every corner, (height + 1, width + 1) int64."""
    height, width = mask.shape
    table = np.zeros((height + 1, width + 1), dtype=np.int64)
    np.cumsum(mask, axis=0, dtype=np.int64, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    return table


def covered_areas(table: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of mask within each box, (n,) float64; there is no mask outside of its table."""
    x0, y0, x1, y1 = boxes.T
    return _below(table, x1, y1) - _below(table, x0, y1) - _below(table, x1, y0) + _below(table, x0, y0)


def touched(table: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each box shares an area with any pixel of a mask, (n,) bool; counted in whole numbers."""
    hull = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    return (box_areas(boxes) > 0) & (covered_areas(table, hull) > 0)


def _below(table: NDArray[np.int64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of mask above and left of points."""
    height, width = table.shape[0] - 1, table.shape[1] - 1
    x, y = np.clip(x, 0, width), np.clip(y, 0, height)
    left, top = (np.floor(x).astype(np.int64), np.floor(y).astype(np.int64))
    right, bottom = np.minimum(left + 1, width), np.minimum(top + 1, height)
    across, down = x - left, y - top
    above = table[top, left] * (1 - across) + table[top, right] * across
    under = table[bottom, left] * (1 - across) + table[bottom, right] * across
    below: NDArray[np.float64] = above * (1 - down) + under * down
    return below
