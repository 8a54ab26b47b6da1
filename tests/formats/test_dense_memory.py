"""Dense exports of files far larger than what may be held, in processes whose peak memory is measured."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from built_lake import KnownCodes, write_codes

from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples

ALLOWED_MB = {"npy": 200, "npz": 200, "pt": 200, "zarr": 400, "parquet": 400, "csv": 200}
GROWTH_MB = 60  # what eightfold rows may take more: labels, and row groups of Parquet
ROWS, FEWER = 600_000, 75_000
UNITS, K, PER_SAMPLE = 1_000, 4, 1_000
CSV_SHARE = 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc, which is not here"
    ),
]

EXPORT = """
import sys
import saestore
from saestore.formats.dense_export import export_dense
from saestore.formats.dense_source import DenseSource

def peak_kb():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

codes = saestore.open(sys.argv[1]).codes("d")
if sys.argv[2].endswith("csv"):
    import pandas
if sys.argv[2].endswith("parquet"):
    import pyarrow.parquet
before = peak_kb()
done = export_dense(DenseSource.of(codes, slice(0, int(sys.argv[3]))), sys.argv[2], quiet=True)
print(done.bytes, (peak_kb() - before) / 1024)
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Codes of which unit r mod 1,000 is active in row r, with a value that says so."""
    lake = Lake.create(str(tmp_path_factory.mktemp("large") / "lake"))
    samples = ROWS // PER_SAMPLE
    table = SampleTable(
        ids=[f"s{one}" for one in range(samples)], kind="text", contents=["t"] * samples, split=[""] * samples
    )
    write_samples(lake.storage, "d", table)
    write_positions(
        lake.storage,
        ModelKey("d", "m"),
        offsets=np.arange(samples + 1) * PER_SAMPLE,
        arrays={"special": np.zeros(ROWS, bool), "token_id": np.zeros(ROWS, np.uint32)},
        digest="0" * 64,
        attributes={},
    )
    indices, values = np.zeros((ROWS, K), np.uint16), np.zeros((ROWS, K), np.float16)
    indices[:, 0], values[:, 0] = np.arange(ROWS) % UNITS, 1 + np.arange(ROWS) // UNITS % 1000
    shape_only = np.broadcast_to(np.float32(0), (ROWS, UNITS))
    known = KnownCodes(indices, values, np.ones(ROWS, np.uint32), shape_only)
    key = CodesKey("d", "m", "layer_3", "s", "token")
    write_codes(lake.storage, key, known, shard_rows=65_536, chunk_rows=2_048)
    return lake


def exported(lake: Lake, path: Path, rows: int) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, lake.url, str(path), str(rows)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n_bytes, grown_mb = done.stdout.split()
    return int(n_bytes), float(grown_mb)


@pytest.mark.parametrize("ending", ALLOWED_MB)
def test_memory_does_not_grow_with_the_matrix(lake: Lake, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"matrix.{ending}"
    large, small = (ROWS, FEWER) if ending != "csv" else (ROWS // CSV_SHARE, FEWER // CSV_SHARE)
    _, of_small = exported(lake, path, small)
    n_bytes, of_large = exported(lake, path, large)
    assert of_large < ALLOWED_MB[ending]
    assert of_large < of_small + GROWTH_MB
    if ending == "pt":
        check_pt(path, n_bytes)
    if path.is_file():
        path.unlink()


def check_pt(path: Path, n_bytes: int) -> None:
    """A member of more than 2 GiB, mapped."""
    import torch

    assert n_bytes > ROWS * UNITS * 4 > 2**31
    matrix = torch.load(path, weights_only=True, mmap=True)
    assert matrix.shape == (ROWS, UNITS)
    for row in (0, 123_456, ROWS - 1):
        expected = np.zeros(UNITS, np.float32)
        expected[row % UNITS] = 1 + row // UNITS % 1000
        np.testing.assert_array_equal(matrix[row].numpy(), expected)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
