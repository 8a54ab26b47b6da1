"""Every bridge gives the dense matrix that the codes stand for: selections, empty rows, signed values, any dtype."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import CUTS, LENGTHS, BuiltLake, build, sparse_rows, top_k, write_codes

from saestore.codes import Codes
from saestore.errors import BudgetError, DependencyError, HoleError, InputError, MissingError
from saestore.indexing.writer import index
from saestore.kernels.quantize import as_float32
from saestore.layout import CodesKey
from saestore.rows import RowGroup

N, D = sum(LENGTHS), 50

CHOICES: list[Any] = [slice(None), slice(3, 30), slice(7, 7), [5, 5, 2], [], 38, [30, 31, 32], list(range(38, 0, -1))]


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("bridges") / "lake"), cuts=request.param)


@pytest.fixture(scope="module", params=["float16", "float32", "bfloat16"])
def signed(request: pytest.FixtureRequest, built: BuiltLake) -> tuple[Codes, np.ndarray]:
    """Codes with negative values in a dtype, with postings, and their dense matrix."""
    dense = sparse_rows(N, D, seed=7) * np.random.default_rng(7).choice([-1, 1], (N, D)).astype(np.float32)
    known = top_k(dense, 5)
    assert (known.dense < 0).any()
    assert known.dense[:, 0].any(), "unit 0, which empty slots point to, is nowhere active"
    assert not known.dense.any(axis=1).all(), "no row is empty"
    key = CodesKey("d", "m", "layer_3", f"signed-{request.param}", "token")
    codes = built.write_codes(key, known, dtype=request.param)
    index(built.storage, [key], quiet=True)
    return codes, known.dense


@pytest.fixture(params=["all", "selection", "one sample"])
def chosen(request: pytest.FixtureRequest, signed: tuple[Codes, np.ndarray], built: BuiltLake) -> Any:
    """Codes, the numbers of their rows, and their dense matrix."""
    codes, dense = signed
    if request.param == "all":
        return codes, np.arange(N), dense
    if request.param == "selection":
        rows = np.flatnonzero(~built.special & np.isin(built.sample_of_row % 4, [0, 2]))
        return codes.where(split=["train", "test"], special=False), rows, dense[rows]
    # splits are train, cal, test, none, train, ...
    rows = np.flatnonzero(built.sample_of_row == 4)
    return codes.where(samples="sample-4"), rows, dense[rows]


def places_of(rows: Any, n: int) -> np.ndarray:
    if isinstance(rows, slice):
        return np.arange(n)[rows]
    return np.atleast_1d(np.asarray(rows, dtype=int))


@pytest.fixture(params=CHOICES, ids=str)
def asked(request: pytest.FixtureRequest, chosen: Any) -> Any:
    """Codes, places asked for, and the numbers and the dense matrix of the rows there."""
    codes, numbers, dense = chosen
    rows = request.param
    if not isinstance(rows, slice):
        rows = rows % len(codes) if isinstance(rows, int) else [place % len(codes) for place in rows]
    places = places_of(rows, len(codes))
    return codes, rows, numbers[places], dense[places]


# --------------------------------------------------------------------- scipy


@pytest.mark.parametrize("share", [0, 2, N], ids=["from rows", "from either", "from postings"])
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_scipy(asked: Any, form: Any, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.conversions._POSTINGS_SHARE", share)
    monkeypatch.setattr("saestore.bridges.matrices._READ_ENTRIES", 7)
    codes, rows, _, dense = asked
    matrix = codes.to_scipy(rows, format=form)
    assert (matrix.format, matrix.shape, matrix.dtype) == (form, dense.shape, np.float32)
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    matrix.check_format(full_check=True)
    np.testing.assert_array_equal(matrix.toarray(), dense)
    # What scipy is told of the order is found to be true.
    assert matrix.has_sorted_indices
    for flag in ("_has_sorted_indices", "_has_canonical_format"):
        vars(matrix).pop(flag, None)
    assert matrix.has_sorted_indices
    assert matrix.has_canonical_format
    assert matrix.nnz == np.count_nonzero(dense), "an empty slot was stored"


def test_csc_is_read_from_the_postings_and_csr_from_the_rows(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = built.codes()
    assert len(codes.postings.counts) == D
    read: list[str] = []
    for name in ("read", "read_ranges"):
        original = getattr(RowGroup, name)

        def recorded(self: RowGroup, array: str, *args: Any, original: Any = original) -> Any:
            read.append(array)
            return original(self, array, *args)

        monkeypatch.setattr(RowGroup, name, recorded)
    codes.to_scipy(format="csc")
    assert set(read) == {"row_gaps", "values"}
    read.clear()
    codes.to_scipy()
    assert set(read) == {"indices", "values", "l0"}
    read.clear()
    codes.to_scipy(slice(0, 3), format="csc")
    assert set(read) == {"indices", "values", "l0"}


def test_csc_without_postings_of_many_rows(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    key = CodesKey("d", "m", "layer_3", "bare", "token")
    write_codes(built.storage, key, built.tokens)
    codes = Codes.open(built.storage, key)
    with pytest.raises(MissingError, match=r"no postings.*saestore index"):
        codes.to_scipy(format="csc")
    with pytest.raises(MissingError, match=r"no postings.*saestore index"):
        codes.to_anndata(by="unit")
    np.testing.assert_array_equal(codes.to_scipy(slice(0, 5), format="csc").toarray(), built.tokens.dense[:5])


# --------------------------------------------------------------------- torch


@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_coo"])
def test_sparse_tensors(asked: Any, layout: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    codes, rows, _, dense = asked
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        tensor = codes.to_torch(rows, layout=layout)
    assert str(tensor.layout) == f"torch.{layout}"
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == dense.shape
    np.testing.assert_array_equal(tensor.to_dense().numpy(), dense)
    with torch.sparse.check_sparse_tensor_invariants():
        if layout == "sparse_csr":
            parts = tensor.crow_indices(), tensor.col_indices(), tensor.values()
            torch.sparse_csr_tensor(*parts, size=tensor.shape)
        else:
            assert tensor.is_coalesced()
            again = torch.sparse_coo_tensor(tensor.indices(), tensor.values(), size=tensor.shape).coalesce()
            assert torch.equal(again.indices(), tensor.indices()), "it was not coalesced"


def test_the_slots_as_tensors(asked: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    codes, rows, _, dense = asked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        indices, values = codes.to_torch(rows, layout="topk")
    assert (indices.dtype, values.dtype) == (torch.int64, torch.float32)
    assert indices.shape == values.shape == (len(dense), codes.k)
    again = torch.zeros(dense.shape).scatter_add_(1, indices, values)
    np.testing.assert_array_equal(again.numpy(), dense)
    assert (values.abs().diff(dim=1) <= 0).all()
    values += 1  # it is the caller's own


# ---------------------------------------------------------------- long tables


def lines(codes: Codes, built: BuiltLake, numbers: np.ndarray) -> list[tuple[Any, ...]]:
    """The long table of rows by loops over the stored slots."""
    indices = codes.group.read("indices")
    values = as_float32(codes.group.read("values"))
    found = []
    for row in numbers.tolist():
        sample = int(built.sample_of_row[row])
        position = row - int(built.offsets[sample])
        found += [
            (row, f"sample-{sample}", position, int(unit), float(value), built.table.split[sample])
            for unit, value in zip(indices[row], values[row], strict=True)
            if value
        ]
    return found


COLUMNS = ["row", "sample", "position", "unit", "value", "split"]


@pytest.mark.parametrize("batch", [1, 23, 1 << 20])
def test_pandas(asked: Any, built: BuiltLake, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.bridges.long_table._BATCH_LINES", batch)
    codes, rows, numbers, _ = asked
    table = codes.to_pandas(rows)
    expected = lines(codes, built, numbers)
    assert list(table.columns) == COLUMNS
    assert [str(dtype) for dtype in table.dtypes] == ["int64", "category", "int32", "int32", "float32", "category"]
    assert list(table.itertuples(index=False, name=None)) == expected
    assert list(table.index) == list(range(len(expected)))
    samples = [f"sample-{place}" for place in np.unique(built.sample_of_row[numbers])]
    assert list(table["sample"].cat.categories) == samples, "categories are samples that have rows here"
    assert set(table["split"].cat.categories) == {built.table.split[int(name[7:])] for name in samples}


@pytest.mark.parametrize("batch", [23, 1 << 20])
def test_arrow(asked: Any, built: BuiltLake, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is absent: pip install 'saestore[bridges]'")
    monkeypatch.setattr("saestore.bridges.long_table._BATCH_LINES", batch)
    codes, rows, numbers, _ = asked
    table = codes.to_arrow(rows)
    table.validate(full=True)
    text = pa.string()
    assert table.schema.names == COLUMNS
    assert table.schema.types == [
        pa.int64(),
        pa.dictionary(pa.int32(), text),
        pa.int32(),
        pa.int32(),
        pa.float32(),
        pa.dictionary(pa.int8(), text),
    ]
    assert [tuple(line.values()) for line in table.to_pylist()] == lines(codes, built, numbers)
    batches = list(codes.arrow_batches(rows))
    assert all(part.num_rows <= max(batch, codes.k) for part in batches)
    assert pa.Table.from_batches(batches, table.schema).equals(table)


def test_batches_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is absent: pip install 'saestore[bridges]'")
    monkeypatch.setattr("saestore.bridges.long_table._BATCH_LINES", 40)
    codes = build(str(tmp_path / "lake")).codes()
    seen: list[tuple[int, int]] = []
    read = RowGroup.read

    def recorded(self: RowGroup, name: str, start: int = 0, stop: int | None = None) -> Any:
        if name == "indices":
            assert stop is not None
            seen.append((start, stop))
        return read(self, name, start, stop)

    monkeypatch.setattr(RowGroup, "read", recorded)
    batches = codes.arrow_batches()
    assert seen == []
    next(batches)
    assert seen == [(0, 8)], "40 lines are 10 rows of 4 slots, 8 of them whole stored chunks"
    assert sum(batch.num_rows for batch in batches)
    assert seen == [(first, min(first + 8, N)) for first in range(0, N, 8)]


def test_long_tables_of_pooled_rows(built: BuiltLake) -> None:
    codes = built.codes("mean")
    table = codes.to_pandas()
    dense = np.zeros_like(built.means.dense)
    dense[table["row"], table["unit"]] = table["value"]
    np.testing.assert_array_equal(dense, built.means.dense)
    assert [f"sample-{row}" for row in table["row"]] == table["sample"].tolist()
    assert set(table["position"]) == {0}


# ---------------------------------------------------------------------- Dask


@pytest.mark.parametrize("units", [None, [0, 7, 49], [9, 9, 0]], ids=str)
@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 10, 100])
def test_dask(chosen: Any, units: list[int] | None, chunk_rows: int | None) -> None:
    codes, numbers, dense = chosen
    expected = dense if units is None else dense[:, units]
    array = codes.to_dask(units=units, chunk_rows=chunk_rows)
    assert (array.shape, array.dtype) == (expected.shape, np.float32)
    computed = array.compute()
    assert type(computed) is np.ndarray
    np.testing.assert_array_equal(computed, expected)
    np.testing.assert_array_equal(array[3:9, ::2].compute(), expected[3:9, ::2])
    np.testing.assert_array_equal(array[[5, 0, 5]][:, [1, 0]].compute(), expected[[5, 0, 5]][:, [1, 0]])
    np.testing.assert_array_equal(array.max(axis=0).compute(), expected.max(axis=0))
    if chunk_rows is not None:
        assert max(array.chunks[0]) <= chunk_rows
        for end in np.cumsum(array.chunks[0])[:-1]:
            assert numbers[end - 1] // chunk_rows < numbers[end] // chunk_rows, "a chunk straddles a stored one"


def test_lazy_arrays_go_to_other_processes(chosen: Any) -> None:
    codes, _, dense = chosen
    array = pickle.loads(pickle.dumps(codes.to_dask(units=[3, 0], chunk_rows=4)))
    np.testing.assert_array_equal(array.compute(), dense[:, [3, 0]])


def test_dask_of_a_hole_says_which_rows(tmp_path: Path) -> None:
    codes = build(str(tmp_path / "lake"), holes={1}).codes()
    array = codes.to_dask(chunk_rows=16)
    assert array[:16].compute().shape == (16, D)
    with pytest.raises(HoleError, match="rows 16 to 31"):
        array.compute()
    for bridge in (codes.to_scipy, codes.to_torch, codes.to_pandas):
        with pytest.raises(HoleError, match="rows 16 to 31"):
            bridge()
    with pytest.raises(HoleError, match="rows 16 to 31"):
        codes.to_scipy(format="csc")


# ------------------------------------------------------------------- AnnData


@pytest.fixture
def anndata() -> Any:
    return pytest.importorskip("anndata", reason="anndata is absent: pip install 'saestore[bridges]'")


@pytest.mark.parametrize("by", ["row", "unit"])
def test_anndata(anndata: Any, chosen: Any, by: Any, built: BuiltLake, tmp_path: Path) -> None:
    codes, numbers, dense = chosen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adata = codes.to_anndata(by=by)
    assert adata.shape == dense.shape
    assert adata.X._meta.format == {"row": "csr", "unit": "csc"}[by]
    assert adata.obs["row"].tolist() == numbers.tolist()
    assert adata.obs["sample"].tolist() == [f"sample-{place}" for place in built.sample_of_row[numbers]]
    assert adata.obs["split"].tolist() == [built.table.split[place] for place in built.sample_of_row[numbers]]
    assert adata.obs["position"].tolist() == (numbers - built.offsets[built.sample_of_row[numbers]]).tolist()
    assert adata.obs_names.tolist() == [str(row) for row in numbers]
    assert adata.var["unit"].tolist() == list(range(D))
    assert adata.uns["path"] == codes.key.path
    assert adata.uns["sae"] == codes.key.sae
    assert adata.uns["quality"] == codes.quality
    in_memory = adata.to_memory()
    assert in_memory.X.format == adata.X._meta.format
    np.testing.assert_array_equal(in_memory.X.toarray(), dense)
    adata.write_h5ad(tmp_path / "codes.h5ad")
    stored = anndata.read_h5ad(tmp_path / "codes.h5ad")
    np.testing.assert_array_equal(stored.X.toarray(), dense)
    assert stored.obs["sample"].tolist() == adata.obs["sample"].tolist()


@pytest.mark.parametrize("by", ["row", "unit"])
@pytest.mark.parametrize(
    ("rows", "units"),
    [
        (slice(2, 9), slice(None)),
        (slice(None), [12, 0, 49]),
        ([8, 0, 3], slice(5, 20)),
        ([8, 0, 3], [12, 0]),
        (4, 7),
        (slice(0, 9, 2), slice(None, None, 3)),
    ],
    ids=str,
)
def test_parts_of_anndata(anndata: Any, chosen: Any, by: Any, rows: Any, units: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("saestore.bridges.lazy.BLOCK_BYTES", 100)
    monkeypatch.setattr("saestore.engine.arrays.BLOCK_BYTES", 200)
    codes, numbers, dense = chosen
    adata = codes.to_anndata(by=by)
    assert adata.X.npartitions > 1
    part = adata[rows, units].to_memory()
    keep = lambda key: [key] if isinstance(key, int) else key  # noqa: E731
    np.testing.assert_array_equal(part.X.toarray(), dense[keep(rows)][:, keep(units)])
    assert part.obs["row"].tolist() == numbers[keep(rows)].tolist()
    assert part.var["unit"].tolist() == np.arange(D)[keep(units)].tolist()


def test_anndata_of_units_reads_the_postings_alone(
    anndata: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(str(tmp_path / "lake"))
    codes = built.codes()
    read: list[tuple[str, int]] = []
    ranges = RowGroup.read_ranges

    def recorded(self: RowGroup, name: str, starts: Any, stops: Any) -> Any:
        read.append((name, int((stops - starts).sum())))
        return ranges(self, name, starts, stops)

    monkeypatch.setattr(RowGroup, "read_ranges", recorded)
    adata = codes.to_anndata(by="unit")
    assert read == []
    part = adata[:, 3:5].to_memory()
    np.testing.assert_array_equal(part.X.toarray(), built.tokens.dense[:, 3:5])
    entries = np.count_nonzero(built.tokens.dense[:, 3:5])
    assert sorted(set(read)) == [("row_gaps", entries), ("values", entries)]


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda codes: codes.to_scipy(format="coo"), "format='coo' is unknown; choose from csr, csc"),
        (lambda codes: codes.to_torch(layout="dense"), "layout='dense' is unknown; .*sparse_coo, topk"),
        (lambda codes: codes.to_anndata(by="sample"), "by='sample' is unknown; choose from row, unit"),
        (lambda codes: codes.to_dask(units=[]), "units=.. names no unit"),
        (lambda codes: codes.to_dask(chunk_rows=0), "chunk_rows is 0"),
        (lambda codes: codes.to_pandas([N]), f"row {N} does not exist"),
    ],
)
def test_bad_options(built: BuiltLake, ask: Callable[[Codes], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(built.codes())


def test_a_unit_that_does_not_exist(built: BuiltLake) -> None:
    with pytest.raises(MissingError, match="unit 50 does not exist"):
        built.codes().to_dask(units=[3, 50])


@pytest.mark.parametrize(
    ("module", "free", "ask", "message"),
    [
        ("codes", 2000, lambda codes: codes.to_scipy(), "39 rows of codes.*scan"),
        ("bridges.matrices", 2000, lambda codes: codes.to_scipy(format="csc"), "CSC matrix of 39 rows.*by='unit'"),
        ("codes", 2000, lambda codes: codes.to_torch(layout="sparse_coo"), "39 rows of codes.*scan"),
        ("bridges.long_table", 500, lambda codes: codes.to_pandas(), "filled slots.*arrow_batches"),
        ("bridges.long_table", 500, lambda codes: codes.to_arrow(), "filled slots.*arrow_batches"),
        ("bridges.lazy", 500, lambda codes: codes.to_anndata(), "names of 39 rows.*where"),
    ],
)
def test_what_does_not_fit_is_refused(
    built: BuiltLake, module: str, free: int, ask: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "names" in message:
        pytest.importorskip("anndata", reason="anndata is absent: pip install 'saestore[bridges]'")
    monkeypatch.setattr(f"saestore.{module}.parse_memory", lambda memory: free)
    with pytest.raises(BudgetError, match=message):
        ask(built.codes())


@pytest.mark.parametrize(
    ("package", "ask", "install"),
    [
        ("scipy.sparse", lambda codes: codes.to_scipy(), "pip install scipy"),
        ("scipy.sparse", lambda codes: codes.to_scipy(format="csc"), "pip install scipy"),
        ("torch", lambda codes: codes.to_torch(layout="topk"), r"pip install 'saestore\[torch\]'"),
        ("pyarrow", lambda codes: codes.to_arrow(), r"pip install 'saestore\[bridges\]'"),
        ("pyarrow", lambda codes: codes.arrow_batches(), r"pip install 'saestore\[bridges\]'"),
        ("anndata", lambda codes: codes.to_anndata(), r"pip install 'saestore\[bridges\]'"),
    ],
)
def test_a_package_that_is_missing(
    built: BuiltLake, package: str, ask: Any, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=f"needs {package.split('.')[0]}; install it with: {install}"):
        ask(built.codes())
