"""How fast SAELens encodes in memory: what benchmarks of encoding are held against."""

from __future__ import annotations

import time
from typing import Any

SAELENS_BLOCK = 1_024
"""Rows that SAELens encodes at a time."""


def saelens_rate(sae: Any, x: Any, k: int) -> float:
    """Return the rows per second of SAELens' encode and torch.topk on tensors in memory; nothing is read or written."""
    import torch

    with torch.inference_mode():
        torch.topk(sae.encode(x[:SAELENS_BLOCK]), k, dim=-1)
        begun = time.perf_counter()
        for start in range(0, len(x), SAELENS_BLOCK):
            torch.topk(sae.encode(x[start : start + SAELENS_BLOCK]), k, dim=-1)
        seconds = time.perf_counter() - begun
    return len(x) / seconds
