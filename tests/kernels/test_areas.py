"""Areas that boxes share with boxes and masks, against sums over single pixels in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saestore.kernels.areas import box_areas, covered_areas, shared_areas, snapped, summed_area_table, touched

EDGES = st.integers(-8, 60).map(lambda quarters: quarters / 4)
BOXES = st.lists(st.tuples(EDGES, EDGES, EDGES, EDGES), min_size=1, max_size=6).map(
    lambda boxes: np.array([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes], np.float64)
)
MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 12)))


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> Fraction:
    sides = (Fraction(min(a[i + 2], b[i + 2])) - Fraction(max(a[i], b[i])) for i in (0, 1))
    width, height = (max(side, Fraction(0)) for side in sides)
    return width * height


def area_by_pixels(mask: np.ndarray, box: np.ndarray) -> Fraction:
    total = Fraction(0)
    for y, x in np.argwhere(mask).tolist():
        total += overlap((x, y, x + 1, y + 1), tuple(box.tolist()))
    return total


@given(MASKS, BOXES)
def test_covered_areas_are_sums_over_pixels(mask: np.ndarray, boxes: np.ndarray) -> None:
    table = summed_area_table(mask)
    expected = [area_by_pixels(mask, box) for box in boxes]
    assert covered_areas(table, boxes).tolist() == [float(area) for area in expected]
    assert touched(table, boxes).tolist() == [area > 0 for area in expected]


@given(BOXES, BOXES)
def test_shared_areas(boxes: np.ndarray, others: np.ndarray) -> None:
    assert box_areas(boxes).tolist() == [float(overlap(tuple(box), tuple(box))) for box in boxes.tolist()]
    for other in others:
        expected = [float(overlap(tuple(box), tuple(other.tolist()))) for box in boxes.tolist()]
        assert shared_areas(boxes, other).tolist() == expected


def test_edges_of_float32_touch_no_pixel_more() -> None:
    edges = (np.arange(17) * 14 * (640 / 224)).astype(np.float32)  # 40, 80, ... but for rounding
    boxes = np.stack([edges[:-1], edges[:-1] * 0, edges[1:], edges[1:] * 0 + 1], axis=1)
    assert (snapped(boxes)[:, 2] == np.arange(1, 17) * 40).all()
    assert snapped(np.array([[0.25, 0.002, 0.9995, 7.4]])).tolist() == [[0.25, 0.002, 1.0, 7.4]]
    mask = np.zeros((1, 640), bool)
    mask[0, 80] = True
    table = summed_area_table(mask)
    off = np.array([[40.0, 0, np.float32(80.00001), 1]])
    assert touched(table, off).all()
    assert not touched(table, snapped(off)).any()
