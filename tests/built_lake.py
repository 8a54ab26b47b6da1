"""Small lakes with known content, written as the writers write them, and the dense matrices that they must read as."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import create_activations
from saestore.code_rows import code_arrays
from saestore.codes import Codes
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey
from saestore.rows import Grid, RowGroup
from saestore.samples import SampleTable
from saestore.storage import Storage
from saestore.tables import write_positions, write_samples

LENGTHS = (5, 0, 9, 1, 14, 3, 7)
"""Positions of each sample; the second sample is an empty text."""

CUTS = ((), (3, 4))
"""Samples where the parts of a lake begin: one part, and three."""

QUALITY = {"explained_variance": 0.9, "l0": 5.0, "dead_units": 3, "rows": 100}


@dataclass(frozen=True, repr=False)
class KnownCodes:
    """Codes of rows, and the dense matrix that they stand for."""

    indices: NDArray[Any]
    values: NDArray[np.float16]
    l0: NDArray[np.uint32]
    dense: NDArray[np.float32]

    def __getitem__(self, rows: slice) -> KnownCodes:
        return KnownCodes(self.indices[rows], self.values[rows], self.l0[rows], self.dense[rows])


@dataclass(frozen=True, repr=False)
class BuiltLake:
    """A lake with dataset `d`: model `m`, layer `layer_3`, SAE `s`, sample types token and mean."""

    lake: Lake
    table: SampleTable
    offsets: NDArray[np.int64]
    special: NDArray[np.bool_]
    token_id: NDArray[np.uint32]
    tokens: KnownCodes
    means: KnownCodes
    activations: NDArray[np.float32]
    options: Mapping[str, Any] = field(default_factory=dict)
    cuts: Sequence[int] = ()

    @property
    def storage(self) -> Storage:
        return self.lake.storage

    @property
    def sample_of_row(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(LENGTHS)), LENGTHS)

    def codes(self, sample_type: str = "token") -> Codes:
        return Codes.open(self.storage, CodesKey("d", "m", "layer_3", "s", sample_type))

    def write_codes(self, key: CodesKey, known: KnownCodes, *, dtype: str = "float16") -> Codes:
        """Write other codes of the rows, part by part."""
        edges = [0, *self.cuts, len(LENGTHS)]
        for part, (first, last) in enumerate(itertools.pairwise(edges)):
            rows = slice(self.offsets[first], self.offsets[last]) if key.sample_type == "token" else slice(first, last)
            write_codes(self.storage, key.at(part), known[rows], dtype=dtype)
        return Codes.open(self.storage, key)

    def url(self, *parts: str) -> str:
        return "/".join([self.storage.url.rstrip("/"), *parts])

    @property
    def codes_url(self) -> str:
        return self.url("data/d/m/layer_3/codes/s/token")


def sparse_rows(n: int, d_sae: int, seed: int) -> NDArray[np.float32]:
    """Rows with between none and eight active units of few distinct values, so that ties and truncation occur."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((n, d_sae), dtype=np.float32)
    for row in dense:
        units = rng.choice(d_sae, size=min(d_sae, rng.integers(0, 9)), replace=False)
        row[units] = rng.choice([0.25, 0.5, 1.5, 2.0, 3.75], size=units.size)
    return dense


def top_k(dense: NDArray[np.float32], k: int) -> KnownCodes:
    """The codes of dense rows by sorting each row, and the matrix without what k cut off."""
    n, d_sae = dense.shape
    indices = np.zeros((n, k), dtype=np.uint16 if d_sae <= 65_536 else np.uint32)
    values = np.zeros((n, k), dtype=np.float16)
    kept = np.zeros_like(dense)
    for row in range(n):
        active = [unit for unit in range(d_sae) if dense[row, unit] != 0]
        for slot, unit in enumerate(sorted(active, key=lambda unit: (-abs(dense[row, unit]), unit))[:k]):
            indices[row, slot], values[row, slot] = unit, dense[row, unit]
            kept[row, unit] = dense[row, unit]
    return KnownCodes(indices, values, np.count_nonzero(dense, axis=1).astype(np.uint32), kept)


def write_codes(
    storage: Storage,
    key: CodesKey,
    known: KnownCodes,
    *,
    shard_rows: int = 16,
    chunk_rows: int = 4,
    holes: Collection[int] = (),
    dtype: str = "float16",
) -> RowGroup:
    """Write a codes group without the shards in `holes`."""
    n, k = known.indices.shape
    values = stored_as(known.values.astype(np.float32), dtype)
    group = RowGroup.create(
        storage,
        key.path,
        kind="codes",
        axis="row",
        grid=Grid.plan(n, shard_rows=shard_rows, chunk_rows=chunk_rows),
        arrays=code_arrays(k=k, d_sae=known.dense.shape[1], dtype=dtype),
        identity={"sae": key.sae, "k": k},
        attributes={
            "k": k,
            "d_sae": known.dense.shape[1],
            "dtype": dtype,
            "sample_type": key.sample_type,
            "quality": QUALITY,
        },
    )
    for shard in range(group.grid.n_shards):
        if shard not in holes:
            rows = group.grid.shard(shard)
            arrays = {"indices": known.indices[rows], "values": values[rows], "l0": known.l0[rows]}
            group.write_shard(shard, arrays, flagged={"l0": int((known.l0[rows] > k).sum())})
    return group


def write_activations(
    storage: Storage,
    key: ActivationsKey,
    dense: NDArray[np.float32],
    dtype: str,
    holes: Collection[int] = (),
    nonfinite: int = 2,
) -> None:
    """Write activations without the shards in `holes`; `nonfinite` is what the ledger counts in each shard."""
    stored = stored_as(dense, dtype)
    rows, d_in = dense.shape
    group = create_activations(
        storage, key, rows=rows, d_in=d_in, dtype=dtype, identity={"source": "test"}, attributes={}
    )
    for shard in range(group.grid.n_shards):
        if shard not in holes:
            group.write_shard(
                shard, {"activations": stored[group.grid.shard(shard)]}, flagged={"activations": nonfinite}
            )


def stored_as(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Values that the dtype holds exactly, as they are stored: bfloat16 is the upper half of a float32."""
    return values.astype(dtype) if dtype != "bfloat16" else (values.view(np.uint32) >> 16).astype(np.uint16)


def sample_table(n: int, kind: str = "text", splits: Sequence[str] = ("train", "cal", "test", "")) -> SampleTable:
    return SampleTable(
        ids=[f"sample-{place}" for place in range(n)],
        kind=kind,  # type: ignore[arg-type]
        contents=[f"Text {place} é" for place in range(n)],
        split=[splits[place % len(splits)] for place in range(n)],
        columns={"score": np.arange(n) / 4, "source": [f"src{place % 2}" for place in range(n)]},
        concept_names=("red", "cube"),
        concepts=np.array([[place % 2, (0, 1, 255)[place % 3]] for place in range(n)], dtype=np.uint8),
    )


def build(
    url: str,
    options: Mapping[str, Any] | None = None,
    *,
    d_sae: int = 50,
    k: int = 4,
    holes: Collection[int] = (),
    cuts: Sequence[int] = (),
    seed: int = 0,
) -> BuiltLake:
    """Make the lake, with postings.

    `holes` are shards of 16 token rows that are not written; `cuts` are the samples where its parts begin.
    """
    lake = Lake.create(url, storage_options=options)
    storage, rng = lake.storage, np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    n = int(offsets[-1])
    special = np.zeros(n, dtype=bool)
    special[offsets[:-1][np.array(LENGTHS) > 0]] = True
    token_id = rng.integers(0, 30_000, n).astype(np.uint32)
    table = sample_table(len(LENGTHS))
    tokens, means = top_k(sparse_rows(n, d_sae, seed), k), top_k(sparse_rows(len(LENGTHS), d_sae, seed + 1), k)
    activations = rng.integers(-64, 64, (n, 6)).astype(np.float32) / 8
    for part, (first, last) in enumerate(itertools.pairwise([0, *cuts, len(LENGTHS)])):
        rows, samples = slice(int(offsets[first]), int(offsets[last])), slice(first, last)
        write_samples(storage, "d", table[samples], part)
        write_positions(
            storage,
            ModelKey("d", "m", part),
            offsets=offsets[first : last + 1] - offsets[first],
            arrays={"special": special[rows], "token_id": token_id[rows]},
            digest=f"{part}" * 64,
            attributes={"tokenizer": "t"},
        )
        codes, layer = (
            CodesKey("d", "m", "layer_3", "s", "token", part),
            ActivationsKey("d", "m", "layer_3", "token", part),
        )
        write_codes(storage, codes, tokens[rows], holes=holes)
        write_codes(storage, replace(codes, sample_type="mean"), means[samples])
        write_activations(storage, layer, activations[rows], "bfloat16")
        write_activations(storage, replace(layer, sample_type="mean"), activations[: len(LENGTHS)][samples], "float16")
    index(storage, list(lake.code_keys()), quiet=True)
    return BuiltLake(lake, table, offsets, special, token_id, tokens, means, activations, dict(options or {}), cuts)
