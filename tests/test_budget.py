from __future__ import annotations

import numpy as np
import pytest

from saestore.budget import parse_memory, readable_bytes, require_memory
from saestore.errors import BudgetError, InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (123, 123),
        ("123", 123),
        ("1K", 1024),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("500MB", 500 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("2T", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str | int, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "much", "4 GiB RAM", "-1GiB", "1e9", "0", 0, -5, "0.2", "4,5GiB"])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(InputError, match=r"is not a size.*like 4GiB"):
        parse_memory(text)


def test_default_is_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert parse_memory(None) == 600


def test_the_refusal_names_both_numbers_and_the_remedy() -> None:
    require_memory(10, budget=10, what="a block", remedy="ask for less")
    with pytest.raises(BudgetError, match=r"^a block needs 3\.0 GiB, the budget is 512\.0 MiB; ask for less$"):
        require_memory(3 << 30, budget=512 << 20, what="a block", remedy="ask for less")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5.0 TiB")]
)
def test_readable_bytes(count: int, text: str) -> None:
    assert readable_bytes(count) == text


@pytest.mark.parametrize("given", [5e9, "5000000000", np.int64(5_000_000_000)])
def test_numbers_of_every_type_are_bytes(given: str | int) -> None:
    assert parse_memory(given) == 5_000_000_000


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "9" * 400 + "T"])
def test_numbers_that_are_no_sizes(given: str | int) -> None:
    with pytest.raises(InputError, match="not a size above zero"):
        parse_memory(given)
