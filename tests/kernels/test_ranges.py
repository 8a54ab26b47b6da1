from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saestore.kernels.ranges import merged, part, runs

edges = st.lists(st.integers(0, 30), max_size=12).map(sorted)


def covered(starts: np.ndarray, stops: np.ndarray) -> list[int]:
    return [number for start, stop in zip(starts, stops, strict=True) for number in range(start, stop)]


@given(edges)
def test_merged_ranges_cover_the_same_and_touch_nowhere(numbers: list[int]) -> None:
    pairs = np.array(numbers[: len(numbers) // 2 * 2], dtype=np.int64).reshape(-1, 2)
    starts, stops = merged(pairs[:, 0], pairs[:, 1])
    assert covered(starts, stops) == covered(pairs[:, 0], pairs[:, 1])
    assert (starts < stops).all()
    assert (starts[1:] > stops[:-1]).all()


@given(st.sets(st.integers(0, 30)).map(sorted))
def test_runs_cover_the_numbers(numbers: list[int]) -> None:
    starts, stops = runs(np.array(numbers, dtype=np.int64))
    assert covered(starts, stops) == numbers
    assert (starts[1:] > stops[:-1]).all()


@given(st.sets(st.integers(0, 30)).map(sorted), st.data())
def test_a_part_is_a_slice_of_the_numbers(numbers: list[int], data: st.DataObject) -> None:
    starts, stops = runs(np.array(numbers, dtype=np.int64))
    before = np.append(0, np.cumsum(stops - starts))
    first = data.draw(st.integers(0, len(numbers)))
    last = data.draw(st.integers(first, len(numbers)))
    assert covered(*part(starts, stops, before, first, last)) == numbers[first:last]
    assert covered(starts, stops) == numbers  # not changed in place
