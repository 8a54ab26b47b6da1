"""Samples up to a number of samples or tokens, and how far a source is read for them."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from saestore._sample_limits import TokenLimit
from saestore._table_files import BLOCK_ROWS
from saestore.errors import InputError
from saestore.samples import SampleTable, read_samples, standard_input


def words(most: int) -> TokenLimit:
    """A limit that counts words."""
    return TokenLimit(most, lambda texts: [len(text.split()) for text in texts])


def longest_run(texts: list[str], most: int) -> int:
    """How many of the first texts have at most so many words: the rule, one text at a time."""
    total = 0
    for place, text in enumerate(texts):
        total += len(text.split())
        if total > most:
            return place
    return len(texts)


TEXTS = [f"text number {i} " + "word " * (i % 7) for i in range(3 * BLOCK_ROWS)]


def write(path: Path, texts: list[str], after: bytes = b"") -> Path:
    """Write texts in the format that the name says, then bytes that no reader may touch."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".jsonl"):
        lines = [json.dumps({"text": text, "place": place}) for place, text in enumerate(texts)]
    elif name.endswith(".csv"):
        lines = ["text,place", *(f"{text},{place}" for place, text in enumerate(texts))]
    else:
        lines = texts
    packed = "".join(f"{line}\n" for line in lines).encode()
    if path.suffix == ".gz":
        packed = gzip.compress(packed)
    elif path.suffix == ".zst":
        packed = zstandard.compress(packed)
    path.write_bytes(packed + after)
    return path


FILES = ["t.txt", "t.jsonl", "t.csv", "t.txt.gz", "t.jsonl.zst", "t.jsonl.gz"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("most", [3, 100, 3000, 10**6])
def test_the_longest_run_of_whole_samples(tmp_path: Path, name: str, most: int) -> None:
    table = read_samples(write(tmp_path / name, TEXTS), tokens=words(most))
    kept = longest_run(TEXTS, most)
    assert list(table.contents) == TEXTS[:kept]
    assert list(table.ids) == [str(i) for i in range(kept)]
    if "txt" not in name:
        np.testing.assert_array_equal(table.columns["place"], np.arange(kept))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("options", [{"tokens": words(50)}, {"limit": 10}])
def test_a_file_is_read_no_further_than_needed(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    """What follows is no text, no JSON, and no packed frame: a reader who came there would say so."""
    path = write(tmp_path / name, TEXTS, after=b"\xff" * 2_000_000)
    assert 1 < len(read_samples(path, **options)) < 40  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"UTF-8|cannot be read"):
        read_samples(path)


def test_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS, "place": range(len(TEXTS))}).to_parquet(tmp_path / "t.parquet")
    table = read_samples(tmp_path / "t.parquet", tokens=words(4000))
    assert list(table.contents) == TEXTS[: longest_run(TEXTS, 4000)]
    assert len(read_samples(tmp_path / "t.parquet")) == len(TEXTS)


def test_an_iterator_is_read_no_further_than_needed() -> None:
    given = 0

    def endless() -> Iterator[str]:
        nonlocal given
        while True:
            yield TEXTS[given % len(TEXTS)]
            given += 1

    table = read_samples(endless(), tokens=words(2000))
    assert list(table.contents) == TEXTS[: longest_run(TEXTS, 2000)]
    assert given <= len(table) + BLOCK_ROWS
    given = 0
    assert len(read_samples(endless(), limit=BLOCK_ROWS + 3)) == BLOCK_ROWS + 3
    assert given <= 2 * BLOCK_ROWS


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(5, 60), st.integers(1, 40))
def test_every_kind_of_source_keeps_the_same(lengths: list[int], most: int, limit: int) -> None:
    texts = ["x " * length for length in lengths]
    kept = min(longest_run(texts, most), limit)
    sources = [texts, iter(texts), pd.DataFrame({"text": texts}), read_samples(texts)]
    for source in sources:
        assert list(read_samples(source, tokens=words(most), limit=limit).contents) == texts[:kept]


def test_a_table_with_labels_is_read_whole_and_keeps_its_concepts(tmp_path: Path) -> None:
    """The first rows alone would make one concept, of the one class they have."""
    rows = [{"text": f"word {i}", "label": "abc"[i * 3 // len(TEXTS)]} for i in range(len(TEXTS))]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for table in (read_samples(path, tokens=words(20)), read_samples(path, limit=10)):
        assert len(table) == 10
        assert table.concept_names == ("label=a", "label=b", "label=c")
    assert read_samples(path, tokens=words(20), labels=()).concept_names == ()


def test_texts_in_files_of_their_own(tmp_path: Path) -> None:
    for place, text in enumerate(TEXTS[:40]):
        (tmp_path / f"{place}.txt").write_text(text)
    (tmp_path / "39.txt").write_bytes(b"\xff")  # not reached
    frame = pd.DataFrame({"text_path": [f"{place}.txt" for place in range(40)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saestore.samples._FILES_AT_ONCE", 8)
        table = read_samples(frame, root=tmp_path, tokens=words(60))
        assert list(table.contents) == TEXTS[: longest_run(TEXTS, 60)]
        assert len(read_samples(frame, root=tmp_path, limit=12)) == 12
        with pytest.raises(InputError, match=r"39\.txt: not UTF-8"):
            read_samples(frame, root=tmp_path)


def test_lines_of_a_text_file_stay_as_they_are(tmp_path: Path) -> None:
    """Only LF ends a line; a CR before it belongs to the end, other white space to the text. Blank lines are none."""
    lines = [" two  spaces ", "a\ttab", "NA", "007", '"quoted", and a comma', "one\u2028line", "with\rCR", "naïve 🙂"]
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines[:4]).encode() + b"\n\n  \n" + "\n".join(lines[4:]).encode())
    table = read_samples(path)
    assert list(table.contents) == lines
    assert (table.kind, list(table.ids), table.columns) == ("text", [str(i) for i in range(8)], {})
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"blank\.txt: the table is empty"):
        read_samples(tmp_path / "blank.txt")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.BytesIO("One line.\n\nTwo, naïve.\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
    assert list(read_samples(standard_input()).contents) == ["One line.", "Two, naïve."]
    assert not given.closed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    with pytest.raises(InputError, match="standard input is not UTF-8"):
        read_samples(standard_input())


def test_a_zstd_file_of_several_frames_and_one_that_is_cut(tmp_path: Path) -> None:
    """Frames after one another are one text; a text that is cut is an error where it is read to its end."""
    rng = np.random.default_rng(0)
    lines = ["".join(map(chr, rng.integers(97, 122, 300))) for _ in range(2000)]  # more than one piece when packed
    packed = [zstandard.compress("\n".join(part).encode() + b"\n") for part in (lines[:3], lines[3:1500], lines[1500:])]
    path = tmp_path / "t.txt.zst"
    path.write_bytes(b"".join(packed))
    assert list(read_samples(path).contents) == lines
    path.write_bytes(b"".join(packed)[:-5])
    with pytest.raises(InputError, match="it ends in the middle"):
        read_samples(path)


def test_records_of_different_keys(tmp_path: Path) -> None:
    """A column that begins, or ends, in a later block is missing elsewhere."""
    rows: list[dict[str, object]] = [{"text": str(i)} for i in range(BLOCK_ROWS + 5)]
    rows[2]["early"] = 1
    rows[-1]["late"] = 2
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_samples(path)
    assert np.flatnonzero(np.asarray(table.columns["early"]) == 1).tolist() == [2]
    assert np.flatnonzero(np.asarray(table.columns["late"]) == 2).tolist() == [BLOCK_ROWS + 4]
    assert set(read_samples(path, limit=4).columns) == {"early"}


def test_what_is_wrong_keeps_the_number_of_its_row(tmp_path: Path) -> None:
    at = BLOCK_ROWS + 7
    rows: list[dict[str, object]] = [{"text": "a b"} for _ in range(BLOCK_ROWS + 20)]
    rows[at] = {"text": 5}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"t\.jsonl: row {at}: 'text' is int"):
        read_samples(path, tokens=words(10**6))
    rows[at] = {"text": "\ud800"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"row {at}: text holds half of a surrogate pair"):
        read_samples(path, tokens=words(10**6))
    rows[at] = {}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"t\.jsonl: row {at} is an empty object"):
        read_samples(path)


def test_limits_that_keep_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the first sample has 3 tokens and max_tokens is 2; give more, or cut"):
        read_samples(["one two three", "four"], tokens=words(2))
    with pytest.raises(InputError, match="max_tokens is 0; expected a positive number"):
        words(0)
    with pytest.raises(InputError, match="limit 0; expected a positive number"):
        read_samples(["a"], limit=0)
    pictures = SampleTable(ids=["a"], kind="image", contents=["a.png"])
    with pytest.raises(InputError, match="max_tokens is for texts, and these are images"):
        read_samples(pictures, tokens=words(5))
    with pytest.raises(InputError, match="the texts: the table is empty"):
        read_samples(iter([]))
    with pytest.raises(InputError, match="the texts: row 1: 'text' is dict, expected a text"):
        read_samples(iter(["a", {"text": "b"}]))
