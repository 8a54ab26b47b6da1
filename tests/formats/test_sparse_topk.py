"""Codes of the legacy scripts: files are made by the scripts' own steps and compared with their definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saestore.errors import InputError, IntegrityError, MissingError, SaestoreError
from saestore.formats.sparse_topk import open_codes


def clip_scope_codes(z: torch.Tensor, k: int) -> dict[str, Any]:
    """What compute_activations_sae_sparse.py saves for CLIP-Scope: k largest z (signed), scattered, top-k again."""
    top = z.topk(k)
    latent = torch.zeros_like(z).scatter(1, top.indices, top.values)
    values, indices = latent.topk(k)
    return {"indices": indices, "values": values, "format": "sparse_topk", "topk": k}


def gemma_scope_codes(h: torch.Tensor, threshold: torch.Tensor, k: int) -> dict[str, Any]:
    """What the script saves for Gemma Scope: JumpReLU, then top-k, padded with zeros."""
    values, indices = (h.relu() * (h > threshold)).topk(k)
    return {"indices": indices, "values": values, "format": "sparse_topk", "topk": k}


def save_chunks(folder: Path, codes: dict[str, Any], edges: list[int], n_features: int) -> Path:
    """Save as the script does, with its wrong bounds: end_idx lags by one batch in all chunks but the last."""
    name, entries = "clipscope_patch_sparse_layer22", []
    total = len(codes["values"])
    for place, (start, end) in enumerate(pairwise(edges)):
        part = {**codes, "indices": codes["indices"][start:end].clone(), "values": codes["values"][start:end].clone()}
        torch.save(part, folder / f"{name}_chunk_{place}.pt")
        lag = 0 if end == total else 2
        entries.append(
            {
                "file": f"{name}_chunk_{place}.pt",
                "start_idx": max(0, start - 2),
                "end_idx": end - lag,
                "n_samples": end - start,
            }
        )
    content = {
        "chunks": entries,
        "total_samples": total,
        "n_features": n_features,
        "topk": codes["topk"],
        "format": "sparse_topk",
        "num_chunks": len(entries),
    }
    path = folder / f"{name}_chunks_info.json"
    path.write_text(json.dumps(content))
    return path


def in_slot_order(dense: np.ndarray[Any, Any], k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Brute force: the non-zero entries of each row by (magnitude descending, unit ascending), then empty slots."""
    indices, values = np.zeros((len(dense), k), np.uint32), np.zeros((len(dense), k), dense.dtype)
    for row, entries in enumerate(dense):
        units = sorted(np.flatnonzero(entries), key=lambda unit: (-abs(float(entries[unit])), unit))
        assert len(units) <= k
        indices[row, : len(units)] = units
        values[row, : len(units)] = entries[units]
    return indices, values


def masked_dense(codes: dict[str, Any], d_sae: int) -> np.ndarray[Any, Any]:
    """What every script that reads the format makes of it: value > 0 counts, the rest is absent."""
    values = codes["values"].numpy()
    dense = np.zeros((len(values), d_sae), values.dtype)
    for row, slot in np.argwhere(values > 0):
        dense[row, int(codes["indices"][row, slot])] = values[row, slot]
    return dense


def z_with_ties(rows: int, d_sae: int, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, d_sae, generator=generator) + shift).mul(4).round().div(4)


@pytest.mark.parametrize("shift", [-3.0, -1.0, 2.0])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_clip_scope_files_give_the_k_largest_positive_units(
    tmp_path: Path, shift: float, index_dtype: torch.dtype
) -> None:
    z = z_with_ties(200, 64, shift)
    codes = clip_scope_codes(z, 8)
    codes["indices"] = codes["indices"].to(index_dtype)
    torch.save(codes, tmp_path / "codes.pt")
    with open_codes(tmp_path / "codes.pt", d_sae=64) as source:
        assert (source.n_rows, source.k, source.d_sae, source.dtype) == (200, 8, 64, "float32")
        indices, values, l0 = source.read(0, 200)
    assert l0 is None
    assert (indices.dtype, values.dtype) == (np.uint32, np.float32)
    expected = in_slot_order(masked_dense(codes, 64), 8)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    # The closed form of the scripts, from z itself: which of equal z are kept is torch's choice, their values are not.
    np.testing.assert_array_equal(values, np.sort(z.numpy().clip(0), axis=1)[:, :-9:-1])


def test_gemma_scope_chunks_are_joined_whatever_their_bounds_say(tmp_path: Path) -> None:
    codes = gemma_scope_codes(z_with_ties(90, 40, 0.0), torch.linspace(0, 2, 40), 6)
    path = save_chunks(tmp_path, codes, [0, 31, 32, 70, 90], 40)
    expected = in_slot_order(masked_dense(codes, 40), 6)
    for given_path in (path, tmp_path, tmp_path / "clipscope_patch_sparse_layer22.pt"):
        source = open_codes(given_path)
        assert (source.n_rows, source.d_sae) == (90, 40)
        for start, stop in [(0, 90), (30, 33), (69, 71), (90, 90)]:
            indices, values, _ = source.read(start, stop)
            np.testing.assert_array_equal(indices, expected[0][start:stop])
            np.testing.assert_array_equal(values, expected[1][start:stop])


@settings(max_examples=60, deadline=None)
@given(draw=st.data())
def test_any_codes_in_any_slot_order_come_back_normalised(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    n, k, d_sae = draw.draw(st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(5, 9)))
    dtype = draw.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    signed = draw.draw(st.booleans())
    steps = draw.draw(hnp.arrays(np.int8, (n, k), elements=st.integers(-3 if signed else 0, 3)))
    units = np.array([draw.draw(st.permutations(range(d_sae)))[:k] for _ in range(n)], np.int64).reshape(n, k)
    values = torch.from_numpy(steps.astype(np.float32) / 2).to(dtype)
    path = tmp_path_factory.mktemp("codes") / "codes.pt"
    torch.save({"indices": torch.from_numpy(units), "values": values}, path)
    dense = np.zeros((n, d_sae), np.float32)
    np.put_along_axis(dense, units, values.float().numpy(), axis=1)
    source = open_codes(path, d_sae=d_sae, negatives="keep" if signed else "refuse")
    indices, read, _ = source.read(0, n)
    assert source.dtype == str(dtype).removeprefix("torch.")
    if dtype == torch.bfloat16:
        assert read.dtype == np.uint16
        read = torch.from_numpy(read.view(np.int16)).view(torch.bfloat16).float().numpy()
    expected = in_slot_order(dense, k)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(read.astype(np.float32), expected[1])
    start, stop = sorted(draw.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    np.testing.assert_array_equal(source.read(start, stop)[0], expected[0][start:stop])


def codes_of(indices: list[list[int]], values: list[list[float]], **more: Any) -> dict[str, Any]:
    tensors = {"indices": torch.tensor(indices), "values": torch.tensor(values)}
    return {**tensors, "format": "sparse_topk", "topk": len(values[0]), **more}


def test_empty_slots_may_hold_any_index(tmp_path: Path) -> None:
    torch.save(codes_of([[5, 5, -1], [999, 7, 5]], [[1.0, 0.0, -0.0], [0.0, 0.5, 2.0]]), tmp_path / "x.pt")
    indices, values, _ = open_codes(tmp_path / "x.pt", d_sae=10).read(0, 2)
    assert indices.tolist() == [[5, 0, 0], [5, 7, 0]]
    assert values.tolist() == [[1.0, 0.0, 0.0], [2.0, 0.5, 0.0]]
    assert not np.signbit(values).any()


def test_negative_values_are_an_error_an_empty_slot_or_a_code(tmp_path: Path) -> None:
    torch.save(codes_of([[1, 2], [3, 4]], [[2.0, 1.0], [-1.0, 0.5]]), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"row 1 holds a negative value.*drop.*keep"):
        open_codes(tmp_path / "x.pt").read(0, 2)
    assert open_codes(tmp_path / "x.pt", negatives="drop").read(1, 2)[0].tolist() == [[4, 0]]
    indices, values, _ = open_codes(tmp_path / "x.pt", negatives="keep").read(1, 2)
    assert (indices.tolist(), values.tolist()) == ([[3, 4]], [[-1.0, 0.5]])


def test_describe_is_json_and_names_the_files(tmp_path: Path) -> None:
    codes = gemma_scope_codes(z_with_ties(9, 40, 0.0), torch.zeros(40), 6)
    described = json.loads(json.dumps(open_codes(save_chunks(tmp_path, codes, [0, 4, 9], 40)).describe()))
    assert [file["name"][-10:] for file in described["files"]] == ["chunk_0.pt", "chunk_1.pt"]
    assert described["bytes"] == sum(file.stat().st_size for file in tmp_path.glob("*.pt"))
    assert (described["shape"], described["index_dtype"], described["d_sae"]) == ([9, 6], "int64", 40)


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "twice": (codes_of([[1, 2, 3], [4, 5, 4]], [[1.0, 1, 1], [3, 2, 1]]), "row 1 holds the same unit twice"),
    "beyond": (codes_of([[1, 2, 3], [4, 10, 0]], [[1.0, 1, 1], [3, 2, 1]]), "row 1 holds a unit outside 0 to 9"),
    "below": (codes_of([[1, 2, 3], [4, -2, 0]], [[1.0, 1, 1], [3, 2, 1]]), "row 1 holds a unit outside 0 to 9"),
    "nan": (codes_of([[1, 2, 3], [4, 2, 0]], [[1.0, 1, 1], [3, float("nan"), 1]]), "row 1 holds a value that is not"),
    "inf": (codes_of([[1, 2, 3], [4, 2, 0]], [[1.0, 1, 1], [float("inf"), 1, 1]]), "row 1 holds a value that is not"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_their_number_in_the_whole(tmp_path: Path, name: str) -> None:
    codes, message = BAD_ROWS[name]
    torch.save(codes, tmp_path / "x_chunk_1.pt")
    torch.save(codes_of([[1, 2, 3]] * 5, [[3.0, 2, 1]] * 5), tmp_path / "x_chunk_0.pt")
    source = open_codes(tmp_path, d_sae=10)
    source.read(0, 6)
    with pytest.raises(InputError, match=message.replace("row 1", "row 6")) as caught:
        source.read(3, 7)
    assert "\n" not in str(caught.value)


GOOD = codes_of([[1, 2], [3, 4]], [[2.0, 1.0], [1.0, 0.5]])
BAD_FILES: dict[str, tuple[Any, type[SaestoreError], str]] = {
    "tensor": (torch.ones(3, 3), InputError, "not a sparse_topk file.*found one tensor"),
    "no values": ({"indices": torch.zeros(2, 2), "format": "sparse_topk"}, InputError, "found format, indices"),
    "filtered": ({**GOOD, "format": "sparse_filtered"}, InputError, "renumbered units"),
    "format": ({**GOOD, "format": "dense"}, InputError, "format 'dense'"),
    "topk": ({**GOOD, "topk": 3}, IntegrityError, "topk says 3, the arrays have 2"),
    "shapes": ({**GOOD, "values": torch.ones(2, 3)}, InputError, r"\(2, 2\), values \(2, 3\)"),
    "index type": ({**GOOD, "indices": torch.zeros(2, 2)}, InputError, "indices are float32"),
    "value type": ({**GOOD, "values": torch.ones(2, 2).int()}, InputError, "values int32"),
    "objects": ({**GOOD, "topk": np.int64(2), "x": Path("x")}, InputError, "Python objects"),
    "no rows": (
        codes_of([[0]], [[1.0]]) | {k: GOOD[k][:0] for k in ("indices", "values")} | {"topk": 2},
        InputError,
        "no rows",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, error, message = BAD_FILES[name]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(error, match=message) as caught:
        open_codes(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


def second_chunk(**more: Any) -> Callable[[Path], Any]:
    return lambda folder: torch.save({**GOOD, **more}, folder / "x_chunk_1.pt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (second_chunk(**codes_of([[1, 2, 3]], [[3.0, 2, 1]])), "3 slots of float32, x_chunk_0.pt has 2"),
        (second_chunk(values=GOOD["values"].half()), "2 slots of float16"),
        (second_chunk(indices=GOOD["indices"].int()), "int32 indices"),
    ],
)
def test_chunks_that_differ_are_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    torch.save(GOOD, tmp_path / "x_chunk_0.pt")
    make(tmp_path)
    with pytest.raises(IntegrityError, match=message):
        open_codes(tmp_path)


def test_d_sae_is_checked_against_the_list_and_k(tmp_path: Path) -> None:
    path = save_chunks(tmp_path, GOOD, [0, 2], 40)
    with pytest.raises(InputError, match="40 units, d_sae 41 was given"):
        open_codes(path, d_sae=41)
    torch.save(GOOD, tmp_path / "one.pt")
    with pytest.raises(InputError, match="2 slots per row, more than the 1 units"):
        open_codes(tmp_path / "one.pt", d_sae=1)
    with pytest.raises(InputError, match="d_sae is 0"):
        open_codes(tmp_path / "one.pt", d_sae=0)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "topk": 32}))
    with pytest.raises(IntegrityError, match="topk says 32"):
        open_codes(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", indices=np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"not a .pt file"):
        open_codes(tmp_path / "x.npz")
    with pytest.raises(MissingError, match="does not exist"):
        open_codes(tmp_path / "gone.pt")
    torch.save(GOOD, tmp_path / "x.pt")
    with pytest.raises(InputError, match="0:2"):
        open_codes(tmp_path / "x.pt").read(1, 3)
