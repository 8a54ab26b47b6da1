"""Rounding to storage types against numpy's and torch's own conversions and a plain lexsort."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saestore.errors import InputError
from saestore.kernels.quantize import TopK, as_float32, quantize

TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}


def codes(values: np.ndarray, seed: int = 0) -> TopK:
    n, k = values.shape
    units = np.stack([np.random.default_rng(seed + i).permutation(3 * k)[:k] for i in range(n)]).astype(np.uint32)
    return TopK(np.where(values == 0, 0, units).astype(np.uint32), values, np.full(n, k, np.uint32))


@settings(deadline=None, max_examples=200)
@given(
    values=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-6e4, 6e4, width=32)
    ),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_against_torch_and_lexsort(values: np.ndarray, dtype: str) -> None:
    given_codes = codes(values)
    got = quantize(given_codes, dtype=dtype)
    rounded = torch.from_numpy(values).to(TORCH_TYPES[dtype]).float().numpy()
    rounded = np.where((rounded == 0) & (values != 0), np.copysign(SMALLEST[dtype], values), rounded)
    for i in range(len(values)):
        kept = np.flatnonzero(rounded[i])
        order = kept[np.lexsort((given_codes.indices[i, kept], -np.abs(rounded[i, kept])))]
        m = len(order)
        np.testing.assert_array_equal(as_float32(got.values)[i, :m], rounded[i, order])
        np.testing.assert_array_equal(got.indices[i, :m], given_codes.indices[i, order])
        assert not as_float32(got.values)[i, m:].any()
        assert not got.indices[i, m:].any()
    assert got.l0 is given_codes.l0


def test_rounding_makes_ties_that_are_ordered_by_unit() -> None:
    values = np.array([[1.0003, 1.0002, 1.0001, 0.5]], np.float32)
    got = quantize(TopK(np.array([[9, 4, 7, 1]], np.uint32), values, np.array([4], np.uint32)), d_sae=65536)
    assert got.values.tolist() == [[1.0, 1.0, 1.0, 0.5]]
    assert got.indices.tolist() == [[4, 7, 9, 1]]
    assert (got.indices.dtype, got.values.dtype) == (np.uint16, np.float16)


def test_types_of_indices() -> None:
    given_codes = codes(np.ones((1, 2), np.float32))
    assert quantize(given_codes, d_sae=65537).indices.dtype == np.uint32
    assert quantize(given_codes).indices.dtype == np.uint32
    last = TopK(np.array([[65535]], np.uint32), np.ones((1, 1), np.float32), np.ones(1, np.uint32))
    assert quantize(last, d_sae=65536).indices.tolist() == [[65535]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_underflow_stays_active(dtype: str) -> None:
    got = quantize(codes(np.array([[1e-40, 0.0]], np.float32)), dtype=dtype)
    assert as_float32(got.values).tolist() == [
        [SMALLEST[dtype] if dtype == "float16" else pytest.approx(1e-40, rel=0.1), 0]
    ]
    tiny = quantize(codes(np.array([[2.0**-149, -(2.0**-148)]], np.float32)), dtype=dtype)
    assert sorted(as_float32(tiny.values)[0].tolist()) == [-SMALLEST[dtype], SMALLEST[dtype]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_signed_codes_keep_their_order_by_magnitude(dtype: str) -> None:
    values = np.array([[-4.0, 3.0001, -3.0, 1e-45, -0.0]], np.float32)
    given_codes = TopK(np.array([[8, 9, 7, 5, 0]], np.uint32), values, np.array([4], np.uint32))
    got = quantize(given_codes, dtype=dtype)
    assert got.indices.tolist() == [[8, 7, 9, 5, 0]]
    assert as_float32(got.values).tolist() == [[-4.0, -3.0, 3.0, SMALLEST[dtype], 0.0]]
    assert not np.signbit(as_float32(got.values)[0, 4])


def test_overflow_names_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"70000 does not fit float16.*float32"):
        quantize(codes(np.array([[7e4, 1]], np.float32)))
    with pytest.raises(InputError, match=r"-70000 does not fit float16.*float32"):
        quantize(codes(np.array([[1, -7e4]], np.float32)))
    with pytest.raises(InputError, match=r"does not fit bfloat16.*float32"):
        quantize(codes(np.full((1, 1), np.finfo(np.float32).max)), dtype="bfloat16")
    with pytest.raises(InputError, match=r"does not fit bfloat16.*float32"):
        quantize(codes(np.full((1, 1), np.finfo(np.float32).min)), dtype="bfloat16")
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="finite"):
            quantize(codes(np.array([[bad, 1]], np.float32)), dtype="float32")
    with pytest.raises(InputError, match="float8"):
        quantize(codes(np.ones((1, 1), np.float32)), dtype="float8")  # type: ignore[arg-type]


def test_bfloat16_patterns_are_torchs() -> None:
    values = np.random.default_rng(0).lognormal(0, 20, (50, 8)).astype(np.float32)
    values[:, :2] = [1 + 2**-8, 1 + 3 * 2**-8]  # halfway between two numbers: the even one is taken
    values = np.sort(values)[:, ::-1]
    got = quantize(codes(values), dtype="bfloat16")
    want = torch.from_numpy(values.copy()).bfloat16()
    np.testing.assert_array_equal(got.values, want.view(torch.uint16).numpy())
    np.testing.assert_array_equal(as_float32(got.values), want.float().numpy())


def test_reading_kernels_need_neither_torch_nor_numba() -> None:
    program = (
        "import sys; sys.modules.update(torch=None, numba=None, scipy=None)\n"
        "import saestore.kernels.densify, saestore.kernels.quantize, saestore.kernels.quality"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
