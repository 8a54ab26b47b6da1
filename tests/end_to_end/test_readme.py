"""The tour in the README runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from saestore.encoding.writer import encode
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.saes.lake import write_sae
from tests.small_lake import add_activations, mirror_sae

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "demo" / "lake")
    rows = np.random.default_rng(0).normal(size=(200, 32)).astype("float32")
    add_activations(lake, "5_hist_fig_ismale", rows)
    write_sae(lake.storage, "demo", mirror_sae(32), quiet=True)
    encode(lake, "demo", layers=lake.layers("5_hist_fig_ismale", lake.models("5_hist_fig_ismale")[0]), quiet=True)
    index(lake.storage, list(lake.code_keys()), quiet=True)
    (tour,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    environment = {**os.environ, "SAESTORE_CATALOG": ""}
    done = subprocess.run([sys.executable, "-c", tour], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = lake.codes("5_hist_fig_ismale")
    assert str(codes.rows(slice(0, 4)).l0) in done.stdout
    assert "<xarray.DataArray 'codes' (row: 5, unit: 2)>" in done.stdout
