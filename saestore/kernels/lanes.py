"""A few float64 numbers that compiled code computes with at once: one vector of the processor, for numba.

LLVM makes vectors of loops by itself only where it can prove that arrays do not overlap, which numba's arrays do not
tell. Here the vector is a type of its own, with the operators of a number: ``a + b``, ``a * 2.0``, ``a > b``. Its width
is part of the type, given by the length of the tuple that `of` makes one from, and code without that width serves
every one; a power of two up to 8 suits the processors of today. Products may be fused with the sum that takes them
(one rounding instead of two), where the processor can.

All but `LanesType` and `MaskType` are for use in compiled code only, and know no bounds of arrays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, models, overload, register_model

__all__ = ["LanesType", "MaskType", "bits", "exp", "fabs", "lane", "larger", "load", "of", "smaller", "store", "total"]

# Typed so that callers are not asked for the typing context, which numba passes itself.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic

_DOUBLE, _INT64, _INT32 = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_FUSED = ("contract",)

_LOG2_E = 1 / math.log(2)
# log(2) as the sum of two numbers, of which the first has so few bits that its product with a whole number is exact.
_LOG_2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LOG_2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_LARGEST_EXPONENT = 708.0
_TAYLOR = tuple(1 / math.factorial(power) for power in range(14))


class LanesType(types.Type):
    """The type of ``width`` numbers, float64."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes({width})")


class MaskType(types.Type):
    """The type of ``width`` truth values, which comparing numbers makes."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"LanesMask({width})")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_DOUBLE, fe_type.width))  # type: ignore[no-untyped-call]


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), fe_type.width))  # type: ignore[no-untyped-call]


def _is_lanes(kind: Any) -> bool:
    return isinstance(kind, LanesType)


def _widened(builder: Any, value: Any, width: int) -> Any:
    """Put a number into every lane."""
    undefined = ir.Constant(ir.VectorType(_DOUBLE, width), ir.Undefined)
    first = builder.insert_element(undefined, value, _INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT32, width), [0] * width))


def _pair(x: Any, y: Any) -> tuple[int, Any, Any]:
    """The width of two operands, of which one may be a number, and the types they are taken as."""
    width = x.width if _is_lanes(x) else y.width
    return width, x if _is_lanes(x) else types.float64, y if _is_lanes(y) else types.float64


def _both(builder: Any, signature: Any, arguments: Any, width: int) -> list[Any]:
    return [
        value if _is_lanes(kind) else _widened(builder, value, width)
        for value, kind in zip(arguments, signature.args, strict=True)
    ]


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, width: int) -> Any:
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return builder.bitcast(pointer, ir.VectorType(_DOUBLE, width).as_pointer())


@_intrinsic
def of(_context: Any, numbers: Any) -> Any:
    """Lanes of the numbers of a tuple."""
    width = len(numbers)

    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        value = ir.Constant(ir.VectorType(_DOUBLE, width), ir.Undefined)
        for place in range(width):
            value = builder.insert_element(value, builder.extract_value(arguments[0], place), _INT32(place))
        return value

    return LanesType(width)(types.UniTuple(types.float64, width)), codegen  # type: ignore[no-untyped-call]


@_intrinsic
def load(_context: Any, array: Any, index: Any, like: Any) -> Any:
    """Neighbours of a flat float64 array from an index on, as many as ``like`` has lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], like.width)
        return builder.load(address, align=8)

    return like(array, types.intp, like), codegen


@_intrinsic
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes into a flat float64 array, from an index on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], value.width)
        builder.store(arguments[2], address, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@_intrinsic
def lane(_context: Any, value: Any, place: Any) -> Any:
    """The number in one lane."""

    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], _INT32))

    return types.float64(value, types.int64), codegen


@_intrinsic
def total(_context: Any, value: Any) -> Any:
    """The sum of all lanes, their number a power of two: halves are added to halves."""

    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        rest, width = arguments[0], value.width
        while width > 1:
            width //= 2
            halves = (
                builder.shuffle_vector(rest, rest, ir.Constant(ir.VectorType(_INT32, width), places))
                for places in (list(range(width)), list(range(width, 2 * width)))
            )
            rest = builder.fadd(*halves)
        return builder.extract_element(rest, _INT32(0))

    return types.float64(value), codegen


@_intrinsic
def bits(_context: Any, mask: Any) -> Any:
    """Truth values as the bits of a number, that of lane 0 the lowest."""

    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(mask.width)), _INT64)

    return types.uint64(mask), codegen


def _unary(name: str) -> Any:
    """A function of LLVM of one operand."""

    @_intrinsic
    def call(_context: Any, x: Any) -> Any:
        def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
            kind = ir.VectorType(_DOUBLE, x.width)
            function = ir.FunctionType(kind, [kind])
            declared = builder.module.declare_intrinsic(f"llvm.{name}.v{x.width}f64", (), function)
            return builder.call(declared, arguments)

        return x(x), codegen

    return call


fabs, _rint = _unary("fabs"), _unary("rint")


def _picking(symbol: str) -> Any:
    """The first operand where it compares so with the second, else the second."""

    @_intrinsic
    def pick(_context: Any, x: Any, y: Any) -> Any:
        width, x_kind, y_kind = _pair(x, y)

        def codegen(_c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, second = _both(builder, signature, arguments, width)
            return builder.select(builder.fcmp_ordered(symbol, first, second), first, second)

        return LanesType(width)(x_kind, y_kind), codegen

    return pick


larger, smaller = _picking(">"), _picking("<")


def _define(symbol: Callable[..., Any], result: type, build: Callable[[Any, Any, Any], Any]) -> None:
    """Give an operator its meaning for lanes, of which one operand may be a number."""

    @_intrinsic
    def call(_context: Any, x: Any, y: Any) -> Any:
        width, x_kind, y_kind = _pair(x, y)

        def codegen(_c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, *_both(builder, signature, arguments, width))

        return result(width)(x_kind, y_kind), codegen

    @overload(symbol, inline="always")
    def chosen(x: Any, y: Any) -> Any:
        def implementation(x: Any, y: Any) -> Any:
            return call(x, y)

        return implementation if _is_lanes(x) or _is_lanes(y) else None


_define(operator.add, LanesType, lambda builder, x, y: builder.fadd(x, y, flags=_FUSED))
_define(operator.sub, LanesType, lambda builder, x, y: builder.fsub(x, y, flags=_FUSED))
_define(operator.mul, LanesType, lambda builder, x, y: builder.fmul(x, y, flags=_FUSED))
_define(operator.truediv, LanesType, lambda builder, x, y: builder.fdiv(x, y))
_define(operator.lt, MaskType, lambda builder, x, y: builder.fcmp_ordered("<", x, y))
_define(operator.gt, MaskType, lambda builder, x, y: builder.fcmp_ordered(">", x, y))


@_intrinsic
def _and(_context: Any, x: Any, y: Any) -> Any:
    return x(x, y), lambda _c, builder, _s, arguments: builder.and_(*arguments)


@overload(operator.and_, inline="always")
def _masks_and(x: Any, y: Any) -> Any:
    def implementation(x: Any, y: Any) -> Any:
        return _and(x, y)

    return implementation if isinstance(x, MaskType) and isinstance(y, MaskType) else None


@_intrinsic
def _power_of_two(_context: Any, exponent: Any) -> Any:
    """2 to the power of whole numbers from -1022 to 1023, put together from the bits of a float64."""
    width = exponent.width

    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_INT64, width)
        biased = builder.add(builder.fptosi(arguments[0], kind), ir.Constant(kind, [1023] * width))
        return builder.bitcast(builder.shl(biased, ir.Constant(kind, [52] * width)), ir.VectorType(_DOUBLE, width))

    return exponent(exponent), codegen


@numba.njit(inline="always")
def exp(x: Any) -> Any:
    """Return e to the power of x, to 4 units in the last place; x beyond 708 or -708 counts as that.

    exp(x) = 2^k exp(r) with k = rint(x / log 2), hence |r| <= log(2) / 2, where Taylor's series up to r^13 / 13! is
    exact to rounding. The series is summed in pairs of pairs (Estrin), which leaves fewer steps to wait for.
    """
    x = smaller(larger(x, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
    k = _rint(x * _LOG2_E)
    r = x - k * _LOG_2_HIGH
    r = r - k * _LOG_2_LOW
    r2 = r * r
    r4 = r2 * r2
    low = (_TAYLOR[0] + r * _TAYLOR[1]) + r2 * (_TAYLOR[2] + r * _TAYLOR[3])
    middle = (_TAYLOR[4] + r * _TAYLOR[5]) + r2 * (_TAYLOR[6] + r * _TAYLOR[7])
    high = (_TAYLOR[8] + r * _TAYLOR[9]) + r2 * (_TAYLOR[10] + r * _TAYLOR[11])
    last = _TAYLOR[12] + r * _TAYLOR[13]
    return ((low + r4 * middle) + (r4 * r4) * (high + r4 * last)) * _power_of_two(k)
