"""Labels from lists of words: made from the texts themselves, not by people who read them.

They say where words stand, and are as good a truth about a concept as the list is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saestore._yaml_lines import YamlFile, read_yaml
from saestore.errors import InputError
from saestore.labelling.blocks import Block, Found
from saestore.labelling.source import Needs, Whole, file_digest
from saestore.labelling.spans import mark


class Words:
    """A YAML file that gives each concept a list of words; a phrase of several words has any space between them.

    Case does not count. A word is whole where no letter, digit or underscore stands beside it.

    Raises
    ------
    MissingError, InputError
        The file cannot be read, or a list is not one of texts.
    """

    kind = "words"
    needs: Needs | None = "char_start"
    of_every_row = False

    def __init__(self, path: Path) -> None:
        self.path = path
        file = read_yaml(path)
        if not file.content:
            raise InputError(f"{path}: the file is empty; expected concepts, each with a list of words")
        self._patterns = {_name(file, name): _pattern(_words(file, name)) for name in file.content}

    @property
    def concept_names(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._patterns)

    def settings(self) -> dict[str, Any]:
        """Return nothing: the file says all."""
        return {}

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return file_digest([self.path])

    def check(self, whole: Whole) -> None:
        """Do nothing: no sample is named."""

    def label(self, block: Block) -> Found:
        """Label the tokens of some texts."""
        found = Found.nothing(block, len(self._patterns))
        for place, text in enumerate(block.contents):
            for concept, pattern in enumerate(self._patterns.values()):
                for match in pattern.finditer(text):
                    found.named[place, concept] = True
                    mark(found.labels, block, place, *match.span(1), concept)
        return found


def _name(file: YamlFile, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise file.error([name], f"the concept is {name!r}, not a text; put it in quotes")
    return name


def _words(file: YamlFile, name: str) -> list[str]:
    words = file.content[name]
    if not isinstance(words, list) or not words:
        raise file.error([name], f"expected a list of words, got {'nothing' if words is None else repr(words)[:60]}")
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise file.error([name, place], f"{word!r} is not a word; put it in quotes")
    return words


def _pattern(words: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds every place where one of some words begins, and there the longest of them."""
    alternatives = sorted({r"\s+".join(map(re.escape, word.split())) for word in words}, key=len, reverse=True)
    # A lookahead takes no characters, so that words that overlap are all found.
    return re.compile(rf"(?<!\w)(?=((?:{'|'.join(alternatives)})(?!\w)))", re.IGNORECASE)
