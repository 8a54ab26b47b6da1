from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore.errors import InputError
from saestore.extraction.batches import batches, windows

LENGTHS = st.lists(st.integers(0, 60), max_size=80)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 20))
def test_windows_cover_in_order_and_are_as_long_as_the_limits_allow(lengths, tokens, samples):
    cut = windows(lengths, tokens=tokens, samples=samples)
    assert [i for start, stop in cut for i in range(start, stop)] == list(range(len(lengths)))
    for start, stop in cut:
        assert stop - start <= samples
        assert sum(lengths[start:stop]) <= tokens or stop - start == 1
        if stop < len(lengths):
            assert stop - start == samples or sum(lengths[start : stop + 1]) > tokens


@given(LENGTHS, st.integers(1, 100), st.integers(1, 20), st.lists(st.integers(0, 60), max_size=20))
def test_windows_before_an_appended_sample_stay_the_same(lengths, tokens, samples, more):
    before = windows(lengths, tokens=tokens, samples=samples)
    after = windows(lengths + more, tokens=tokens, samples=samples)
    assert after[: max(0, len(before) - 1)] == before[:-1]  # only the last window may grow


@given(LENGTHS, st.integers(1, 200))
def test_batches_hold_every_sample_once_within_the_budget(lengths, padded_tokens):
    groups = batches(lengths, padded_tokens=padded_tokens)
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat, reverse=True)
    for group in groups:
        assert group.dtype == np.int64
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= max(padded_tokens, len(group))


def test_equal_lengths_keep_their_order():
    assert [group.tolist() for group in batches([3, 5, 3, 5, 3], padded_tokens=10)] == [[1, 3], [0, 2, 4]]


def test_batches_of_like_length_waste_little():
    lengths = np.random.default_rng(0).integers(5, 200, 1000)
    groups = batches(lengths, padded_tokens=4096)
    padded = sum(len(group) * lengths[group].max() for group in groups)
    assert padded < 1.05 * lengths.sum()


@pytest.mark.parametrize("wrong", [[[1, 2]], [3, -1]])
def test_wrong_lengths_are_refused(wrong):
    with pytest.raises(InputError, match="one non-negative number per sample"):
        batches(wrong, padded_tokens=10)


def test_limits_below_one_are_refused():
    with pytest.raises(InputError, match="padded_tokens is 0"):
        batches([1], padded_tokens=0)
    with pytest.raises(InputError, match="at least 1"):
        windows([1], tokens=0)
