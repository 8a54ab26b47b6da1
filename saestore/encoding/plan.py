"""The plan of a pass over activations: what is held in memory, how many rows go at a time, and what it will cost.

A pass reads the rows of one group of activations once and encodes them with one SAE or several.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saestore.budget import readable_bytes, require_memory
from saestore.code_rows import CHUNK_ROWS, index_dtype
from saestore.layout import ActivationsKey
from saestore.progress import clock
from saestore.rows import Grid
from saestore.saes.config import DENSE, SAEConfig

if TYPE_CHECKING:
    from saestore.kernels.encode import Precision
    from saestore.saes.lake import LakeWeights

TASKS_AT_ONCE = 2
"""Shards in work at a time: one computes while the other reads or writes."""

_SHARD_ROWS = 262_144
_SHARD_BYTES = 64 << 20
_CHUNK_BYTES = 4 << 20
_SHARD_FLOP = 1.5e14  # a killed run loses at most some minutes of work on a laptop

_BLOCK_ROWS = 4_096
_SMALLEST_BLOCK = 256
# What eight reading threads have fetched, checked and not yet given back to the system, and compiled code. Measured.
_OVERHEAD_BYTES = 208 << 20
_NOT_GIVEN_BACK_BYTES = 80 << 20  # of what was freed while blocks are read and encoded. Measured.
_READING_COPIES = 1.5  # of a block while it is read: as stored, which is often half, and widened
_FLOAT64_ROWS = 1_024  # rows that the quality's sums widen at once

# The quality of codes is measured on this share of the rows, or on as many as cost so little, within these bounds.
_CHECKED_SHARE = 64
_CHECKED_FLOP = 1e11
_FEWEST_CHECKED, _MOST_CHECKED = 256, 2_048

# Compressed bytes of a stored value, measured on real and synthetic codes; unit ids keep their own bits.
_STORED_VALUE = {2: 1.2, 4: 3.2}

_SHORT_SECONDS, _CALIBRATION_SECONDS, _LONG_WORK_SECONDS = 0.2, 2.0, 100.0
_READ_SAMPLE_BYTES = 32 << 20


@dataclass(frozen=True)
class Source:
    """The activations of a pass.

    rows : rows to read
    row_bytes : stored bytes of a row
    sampled_rows : rows in the chunks that are read for the check of the quality
    """

    key: ActivationsKey
    rows: int
    row_bytes: float
    sampled_rows: int


@dataclass(frozen=True)
class Part:
    """One SAE in a pass.

    sae : its name in the lake
    rows : rows still to encode
    k : slots per row; None in a pass that finds the largest l0 and writes nothing
    value_bytes, state_bytes : bytes of a stored value, and of what is stored of a row's normalisation
    checked : rows on which the quality is measured before
    longest : positions of the longest sample, where samples are encoded as sequences; else 0
    is_new : whether the pass is the first of its SAE, which loads it
    """

    sae: str
    config: SAEConfig
    grid: Grid
    rows: int
    k: int | None
    value_bytes: int
    state_bytes: int
    checked: int
    longest: int
    is_new: bool

    @property
    def slots(self) -> int:
        """Slots per row while encoding."""
        return self.k or 1

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard."""
        return min(self.grid.shard_rows, self.grid.rows)

    @property
    def flop(self) -> float:
        """Multiplications and additions of the encoder's products; while k is not known, of both passes."""
        rows = 2 * self.rows if self.k is None else self.rows
        return 2.0 * (rows + self.checked) * self.config.d_in * self.config.d_sae

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the encoder's matrix in memory, of all parameters where SAELens holds the SAE."""
        if self.config.architecture in DENSE:
            from saestore.encoding.dense import weight_bytes

            return weight_bytes(self.config)
        return 4 * self.config.d_sae * self.config.d_in

    @property
    def stored_matrix_bytes(self) -> int:
        """Bytes of the same matrix in the lake."""
        return self.matrix_bytes // (2 if self.config.dtype in ("float16", "bfloat16") else 1)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of decoder rows that the check of the quality reads, at most."""
        return 4 * self.config.d_out * min(self.config.d_sae, self.checked * self.slots)

    @property
    def shard_bytes(self) -> int:
        """Bytes of the arrays of a shard, and of one of them compressed: its chunks, and the object of them all."""
        if self.k is None:
            return 0
        index_bytes = index_dtype(self.config.d_sae).itemsize
        slot = index_bytes + self.value_bytes + 2 * max(index_bytes, self.value_bytes)
        return self.shard_rows * (self.k * slot + 4 + self.state_bytes)

    @property
    def write_bytes(self) -> int:
        """Expected bytes to write: the bits that unit ids need, compressed values, l0, and the state of the rows."""
        if self.k is None:
            return 0
        id_bytes = math.log2(max(2, self.config.d_sae)) / 8
        return int(self.rows * (self.k * (id_bytes + _STORED_VALUE[self.value_bytes]) + 1 + self.state_bytes))

    def passes(self, block_rows: int) -> int:
        """Times that the matrix of a streamed SAE is read: for each block, and for the check of the quality."""
        blocks = -(-self.rows // self.shard_rows) * -(-self.shard_rows // block_rows)
        return blocks * (2 if self.k is None else 1) + (self.checked > 0)


@dataclass(frozen=True)
class EncodePlan:
    """What one pass will cost, made before any work.

    While k is not known, the pass that finds it and the one that encodes cost about the same: all numbers but
    `write_bytes`, which is then 0, are of both, and the second is planned again when k is known.

    source : the activations
    parts : the SAEs that encode them
    held : whether encoder matrices stay in memory, or are read once per block of rows
    block_rows : rows encoded at a time
    weight_passes : times that the encoder matrix is read, the check of the quality included
    peak_bytes : expected peak memory of the process
    read_bytes, write_bytes : expected bytes to read (activations and weights) and to write
    flop : multiplications and additions
    seconds : expected time, from a short calibration of the device and of reading; None where SAELens encodes
    """

    source: ActivationsKey
    parts: tuple[Part, ...]
    held: bool
    block_rows: int
    weight_passes: int
    peak_bytes: int
    read_bytes: int
    write_bytes: int
    flop: float
    seconds: float | None

    @property
    def rows(self) -> int:
        """Rows to encode, counted for each SAE."""
        return sum(part.rows for part in self.parts)

    def line(self) -> str:
        """The plan in one line."""
        names = ", ".join(part.sae if part.k is None else f"{part.sae} (k {part.k})" for part in self.parts)
        rows = f"{max(part.rows for part in self.parts):,} rows"
        times = "once" if self.weight_passes == 1 else f"{self.weight_passes} times"
        weights = "weights in memory" if self.held else f"weights read {times}"
        if self.parts[0].k is None:
            what, writes = f"{rows} to encode with {names}, after a pass to count the active units (k)", "writes by k, "
        else:
            what, writes = f"{rows} to encode with {names}", f"writes {readable_bytes(self.write_bytes)}, "
        dense = [part.sae for part in self.parts if part.config.architecture in DENSE]
        if dense:
            weights += f", {', '.join(dense)} densely by SAELens"
        return (
            f"{self.source.path}: {what}, blocks of {self.block_rows:,} rows, {weights}, "
            f"memory up to {readable_bytes(self.peak_bytes)}, reads {readable_bytes(self.read_bytes)}, {writes}"
            f"{self.flop / 1e12:,.1f} TFLOP, {about(self.seconds)}"
        )


@dataclass(frozen=True)
class Resources:
    """Where the work is done, and what it may use.

    precision : of the encoder's products; see `saestore.kernels.encode.Precision`
    baseline : bytes that this process used before any SAE was loaded
    budget : bytes that it may use
    device_budget : bytes of the device's own memory; None where it shares that of the process
    """

    device: str
    precision: Precision
    baseline: int
    budget: int
    device_budget: int | None


def about(seconds: float | None) -> str:
    """Return an expected time as people read it."""
    return "time unknown" if seconds is None else f"about {clock(seconds)}"


def plan_encode(
    source: Source,
    parts: Sequence[Part],
    resources: Resources,
    *,
    held_bytes: int | None,
    weights: LakeWeights,
) -> EncodePlan:
    """Choose how many rows are encoded at a time, and say what it will cost.

    Parameters
    ----------
    source : Source
    parts : sequence of Part
        The SAEs that encode them in this pass.
    held_bytes : int or None
        Bytes of the encoder matrices that are in memory meanwhile, those of this pass or more; None streams the
        weights of the one part.
    weights : LakeWeights
        Those of one of the SAEs, for measuring how fast they are read.

    Raises
    ------
    BudgetError
        Not even the smallest blocks fit; the message names the smallest memory that does.
    """
    held = held_bytes is not None
    assert held or len(parts) == 1, "a streamed SAE has its passes for itself"

    def peak(block: int) -> tuple[int, int]:
        return _peak_bytes(parts, block, resources, held_bytes)

    def fits(block: int) -> bool:
        host, device = peak(block)
        return host <= resources.budget and device <= (resources.device_budget or device)

    # Every pass over weights that are not held is paid for by more rows at a time.
    shard = min(part.shard_rows for part in parts)
    block = min(_BLOCK_ROWS, shard) if held else shard
    while block > _SMALLEST_BLOCK and not fits(block):
        block //= 2
    host, device = peak(block)
    if not fits(block):
        smallest, budget, where = host, resources.budget, "--memory"
        if resources.device_budget is not None and device > resources.device_budget:
            smallest, budget, where = device, resources.device_budget, "a device with more"
        require_memory(
            smallest,
            budget=budget,
            what=f"encoding {source.key.path} with {', '.join(part.sae for part in parts)}",
            remedy=f"{readable_bytes(smallest)} is the least that can do it: give {where}, or close other programs",
        )
    # Of a streamed SAE, each block of rows and the check read the matrix; a held one is read when it is loaded.
    weight_passes = 1 if held else parts[0].passes(block)
    weight_bytes = sum(part.stored_matrix_bytes * (part.is_new if held else weight_passes) for part in parts)
    gathered = sum(part.gathered_bytes for part in parts)
    passes = 2 if parts[0].k is None else 1
    sampled = source.sampled_rows if any(part.checked for part in parts) else 0
    activation_bytes = int((passes * source.rows + sampled) * source.row_bytes)
    flop = sum(part.flop for part in parts)
    seconds = None
    if not any(part.config.architecture in DENSE for part in parts):
        rate = _read_rate(weights)
        working = _flop_seconds(parts[0].config.d_in, flop, resources)
        # Weights that are held are read before the products, streamed ones beside them.
        seconds = gathered / rate + (working + weight_bytes / rate if held else max(working, weight_bytes / rate))
    return EncodePlan(
        source=source.key,
        parts=tuple(parts),
        held=held,
        block_rows=block,
        weight_passes=weight_passes,
        peak_bytes=host,
        read_bytes=activation_bytes + weight_bytes + gathered,
        write_bytes=sum(part.write_bytes for part in parts),
        flop=flop,
        seconds=seconds,
    )


def checked_rows(rows: int, config: SAEConfig) -> int:
    """Return on how many of so many rows the quality of an SAE's codes is measured."""
    cheap = int(_CHECKED_FLOP / (2 * config.d_in * config.d_sae))
    return min(rows, _MOST_CHECKED, max(_FEWEST_CHECKED, rows // _CHECKED_SHARE, cheap))


def plan_grid(rows: int, k: int, config: SAEConfig, value_bytes: int) -> Grid:
    """Cut the rows of codes into shards of bounded bytes and bounded work, and chunks of bounded bytes.

    All sizes are powers of two, so that of two SAEs' shards one lies within the other and a pass serves both.
    """
    row_bytes = k * max(index_dtype(config.d_sae).itemsize, value_bytes)
    chunk = min(CHUNK_ROWS, _power_of_two(_CHUNK_BYTES // row_bytes))
    affordable = int(_SHARD_FLOP / (2 * config.d_in * config.d_sae))
    shard = min(_SHARD_ROWS, _SHARD_BYTES // row_bytes, max(CHUNK_ROWS // 2, affordable))
    return Grid.plan(rows, shard_rows=_power_of_two(shard), chunk_rows=chunk)


def _power_of_two(most: int) -> int:
    return 1 << max(0, most.bit_length() - 1)


def _peak_bytes(parts: Sequence[Part], block: int, resources: Resources, held_bytes: int | None) -> tuple[int, int]:
    """Return the expected peak of the process's memory, and of the device's own."""
    from saestore.encoding.dense import working_bytes as dense_working_bytes
    from saestore.encoding.encoder import STREAM_BYTES
    from saestore.kernels.encode import plan_tile, working_bytes
    from saestore.saes.decoder import GATHER_BYTES

    def working(part: Part, rows: int) -> int:
        config = part.config
        if config.architecture in DENSE:
            before = part.longest  # rows of a block's first sample
            rows_bytes = before * config.d_in * 8
            return rows_bytes + dense_working_bytes(config, rows + before, part.slots, longest=part.longest)
        tile = plan_tile(config.d_in, config.d_sae, rows, device=resources.device)
        return working_bytes(
            rows,
            part.slots,
            d_in=config.d_in,
            tile=tile,
            device=resources.device,
            precision=resources.precision,
        )

    tasks = min(TASKS_AT_ONCE, max(part.grid.n_shards for part in parts))
    d_in, slots = max(part.config.d_in for part in parts), max(part.slots for part in parts)
    # Two runs of units in work, and one that is being read or waits.
    stream = 3 * min(STREAM_BYTES, max(part.matrix_bytes for part in parts))
    # Of each task the rows as widened, and the block that is being read ahead: as stored and widened. One task at a
    # time computes, with what the SAE makes of the rows before it multiplies them.
    ahead = _READING_COPIES if any(part.shard_rows > block for part in parts) else 0
    x = tasks * (1 + ahead) + (tasks - 1) * _READING_COPIES + max(_own_copies(part.config) for part in parts)
    encoding = max(working(part, block) for part in parts)
    encoding += 0 if held_bytes is None else _NOT_GIVEN_BACK_BYTES  # of a stream the next run takes what is free
    encoding += int(x * block * d_in * 4)
    encoding += tasks * (sum(part.shard_bytes for part in parts) + block * slots * 40)
    # Rows, their reconstruction and normalised copies, a block of them in float64, and decoder rows: a part as read,
    # checked and widened, and the last one.
    checking = max(
        working(part, part.checked)
        + part.checked * (d_in * 16 + part.slots * 40)
        + _FLOAT64_ROWS * part.config.d_out * 40
        + min(3 * GATHER_BYTES, 3 * part.gathered_bytes)
        for part in parts
    )
    weights = (held_bytes or 0) + (0 if held_bytes is not None else stream)
    stages = max(encoding, checking if any(part.checked for part in parts) else 0)
    if held_bytes is not None:
        stages = max(stages, stream)  # while loading
    fixed = resources.baseline + _OVERHEAD_BYTES
    if resources.device_budget is None:
        return fixed + weights + stages, 0
    return fixed + stream + stages, weights + max(working(part, block) for part in parts) + block * d_in * 8


def _own_copies(config: SAEConfig) -> float:
    """Copies of the rows that encoding makes: scaled, centred, and the test for numbers that are not finite."""
    normalized = {"none": 0, "constant_norm_rescale": 1, "layer_norm": 2}[config.normalization]
    return normalized + config.apply_b_dec_to_input + 0.25


@functools.cache
def _flops(d_in: int, device: str, precision: Precision, seconds: float) -> float:
    """Multiplications and additions per second of the encoder's kernel."""
    from saestore.kernels.encode import calibrate

    return calibrate(d_in, device=device, precision=precision, seconds=seconds)


def _flop_seconds(d_in: int, flop: float, resources: Resources) -> float:
    """Return the time that products take; work of minutes is worth a longer look at how fast the device is."""
    quick = flop / _flops(d_in, resources.device, resources.precision, _SHORT_SECONDS)
    if quick < _LONG_WORK_SECONDS:
        return quick
    return flop / _flops(d_in, resources.device, resources.precision, _CALIBRATION_SECONDS)


_read_rates: dict[str, float] = {}


def _read_rate(weights: LakeWeights) -> float:
    """Bytes per second at which weights are read here, checked and widened; measured once per SAE on a run of units."""
    key = weights.content_hash()
    if key not in _read_rates:
        units = slice(0, min(weights.config.d_sae, max(1, _READ_SAMPLE_BYTES // (4 * weights.config.d_in))))
        begin = time.perf_counter()
        read = weights.rows("W_dec", units).nbytes
        _read_rates[key] = read / max(1e-9, time.perf_counter() - begin)
    return _read_rates[key]
