"""Plain text tables and JSON: what commands print on stdout.

Columns are as wide as their content, so that lines can be cut, sorted and searched by other programs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return lines of aligned columns; numbers to the right.

    Examples
    --------
    >>> print(table(["name", "rows"], [["a", 1000], ["bcd", 5]]))
    name   rows
    a     1,000
    bcd       5
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(header), *(len(row[column]) for row in cells), 0) for column, header in enumerate(headers)]
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [list(headers), *cells]
    )


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: dataclasses as mappings, paths as text, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def json_text(value: Any) -> str:
    """Return a value as JSON text."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else " ".join(str(value).split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
