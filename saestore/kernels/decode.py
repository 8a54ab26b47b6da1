"""Reconstruct activations from codes: a sparse sum of decoder rows, streamed over tiles of units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from saestore.errors import InputError
from saestore.kernels.quantize import as_float32


def decode_rows(
    indices: NDArray[Any],
    values: NDArray[Any],
    tiles: Iterable[tuple[int, torch.Tensor]],
    *,
    d_in: int,
    bias: NDArray[np.float32] | None = None,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """``sum_j values[i, j] * W_dec[indices[i, j]] + bias`` for each row i.

    Parameters
    ----------
    indices, values : (n, k)
        Codes as stored (uint16 values are bfloat16 patterns); empty slots have value 0. Where the SAE divides by
        decoder norms, the caller does so to the values.
    tiles
        Pairs of the first unit and its ``(t, d_in)`` block of W_dec, in any order, each unit once; the whole matrix
        is ``[(0, W_dec)]``. Units of no tile add nothing.
    d_in
        Width of a decoder row.
    bias : (d_in,) or None
        b_dec.
    device
        Where the sums are made.

    Returns
    -------
    torch.Tensor
        (n, d_in) float32 on the device.

    Raises
    ------
    InputError
        A tile is not d_in wide.
    """
    units = torch.tensor(np.asarray(indices).astype(np.int64), device=device)
    weights = torch.tensor(as_float32(np.asarray(values)), device=device)
    n = len(units)
    # MPS has no embedding_bag in every release we support; a dense latent block works everywhere.
    add_tile = _add_dense if weights.device.type == "mps" else _add_sparse
    with torch.no_grad():
        out = torch.zeros((n, d_in), dtype=torch.float32, device=device)
        if bias is not None:
            out += torch.tensor(bias, dtype=torch.float32, device=device)
        for first, block in tiles:
            if block.ndim != 2 or block.shape[1] != d_in:
                raise InputError(f"a tile of the decoder has shape {tuple(block.shape)}, expected (units, {d_in})")
            tile = block.detach().to(device=device, dtype=torch.float32)
            inside = (units >= first) & (units < first + len(tile)) & (weights != 0)
            add_tile(out, units - first, weights, inside, tile)
    return out


def _add_sparse(
    out: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, inside: torch.Tensor, tile: torch.Tensor
) -> None:
    """Add the weighted rows of the tile; reads only the rows of W_dec that are used (1.4 times a CSR product)."""
    counts = inside.sum(dim=1)
    if not bool(counts.any()):
        return
    out += embedding_bag(
        columns[inside], tile, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weights[inside]
    )


def _add_dense(
    out: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, inside: torch.Tensor, tile: torch.Tensor
) -> None:
    """The same by a dense (n, t) block of latents and a matrix product."""
    latents = out.new_zeros((len(out), len(tile)))
    latents.scatter_add_(1, columns.clamp(0, len(tile) - 1), torch.where(inside, weights, 0.0))
    out.addmm_(latents, tile)
