"""Chunked arrays: which files belong together, in which order, and what is said when they do not agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, MissingError, SaestoreError
from saestore.formats.activations import open_activations

INFO = "emb_chunks_info.json"


def write_chunks(folder: Path, *, rows: tuple[int, ...] = (4, 3, 5), width: int = 2) -> torch.Tensor:
    whole = torch.arange(float(sum(rows) * width)).reshape(-1, width)
    entries, start = [], 0
    for place, count in enumerate(rows):
        torch.save(whole[start : start + count].clone(), folder / f"emb_chunk_{place}.pt")
        entries.append(
            {"file": f"emb_chunk_{place}.pt", "start_idx": start, "end_idx": start + count, "shape": [count, width]}
        )
        start += count
    content = {"chunks": entries, "total_samples": start, "embedding_dim": width, "num_chunks": len(rows)}
    (folder / INFO).write_text(json.dumps(content))
    return whole


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / INFO).read_text())
    change(content)
    (folder / INFO).write_text(json.dumps(content))


@pytest.mark.parametrize("name", [".", INFO, "emb.pt", "emb"])
def test_every_name_of_a_set_opens_it(tmp_path: Path, name: str) -> None:
    whole = write_chunks(tmp_path)
    source = open_activations(tmp_path / name)
    np.testing.assert_array_equal(source.read(0, 12), whole.numpy())
    np.testing.assert_array_equal(source.read(3, 8), whole.numpy()[3:8])
    assert [file["name"] for file in source.describe()["files"]] == [f"emb_chunk_{i}.pt" for i in range(3)]


@pytest.mark.parametrize("name", [".", "emb.pt"])
def test_a_set_without_a_list_opens_by_its_numbers(tmp_path: Path, name: str) -> None:
    whole = write_chunks(tmp_path, rows=(1,) * 12)
    (tmp_path / INFO).unlink()
    np.testing.assert_array_equal(open_activations(tmp_path / name).read(0, 12), whole.numpy())


def test_numbers_may_start_at_one(tmp_path: Path) -> None:
    whole = write_chunks(tmp_path, rows=(4, 3))
    (tmp_path / INFO).unlink()
    for number in (1, 0):
        (tmp_path / f"emb_chunk_{number}.pt").rename(tmp_path / f"emb_chunk_{number + 1}.pt")
    np.testing.assert_array_equal(open_activations(tmp_path).read(0, 7), whole.numpy())


def test_one_chunk_alone_is_a_file(tmp_path: Path) -> None:
    whole = write_chunks(tmp_path)
    np.testing.assert_array_equal(open_activations(tmp_path / "emb_chunk_1.pt").read(0, 3), whole.numpy()[4:7])


def test_a_whole_file_goes_before_chunks_of_the_same_name(tmp_path: Path) -> None:
    write_chunks(tmp_path)
    torch.save(torch.ones(2, 2), tmp_path / "emb.pt")
    assert open_activations(tmp_path / "emb.pt").n_rows == 2


def test_chunks_of_three_axes_are_samples_and_positions(tmp_path: Path) -> None:
    whole = np.arange(5 * 3 * 2, dtype="f4").reshape(5, 3, 2)
    np.save(tmp_path / "x_chunk_0.npy", whole[:2])
    np.save(tmp_path / "x_chunk_1.npy", whole[2:])
    source = open_activations(tmp_path)
    assert (source.n_rows, source.per_sample, source.describe()["shape"]) == (15, 3, [5, 3, 2])
    np.testing.assert_array_equal(source.read(4, 11), whole.reshape(15, 2)[4:11])


def test_shards_of_n_count_from_one(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        np.save(tmp_path / f"acts-{number:05d}-of-00003.npy", np.full((2, 2), number, "f4"))
    assert open_activations(tmp_path).read(0, 6)[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    (tmp_path / "acts-00003-of-00003.npy").unlink()
    with pytest.raises(MissingError, match="chunk 3 is missing"):
        open_activations(tmp_path)


def test_a_chunk_without_rows_is_skipped(tmp_path: Path) -> None:
    whole = write_chunks(tmp_path, rows=(0, 3, 0, 0, 2, 0))
    np.testing.assert_array_equal(open_activations(tmp_path).read(2, 5), whole.numpy()[2:5])


def test_a_folder_of_layers_is_not_joined(tmp_path: Path) -> None:
    for layer in range(3):
        np.save(tmp_path / f"layer_{layer}.npy", np.ones((2, 2), "f4"))
    with pytest.raises(InputError, match=r"do not say that they are chunks.*layer_0.npy, layer_1.npy"):
        open_activations(tmp_path)


def test_a_folder_of_one_file_is_that_file(tmp_path: Path) -> None:
    np.save(tmp_path / "layer_22.npy", np.ones((2, 2), "f4"))
    assert open_activations(tmp_path).n_rows == 2


def add(entry: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["chunks"].append(entry)


BAD: dict[str, tuple[Callable[[Path], Any], type[SaestoreError], str]] = {
    "file gone": (lambda f: (f / "emb_chunk_1.pt").unlink(), MissingError, "emb_chunk_1.pt is missing"),
    "list gone, file gone": (
        lambda f: ((f / INFO).unlink(), (f / "emb_chunk_1.pt").unlink()),
        MissingError,
        "chunk 1 is missing",
    ),
    "total": (
        lambda f: edit(f, lambda c: c.update(total_samples=13)),
        IntegrityError,
        "hold 12 rows, total_samples says 13",
    ),
    "count": (lambda f: edit(f, lambda c: c.update(num_chunks=4)), IntegrityError, "num_chunks is 4 but 3 files"),
    "width in the list": (
        lambda f: edit(f, lambda c: c.update(embedding_dim=7)),
        IntegrityError,
        "width 2.*embedding_dim 7",
    ),
    "rows of a file": (
        lambda f: torch.save(torch.ones(2, 2), f / "emb_chunk_1.pt"),
        IntegrityError,
        r"emb_chunk_1.pt holds 2 rows, emb_chunks_info.json says 3",
    ),
    "width of a file": (
        lambda f: torch.save(torch.ones(3, 9), f / "emb_chunk_1.pt"),
        IntegrityError,
        r"emb_chunk_1.pt has shape \(3, 9\), emb_chunk_0.pt has \(4, 2\)",
    ),
    "type of a file": (
        lambda f: torch.save(torch.ones(3, 2).half(), f / "emb_chunk_1.pt"),
        IntegrityError,
        "emb_chunk_1.pt has type float16",
    ),
    "gap": (
        lambda f: edit(f, lambda c: (c["chunks"].pop(1), c.update(num_chunks=2, total_samples=9))),
        IntegrityError,
        "emb_chunk_2.pt starts at row 7, expected 4",
    ),
    "listed twice": (
        lambda f: edit(f, lambda c: c.update(chunks=[*c["chunks"], c["chunks"][0]], num_chunks=4)),
        IntegrityError,
        "emb_chunk_0.pt is listed twice",
    ),
    "path outside": (
        lambda f: edit(f, lambda c: c["chunks"][0].update(file="../emb_chunk_0.pt")),
        InputError,
        r"chunks\[0\].file",
    ),
    "no JSON": (lambda f: (f / INFO).write_text("{"), InputError, "not valid JSON"),
    "no list": (lambda f: (f / INFO).write_text("{}"), InputError, 'expected a field "chunks"'),
    "JSON list": (lambda f: (f / INFO).write_text("[]"), InputError, 'expected a field "chunks"'),
    "negative": (lambda f: edit(f, lambda c: c.update(total_samples=-1)), InputError, "total_samples is -1"),
    "text": (
        lambda f: edit(f, lambda c: c["chunks"][1].update(start_idx="4")),
        InputError,
        r"chunks\[1\].start_idx is '4'",
    ),
    "two sets": (lambda f: (f / "b_chunks_info.json").write_text("{}"), InputError, "holds 2 chunked arrays"),
    "key of the second": (
        lambda f: [
            torch.save({name: torch.ones(rows, 2)}, f / f"emb_chunk_{i}.pt")
            for i, (name, rows) in enumerate([("a", 4), ("b", 3), ("a", 5)])
        ],
        MissingError,
        "emb_chunk_1.pt has no key 'a'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_sets_that_do_not_agree_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, error, message = BAD[name]
    write_chunks(tmp_path)
    make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        open_activations(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_json_is_not_a_list_of_chunks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"ends with _chunks_info\.json"):
        open_activations(tmp_path / "config.json")
