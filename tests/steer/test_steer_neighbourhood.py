"""Neighbourhoods against a plain walk over lists, and what --top keeps by hand."""

from __future__ import annotations

import numpy as np
import pytest

from saestore.steer.neighbourhood import neighbourhood


def walked(edges, seeds, n, depth, top):
    """The same by sets and sorted lists; edges are (a, b, r)."""
    order = sorted(range(len(edges)), key=lambda e: (-abs(edges[e][2]), e))
    own = {node: [e for e in order if node in edges[e][:2]][:top] for node in range(n)}
    taken = set(seeds)
    for _ in range(depth):
        taken |= {other for node in list(taken) for e in own[node] for other in edges[e][:2]}
    kept = [e for e, (a, b, _) in enumerate(edges) if {a, b} <= taken and (e in own[a] or e in own[b])]
    return sorted(taken), kept


@pytest.mark.parametrize("top", [None, 1, 2, 5])
@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_it_is_what_a_walk_finds(depth, top):
    rng = np.random.default_rng(depth)
    for _ in range(20):
        n = 12
        pairs = [(a, b) for a in range(n) for b in range(a) if rng.random() < 0.25]
        r = rng.integers(-4, 5, len(pairs)) / 4  # many are equally strong
        seeds = rng.choice(n, 2, replace=False)
        a, b = np.array(pairs).T
        nodes, kept = neighbourhood(a, b, r, seeds, n=n, depth=depth, top=top)
        expected = walked([(*pair, w) for pair, w in zip(pairs, r, strict=True)], seeds.tolist(), n, depth, top)
        assert (nodes.tolist(), kept.tolist()) == expected


def test_a_hub_takes_in_its_strongest_alone_and_a_leaf_the_hub():
    a, b, r = np.zeros(4, int), np.arange(1, 5), np.array([0.4, -0.9, 0.5, 0.8])
    nodes, kept = neighbourhood(a, b, r, np.array([0]), n=5, depth=1, top=2)
    assert nodes.tolist() == [0, 2, 4]
    assert kept.tolist() == [1, 3]
    nodes, kept = neighbourhood(a, b, r, np.array([1]), n=5, depth=2, top=1)
    assert nodes.tolist() == [0, 1, 2]  # from the hub only -0.9 is followed; 0.4 stays, for it is the leaf's strongest
    assert kept.tolist() == [0, 1]


def test_without_edges_the_seeds_are_left():
    nothing = np.zeros(0, int)
    nodes, kept = neighbourhood(nothing, nothing, np.zeros(0), np.array([3, 1]), n=5, depth=2, top=3)
    assert nodes.tolist() == [1, 3]
    assert not kept.size
