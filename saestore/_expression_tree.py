"""The tree that an expression becomes: tests of columns, and conditions that are tests with words for messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "text", "truth", "label"]
Level = Literal["sample", "position"]


@dataclass(frozen=True)
class Column:
    """One value of each sample or position.

    array : the stored array; empty where the values are computed
    part : which of the array's columns, None where it has one axis
    """

    name: str
    kind: Kind
    level: Level
    array: str = ""
    part: int | None = None


@dataclass(frozen=True)
class Constant:
    """A number, text, or True or False."""

    value: int | float | str | bool

    @property
    def kind(self) -> Kind:
        """What it can be compared with."""
        if isinstance(self.value, str):
            return "text"
        return "truth" if isinstance(self.value, bool) else "number"


@dataclass(frozen=True)
class Arithmetic:
    """Two numbers and + - * / or %."""

    operator: str
    left: Test
    right: Test
    kind: Kind = "number"


@dataclass(frozen=True)
class Comparison:
    """Two values and one of == != < <= > >=."""

    operator: str
    left: Test
    right: Test
    kind: Kind = "truth"


@dataclass(frozen=True)
class OneOf:
    """A value and a list of constants that it may be equal to."""

    value: Test
    choices: tuple[int | float | str | bool, ...]
    kind: Kind = "truth"


@dataclass(frozen=True)
class Not:
    """The opposite; of a label that it is 0, so that unlabelled is neither."""

    part: Test
    kind: Kind = "truth"


@dataclass(frozen=True)
class Every:
    """Parts joined by `and`."""

    parts: tuple[Test, ...]
    kind: Kind = "truth"


@dataclass(frozen=True)
class Either:
    """Parts joined by `or`."""

    parts: tuple[Test, ...]
    kind: Kind = "truth"


Test = Column | Constant | Arithmetic | Comparison | OneOf | Not | Every | Either


@dataclass(frozen=True)
class Condition:
    """What rows must meet.

    words : how to name it in a message
    """

    words: str
    test: Test

    @property
    def level(self) -> Level:
        """`sample` if it is the same for all positions of a sample."""
        return "position" if any(column.level == "position" for column in columns_of(self.test)) else "sample"


def columns_of(test: Test) -> Iterator[Column]:
    """Yield the columns that a test reads."""
    match test:
        case Column():
            yield test
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            yield from columns_of(left)
            yield from columns_of(right)
        case OneOf(part, _) | Not(part):
            yield from columns_of(part)
        case Every(parts) | Either(parts):
            for part in parts:
                yield from columns_of(part)
