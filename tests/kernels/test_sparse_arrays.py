"""CSR arrays against scipy's own construction from the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels.sparse import csr_arrays, place_dtype


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(0, 12),
    k=st.integers(0, 8),
    d_sae=st.integers(1, 40),
    block=st.integers(1, 30),
    index=st.sampled_from([np.uint16, np.uint32]),
    value=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 10**6),
)
def test_any_codes_in_blocks_of_any_size(
    n: int, k: int, d_sae: int, block: int, index: type, value: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    indices, values = np.zeros((n, k), index), np.zeros((n, k), value)
    dense = np.zeros((n, d_sae), np.float32)
    for row in range(n):
        m = rng.integers(0, min(k, d_sae) + 1)
        units, numbers = rng.choice(d_sae, m, replace=False), rng.normal(size=m).astype(value) + value(4)
        numbers *= rng.choice([-1, 1], m).astype(value)
        indices[row, :m], values[row, :m], dense[row, units] = units, numbers, numbers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saestore.kernels.sparse._BLOCK_SLOTS", block)
        data, columns, pointers = csr_arrays(indices, values)
    expected = scipy.sparse.csr_array(dense)
    assert (data.dtype, columns.dtype, pointers.dtype) == (np.float32, np.int32, np.int32)
    np.testing.assert_array_equal(data, expected.data)
    np.testing.assert_array_equal(columns, expected.indices)
    np.testing.assert_array_equal(pointers, expected.indptr)


def test_bfloat16_patterns_and_signed_values_and_the_last_unit_that_16_bits_name() -> None:
    patterns = (np.array([[1.5, -2.25, 0.0], [0, 0, 0]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    data, columns, pointers = csr_arrays(np.array([[65_535, 1, 0], [0, 0, 0]], np.uint16), patterns)
    assert (data.tolist(), columns.tolist(), pointers.tolist()) == ([-2.25, 1.5], [1, 65_535], [0, 2, 2])


def test_the_dtype_of_places() -> None:
    assert place_dtype(2**31 - 1) == np.int32
    assert place_dtype(2**31) == np.int64
