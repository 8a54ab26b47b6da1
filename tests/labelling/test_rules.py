"""What labels mean together, against a loop over every sample, row and concept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore.errors import ConflictError, MissingError
from saestore.labelling.blocks import Block, Found, sample_runs
from saestore.labelling.rules import Columns, either, parents_of, settle

NAMES = ("shape::cube", "shape::sphere", "red", "part::leg::hind")
LABELS = st.sampled_from([0, 0, 1, 255])


@pytest.mark.parametrize("a", [0, 1, 255])
@pytest.mark.parametrize("b", [0, 1, 255])
def test_either(a: int, b: int) -> None:
    expected = 1 if 1 in (a, b) else 255 if 255 in (a, b) else 0
    assert either(np.array([a], np.uint8), np.array([b], np.uint8)).tolist() == [expected]


def test_parents() -> None:
    assert parents_of(NAMES) == ("shape", "part::leg", "part")
    assert parents_of(["shape", "shape::cube", "::x", "plain"]) == ()


@given(st.data())
def test_what_no_source_names_is_what_the_sample_table_says(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    n, rows = len(lengths), sum(lengths)
    table_names = data.draw(st.lists(st.sampled_from([*NAMES, "other"]), unique=True))
    source_names = data.draw(st.permutations(NAMES))[: data.draw(st.integers(1, 4))]
    draw = lambda *shape: np.array(  # noqa: E731
        data.draw(st.lists(LABELS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))), np.uint8
    ).reshape(shape)
    table, labels = draw(n, len(table_names)), draw(rows, len(source_names))
    named = draw(n, len(source_names)) == 0
    sample = np.repeat(np.arange(n), lengths)
    labels[~named[sample]] = 0
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    ids = np.array([str(place) for place in range(n)], dtype=object)
    block = Block(ids, ids, table, 0, 0, offsets, None, None, None)
    columns = Columns.new(NAMES, parents=True)
    settled = settle(columns, source_names, Found(labels, named), block, table_names)
    expected = np.zeros((rows, 4), np.uint8)
    against = [set() for _ in NAMES]  # type: ignore[var-annotated]
    for row in range(rows):
        for place, name in enumerate(NAMES):
            by_table = table[sample[row], table_names.index(name)] if name in table_names else None
            if name in source_names and named[sample[row], source_names.index(name)]:
                expected[row, place] = labels[row, source_names.index(name)]
                if expected[row, place] == 1 and by_table == 0:
                    against[place].add(sample[row])
            elif by_table in (1, 255):
                expected[row, place] = 255
    np.testing.assert_array_equal(settled.labels[:, :4], expected)
    assert settled.against.tolist() == [len(samples) for samples in against]
    children = {"shape": (0, 1), "part::leg": (3,), "part": (3,)}
    for place, parent in enumerate(columns.parents, start=4):
        for row in range(rows):
            of = {int(expected[row, child]) for child in children[parent]}
            assert settled.labels[row, place] == (1 if 1 in of else 255 if 255 in of else 0)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=30), st.integers(1, 1000))
def test_runs_of_samples_cover_the_axis_in_order(lengths: list[int], width: int) -> None:
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    runs = list(sample_runs(offsets, width))
    assert [first for first, _ in runs] == [0, *(stop for _, stop in runs[:-1])]
    assert runs[-1][1] == len(lengths)
    for first, stop in runs:
        assert stop == first + 1 or int(offsets[stop] - offsets[first]) * width <= 8 << 20


def test_what_was_appended_has_the_same_concepts() -> None:
    stored = Columns(("shape::cube", "red"), ("shape",))
    assert stored.extended(["red"], parents=True, path="p") is stored
    with pytest.raises(MissingError, match="p has no concept 'rad', nearest of 2 concepts: 'red'; parts of a dataset"):
        stored.extended(["rad"], parents=True, path="p")
    with pytest.raises(ConflictError, match="p is labelled with parents"):
        stored.extended(["red"], parents=False, path="p")
    with pytest.raises(ConflictError, match="p is labelled without parents"):
        Columns(("shape::cube", "red"), ()).extended(["red"], parents=True, path="p")
    plain = Columns(("red",), ())
    assert plain.extended(["red"], parents=True, path="p") is plain
