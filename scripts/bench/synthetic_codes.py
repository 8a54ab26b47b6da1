"""A lake with codes as a trained SAE gives them, made from a seed: the data of the query benchmark.

Activations of a unit are log-normal around its own scale, with the standard deviations of a Top-K SAE over MiniLM (0.52
within and 0.39 between units), and units come in bursts within a sample. Frequencies are log-normal over a fifth of the
units, with a long tail of rare ones, and more than half never fire: of those with over 50 activations in 1.4 million
rows the median has about 1,600, and the most frequent unit about 170,000.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PER_SAMPLE = 257
DATASET, MODEL, LAYER, SAE = "bench", "model", "layer_0", "sae"

_SPREAD, _FREQUENT, _RARE, _RARE_SHARE = 1.2, 5, 4, 0.002
_WITHIN, _BETWEEN = 0.52, 0.39
_POOL, _FROM_POOL = 400, 0.5
_BLOCK_SAMPLES = 1_024


def codes_path() -> str:
    """Return the path of the codes in the lake."""
    from saestore.layout import CodesKey

    return CodesKey(DATASET, MODEL, LAYER, SAE, "token").path


def write_codes_lake(
    folder: str | Path, *, rows: int, k: int, d_sae: int, seed: int = 0, layers: Sequence[str] = (LAYER,)
) -> Any:
    """Write samples with texts, positions and codes of each layer, all from a seed, and return the lake."""
    import numpy as np

    import saestore
    from saestore.code_rows import code_arrays
    from saestore.encoding.plan import plan_grid
    from saestore.layout import CodesKey, ModelKey
    from saestore.rows import RowGroup
    from saestore.saes.config import SAEConfig
    from saestore.samples import SampleTable
    from saestore.tables import write_positions, write_samples

    lake = saestore.init(folder)
    samples = -(-rows // PER_SAMPLE)
    offsets = np.minimum(np.arange(samples + 1) * PER_SAMPLE, rows)
    lengths = np.diff(offsets)
    place = np.arange(rows) - np.repeat(offsets[:-1], lengths)
    words = np.array([f"w{number:04d}" for number in range(5_000)])
    token_id = np.random.default_rng(seed).integers(0, len(words), rows).astype(np.uint32)
    texts = [" ".join(words[token_id[start:stop]]) for start, stop in itertools.pairwise(offsets)]
    split = np.array(["train", "cal", "test"])[np.arange(samples) % 3]
    table = SampleTable(
        ids=[f"s{number}" for number in range(samples)],
        kind="text",
        contents=texts,
        split=split.tolist(),
        concept_names=("cube",),
        concepts=(np.arange(samples) % 5 == 0).astype(np.uint8)[:, None],
    )
    write_samples(lake.storage, DATASET, table)
    width = 6  # of a word and the space after it
    write_positions(
        lake.storage,
        ModelKey(DATASET, MODEL),
        offsets=offsets,
        arrays={
            "special": place == 0,
            "token_id": token_id,
            "char_start": (place * width).astype(np.int32),
            "char_end": (place * width + width - 1).astype(np.int32),
        },
        digest=f"synthetic {rows} {seed}",
        attributes={"model_id": MODEL, "revision": "", "content": "text", "truncated": 0},
    )
    config = SAEConfig(architecture="topk", d_in=1_024, d_sae=d_sae, k=k)
    for number, layer in enumerate(layers):
        group = RowGroup.create(
            lake.storage,
            CodesKey(DATASET, MODEL, layer, SAE, "token").path,
            kind="codes",
            axis="row",
            grid=plan_grid(rows, k, config, 2),
            arrays=code_arrays(k=k, d_sae=d_sae, dtype="float16"),
            identity={"seed": seed + number, "k": k},
            attributes={
                "k": k,
                "d_sae": d_sae,
                "dtype": "float16",
                "signed": False,
                "sample_type": "token",
                "quality": {"rows": 0, "explained_variance": None, "l0": float(k), "dead_units": 0},
            },
        )
        draw = _Draw(d_sae, k, seed + number)
        for shard in group.missing_shards():
            part = group.grid.shard(shard)
            indices, values = draw.rows(part.start, part.stop)
            group.write_shard(shard, {"indices": indices, "values": values, "l0": np.full(len(indices), k, np.uint32)})
    return lake


class _Draw:
    """Rows of codes; each block of samples has a generator of its own."""

    def __init__(self, d_sae: int, k: int, seed: int) -> None:
        import numpy as np

        generator = np.random.default_rng(seed)
        frequency = np.zeros(d_sae)
        order = generator.permutation(d_sae)
        often, rare = order[: d_sae // _FREQUENT], order[d_sae // _FREQUENT :][: d_sae // _RARE]
        frequency[often] = generator.lognormal(0, _SPREAD, len(often))
        frequency[rare] = frequency[often].mean() * _RARE_SHARE * generator.random(len(rare))
        self._cumulative = np.cumsum(frequency / frequency.sum())
        self._scale = generator.lognormal(0, _BETWEEN, d_sae).astype(np.float32)
        self._k, self._seed = k, seed

    def rows(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """Return the codes of rows."""
        import numpy as np

        block = _BLOCK_SAMPLES * PER_SAMPLE
        parts = [self._block(number) for number in range(start // block, -(-stop // block))]
        first = start // block * block
        taken = slice(start - first, stop - first)
        return tuple(np.concatenate(arrays)[taken] for arrays in zip(*parts, strict=True))  # type: ignore[return-value]

    def _block(self, number: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
        import numpy as np

        generator = np.random.default_rng([self._seed, number])
        n, slots = _BLOCK_SAMPLES * PER_SAMPLE, self._k + 16  # units that come twice in a row count once
        pools = np.searchsorted(self._cumulative, generator.random((_BLOCK_SAMPLES, _POOL), dtype=np.float32))
        units = np.searchsorted(self._cumulative, generator.random((n, slots), dtype=np.float32)).astype(np.int32)
        units = np.minimum(units, len(self._cumulative) - 1)
        bursts = generator.random((n, slots), dtype=np.float32) < _FROM_POOL
        chosen = generator.integers(0, _POOL, (n, slots), dtype=np.int32)
        sample = np.repeat(np.arange(_BLOCK_SAMPLES), PER_SAMPLE)
        units[bursts] = np.minimum(pools[sample[:, None], chosen], len(self._cumulative) - 1)[bursts]
        order = np.argsort(units, axis=1, kind="stable")
        ascending = np.take_along_axis(units, order, axis=1)
        values = self._scale[ascending] * np.exp(_WITHIN * generator.standard_normal((n, slots), dtype=np.float32))
        values[:, 1:][ascending[:, 1:] == ascending[:, :-1]] = 0
        strongest = np.argsort(-values, axis=1, kind="stable")[:, : self._k]
        kept = np.take_along_axis(values, strongest, axis=1).astype(np.float16)
        indices = np.take_along_axis(ascending, strongest, axis=1)
        indices[kept == 0] = 0
        return indices.astype(np.uint16 if len(self._cumulative) <= 65_536 else np.uint32), kept
