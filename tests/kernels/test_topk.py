"""The running selection against a full sort, on both engines, for any tiling, any split of rows and many ties."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.errors import InputError
from saestore.kernels.topk import DeviceTopK, RunningTopK, TopK, UnitRule


def sorted_codes(products: np.ndarray, rule: UnitRule, k: int) -> TopK:
    """The definition: all activations of a row, ordered by (magnitude descending, unit ascending)."""
    n = len(products)
    value = products.copy()
    if rule.scale is not None:
        value = value * rule.scale
    if rule.bias is not None:
        value = value + rule.bias
    active = value > (0 if rule.threshold is None else np.maximum(rule.threshold, 0))
    if rule.cut is not None:
        active &= products > rule.cut
    if rule.signed:
        active = value != 0
    l0 = active.sum(axis=1)
    if rule.topk is not None:
        l0, k = np.minimum(l0, rule.topk), min(k, rule.topk)
    indices, values = np.zeros((n, k), np.uint32), np.zeros((n, k), np.float32)
    for i in range(n):
        units = np.flatnonzero(active[i])
        best = units[np.lexsort((units, -np.abs(value[i, units])))][:k]
        indices[i, : len(best)], values[i, : len(best)] = best, value[i, best]
    return TopK(indices, values, l0.astype(np.uint32))


def select(engine: str, products: np.ndarray, rule: UnitRule, k: int, bounds: list[int]) -> TopK:
    n, d_sae = products.shape
    edges = [0, *sorted(set(bounds) & set(range(1, d_sae))), d_sae]
    state: RunningTopK | DeviceTopK
    state = RunningTopK(n, k, topk=rule.topk) if engine == "numba" else DeviceTopK(n, k, topk=rule.topk)
    for first, stop in pairwise(edges):
        tile = np.array(products[:, first:stop])
        part = rule.tile(first, stop - first)
        if isinstance(state, RunningTopK):
            state.update(tile, first, part)
        else:
            state.update(torch.from_numpy(tile), first, part)
    return state.finish()


def assert_same(got: TopK, want: TopK) -> None:
    np.testing.assert_array_equal(got.values.view(np.uint32), want.values.view(np.uint32))
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.l0, want.l0)
    assert (got.indices.dtype, got.values.dtype, got.l0.dtype) == (np.uint32, np.float32, np.uint32)


def make_rule(kind: str, rng: np.random.Generator, d_sae: int, topk: int | None = None) -> UnitRule:
    def draw(low: float = -1, high: float = 1) -> np.ndarray:
        return rng.uniform(low, high, d_sae).astype(np.float32)

    return {
        "relu": UnitRule(topk=topk),
        "standard": UnitRule(bias=draw(), topk=topk),
        "rescaled": UnitRule(scale=draw(0.5, 2), bias=draw(), topk=topk),
        "jumprelu": UnitRule(bias=draw(), threshold=draw(), topk=topk),
        "gated": UnitRule(scale=draw(0.5, 2), bias=draw(), cut=draw(), topk=topk),
        "everything": UnitRule(scale=draw(-1, 2), bias=draw(), cut=draw(), threshold=draw(), topk=topk),
        "signed": UnitRule(topk=topk, signed=True),
        "signed standard": UnitRule(bias=draw(), topk=topk, signed=True),
        "signed rescaled": UnitRule(scale=draw(0.5, 2), bias=draw(), topk=topk, signed=True),
    }[kind]


SIGNED = ["signed", "signed standard", "signed rescaled"]
KINDS = ["relu", "standard", "rescaled", "jumprelu", "gated", "everything", *SIGNED]


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_with_floats(engine: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    products = rng.standard_normal((7, 1003), dtype=np.float32)
    rule = make_rule(kind, rng, 1003)
    assert_same(select(engine, products, rule, 20, [100, 131, 640]), sorted_codes(products, rule, 20))


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    d_sae=st.integers(1, 200),
    k=st.integers(1, 70),
    topk=st.none() | st.integers(1, 40),
    lowest=st.integers(-3, 0),
    levels=st.integers(1, 6),
    bounds=st.lists(st.integers(1, 199), max_size=6),
    kind=st.sampled_from(["relu", "standard", "everything", *SIGNED]),
)
def test_any_tiling_and_ties(
    seed: int, n: int, d_sae: int, k: int, topk: int | None, lowest: int, levels: int, bounds: list[int], kind: str
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values, so that ties straddle tiles, groups of lanes and the boundary of the k best.
    products = rng.integers(lowest, levels, (n, d_sae)).astype(np.float32)
    rule = make_rule(kind, rng, d_sae, topk)
    if rule.bias is not None:
        rule = replace(rule, bias=np.round(rule.bias))
    if rule.signed and rule.scale is not None:
        rule = replace(rule, scale=np.ceil(rule.scale))  # a tie of magnitudes in spite of scales
    want = sorted_codes(products, rule, k)
    for engine in ("numba", "torch"):
        assert_same(select(engine, products, rule, k, bounds), want)
    split = n // 2
    parts = [select("numba", products[rows], rule, k, bounds) for rows in (slice(split), slice(split, n))]
    joined = TopK(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("indices", "values", "l0")))
    assert_same(joined, want)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_adverse_orders(engine: str, order: str) -> None:
    ramp = np.arange(1, 3001, dtype=np.float32)
    row = {"ascending": ramp, "descending": ramp[::-1], "equal": np.ones_like(ramp)}[order]
    products = np.stack([row, row * 2])
    for k in (1, 31, 100, 3000, 4000):
        assert_same(select(engine, products, UnitRule(), k, [1000, 2048]), sorted_codes(products, UnitRule(), k))


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_nan_zero_and_infinity(engine: str) -> None:
    products = np.zeros((1, 64), np.float32)
    products[0, [3, 10, 20, 30, 40]] = [np.nan, np.inf, -0.0, 1e-45, -np.inf]
    got = select(engine, products, UnitRule(), 4, [16])
    assert got.indices.tolist() == [[10, 30, 0, 0]]
    assert got.values.tolist() == [[np.inf, np.float32(1e-45), 0, 0]]
    assert got.l0.tolist() == [2]


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_signed_nan_zero_and_infinity(engine: str) -> None:
    products = np.zeros((1, 64), np.float32)
    products[0, [3, 10, 20, 30, 40, 50]] = [np.nan, 2.0, -0.0, -1e-45, -np.inf, -np.nan]
    got = select(engine, products, UnitRule(signed=True), 4, [16])
    assert got.indices.tolist() == [[40, 10, 30, 0]]
    assert got.values.tolist() == [[-np.inf, 2.0, -np.float32(1e-45), 0]]
    assert not np.signbit(got.values[0, 3])
    assert got.l0.tolist() == [3]


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_signed_ties_of_both_signs_go_to_the_lower_unit(engine: str) -> None:
    products = np.tile(np.array([[-1.0, 1.0, 0.5]], np.float32), (1, 30))
    got = select(engine, products, UnitRule(signed=True, topk=5), 8, [31])
    assert got.indices.tolist() == [[0, 1, 3, 4, 6]]
    assert got.values.tolist() == [[-1, 1, -1, 1, -1]]
    assert got.l0.tolist() == [5]


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_activity_is_strict(engine: str) -> None:
    products = np.tile(np.array([[1.0, 2.0]], np.float32), (1, 20))
    at_threshold = UnitRule(threshold=np.full(40, 1.0, np.float32))
    assert select(engine, products, at_threshold, 40, []).l0.tolist() == [20]
    at_cut = UnitRule(cut=np.full(40, 2.0, np.float32), bias=np.full(40, 5.0, np.float32))
    assert select(engine, products, at_cut, 40, []).l0.tolist() == [0]


def test_multiply_and_add_round_twice() -> None:
    rng = np.random.default_rng(3)
    products = rng.standard_normal((4, 512), dtype=np.float32)
    scale = rng.standard_normal(512).astype(np.float32)
    # The sum cancels all but the rounding error of the product, which a fused operation would not have.
    bias = -(products[0] * scale) + np.float32(1e-7)
    rule = UnitRule(scale=scale, bias=bias)
    want = sorted_codes(products, rule, 512)
    fused = (products[0].astype(np.float64) * scale + bias).astype(np.float32)
    assert (fused != products[0] * scale + bias).any()
    for engine in ("numba", "torch"):
        assert_same(select(engine, products, rule, 512, [256]), want)


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(4)
    products = rng.standard_normal((32, 8, 700), dtype=np.float32)
    rule = make_rule("standard", rng, 700)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda block: select("numba", block, rule, 12, [320]), products))
    for block, codes in zip(products, got, strict=True):
        assert_same(codes, sorted_codes(block, rule, 12))


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_no_rows_and_no_tiles(engine: str) -> None:
    empty = select(engine, np.empty((0, 40), np.float32), UnitRule(), 3, [])
    assert empty.indices.shape == (0, 3)
    state = RunningTopK(2, 3) if engine == "numba" else DeviceTopK(2, 3)
    assert state.finish().values.tolist() == [[0, 0, 0]] * 2


@pytest.mark.gpu
def test_cuda_selects_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(5)
    products = rng.integers(-1, 50, (16, 5000)).astype(np.float32)
    rule = make_rule("everything", rng, 5000)
    state = DeviceTopK(16, 32, device="cuda")
    for first in range(0, 5000, 1024):
        tile = torch.from_numpy(np.array(products[:, first : first + 1024])).cuda()
        state.update(tile, first, rule.tile(first, tile.shape[1]))
    assert_same(state.finish(), sorted_codes(products, rule, 32))


def test_what_the_scan_would_misread_is_refused() -> None:
    state = RunningTopK(2, 3)
    products = np.ones((2, 64), np.float32)
    with pytest.raises(InputError, match=r"threshold .* shape \(63,\)"):
        state.update(products, 0, UnitRule(threshold=np.ones(63, np.float32)))
    with pytest.raises(InputError, match=r"bias .* float64"):
        state.update(products, 0, UnitRule(bias=np.ones(64)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="products are float64"):
        state.update(products.astype(np.float64), 0, UnitRule())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="C-contiguous"):
        state.update(np.asfortranarray(products), 0, UnitRule())
    for part in ({"cut": np.ones(64, np.float32)}, {"threshold": np.zeros(64, np.float32)}):
        for one in (RunningTopK(2, 3), DeviceTopK(2, 3)):
            with pytest.raises(InputError, match="signed unit rule has a cut or a threshold"):
                one.update(
                    products if isinstance(one, RunningTopK) else torch.ones(2, 64), 0, UnitRule(**part, signed=True)
                )
    with pytest.raises(InputError, match="cut"):
        DeviceTopK(2, 3).update(torch.ones(2, 64), 0, UnitRule(cut=np.ones(128, np.float32)[::2]))
