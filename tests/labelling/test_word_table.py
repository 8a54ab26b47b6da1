"""Labels from a table of words, against a loop over every character of every word."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from marked_lake import text_lake

from saestore.errors import InputError, MissingError
from saestore.lake import Lake
from saestore.verbs import label

TEXTS = ("It rains, in\nParis.", "  Sun  and more sun", "No one.", "")


def write_table(folder: Path, numbered: bool, seed: int = 0) -> tuple[Path, dict[str, list[list[int]]]]:
    """Labels of all words but those of the third text, as a file and by concept, text and word."""
    rng, rows = np.random.default_rng(seed), []
    known: dict[str, list[list[int]]] = {"sarcasm": [], "tone": []}
    for number, text in enumerate(TEXTS):
        words = [] if number == 2 else text.split()
        labels = {name: rng.choice([0, 1, 255], size=len(words)).tolist() for name in known}
        for place, word in enumerate(words):
            values = {name: "" if of[place] == 255 else of[place] for name, of in labels.items()}
            key = {"paragraph_id": number + 1} if numbered else {"sample": f"s{number}"}
            rows.append({**key, "word": word.strip(",.").upper(), "year": 1990 + place, **values})
        for name, of in labels.items():
            known[name].append(of)
    path = folder / "word_level_test.csv"
    pd.DataFrame(rows).sample(frac=1, random_state=1).sort_values(
        "paragraph_id" if numbered else "sample", kind="stable"
    ).sort_index().to_csv(path, index=False)
    return path, known


def of_token(text: str, token: tuple[int, int], labels: list[int]) -> int:
    """The label of a token: that of every word that one of its characters is in."""
    found = set()
    for word, value in zip(re.finditer(r"\S+", text), labels, strict=True):
        if set(range(*token)) & set(range(*word.span())):
            found.add(value)
    return 1 if 1 in found else 255 if 255 in found else 0


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("cuts", [(), (1, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_have_the_labels_of_their_words(
    tmp_path: Path, numbered: bool, cuts: tuple[int, ...], seed: int
) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), TEXTS, cuts=cuts, concepts={"sarcasm": [1, 0, 1, 0]})
    path, known = write_table(tmp_path, numbered, seed)
    label(lake, "d", word_table=path, quiet=True)
    labels = lake.labels("d")
    assert labels.concept_names == ("sarcasm", "tone")  # not the year
    for name in known:
        expected = []
        for number, of_text in enumerate(tokens):
            if number == 2:  # the table has no words of it, and the sample table says that it is sarcastic
                expected += [255 if name == "sarcasm" else 0] * len(of_text)
            else:
                expected += [of_token(TEXTS[number], token, known[name][number]) for token in of_text]
        assert labels.concept(name).tolist() == expected


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return text_lake(str(tmp_path / "lake"), ["One two.", "Three"])[0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("paragraph_id,c\n1,0\n", InputError, "sample 's0' has 1 rows, the first is row 0, and its text has 2 words"),
        ("paragraph_id,c\n1,0\n1,1\n3,1\n", MissingError, "row 2: paragraph_id is 3, and dataset 'd' has 2 samples"),
        ("paragraph_id,c\n0,0\n", InputError, "row 0: paragraph_id is '0'; expected the number of a sample, from 1"),
        ("paragraph_id,c\nx,0\n", InputError, "row 0: paragraph_id is 'x'"),
        ("sample,c\nnobody,0\n", MissingError, "no sample 'nobody'"),
        ("paragraph,c\n1,0\n", MissingError, "no column 'sample' or 'paragraph_id'"),
        ("paragraph_id,c\n1,0.5\n1,2\n", InputError, "no column holds nothing but 0 and 1"),
        ("paragraph_id,word,c\n1,one,0\n1,too,1\n", InputError, r"row 1: the word is 'too', and 'two\.' in the text"),
    ],
)
def test_tables_of_other_texts(lake: Lake, tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    (tmp_path / "words.csv").write_text(content)
    with pytest.raises(error, match=message):
        label(lake, "d", word_table=tmp_path / "words.csv", quiet=True)
