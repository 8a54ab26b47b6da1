"""The order of names that people expect: 5_x before 41_x."""

from __future__ import annotations

import re


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a key that sorts numbers inside of names by size.

    Examples
    --------
    >>> sorted(["41_x", "5_x", "x"], key=natural)
    ['5_x', '41_x', 'x']
    """
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return tuple((False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts)
