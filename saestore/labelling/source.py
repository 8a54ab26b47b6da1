"""What every source of labels is, and what a file's names must be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from saestore._nearest import nearest
from saestore.errors import InputError, MissingError
from saestore.labelling.blocks import Block, Found

Needs = Literal["char_start", "box"]


@dataclass(frozen=True)
class Whole:
    """The dataset that is labelled, all parts of it.

    ids : place of each sample by its id
    n_rows : positions of the model
    """

    dataset: str
    ids: Mapping[str, int]
    n_rows: int


class LabelSource(Protocol):
    """A file, or a folder, that says at which positions concepts are.

    kind : name of the form, such as `spans`
    path : the file or folder
    concept_names : the concepts it speaks of
    needs : what positions must have; None where any will do
    of_every_row : whether it speaks of each row there is by its number, and so of none that is appended later
    """

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def concept_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def needs(self) -> Needs | None: ...  # noqa: D102
    @property
    def of_every_row(self) -> bool: ...  # noqa: D102

    def settings(self) -> dict[str, Any]:
        """Return what beside the file's content decides the labels, as JSON values."""
        ...

    def digest(self) -> str:
        """Return a sha256 of all that is read."""
        ...

    def check(self, whole: Whole) -> None:
        """Refuse samples and rows that the dataset does not have.

        Raises
        ------
        MissingError, InputError
            The first of them is named.
        """
        ...

    def label(self, block: Block) -> Found:
        """Label the positions of some samples."""
        ...


def check_samples(path: Path, named: Iterable[str], whole: Whole) -> None:
    """Refuse labels for samples that do not exist (MissingError)."""
    for sample in named:
        if sample not in whole.ids:
            known = nearest(sample, list(whole.ids), "samples")
            raise MissingError(f"{path}: dataset {whole.dataset!r} has no sample {sample!r}; {known}; name one of them")


def check_fraction(fraction: float) -> float:
    """Return the part of a patch that must be covered if it is one."""
    if not 0 <= fraction < 1:
        raise InputError(f"fraction is {fraction}; give the part of a patch that must be covered, from 0 to below 1")
    return fraction


def file_digest(files: Sequence[Path]) -> str:
    """Return the sha256 of the contents of files.

    Raises
    ------
    MissingError, InputError
        One does not exist, or cannot be read.
    """
    hashed = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                hashed.update(hashlib.file_digest(stream, "sha256").digest())
        except FileNotFoundError:
            raise MissingError(f"{file}: no such file; check the path") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    return hashed.hexdigest()
