"""Memory budgets: reading them as people write them, and refusing what exceeds them."""

from __future__ import annotations

import ctypes
import math
import re
import sys

import psutil

from saestore.errors import BudgetError, InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)
_FREE_SHARE = 0.6


def parse_memory(text: str | int | None) -> int:
    """Return a memory budget in bytes.

    Parameters
    ----------
    text : str, int or None
        `4GiB`, `500 MB` (read as powers of 1024), bytes, or None for 60 % of the memory that is free now.

    Raises
    ------
    InputError
        The text is not a size.
    """
    if text is None:
        return int(psutil.virtual_memory().available * _FREE_SHARE)
    if isinstance(text, str):
        found = _SIZE.fullmatch(text)
        if found is None:
            raise InputError(f"memory {text!r} is not a size; write it like 4GiB or 500MiB")
        size = float(found[1]) * _UNITS[found[2].upper()]
    else:
        size = float(text)
    budget = int(size) if math.isfinite(size) else 0
    if budget <= 0:
        raise InputError(f"memory {text!r} is not a size above zero; write it like 4GiB or 500MiB")
    return budget


def require_memory(needed: int, *, budget: int, what: str, remedy: str) -> None:
    """Refuse work that needs more memory than the budget.

    Raises
    ------
    BudgetError
        `needed` exceeds `budget`; the message names both.
    """
    if needed > budget:
        raise BudgetError(f"{what} needs {readable_bytes(needed)}, the budget is {readable_bytes(budget)}; {remedy}")


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it for itself (glibc does)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def readable_bytes(count: float) -> str:
    """Return a number of bytes as people read it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
