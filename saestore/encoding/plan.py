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

_SHARD_ROWS = 262_144
_SHARD_BYTES = 64 << 20
_CHUNK_ROWS = 8_192
_CHUNK_BYTES = 4 << 20
_SHARD_FLOP = 5e13  # a killed run loses at most some minutes of work on a laptop

_BLOCK_ROWS = 4_096
_SMALLEST_BLOCK = 256
# What eight reading threads have fetched, checked and not yet given back to the system, and compiled code. Measured.
_OVERHEAD_BYTES = 192 << 20
_QUALITY_ROWS, _QUALITY_BLOCK = 2_048, 1_024


@dataclass(frozen=True)
class EncodePlan:
    """What one pair of SAE and activations will cost, made before any work.

    rows : rows still to encode
    k : slots per row; None in the plan of the pass that finds the largest l0
    held : whether the encoder matrix stays in memory, or is read once per block of rows
    block_rows : rows encoded at a time
    weight_passes : times that the encoder matrix is read
    peak_bytes : expected peak memory of the process
    write_bytes : bytes to write, before compression
    seconds : expected time, from a short calibration of the device
    """

    key: CodesKey
    rows: int
    k: int | None
    held: bool
    block_rows: int
    weight_passes: int
    peak_bytes: int
    write_bytes: int
    seconds: float

    def line(self) -> str:
        """The plan in one line."""
        weights = "weights in memory" if self.held else f"weights read {self.weight_passes} times"
        if self.k is None:
            what = f"{self.rows:,} rows to count the active units of, k is the most in a row"
            writes = ""
        else:
            what = f"{self.rows:,} rows to encode, k {self.k}"
            writes = f"writes up to {readable_bytes(self.write_bytes)}, "
        return (
            f"{self.key.path}: {what}, blocks of {self.block_rows:,} rows, {weights}, "
            f"memory up to {readable_bytes(self.peak_bytes)}, {writes}about {clock(self.seconds)}"
        )


def plan_encode(
    key: CodesKey,
    config: SAEConfig,
    grid: Grid,
    *,
    k: int | None,
    rows: int,
    value_bytes: int,
    device: str,
    baseline: int,
    budget: int,
    hold: bool = True,
) -> EncodePlan:
    """Choose what is held in memory and how many rows are encoded at a time.

    Parameters
    ----------
    k : int or None
        Slots per row; None plans the pass over the rows that finds the largest l0 and writes nothing.
    rows : int
        Rows still to encode.
    value_bytes : int
        Bytes of a stored value.
    baseline, budget : int
        Bytes that the process used before any SAE was loaded, and may use.
    hold : bool
        Whether the encoder matrix may stay in memory if it fits.

    Raises
    ------
    BudgetError
        Not even the smallest blocks fit.
    """
    from saestore.encoding.encoder import STREAM_BYTES
    from saestore.kernels.encode import plan_tile, working_bytes

    shard_rows = min(grid.shard_rows, grid.rows)
    index_bytes = index_dtype(config.d_sae).itemsize
    slots = k or 1
    tasks = min(TASKS_AT_ONCE, grid.n_shards)
    # The arrays of a shard, and one of them compressed: its chunks, and the object they are joined to.
    of_shard = (
        0 if k is None else shard_rows * (k * (index_bytes + value_bytes + 2 * max(index_bytes, value_bytes)) + 4)
    )
    stream = min(STREAM_BYTES, config.d_sae * config.d_in * 4)

    def peak(block: int, *, held: bool) -> int:
        tile = plan_tile(config.d_in, config.d_sae, block, device=device)
        # Two runs of units in work, one waiting and one being read; W_dec is streamed for the quality in any case.
        weights = (config.d_sae * config.d_in * 4 if held else 0) + 4 * stream
        working = working_bytes(block, slots, d_in=config.d_in, tile=tile, device=device)
        # Of the task that computes the rows as read, centred, scaled and shifted; of the other what it has read; and
        # of each the block that is being read ahead, as stored and widened.
        x = (4 + 2 * (tasks - 1) + 2 * tasks) * block * config.d_in * 4
        shards = tasks * of_shard + x + tasks * block * slots * 40
        # Rows, their reconstruction and normalised copies, and a block of them in float64 with its differences.
        quality = min(_QUALITY_ROWS, grid.rows) * (config.d_in * 12 + slots * 40) + _QUALITY_BLOCK * config.d_in * 40
        return baseline + _OVERHEAD_BYTES + weights + working + max(shards, quality)

    block = min(_BLOCK_ROWS, shard_rows)
    held = hold and peak(block, held=True) <= budget
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
        write_bytes=0 if k is None else rows * (k * (index_bytes + value_bytes) + 4),
        seconds=2.0 * rows * config.d_in * config.d_sae / _flops(config.d_in, device),
    )


def plan_grid(rows: int, k: int, config: SAEConfig, value_bytes: int) -> Grid:
    """Cut the rows of codes into shards of bounded bytes and bounded work, and chunks of bounded bytes."""
    row_bytes = k * max(index_dtype(config.d_sae).itemsize, value_bytes)
    chunk = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    affordable = int(_SHARD_FLOP / (2 * config.d_in * config.d_sae))
    shard = min(_SHARD_ROWS, _SHARD_BYTES // row_bytes, max(_CHUNK_ROWS // 2, affordable))
    return Grid.plan(rows, shard_rows=max(1, shard), chunk_rows=chunk)


@functools.cache
def _flops(d_in: int, device: str) -> float:
    """Multiplications and additions per second, from a short calibration."""
    from saestore.kernels.encode import calibrate

    return calibrate(d_in, device=device)
