from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

HEAVY = {"zarr", "dask", "distributed", "numba", "pandas", "xarray", "sae_lens", "transformers", "pydantic"}


def modules_after(statement):
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_bundles_are_read_without_torch():
    loaded = modules_after("from saestore.steer import apply, load_bundle")
    assert not loaded & (HEAVY | {"torch"})
    assert "numpy" in loaded


def test_steering_needs_torch_and_little_else():
    loaded = modules_after("import saestore.steer, saestore.steer.measuring, saestore.kernels.normalize")
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_the_package_is_there_without_an_import_of_its_own():
    loaded = modules_after("import saestore\nassert saestore.steer.apply\nassert callable(saestore.steer_bundle)")
    assert "torch" not in loaded
