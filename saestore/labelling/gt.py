"""Labels from lists of row numbers: the form of `gt_patches_per_concept_*.pt`."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import DependencyError, InputError, MissingError
from saestore.labelling.blocks import Block, Found
from saestore.labelling.source import Needs, Whole, file_digest


class RowLists:
    """A PyTorch file of a mapping: for each concept a list of the rows that have it, over the whole dataset.

    The rows must be those of the lake: token or patch i of all samples, one after the other. The file speaks of every
    row, so that one in no list is without the concept, whatever the sample table says.

    Raises
    ------
    MissingError, InputError, DependencyError
        The file cannot be read, or is something else.
    """

    kind = "gt"
    needs: Needs | None = None
    of_every_row = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = {name: _rows(path, name, values) for name, values in _content(path).items()}

    @property
    def concept_names(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._rows)

    def settings(self) -> dict[str, Any]:
        """Return nothing: the file says all."""
        return {}

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return file_digest([self.path])

    def check(self, whole: Whole) -> None:
        """Refuse rows that do not exist."""
        for name, rows in self._rows.items():
            if rows.size and (rows[0] < 0 or rows[-1] >= whole.n_rows):
                outside = rows[0] if rows[0] < 0 else rows[-1]
                raise InputError(
                    f"{self.path}: concept {name!r} has row {outside}, and the positions of dataset {whole.dataset!r} "
                    f"are rows 0 to {whole.n_rows - 1}; give the file of the same tokens or patches"
                )

    def label(self, block: Block) -> Found:
        """Label the rows of some samples."""
        found = Found.nothing(block, len(self._rows))
        found.named[:] = True
        for concept, rows in enumerate(self._rows.values()):
            first, stop = np.searchsorted(rows, [block.first_row, block.first_row + block.n_rows])
            found.labels[rows[first:stop] - block.first_row, concept] = 1
        return found


def _content(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise DependencyError(f"reading {path} needs torch; pip install 'saestore[torch]'") from None
    if not path.is_file():
        raise MissingError(f"{path}: no such file; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({culprit.group(1)})" if culprit else ""
        raise InputError(
            f"{path} holds Python objects{what}, and reading those can run code; save lists of numbers alone"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} cannot be read by torch.load ({reason}); copy or save it again") from None
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        got = f"a {type(content).__name__}" if content else "nothing"
        raise InputError(f"{path} holds {got}; expected a mapping of concepts to lists of row numbers")
    return content


def _rows(path: Path, name: str, values: Any) -> NDArray[np.int64]:
    """Return the rows of one concept, ascending."""
    try:
        rows = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, tensors of other devices
        rows = np.array(None)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InputError(
            f"{path}: concept {name!r} holds a {type(values).__name__} of something else than row numbers; expected a "
            "list of these"
        )
    return np.unique(rows.astype(np.int64))
