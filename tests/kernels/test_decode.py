"""Reconstruction against the dense product in float64, for whole and tiled decoders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from saestore.errors import InputError
from saestore.kernels import decode
from saestore.kernels.decode import decode_rows


def case() -> tuple[np.ndarray, np.ndarray, torch.Tensor, np.ndarray]:
    n, k, d_sae, d_in = 40, 6, 90, 16
    rng = np.random.default_rng(0)
    indices = np.stack([rng.permutation(d_sae)[:k] for _ in range(n)]).astype(np.uint16)
    values = rng.uniform(-1, 3, (n, k)).astype(np.float16)
    values[rng.random((n, k)) < 0.3] = 0
    values[3] = 0
    indices[values == 0] = 0
    return indices, values, torch.from_numpy(rng.standard_normal((d_sae, d_in), dtype=np.float32)), rng.random(d_in)


def reference(indices: np.ndarray, values: np.ndarray, weights: torch.Tensor, bias: np.ndarray) -> np.ndarray:
    rows = weights.double().numpy()[indices.astype(int)]
    return (values.astype(np.float64)[:, :, None] * rows).sum(axis=1) + bias


@pytest.mark.parametrize("tile", [1, 7, 64, 90])
@pytest.mark.parametrize("add_tile", [decode._add_sparse, decode._add_dense])
def test_tiles(tile: int, add_tile: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_add_sparse", add_tile)
    indices, values, weights, bias = case()
    tiles = [(first, weights[first : first + tile]) for first in range(0, 90, tile)]
    for order in (tiles, tiles[::-1]):
        got = decode_rows(indices, values, order, d_in=16, bias=bias)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), reference(indices, values, weights, bias), rtol=1e-4, atol=1e-5)


def test_other_types_and_units_of_no_tile() -> None:
    indices, values, weights, bias = case()
    patterns = torch.from_numpy(values).bfloat16()
    got = decode_rows(indices, patterns.view(torch.uint16).numpy(), [(0, weights.bfloat16())], d_in=16)
    want = reference(indices, patterns.float().numpy(), weights.bfloat16(), np.zeros(16))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)
    half = decode_rows(indices, values, [(0, weights[:50])], d_in=16, bias=bias)
    kept = np.where(indices < 50, values, 0)
    np.testing.assert_allclose(half.numpy(), reference(indices, kept, weights, bias), rtol=1e-4, atol=1e-5)


def test_rows_of_the_units_that_occur_are_enough() -> None:
    indices, values, weights, bias = case()
    units = np.unique(indices[values != 0])
    places = np.searchsorted(units, indices)
    block = weights[units.astype(int)]
    got = decode_rows(places, values, [(0, block[:20]), (20, block[20:])], d_in=16, bias=bias)
    np.testing.assert_allclose(got.numpy(), reference(indices, values, weights, bias), rtol=1e-4, atol=1e-5)


def test_no_rows_and_wrong_width() -> None:
    indices, values, weights, _ = case()
    assert decode_rows(indices[:0], values[:0], [(0, weights)], d_in=16).shape == (0, 16)
    with pytest.raises(InputError, match=r"\(90, 16\), expected \(units, 20\)"):
        decode_rows(indices, values, [(0, weights)], d_in=20)
