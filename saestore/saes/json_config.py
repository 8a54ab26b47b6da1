"""JSON configurations that other tools write beside their weights: errors name the file and the field."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, TypeVar

from saestore.errors import InputError, MissingError

Value = TypeVar("Value", str, int, float, bool)


def read_json_config(path: Path, tool: str) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
    tool : str
        Who writes such a file, for the errors.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is not a JSON object.
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist; expected the configuration that {tool} writes")
    return parse_json_config(path.read_bytes(), path, tool)


def parse_json_config(text: bytes, path: Path, tool: str) -> dict[str, Any]:
    """Read a JSON object from a part of a file; errors as `read_json_config`."""
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); expected the configuration that {tool} writes") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected the JSON object that {tool} writes")
    return content


def config_value(config: dict[str, Any], name: str, kind: type[Value], path: Path) -> Value:
    """Return a field, by its name with dots (``trainer.dict_size``); InputError if it is not there or no `kind`.

    A whole number is also a float. Neither NaN nor infinity is a number.
    """
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if found is None:
        raise InputError(f"{path} has no {name}; expected {_WORDS[kind]}")
    is_number = isinstance(found, int) and not isinstance(found, bool)
    if kind is float and is_number:
        found = float(found) if abs(found) <= sys.float_info.max else math.inf
    if not isinstance(found, kind) or (kind is int and not is_number) or found in (math.inf, -math.inf):
        raise InputError(f"{path} says {name}={found!r}; expected {_WORDS[kind]}")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
