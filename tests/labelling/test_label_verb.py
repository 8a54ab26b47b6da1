"""Labelling a dataset: what is told, what is done twice, what grows, and what was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from marked_lake import KEY, add_texts, text_lake
from small_lake import lake_files

import saestore
from saestore.errors import ConflictError, InputError, MissingError
from saestore.labelling import blocks as labelling_blocks
from saestore.verbs import label, status

TEXTS = ("It rains.", "", "No rain, sun and wind.", "Wind", "Sun and rain and sun.")
CONCEPTS = {"wet::rain": [1, 0, 0, 1, 255], "wind": [0, 0, 1, 255, 0]}
WORDS = "wet::rain: [rain, rains]\nwind: [wind]\nsun: [sun]\n"


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.yaml").write_text(WORDS)
    return tmp_path / "words.yaml"


def expected_labels(tokens: list[list[tuple[int, int]]]) -> np.ndarray:
    """The labels of all tokens: what the words give, and what the sample table says where they give nothing."""
    rows = []
    for place, (text, of_text) in enumerate(zip(TEXTS, tokens, strict=True)):
        columns = []
        for concept, forms in {"wet::rain": ("rains", "rain"), "wind": ("wind",), "sun": ("sun",)}.items():
            marked: set[int] = set()
            for form in forms:
                at = text.lower().find(form)
                while at >= 0:
                    if not text[at + len(form) : at + len(form) + 1].isalnum():
                        marked |= set(range(at, at + len(form)))
                    at = text.lower().find(form, at + 1)
            table = CONCEPTS.get(concept, [0] * len(TEXTS))[place]
            unnamed = 255 if table else 0
            columns.append([int(bool(marked & set(range(*t)))) if marked else unnamed for t in of_text])
        rows += list(zip(*columns, strict=True)) if of_text else []
    return np.array(rows, np.uint8)


def test_labels_and_what_is_told_of_them(tmp_path: Path, words: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, concepts=CONCEPTS)
    said: list[str] = []
    result = saestore.label(lake, "d", words=words, quiet=True, say=said.append)
    labels = lake.labels("d")
    expected = expected_labels(tokens)
    np.testing.assert_array_equal(labels.read(), expected)
    assert (result.path, result.rows, result.labelled_rows) == (
        "data/d/m/labels/concepts",
        len(expected),
        len(expected),
    )
    sample = np.repeat(np.arange(len(TEXTS)), [len(of_text) for of_text in tokens])
    for column, count in enumerate(result.concepts):
        values = expected[:, column]
        assert count.concept == labels.concept_names[column]
        assert (count.yes, count.no, count.unlabelled) == tuple(int((values == value).sum()) for value in (1, 0, 255))
        assert count.samples == len(np.unique(sample[values == 1]))
    assert said == [
        "data/d/m/labels/concepts: samples with positions of 'wet::rain' that the sample table says to be without: 1",
        "data/d/m/labels/concepts: the sample table has no 'sun'; positions of samples that the file does not name are "
        "0 there",
    ]
    source = labels.group.attributes["source"]
    assert (source["kind"], source["file"], source["parents"]) == ("words", "words.yaml", False)


def test_parents_are_unions(tmp_path: Path) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS, concepts=CONCEPTS)
    (tmp_path / "words.yaml").write_text("wet::rain: [rain]\nwet::snow::sleet: [sun]\n")
    label(lake, "d", words=tmp_path / "words.yaml", parents=True, quiet=True)
    labels = lake.labels("d")
    assert labels.concept_names == ("wet::rain", "wet::snow::sleet", "wet", "wet::snow")
    rain, sleet, wet, snow = labels.read().T.astype(int)
    np.testing.assert_array_equal(snow, sleet)
    union = [1 if 1 in pair else 255 if 255 in pair else 0 for pair in zip(rain, sleet, strict=True)]
    assert wet.tolist() == union
    assert set(union) == {0, 1, 255}


def test_blocks_of_samples_do_not_show(tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling_blocks, "_BLOCK_ROWS", 3)
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, concepts=CONCEPTS, cuts=(2,))
    label(lake, "d", words=words, quiet=True)
    np.testing.assert_array_equal(lake.labels("d").read(), expected_labels(tokens))


def test_a_dataset_that_has_grown(tmp_path: Path, words: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS[:3], concepts=CONCEPTS)
    expected = expected_labels([*tokens, [(0, 0), (0, 4)], [(0, 3), (3, 7), (7, 21)]])
    label(lake, "d", words=words, quiet=True)
    before = lake_files(tmp_path / "lake")
    tokens += [[(0, 0), (0, 4)], [(0, 3), (3, 7), (7, 21)]]
    add_texts(lake, TEXTS, tokens, CONCEPTS, 1, 3, 5)
    assert not status(lake).complete
    result = label(lake, "d", words=words, quiet=True)
    assert (result.labelled_rows, result.rows) == (5, len(expected))
    np.testing.assert_array_equal(lake.labels("d").read(), expected)
    after = lake_files(tmp_path / "lake")
    assert {name: after[name] for name in before} == before
    assert status(lake).complete
    assert label(lake, "d", words=words, quiet=True).labelled_rows == 0


def test_what_was_appended_may_be_labelled_from_a_file_of_its_own(tmp_path: Path, words: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS[:3], concepts=CONCEPTS)
    label(lake, "d", words=words, quiet=True)
    n = len(lake.labels("d"))
    tokens += [[(0, 0), (0, 4)], [(0, 3), (3, 21)]]
    add_texts(lake, TEXTS, tokens, CONCEPTS, 1, 3, 5)
    (tmp_path / "snow.csv").write_text("sample,concept,start,end\ns4,snow,0,3\n")
    with pytest.raises(MissingError, match="labels/concepts has no concept 'snow'"):
        label(lake, "d", spans=tmp_path / "snow.csv", quiet=True)
    (tmp_path / "more.csv").write_text("sample,concept,start,end\ns4,sun,0,3\n")
    said: list[str] = []
    label(lake, "d", spans=tmp_path / "more.csv", quiet=True, say=said.append)
    more = lake.labels("d").read(n)
    assert more.tolist() == [[255, 255, 0], [255, 255, 0], [255, 0, 1], [255, 0, 0]]
    for source in ({"words": words}, {"spans": tmp_path / "more.csv"}):  # each has made a part
        assert label(lake, "d", **source, quiet=True).labelled_rows == 0  # type: ignore[arg-type]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, words: Path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, concepts=CONCEPTS)
    label(lake, "d", words=words, quiet=True)
    before = lake_files(tmp_path / "lake")
    (tmp_path / "lake" / KEY.labels_path("concepts") / "ledger" / "c.0.0.0").unlink()
    other = tmp_path / "other.yaml"
    other.write_text(WORDS.replace("[wind]", "[sun]"))
    with pytest.raises(ConflictError, match="made differently"):
        label(lake, "d", words=other, quiet=True)
    result = label(lake, "d", words=words, quiet=True)
    assert result.labelled_rows == sum(map(len, tokens))
    assert lake_files(tmp_path / "lake") == before


def test_other_labels_need_another_name(tmp_path: Path, words: Path) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS, concepts=CONCEPTS)
    label(lake, "d", words=words, quiet=True)
    other = tmp_path / "other.yaml"
    other.write_text("wind: [sun]\n")
    with pytest.raises(
        ConflictError, match=r"made from another source \(words, words.yaml\); store these labels under"
    ):
        label(lake, "d", words=other, quiet=True)
    with pytest.raises(ConflictError, match="without parents"):
        label(lake, "d", words=words, parents=True, quiet=True)
    label(lake, "d", words=other, name="other", quiet=True)
    assert lake.label_names("d", "m") == ["concepts", "other"]


def test_exactly_one_file(tmp_path: Path, words: Path) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), TEXTS)
    with pytest.raises(InputError, match="no file of labels was given; give one of --spans, --words, --word-table"):
        label(lake, "d")
    with pytest.raises(InputError, match="--words and --gt were given; give one of --words, --gt"):
        label(lake, "d", words=words, gt="x.pt")
    with pytest.raises(InputError, match=r"--fraction 0\.5 is of --boxes and --masks"):
        label(lake, "d", words=words, fraction=0.5)
    with pytest.raises(InputError, match=r"labels name '\.\./x' cannot be used"):
        label(lake, "d", words=words, name="../x")
