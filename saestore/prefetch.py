"""Reading ahead while the caller works, and reading several things at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Content = TypeVar("Content")


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


class ReadingPool:
    """Threads that last as long as the process, and are made anew in a child: they do not survive a fork.

    Without that a child, such as a DataLoader's worker, would wait forever for the threads of its parent.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start)

    def map(self, read: Callable[[Piece], Content], pieces: Iterable[Piece]) -> list[Content]:
        """Return what `read` gives for each piece; it must not use the same pool."""
        return list(self._pool.map(read, pieces))

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="saestore-read")


_pool = ReadingPool(16)


def together(read: Callable[[Piece], Content], pieces: Sequence[Piece]) -> list[Content]:
    """Return what `read` gives for each piece, asked for at once. `read` must not call this function itself.

    Examples
    --------
    >>> together(len, ["a", "bb"])
    [1, 2]
    """
    return [read(piece) for piece in pieces] if len(pieces) < 2 else _pool.map(read, pieces)
