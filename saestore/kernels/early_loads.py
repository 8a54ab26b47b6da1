"""Asking for memory before it is needed, for numba: what is read later is then on its way while other work is done.

Entries of rows that are far apart come from memory, not from a cache, and a loop that waits for each is three times
as slow as one that names them a few rows ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

__all__ = ["ask_for"]

# Typed so that callers are not asked for the typing context, which numba passes itself.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic


@_intrinsic
def ask_for(_context: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an element of a flat array loaded; nothing waits for it, and no index is wrong.

    In compiled code only.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.gep(
            context.make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]]
        )
        function = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        declared = builder.module.declare_intrinsic("llvm.prefetch", (byte,), function)
        to_read, in_all_caches, not_code = word(0), word(3), word(1)
        builder.call(declared, [builder.bitcast(address, byte), to_read, in_all_caches, not_code])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
