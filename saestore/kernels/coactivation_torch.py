"""Joint sums of sparse codes on a device of torch: dense rows of sums for blocks of units, as many as fit.

Sums are float64 where the device has it, in an order that the device chooses; r is made on the host as for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saestore.kernels.entry_orders import RowMajor, UnitMajor
from saestore.kernels.pair_rules import Ends, Found, Rule

_BLOCK_BYTES = 1 << 29
"""Of the sums and counts of a block of units; picking among them takes about as much again."""

_PRODUCTS = 1 << 23
"""Products that are added at once, of about 40 bytes each."""


def pairs_on(
    a: UnitMajor,
    places_a: NDArray[np.integer[Any]],
    b: RowMajor,
    ends: Ends,
    rule: Rule,
    *,
    device: str,
    block_bytes: int = _BLOCK_BYTES,
    products: int = _PRODUCTS,
) -> Iterator[tuple[Found, int]]:
    """Find pairs block by block of units of a: what is kept, and the number of units done by then.

    Parameters
    ----------
    a, places_a, b, rule
        As for `found_pairs`.
    ends : Ends
        Over the same rows as `a` and `b`.
    device : str
    block_bytes : int
        Of the sums and counts of a block, which has one unit at least.
    products : int
        Added at once, or those of one entry of a.
    """
    place = torch.device(device)
    # What has no float64 (MPS) picks a little more in float32, and the rule then decides on these sums.
    dtype, slack = (torch.float32, 1 - 1e-4) if place.type == "mps" else (torch.float64, 1 - 1e-12)

    def on_device(array: NDArray[Any], kind: torch.dtype) -> torch.Tensor:
        # Converted before it is sent: the device may not have the type that it comes in.
        return torch.tensor(array).to(kind).to(place)

    pointers, units = on_device(b.pointers, torch.int64), on_device(b.units.astype(np.int32), torch.int32)
    values = on_device(b.values, torch.float32)
    mean_b, deviation_b, active_b = (on_device(e, dtype) for e in (ends.mean_b, ends.deviation_b, ends.active_b))
    numbers_b = torch.arange(b.n_units, device=place)
    lengths = np.diff(b.pointers)
    m, step = len(places_a), max(1, block_bytes // (max(1, b.n_units) * (dtype.itemsize + 4)))
    for first in range(0, m, step):
        stop = min(first + step, m)
        sums = torch.zeros((stop - first) * b.n_units, dtype=dtype, device=place)
        counts = torch.zeros(len(sums), dtype=torch.int32, device=place)
        for low, high in _cuts(lengths, a.rows, int(a.pointers[first]), int(a.pointers[stop]), products):
            unit = np.searchsorted(a.pointers[first : stop + 1], np.arange(low, high), side="right") - 1
            rows = on_device(a.rows[low:high].astype(np.int64), torch.int64)
            x = on_device(a.values[low:high], dtype)
            of_unit = on_device(unit * b.n_units, torch.int64)
            begin = pointers[rows]
            many = pointers[rows + 1] - begin
            entry = torch.repeat_interleave(torch.arange(high - low, device=place), many)
            inside = torch.arange(len(entry), device=place) - (torch.cumsum(many, 0) - many)[entry]
            source = begin[entry] + inside
            target = of_unit[entry] + units[source]
            sums.index_add_(0, target, x[entry] * values[source].to(dtype))
            counts.index_add_(0, target, torch.ones_like(target, dtype=torch.int32))
        chosen = slice(first, stop)
        sum_a, deviation_a, active_a = (
            on_device(each[chosen], dtype)[:, None] for each in (ends.sum_a, ends.deviation_a, ends.active_a)
        )
        table, together = sums.view(stop - first, -1), counts.view(stop - first, -1)
        least = ends.n * rule.min_r * slack * deviation_a * deviation_b
        passes = ((table - sum_a * mean_b).abs() >= least) & (deviation_a > 0) & torch.isfinite(deviation_b)
        passes &= (together >= rule.min_support) | (active_a * active_b / ends.n >= rule.min_support)
        if rule.within:
            passes &= numbers_b > on_device(places_a[chosen].astype(np.int64), torch.int64)[:, None]
        at_a, at_b = (each.cpu().numpy() for each in torch.nonzero(passes, as_tuple=True))
        r = ends.correlation(at_a + first, at_b, table[passes].cpu().numpy().astype(np.float64))
        kept = np.abs(r) >= rule.min_r
        n_ab = together[passes].cpu().numpy().astype(np.int64)[kept]
        part = Found(places_a[at_a[kept] + first].astype(np.uint32), at_b[kept].astype(np.uint32), r[kept], n_ab)
        yield part, stop


def _cuts(
    lengths: NDArray[np.int64], rows: NDArray[np.uint32], low: int, high: int, products: int
) -> Iterator[tuple[int, int]]:
    """Cut the entries `low:high` of a so that each part makes so many products at most, or is one entry."""
    before = np.append(0, np.cumsum(lengths[rows[low:high]]))
    at = 0
    while at < high - low:
        fits = int(np.searchsorted(before, before[at] + products, side="right")) - 1
        end = max(fits, at + 1)
        yield low + at, low + end
        at = end
