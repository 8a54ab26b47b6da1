"""Sparse matrices and vectors of labels in PyTorch files, read and written, against torch itself."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.formats import sparse_coo, torch_files
from saestore.formats.activations import open_activations
from saestore.formats.sparse_coo import open_coo, read_labels
from saestore.formats.torch_files import StoredTensor, sparse_program, write_sparse, write_tensor

torch = pytest.importorskip("torch", reason="torch is not installed")


def matrix(rows: int, units: int, density: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    active = rng.random((rows, units)) < density
    return torch.from_numpy(np.where(active, rng.random((rows, units)) + 0.1, 0).astype(np.float32))


def read_all(path: Path) -> np.ndarray:
    codes = open_coo(path)
    out = np.zeros((codes.n_rows, codes.d_sae), np.float32)
    order = np.random.default_rng(1).permutation(codes.n_rows)
    for row, (units, values) in zip(order, codes.read(order), strict=True):
        assert (np.diff(units) > 0).all()
        assert values.all()
        out[row, units] = values
    np.testing.assert_array_equal(codes.active, np.count_nonzero(out, axis=1))
    return out


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
@pytest.mark.parametrize(("rows", "units", "density"), [(30, 50, 0.2), (1, 1, 1), (5, 3, 0), (4, 100_000, 0.01)])
def test_a_matrix_is_read_as_torch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, units: int, density: float, block: int
) -> None:
    if block < 100 and units > 1000:
        block *= 100
    monkeypatch.setattr(sparse_coo, "_BLOCK", block)
    dense = matrix(rows, units, density)
    torch.save(dense.to_sparse(), tmp_path / "x.pt")
    np.testing.assert_array_equal(read_all(tmp_path / "x.pt"), dense.numpy())


def test_indices_may_lie_interleaved_or_in_a_larger_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = matrix(20, 30, 0.3)
    pairs = dense.nonzero()  # (n, 2): each row beside its unit, as the transpose of it is saved
    values = dense[tuple(pairs.t())]
    n = len(values)
    contiguous, transposed = torch_files._tuple((n, 1)), torch_files._tuple((1, 2))
    of_indices = StoredTensor("LongStorage", (2, n), 16 * n, [pairs.numpy()])
    of_values = StoredTensor("FloatStorage", (n,), 4 * n, [values.numpy()])
    program = sparse_program((20, 30), of_indices, of_values)
    assert program.count(contiguous) == 1
    monkeypatch.setattr(torch_files, "sparse_program", lambda *_: program.replace(contiguous, transposed))
    write_sparse(tmp_path / "x.pt", (20, 30), of_indices, of_values)
    theirs = torch.load(tmp_path / "x.pt", weights_only=True)
    assert theirs._indices().stride() == (1, 2)
    assert torch.equal(theirs.to_dense(), dense)
    np.testing.assert_array_equal(read_all(tmp_path / "x.pt"), dense.numpy())
    part = torch.cat([values, values])[n:]
    torch.save(torch.sparse_coo_tensor(pairs.t(), part, dense.shape, check_invariants=True), tmp_path / "y.pt")
    np.testing.assert_array_equal(read_all(tmp_path / "y.pt"), dense.numpy())


@pytest.mark.parametrize(("rows", "units", "density"), [(30, 50, 0.2), (1, 1, 1), (5, 3, 0)])
def test_a_written_matrix_is_what_torch_writes(tmp_path: Path, rows: int, units: int, density: float) -> None:
    dense = matrix(rows, units, density)
    sparse = dense.to_sparse().coalesce()
    indices, values = (np.ascontiguousarray(part.numpy()) for part in (sparse.indices(), sparse.values()))
    of_indices = StoredTensor("LongStorage", indices.shape, indices.nbytes, [indices[0].copy(), indices[1].copy()])
    of_values = StoredTensor("FloatStorage", values.shape, values.nbytes, [values])
    write_sparse(tmp_path / "x.pt", (rows, units), of_indices, of_values)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert found.layout == torch.sparse_coo
    assert found.is_coalesced()
    assert torch.equal(found.to_dense(), dense)
    assert found.dtype == torch.float32
    file = io.BytesIO()
    torch.save(sparse, file)
    archive = zipfile.ZipFile(file)
    theirs = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert steps(sparse_program((rows, units), of_indices, of_values)) == steps(theirs)


def steps(program: bytes) -> list[tuple[str, Any]]:
    """What a program does, without what it keeps for later (torch keeps each name that it uses again)."""
    found: list[tuple[str, Any]] = []
    kept: dict[int, tuple[str, Any]] = {}
    for code, argument, _ in pickletools.genops(program):
        if code.name in ("BINPUT", "LONG_BINPUT"):
            kept[argument] = found[-1]
        elif code.name == "BINGET" and kept[argument][0] in ("GLOBAL", "BINUNICODE"):
            found.append(kept[argument])
        elif code.name == "BINGET":  # the empty dictionary of hooks
            found += [("GLOBAL", "collections OrderedDict"), ("EMPTY_TUPLE", None), ("REDUCE", None)]
        elif isinstance(argument, int) and code.name != "PROTO":
            found.append(("INT", argument))
        else:
            found.append((code.name, argument))
    return found


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "float32", "float64"])
def test_labels_of_any_type_dense_or_sparse(tmp_path: Path, dtype: str) -> None:
    y = torch.tensor([0, 1, 1, 0, 1]).to(getattr(torch, dtype))
    for name, saved in (("dense", y), ("sparse", y.to_sparse()), ("strided", torch.stack([y, y], 1)[:, 0])):
        torch.save(saved, tmp_path / f"{name}.pt")
        assert read_labels(tmp_path / f"{name}.pt").tolist() == [0, 1, 1, 0, 1]
    write_tensor(tmp_path / "own.pt", StoredTensor("LongStorage", (3,), 24, [np.array([0, 1, 0])]))
    assert torch.equal(torch.load(tmp_path / "own.pt", weights_only=True), torch.tensor([0, 1, 0]))
    assert read_labels(tmp_path / "own.pt").tolist() == [0, 1, 0]


def test_what_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3, 4), tmp_path / "dense.pt")
    torch.save(torch.zeros(3, 4, 5).to_sparse(), tmp_path / "cube.pt")
    torch.save({"x": matrix(3, 4, 0.5).to_sparse()}, tmp_path / "dict.pt")
    torch.save(matrix(3, 4, 0.5).to_sparse_csr(), tmp_path / "csr.pt")
    with open(tmp_path / "pickle.pt", "wb") as file:
        pickle.dump([1, 2], file)
    for name in ("dense", "cube", "dict", "csr"):
        with pytest.raises(InputError, match=f"{name}.pt.*expected"):
            open_coo(tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match="no vector of labels"):
            read_labels(tmp_path / f"{name}.pt")
    with pytest.raises(IntegrityError, match=r"pickle\.pt"):
        open_coo(tmp_path / "pickle.pt")
    with pytest.raises(MissingError):
        open_coo(tmp_path / "nothing.pt")
    torch.save(matrix(3, 4, 0.5).to_sparse(), tmp_path / "x.pt")
    with pytest.raises(InputError, match="sparse_coo"):
        open_activations(tmp_path / "x.pt")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    torch.save(matrix(30, 40, 0.5).to_sparse(), tmp_path / "x.pt")
    codes = open_coo(tmp_path / "x.pt")
    torch.save(matrix(30, 40, 0.2).to_sparse(), tmp_path / "x.pt")
    with pytest.raises(IntegrityError, match="changed"):
        list(codes.read(np.arange(3)))
