"""Labels from lists of rows: the numbers are those of the row axis, over all parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marked_lake import KEY, add_texts, text_lake
from small_lake import lake_files

from saestore.errors import ConflictError, InputError, MissingError
from saestore.labels import Labels, write_labels
from saestore.lake import Lake
from saestore.verbs import label

TEXTS = ("It rains.", "", "Sun, and wind.", "Snow")


@pytest.mark.parametrize("cuts", [(), (1, 3)])
def test_rows_are_counted_over_all_parts(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, cuts=cuts, concepts={"sun": [1, 1, 1, 1]})
    n, rng = sum(map(len, tokens)), np.random.default_rng(0)
    lists = {"wind": rng.integers(0, n, 7).tolist(), "sun": [n - 1, 0], "none": []}
    torch.save(lists, tmp_path / "gt.pt")
    result = label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    labels = lake.labels("d")
    assert labels.concept_names == ("wind", "sun", "none")
    for name, rows in lists.items():
        assert np.flatnonzero(labels.concept(name)).tolist() == sorted(set(rows))
        assert set(labels.concept(name).tolist()) <= {0, 1}  # the lists speak of every row
    sample = np.repeat(np.arange(4), [len(of_text) for of_text in tokens])
    for count in result.concepts:
        own = np.unique(lists[count.concept]).astype(int)
        expected = (len(own), n - len(own), 0, len(set(sample[own].tolist())))
        assert (count.yes, count.no, count.unlabelled, count.samples) == expected


def test_a_tensor_of_rows_is_a_list_too(tmp_path: Path) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS)
    torch.save({"a": torch.tensor([3, 1]), "b": (2,)}, tmp_path / "gt.pt")
    label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    assert np.argwhere(Labels.open(lake.storage, KEY).read()).tolist() == [[1, 0], [2, 1], [3, 0]]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return text_lake(str(tmp_path / "lake"), TEXTS, tokens=[[(0, 9)], [], [(0, 3), (3, 14)], [(0, 4)]])[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [0], "b": [1, 4]}, "concept 'b' has row 4, and the positions of dataset 'd' are rows 0 to 3"),
        ({"a": [-1, 2]}, "concept 'a' has row -1"),
        ({"a": [0.5]}, "concept 'a' holds a list of something else than row numbers"),
        ({"a": [True]}, "concept 'a' holds a list of something else than row numbers"),
        ({"a": [[0, 1]]}, "concept 'a' holds a list of something else than row numbers"),
        ({"a": [[0], [1, 2]]}, "concept 'a' holds a list of something else than row numbers"),
        ({"a": "12"}, "concept 'a' holds a str of something else than row numbers"),
        ({1: [0]}, "holds a dict; expected a mapping of concepts"),
        ([0, 1], "holds a list; expected a mapping of concepts"),
        ({}, "holds nothing; expected a mapping of concepts"),
    ],
)
def test_lists_of_other_rows(lake: Lake, tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "gt.pt")
    with pytest.raises(InputError, match=message) as raised:
        label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    assert str(tmp_path / "gt.pt") in str(raised.value)


class Strange:
    """What must not be unpickled."""


def test_files_that_are_no_lists(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    torch.save({"a": Strange()}, tmp_path / "gt.pt")
    with pytest.raises(InputError, match=r"holds Python objects \(.*Strange\), and reading those can run code"):
        label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    (tmp_path / "gt.pt").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"gt\.pt"):
        label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)


GROWN = [[(0, 9)], [], [(0, 3), (3, 14)], [(0, 4)]]


@pytest.fixture
def grown(tmp_path: Path) -> Lake:
    """Rows 0 to 2 are labelled from `gt.pt`, rows 3 and 4 were appended afterwards."""
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS[:3], tokens=GROWN[:3])
    torch.save({"wet": [0], "sun": [1, 2]}, tmp_path / "gt.pt")
    label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    add_texts(lake, [*TEXTS[:3], "Rain"], [*GROWN[:3], [(0, 2), (2, 4)]], {}, 1, 3, 4)
    return lake


def test_a_file_of_the_rows_before_says_nothing_of_appended_ones(grown: Lake, tmp_path: Path) -> None:
    before = lake_files(tmp_path / "lake")
    told = (
        r"gt\.pt has labelled rows 0 to 2 of data/d/m/labels/concepts before the dataset grew, and would deny all "
        r"concepts in rows 3 to 4; give the file of all rows"
    )
    with pytest.raises(InputError, match=told) as raised:
        label(grown, "d", gt=tmp_path / "gt.pt", quiet=True)
    assert "\n" not in str(raised.value)
    assert lake_files(tmp_path / "lake") == before
    torch.save({"wet": [0, 3], "sun": [1, 2, 4]}, tmp_path / "all.pt")
    assert label(grown, "d", gt=tmp_path / "all.pt", quiet=True).labelled_rows == 2
    assert grown.labels("d").read().tolist() == [[1, 0], [0, 1], [0, 1], [1, 0], [0, 1]]
    assert label(grown, "d", gt=tmp_path / "all.pt", quiet=True).labelled_rows == 0
    with pytest.raises(ConflictError, match=r"gt\.pt and all\.pt, .* rows 3 to 4 .* differ at row 3 in concept 'wet'"):
        label(grown, "d", gt=tmp_path / "gt.pt", quiet=True)


def test_a_file_of_all_rows_must_agree_with_what_is_labelled(grown: Lake, tmp_path: Path) -> None:
    before = lake_files(tmp_path / "lake")
    torch.save({"wet": [0, 3], "sun": [1]}, tmp_path / "all.pt")
    told = r"all\.pt and gt\.pt, from which rows 0 to 2 of .* differ at row 2 in concept 'sun'; .* another --name"
    with pytest.raises(ConflictError, match=told):
        label(grown, "d", gt=tmp_path / "all.pt", quiet=True)
    assert lake_files(tmp_path / "lake") == before
    assert label(grown, "d", gt=tmp_path / "all.pt", name="other", quiet=True).labelled_rows == 5


def test_labelling_all_parts_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS, tokens=GROWN, cuts=(2,))
    torch.save({"a": [0, 3]}, tmp_path / "gt.pt")
    with monkeypatch.context() as patched:
        patched.setattr("saestore.labelling.writer.write_labels", stopping_after_one())
        with pytest.raises(KeyboardInterrupt):
            label(lake, "d", gt=tmp_path / "gt.pt", quiet=True)
    assert label(lake, "d", gt=tmp_path / "gt.pt", quiet=True).labelled_rows == 3
    assert lake.labels("d").read().ravel().tolist() == [1, 0, 0, 1]


def stopping_after_one() -> Any:
    calls = iter([write_labels])

    def write(*given: Any) -> Any:
        try:
            return next(calls)(*given)
        except StopIteration:
            raise KeyboardInterrupt from None

    return write
