"""Lakes with a feature graph, and the dense matrices that it is over: two layers of codes, some units correlated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import create_activations
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from saestore.verbs import graph
from tests.built_lake import top_k, write_codes

ENDS = ("layer_3/s", "layer_4/z")
N_UNITS = 24
WORDS = ("the", "bridge", "runs", "quietly", "over", "a", "river", "irony", "never", "rains")
HOSTILE = "</script><script>alert('x')</script> & <img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class GraphLake:
    """A lake with data sets `one` and `two`, model `m`, and dense matrices over all rows, one data set after the other.

    dense : of each end of codes
    counted : (n,) bool, rows that are no special token
    sample : (n,) number of the sample of each row, over both data sets
    words : what stands at each row; empty at special tokens
    activations : (n, 5) of layer_3
    """

    lake: Lake
    dense: dict[str, NDArray[np.float32]]
    activations: NDArray[np.float32]
    counted: NDArray[np.bool_]
    sample: NDArray[np.int64]
    split: NDArray[Any]
    words: list[str]

    def r(self, a: str, b: str, rows: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """All correlations of two ends by numpy, 0 where a unit is constant."""
        chosen = self.counted if rows is None else rows
        x, y = (self.of(end)[chosen].astype(np.float64) for end in (a, b))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
        return np.nan_to_num(found)

    def of(self, end: str) -> NDArray[np.float32]:
        return self.dense.get(end, self.activations)


def graph_lake(url: str, *, postings: bool = True) -> GraphLake:
    """Make the lake; the third sample of `one` holds markup."""
    lake, rng = Lake.create(url), np.random.default_rng(11)
    dense: dict[str, list[NDArray[np.float32]]] = {end: [] for end in ENDS}
    every: dict[str, list[Any]] = {name: [] for name in ("activations", "counted", "sample", "split", "words")}
    for dataset, n in (("one", 20), ("two", 15)):
        contents = [" ".join(rng.choice(WORDS, 9)) for _ in range(n)]
        if dataset == "one":
            contents[2] = f"irony {HOSTILE}"
        split = [("train", "cal", "test")[place % 3] for place in range(n)]
        spans, special, lengths = [], [], []
        for content in contents:
            starts = [0] + [at + 1 for at, sign in enumerate(content) if sign == " "]
            edges = [
                (0, 0),
                *((start, stop - 1) for start, stop in zip(starts, [*starts[1:], len(content) + 1], strict=True)),
            ]
            spans += edges
            special += [True] + [False] * (len(edges) - 1)
            lengths.append(len(edges))
            every["words"] += [content[start:stop] for start, stop in edges]
        rows = len(spans)
        write_samples(
            lake.storage,
            dataset,
            SampleTable(ids=[f"{dataset}-{place}" for place in range(n)], kind="text", contents=contents, split=split),
        )
        where = np.array(spans, np.int32)
        write_positions(
            lake.storage,
            ModelKey(dataset, "m"),
            offsets=np.append(0, np.cumsum(lengths)),
            arrays={"special": np.array(special), "char_start": where[:, 0], "char_end": where[:, 1]},
            digest=dataset * 8,
            attributes={},
        )
        cause = rng.random((rows, 4)) < 0.2
        for end in ENDS:
            x = np.where(rng.random((rows, N_UNITS)) < 0.12, rng.choice([0.25, 0.5, 1.0], (rows, N_UNITS)), 0)
            for unit in range(12):  # units of the same cause are correlated, within a layer and across
                x[:, unit] += np.where(cause[:, unit % 4], 2 + rng.choice([0, 0.25, 0.5], rows), 0)
            x[:, 20] = 0
            known = top_k(x.astype(np.float32), N_UNITS)
            layer, sae = end.split("/")
            write_codes(lake.storage, CodesKey(dataset, "m", layer, sae, "token"), known)
            dense[end].append(known.dense)
        activations = rng.integers(-64, 64, (rows, 5)).astype(np.float32) / 8
        activations[:, 1] = activations[:, 0] + rng.integers(-8, 8, rows) / 8
        activations[:, 2] = rng.integers(-8, 8, rows) / 8 - activations[:, 0]
        key = ActivationsKey(dataset, "m", "layer_3", "token")
        group = create_activations(lake.storage, key, rows=rows, d_in=5, dtype="float32", identity={"source": "test"})
        for shard in range(group.grid.n_shards):
            group.write_shard(shard, {"activations": activations[group.grid.shard(shard)]}, flagged={"activations": 0})
        before = 0 if not every["sample"] else int(every["sample"][-1][-1]) + 1
        every["activations"].append(activations)
        every["counted"].append(~np.array(special))
        every["sample"].append(before + np.repeat(np.arange(n), lengths))
        every["split"].append(np.repeat(split, lengths))
    if postings:
        index(lake.storage, list(lake.code_keys()), quiet=True)
    return GraphLake(
        lake=lake,
        dense={end: np.concatenate(parts) for end, parts in dense.items()},
        **{name: np.concatenate(every[name]) for name in ("activations", "counted", "sample", "split")},
        words=every["words"],
    )


def make(known: GraphLake, name: str = "default", **options: Any) -> None:
    """Make a graph of both layers of codes, without a limit of support."""
    given: dict[str, Any] = {"saes": ["s", "z"], "sample_type": "token", "min_support": 0, **options}
    graph(known.lake, name=name, quiet=True, **given)
