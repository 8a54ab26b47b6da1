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
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from saestore.errors import InputError
from saestore.kernels.topk import DeviceTopK, FloatArray, RunningTopK, TopK, UnitRule

__all__ = ["TopK", "UnitRule", "calibrate", "encode_rows", "plan_tile", "working_bytes"]

# Rows of one product on one core. Measured with 1024-unit tiles on 2 cores with 1 MiB of L2 each: 256 rows reach 0.97
# and 1024 rows 1.00 of the speed of 512, and fewer rows balance better over threads.
_ROWS = 512
_CPU_TILE = 1024
_DEVICE_BUFFER_BYTES = 256 << 20

# By process as well, since a forked child has the dictionary but not the threads.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


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


def working_bytes(n: int, k: int, *, d_in: int, tile: int, device: str = "cpu", threads: int | None = None) -> int:
    """Peak bytes that `encode_rows` needs beside the rows themselves: products, candidates and weight tiles."""
    if torch.device(device).type == "cpu":
        threads = threads or torch.get_num_threads()
        products = threads * _row_block(n) * tile * 4
        candidates = n * (8 * (k + max(k, 32)) + 16)
        return products + candidates + 3 * tile * d_in * 4 + n * (8 * k + 4)
    # The product, its masks, what topk works with, and the merge of kept and new units.
    return n * tile * 12 + n * k * 64 + 2 * tile * d_in * 4


def encode_rows(
    x: torch.Tensor,
    tiles: Iterable[tuple[int, torch.Tensor]],
    rule: UnitRule,
    k: int,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> TopK:
    """The k largest activations of each row under the rule, and the true number of active units.

    Parameters
    ----------
    x : (n, d_in)
        Rows as the encoder multiplies them: normalised, and without the decoder's bias where the SAE says so.
    tiles
        Pairs of the first unit and its ``(t, d_in)`` block of the transposed encoder, units ascending. Each is used
        once, so they may be read on the fly; on the CPU up to three are alive at a time.
    rule
        Arrays of length d_sae.
    k
        Slots per row; a top-k architecture stores at most its own K.
    device
        Where the products are made.
    threads
        CPU threads; the default is torch's own number. It does not change the result.

    Returns
    -------
    TopK
        indices uint32 and values float32 of shape (n, min(k, K)), l0 uint32 (n,).

    Raises
    ------
    InputError
        Rows that are not finite, tiles of the wrong width or out of order.
    """
    if k < 1:
        raise InputError(f"k is {k}, expected at least 1 slot per row")
    x = x.detach().to(device=device, dtype=torch.float32).contiguous()
    broken = int((~torch.isfinite(x).all(dim=1)).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(x)} rows hold values that are not finite: repair or leave out these activations"
        )
    if x.device.type == "cpu":
        return _encode_cpu(x, tiles, rule, k, threads or torch.get_num_threads())
    return _encode_device(x, tiles, rule, k)


def _encode_cpu(
    x: torch.Tensor, tiles: Iterable[tuple[int, torch.Tensor]], rule: UnitRule, k: int, threads: int
) -> TopK:
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
            tile = _checked(weights, first, end, x)
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


def _encode_device(x: torch.Tensor, tiles: Iterable[tuple[int, torch.Tensor]], rule: UnitRule, k: int) -> TopK:
    state = DeviceTopK(len(x), k, topk=rule.topk, device=x.device)
    buffer = x.new_empty(0)
    end = 0
    with torch.no_grad():
        for first, weights in tiles:
            tile = _checked(weights, first, end, x)
            end = first + len(tile)
            if buffer.numel() < len(x) * len(tile):
                buffer = x.new_empty(len(x) * len(tile))
            products = buffer[: len(x) * len(tile)].view(len(x), len(tile))
            torch.mm(x, tile.T, out=products)
            state.update(products, first, rule.tile(first, len(tile)))
    return state.finish()


def _checked(weights: torch.Tensor, first: int, end: int, x: torch.Tensor) -> torch.Tensor:
    """The tile in the type and on the device of the rows."""
    if first < end:
        raise InputError(f"a tile of the encoder begins at unit {first} after unit {end}: give tiles in order of units")
    if weights.ndim != 2 or weights.shape[1] != x.shape[1]:
        raise InputError(
            f"a tile of the encoder has shape {tuple(weights.shape)} and the rows are {x.shape[1]} wide, "
            "expected (units, d_in): does this SAE belong to these activations?"
        )
    return weights.detach().to(device=x.device, dtype=torch.float32)


def _row_block(n: int) -> int:
    """Rows per task: fewer in small calls, so that four threads have work. Never depends on the number of threads."""
    return min(_ROWS, max(64, -(-n // 64) * 16))


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


def calibrate(d_in: int, *, device: str | torch.device = "cpu", seconds: float = 0.2) -> float:
    """Floating point operations per second of the encoder's products, measured for ``seconds`` (for estimates)."""
    kind = torch.device(device).type
    threads = torch.get_num_threads() if kind == "cpu" else 1
    rows = _ROWS * threads if kind == "cpu" else 4096
    x = torch.full((rows, d_in), 1e-3, device=device)
    tile = torch.full((_CPU_TILE, d_in), 1e-3, device=device)

    def once() -> None:
        if kind == "cpu":
            list(_pool(threads).map(lambda block: float(_product(block, tile)[0, 0]), torch.split(x, _ROWS)))
        else:
            float(torch.mm(x, tile.T)[0, 0])

    once()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        once()
        done += 1
    return 2.0 * rows * _CPU_TILE * d_in * done / (time.perf_counter() - begin)
