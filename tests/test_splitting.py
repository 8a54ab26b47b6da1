"""Splits that are drawn: disjoint, of the parts asked for, and never moved by other samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore.errors import InputError
from saestore.samples import SPLITS, SampleTable
from saestore.splitting import with_splits

PARTS = {"train": 0.6, "cal": 0.2, "test": 0.2}
texts = st.lists(st.text(min_size=1), min_size=1, max_size=40)


def table_of(contents: list[str], kind: str = "text", first: int = 0) -> SampleTable:
    ids = [str(first + place) for place in range(len(contents))]
    return SampleTable(ids=ids, kind=kind, contents=contents)  # type: ignore[arg-type]


@given(texts, texts)
def test_a_sample_keeps_its_split_when_the_table_grows_shrinks_or_is_shuffled(
    first: list[str], more: list[str]
) -> None:
    alone = with_splits(table_of(first), PARTS)
    grown = with_splits(table_of(first + more), PARTS)
    assert grown.split[: len(first)] == alone.split
    backwards = with_splits(table_of([*more, *first][::-1], first=7), PARTS)
    assert list(backwards.split)[::-1][len(more) :] == list(alone.split)


@given(texts)
def test_equal_texts_are_in_one_split_and_every_sample_is_in_one(contents: list[str]) -> None:
    split = with_splits(table_of(contents * 2), PARTS).split
    assert len(split) == 2 * len(contents)
    assert set(split) <= set(SPLITS)
    assert len({(text, own) for text, own in zip(contents * 2, split, strict=True)}) == len(set(contents))


def test_images_are_split_by_id_so_that_their_folder_may_move() -> None:
    here = SampleTable(ids=("a", "b", "c", "d"), kind="image", contents=("/x/a", "/x/b", "/x/c", "/x/d"))
    there = SampleTable(ids=("a", "b", "c", "d"), kind="image", contents=("a", "b", "c", "d"))
    assert with_splits(here, PARTS).split == with_splits(there, PARTS).split


def test_the_parts_are_those_asked_for() -> None:
    n = 20_000
    split = np.array(with_splits(table_of([f"text {place}" for place in range(n)]), PARTS).split)
    for name, part in PARTS.items():
        deviation = math.sqrt(n * part * (1 - part))
        assert abs((split == name).sum() - n * part) < 4 * deviation


def test_a_split_of_nothing_gets_nothing() -> None:
    split = with_splits(
        table_of([f"text {place}" for place in range(500)]), {"train": 0.5, "cal": 0.0, "test": 0.5}
    ).split
    assert set(split) == {"train", "test"}


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"train": 0.6, "cal": 0.2}, "train=0.6 cal=0.2 do not add up to 1"),
        ({"train": 1.5, "test": -0.5}, "do not add up"),
        ({}, "nothing do not add up"),
        ({"train": 0.5, "val": 0.5}, "split 'val' is unknown; choose from train, cal, test"),
        ({"train": float("nan"), "test": 0.5}, "do not add up"),
    ],
)
def test_wrong_parts_are_refused(parts: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        with_splits(table_of(["a"]), parts)


def test_a_table_with_splits_or_without_texts_is_refused() -> None:
    with pytest.raises(InputError, match="splits already"):
        with_splits(SampleTable(ids=("a",), kind="text", contents=("x",), split=("test",)), PARTS)
    with pytest.raises(InputError, match="texts are not there"):
        with_splits(table_of(["", ""]), PARTS)
