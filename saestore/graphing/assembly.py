"""Join the pairs that were found to a graph: measures of association, degrees, groups of units, and a summary."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saestore.bridges.packages import imported
from saestore.graphing.measuring import Measured
from saestore.graphing.options import GraphOptions
from saestore.graphs import ALWAYS_ON, CONSTANT, DEAD, EDGE_COLUMNS, UNIT_COLUMNS, USED, edge_places
from saestore.kernels.association import benjamini_hochberg, fisher_p, jaccard, lift, mutual_information
from saestore.kernels.pair_rules import Found

SIGNIFICANT = 0.05
"""The q-value up to which edges are counted as discoveries in the summary."""

_STRONGEST = 10
_SEED = 0  # of the communities


@dataclass(frozen=True, eq=False)
class Shape:
    """What a graph is of: its ends, the pairs of these, and which edges are kept."""

    ends: tuple[Measured, ...]
    pairs: tuple[tuple[int, int], ...]
    options: GraphOptions

    @property
    def n(self) -> int:
        """Rows."""
        return self.ends[0].moments.n

    @property
    def tests(self) -> int:
        """Pairs of units that could have been an edge, kept or not."""
        able = [int(np.count_nonzero(one.takes_part)) for one in self.ends]
        return sum(able[a] * (able[a] - 1) // 2 if a == b else able[a] * able[b] for a, b in self.pairs)


def assembled(shape: Shape, parts: Iterable[tuple[int, Found]]) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Return the summary, the edges and the units of a graph.

    Parameters
    ----------
    shape : Shape
    parts : iterable of (int, Found)
        Pairs that were found, with the number of their pair of ends.
    """
    pair, found = _joined(parts)
    q = benjamini_hochberg(fisher_p(found.r, shape.n), shape.tests) if len(found.r) else np.empty(0)
    kept = np.flatnonzero(q <= shape.options.max_q)
    kept = kept[np.lexsort((found.b[kept], found.a[kept], pair[kept], -np.abs(found.r[kept])))]
    if shape.options.top is not None and kept.size:
        kept = kept[_among_strongest(shape, pair[kept], found.a[kept], found.b[kept], shape.options.top)]
    edges = _edges(shape, pair[kept], Found(*(part[kept] for part in vars(found).values())), q[kept])
    units = _units(shape)
    first, second = edge_places(units, edges)
    units["degree"] = np.bincount(np.concatenate([first, second]), minlength=len(units))
    units["component"], units["community"] = _groups(len(units), first, second, edges["r"].to_numpy())
    return _summary(shape, edges, units), edges, units[list(UNIT_COLUMNS)]


def found_of_null(shape: Shape, parts: Iterable[tuple[int, Found]]) -> dict[str, Any]:
    """Return how many edges a graph without true pairs has, kept and significant."""
    _, found = _joined(parts)
    q = benjamini_hochberg(fisher_p(found.r, shape.n), shape.tests) if len(found.r) else np.empty(0)
    return {
        "seed": shape.options.seed,
        "edges": int(np.count_nonzero(q <= shape.options.max_q)),
        f"q_up_to_{SIGNIFICANT}": int(np.count_nonzero(q <= SIGNIFICANT)),
    }


def _joined(parts: Iterable[tuple[int, Found]]) -> tuple[NDArray[np.int64], Found]:
    every = list(parts)
    pair = np.repeat([number for number, _ in every], [len(found.r) for _, found in every]).astype(np.int64)
    return pair, Found.joined([found for _, found in every])


def _among_strongest(
    shape: Shape, pair: NDArray[np.int64], a: NDArray[Any], b: NDArray[Any], top: int
) -> NDArray[np.int64]:
    """Return the places of edges, which come in order of strength, that are among the first of either unit."""
    starts = np.append(0, np.cumsum([len(one.takes_part) for one in shape.ends]))
    ends = np.array(shape.pairs)
    nodes = np.stack([starts[ends[pair, 0]] + a, starts[ends[pair, 1]] + b], axis=1).ravel()
    rank = pd.Series(nodes).groupby(nodes).cumcount().to_numpy().reshape(-1, 2)
    return np.flatnonzero((rank < top).any(axis=1))


def _edges(shape: Shape, pair: NDArray[np.int64], found: Found, q: NDArray[np.float64]) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    names = [one.end.name for one in shape.ends]
    counts = []
    for side, places, number in (("a", found.a, 0), ("b", found.b, 1)):
        of_end = np.array(shape.pairs)[pair, number] if len(pair) else np.empty(0, np.int64)
        columns[f"end_{side}"] = pd.Categorical.from_codes(of_end, pd.Index(names))
        columns[f"unit_{side}"] = _taken(of_end, places, [one.end.units for one in shape.ends])
        counts.append(_taken(of_end, places, [one.moments.active for one in shape.ends]))
    n_a, n_b = counts
    counted = found.n_ab >= 0
    p = fisher_p(found.r, shape.n)
    measures = {
        "lift": lift(shape.n, n_a, n_b, found.n_ab),
        "mutual_information": mutual_information(shape.n, n_a, n_b, np.maximum(found.n_ab, 0)),
        "jaccard": jaccard(n_a, n_b, found.n_ab),
    }
    columns |= {"r": found.r, "p": p, "q": q}
    for name, values in (("n_a", n_a), ("n_b", n_b), ("n_ab", found.n_ab)):
        columns[name] = pd.array(values, dtype="Int64")
        columns[name][~counted] = pd.NA
    columns |= {name: np.where(counted, values, np.nan) for name, values in measures.items()}
    return pd.DataFrame({name: columns[name] for name in EDGE_COLUMNS})


def _taken(of_end: NDArray[np.int64], places: NDArray[Any], known: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    out = np.zeros(len(places), dtype=np.int64)
    for number, values in enumerate(known):
        here = of_end == number
        out[here] = values[places[here]]
    return out


def _units(shape: Shape) -> pd.DataFrame:
    parts = []
    names = [one.end.name for one in shape.ends]
    for number, one in enumerate(shape.ends):
        moments = one.moments
        state = np.where(one.takes_part, USED, ALWAYS_ON)
        state[~moments.usable] = CONSTANT
        state[moments.active == 0] = DEAD
        sparse = one.end.is_sparse
        parts.append(
            pd.DataFrame(
                {
                    "end": pd.Categorical.from_codes(np.full(len(state), number), pd.Index(names)),
                    "unit": one.end.units,
                    "active": pd.array(moments.active if sparse else [pd.NA] * len(state), dtype="Int64"),
                    "base_rate": moments.active / moments.n if sparse else np.nan,
                    "mean": moments.mean,
                    "deviation": moments.deviation,
                    "maximum": one.maximum,
                    "state": state,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _groups(m: int, first: NDArray[np.int64], second: NDArray[np.int64], r: NDArray[np.float64]) -> tuple[Any, Any]:
    """Return the component and the community of each unit, by size from 0; null without edges.

    Communities are those of Leiden's algorithm for modularity, with |r| as weights.
    """
    igraph = imported("igraph", "a feature graph")
    alone = np.ones(m, dtype=bool)
    alone[first], alone[second] = False, False
    graph = igraph.Graph(n=m, edges=np.stack([first, second], axis=1))
    igraph.set_random_number_generator(random.Random(_SEED))
    try:
        communities = graph.community_leiden("modularity", weights=np.abs(r).tolist(), n_iterations=-1).membership
    finally:
        igraph.set_random_number_generator(None)
    return tuple(
        _by_size(np.array(members, dtype=np.int64), alone)
        for members in (graph.connected_components().membership, communities)
    )


def _by_size(members: NDArray[np.int64], alone: NDArray[np.bool_]) -> Any:
    """Number groups by size, the largest first, of equal ones that with the first member."""
    connected = np.flatnonzero(~alone)
    if not connected.size:
        return pd.array([pd.NA] * len(members), dtype="Int64")
    groups = np.unique(members[connected], return_index=True, return_inverse=True, return_counts=True)
    _, first, inverse, counts = groups
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(first))
    out = pd.array(np.zeros(len(members), dtype=np.int64), dtype="Int64")
    out[connected] = rank[inverse]
    out[alone] = pd.NA
    return out


def _summary(shape: Shape, edges: pd.DataFrame, units: pd.DataFrame) -> dict[str, Any]:
    """Return the summary as JSON values."""
    by_pair = edges.groupby(["end_a", "end_b"], observed=False)["r"]
    counts = by_pair.size()
    positive = (edges["r"] > 0).groupby([edges["end_a"], edges["end_b"]], observed=False).sum()
    names = [one.end.name for one in shape.ends]
    within: dict[str, Any] = {}
    across: dict[str, Any] = {}
    for a, b in shape.pairs:
        place = names[a], names[b]
        own = edges[(edges["end_a"] == place[0]) & (edges["end_b"] == place[1])].head(_STRONGEST)
        target = within if a == b else across
        target[place[0] if a == b else " x ".join(place)] = {
            "edges": int(counts.get(place, 0)),
            "positive": int(positive.get(place, 0)),
            "negative": int(counts.get(place, 0) - positive.get(place, 0)),
            "strongest": [
                {"unit_a": int(unit_a), "unit_b": int(unit_b), "r": float(r)}
                for unit_a, unit_b, r in own[["unit_a", "unit_b", "r"]].to_numpy()
            ],
        }
    return {
        "rows": {"n": shape.n, "what": shape.ends[0].end.rows_in_words},
        "threshold": shape.options.min_r,
        "options": shape.options.identity,
        "counts": {
            "units": len(units),
            "connected_units": int((units["degree"] > 0).sum()),
            "edges": len(edges),
            "pairs_tested": shape.tests,
            f"q_up_to_{SIGNIFICANT}": int((edges["q"] <= SIGNIFICANT).sum()),
            "components": int(units["component"].nunique()),
            "communities": int(units["community"].nunique()),
            "largest_component": int(units["component"].value_counts().max()) if len(edges) else 0,
            "largest_degree": int(units["degree"].max()) if len(units) else 0,
        },
        "left_out": {name: _states(units, name) for name in names},
        "within_layer": within,
        "between_layers": across,
    }


def _states(units: pd.DataFrame, end: str) -> Mapping[str, int]:
    states = units.loc[units["end"] == end, "state"].value_counts()
    return {state.replace(" ", "_"): int(states.get(state, 0)) for state in (DEAD, CONSTANT, ALWAYS_ON)}
