from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saestore._expression_tree import Column, Comparison, Constant
from saestore._expressions import parse
from saestore.errors import InputError, MissingError

COLUMNS = {
    "split": Column("split", "text", "sample", "split"),
    "cube": Column("cube", "label", "sample", "concepts", 0),
    "length": Column("length", "number", "sample", "length"),
    "special": Column("special", "truth", "position", "special"),
    "my col": Column("my col", "number", "sample", "my col"),
    "é": Column("é", "number", "sample", "é"),
    "ﬁ": Column("ﬁ", "number", "sample", "ﬁ"),
    "fi": Column("fi", "number", "sample", "fi"),
}


def named(name: str) -> Column:
    if name not in COLUMNS:
        raise MissingError(f"no column {name!r}")
    return COLUMNS[name]


def refusal(expression: str) -> str:
    with pytest.raises(InputError) as raised:
        parse(expression, named)
    text = str(raised.value)
    assert text.isprintable()  # so it is one line
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("expression", "character", "marked"),
    [
        ("split == ", 9, "split ==>>><<<"),
        ("length = 3", 8, "length >>>=<<< 3"),
        ("length > 3 special", 12, "length > 3 >>>s<<<pecial"),
        ("length > 3)", 11, "length > 3>>>)<<<"),
        ("(length > 3", 1, ">>>(<<<length > 3"),
        ("`my col` == ", 12, "`my col` ==>>><<<"),
        ("é == 'é' é", 10, "é == 'é' >>>é<<<"),
        ("length > 3 # all", 12, "length > 3 >>>#<<< all"),
        ("`my col > 3", 1, ">>>`<<<my col > 3"),
        ("split == 'a\nb'", 10, "split == >>>'a b'<<<"),
        ("split == '''a\nb'''", 10, "split == >>>'''a b'''<<<"),
    ],
)
def test_syntax_errors_are_marked(expression: str, character: int, marked: str) -> None:
    assert f"at character {character}, marked: {marked};" in refusal(expression)


def test_the_message_of_a_syntax_error() -> None:
    assert refusal("split == ").startswith(
        "expression 'split ==' has a syntax error at character 9, marked: split ==>>><<<; "
    )
    assert "write == to compare" in refusal("length = 3")
    long = "length > 1 and " * 100 + "length >"
    assert f"at character {len(long) + 1}, marked: ..." in refusal(long)


REFUSED = {
    "__import__('os').system('touch {path}')": "not allowed, Call,",
    "open('{path}', 'w') == 1": "not allowed, Call,",
    "length.__class__ == 1": "not allowed, Attribute,",
    "split.__class__.__mro__[1].__subclasses__() == 1": "not allowed, Call,",
    "split[0] == 'a'": "not allowed, Subscript,",
    "(lambda: 1) == 1": "not allowed, Lambda,",
    "f'{{split}}' == 'a'": "not allowed, JoinedStr,",
    "[x for x in (1, 2)] == 1": "not allowed, ListComp,",
    "length in (x for x in (1, 2))": "without a list",
    "length in [x for x in (1, 2)]": "without a list",
    "length in {{1, 2}}": "without a list",
    "length in length": "without a list",
    "split in 'train'": "without a list",
    "length in [length]": "other things than constants",
    "length in [[1]]": "not allowed, List,",
    "length in [*[1]]": "not allowed, Starred,",
    "length in [1, open('{path}', 'w')]": "not allowed, Call,",
    "(length := 3) == 3": "not allowed, NamedExpr,",
    "1 if special else 0": "not allowed, IfExp,",
    "{{'a': 1}} == 1": "not allowed, Dict,",
    "(yield) == 1": "not allowed, Yield,",
    "(await length) == 1": "not allowed, Await,",
    "length ** 9 ** 9 == 1": "not allowed, BinOp,",
    "length // 2 == 1": "not allowed, BinOp,",
    "length @ 2 == 1": "not allowed, BinOp,",
    "1 << length == 1": "not allowed, BinOp,",
    "length ^ 2 == 1": "not allowed, BinOp,",
    "+length == 1": "not allowed, UnaryOp,",
    "(length > 1) & special": "write and, or, not",
    "(length > 1) | special": "write and, or, not",
    "~special": "write and, or, not",
    "length is 1": "write == or !=",
    "length is not None": "write == or !=",
    "length == None": "a constant of another type",
    "length == ...": "a constant of another type",
    "length == 1j": "a constant of another type",
    "split == b'train'": "a constant of another type",
    "length == 9223372036854775808": "more than 63 bits",
    "'a' * 1000000000 == split": "calculates with a text",
    "split + 'a' == 'a'": "calculates with a text",
    "-split == 'a'": "calculates with a text",
    "special + 1 == 1": "calculates with true or false",
    "cube + cube == 2": "calculates with a label",
    "length": "a number where a condition must stand",
    "split": "a text where a condition must stand",
    "'a'": "a text where a condition must stand",
    "not length": "a number where a condition must stand",
    "special and length + 1": "a number where a condition must stand",
    "split == 3": "compares 'split', a text, with 3, a number",
    "length > '3'": "compares 'length', a number, with '3', a text",
    "cube == 'yes'": "compares 'cube', a label (0, 1 or 255), with 'yes', a text",
    "special == 'True'": "compares 'special', true or false, with 'True', a text",
    "split in ['a', 1]": "compares 'split', a text, with 1, a number",
    "length in ['a']": "compares 'length', a number, with 'a', a text",
    "1 < length < 'a'": "compares 'length', a number, with 'a', a text",
    "import os": "syntax error",
    "length > 1; special": "syntax error",
    "special) or (special": "syntax error",
    "": "is empty",
    " \n ": "is empty",
    "split == '\ud800'": "surrogate",
    "special \0": "zero byte",
}


@pytest.mark.parametrize("expression", REFUSED)
def test_nothing_else_is_let_through(expression: str, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    assert REFUSED[expression] in refusal(expression.format(path=victim) if "{" in expression else expression)
    assert not victim.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "not " * 2_000 + "special",
        "-" * 5_000 + "length == 1",
        "(" * 4_000 + "special" + ")" * 4_000,
        "length" + " + 1" * 2_000 + " > 1",
        "special and (" * 150 + "special" + ")" * 150,
        "not " * 70 + "special",
        "[" * 190 + "]" * 190 + " == 1",
        "length == " + "9" * 5_000,
        "special or " * 1_000,
        "`" * 9_999,
        "'" * 9_999,
        '"\\' * 4_999,
    ],
)
def test_deep_and_long_expressions_are_refused_in_one_line(expression: str) -> None:
    refusal(expression)


def test_an_expression_may_have_ten_thousand_characters() -> None:
    many = " or ".join(["length == 1"] * 666)
    assert len(many) < 10_000
    assert len(parse(many, named)) == 1
    assert "10,001 characters, at most 10,000" in refusal("x" * 10_001)


def test_depth_that_is_allowed_leaves_room_on_the_stack() -> None:
    deep = "not " * 60 + "special"

    def nested(depth: int) -> None:
        if depth:
            nested(depth - 1)
        else:
            assert len(parse(deep, named)) == 1

    nested(sys.getrecursionlimit() // 3)


def test_conditions_joined_by_and_come_apart_with_their_words_and_levels() -> None:
    found = parse("split == 'a' and (length > 3 and (special or cube)) and not (special and cube)", named)
    assert [(condition.words, condition.level) for condition in found] == [
        ("split == 'a'", "sample"),
        ("length > 3", "sample"),
        ("special or cube", "position"),
        ("not (special and cube)", "position"),
    ]


def test_names_are_those_that_are_written() -> None:
    for name in ("é", "ﬁ", "fi"):  # Python would make fi of the ligature
        assert parse(f"'é' == 'é' and {name} == 1", named)[1].test == Comparison("==", COLUMNS[name], Constant(1))
    assert parse("`my col` == 1", named)[0].test == Comparison("==", COLUMNS["my col"], Constant(1))
    with pytest.raises(MissingError, match="no column 'my  col'"):
        parse("`my  col` == 1", named)


SIGNS = ["`my col`", "`", "'", '"', '"""', "\\", "#", "(", ")", "[", "]", ",", "==", "<", "-", "*", "%", ":", ":=", "."]
WORDS = ["and", "or", "not", "in", "is", "if", "lambda", "True", "1", "2.5", "1e999", "'a'", "\x00", *COLUMNS]
PIECES = [*SIGNS, *WORDS, "\n"]


@pytest.mark.filterwarnings("ignore:invalid:SyntaxWarning", "ignore:invalid:DeprecationWarning")
@settings(deadline=None, max_examples=400)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*PIECES, " "]), max_size=25).map("".join)
    | st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)
)
@example("\ufeffspecial")
@example("special\x0c")
@example("'''\\")
@example("1 if")
def test_any_text_is_parsed_or_refused_in_one_line(expression: str) -> None:
    try:
        parse(expression, named)
    except (InputError, MissingError) as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1
