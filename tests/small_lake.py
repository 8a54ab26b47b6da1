"""For tests of the writers: SAEs and activations of a few numbers, put into a lake, and the files of lakes.

Neither SAELens nor a model is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saestore.activations import create_activations
from saestore.lake import Lake
from saestore.layout import POSITION_TYPES, RUNS, ActivationsKey, ModelKey
from saestore.saes.config import SAEConfig
from saestore.saes.weights import decoder_norms, hash_weights
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples

HOOK = "blocks.3.hook_resid_post"


class ArrayWeights:
    """An SAE held in arrays; see `SAEWeights`."""

    def __init__(self, config: SAEConfig, arrays: dict[str, np.ndarray]) -> None:
        self.config = config
        self.arrays = arrays
        self.rows_read: list[tuple[str, int, int]] = []

    def rows(self, name: str, units: slice) -> np.ndarray:
        start, stop, _ = units.indices(self.config.d_sae)
        self.rows_read.append((name, start, stop))
        return np.array(self.arrays[name][start:stop], dtype=np.float32)

    def take(self, name: str, units: np.ndarray) -> np.ndarray:
        return np.array(self.arrays[name][units], dtype=np.float32)

    def vector(self, name: str) -> np.ndarray:
        return decoder_norms(self) if name == "decoder_norms" else self.arrays[name]

    def content_hash(self) -> str:
        return hash_weights(self)


def random_sae(architecture: str, *, d_in: int, d_sae: int, seed: int = 0, **config: Any) -> ArrayWeights:
    """An SAE of random directions, decoder rows of norm 1 equal to the encoder's."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(d_sae, d_in)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    arrays = {
        "W_enc": directions,
        "W_dec": directions,
        "b_dec": np.zeros(d_in, np.float32),
        "b_enc": rng.normal(size=d_sae).astype(np.float32) / 10,
        "threshold": np.full(d_sae, 0.4, np.float32),
    }
    config.setdefault("hook_name", HOOK)
    return ArrayWeights(SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, **config), arrays)


def mirror_sae(d_in: int, **config: Any) -> ArrayWeights:
    """A standard SAE of 2 d_in units that reconstructs exactly: each axis and its opposite."""
    both = np.concatenate([np.eye(d_in), -np.eye(d_in)]).astype(np.float32)
    zeros = {"b_enc": np.zeros(2 * d_in, np.float32), "b_dec": np.zeros(d_in, np.float32)}
    config.setdefault("hook_name", HOOK)
    return ArrayWeights(
        SAEConfig(architecture="standard", d_in=d_in, d_sae=2 * d_in, **config), {"W_enc": both, "W_dec": both, **zeros}
    )


def add_activations(
    lake: Lake,
    dataset: str,
    x: np.ndarray,
    *,
    dtype: str = "float32",
    layer: str = "layer_3",
    hook: str | None = HOOK,
    model: str = "m",
    sample_type: str = "token",
    shard_rows: int | None = None,
    holes: tuple[int, ...] = (),
    specials: bool = True,
    part: int = 0,
) -> np.ndarray:
    """Store rows as activations of samples of up to seven positions; return them as float32, as they are stored."""
    n = len(x)
    edges = np.append(np.arange(0, n, 7), n)
    offsets = edges if sample_type in POSITION_TYPES else np.arange(n + 1)
    samples = [f"text {place}" if not part else f"text {part}.{place}" for place in range(len(offsets) - 1)]
    write_samples(lake.storage, dataset, SampleTable(ids=samples, kind="text", contents=samples), part)
    special = np.zeros(int(offsets[-1]), bool)
    special[offsets[:-1]] = specials and sample_type in POSITION_TYPES
    write_positions(
        lake.storage,
        ModelKey(dataset, model, part),
        offsets=offsets.astype(np.int64),
        arrays={"special": special, "token_id": np.zeros(len(special), np.uint32)},
        digest="0" * 64,
        attributes={},
    )
    if dtype == "bfloat16":
        stored = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        as_read = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = x.astype(dtype)
        as_read = stored.astype(np.float32)
    group = create_activations(
        lake.storage,
        ActivationsKey(dataset, model, layer, sample_type, part),
        rows=n,
        d_in=x.shape[1],
        dtype=dtype,
        identity={"source": "test"},
        attributes={"saelens_hook_name": hook},
        shard_rows=shard_rows,
    )
    for shard in range(group.grid.n_shards):
        if shard not in holes:
            rows = group.grid.shard(shard)
            nonfinite = int((~np.isfinite(as_read[rows])).sum())
            group.write_shard(shard, {"activations": stored[rows]}, flagged={"activations": nonfinite})
    return as_read


def lake_files(folder: Path) -> dict[str, bytes]:
    """All files in a folder of lakes, by their path in it, but the records of runs, which know when they were.

    Temporary files that a writer left behind are among them.
    """
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name): (folder / name).read_bytes() for name in names if RUNS not in name.parts}
