"""Files far larger than what may be held: every format is summed in a process whose peak memory is measured."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROWS, WIDTH = 150_000, 1000  # 600 MB of float32
BLOCK = 4096
ALLOWED_MB = 150
MARKED = 1000  # every 1000th row holds ones, the rest is a hole of the sparse file

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc, which is not here"
)

SUM_ACTIVATIONS = """
import sys
import torch
from saestore.formats.activations import open_activations

def peak_kb():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

before = peak_kb()
source = open_activations(sys.argv[1])
total = 0.0
for start in range(0, source.n_rows, int(sys.argv[2])):
    total += float(source.read(start, min(start + int(sys.argv[2]), source.n_rows)).sum(dtype="f8"))
print(source.n_rows, total, (peak_kb() - before) / 1024)
"""

SUM_CODES = (
    SUM_ACTIVATIONS.replace("activations import open_activations", "sparse_topk import open_codes")
    .replace("open_activations(sys.argv[1])", "open_codes(sys.argv[1])")
    .replace("source.n_rows)).sum(", "source.n_rows))[1].sum(")
)


def mark_rows(path: Path, offset: int, *, dtype: str = "f4", column_major: bool = False) -> None:
    order = "F" if column_major else "C"
    array = np.memmap(path, dtype, mode="r+", offset=offset, shape=(ROWS, WIDTH), order=order)
    array[::MARKED] = 1
    array.flush()


def sparse_npy(path: Path, *, column_major: bool = False) -> None:
    with path.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": column_major, "shape": (ROWS, WIDTH)}
        np.lib.format.write_array_header_1_0(stream, header)
        offset = stream.tell()
        stream.truncate(offset + ROWS * WIDTH * 4)
    mark_rows(path, offset, column_major=column_major)


def sparse_safetensors(path: Path) -> None:
    header = f'{{"acts":{{"dtype":"F32","shape":[{ROWS},{WIDTH}],"data_offsets":[0,{ROWS * WIDTH * 4}]}}}}'.encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + ROWS * WIDTH * 4)
    mark_rows(path, 8 + len(header))


def saved_pt(path: Path) -> None:
    import torch

    array = np.zeros((ROWS, WIDTH), np.float32)
    array[::MARKED] = 1
    torch.save({"embeddings": torch.from_numpy(array)}, path)


def deflated_npz(path: Path) -> None:
    block = np.zeros((MARKED, WIDTH), np.float32)
    block[0] = 1
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("acts.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (ROWS, WIDTH)}
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(ROWS // MARKED):
            stream.write(block.tobytes())


def run(script: str, path: Path, block: int) -> tuple[int, float, float]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(block)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n_rows, total, grown_mb = done.stdout.split()
    return int(n_rows), float(total), float(grown_mb)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "column-major npy", "safetensors", "pt", "deflated npz"])
def test_activations_larger_than_memory_are_read_in_blocks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "acts"
    if "npy" in kind:
        sparse_npy(path, column_major=kind != "npy")
    else:
        {"safetensors": sparse_safetensors, "pt": saved_pt, "deflated npz": deflated_npz}[kind](path)
    n_rows, total, grown_mb = run(SUM_ACTIVATIONS, path, BLOCK)
    path.unlink()
    assert (n_rows, total) == (ROWS, ROWS // MARKED * WIDTH)
    assert grown_mb < ALLOWED_MB


@pytest.mark.slow
def test_codes_larger_than_memory_are_read_in_blocks(tmp_path: Path) -> None:
    import torch

    rows, k = 1_600_000, 32  # 614 MB, as the scripts write them: int64 indices
    values = torch.zeros(rows, k)
    values[::MARKED, 0] = 1
    codes = {"indices": torch.zeros(rows, k, dtype=torch.int64), "values": values, "format": "sparse_topk", "topk": k}
    torch.save(codes, tmp_path / "codes.pt")
    n_rows, total, grown_mb = run(SUM_CODES, tmp_path / "codes.pt", 65_536)
    (tmp_path / "codes.pt").unlink()
    assert (n_rows, total) == (rows, rows // MARKED)
    assert grown_mb < ALLOWED_MB
