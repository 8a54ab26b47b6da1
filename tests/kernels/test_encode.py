"""Encoding in tiles against the whole latent matrix in numpy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from saestore.errors import InputError
from saestore.kernels import encode
from saestore.kernels.encode import (
    Precision,
    TopK,
    UnitRule,
    encode_rows,
    plan_tile,
    relative_error,
    working_bytes,
)


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_device_path_agrees(precision: Precision) -> None:
    x, weights, rule = exact_case()  # numbers that bfloat16 holds
    got = encode._encode_device(torch.from_numpy(x), tiled(torch.from_numpy(weights), 256), rule, 16, precision)
    assert_same(got, brute_force(x, weights, rule, 16))


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_signed_selection_is_that_of_saelens(rescaled: bool, on_device: bool) -> None:
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=24, d_sae=300, k=7, rescale_acts_by_decoder_norm=rescaled))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x = torch.randn(90, 24, generator=generator)
        want = sae.encode(x).numpy()
        norms = sae.W_dec.norm(dim=1).numpy() if rescaled else np.ones(300, np.float32)
        rule = UnitRule(scale=norms if rescaled else None, bias=sae.b_enc.numpy() * norms, topk=sae.cfg.k, signed=True)
        run = partial(encode._encode_device, precision="fp32") if on_device else encode_rows
        got = run(x - sae.b_dec, tiled(sae.W_enc.T, 128), rule, 16)
    assert (want < 0).any()
    np.testing.assert_array_equal(np.sort(got.indices, axis=1), np.nonzero(want)[1].reshape(90, 7))
    np.testing.assert_allclose(got.values, np.take_along_axis(want, got.indices.astype(int), 1), rtol=1e-5, atol=1e-5)
    assert (np.diff(np.abs(got.values), axis=1) <= 0).all()
    assert (got.l0 == 7).all()


def float_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(60, 128, generator=generator), torch.randn(500, 128, generator=generator)


def bound(x: torch.Tensor, weights: torch.Tensor, precision: Precision) -> np.ndarray:
    """The most that each product may be off, in float64; sums cut off as tensor cores do."""
    size = (x.double().abs() @ weights.double().abs().T).numpy()
    summed = 128 * 2.0**-23 / (1 - 128 * 2.0**-23)
    operands = relative_error(precision)
    return (operands + (1 + operands) * summed) * size


def check_within_bound(got: TopK, x: torch.Tensor, weights: torch.Tensor, precision: Precision, k: int) -> float:
    """Values are near the exact ones, and units in doubt only where they are near the k-th; the largest error."""
    exact = (x.double() @ weights.double().T).numpy()
    off = bound(x, weights, precision)
    rows = np.arange(len(x))[:, None]
    error = np.abs(got.values - exact[rows, got.indices])
    assert (error <= off[rows, got.indices]).all()
    kth = -np.sort(-exact, axis=1)[:, k - 1 : k]
    slack = off.max(axis=1, keepdims=True)
    kept = np.zeros(exact.shape, bool)
    np.put_along_axis(kept, got.indices.astype(int), True, axis=1)
    assert (exact[kept] >= np.broadcast_to(kth - 2 * slack, exact.shape)[kept]).all()
    assert kept[exact > kth + 2 * slack].all()
    return float(error.max())


@pytest.mark.parametrize("on_device", [False, True])
def test_rounding_to_bfloat16_is_within_the_bound(on_device: bool) -> None:
    x, weights = float_case()
    run = encode._encode_device if on_device else encode_rows
    errors = {}
    for precision in ("fp32", "bf16"):
        got = partial(run, precision=precision)(x, tiled(weights, 200), UnitRule(), 12)
        errors[precision] = check_within_bound(got, x, weights, precision, 12)
    assert errors["bf16"] > 100 * errors["fp32"], "nothing was rounded"
    # The definition, whose operands are exact in float64.
    rounded = (x.bfloat16().double() @ weights.bfloat16().double().T).relu()
    np.testing.assert_allclose(got.values, rounded.topk(12).values.numpy(), rtol=1e-5)


def test_the_bound_is_reached_where_all_operands_are_rounded_up() -> None:
    x = torch.full((1, 128), 1 + 2.0**-8 + 2.0**-20)
    got = encode_rows(x, [(0, x)], UnitRule(), 1, precision="bf16")
    exact = float((x.double() ** 2).sum())
    assert 0.98 * relative_error("bf16") < (float(got.values[0, 0]) - exact) / exact <= relative_error("bf16")


def test_precisions_that_a_device_has_not_are_refused() -> None:
    x, weights = float_case()
    tf32 = r"tf32 was given for the device cpu.*use fp32 or bf16"
    with pytest.raises(InputError, match=tf32):
        encode_rows(x, [(0, weights)], UnitRule(), 4, precision="tf32")
    with pytest.raises(InputError, match=tf32):
        encode.calibrate(64, precision="tf32", seconds=0.01)
    with pytest.raises(InputError, match="'fp8', expected one of fp32, tf32, bf16"):
        encode_rows(x, [(0, weights)], UnitRule(), 4, precision="fp8")  # type: ignore[arg-type]


def test_the_precision_of_cuda_is_set_for_a_product_and_put_back() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for outside in ("tf32", "ieee", "none"):
            matmul.fp32_precision = outside
            for precision, inside in {"fp32": "ieee", "tf32": "tf32"}.items():
                with encode._cuda_precision(precision):  # type: ignore[arg-type]
                    assert matmul.fp32_precision == inside
                assert matmul.fp32_precision == outside
    finally:
        matmul.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_cuda_is_within_the_bound_whatever_torch_is_set_to(precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, weights = float_case()
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for outside in ("tf32", "ieee"):
            matmul.fp32_precision = outside
            for held in (weights, weights.cuda()):
                got = encode_rows(x, tiled(held, 200), UnitRule(), 12, device="cuda", precision=precision)
                check_within_bound(got, x, weights, precision, 12)
            assert matmul.fp32_precision == outside
    finally:
        matmul.fp32_precision = before


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
    needed = partial(working_bytes, 2048, 32, d_in=1024, tile=1024)
    assert needed(threads=4) > needed(threads=1)
    for device in ("cpu", "cuda"):
        assert needed(device=device, precision="bf16") > needed(device=device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_calibration_is_a_plausible_rate(precision: Precision) -> None:
    assert 1e8 < encode.calibrate(64, precision=precision, seconds=0.02) < 1e15
