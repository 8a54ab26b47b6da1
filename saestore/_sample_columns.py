"""What the columns of a sample table mean: which hold the samples, ids and labels, and what concepts labels become."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from saestore._table_files import Columns, is_missing, typed
from saestore.errors import InputError, MissingError

UNLABELLED = 255
TEXT_NAMES = ("text", "prompt", "sentence", "content")
IMAGE_NAMES = ("image", "image_path")
ID_NAMES = ("id", "sample_id")
LABEL_NAMES = ("label", "target")
# Whole numbers with more distinct values than this are a measurement (a year, a count), not classes.
MAX_NUMERIC_CLASSES = 10
MAX_CLASSES = 1000


ContentKind = Literal["text", "image", "text_path"]


def content_column(
    columns: Columns, *, text: str | None, image: str | None, text_path: str | None
) -> tuple[ContentKind, str]:
    """The column that holds the samples, and what it holds."""
    given: list[tuple[ContentKind, str]] = []
    for how, name in (("text", text), ("image", image), ("text_path", text_path)):
        if name is not None:
            column_named(columns, name, ())
            given.append((how, name))  # type: ignore[arg-type]
    if len(given) > 1:
        raise InputError(f"{' and '.join(how for how, _ in given)} exclude each other; give one of them")
    if given:
        return given[0]
    texts, images = column_named(columns, None, TEXT_NAMES), column_named(columns, None, IMAGE_NAMES)
    if texts is not None and images is not None:
        raise InputError(f"both {texts!r} and {images!r} could be the samples; say text= or image=")
    if texts is not None:
        return "text", texts
    if images is not None:
        return "image", images
    if "text_path" in columns:
        return "text_path", "text_path"
    if len(columns) == 1:
        return "text", next(iter(columns))
    raise MissingError(f"no column named {', '.join(TEXT_NAMES + IMAGE_NAMES)}; name it; {_there_are(columns)}")


def column_named(columns: Iterable[str], name: str | None, defaults: Sequence[str]) -> str | None:
    """The column asked for, else the first default that exists, else None."""
    if name is None:
        return next((default for default in defaults if default in columns), None)
    if name not in columns:
        raise MissingError(f"no column {name!r}; {_there_are(columns)}")
    return name


def _there_are(columns: Iterable[str]) -> str:
    names = list(columns)
    return f"columns are: {', '.join(names[:20])}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def label_columns(free: list[str], labels: Sequence[str] | None, columns: Columns) -> list[str]:
    """The label columns, in the order of the patterns, then of the table."""
    if labels is None:
        return [name for name in LABEL_NAMES if name in free]
    if isinstance(labels, str):
        labels = [labels]
    chosen: dict[str, None] = {}
    for pattern in labels:
        # An exact name comes first: a column may be called `is_it?`.
        found = [pattern] if pattern in columns else [c for c in free if fnmatch.fnmatchcase(c, pattern)]
        if not found:
            raise MissingError(f"no label column matches {pattern!r}; {_there_are(free)}")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def column_concepts(name: str, raw: list[Any]) -> tuple[list[str], list[npt.NDArray[np.uint8]], bool]:
    """Concepts of one label column, their labels, and whether they say all that the column says."""
    values = typed(raw)
    missing = np.array([is_missing(value) for value in values], dtype=bool)
    for row, value in enumerate(values):
        if not isinstance(value, (str, bool, int, float, np.number, np.bool_)) and value is not None:
            raise InputError(f"row {row}: label {name!r} is {type(value).__name__}, expected a number, bool or text")
    known = {value for value in set(values) if not is_missing(value)}
    classes = sorted(known, key=lambda value: (isinstance(value, str), value))
    numeric = all(not isinstance(value, str) for value in classes)
    if numeric and set(classes) <= {0, 1}:
        return [name], [_labels(values, missing, 1)], True
    if numeric and (len(classes) > MAX_NUMERIC_CLASSES or any(float(value) % 1 for value in classes)):
        return [], [], False
    if len(classes) > MAX_CLASSES:
        raise InputError(f"label {name!r} has {len(classes)} different texts; expected at most {MAX_CLASSES} classes")
    # Of two classes, the second in sorted order is the positive one, as in the probing benchmark
    # (scikit-learn's LabelEncoder; probes.md 1.4).
    shown = classes[1:] if len(classes) == 2 else classes
    names = [f"{name}={int(value) if numeric else value}" for value in shown]
    return names, [_labels(values, missing, value) for value in shown], False


def _labels(values: list[Any], missing: npt.NDArray[np.bool_], positive: Any) -> npt.NDArray[np.uint8]:
    labels = np.array([value == positive for value in values], dtype=np.uint8)
    labels[missing] = UNLABELLED
    return labels


def content_values(name: str, values: list[Any]) -> list[str]:
    """The texts or paths of a column, unchanged; a missing one is an error."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            got = "missing" if is_missing(value) else f"{type(value).__name__}, expected a text"
            raise InputError(f"row {row}: {name!r} is {got}; correct or remove the row")
    return values


def id_values(name: str, values: list[Any]) -> list[str]:
    """The ids of a column as text; 3.0, which pandas makes of 3 beside a missing value, is '3'."""
    ids = []
    for row, value in enumerate(values):
        if value is None or value == "" or (isinstance(value, float) and value % 1):  # NaN % 1 is NaN, so true
            raise InputError(f"row {row}: id {name!r} is {value!r}; expected a text or whole number")
        ids.append(str(int(value) if isinstance(value, float) else value))
    return ids
