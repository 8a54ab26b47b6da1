"""Files for the user, each written whole or not at all: under another name beside its own, and then renamed."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saestore.errors import InputError


@contextmanager
def whole_file(path: Path, *, option: str = "--out") -> Iterator[Path]:
    """Give a name to write a file under, which replaces the file of that path when all went well; makes its folder.

    Parameters
    ----------
    path : Path
        Of the file.
    option : str
        What the place was given by, for the message.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with explained(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(path)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Return a name beside a path that nobody else uses, and that says what it is."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextmanager
def explained(path: Path, *, option: str = "--out") -> Iterator[None]:
    """Turn an error of the system while a path is written into one line for the user (InputError)."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise InputError(f"cannot write {path}: {what}; choose another place with {option}") from None
