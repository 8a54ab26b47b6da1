"""The real tables of the seven concept datasets, read through the catalog: what docs/concepts.md says of them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from saestore.catalogs import load_catalog
from saestore.samples import SPLITS, SampleTable, samples_from_entry

PAGE = Path(__file__).parents[1] / "docs" / "concepts.md"
NAMES = ("CLEVR", "Coco", "Broden-Pascal", "Broden-OpenSurfaces", "Sarcasm", "iSarcasm", "GoEmotions")


def numbers_of(page: str) -> dict[str, list[int]]:
    """The table of section 11: samples, train, cal, test, labels, concepts."""
    lines = page.split("## 11.")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: [int(cell.replace(",", "")) for cell in numbers] for name, *numbers in cells[1:]}


@pytest.fixture(scope="module")
def documented() -> dict[str, list[int]]:
    return numbers_of(PAGE.read_text())


def table_of(name: str) -> SampleTable:
    entry = load_catalog().dataset(name)
    if not entry.table_path().exists():
        pytest.skip(f"the table of {name} is not on this machine; set SAESTORE_METADATA to the folder that has it")
    return samples_from_entry(entry, check_files=False)


def test_the_page_names_the_datasets_of_the_catalog(documented: dict[str, list[int]]) -> None:
    assert tuple(documented) == NAMES
    assert all(len(numbers) == 6 for numbers in documented.values())
    assert {name for name, entry in load_catalog().datasets.items() if entry.concepts} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_samples_splits_and_concepts_are_those_of_the_page(name: str, documented: dict[str, list[int]]) -> None:
    table = table_of(name)
    split = np.array(table.split)
    used = {
        concept
        for pattern in load_catalog().dataset(name).concepts
        for concept in table.concept_names
        if fnmatchcase(concept, pattern)
    }
    found = [len(table), *(int((split == one).sum()) for one in SPLITS), len(table.concept_names), len(used)]
    assert found == documented[name]
    assert sum(found[1:4]) == found[0], "every sample is in one split"


@pytest.mark.parametrize("name", NAMES)
def test_every_concept_that_is_used_can_be_learned_and_tested(name: str) -> None:
    table = table_of(name)
    split = np.array(table.split)
    for pattern in load_catalog().dataset(name).concepts:
        fitting = [place for place, concept in enumerate(table.concept_names) if fnmatchcase(concept, pattern)]
        assert fitting, f"{pattern} fits no label"
        for place in fitting:
            for one in SPLITS:
                labels = table.concepts[split == one, place]
                assert {0, 1} <= set(labels.tolist()), (table.concept_names[place], one)


def test_the_numbers_of_the_page_are_read_from_it() -> None:
    page = re.sub("634", "635", PAGE.read_text())
    assert numbers_of(page)["CLEVR"] == [1000, 635, 200, 166, 6, 6]
