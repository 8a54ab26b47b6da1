"""Encoding in tiles against the whole latent matrix in numpy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from saestore.errors import InputError
from saestore.kernels import encode
from saestore.kernels.encode import TopK, UnitRule, encode_rows, plan_tile, working_bytes


def tiled(weights: torch.Tensor, tile: int) -> Iterator[tuple[int, torch.Tensor]]:
    return ((first, weights[first : first + tile]) for first in range(0, len(weights), tile))


def exact_case(n: int = 150, d_in: int = 24, d_sae: int = 700) -> tuple[np.ndarray, np.ndarray, UnitRule]:
    """Small integers: every product is exact in float32 in any order of summation, and ties abound."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (n, d_in)).astype(np.float32)
    weights = rng.integers(-2, 3, (d_sae, d_in)).astype(np.float32)
    bias = rng.integers(-4, 2, d_sae).astype(np.float32)
    threshold = rng.integers(-1, 12, d_sae).astype(np.float32)
    return x, weights, UnitRule(bias=bias, threshold=threshold)


def brute_force(x: np.ndarray, weights: np.ndarray, rule: UnitRule, k: int) -> TopK:
    products = x.astype(np.float64) @ weights.T.astype(np.float64)
    latent = products + (0 if rule.bias is None else rule.bias)
    active = (latent > 0) & (True if rule.threshold is None else latent > rule.threshold)
    latent = np.where(active, latent, 0)
    l0 = active.sum(axis=1).astype(np.uint32)
    if rule.topk is not None:
        l0, k = np.minimum(l0, np.uint32(rule.topk)), min(k, rule.topk)
    order = np.argsort(-latent, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(latent, order, axis=1).astype(np.float32)
    return TopK(np.where(values > 0, order, 0).astype(np.uint32), values, l0)


def assert_same(got: TopK, want: TopK) -> None:
    np.testing.assert_array_equal(got.values, want.values)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.l0, want.l0)


@pytest.mark.parametrize("tile", [1, 33, 256, 700, 1000])
@pytest.mark.parametrize("topk", [None, 9])
def test_exact_products(tile: int, topk: int | None) -> None:
    x, weights, rule = exact_case()
    rule = UnitRule(bias=rule.bias, threshold=rule.threshold, topk=topk)
    got = encode_rows(torch.from_numpy(x), tiled(torch.from_numpy(weights), tile), rule, 16)
    assert_same(got, brute_force(x, weights, rule, 16))


def test_device_path_agrees() -> None:
    x, weights, rule = exact_case()
    got = encode._encode_device(torch.from_numpy(x), tiled(torch.from_numpy(weights), 256), rule, 16)
    assert_same(got, brute_force(x, weights, rule, 16))


def test_bits_do_not_depend_on_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 96, generator=generator)
    weights = torch.randn(500, 96, generator=generator)
    one, *others = [encode_rows(x, tiled(weights, 128), UnitRule(), 20, threads=t) for t in (1, 2, 5)]
    for other in others:
        assert_same(other, one)
    latent = torch.relu(x.double() @ weights.T.double())
    np.testing.assert_allclose(one.values, latent.topk(20).values.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.l0, (latent > 0).sum(1).numpy())


def test_tiles_of_a_block_are_taken_in_order_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, rule = exact_case()

    class Slow(encode.RunningTopK):
        busy = False

        def update(self, products: np.ndarray, first_unit: int, rule: UnitRule) -> None:
            assert not self.busy
            self.busy = True
            time.sleep(0.03 if first_unit == 0 else 0)
            super().update(products, first_unit, rule)
            self.busy = False

    monkeypatch.setattr(encode, "RunningTopK", Slow)
    got = encode_rows(torch.from_numpy(x), tiled(torch.from_numpy(weights), 200), rule, 16, threads=4)
    assert_same(got, brute_force(x, weights, rule, 16))


def test_one_core_callers_work_in_their_own_thread() -> None:
    x, weights, rule = exact_case()
    seen: list[int] = []
    before = torch.get_num_threads()

    def limited() -> TopK:
        torch.set_num_threads(1)
        count = threading.active_count()
        codes = encode_rows(torch.from_numpy(x), tiled(torch.from_numpy(weights), 256), rule, 16)
        seen.append(threading.active_count() - count)
        return codes

    try:
        with ThreadPoolExecutor(1) as pool:
            assert_same(pool.submit(limited).result(), brute_force(x, weights, rule, 16))
    finally:
        torch.set_num_threads(before)
    assert seen == [0]


def test_callers_share_the_pool_and_keep_their_thread_number() -> None:
    x, weights, rule = exact_case()
    before = torch.get_num_threads()
    rows, tiles = torch.from_numpy(x), torch.from_numpy(weights)
    want = brute_force(x, weights, rule, 16)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda tile: encode_rows(rows, tiled(tiles, tile), rule, 16, threads=3), [64, 128] * 6))
    for got in results:
        assert_same(got, want)
    assert torch.get_num_threads() == before
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    x, weights, rule = exact_case()
    transposed = torch.from_numpy(weights).T.contiguous().to(dtype).T
    got = encode_rows(torch.from_numpy(x).to(dtype), tiled(transposed, 256), rule, 16)
    assert_same(got, brute_force(x, weights, rule, 16))


def test_parameters_that_require_gradients() -> None:
    x, weights, rule = exact_case()
    parameter = torch.nn.Parameter(torch.from_numpy(weights))
    got = encode_rows(torch.from_numpy(x), [(0, parameter)], rule, 16)
    assert_same(got, brute_force(x, weights, rule, 16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(value: float) -> None:
    x, weights, rule = exact_case(n=10)
    x[[2, 7], 5] = value
    with pytest.raises(InputError, match="2 of 10 rows"):
        encode_rows(torch.from_numpy(x), [(0, torch.from_numpy(weights))], rule, 16)


def test_tiles_out_of_order_or_of_another_width_are_refused() -> None:
    x, weights, _ = exact_case(n=10)
    rows, tiles = torch.from_numpy(x), torch.from_numpy(weights)
    with pytest.raises(InputError, match="in order of units"):
        encode_rows(rows, [(350, tiles[350:]), (0, tiles[:350])], UnitRule(), 4)
    with pytest.raises(InputError, match="24 wide"):
        encode_rows(rows, [(0, tiles[:, :20])], UnitRule(), 4)
    with pytest.raises(InputError, match="k is 0"):
        encode_rows(rows, [(0, tiles)], UnitRule(), 0)


def test_an_error_while_reading_tiles_reaches_the_caller() -> None:
    x, weights, rule = exact_case()

    def failing() -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, torch.from_numpy(weights[:256])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        encode_rows(torch.from_numpy(x), failing(), rule, 16)


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    x, weights, _ = exact_case()
    short = UnitRule(bias=np.zeros(650, np.float32))
    with pytest.raises(InputError, match=r"bias .* shape \(50,\)"):
        encode_rows(torch.from_numpy(x), tiled(torch.from_numpy(weights), 100), short, 16)


def test_no_rows() -> None:
    got = encode_rows(torch.empty(0, 24), [(0, torch.ones(100, 24))], UnitRule(topk=4), 16)
    assert (got.indices.shape, got.values.shape, got.l0.shape) == ((0, 4), (0, 4), (0,))


def test_plans() -> None:
    assert plan_tile(1024, 65536, 2048) <= 4096
    assert plan_tile(64, 300, 2048) == 300
    on_device = [plan_tile(1024, 1 << 20, n, device="cuda") for n in (1, 1024, 8192, 1 << 20)]
    assert on_device == sorted(on_device, reverse=True)
    assert on_device[-1] == 1024
    assert working_bytes(2048, 32, d_in=1024, tile=1024, threads=4) > working_bytes(
        2048, 32, d_in=1024, tile=1024, threads=1
    )


def test_calibration_is_a_plausible_rate() -> None:
    assert 1e8 < encode.calibrate(64, seconds=0.02) < 1e15
