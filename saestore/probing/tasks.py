"""Tasks to probe: a label of two values for each sample of a dataset, and texts that occur twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore._nearest import nearest
from saestore._sample_columns import LABEL_NAMES
from saestore._table_files import is_missing
from saestore.errors import InputError
from saestore.tables import UNLABELLED, Samples

_SHOWN_VALUES = 5
_SHOWN_LENGTH = 40


@dataclass(frozen=True, eq=False)
class Task:
    """A question with two answers about each sample of a dataset.

    Parameters
    ----------
    name : str
        Of the dataset.
    label : str
        The column of the sample table, or the concept, that answers it.
    labels : (n_samples,) int8
        The place of a sample's value among the sorted two, so 1 is the second; the rule of the sparse-probing benchmark
        (scikit-learn's `LabelEncoder`). Read-only.
    classes : (str, str)
        The values themselves, as text: that of 0 and that of 1. Those of a concept are 0 and 1.

    Raises
    ------
    InputError
        Labels are not 0 and 1, or only one of them.

    Examples
    --------
    >>> Task("animals", "kind", np.array([0, 1, 1]), ("cat", "dog")).n_positive
    2
    """

    name: str
    label: str
    labels: NDArray[np.int8]
    classes: tuple[str, str]

    def __post_init__(self) -> None:
        given = np.asarray(self.labels)
        known = np.unique(given).tolist()
        if given.ndim != 1 or known != [0, 1]:
            found = f"shape {given.shape} and values {known[:_SHOWN_VALUES]}"
            raise InputError(f"labels of task {self.name!r} have {found}; expected (n,), and both 0 and 1")
        labels = given.astype(np.int8)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_positive(self) -> int:
        """How many samples are 1."""
        return int(np.count_nonzero(self.labels))


@dataclass(frozen=True)
class Refusal:
    """A dataset that is no task, and why."""

    name: str
    reason: str


def read_task(samples: Samples, label: str | None = None) -> Task | Refusal:
    """Make a task of a stored dataset.

    Parameters
    ----------
    samples : Samples
    label : str, optional
        A column of two values (`target`) or a concept (`target=yes`, or `target` where its values were 0 and 1).
        Default: `label` or `target`, whichever there is, else the only concept.

    Returns
    -------
    Task or Refusal
        A refusal where the label does not exist, has no value for some sample, or not exactly two values.
    """
    known = list(dict.fromkeys((*samples.column_names, *samples.concept_names)))
    chosen = label if label is not None else _default_label(samples, known)
    if chosen is None:
        listed = nearest(LABEL_NAMES[-1], known, "columns and concepts")
        reason = f"no label column named {' or '.join(LABEL_NAMES)}; {listed}; name the one to probe"
        return Refusal(samples.dataset, reason)
    if chosen not in known:
        reason = f"no column or concept {chosen!r}; {nearest(chosen, known, 'columns and concepts')}"
        return Refusal(samples.dataset, reason)
    if chosen in samples.column_names:
        values = samples.column(chosen)
        unlabelled = [is_missing(value) for value in values.tolist()]
    else:
        values = samples.concept(chosen)
        unlabelled = (values == UNLABELLED).tolist()
    return make_task(samples.dataset, chosen, values, np.array(unlabelled, dtype=bool))


def _default_label(samples: Samples, known: Sequence[str]) -> str | None:
    named = next((name for name in LABEL_NAMES if name in known), None)
    return samples.concept_names[0] if named is None and len(samples.concept_names) == 1 else named


def make_task(name: str, label: str, values: NDArray[Any], unlabelled: NDArray[np.bool_]) -> Task | Refusal:
    """Make a task of the values of one column.

    Parameters
    ----------
    name, label : str
        Of the dataset and of the column.
    values : (n,) bool, numbers, or str objects
    unlabelled : (n,) bool
        Samples without a value.

    Returns
    -------
    Task or Refusal
        See `read_task`.
    """
    missing = int(np.count_nonzero(unlabelled))
    if missing:
        first = int(np.flatnonzero(unlabelled)[0])
        reason = f"{missing:,} of {len(values):,} samples have no {label!r}, the first is number {first}"
        return Refusal(name, f"{reason}; a task needs a value for each")
    found = sorted(set(values.tolist()))
    if len(found) != 2:
        shown = ", ".join(_shown(value) for value in found[:_SHOWN_VALUES]) + (
            ", ..." if len(found) > _SHOWN_VALUES else ""
        )
        if len(found) < 2:
            return Refusal(name, f"{label!r} has one class only ({shown or 'no samples'}); a task needs two")
        return Refusal(name, f"{label!r} is not binary: {len(found):,} values ({shown}); probe a concept of one value")
    labels = np.asarray(values == found[1], dtype=np.int8)
    return Task(name, label, labels, (str(found[0]), str(found[1])))


def _shown(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 3] + "..."


def text_numbers(contents: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """Return a number for each text (or path of an image), equal for equal texts, (n,) int64; exact, letter by letter.

    Examples
    --------
    >>> text_numbers(["Rain.", "Snow.", "Rain."]).tolist()
    [0, 1, 0]
    """
    return np.asarray(pd.factorize(np.asarray(contents, dtype=object))[0], dtype=np.int64)


def count_shared(train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    """Return how many test rows have a text that a training row has too.

    Parameters
    ----------
    train, test : (n,) int64
        Numbers of their texts, of one call of `text_numbers`.
    """
    return int(np.count_nonzero(np.isin(test, train)))
