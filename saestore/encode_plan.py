"""The memory plan of encoding: what is held, how many rows go at a time, and what it will cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from saestore.budget import readable_bytes, require_memory
from saestore.codes import index_dtype
from saestore.layout import CodesKey
from saestore.progress import clock
from saestore.rows import Grid
from saestore.saes.config import SAEConfig

TASKS_AT_ONCE = 2
"""Shards in work at a time: one computes while the other reads or writes."""

_BLOCK_ROWS = 4_096
_SMALLEST_BLOCK = 256


@dataclass(frozen=True)
class EncodePlan:
    """What one pair of SAE and activations will cost, made before any work.

    rows : rows still to encode
    held : whether the encoder matrix stays in memory, or is read once per block of rows
    block_rows : rows encoded at a time
    weight_passes : times that the encoder matrix is read
    peak_bytes : expected peak memory of the process
    write_bytes : bytes to write, before compression
    seconds : expected time, from a short calibration of the device
    """

    key: CodesKey
    rows: int
    k: int
    held: bool
    block_rows: int
    weight_passes: int
    peak_bytes: int
    write_bytes: int
    seconds: float

    def line(self) -> str:
        """The plan in one line."""
        weights = "weights in memory" if self.held else f"weights read {self.weight_passes} times"
        return (
            f"{self.key.path}: {self.rows:,} rows to encode, k {self.k}, blocks of {self.block_rows:,} rows, "
            f"{weights}, memory up to {readable_bytes(self.peak_bytes)}, "
            f"writes up to {readable_bytes(self.write_bytes)}, about {clock(self.seconds)}"
        )


def plan_encode(
    key: CodesKey,
    config: SAEConfig,
    grid: Grid,
    *,
    k: int,
    rows: int,
    value_bytes: int,
    device: str,
    baseline: int,
    budget: int,
) -> EncodePlan:
    """Choose what is held in memory and how many rows are encoded at a time.

    Parameters
    ----------
    rows : int
        Rows still to encode.
    value_bytes : int
        Bytes of a stored value.
    baseline, budget : int
        Bytes that the process used before any SAE was loaded, and may use.

    Raises
    ------
    BudgetError
        Not even the smallest blocks fit.
    """
    from saestore.encoder import STREAM_BYTES
    from saestore.kernels.encode import plan_tile, working_bytes

    shard_rows = min(grid.shard_rows, grid.rows)
    index_bytes = index_dtype(config.d_sae).itemsize
    buffers = (TASKS_AT_ONCE + 2) * shard_rows * (k * (index_bytes + 4) + 4)

    def peak(block: int, *, held: bool) -> int:
        tile = plan_tile(config.d_in, config.d_sae, block, device=device)
        weights = config.d_sae * config.d_in * 4 if held else 3 * STREAM_BYTES
        blocks = (TASKS_AT_ONCE + 2) * block * config.d_in * 4
        working = working_bytes(block, k, d_in=config.d_in, tile=tile, device=device)
        return baseline + buffers + weights + blocks + working

    block = min(_BLOCK_ROWS, shard_rows)
    held = peak(block, held=True) <= budget
    if not held:
        # Every pass over the weights is paid for by more rows at a time.
        block = shard_rows
        while block > _SMALLEST_BLOCK and peak(block, held=False) > budget:
            block //= 2
    needed = peak(block, held=held)
    require_memory(
        needed,
        budget=budget,
        what=f"encoding {key.path}",
        remedy="give more with --memory, or close other programs",
    )
    return EncodePlan(
        key=key,
        rows=rows,
        k=k,
        held=held,
        block_rows=block,
        weight_passes=1 if held else -(-rows // grid.shard_rows) * -(-shard_rows // block),
        peak_bytes=needed,
        write_bytes=rows * (k * (index_bytes + value_bytes) + 4),
        seconds=2.0 * rows * config.d_in * config.d_sae / _flops(config.d_in, device),
    )


@functools.cache
def _flops(d_in: int, device: str) -> float:
    """Multiplications and additions per second, from a short calibration."""
    from saestore.kernels.encode import calibrate

    return calibrate(d_in, device=device)
