"""Dask over shard tasks: one coarse task per shard, threads by default, a cluster when there is one.

A task is a picklable value that names its work and does it when called; it writes its own results to the lake. Only
names and numbers travel.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from saestore.errors import DependencyError, InputError
from saestore.progress import Progress

_WINDOW_PER_WORKER = 4


class ShardTask(Protocol):
    """Work on some shards that does not depend on any other task, and may be done twice without harm."""

    @property
    def size(self) -> int:
        """Units of progress in the task."""

    def run(self, advance: Callable[[int], None]) -> Any:
        """Do the work, calling `advance` with units as they are done; return a few names or numbers, or nothing."""


def run_tasks(
    tasks: Sequence[ShardTask],
    *,
    label: str,
    unit: str,
    threads: int = 2,
    scheduler: str | None = None,
    quiet: bool = False,
) -> list[Any]:
    """Run all tasks and return what each returned; the first failure ends the run, and what is written by then stays.

    Parameters
    ----------
    label, unit : str
        For the progress display.
    threads : int
        Tasks at a time on this machine; two overlap one's reading and writing with the other's computing.
    scheduler : str, optional
        Address of a `distributed` scheduler; by default the active client if there is one, else threads.
    quiet : bool
        Show no progress.
    """
    if not tasks:
        return []
    with (
        _client(scheduler) as client,
        Progress(label, total=sum(task.size for task in tasks), unit=unit, quiet=quiet) as progress,
    ):
        if client is None:
            return _run_threads(tasks, progress.advance, threads)
        returned: list[Any] = [None] * len(tasks)
        for number, one in _run_cluster(client, tasks):
            returned[number] = one
            progress.advance(tasks[number].size)
        return returned


def uses_cluster(scheduler: str | None) -> bool:
    """Whether `run_tasks` would run on a cluster, where work is worth cutting into many tasks."""
    return scheduler is not None or _active_client() is not None


class _StoppedError(Exception):
    """Another task failed, or the user pressed Ctrl-C: this one ends at its next block."""


def _run_threads(tasks: Sequence[ShardTask], advance: Callable[[int], None], threads: int) -> list[Any]:
    from dask.base import compute
    from dask.delayed import delayed

    stop = threading.Event()

    def step(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(count)

    # Dask starts tasks that do not depend on each other in any order. Each takes the next in ours, since shard after
    # shard is what disks, and readers of a half-written lake, like best.
    waiting = iter(enumerate(tasks))
    returned: list[Any] = [None] * len(tasks)

    def run_next() -> None:
        number, task = next(waiting)
        returned[number] = task.run(step)

    work = [delayed(run_next, pure=False)() for _ in tasks]
    pool = ThreadPoolExecutor(max(1, min(threads, len(tasks))), thread_name_prefix="saestore-task")
    try:
        compute(*work, scheduler="threads", pool=pool)
    except BaseException:
        # Threads cannot be killed, and Python waits for them before it ends: without this a Ctrl-C would take as long
        # as the shards in work.
        stop.set()
        raise
    finally:
        # Tasks end at their next block; what comes after must not find them still at work.
        pool.shutdown(wait=True, cancel_futures=True)
    return returned


def _run_cluster(client: Any, tasks: Sequence[ShardTask]) -> Iterator[tuple[int, Any]]:
    """Yield tasks that are done, by their numbers, and what they returned.

    A window of them is kept in flight, so that a million shards do not become a million-task graph.
    """
    from distributed import as_completed

    waiting = iter(enumerate(tasks))
    window = _WINDOW_PER_WORKER * max(1, sum(client.nthreads().values()))
    first = itertools.islice(waiting, window)
    futures = {client.submit(_do, task, pure=False): number for number, task in first}
    finished = as_completed(list(futures), loop=client.loop)
    for future in finished:
        returned = future.result()
        yield futures.pop(future), returned
        following = next(waiting, None)
        if following is not None:
            submitted = client.submit(_do, following[1], pure=False)
            futures[submitted] = following[0]
            finished.add(submitted)


def _do(task: ShardTask) -> Any:
    return task.run(_silent)


def _silent(count: int) -> None:
    """Progress of a task on a cluster is counted when it ends."""


@contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    """Give the client of the scheduler at an address, closed afterwards, or the active one, or None."""
    if scheduler is None:
        yield _active_client()
        return
    try:
        from distributed import Client
    except ImportError:
        raise DependencyError(
            f"--scheduler {scheduler} needs dask.distributed; install it with: pip install 'saestore[cluster]'"
        ) from None
    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler} ({error}); check the address") from None
    with client:
        yield client


def _active_client() -> Any:
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None
