"""Reading ahead: same results in the same order, one piece ahead, errors where they belong."""

from __future__ import annotations

import threading

import pytest

from saestore.prefetch import prefetch


def test_pieces_come_in_order_and_one_is_read_ahead() -> None:
    begun: list[int] = []
    second = threading.Event()

    def read(piece: int) -> int:
        begun.append(piece)
        if piece == 1:
            second.set()
        return piece * piece

    pieces = prefetch(read, [0, 1, 2, 3])
    assert next(pieces) == (0, 0)
    assert second.wait(5), "the next piece is read while the caller holds this one"
    assert begun == [0, 1], "and no more than one"
    assert list(pieces) == [(1, 1), (2, 4), (3, 9)]
    assert list(prefetch(read, [])) == []


def test_an_error_comes_at_its_piece() -> None:
    pieces = prefetch(lambda piece: 1 // piece, [1, 0, 1])
    assert next(pieces) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(pieces)
