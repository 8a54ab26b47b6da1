"""Reading ahead while the caller works, and reading several things at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Content = TypeVar("Content")

_THREADS = 16


def prefetch(read: Callable[[Piece], Content], pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Content]]:
    """Yield each piece with what `read` returns for it; one is read ahead, in a thread, so two are in memory.

    Examples
    --------
    >>> list(prefetch(len, ["a", "bb"]))
    [('a', 1), ('bb', 2)]
    """
    if not pieces:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="saestore-prefetch") as reader:
        ahead = reader.submit(read, pieces[0])
        for number, piece in enumerate(pieces):
            content = ahead.result()
            if number + 1 < len(pieces):
                ahead = reader.submit(read, pieces[number + 1])
            yield piece, content


def together(read: Callable[[Piece], Content], pieces: Sequence[Piece]) -> list[Content]:
    """Return what `read` gives for each piece, asked for at once. `read` must not call this function itself.

    Examples
    --------
    >>> together(len, ["a", "bb"])
    [1, 2]
    """
    return [read(piece) for piece in pieces] if len(pieces) < 2 else list(_pool.map(read, pieces))


_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="saestore-together")


def _start_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="saestore-together")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a child (a DataLoader's worker) would wait for them forever.
    os.register_at_fork(after_in_child=_start_pool)
