"""Labels from boxes in images: a patch that a box of a concept covers has the concept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saestore.errors import InputError
from saestore.kernels.areas import box_areas, shared_areas, snapped
from saestore.labelling.blocks import Block, Found
from saestore.labelling.entries import read_entries
from saestore.labelling.source import Needs, Whole, check_fraction, check_samples, file_digest


class Boxes:
    """A table with the columns sample, concept, x0, y0, x1 and y1, in pixels of the original image.

    A patch is 1 when one box covers more than `fraction` of its own box; what lies outside the image covers nothing.

    Raises
    ------
    MissingError, InputError
        The table cannot be read, or a box is not one.
    """

    kind = "boxes"
    needs: Needs | None = "box"
    of_every_row = False

    def __init__(self, path: Path, fraction: float = 0.0) -> None:
        self.path = path
        self.fraction = check_fraction(fraction)
        self._entries = read_entries(path, ["x0", "y0", "x1", "y1"])
        boxes = np.stack([self._entries.numbers(name) for name in ("x0", "y0", "x1", "y1")], axis=1)
        wrong = np.flatnonzero((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
        if wrong.size:
            told = ", ".join(f"{edge:g}" for edge in boxes[wrong[0]])
            raise InputError(f"{path}: row {wrong[0]}: the box {told} is empty; expected x0 < x1 and y0 < y1")
        self._boxes = snapped(boxes)

    @property
    def concept_names(self) -> tuple[str, ...]:
        """In the order of their first rows."""
        return self._entries.concept_names

    def settings(self) -> dict[str, Any]:
        """Return the fraction."""
        return {"fraction": self.fraction}

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return file_digest([self.path])

    def check(self, whole: Whole) -> None:
        """Refuse samples that do not exist."""
        check_samples(self.path, self._entries.rows_of, whole)

    def label(self, block: Block) -> Found:
        """Label the patches of some images."""
        assert block.boxes is not None
        found = Found.nothing(block, len(self.concept_names))
        for place, sample in enumerate(block.ids):
            entries = self._entries.rows_of.get(sample)
            if entries is None:
                continue
            rows = block.rows(place)
            patches = snapped(block.boxes[rows])
            least = self.fraction * box_areas(patches)
            for entry in entries:
                concept = self._entries.concept[entry]
                found.named[place, concept] = True
                found.labels[rows, concept] |= shared_areas(patches, self._boxes[entry]) > least
        return found
