"""Pooling of padded hidden states over the positions of each sample, accumulating in float32."""

from __future__ import annotations

from typing import Literal

import torch

PoolKind = Literal["mean", "max", "last"]


def pool(hidden: torch.Tensor, mask: torch.Tensor, kind: PoolKind) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool the used positions of each sample into one row.

    Parameters
    ----------
    hidden : (b, t, d) float tensor
        Hidden states; what stands at positions outside the mask, NaN included, has no effect.
    mask : (b, t) bool tensor
        True at the positions that are used: neither padding nor special tokens.
    kind : {"mean", "max", "last"}
        Mean or maximum over the used positions, or the used position with the highest index.

    Returns
    -------
    pooled : (b, d) float32 tensor
        NaN in rows without a used position.
    n_used : (b,) int64 tensor
        Used positions of each row; what to do where it is 0 is for the caller to say.
    """
    assert hidden.ndim == 3
    assert mask.shape == hidden.shape[:2]
    assert mask.dtype == torch.bool
    n_used = mask.sum(dim=1)
    outside = ~mask.unsqueeze(-1)
    if kind == "mean":
        total = hidden.masked_fill(outside, 0).sum(dim=1, dtype=torch.float32)
        return total / n_used.unsqueeze(-1), n_used  # 0 / 0 is NaN, as promised
    if mask.shape[1] == 0:
        return hidden.new_full((len(hidden), hidden.shape[2]), torch.nan, dtype=torch.float32), n_used
    if kind == "max":
        pooled = hidden.masked_fill(outside, -torch.inf).amax(dim=1).float()
    else:
        position = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, position, -1).amax(dim=1).clamp(min=0)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    return pooled.masked_fill((n_used == 0).unsqueeze(-1), torch.nan), n_used
