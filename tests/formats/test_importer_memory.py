"""Imports of files far larger than what may be held, in processes whose peak memory is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saestore.lake import Lake

ALLOWED_MB = 300
INCOMPRESSIBLE_MB = 600  # two shards at a time, each with its encoded copy
MARKED = 1000  # every 1000th row holds numbers, the others are zeros

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc, which is not here"
    ),
]

IMPORT = """
import sys
import torch
from saestore.formats.importer import import_activations, import_codes
from saestore.lake import Lake

def peak_kb():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

place = dict(dataset="d", model="m", layer=3, sample_type="token", per_sample=100, quiet=True)
lake = Lake.create(sys.argv[3])
before = peak_kb()
if sys.argv[1] == "codes":
    done = import_codes(lake, sys.argv[2], sae="s", d_sae=16384, **place)
else:
    done = import_activations(lake, sys.argv[2], **place)
print(done.rows, (peak_kb() - before) / 1024)
"""


def imported(what: str, path: Path, lake: Path) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, what, str(path), str(lake)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, grown_mb = done.stdout.split()
    return int(rows), float(grown_mb)


@pytest.mark.parametrize("content", ["sparse", "random"])
def test_activations_larger_than_memory(tmp_path: Path, content: str) -> None:
    import torch

    rows, d_in = 250_000, 1000  # 1 GB of float32
    if content == "sparse":
        acts = torch.zeros(rows, d_in)
        acts[::MARKED] = torch.arange(d_in, dtype=torch.float32)
    else:
        acts = torch.randn(rows // 4, d_in).repeat(4, 1)  # does not compress, so that shards are as large as they get
    wanted = acts[100_000:100_003].numpy().copy()
    torch.save(acts, tmp_path / "acts.pt")
    del acts
    done, grown_mb = imported("activations", tmp_path / "acts.pt", tmp_path / "lake")
    (tmp_path / "acts.pt").unlink()
    assert done == rows
    np.testing.assert_array_equal(Lake.open(tmp_path / "lake").activations("d").read(100_000, 100_003), wanted)
    assert grown_mb < (ALLOWED_MB if content == "sparse" else INCOMPRESSIBLE_MB)


def test_codes_larger_than_memory(tmp_path: Path) -> None:
    import torch

    rows, k = 2_600_000, 32  # 1 GB, as the scripts write them: int64 indices
    values = torch.zeros(rows, k)
    values[::MARKED, 0] = 1
    indices = torch.zeros(rows, k, dtype=torch.int64)
    indices[::MARKED, 0] = 123
    torch.save({"indices": indices, "values": values, "format": "sparse_topk", "topk": k}, tmp_path / "codes.pt")
    del indices, values
    done, grown_mb = imported("codes", tmp_path / "codes.pt", tmp_path / "lake")
    (tmp_path / "codes.pt").unlink()
    assert done == rows
    codes = Lake.open(tmp_path / "lake").codes("d")
    np.testing.assert_array_equal(codes.dense(slice(999_999, 1_000_002), [123, 0]), [[0, 0], [1, 0], [0, 0]])
    assert grown_mb < ALLOWED_MB
