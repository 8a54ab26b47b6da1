"""How earlier code learned thresholds and chose units, where that differs from what is right; only for comparison.

It is asked for by name (`legacy=True`), recorded in what is stored, and never the default. What differs is listed in
docs/concepts.md.

References
----------
The repository BrachioLab/SuperActivators, `utils/unsupervised_utils.py` and `utils/superdetector_inversion_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.truth import ConceptLists

BLOCK_POSITIONS = 100_000
"""Labelled positions that a quantile was taken of at a time."""

LEAST_COSINE = -0.5
"""Cosines up to here were taken for rows that were not computed."""


@dataclass(frozen=True)
class Blocks:
    """Rows with a label cut into blocks, so that each pair of block and concept is a concept of its own.

    lists : as those of the rows, concept c of block b being b * c_all + c
    used : (blocks, concepts) bool, whether a block has a row of the concept
    """

    lists: ConceptLists
    used: NDArray[np.bool_]


def in_blocks(lists: ConceptLists, counted: NDArray[np.bool_], n_concepts: int) -> Blocks:
    """Cut the counted rows that have any concept into blocks, in the order of rows."""
    lengths = np.diff(lists.indptr)
    labelled = counted & (lengths > 0)
    block = np.maximum(0, np.cumsum(labelled) - 1) // BLOCK_POSITIONS
    n_blocks = int(block[-1]) + 1 if len(block) else 1
    row = np.repeat(np.arange(len(lengths)), lengths)
    used = np.zeros((n_blocks, n_concepts), dtype=bool)
    inside = labelled[row]
    used[block[row[inside]], lists.members[inside]] = True
    members = (block[row] * n_concepts + lists.members).astype(np.uint32)
    return Blocks(ConceptLists(lists.indptr, members), used)


def median_of_blocks(
    found: NDArray[np.float32], n_pos: NDArray[np.uint32], used: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Return thresholds and counts of concepts from those of their blocks.

    The threshold is the lower median over the blocks that have a row of the concept, 0 being that of a block in which
    the unit is not active there, and of a concept without any row.

    Parameters
    ----------
    found, n_pos : (m, blocks * concepts + 1, p) and (m, blocks * concepts + 1)
        Of the pairs of block and concept, and of all rows.
    used : (blocks, concepts) bool
    """
    m, _, p = found.shape
    blocks, concepts = used.shape
    each = np.where(np.isinf(found[:, :-1]), np.float32(0), found[:, :-1]).reshape(m, blocks, concepts, p)
    out = np.zeros((m, concepts + 1, p), dtype=np.float32)
    for concept in range(concepts):
        held = np.sort(each[:, used[:, concept], concept], axis=1)
        if held.shape[1]:
            out[:, concept] = held[:, (held.shape[1] - 1) // 2]
    out[:, -1] = np.where(np.isinf(found[:, -1]), np.float32(0), found[:, -1])
    counts = np.concatenate(
        [n_pos[:, :-1].reshape(m, blocks, concepts).sum(axis=1, dtype=np.uint32), n_pos[:, -1:]], axis=1
    )
    return out, counts


def always_yes(
    tp: NDArray[np.int32], fp: NDArray[np.int32], cuts: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    """Let units with a threshold of 0 fire in every sample, in place: `largest value >= 0` is always true."""
    for counts, label in ((tp, 1), (fp, 0)):
        everywhere = np.count_nonzero(labels == label, axis=1).astype(np.int32)
        np.copyto(counts, everywhere[None, :, None], where=cuts <= 0)
