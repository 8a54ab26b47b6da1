"""Dense forms against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.errors import MissingError
from saestore.kernels.densify import densify, unit_lookup


def stored_codes(n: int, k: int, d_sae: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes with empty slots, and their dense form made by a loop."""
    rng = np.random.default_rng(seed)
    indices, values = np.zeros((n, k), np.uint16), np.zeros((n, k), np.float16)
    dense = np.zeros((n, d_sae), np.float32)
    for i in range(n):
        m = rng.integers(0, min(k, d_sae) + 1)
        units = rng.choice(d_sae, m, replace=False)
        numbers = rng.uniform(0.1, 9, m).astype(np.float16) * rng.choice([-1, 1], m).astype(np.float16)
        indices[i, :m], values[i, :m], dense[i, units] = units, numbers, numbers
    return indices, values, dense


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(0, 12),
    k=st.integers(0, 8),
    d_sae=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    picks=st.lists(st.integers(0, 39), max_size=12),
)
def test_any_choice_of_units(n: int, k: int, d_sae: int, seed: int, picks: list[int]) -> None:
    indices, values, dense = stored_codes(n, k, d_sae, seed)
    units = [unit % d_sae for unit in picks]
    got = densify(indices, values, units, d_sae=d_sae)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, dense[:, units])
    np.testing.assert_array_equal(densify(indices, values, unit_lookup(units, d_sae), d_sae=d_sae), got)
    np.testing.assert_array_equal(densify(indices, values, d_sae=d_sae), dense)


def test_unit_0_survives_empty_slots() -> None:
    indices, values = np.array([[0, 3, 0, 0]], np.uint16), np.array([[2, 1, 0, 0]], np.float16)
    assert densify(indices, values, [3, 0], d_sae=4).tolist() == [[1, 2]]
    assert densify(indices, values, d_sae=4).tolist() == [[2, 0, 0, 1]]


def test_bfloat16_patterns_and_signed_values() -> None:
    numbers = torch.tensor([[1.5, -2.25, 0.0]], dtype=torch.bfloat16)
    patterns = numbers.view(torch.uint16).numpy()
    indices = np.array([[2, 1, 0]], np.uint32)
    assert densify(indices, patterns, [1, 2], d_sae=3).tolist() == [[-2.25, 1.5]]


@pytest.mark.parametrize("unit", [-1, 10])
def test_units_that_do_not_exist(unit: int) -> None:
    with pytest.raises(MissingError, match=f"unit {unit} does not exist.*0 to 9"):
        unit_lookup([3, unit], 10)
