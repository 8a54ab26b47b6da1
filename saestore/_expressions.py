"""Expressions that choose rows, such as ``split == "test" and not special``: from text to a checked tree.

The text is parsed with Python's own grammar, of which a short list of nodes is let through; nothing of it is ever
run. What the nodes mean is in `_expression_values`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from saestore._expression_tree import (
    Arithmetic,
    Column,
    Comparison,
    Condition,
    Constant,
    Either,
    Every,
    Not,
    OneOf,
    Test,
)
from saestore.errors import InputError

_MOST_CHARACTERS = 10_000
_DEEPEST = 64
_SHOWN = 40
_WORDS = {"number": "a number", "text": "a text", "truth": "true or false", "label": "a label (0, 1 or 255)"}
_COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%"}
_ALLOWED = "use comparisons, and, or, not, in, + - * / % and constants"
# Texts, names in backticks, and what only looks different outside of both.
_LEXEMES = re.compile(
    r"""(?P<text>\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|`(?P<name>[^`]+)`|(?P<space>[\t\r\n\f\v])|(?P<comment>\#)""",
    re.DOTALL,
)


def parse(expression: str, column_named: Callable[[str], Column]) -> list[Condition]:
    """Return the conditions that an expression joins by `and`.

    Parameters
    ----------
    expression : str
        Python's comparisons, `and`, `or`, `not`, `in` and `not in` with lists of constants, + - * / % and constants.
        Names are columns; those that are no Python names stand in backticks.
    column_named : callable
        Returns the column of a name, or raises MissingError.

    Raises
    ------
    InputError
        Syntax that Python or this function does not allow, with the place marked; a comparison of text with numbers.
    """
    if not isinstance(expression, str):
        raise InputError(f"an expression is a text, {type(expression).__name__} was given")
    return _Parser(expression, column_named).conditions()


class _Parser:
    def __init__(self, expression: str, column_named: Callable[[str], Column]) -> None:
        if len(expression) > _MOST_CHARACTERS:
            raise InputError(
                f"the expression has {len(expression):,} characters, at most {_MOST_CHARACTERS:,} are read; give "
                "samples= for many ids"
            )
        # Python refuses spaces before an expression.
        self.text = expression.strip()
        self.column_named = column_named
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in self.text):
            raise InputError("the expression holds a zero byte or half of a surrogate pair; remove it")
        if not self.text:
            raise InputError("the expression is empty; leave it out to choose all rows")
        self.quoted: dict[int, str] = {}

    def conditions(self) -> list[Condition]:
        # As many characters as before, so that places stay.
        source = _LEXEMES.sub(self._plain, self.text)
        self.encoded = source.encode()
        try:
            tree = ast.parse(source, mode="eval").body
        except SyntaxError as error:
            first = error.offset - 1 if error.offset else len(self.text)
            first = min(first, len(self.text))
            hint = "write == to compare" if self.text[first : first + 1] == "=" else _ALLOWED
            raise self._refused("has a syntax error", first, first + 1, hint) from None
        except (RecursionError, MemoryError):
            raise self._too_deep() from None
        self._check_depth(tree)
        return [Condition(_shown(self._source(node)), self._truth(node)) for node in _conjuncts(tree)]

    def _plain(self, found: re.Match[str]) -> str:
        first, stop = found.span()
        if found["comment"]:
            raise self._refused("has a comment", first, stop, "remove it, or put a text in quotes")
        if found["text"] and re.search(r"[\r\n]", found["text"]):
            raise self._refused("has a line break in a text", first, stop, r"write it as \n")
        if found["name"]:
            self.quoted[first] = found["name"]
            return "_" * (stop - first)
        return found["text"] or " "

    def _check_depth(self, tree: ast.expr) -> None:
        level: list[ast.AST] = [tree]
        for _ in range(_DEEPEST):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
            if not level:
                return
        raise self._too_deep()

    # ------------------------------------------------------------------ nodes

    def _truth(self, node: ast.expr) -> Test:
        test = self._test(node)
        if test.kind in ("number", "text"):
            raise self._refused(
                f"has {_WORDS[test.kind]} where a condition must stand", *self._span(node), "compare it"
            )
        return test

    def _number(self, node: ast.expr) -> Test:
        test = self._test(node)
        if test.kind != "number":
            raise self._refused(f"calculates with {_WORDS[test.kind]}", *self._span(node), "compare it instead")
        return test

    def _test(self, node: ast.expr) -> Test:
        match node:
            case ast.Name():
                first, stop = self._span(node)
                return self.column_named(self.quoted.get(first, self.text[first:stop]))
            case ast.Constant():
                return self._constant(node)
            case ast.BoolOp():
                parts = tuple(self._truth(value) for value in node.values)
                return Every(parts) if isinstance(node.op, ast.And) else Either(parts)
            case ast.UnaryOp(ast.Not()):
                return Not(self._truth(node.operand))
            case ast.UnaryOp(ast.USub()):
                number = self._number(node.operand)
                if isinstance(number, Constant):
                    assert not isinstance(number.value, str)
                    return Constant(-number.value)
                return Arithmetic("-", Constant(0), number)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return Arithmetic(_ARITHMETIC[type(node.op)], self._number(node.left), self._number(node.right))
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert()):
                raise self._refused("has & | or ~", *self._span(node), "write and, or, not")
            case ast.Compare():
                return self._comparisons(node)
        raise self._refused(f"has syntax that is not allowed, {type(node).__name__},", *self._span(node), _ALLOWED)

    def _comparisons(self, node: ast.Compare) -> Test:
        operands = [node.left, *node.comparators]
        parts: list[Test] = []
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            if isinstance(operator, (ast.Is, ast.IsNot)):
                raise self._refused("has `is`", *self._span(node), "write == or !=")
            if isinstance(operator, (ast.In, ast.NotIn)):
                value, choices = self._test(left), self._choices(right)
                for choice in choices:
                    self._check_comparable(node, value, Constant(choice))
                found: Test = OneOf(value, choices)
                parts.append(found if isinstance(operator, ast.In) else Not(found))
                continue
            compared = Comparison(_COMPARISONS[type(operator)], self._test(left), self._test(right))
            self._check_comparable(node, compared.left, compared.right)
            parts.append(compared)
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _choices(self, node: ast.expr) -> tuple[int | float | str | bool, ...]:
        if not isinstance(node, (ast.List, ast.Tuple)):
            raise self._refused("has `in` without a list", *self._span(node), "write in [1, 2] with constants")
        choices = []
        for element in node.elts:
            constant = self._test(element)
            if not isinstance(constant, Constant):
                raise self._refused(
                    "has a list of other things than constants", *self._span(element), "compare with =="
                )
            choices.append(constant.value)
        return tuple(choices)

    def _constant(self, node: ast.Constant) -> Constant:
        value = node.value
        if not isinstance(value, (bool, int, float, str)):
            raise self._refused("has a constant of another type", *self._span(node), "use numbers, texts, True, False")
        if isinstance(value, int) and value >= 2**63:
            raise self._refused("has a number of more than 63 bits", *self._span(node), "use smaller ones")
        return Constant(value)

    def _check_comparable(self, node: ast.Compare, left: Test, right: Test) -> None:
        if (left.kind == "text") != (right.kind == "text"):
            what = f"compares {_named(left)} with {_named(right)}"
            raise self._refused(what, *self._span(node), "compare texts with texts in quotes, numbers with numbers")

    # ----------------------------------------------------------------- places

    def _span(self, node: ast.expr) -> tuple[int, int]:
        """Return first and last character, which Python counts in bytes."""
        assert node.end_col_offset is not None
        first, stop = (len(self.encoded[:offset].decode()) for offset in (node.col_offset, node.end_col_offset))
        return first, stop

    def _source(self, node: ast.expr) -> str:
        first, stop = self._span(node)
        return self.text[first:stop]

    def _refused(self, what: str, first: int, stop: int, remedy: str) -> InputError:
        before, marked, after = self.text[:first], self.text[first:stop], self.text[stop:]
        cut = before[-_SHOWN:] if len(before) <= _SHOWN else "..." + before[-_SHOWN:]
        context = f"{_line(cut)}>>>{_shown(marked)}<<<{_shown(after)}"
        return InputError(
            f"expression '{_shown(self.text)}' {what} at character {first + 1}, marked: {context}; {remedy}"
        )

    def _too_deep(self) -> InputError:
        return InputError(
            f"expression '{_shown(self.text)}' is nested more than {_DEEPEST} deep; give parts of it to where() one "
            "after the other"
        )


def _conjuncts(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for value in node.values:
            yield from _conjuncts(value)
    else:
        yield node


def _named(test: Test) -> str:
    if isinstance(test, Constant):
        return f"{_shown(repr(test.value))}, {_WORDS[test.kind]}"
    return f"{_shown(test.name)!r}, {_WORDS[test.kind]}," if isinstance(test, Column) else _WORDS[test.kind]


def _shown(text: str) -> str:
    return _line(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
