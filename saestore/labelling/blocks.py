"""Consecutive samples with their positions: what a source of labels looks at, and what it finds there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.tables import Positions, Samples

_BLOCK_ROWS = 1 << 17
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Block:
    """Some consecutive samples of one part of a dataset.

    ids, contents : (n_samples,) str objects; contents are texts, or paths of images
    concepts : (n_samples, n_table_concepts) uint8, the labels in the sample table
    first_sample : place of the first sample in the dataset, over all parts
    first_row : number of the first row on the dataset's row axis, over all parts
    offsets : (n_samples + 1,) int64, first row of each sample, counted from the block's first
    starts, ends : (n_rows,) int32, characters of tokens; None where the positions have none
    boxes : (n_rows, 4) float32, x0 y0 x1 y1 of patches in pixels of the image; None where the positions have none
    """

    ids: NDArray[Any]
    contents: NDArray[Any]
    concepts: NDArray[np.uint8]
    first_sample: int
    first_row: int
    offsets: NDArray[np.int64]
    starts: NDArray[np.int32] | None
    ends: NDArray[np.int32] | None
    boxes: NDArray[np.float32] | None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.offsets[-1])

    def rows(self, sample: int) -> slice:
        """Return the rows of one of the samples."""
        return slice(int(self.offsets[sample]), int(self.offsets[sample + 1]))


@dataclass(frozen=True)
class Found:
    """What a source says of a block.

    labels : (n_rows, n_concepts) uint8: 1, 0 or 255; 0 where the source names nothing
    named : (n_samples, n_concepts) bool, whether the source speaks of this concept in this sample
    """

    labels: NDArray[np.uint8]
    named: NDArray[np.bool_]

    @classmethod
    def nothing(cls, block: Block, n_concepts: int) -> Found:
        """Return what is filled in."""
        return cls(
            np.zeros((block.n_rows, n_concepts), dtype=np.uint8), np.zeros((len(block.ids), n_concepts), dtype=np.bool_)
        )


def sample_runs(offsets: NDArray[np.int64], width: int) -> Iterator[tuple[int, int]]:
    """Cut an axis into runs of whole samples, so that labels of `width` concepts of each take little memory."""
    n, rows = len(offsets) - 1, max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, width)))
    first = 0
    while first < n:
        stop = max(first + 1, int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1)
        yield first, min(stop, n)
        first = stop


def part_blocks(
    samples: Samples, positions: Positions, width: int, *, first_sample: int, first_row: int
) -> Iterator[Block]:
    """Read one part of a dataset, some samples at a time.

    Parameters
    ----------
    samples, positions
        Those of the part.
    width : int
        Number of concepts.
    first_sample, first_row : int
        Where the part begins in the dataset.
    """
    offsets = positions.offsets
    has_spans, has_boxes = positions.has("char_start"), positions.has("box")
    for first, stop in sample_runs(offsets, width):
        low, high = int(offsets[first]), int(offsets[stop])
        concepts = (
            samples.group.read("concepts", first, stop)
            if samples.concept_names
            else np.zeros((stop - first, 0), dtype=np.uint8)
        )
        yield Block(
            ids=samples.ids[first:stop],
            contents=samples.contents(first, stop),
            concepts=concepts,
            first_sample=first_sample + first,
            first_row=first_row + low,
            offsets=offsets[first : stop + 1] - low,
            starts=positions.group.read("char_start", low, high) if has_spans else None,
            ends=positions.group.read("char_end", low, high) if has_spans else None,
            boxes=positions.group.read("box", low, high) if has_boxes else None,
        )
