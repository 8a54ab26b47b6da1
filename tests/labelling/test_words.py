"""Labels from lists of words, against a comparison at every place of every text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marked_lake import text_lake

from saestore.errors import InputError, MissingError
from saestore.verbs import label


def is_inside_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def found_by_hand(text: str, phrase: str) -> list[tuple[int, int]]:
    """Whole words at every place of the text; the words of a phrase may have any spaces between them."""
    words, found = phrase.lower().split(), []
    for start in range(len(text)):
        place, fits = start, True
        for number, word in enumerate(words):
            if number:
                gap = place
                while place < len(text) and text[place].isspace():
                    place += 1
                fits &= place > gap
            fits &= text[place : place + len(word)].lower() == word
            place += len(word)
        before, after = text[start - 1 : start] if start else "", text[place : place + 1]
        if fits and not is_inside_a_word(before or " ") and not is_inside_a_word(after or " "):
            found.append((start, place))
    return found


PIECES = st.sampled_from(["rain", "Rain", "ha", "ha ha", "new", "York", "new york", " ", "\n", ".", "s", "_", "C++"])
PHRASES = ["rain", "ha ha", "new", "new york", "york Rain", "C++", "ha ha ha"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, min_size=1, max_size=12), st.sets(st.sampled_from(PHRASES), min_size=1))
def test_whole_words_wherever_they_stand(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], phrases: set[str]
) -> None:
    folder, text = tmp_path_factory.mktemp("words"), "".join(pieces)
    lake, tokens = text_lake(str(folder / "lake"), [text, "rain"])
    (folder / "words.yaml").write_text(yaml.safe_dump({"weather": sorted(phrases)}))
    result = label(lake, "d", words=folder / "words.yaml", quiet=True)
    expected = []
    for of_text, content in zip(tokens, (text, "rain"), strict=True):
        spans = [span for phrase in phrases for span in found_by_hand(content, phrase)]
        marked = {character for start, end in spans for character in range(start, end)}
        expected += [int(any(character in marked for character in range(*token))) for token in of_text]
    assert lake.labels("d").concept("weather").tolist() == expected
    assert result.concepts[0].yes == sum(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("- rain\n", "words.yaml"),
        ("weather: rain\n", ":1: weather: expected a list of words, got 'rain'"),
        ("weather: []\n", ":1: weather: expected a list of words"),
        ("a: [x]\nweather: [rain, no]\n", ":2: weather.1: False is not a word; put it in quotes"),
        ("weather: [' ']\n", ":1: weather.0: ' ' is not a word"),
        ("yes: [rain]\n", ":1: True: the concept is True, not a text; put it in quotes"),
        ("a: [x]\na: [y]\n", "words.yaml:2"),
        ("a: [x\n", "words.yaml:2"),
    ],
)
def test_files_that_are_no_lists_of_words(tmp_path: Path, content: str, message: str) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), ["It rains."])
    (tmp_path / "words.yaml").write_text(content)
    with pytest.raises(InputError) as raised:
        label(lake, "d", words=tmp_path / "words.yaml", quiet=True)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    lake, _ = text_lake(str(tmp_path / "lake"), ["It rains."])
    with pytest.raises(MissingError, match="no such file"):
        label(lake, "d", words=tmp_path / "none.yaml", quiet=True)
