from __future__ import annotations

import hashlib

import numpy as np
import pytest
from benchmark_rows import benchmark_tasks, own
from hypothesis import given
from hypothesis import strategies as st

from saestore.errors import InputError
from saestore.probing.splits import balanced_rows, shortage, split_rows


def _labels(positive: int, negative: int) -> np.ndarray:
    return np.random.default_rng(0).permutation([1] * positive + [0] * negative).astype(np.int8)


def _digest(rows: np.ndarray) -> str:
    assert rows.dtype == np.int64
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def test_golden_split_of_the_benchmark() -> None:
    labels = benchmark_tasks()["41_truthqa_tf"].labels
    split = split_rows(labels, num_train=686)
    assert (len(labels), len(split.train), len(split.test)) == (786, 686, 99)
    assert split.train[:5].tolist() == [53, 89, 611, 259, 392]
    assert split.test[:5].tolist() == [707, 605, 522, 374, 529]
    assert (_digest(split.train), _digest(split.test)) == ("826c5ff92c542022", "8171b3b8a3ad91c2")


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
@pytest.mark.parametrize("ratio", [0.5, 0.05, 0.39999999999999997, 0.95])
def test_draws_are_those_of_the_package(seed: int, ratio: float) -> None:
    draw = own("utils_data").get_train_test_indices
    for positive, negative, num_train, num_test in ((700, 650, 641, 40), (300, 300, 103, 0), (97, 501, 25, 70)):
        labels = _labels(positive, negative)
        split = split_rows(labels, num_train=num_train, num_test=num_test, positive_ratio=ratio, seed=seed)
        train, test = draw(labels, num_train, num_test, ratio, seed)
        np.testing.assert_array_equal(split.train, train)
        np.testing.assert_array_equal(split.test, test)


@given(
    positive=st.integers(90, 400),
    negative=st.integers(90, 400),
    num_train=st.integers(2, 60),
    num_test=st.integers(2, 55),
    ratio=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_are_disjoint_and_have_the_ratio(
    positive: int, negative: int, num_train: int, num_test: int, ratio: float, seed: int
) -> None:
    labels = _labels(positive, negative)
    if shortage(labels, num_train=num_train, num_test=num_test, positive_ratio=ratio) is not None:
        # Only two or three rows can be of one class at such a ratio.
        assert min(num_train, num_test) <= 3
        return
    split = split_rows(labels, num_train=num_train, num_test=num_test, positive_ratio=ratio, seed=seed)
    for rows, size in ((split.train, num_train), (split.test, num_test)):
        assert len(rows) == size == len(set(rows.tolist()))
        assert int(labels[rows].sum()) == int(np.ceil(ratio * size))
    assert not set(split.train.tolist()) & set(split.test.tolist())


def test_all_rows_that_remain_but_one_test() -> None:
    labels = _labels(150, 150)
    split = split_rows(labels, num_train=101)
    assert len(split.train) + len(split.test) == len(labels) - 1
    assert labels[split.test].sum() == 99


def test_the_larger_class_gives_no_more_rows_than_the_smaller() -> None:
    labels = _labels(120, 900)
    assert balanced_rows(labels) == 240
    split = split_rows(labels, num_train=100)
    assert len(split.test) == 139
    assert labels[split.train].sum() == 50
    assert labels[split.test].sum() == 70
    assert split.train.max() > 240  # of all negative rows, not of the first ones


def test_only_the_first_rows_are_drawn_from() -> None:
    labels = _labels(3_000, 3_000)
    split = split_rows(labels, num_train=1_024)
    assert max(split.train.max(), split.test.max()) < 5_000
    of_1500 = split_rows(labels, num_train=1_024, num_test=0, max_rows=1_500)
    assert of_1500.train.max() < 1_500
    assert len(of_1500.test) == 0
    np.testing.assert_array_equal(
        of_1500.train, split_rows(labels[:1_500], num_train=1_024, num_test=0, max_rows=9_999).train
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_train": 1}, "1 training rows; a split needs at least 2"),
        ({"num_train": 200}, "leave none to test of 200 rows"),
        ({"num_train": 101, "num_test": 100}, "101 training and 100 test rows are more than the 200 there are"),
        ({"num_train": 150, "num_test": 50, "positive_ratio": 0.9}, "180 positive rows needed of 100"),
        ({"num_train": 150, "num_test": 50, "positive_ratio": 0.1}, "180 negative rows needed of 100"),
        ({"num_train": 10, "num_test": 9, "positive_ratio": 0.95}, "all of 10 training rows would be positive"),
        ({"num_train": 10, "num_test": 9, "positive_ratio": 0.0}, "all of 10 training rows would be negative"),
        ({"num_train": 10, "num_test": 1}, "all of 1 test rows would be positive"),
        ({"num_train": 10, "positive_ratio": 1.5}, "a positive ratio of 1.5; expected 0 to 1"),
        ({"num_train": 10, "seed": -1}, "seed -1; expected a whole number from 0 to 4294967295"),
        ({"num_train": 10, "max_rows": 0}, "max_rows 0; expected a positive number"),
        ({"num_train": 10, "max_rows": 10, "num_test": 1}, "10 training and 1 test rows are more than the 10"),
    ],
)
def test_splits_that_a_task_has_no_rows_for(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_rows(_labels(100, 100), **given)


def test_the_package_refuses_the_same_total(monkeypatch: pytest.MonkeyPatch) -> None:
    data = own("utils_data")
    labels = _labels(100, 100)
    rows = np.arange(200)
    monkeypatch.setattr(data, "get_xyvals", lambda *_, MAX_AMT, **__: (rows[:MAX_AMT], labels[:MAX_AMT]))
    for num_train, num_test in ((100, 100), (101, 100), (101, 99), (102, 99), (120, 99), (150, 50), (151, 50)):
        why_not = shortage(labels, num_train=num_train, num_test=num_test)
        try:
            train, _, test, _ = data.get_xy_traintest_specify(num_train, "t", "h", "m", "nowhere", num_test=num_test)
        except ValueError:
            assert why_not is not None, (num_train, num_test)
        else:
            split = split_rows(labels, num_train=num_train, num_test=num_test)
            np.testing.assert_array_equal(split.train, train)
            np.testing.assert_array_equal(split.test, test)
