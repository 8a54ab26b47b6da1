"""Every activation format against a reader that loads the whole file: torch, numpy and safetensors themselves."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saestore.errors import InputError, IntegrityError, MissingError, SaestoreError
from saestore.formats.activations import open_activations

RNG = np.random.default_rng(0)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape, np.float32)).to(dtype)


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor as (rows, d_in) in numpy, bfloat16 as its bit pattern."""
    flat = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    if flat.dtype == torch.float64:
        flat = flat.float()
    return flat.view(torch.int16).numpy().view(np.uint16) if flat.dtype == torch.bfloat16 else flat.numpy()


@dataclass(frozen=True)
class Case:
    """A file (or folder) to open, the key, and the rows that an independent reader finds in it."""

    path: Path
    key: str | None
    whole: np.ndarray[Any, Any]
    dtype: str


def torch_case(folder: Path, content: Any, pick: Callable[[Any], torch.Tensor], key: str | None = None) -> Case:
    path = folder / "acts.pt"
    torch.save(content, path)
    whole = pick(torch.load(path, weights_only=True))
    dtype = "float32" if whole.dtype == torch.float64 else str(whole.dtype).removeprefix("torch.")
    return Case(path, key, bits(whole), dtype)


def numpy_case(folder: Path, array: np.ndarray[Any, Any], kind: str) -> Case:
    path = folder / f"acts.{'npy' if kind == 'npy' else 'npz'}"
    if kind == "npy":
        np.save(path, array)
        whole = np.load(path, allow_pickle=False)
    else:
        (np.savez if kind == "stored" else np.savez_compressed)(path, acts=array, labels=np.arange(3))
        whole = np.load(path, allow_pickle=False)["acts"]
    whole = whole.astype(np.float32) if whole.dtype == np.float64 else whole.astype(whole.dtype.newbyteorder("="))
    return Case(path, None, whole.reshape(-1, whole.shape[-1]), whole.dtype.name)


def safetensors_case(folder: Path, dtype: torch.dtype) -> Case:
    path = folder / "acts.safetensors"
    save_file({"a": numbers(7, 3), "b": numbers(41, 6, dtype=dtype), "c": numbers(4)}, path)
    return Case(path, "b", bits(load_file(path)["b"]), str(dtype).removeprefix("torch."))


def chunked_case(folder: Path, payload: Callable[[torch.Tensor], Any], *, info: bool = True) -> Case:
    whole = numbers(60, 5)
    edges = [0, 7, 7 + 13, 20, 21, 23, 30, 31, 33, 40, 41, 50, 60]
    entries = []
    for place, (start, end) in enumerate(pairwise(edges)):
        name = f"emb_chunk_{place}.pt"
        torch.save(payload(whole[start:end].clone()), folder / name)
        entries.append({"file": name, "start_idx": start, "end_idx": end, "shape": [end - start, 5]})
    if info:
        entries.sort(key=lambda entry: str(entry["file"]))  # chunk_10 before chunk_2: names are not the order
        content = {"chunks": entries, "total_samples": 60, "embedding_dim": 5, "num_chunks": len(entries)}
        (folder / "emb_chunks_info.json").write_text(json.dumps(content))
    return Case(folder, None, whole.numpy(), "float32")


CASES: dict[str, Callable[[Path], Case]] = {
    **{
        f"pt {name}": lambda f, d=dtype: torch_case(f, numbers(50, 6, dtype=d), lambda x: x)  # type: ignore[misc]
        for name, dtype in {**DTYPES, "float64": torch.float64}.items()
    },
    "pt dict, one usable": lambda f: torch_case(
        f, {"normalized_embeddings": numbers(50, 6), "mean": numbers(6), "n": 3}, lambda x: x["normalized_embeddings"]
    ),
    "pt dict, key": lambda f: torch_case(f, {"a": numbers(9, 6), "b": numbers(50, 6)}, lambda x: x["b"], "b"),
    "pt nested, list": lambda f: torch_case(
        f, {12: [numbers(9, 6), numbers(50, 6)], "ids": torch.arange(50)}, lambda x: x[12][1], "12.1"
    ),
    "pt 3-D": lambda f: torch_case(f, numbers(8, 7, 6), lambda x: x),
    "pt 3-D view without the first position": lambda f: torch_case(f, numbers(8, 7, 6)[:, 1:], lambda x: x),
    "pt view of one of several layers": lambda f: torch_case(f, numbers(50, 9, 6)[:, 4], lambda x: x),
    "pt column-major": lambda f: torch_case(f, numbers(6, 50).T, lambda x: x),
    "pt every third column": lambda f: torch_case(f, numbers(50, 18)[:, ::3], lambda x: x),
    "pt rows from the middle": lambda f: torch_case(f, numbers(90, 6)[20:70], lambda x: x),
    "pt expanded": lambda f: torch_case(f, numbers(1, 6).expand(50, 6), lambda x: x),
    "pt permuted 3-D": lambda f: torch_case(f, numbers(6, 8, 7).permute(1, 2, 0), lambda x: x),
    "pt parameter": lambda f: torch_case(f, torch.nn.Parameter(numbers(50, 6)), lambda x: x.detach()),
    **{
        f"{kind} {dtype} {order}": lambda f, k=kind, d=dtype, o=order: numpy_case(  # type: ignore[misc]
            f, np.asarray(RNG.standard_normal((50, 6)), d, order=o), k
        )
        for kind, dtype, order in [
            ("npy", "<f4", "C"),
            ("npy", "<f2", "C"),
            ("npy", ">f4", "C"),
            ("npy", "<f8", "C"),
            ("npy", "<f4", "F"),
            ("stored", "<f4", "C"),
            ("stored", "<f2", "F"),
            ("deflated", "<f4", "C"),
            ("deflated", ">f2", "C"),
            ("deflated", "<f8", "C"),
        ]
    },
    "npy 3-D": lambda f: numpy_case(f, RNG.standard_normal((8, 7, 6)).astype("f2"), "npy"),
    "npy 3-D column-major": lambda f: numpy_case(f, np.asfortranarray(RNG.standard_normal((8, 7, 6)), "f4"), "npy"),
    "deflated 3-D": lambda f: numpy_case(f, RNG.standard_normal((8, 7, 6)).astype("f4"), "deflated"),
    **{f"safetensors {name}": lambda f, d=dtype: safetensors_case(f, d) for name, dtype in DTYPES.items()},  # type: ignore[misc]
    "chunks of tensors": lambda f: chunked_case(f, lambda x: x),
    "chunks of dicts": lambda f: chunked_case(f, lambda x: {"embeddings": x}),
    "chunks without info": lambda f: chunked_case(f, lambda x: x, info=False),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("acts"))


@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_any_sequence_of_ranges_equals_slices_of_the_whole(case: Case, draw: st.DataObject) -> None:
    n = len(case.whole)
    edge = st.integers(0, n)
    ranges = draw.draw(st.lists(st.tuples(edge, edge).map(sorted), max_size=8))
    with open_activations(case.path, key=case.key) as source:
        assert (source.n_rows, source.d_in, source.dtype) == (n, case.whole.shape[1], case.dtype)
        for start, stop in [*ranges, (0, n)]:
            rows = source.read(start, stop)
            assert rows.dtype == case.whole.dtype
            np.testing.assert_array_equal(rows, case.whole[start:stop])


def test_a_pickled_source_reads_the_same_and_describes_itself_as_json(case: Case) -> None:
    source = open_activations(case.path, key=case.key)
    source.read(3, 9)
    twin = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(twin.read(1, 30), case.whole[1:30])
    described = json.loads(json.dumps(source.describe()))
    assert described == twin.describe()
    assert sum(file["bytes"] for file in described["files"]) == described["bytes"]
    assert all(file["name"].endswith((".pt", ".npy", ".npz", ".safetensors")) for file in described["files"])


def test_bfloat16_bits_are_the_numbers(tmp_path: Path) -> None:
    values = numbers(20, 4, dtype=torch.bfloat16)
    torch.save(values, tmp_path / "x.pt")
    read = open_activations(tmp_path / "x.pt").read(0, 20)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal((read.astype(np.uint32) << 16).view(np.float32), values.float().numpy())


def test_bfloat16_of_numpy_is_read(tmp_path: Path) -> None:
    """numpy.save writes a bfloat16 array of ml_dtypes (JAX) as two-byte records without a name."""
    expected = RNG.integers(0, 2**16, (9, 4)).astype(np.uint16)
    np.save(tmp_path / "x.npy", expected.view("V2"))
    source = open_activations(tmp_path / "x.npy")
    assert source.dtype == "bfloat16"
    np.testing.assert_array_equal(source.read(0, 9), expected)


def test_large_strided_files_are_read_in_pieces(tmp_path: Path) -> None:
    """Above the block size of a strided read, where reads are cut in two again and again."""
    whole = torch.arange(3000 * 1024, dtype=torch.float32).reshape(1024, 3000).T  # 12 MB, column-major
    torch.save(
        {"a": whole, "b": torch.arange(9 * 2**20, dtype=torch.float32).reshape(-1, 16)[:, 1:16:2]}, tmp_path / "x.pt"
    )
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    for key in ("a", "b"):
        source = open_activations(tmp_path / "x.pt", key=key)
        np.testing.assert_array_equal(source.read(5, source.n_rows - 3), loaded[key].numpy()[5:-3])
    np.save(tmp_path / "x.npy", whole.numpy().astype(">f8").copy())
    np.testing.assert_array_equal(open_activations(tmp_path / "x.npy").read(1, 2999), whole.numpy()[1:2999])


@pytest.mark.parametrize(
    ("shape", "given_", "expected"), [((12, 4), None, None), ((12, 4), 3, 3), ((4, 3, 5), None, 3), ((4, 3, 5), 3, 3)]
)
def test_per_sample(tmp_path: Path, shape: tuple[int, ...], given_: int | None, expected: int | None) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, "f4"))
    assert open_activations(tmp_path / "x.npy", per_sample=given_).per_sample == expected


@pytest.mark.parametrize(("shape", "given_"), [((12, 4), 5), ((12, 4), 0), ((4, 3, 5), 4)])
def test_per_sample_that_does_not_fit_is_refused(tmp_path: Path, shape: tuple[int, ...], given_: int) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, "f4"))
    with pytest.raises(InputError, match=str(given_)):
        open_activations(tmp_path / "x.npy", per_sample=given_)


def test_content_tells_the_format_whatever_the_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), "f4"))
    odd = (tmp_path / "x.npy").rename(tmp_path / "embeddings.bin")
    assert open_activations(odd).n_rows == 2


def test_float64_is_narrowed_with_a_note_and_never_to_infinity(tmp_path: Path) -> None:
    array = np.ones((5, 2))
    np.save(tmp_path / "x.npy", array)
    assert open_activations(tmp_path / "x.npy").describe()["notes"] == ["float64 in the file, read as float32"]
    array[3, 1] = 1e39
    np.save(tmp_path / "y.npy", array)
    source = open_activations(tmp_path / "y.npy")
    with pytest.raises(InputError, match="row 3 "):
        source.read(1, 5)
    array[3] = [np.nan, np.inf]
    np.save(tmp_path / "z.npy", array)
    np.testing.assert_array_equal(open_activations(tmp_path / "z.npy").read(0, 5), array.astype("f4"))


class NotATensor:
    """Something that only a pickle can hold."""


def write_old_pt(path: Path) -> None:
    torch.save(numbers(5, 3), path, _use_new_zipfile_serialization=False)


def write_cut(path: Path, keep: float) -> None:
    torch.save(numbers(500, 30), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def write_bytes_of(path: Path, save: Callable[[io.BytesIO], Any], cut: int) -> None:
    stream = io.BytesIO()
    save(stream)
    path.write_bytes(stream.getvalue()[:-cut])


def write_damaged_deflated(path: Path) -> None:
    np.savez_compressed(path, a=RNG.standard_normal((2000, 30)))
    content = bytearray(path.read_bytes())
    content[20_000:20_100] = bytes(100)
    path.write_bytes(content)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays")


# name: (how the bad file is made, the error, what its message must say)
BAD: dict[str, tuple[Callable[[Path], Any], type[SaestoreError], str]] = {
    "missing": (lambda p: None, MissingError, "does not exist"),
    "empty file": (lambda p: p.touch(), InputError, "0 bytes"),
    "empty folder": (lambda p: p.mkdir(), MissingError, "holds no .pt"),
    "text": (lambda p: p.write_text("id,label\n1,2\n"), InputError, "no known format"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), InputError, "git lfs pull"),
    "old .pt": (write_old_pt, InputError, r"before version 1.6.*re-save"),
    "objects in .pt": (lambda p: torch.save({"x": NotATensor()}, p), InputError, "Python objects.*NotATensor.*refused"),
    "objects in .npy": (lambda p: p.write_bytes(npy_bytes(np.array([{}, 1]))), InputError, "Python objects.*refused"),
    "cut .pt": (lambda p: write_cut(p, 0.5), IntegrityError, "damaged or cut"),
    "cut .npy": (
        lambda p: write_bytes_of(p, lambda s: np.save(s, np.ones((9, 9))), 8),
        IntegrityError,
        r"needs 776 bytes, the file has 768",
    ),
    "cut .npz": (lambda p: write_bytes_of(p, lambda s: np.savez(s, a=np.ones((9, 9))), 90), IntegrityError, "damaged"),
    "damaged .npz": (write_damaged_deflated, IntegrityError, "copy or download it again"),
    "zip of text": (write_zip, InputError, "not one that torch.save wrote"),
    "several": (
        lambda p: torch.save({"a": numbers(2, 3), "b": numbers(4, 3)}, p),
        InputError,
        r"several.*a float32 \(2, 3\); b float32 \(4, 3\)",
    ),
    "no arrays": (lambda p: torch.save({"n": 3, "ids": torch.arange(4)}, p), InputError, r"ids int64 \(4,\)"),
    "vector": (lambda p: torch.save(numbers(7), p), InputError, r"shape \(7,\); expected \(rows, d_in\)"),
    "4-D": (lambda p: torch.save(numbers(2, 2, 2, 2), p), InputError, r"shape \(2, 2, 2, 2\)"),
    "scalar": (lambda p: torch.save(torch.tensor(1.0), p), InputError, r"shape \(\)"),
    "integers": (lambda p: torch.save(torch.ones(3, 3, dtype=torch.int64), p), InputError, "type int64"),
    "sparse": (lambda p: torch.save(torch.eye(3).to_sparse(), p), InputError, "sparse_coo"),
    "float8": (lambda p: torch.save(numbers(3, 3, dtype=torch.float8_e4m3fn), p), InputError, "float8_e4m3fn"),
    "no rows": (lambda p: torch.save(numbers(0, 3), p), InputError, "no rows"),
    "no columns": (lambda p: torch.save(numbers(3, 0), p), InputError, "width 0"),
    "codes": (
        lambda p: torch.save({"indices": torch.zeros(3, 2, dtype=torch.int64), "values": numbers(3, 2)}, p),
        InputError,
        "import it as codes",
    ),
}


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def read_all(path: Path) -> None:
    source = open_activations(path)
    source.read(0, source.n_rows)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, error, message = BAD[name]
    path = tmp_path / "bad"
    path = path.with_suffix(".npz") if "npz" in name else path
    make(path)
    with pytest.raises(error, match=message) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_nothing_in_a_refused_pickle_runs(tmp_path: Path) -> None:
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    torch.save({"acts": numbers(3, 3), "x": Trap()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="refused"):
        open_activations(tmp_path / "x.pt")
    assert not trap.exists()


def test_column_major_deflated_is_refused_with_the_remedy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.asfortranarray(np.ones((9, 4))))
    with pytest.raises(InputError, match="ascontiguousarray"):
        open_activations(tmp_path / "x.npz")


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": numbers(30, 6)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(IntegrityError, match="cut short"):
        open_activations(path)
    path.write_bytes(whole.replace(b"[30,6]", b"[30,5]"))
    with pytest.raises(IntegrityError, match="720 bytes"):
        open_activations(path)
    path.write_bytes(whole.replace(b'"dtype"', b'"dtipe"'))
    with pytest.raises(IntegrityError, match="damaged safetensors header"):
        open_activations(path)
    path.write_bytes(whole[:40])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        open_activations(path)


def test_keys_that_do_not_exist_are_refused_with_the_list(tmp_path: Path) -> None:
    torch.save({"a": numbers(2, 3), "s": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(MissingError, match=r"no key 'b'; it has a float32 \(2, 3\)"):
        open_activations(tmp_path / "x.pt", key="b")
    with pytest.raises(InputError, match="sparse_coo"):
        open_activations(tmp_path / "x.pt", key="s")
    np.save(tmp_path / "x.npy", np.ones((2, 2), "f4"))
    with pytest.raises(MissingError, match="leave it out"):
        open_activations(tmp_path / "x.npy", key="a")


def test_a_file_that_may_not_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 2), "f4"))

    def refuse(*_: Any, **__: Any) -> None:  # root, who runs containers, may read everything
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="may not be read"):
        open_activations(tmp_path / "x.npy")


def test_relative_paths_outlive_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 2), "f4"))
    monkeypatch.chdir(tmp_path)
    source = open_activations("x.npy")
    monkeypatch.chdir("/")
    assert source.read(0, 5).sum() == 10


def test_urls_are_refused() -> None:
    with pytest.raises(InputError, match="copy it to a local disk"):
        open_activations("s3://bucket/x.pt")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_ranges_outside_the_rows_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 2), "f4"))
    with pytest.raises(InputError, match="0:5"):
        open_activations(tmp_path / "x.npy").read(start, stop)


def test_a_file_that_changes_under_the_import_is_noticed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 2), "f4"))
    source = open_activations(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.ones((6, 2), "f4"))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        source.read(0, 5)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(MissingError, match="does not exist"):
        source.read(0, 5)
