"""What expressions mean: the truth of a test at rows, given the values of columns there.

Numbers are int64 or float64, texts are Python's. A concept's label is a truth value in three states: `cube` is true
where it is 1, `not cube` where it is 0, and an unlabelled sample (255) is neither, under `and`, `or` and further `not`
too (De Morgan's laws hold). Comparisons see the number: ``cube == 255`` finds the unlabelled, ``cube != 1`` has them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._expression_tree import Arithmetic, Column, Comparison, Constant, Either, Every, Not, OneOf, Test
from saestore.errors import InputError

Read = Callable[[Column], NDArray[Any]]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CALCULATE: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "%": np.mod,
}


def truth(test: Test, read: Read, negated: bool = False) -> NDArray[np.bool_]:
    """Return where a test is true, or with `negated` where it is false: (n,), or () if it reads no column.

    Raises
    ------
    InputError
        Whole numbers come out of a calculation that need more than 63 bits.
    """
    match test:
        case Not(part):
            return truth(part, read, not negated)
        case Every(parts) | Either(parts):
            joined = np.logical_and if isinstance(test, Every) != negated else np.logical_or
            found = truth(parts[0], read, negated)
            for part in parts[1:]:
                found = joined(found, truth(part, read, negated))
            return found
        case Column(kind="label"):
            return np.asarray(read(test) == (0 if negated else 1))
    found = _values(test, read)
    return np.logical_not(found) if negated else found


def _values(test: Test, read: Read) -> NDArray[Any]:
    match test:
        case Column():
            return read(test)
        case Constant(value):
            return np.asarray(value, dtype=object if isinstance(value, str) else None)
        case Arithmetic(sign, left, right):
            return _calculated(sign, _values(left, read), _values(right, read))
        case Comparison(sign, left, right):
            return np.asarray(_COMPARE[sign](_values(left, read), _values(right, read)))
        case OneOf(value, choices):
            return _one_of(_values(value, read), choices, is_text=value.kind == "text")
    return truth(test, read)


def _one_of(values: NDArray[Any], choices: tuple[int | float | str | bool, ...], *, is_text: bool) -> NDArray[np.bool_]:
    if is_text:  # numpy compares objects with each choice in turn
        wanted = frozenset(choices)
        return np.fromiter((value in wanted for value in values.ravel()), bool, values.size).reshape(values.shape)
    numbers = np.asarray([choice + 0 for choice in choices if not isinstance(choice, str)])
    return np.asarray(np.isin(values + 0, numbers))  # + 0: True is 1


def _calculated(sign: str, left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return Python's result, NaN or infinite where Python refuses to divide by zero."""
    calculate = _CALCULATE[sign]
    with np.errstate(all="ignore"):
        if sign == "%" and not np.all(right):
            right = right.astype(np.float64)
        found = np.asarray(calculate(left, right))
        if found.dtype.kind == "i" and sign in "+-*":
            size = np.abs(calculate(left.astype(np.float64), right.astype(np.float64)))
            if size.max(initial=0) >= 2.0**63:
                raise InputError(
                    f"the expression calculates numbers up to {size.max():.1e} with {sign}, whole numbers go to "
                    "9.2e+18; multiply by 1.0 first"
                )
    return found
