"""`saestore label` on a lake that the commands have made: what it prints, and what it leaves in the lake."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_runs import Run

import saestore


@pytest.fixture
def copied(lake: str, tmp_path: Path) -> Path:
    """A copy of the session's lake, to which labels may be added."""
    shutil.copytree(lake, tmp_path / "lake")
    return tmp_path / "lake"


def test_labels_of_words(copied: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "places.yaml").write_text("place::bridge: [bridge]\nplace::harbour: [harbour, 'quiet  harbour']\n")
    ran = run("label", copied, "texts", "--words", tmp_path / "places.yaml", "--parents", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    header, *rows, last = ran.out.splitlines()
    assert header.split() == ["concept", "samples", "yes", "no", "unlabelled"]
    assert [row.split()[:2] for row in rows] == [["place::bridge", "4"], ["place::harbour", "4"], ["place", "8"]]
    labels = saestore.open(copied).labels("texts")
    n = len(labels)
    assert last == f"{n:,} of {n:,} positions of texts: data/texts/mini/labels/concepts, labelled"

    lake = saestore.open(copied)
    positions, contents = lake.positions("texts"), lake.samples("texts").contents()
    sample = positions.sample_of(np.arange(n))
    starts, ends = positions.group.read("char_start"), positions.group.read("char_end")
    tokens = [contents[s][a:b].lower() for s, a, b in zip(sample, starts, ends, strict=True)]
    assert {tokens[row] for row in np.flatnonzero(labels.concept("place::bridge") == 1)} == {"bridge"}
    assert {tokens[row] for row in np.flatnonzero(labels.concept("place::harbour") == 1)} == {"quiet", "harbour"}
    assert not labels.read()[positions.special()].any()

    again = run("label", copied, "texts", "--words", tmp_path / "places.yaml", "--parents", "--json")
    assert again.code == 0
    assert (again.json["rows"], again.json["labelled_rows"]) == (n, 0)
    assert [count["samples"] for count in again.json["concepts"]] == [4, 4, 8]
    told = run("label", copied, "texts", "--words", tmp_path / "places.yaml", "--parents")
    assert told.out.splitlines()[-1].startswith("nothing to do: all ")

    status = run("status", copied, "--json")
    groups = [group for group in status.json["groups"] if group["kind"] == "labels"]
    assert [(group["dataset"], group["model"], group["rows"], group["state"], group["note"]) for group in groups] == [
        ("texts", "mini", n, "done", "concepts: 3 concepts")
    ]
