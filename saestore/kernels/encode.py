"""Encode rows with a sparse autoencoder: tiles of a matrix product, each followed by the running selection.

On the CPU a pool of threads shares blocks of rows: each thread multiplies its block with one core and scans the
product while that lies in its cache. Against a product on all cores followed by a scan on all cores this has no
barrier inside a tile, does not fight the spinning threads of OpenMP, and the bits do not depend on the number of
threads, since the shapes of the products depend only on the rows and the tile.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch

from saestore.errors import InputError
from saestore.kernels.topk import DeviceTopK, FloatArray, RunningTopK, TopK, UnitRule

__all__ = [
    "ROW_GROUP",
    "Precision",
    "TopK",
    "UnitRule",
    "calibrate",
    "encode_rows",
    "plan_tile",
    "relative_error",
    "working_bytes",
]

Precision = Literal["fp32", "tf32", "bf16"]
"""What the operands of a product are rounded to; sums are float32 always."""

ROW_GROUP = 16
"""Give rows in whole groups of these: a product of 1 to 3 rows is made by other instructions and differs in its last
bits, so that codes would depend on the block of rows."""

# Rows of one product on one core. Measured with 1024-unit tiles on 2 cores with 1 MiB of L2 each: 256 rows reach 0.97
# and 1024 rows 1.00 of the speed of 512, and fewer rows balance better over threads.
_ROWS = 512
_CPU_TILE = 1024
_FINITE_ROWS = 1024  # the test for finite numbers makes copies
_DEVICE_BUFFER_BYTES = 256 << 20

# By process as well, since a forked child has the dictionary but not the threads.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()

# The precision of CUDA products is one setting for the whole process.
_cuda_precision_lock = threading.Lock()


def plan_tile(d_in: int, d_sae: int, n: int, *, device: str = "cpu") -> int:
    """Units per tile of the encoder for blocks of ``n`` rows.

    CPU: the product of one thread, 512 rows x 1024 units, is 2 MiB: it is scanned while it lies in the second level
    cache or just outside it. Measured at d_in 1024 and 3584: tiles of 1024 and 2048 units are equally fast, 4096
    lose 3 to 5 percent. d_in does not matter, since the product blocks that dimension itself.

    Other devices: the product of all rows has to fill the device and to fit beside the weights: as many units as
    256 MiB hold, a power of two between 1,024 and 65,536.
    """
    if torch.device(device).type == "cpu":
        tile = _CPU_TILE
    else:
        units = _DEVICE_BUFFER_BYTES // (4 * max(n, 1))
        tile = min(max(1 << max(units.bit_length() - 1, 0), 1024), 65536)
    return min(tile, d_sae)


def working_bytes(
    n: int,
    k: int,
    *,
    d_in: int,
    tile: int,
    device: str = "cpu",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> int:
    """Peak bytes that `encode_rows` needs beside the rows themselves: products, candidates and weight tiles."""
    # Of the rows and of three tiles a copy in bfloat16, and one in float32 where those are not multiplied as such.
    rounded = (n + 3 * tile) * d_in * 6 if precision == "bf16" else 0
    if torch.device(device).type == "cpu":
        threads = threads or torch.get_num_threads()
        products = threads * _row_block(n) * tile * 4
        candidates = n * (8 * (k + max(k, 32)) + 16)
        return products + candidates + 3 * tile * d_in * 4 + n * (8 * k + 4) + rounded
    # The product, its masks, what topk works with, the merge of kept and new units, and the tiles in work, being copied
    # and not yet given back.
    return n * tile * 12 + n * k * 64 + 3 * tile * d_in * 4 + rounded


def relative_error(precision: Precision) -> float:
    """The most that rounding the operands adds to a product, as a part of ``sum_i |x_i| |w_i|``: ``2 u + u^2``.

    ``u`` is 0 for fp32, 2^-10 for tf32 and 2^-8 for bf16; `encode_rows` has the whole bound.
    """
    u = {"fp32": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}[precision]
    return 2 * u + u * u


def encode_rows(
    x: torch.Tensor,
    tiles: Iterable[tuple[int, torch.Tensor]],
    rule: UnitRule,
    k: int,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> TopK:
    """The k largest activations of each row under the rule, and the true number of active units.

    Parameters
    ----------
    x : (n, d_in)
        Rows as the encoder multiplies them: normalised, and without the decoder's bias where the SAE says so.
    tiles
        Pairs of the first unit and its ``(t, d_in)`` block of the transposed encoder, units ascending. Each is used
        once, so they may be read on the fly; on the CPU up to three are alive at a time, on other devices the next is
        read while one is multiplied.
    rule
        Arrays of length d_sae.
    k
        Slots per row; a top-k architecture stores at most its own K.
    device
        Where the products are made.
    threads
        CPU threads; the default is torch's own number. It does not change the result.
    precision : {"fp32", "tf32", "bf16"}
        What the operands of the products are rounded to; sums are float32. `fp32` is that on CUDA too, whatever torch
        is set to there. `tf32` is for CUDA alone. `bf16` rounds rows and weights to bfloat16, which CUDA multiplies
        faster; elsewhere the rounded operands are multiplied as float32, which gives the same numbers up to the order
        of summation and is no faster.

    Returns
    -------
    TopK
        indices uint32 and values float32 of shape (n, min(k, K)), l0 uint32 (n,), slots by (magnitude descending,
        unit ascending).

    Raises
    ------
    InputError
        Rows that are not finite, tiles of the wrong width or out of order, a precision that the device has not.

    Notes
    -----
    A product ``p = sum_i x_i w_i`` comes out as ``p_hat`` with ``|p_hat - p| <= (2 u + u^2 + (1 + u)^2 g) sum_i |x_i|
    |w_i|``. ``u`` bounds the relative error of rounding an operand: 0 for fp32, 2^-8 for bf16, which keeps 8
    significant bits and rounds to nearest, 2^-10 for tf32, which keeps 11 and may cut off the rest. ``g = d e / (1 - d
    e)`` bounds that of summing d = d_in terms in any order: e is 2^-24 where sums are rounded to nearest, 2^-23 where
    they are cut off, as in tensor cores. Units whose activations are closer to each other, or to the threshold, than
    that may change places.

    References
    ----------
    N. J. Higham (2002), "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1 (``gamma_n``).
    """
    if k < 1:
        raise InputError(f"k is {k}, expected at least 1 slot per row")
    _check_precision(precision, device)
    x = x.detach().to(device=device, dtype=torch.float32).contiguous()
    blocks = (x[start : start + _FINITE_ROWS] for start in range(0, len(x), _FINITE_ROWS))
    broken = sum((int((~torch.isfinite(block).all(dim=1)).sum()) for block in blocks), 0)
    if broken:
        raise InputError(
            f"{broken} of {len(x)} rows hold values that are not finite: repair or leave out these activations"
        )
    if x.device.type == "cpu":
        return _encode_cpu(x, tiles, rule, k, threads or torch.get_num_threads(), precision)
    return _encode_device(x, tiles, rule, k, precision)


def _encode_cpu(
    x: torch.Tensor,
    tiles: Iterable[tuple[int, torch.Tensor]],
    rule: UnitRule,
    k: int,
    threads: int,
    precision: Precision,
) -> TopK:
    x = _rounded(x, precision)
    rows = _row_block(len(x))
    blocks = [x[start : start + rows] for start in range(0, len(x), rows)]
    states = [RunningTopK(len(block), k, topk=rule.topk) for block in blocks]
    pool = _pool(threads)

    def step(block: int, tile: torch.Tensor, first: int, part: UnitRule, before: Future[None] | None) -> None:
        if before is not None:
            # Tasks start in the order of submission, so this one is running or done: no deadlock.
            before.result()
        states[block].update(_product(blocks[block], tile), first, part)

    running: list[Future[None] | None] = [None] * len(blocks)
    end = 0
    try:
        for first, weights in tiles:
            _check_tile(weights, first, end, x)
            tile = _rounded(weights.detach(), precision)
            end = first + len(tile)
            part = rule.tile(first, len(tile))
            # Two tiles are in flight, so that no thread waits for the slowest block of a tile.
            earlier = running
            running = [pool.submit(step, b, tile, first, part, earlier[b]) for b in range(len(blocks))]
            for future in earlier:
                if future is not None:
                    future.result()
    finally:
        for future in running:
            if future is not None:
                future.exception()
    for future in running:
        if future is not None:
            future.result()
    finished = list(pool.map(RunningTopK.finish, states))
    if not finished:
        return RunningTopK(0, k, topk=rule.topk).finish()
    return TopK(
        indices=np.concatenate([part.indices for part in finished]),
        values=np.concatenate([part.values for part in finished]),
        l0=np.concatenate([part.l0 for part in finished]),
    )


def _encode_device(
    x: torch.Tensor, tiles: Iterable[tuple[int, torch.Tensor]], rule: UnitRule, k: int, precision: Precision
) -> TopK:
    state = DeviceTopK(len(x), k, topk=rule.topk, device=x.device)
    rows = _rounded(x, precision)
    buffer = x.new_empty(0)
    with torch.no_grad():
        uploads = _uploads(tiles, x, precision)
        following = next(uploads, None)
        while following is not None:
            first, tile = following
            if buffer.numel() < len(x) * len(tile):
                buffer = x.new_empty(len(x) * len(tile))
            products = buffer[: len(x) * len(tile)].view(len(x), len(tile))
            _multiply(rows, tile, products, precision)
            # The device makes the product meanwhile; the selection waits for it.
            following = next(uploads, None)
            state.update(products, first, rule.tile(first, len(tile)))
    return state.finish()


def _uploads(
    tiles: Iterable[tuple[int, torch.Tensor]], x: torch.Tensor, precision: Precision
) -> Iterator[tuple[int, torch.Tensor]]:
    """Tiles on the device of the rows; to CUDA they are copied beside what it works on already."""
    copies = torch.cuda.Stream(x.device) if x.device.type == "cuda" else None  # type: ignore[no-untyped-call]
    end = 0
    for first, weights in tiles:
        _check_tile(weights, first, end, x)
        end = first + len(weights)
        if copies is None or weights.device.type != "cpu":
            yield first, _rounded(weights.detach(), precision).to(x.device)
            continue
        with torch.cuda.stream(copies):
            tile = _rounded(weights.detach().pin_memory().to(x.device, non_blocking=True), precision)
        work = torch.cuda.current_stream(x.device)
        work.wait_stream(copies)
        tile.record_stream(work)  # so that its memory is not given away before the product is made
        yield first, tile


def _check_precision(precision: Precision, device: str | torch.device) -> None:
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise InputError(f"precision tf32 was given for the device {device}, but only CUDA has it: use fp32 or bf16")


def _rounded(operand: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Rows or weights as `_multiply` takes them."""
    if precision == "bf16":
        operand = operand.to(torch.bfloat16)
        if operand.device.type == "cuda":
            return operand
    return operand.to(torch.float32)


def _multiply(rows: torch.Tensor, tile: torch.Tensor, products: torch.Tensor, precision: Precision) -> None:
    """``rows @ tile.T`` of `_rounded` operands into float32 ``products``."""
    if rows.device.type != "cuda":
        torch.mm(rows, tile.T, out=products)
    elif precision == "bf16":
        torch.mm(rows, tile.T, out_dtype=torch.float32, out=products)
    else:
        with _cuda_precision(precision):
            torch.mm(rows, tile.T, out=products)


@contextmanager
def _cuda_precision(precision: Precision) -> Iterator[None]:
    """Set what CUDA makes of float32 operands, for the launch of one product."""
    matmul: Any = torch.backends.cuda.matmul
    with _cuda_precision_lock:
        before = matmul.fp32_precision
        matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def _check_tile(weights: torch.Tensor, first: int, end: int, x: torch.Tensor) -> None:
    if first < end:
        raise InputError(f"a tile of the encoder begins at unit {first} after unit {end}: give tiles in order of units")
    if weights.ndim != 2 or weights.shape[1] != x.shape[1]:
        raise InputError(
            f"a tile of the encoder has shape {tuple(weights.shape)} and the rows are {x.shape[1]} wide, "
            "expected (units, d_in): does this SAE belong to these activations?"
        )


def _row_block(n: int) -> int:
    """Rows per task: fewer in small calls, so that four threads have work. Never depends on the number of threads."""
    return min(_ROWS, max(64, -(-n // 64) * ROW_GROUP))


_scratch = threading.local()


def _product(rows: torch.Tensor, tile: torch.Tensor) -> FloatArray:
    """``rows @ tile.T`` in this thread's buffer, which the next call overwrites."""
    size = len(rows) * len(tile)
    buffer: torch.Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or not size <= buffer.numel() <= 4 * size:
        buffer = torch.empty(size, dtype=torch.float32)
        _scratch.buffer = buffer
    products = buffer[:size].view(len(rows), len(tile))
    with torch.no_grad():
        torch.mm(rows, tile.T, out=products)
    array: FloatArray = products.numpy()
    return array


class _Inline(Executor):
    """Runs tasks in the calling thread: for callers that are limited to one core each, such as workers of a pool."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(threads: int) -> Executor:
    """A lasting pool of threads that each use one core for torch, shared by all callers in the process."""
    if threads == 1 and torch.get_num_threads() == 1:
        return _Inline()
    key = (os.getpid(), threads)
    with _pools_lock:
        if key not in _pools:
            before = torch.get_num_threads()
            ready = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)
                ready.wait()

            pool = ThreadPoolExecutor(threads, thread_name_prefix="saestore-encode", initializer=start)
            for _ in range(threads):
                pool.submit(int)
            ready.wait()
            # The number is the thread's own, but the last one set is also what new threads begin with.
            torch.set_num_threads(before)
            _pools[key] = pool
        return _pools[key]


def calibrate(
    d_in: int, *, device: str | torch.device = "cpu", precision: Precision = "fp32", seconds: float = 0.2
) -> float:
    """Floating point operations per second of the encoder's products, measured for ``seconds`` (for estimates)."""
    _check_precision(precision, device)
    kind = torch.device(device).type
    threads = torch.get_num_threads() if kind == "cpu" else 1
    rows = _ROWS * threads if kind == "cpu" else 4096
    units = plan_tile(d_in, 1 << 20, rows, device=kind)
    x = _rounded(torch.full((rows, d_in), 1e-3, device=device), precision)
    tile = _rounded(torch.full((units, d_in), 1e-3, device=device), precision)
    products = torch.empty((rows, units) if kind != "cpu" else 0, device=device)

    def once() -> None:
        if kind == "cpu":
            list(_pool(threads).map(lambda block: float(_product(block, tile)[0, 0]), torch.split(x, _ROWS)))
        else:
            _multiply(x, tile, products, precision)
            float(products[0, 0])

    once()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        once()
        done += 1
    return 2.0 * rows * units * d_in * done / (time.perf_counter() - begin)
