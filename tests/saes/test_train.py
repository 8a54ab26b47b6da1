from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from saestore.errors import ConflictError, InputError
from saestore.saes import open_sae
from saestore.saes.train import train
from tests.saes.conformance import check_source
from tests.saes.conftest import oracle

N, D_IN, DIRECTIONS, ACTIVE = 6_000, 24, 40, 3


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows that are sparse sums of random directions, off centre, a little noisy, with norms far from sqrt(d_in)."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(DIRECTIONS, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((N, DIRECTIONS))
    for row in codes:
        row[rng.choice(DIRECTIONS, ACTIVE, replace=False)] = rng.uniform(1, 2, ACTIVE)
    return ((codes @ directions + rng.normal(size=D_IN) + rng.normal(size=(N, D_IN)) * 0.02) * 40).astype(np.float32)


def run(rows: Any, out: Path, **options: Any) -> Path:
    torch.set_num_threads(1)
    return train(rows, out=out, **({"d_sae": 80, "k": 5, "samples": 60_000, "batch_size": 200, "lr": 3e-3} | options))


@pytest.fixture(scope="module")
def trained(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "deep" / "sae"
    return run(rows, out, hook_name="blocks.3.hook_resid_post", model_name="all-MiniLM-L6-v2")


def test_trained_sae_explains_the_rows_for_saelens_and_for_us(trained: Path, rows: np.ndarray) -> None:
    sae = SAE.load_from_disk(trained)
    codes, x_hat = oracle(sae, rows)
    explained = 1 - ((rows - x_hat) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
    assert explained > 0.85
    assert (codes > 0).sum(axis=1).max() == 5
    assert sae.cfg.normalize_activations == "none"
    weights = open_sae(trained)
    small = rows[:50]
    check_source(weights, small, *oracle(sae, small))
    assert weights.config.hook_name == "blocks.3.hook_resid_post"
    assert weights.config.model_name == "all-MiniLM-L6-v2"
    assert sorted(path.name for path in trained.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [path.name for path in trained.parent.iterdir()] == ["sae"]


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(rows: np.ndarray, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    contents = [
        (run(rows, tmp_path / name, samples=2_000, seed=seed) / "sae_weights.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_blocks_of_any_size_serve_every_row_once_per_epoch(rows: np.ndarray, tmp_path: Path) -> None:
    """Blocks that are cut differently, in the same order, give the same SAE as the array served in one block."""
    seen: list[tuple[int, int]] = []

    def epochs(size: int) -> Any:
        def epoch(seed: int) -> Iterator[np.ndarray]:
            order = np.random.default_rng(seed).permutation(700)
            for start in range(0, 700, size):
                yield rows[order[start : start + size]].astype(np.float16)

        return epoch

    whole, pieces = (
        run(
            epochs(size),
            tmp_path / str(size),
            samples=1_650,
            batch_size=150,
            progress=lambda done, total: seen.append((done, total)),
        )
        for size in (700, 33)
    )
    name = "sae_weights.safetensors"
    assert (whole / name).read_bytes() == (pieces / name).read_bytes()
    assert seen[:11] == [(150 * step, 1_650) for step in range(1, 12)]


def test_existing_folder_is_kept(rows: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "notes").touch()
    with pytest.raises(ConflictError, match="not empty"):
        run(rows, tmp_path / "sae")
    assert [path.name for path in (tmp_path / "sae").iterdir()] == ["notes"]


def test_failure_leaves_nothing(rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens import TopKTrainingSAE

    def full_disk(self: Any, path: Path) -> None:
        path.mkdir()
        (path / "cfg.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TopKTrainingSAE, "save_inference_model", full_disk)
    with pytest.raises(Exception, match="No space left on device") as raised:
        run(rows, tmp_path / "sae", samples=200)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 81}, "k=81 is larger than d_sae=80"),
        ({"k": 0}, "k=0"),
        ({"samples": 0}, "samples=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"lr": 0}, "lr=0"),
    ],
)
def test_unusable_numbers(rows: np.ndarray, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(rows, tmp_path / "sae", **options)


def test_unusable_rows(rows: np.ndarray, tmp_path: Path) -> None:
    holed = rows.copy()
    holed[17, 3] = np.nan
    for bad, message in (
        (rows[:0], "at least one row"),
        (rows[0], r"shape \(24,\)"),
        (holed, "not finite"),
        (lambda seed: iter([]), "no activation rows"),
        (lambda seed: iter([rows[:150]] if seed == 0 else []), "epoch 1"),
    ):
        with pytest.raises(InputError, match=message):
            run(bad, tmp_path / "sae")
    assert not list(tmp_path.iterdir())
