"""Reading ahead: the next piece is fetched while the caller works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
