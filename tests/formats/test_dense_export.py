"""Dense exports, read back by the library of each format, are the matrix that the codes stand for."""

from __future__ import annotations

import io
import json
import os
import pickletools
import resource
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import CUTS, BuiltLake, build

import saestore
from saestore.errors import BudgetError, HoleError, InputError, MissingError
from saestore.formats import dense_export, dense_tables
from saestore.formats.dense_export import DenseFile, export_dense
from saestore.formats.dense_source import DenseSource
from saestore.formats.pt import open_pt
from saestore.formats.torch_files import tensor_program
from saestore.layout import CodesKey
from saestore.views import View, write_view

ENDINGS = ("npy", "npz", "pt", "zarr", "parquet", "csv")
UNITS = [40, 3, 17, 0, 49]

Found = tuple[np.ndarray, list[int] | None, list[int] | None]


def read_npy(path: Path) -> Found:
    return np.load(path), None, None


def read_npz(path: Path) -> Found:
    archive = np.load(path)
    return archive["codes"], archive["rows"].tolist(), archive["units"].tolist()


def read_pt(path: Path) -> Found:
    torch = pytest.importorskip("torch")
    loaded = torch.load(path, weights_only=True)
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(loaded, mapped)
    assert mapped.data_ptr() % 64 == 0
    assert loaded.is_contiguous()
    assert not loaded.requires_grad
    region = open_pt(path).tensors[""]
    ours = np.empty(region.shape, region.storage)
    region.read_into(ours, 0)
    np.testing.assert_array_equal(ours, loaded.numpy())
    return loaded.numpy(), None, None


def read_zarr(path: Path) -> Found:
    import xarray as xr

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(path).load()
    assert dataset.codes.dims == ("row", "unit")
    assert {"row", "unit", "sample", "split", "position", "special"} == set(dataset.coords)
    assert set(dataset.data_vars) == {"codes", "l0"}
    return dataset.codes.values, dataset.row.values.tolist(), dataset.unit.values.tolist()


def read_table(path: Path) -> Found:
    import pandas as pd

    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    units = [name for name in table.columns if name.isdigit()]
    assert [*table.columns] == ["row", "sample", "split", "position", "special", "l0", *units]
    return table[units].to_numpy(), table["row"].tolist(), [int(unit) for unit in units]


READERS: dict[str, Callable[[Path], Found]] = {
    "npy": read_npy,
    "npz": read_npz,
    "pt": read_pt,
    "zarr": read_zarr,
    "parquet": read_table,
    "csv": read_table,
}


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("dense") / "lake"), cuts=request.param)


def export(built: BuiltLake, path: Path, **options: Any) -> DenseFile:
    written = saestore.dense(built.lake, "d", sample_type="token", out=path, quiet=True, **options)
    assert isinstance(written, DenseFile)
    return written


def check(path: Path, values: np.ndarray, rows: list[int], units: list[int]) -> None:
    found, found_rows, found_units = READERS[path.suffix[1:]](path)
    np.testing.assert_array_equal(found, values)
    assert found_rows in (None, rows)
    assert found_units in (None, units)
    mapping = json.loads(path.with_name(f"{path.name}.units.json").read_text())
    assert mapping["kept_units"] == units
    assert (mapping["n_original"], mapping["n_filtered"]) == (50, len(units))
    assert mapping["lake"]["rows"] == len(rows)
    # From an original id to a column and back.
    columns = mapping["unit_id_to_new_idx"]
    assert [mapping["kept_units"][columns[str(unit)]] for unit in units] == units


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows_of_a_block", [1, 2, 8, None])
def test_every_format_holds_the_matrix_for_any_block(
    built: BuiltLake, tmp_path: Path, ending: str, rows_of_a_block: int | None
) -> None:
    path = tmp_path / f"matrix.{ending}"
    memory = None if rows_of_a_block is None else rows_of_a_block * 50 * 4 * 4
    written = export(built, path, memory=memory)
    rows = len(built.tokens.dense)
    assert (written.path, written.rows, written.units) == (path, rows, 50)
    check(path, built.tokens.dense, list(range(rows)), list(range(50)))
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    assert written.bytes == sum(one.stat().st_size for one in files)
    assert sorted(os.listdir(tmp_path)) == [path.name, written.units_file.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_units_and_conditions_are_chosen(built: BuiltLake, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"matrix.{ending}"
    dense, everything = built.tokens.dense, list(range(50))
    export(built, path, units=UNITS, rows="4:19")
    check(path, dense[4:19][:, UNITS], list(range(4, 19)), UNITS)
    rows = [30, 2, 2, 17]
    export(built, path, rows=rows)
    check(path, dense[rows], rows, everything)
    export(built, path, rows=slice(1, 30, 7), units=UNITS)
    check(path, dense[1:30:7][:, UNITS], list(range(1, 30, 7)), UNITS)

    split = np.array(built.table.split)[built.sample_of_row]
    place = np.arange(len(dense)) - built.offsets[built.sample_of_row]
    chosen = np.flatnonzero((split == "train") & ~built.special & (place > 1))
    assert 3 < len(chosen) < len(dense)
    export(built, path, split="train", where="position > 1", special=False, units=UNITS, memory=8 * 4 * 4 * 5)
    check(path, dense[chosen][:, UNITS], chosen.tolist(), UNITS)
    about = json.loads((tmp_path / f"{path.name}.units.json").read_text())["lake"]
    assert about["where"] == "split train and no special tokens and position > 1"
    export(built, path, split="train", where="position > 1", special=False, rows=[2, 0])
    check(path, dense[chosen[[2, 0]]], chosen[[2, 0]].tolist(), everything)


@pytest.mark.parametrize("ending", ["zarr", "parquet", "csv"])
def test_rows_carry_what_they_are(built: BuiltLake, tmp_path: Path, ending: str) -> None:
    import pandas as pd
    import xarray as xr

    path = tmp_path / f"matrix.{ending}"
    export(built, path, units=UNITS, memory=4 * 5 * 4 * 4)
    if ending == "zarr":
        table: Any = xr.open_zarr(path).load()
    else:
        table = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path, keep_default_na=False)
    sample = built.sample_of_row
    assert list(table["sample"].values) == [built.table.ids[one] for one in sample]
    assert list(table["split"].values) == [built.table.split[one] for one in sample]
    assert list(table["position"].values) == (np.arange(len(sample)) - built.offsets[sample]).tolist()
    assert list(table["special"].values) == built.special.tolist()
    assert list(table["l0"].values) == built.tokens.l0.tolist()


def test_rows_that_are_samples_have_no_positions(built: BuiltLake, tmp_path: Path) -> None:
    import pandas as pd

    saestore.dense(built.lake, "d", sample_type="mean", units=[5], out=tmp_path / "means.parquet", quiet=True)
    table = pd.read_parquet(tmp_path / "means.parquet")
    assert [*table.columns] == ["row", "sample", "split", "l0", "5"]
    np.testing.assert_array_equal(table["5"], built.means.dense[:, 5])


@pytest.mark.parametrize("ending", ENDINGS)
def test_float16(built: BuiltLake, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"matrix.{ending}"
    export(built, path, dtype="float16", memory=4 * 50 * 4 * 4)
    check(path, built.tokens.dense, list(range(len(built.tokens.dense))), list(range(50)))  # its values are exact
    if ending != "csv":
        assert READERS[ending](path)[0].dtype == np.float16


def test_a_value_that_does_not_fit_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"))
    values = built.tokens.values.astype(np.float32)
    row, slot = np.argwhere(values > 0)[-1]
    values[row, slot] = 65_520  # the least that rounds to infinity
    key = CodesKey("d", "m", "layer_3", "wide", "token")
    built.write_codes(key, replace(built.tokens, values=values), dtype="float32")  # type: ignore[arg-type]
    out = tmp_path / "out" / "matrix.npy"
    unit = built.tokens.indices[row, slot]
    for written_to in (out, None):
        with pytest.raises(InputError, match=f"65520 of unit {unit} in row {row} does not fit float16") as raised:
            saestore.dense(built.lake, "d", sae="wide", dtype="float16", out=written_to, quiet=True)
        assert "\n" not in str(raised.value)
    assert os.listdir(out.parent) == []
    values[row, slot] = 65_519
    key = replace(key, sae="narrow")
    built.write_codes(key, replace(built.tokens, values=values), dtype="float32")  # type: ignore[arg-type]
    saestore.dense(built.lake, "d", sae="narrow", dtype="float16", out=out, quiet=True)
    assert np.load(out).max() == 65_504


def test_in_memory_the_same_options_hold(built: BuiltLake) -> None:
    block = saestore.dense(built.lake, "d", sample_type="token", split="train", special=False, units=UNITS, rows="1:3")
    split = np.array(built.table.split)[built.sample_of_row]
    chosen = np.flatnonzero((split == "train") & ~built.special)[1:3]
    assert len(chosen) == 2
    np.testing.assert_array_equal(block.codes.values, built.tokens.dense[chosen][:, UNITS])
    assert block.row.values.tolist() == chosen.tolist()
    assert saestore.dense(built.lake, "d", sample_type="token", rows="0:2", dtype="float16").codes.dtype == np.float16


def test_places_among_chosen_rows_are_checked(built: BuiltLake, tmp_path: Path) -> None:
    for out in (None, tmp_path / "matrix.npy"):
        with pytest.raises(InputError, match="row 30 does not exist"):
            saestore.dense(built.lake, "d", sample_type="token", split="train", rows=[0, 30], out=out)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_view_has_a_column_for_each_unit_it_keeps(tmp_path: Path, ending: str) -> None:
    built = build(str(tmp_path / "lake"))
    codes = built.codes()
    kept = np.array([2, 5, 11, 30, 48])
    view = View("few", kept, {"count": np.ones(5, np.int64)}, {}, {}, ())
    write_view(built.storage, codes.key, codes.run, view)
    path = tmp_path / f"matrix.{ending}"
    export_dense(DenseSource.of(codes.view("few")), path, quiet=True)
    check(path, built.tokens.dense[:, kept], list(range(39)), kept.tolist())
    assert json.loads((tmp_path / f"{path.name}.units.json").read_text())["lake"]["view"] == "few"
    export_dense(DenseSource.of(codes.view("few").where(special=False), units=[30, 2]), path, quiet=True)
    rows = np.flatnonzero(~built.special)
    check(path, built.tokens.dense[rows][:, [30, 2]], rows.tolist(), [30, 2])
    if ending == "npz":
        np.testing.assert_array_equal(np.load(path)["l0"], np.count_nonzero(built.tokens.dense[rows][:, kept], axis=1))
    with pytest.raises(MissingError):
        DenseSource.of(codes.view("few"), units=[30, 3])


@pytest.mark.parametrize("ending", ENDINGS)
def test_holes_are_refused_before_anything_is_written(tmp_path: Path, ending: str) -> None:
    built = build(str(tmp_path / "lake"), holes=[1])  # rows 16 to 31
    out = tmp_path / "out" / f"matrix.{ending}"
    everywhere: list[dict[str, Any]] = [{}, {"rows": "10:17"}, {"rows": [1, 20]}, {"where": "position > 0"}]
    for options in everywhere:
        with pytest.raises(HoleError, match="16 to 31"):
            export(built, out, **options)
    assert not out.parent.exists()
    export(built, out, rows="0:16")
    assert {one.name for one in out.parent.iterdir()} == {out.name, f"{out.name}.units.json"}
    check(out, built.tokens.dense[:16], list(range(16)), list(range(50)))


def test_what_cannot_be_a_matrix_is_refused(built: BuiltLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "matrix.npy"
    with pytest.raises(InputError, match="unit 3 is named twice"):
        export(built, out, units=[3, 4, 3])
    with pytest.raises(MissingError, match="unit 50 does not exist"):
        export(built, out, units=[50])
    with pytest.raises(InputError, match="row 99 does not exist"):
        export(built, out, rows=[0, 99])
    with pytest.raises(InputError, match=r"np\.flatnonzero"):
        export(built, out, rows=np.arange(len(built.tokens.dense)) < 2)
    with pytest.raises(InputError, match="are none of"):
        export(built, out, rows="5:5")
    with pytest.raises(InputError, match="'float64' is unknown; choose from float32, float16"):
        export(built, out, dtype="float64")
    with pytest.raises(BudgetError, match="--units"):
        export(built, out, memory=4 * 50 * 4 - 1)
    with pytest.raises(InputError, match="is a URL"):
        export(built, "s3://bucket/matrix.npy")  # type: ignore[arg-type]
    monkeypatch.setattr(dense_tables, "_MOST_COLUMNS", 49)
    with pytest.raises(InputError, match="arrow_batches"):
        export(built, tmp_path / "matrix.parquet")
    monkeypatch.setattr(dense_tables, "_MOST_COLUMNS", 50)
    monkeypatch.setattr(dense_tables, "_MOST_COLUMN_CHUNKS", 50 * 4)
    with pytest.raises(InputError, match="more than one Parquet file can index"):
        export(built, tmp_path / "matrix.parquet", memory=50 * 4 * 4 * 8)  # 39 rows are five blocks of 8
    monkeypatch.setattr(dense_export.shutil, "disk_usage", lambda path: _Usage(7_799))
    with pytest.raises(InputError, match=r"it takes 7\.6 KiB and 7\.6 KiB of the disk are free"):
        export(built, out)
    assert os.listdir(tmp_path) == []


@dataclass
class _Usage:
    free: int


def test_a_target_is_replaced_where_it_is_of_the_same_kind(built: BuiltLake, tmp_path: Path) -> None:
    for ending in ENDINGS:
        path = tmp_path / f"matrix.{ending}"
        export(built, path)
        export(built, path, rows="0:3", units=UNITS)
        check(path, built.tokens.dense[:3][:, UNITS], [0, 1, 2], UNITS)
    assert len(os.listdir(tmp_path)) == 2 * len(ENDINGS)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("all of it")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file.zarr").write_text("")
    for name in ("mine.zarr", "file.zarr", "folder.npy"):
        with pytest.raises(InputError, match=r"choose another name|give the name of a file"):
            export(built, tmp_path / name)
    with pytest.raises(InputError, match="choose another name"):
        export(built, Path(built.lake.url).rename(Path(built.lake.url).with_suffix(".zarr")))
    Path(built.lake.url).with_suffix(".zarr").rename(built.lake.url)
    assert (tmp_path / "mine.zarr" / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupt_leaves_what_was_there(
    built: BuiltLake, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"matrix.{ending}"
    export(built, path, rows="0:5")
    read = DenseSource.block

    def interrupted(source: DenseSource, first: int, stop: int) -> np.ndarray:
        if first >= 16:
            raise KeyboardInterrupt
        return read(source, first, stop)

    with monkeypatch.context() as patch:
        patch.setattr(DenseSource, "block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(built, path, memory=4 * 50 * 4 * 4)
        with pytest.raises(KeyboardInterrupt):
            export(built, tmp_path / f"other.{ending}", memory=4 * 50 * 4 * 4)
    check(path, built.tokens.dense[:5], list(range(5)), list(range(50)))
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.units.json"]


KILLED = """
import os, signal, sys
import saestore
from saestore.formats.dense_source import DenseSource

read = DenseSource.block

def killed(source, first, stop):
    if first >= 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(source, first, stop)

DenseSource.block = killed
saestore.dense(sys.argv[1], "d", sample_type="token", out=sys.argv[2], memory=4 * 50 * 4 * 4, quiet=True)
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_there_is_no_file_of_that_name(tmp_path: Path, ending: str) -> None:
    built = build(str(tmp_path / "lake"))
    out = tmp_path / "out" / f"matrix.{ending}"
    done = subprocess.run([sys.executable, "-c", KILLED, built.lake.url, str(out)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = os.listdir(out.parent)
    assert left, "it was killed before it wrote anything"
    assert all(name.endswith(".partial") for name in left)
    export(built, out)
    check(out, built.tokens.dense, list(range(39)), list(range(50)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_cannot_grow_is_one_line_and_nothing_is_left(tmp_path: Path, ending: str) -> None:
    built = build(str(tmp_path / "lake"))
    out = tmp_path / "out" / f"matrix.{ending}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(InputError, match=r"cannot write .*matrix.*choose another place with --out") as raised:
            export(built, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("ending", ["pt", "npz"])
def test_zip_files_have_right_checksums(built: BuiltLake, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"matrix.{ending}"
    export(built, path, memory=4 * 50 * 4 * 4)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        matrix = max(archive.infolist(), key=lambda member: member.file_size)
        assert matrix.compress_type == zipfile.ZIP_STORED
    content = bytearray(path.read_bytes())
    content[content.index(built.tokens.dense.tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == matrix.filename


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (300, 40_000), (70_000, 40_000), (2**33, 3)])
def test_the_program_of_a_tensor_is_what_torch_writes(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    with torch.serialization.skip_data():
        file = io.BytesIO()
        small = torch.empty(3, 5, dtype=torch.float16)
        torch.save(small, file)
    archive = zipfile.ZipFile(file)
    theirs = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))

    def steps(program: bytes) -> list[tuple[str, Any]]:
        memo = ("BINPUT", "LONG_BINPUT", "MEMOIZE")
        found = [(code.name, argument) for code, argument, _ in pickletools.genops(program) if code.name not in memo]
        return [
            ("INT", value) if isinstance(value, int) and name != "PROTO" else (name, value) for name, value in found
        ]

    rows, columns = shape
    numbers = {15: rows * columns, 3: rows, 5: columns}  # of the small tensor, each occurs only as this
    expected = [(name, numbers.get(value, value) if name == "INT" else value) for name, value in steps(theirs)]
    assert steps(tensor_program("HalfStorage", (rows, columns))) == expected


def test_a_zarr_matrix_of_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xarray as xr
    import zarr

    from saestore.formats import dense_zarr

    built = build(str(tmp_path / "lake"))
    monkeypatch.setattr(dense_zarr, "CHUNK_BYTES", 4 * 20 * 8)
    monkeypatch.setattr(dense_zarr, "_CHUNK_UNITS", 20)
    monkeypatch.setattr(dense_zarr, "LABEL_ROWS", 10)
    monkeypatch.setattr("saestore.formats.dense_source.LABEL_ROWS", 10)
    out = tmp_path / "matrix.zarr"
    export(built, out, memory=4 * 50 * 4 * 16)
    check(out, built.tokens.dense, list(range(39)), list(range(50)))
    codes = zarr.open_array(out / "codes", mode="r")
    assert codes.chunks == (8, 20)
    assert [codec.to_dict()["name"] for codec in codes.metadata.codecs] == ["bytes", "zstd", "crc32c"]
    assert len([one for one in (out / "codes" / "c").rglob("*") if one.is_file()]) == 5 * 3
    # A chunk that is lost is no zeros, and one that is damaged no data.
    (out / "codes" / "c" / "1" / "2").unlink()
    lost = xr.open_zarr(out).codes.values
    assert np.isnan(lost[8:16, 40:]).all()
    chunk = out / "codes" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(out).codes[:1].load()


def test_the_next_block_is_read_while_one_is_written(built: BuiltLake, tmp_path: Path) -> None:
    from saestore.formats.dense_source import DenseBlocks
    from saestore.progress import Progress

    source = DenseSource.of(built.codes())
    with Progress("dense", total=source.rows, unit="rows", quiet=True) as progress:
        blocks = DenseBlocks.of(source, 4 * 50 * 7, progress)
        assert blocks.step == 4
        assert len(blocks) == 10
        done = [(first, progress.done) for first, _ in blocks]
        assert done == [(first, first) for first in range(0, 39, 4)]
        assert progress.done == source.rows
