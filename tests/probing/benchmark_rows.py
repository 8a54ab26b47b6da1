"""The package sae-probes as an oracle: its labels, and its own functions run on row numbers instead of activations."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import pytest

from saestore.probing.tasks import Task

OOD_SETS = (
    "5_hist_fig_ismale",
    "6_hist_fig_isamerican",
    "7_hist_fig_ispolitician",
    "66_living-room",
    "67_social-security",
    "73_control-group",
    "87_glue_cola",
    "90_glue_qnli",
)


def own(module: str) -> Any:
    """A module of the package; without it the test is skipped."""
    for needed in ("sae_probes", "zstandard"):
        pytest.importorskip(needed, reason="sae-probes is not installed: pip install 'saestore[probes]'")
    return importlib.import_module(f"sae_probes.{module}")


@cache
def benchmark_tasks() -> dict[str, Task]:
    """The 113 binary tasks with the labels that the package gives them."""
    data = own("utils_data")
    return {tag: Task(tag, "target", data.get_yvals(tag), ("0", "1")) for tag in data.get_numbered_binary_tags()}


@pytest.fixture
def row_numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`sae_probes.generate_sae_activations`, whose activations of row i are the number i."""
    data, torch = own("utils_data"), pytest.importorskip("torch", reason="torch is not installed")

    def numbered(tag: str, *_: Any, MAX_AMT: int, **__: Any) -> tuple[Any, np.ndarray]:
        y = benchmark_tasks()[tag].labels
        return torch.arange(len(y), dtype=torch.float32)[:MAX_AMT, None], y[:MAX_AMT]

    monkeypatch.setattr(data, "get_xyvals", numbered)
    return own("generate_sae_activations")


class Identity:
    """An SAE whose codes are the activations."""

    def encode(self, x: Any) -> Any:
        return x


def rows_and_labels(module: Any, task: str, setting: str, *, num_train: int | None, frac: float | None) -> list[Any]:
    """Rows that train and test, and their labels, as the package chooses them for an SAE: four arrays."""
    made = module.generate_sae_activations(
        Identity(), setting, task, "hook", "model", "cpu", num_train, frac, "nowhere"
    )
    train, test = (x.numpy()[:, 0].astype(np.int64) for x in (made.X_train, made.X_test))
    return [train, test, made.y_train.numpy(), made.y_test.numpy()]
