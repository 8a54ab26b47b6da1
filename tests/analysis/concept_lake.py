"""A lake with interleaved splits, labelled positions, codes, postings and activations, all known."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saestore.codes import Codes
from saestore.indexing.writer import index
from saestore.labels import write_labels
from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from tests.built_lake import top_k, write_activations, write_codes

CONCEPTS = ("shape::cube", "red", "rare")
KEY = CodesKey("d", "m", "layer_3", "s", "token")


@dataclass(frozen=True, repr=False)
class ConceptLake:
    """What was written, dense."""

    lake: Lake
    split: NDArray[np.str_]
    offsets: NDArray[np.int64]
    special: NDArray[np.bool_]
    samples: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    dense: NDArray[np.float32]
    activations: NDArray[np.float32]

    @property
    def codes(self) -> Codes:
        return Codes.open(self.lake.storage, KEY)

    @property
    def sample_of(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.split)), np.diff(self.offsets))

    def rows_of(self, split: str) -> NDArray[np.bool_]:
        """Rows of a split without special tokens."""
        inside: NDArray[np.bool_] = (self.split[self.sample_of] == split) & ~self.special
        return inside


def build(
    url: str,
    *,
    n: int = 40,
    d_sae: int = 24,
    seed: int = 0,
    cuts: tuple[int, ...] = (),
    labelled: bool = True,
    absent: str = "cal",
) -> ConceptLake:
    """Make the lake; the last concept has no position in one split."""
    rng = np.random.default_rng(seed)
    lake = Lake.create(url)
    split = np.array([("train", "cal", "test", "cal", "test")[place % 5] for place in range(n)])
    rng.shuffle(split)
    lengths = rng.integers(1, 9, n)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    rows = int(offsets[-1])
    sample_of = np.repeat(np.arange(n), lengths)
    special = np.zeros(rows, bool)
    special[offsets[:-1]] = True
    labels = (rng.random((rows, 3)) < (0.12, 0.2, 0.05)).astype(np.uint8)
    labels[(split[sample_of] == absent), 2] = 0
    labels[rng.random((rows, 3)) < 0.05] = 255
    samples = np.zeros((n, 3), np.uint8)
    np.maximum.at(samples, sample_of, labels == 1)
    samples[rng.random((n, 3)) < 0.05] = 255
    dense = rng.choice([0, 0, 0, 0.5, 1.25, 2], (rows, d_sae)).astype(np.float32)
    dense[labels[:, 0] == 1, 3] += 4  # a unit that knows the first concept
    dense[:, 5] = 0
    codes = top_k(dense, 12)
    activations = rng.integers(-16, 17, (rows, 6)).astype(np.float32) / 8
    activations[labels[:, 0] == 1, 0] += 4
    for part, (first, last) in enumerate(pairwise([0, *cuts, n])):
        own, mine = slice(int(offsets[first]), int(offsets[last])), slice(first, last)
        table = SampleTable(
            ids=[f"s{place}" for place in range(first, last)],
            kind="text",
            contents=[f"Text {place}" for place in range(first, last)],
            split=split[mine].tolist(),
            concept_names=CONCEPTS,
            concepts=samples[mine],
        )
        write_samples(lake.storage, "d", table, part)
        model = ModelKey("d", "m", part)
        write_positions(
            lake.storage,
            model,
            offsets=offsets[first : last + 1] - offsets[first],
            arrays={"special": special[own]},
            digest=f"{part}",
            attributes={},
        )
        write_codes(lake.storage, KEY.at(part), codes[own], shard_rows=64, chunk_rows=16)
        write_activations(lake.storage, KEY.activations.at(part), activations[own], "float32", nonfinite=0)
        if labelled:
            write_labels(lake.storage, model, "concepts", labels[own], CONCEPTS, {})
    index(lake.storage, [KEY], quiet=True)
    return ConceptLake(lake, split, offsets, special, samples, labels, codes.dense, activations)
