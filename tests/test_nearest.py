from __future__ import annotations

from saestore._nearest import nearest


def test_near_names_come_first_and_their_number() -> None:
    assert nearest("cub", ["tree", "cube", "cup"], "concepts") == "nearest of 3 concepts: 'cube', 'cup'"


def test_without_near_names_there_are_all_or_the_first() -> None:
    assert nearest("zzz", [], "concepts") == "it has no concepts"
    assert nearest("zzz", ["a", "b"], "concepts") == "its 2 concepts: 'a', 'b'"
    many = [f"n{number}" for number in range(1_000)]
    assert nearest("zzz", many, "names") == "it has 1,000 names, the first 'n0', 'n1', 'n2'"


def test_of_very_many_names_those_with_the_same_beginning_are_compared() -> None:
    many = [f"img_{number:07}" for number in range(20_000)]
    assert "'img_0012349'" in nearest("img_001234x9", many, "samples")
    assert nearest("zzz", many, "samples").startswith("it has 20,000 samples, the first 'img_0000000'")
    assert nearest("", many, "samples").startswith("it has 20,000 samples")
