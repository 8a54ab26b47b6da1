"""Files of a report, each written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from saestore.errors import InputError


def write_text(path: Path, content: str, *, option: str) -> Path:
    """Write a file in UTF-8, making its folder.

    Parameters
    ----------
    option : str
        What the place was given by, for the message.

    Raises
    ------
    InputError
        It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(content, encoding="utf-8", newline="\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another place with {option}"
        ) from None
    return path
