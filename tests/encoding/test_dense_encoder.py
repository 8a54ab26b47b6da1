"""Codes of SAEs that SAELens itself encodes: the same per sample, in whatever batches and company."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: it encodes these SAEs")

import torch  # noqa: E402

from saestore.encoding import dense  # noqa: E402
from saestore.encoding.dense import DenseEncoder, weight_bytes, working_bytes  # noqa: E402
from saestore.errors import DependencyError, InputError  # noqa: E402
from saestore.kernels.quantize import TopK  # noqa: E402
from saestore.saes import SAEWeights, open_sae  # noqa: E402
from tests.saes.conftest import D_IN, D_SAE  # noqa: E402
from tests.saes.test_dense import DENSE_SAES, NORMALIZATIONS, TEMPORAL, dense_sae  # noqa: E402

LENGTHS = [1, 17, 3, 0, 16, 3, 40, 15, 33, 2, 17, 1]
OFFSETS = np.cumsum([0, *LENGTHS])
SAMPLES = [slice(first, stop) for first, stop in itertools.pairwise(OFFSETS) if first < stop]
N = int(OFFSETS[-1])
PURSUIT = {"residual_threshold": 1.0}


@pytest.fixture
def rows() -> np.ndarray:
    return (np.random.default_rng(3).normal(size=(N, D_IN)) * 3 + 0.5).astype(np.float32)


def opened(folder: Path, architecture: str, options: dict) -> tuple[Any, SAEWeights]:
    sae = dense_sae(architecture, **options)
    sae.save_model(folder)
    return sae, open_sae(folder)


def own_codes(sae: Any, x: np.ndarray) -> np.ndarray:
    """SAELens' codes, sample by sample: (n, d_sae)."""
    with torch.no_grad():
        if sae.cfg.architecture() != "temporal":
            return sae.encode(torch.from_numpy(x)).numpy()
        return np.concatenate([sae.encode(torch.from_numpy(x[None, sample]))[0].numpy() for sample in SAMPLES])


def selected(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Brute force: units by (value descending, unit ascending), and their values; zeros where nothing is active."""
    units = np.argsort(-codes, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(codes, units, axis=1)
    return np.where(values > 0, units, 0), values


def assert_same_bits(ours: TopK, others: TopK) -> None:
    for name in ("indices", "values", "l0"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(others, name))


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize(("architecture", "options"), DENSE_SAES)
@pytest.mark.parametrize("k", [3, D_SAE])
def test_codes_are_those_of_saelens(
    tmp_path: Path, rows: np.ndarray, architecture: str, options: dict, normalize_activations: str, k: int
) -> None:
    sae, weights = opened(tmp_path, architecture, {**options, "normalize_activations": normalize_activations})
    codes = own_codes(sae, rows)
    found = DenseEncoder(weights, "cpu").encode(rows, k, offsets=OFFSETS)
    assert (found.indices.dtype, found.values.dtype, found.l0.dtype) == (np.uint32, np.float32, np.uint32)
    np.testing.assert_array_equal(found.l0, (codes > 0).sum(axis=1))
    assert found.l0.max() > 3
    units, values = selected(codes, k)
    np.testing.assert_array_equal(found.indices, units)
    np.testing.assert_allclose(found.values, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("architecture", "options"), [("matching_pursuit", PURSUIT), ("temporal", TEMPORAL)])
@pytest.mark.parametrize("batch_bytes", [1, 100_000, 150_000])
def test_bounded_batches_give_the_same_bits(
    tmp_path: Path,
    rows: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    options: dict,
    batch_bytes: int,
) -> None:
    encoder = DenseEncoder(opened(tmp_path, architecture, options)[1], "cpu")
    whole = encoder.encode(rows, 8, offsets=OFFSETS)
    seen: list[int] = []
    encode = encoder._model.encode

    def watched(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch[..., 0].numel())
        return encode(batch)

    monkeypatch.setattr(encoder._model, "encode", watched)
    monkeypatch.setattr(dense, "BATCH_BYTES", batch_bytes)
    assert_same_bits(encoder.encode(rows, 8, offsets=OFFSETS), whole)
    longest = 48 if architecture == "temporal" else 16
    assert max(seen) <= max(longest, batch_bytes // (4 * 3 * D_SAE))
    assert len(seen) > (3 if architecture == "temporal" else 1), "more batches than the whole has"
    if batch_bytes == 1:
        assert len(seen) == (11 if architecture == "temporal" else -(-N // 16))  # each sample alone, or 16 rows


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
def test_a_sample_does_not_depend_on_its_neighbours(
    tmp_path: Path, rows: np.ndarray, normalize_activations: str
) -> None:
    options = {**TEMPORAL, "normalize_activations": normalize_activations}
    encoder = DenseEncoder(opened(tmp_path, "temporal", options)[1], "cpu")
    together = encoder.encode(rows, 8, offsets=OFFSETS)
    for part in SAMPLES:
        alone = encoder.encode(rows[part], 8, offsets=np.array([0, part.stop - part.start]))
        assert_same_bits(alone, TopK(together.indices[part], together.values[part], together.l0[part]))
    # Its own earlier rows do count.
    apart = encoder.encode(rows, 8, offsets=np.arange(N + 1))
    assert not np.array_equal(apart.values, together.values)


@pytest.mark.parametrize("stop_on_duplicate_support", [True, False])
def test_a_row_of_matching_pursuit_does_not_depend_on_its_neighbours(
    tmp_path: Path, rows: np.ndarray, stop_on_duplicate_support: bool
) -> None:
    """Rows that need many steps beside rows that are done after one."""
    rows = rows * np.geomspace(1e-3, 10, N, dtype=np.float32)[:, None]
    options = {**PURSUIT, "apply_b_dec_to_input": False, "stop_on_duplicate_support": stop_on_duplicate_support}
    encoder = DenseEncoder(opened(tmp_path, "matching_pursuit", options)[1], "cpu")
    together = encoder.encode(rows, 8)
    assert together.l0.min() == 1 < together.l0.max()
    for row in range(0, N, 7):
        part = slice(row, row + 1)
        assert_same_bits(
            encoder.encode(rows[part], 8), TopK(together.indices[part], together.values[part], together.l0[part])
        )


def test_the_last_sample_may_be_cut_off(tmp_path: Path, rows: np.ndarray) -> None:
    encoder = DenseEncoder(opened(tmp_path, "temporal", TEMPORAL)[1], "cpu")
    whole = encoder.encode(rows[:40], D_SAE, offsets=np.array([0, 40]))
    for cut in (1, 16, 23):
        part = encoder.encode(rows[:cut], D_SAE, offsets=np.array([0, cut]))
        np.testing.assert_array_equal(part.indices, whole.indices[:cut])
        np.testing.assert_allclose(part.values, whole.values[:cut], rtol=1e-5)


def test_ties_go_to_the_smaller_unit(tmp_path: Path, rows: np.ndarray) -> None:
    sae = dense_sae("temporal", **{**TEMPORAL, "kval_topk": None})
    sae.W_dec.data[D_SAE // 2 :] = sae.W_dec.data[: D_SAE // 2]
    sae.save_model(tmp_path)
    codes = own_codes(sae, rows)
    np.testing.assert_array_equal(codes[:, D_SAE // 2 :], codes[:, : D_SAE // 2])
    found = DenseEncoder(open_sae(tmp_path), "cpu").encode(rows, 5, offsets=OFFSETS)
    np.testing.assert_array_equal(found.indices, selected(codes, 5)[0])
    np.testing.assert_array_equal(found.l0, (codes > 0).sum(axis=1))


def test_rows_of_zeros_stay_zero_before_the_encoder(tmp_path: Path) -> None:
    """SAELens divides by their norm; here they are normalised as for every SAE."""
    options = {"normalize_activations": "constant_norm_rescale"}
    sae, weights = opened(tmp_path, "matching_pursuit", options)
    x = np.zeros((3, D_IN), np.float32)
    sae.run_time_activation_norm_fn_in = lambda rows: rows
    units, values = selected(own_codes(sae, x), 4)
    found = DenseEncoder(weights, "cpu").encode(x, 4)
    np.testing.assert_array_equal(found.indices, units)
    np.testing.assert_allclose(found.values, values, rtol=1e-5)
    assert found.l0.min() > 0  # b_dec is subtracted


def test_no_rows(tmp_path: Path) -> None:
    none = np.zeros((0, D_IN), np.float32)
    for architecture, options in (("matching_pursuit", {}), ("temporal", TEMPORAL)):
        encoder = DenseEncoder(opened(tmp_path / architecture, architecture, options)[1], "cpu")
        found = encoder.encode(none, 4, offsets=np.zeros(2, np.int64))
        assert (found.indices.shape, found.values.shape, found.l0.shape) == ((0, 4), (0, 4), (0,))


def test_unusable_rows_and_offsets(tmp_path: Path, rows: np.ndarray) -> None:
    encoder = DenseEncoder(opened(tmp_path, "temporal", TEMPORAL)[1], "cpu")
    with pytest.raises(InputError, match="give the offsets"):
        encoder.encode(rows, 4)
    for offsets in ([], [1, N], [0, N - 1], [0, 9, 8, N]):
        with pytest.raises(InputError, match=f"ascend from 0 to the number of rows, {N}"):
            encoder.encode(rows, 4, offsets=np.array(offsets, np.int64))
    broken = rows.copy()
    broken[[3, 60], 2] = np.nan, np.inf
    with pytest.raises(InputError, match=f"2 of {N} rows hold values that are not finite"):
        encoder.encode(broken, 4, offsets=OFFSETS)


def test_codes_that_are_not_finite_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    """Units that are too long add more at each step than they take away."""
    sae = dense_sae("matching_pursuit", max_iterations=200, stop_on_duplicate_support=False)
    sae.W_dec.data *= 3
    sae.save_model(tmp_path)
    assert not np.isfinite(own_codes(sae, rows)).all()
    with pytest.raises(InputError, match="codes that are not finite") as raised:
        DenseEncoder(open_sae(tmp_path), "cpu").encode(rows, 4)
    assert "\n" not in str(raised.value)


def test_missing_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, weights = opened(tmp_path, "temporal", TEMPORAL)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(DependencyError, match=r"pip install 'saestore\[sae\]'"):
        DenseEncoder(weights, "cpu")


def test_weight_bytes_are_those_of_the_class(tmp_path: Path) -> None:
    for architecture, options in DENSE_SAES:
        sae, weights = opened(tmp_path, architecture, options)
        assert weight_bytes(weights.config) == sum(4 * parameter.numel() for parameter in sae.parameters())


def peak_and_plan(folder: str, length: int, batch_bytes: int) -> tuple[int, int]:
    """Return by how much the memory of this process grew at its peak while it encoded, and what was planned."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) << 10

    dense.BATCH_BYTES = batch_bytes
    weights = open_sae(folder)
    n = 8_000
    x = np.random.default_rng(0).normal(size=(n, D_IN)).astype(np.float32)
    encoder = DenseEncoder(weights, "cpu")
    encoder.encode(x[:64], 32, offsets=np.array([0, 64]))  # compiles the selection
    reset.write_text("5")
    before = read("VmRSS")
    encoder.encode(x, 32, offsets=np.arange(0, n + 1, length))
    return read("VmHWM") - before, working_bytes(weights.config, n, 32, longest=length)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize(
    ("architecture", "options", "length", "batch_bytes"),
    [
        ("matching_pursuit", {"max_iterations": 3, "d_sae": 4_096}, 1, 160 << 20),
        ("temporal", {"n_heads": 8, "bottleneck_factor": 64, "d_sae": 1_024}, 20, 64 << 20),
        ("temporal", {"n_heads": 8, "bottleneck_factor": 64, "d_sae": 1_024}, 2_000, 64 << 20),
    ],
)
def test_memory_stays_within_what_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, options: dict, length: int, batch_bytes: int
) -> None:
    """In a process of its own, since memory that other tests freed would be used again here and not be seen.

    Its allocator gives back what is freed at once, so that what is seen is what was in use together.
    """
    opened(tmp_path, architecture, options)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        used, planned = process.submit(peak_and_plan, str(tmp_path), length, batch_bytes).result()
    assert planned / 4 < used < planned


@pytest.mark.gpu
@pytest.mark.parametrize(("architecture", "options"), [("matching_pursuit", PURSUIT), ("temporal", TEMPORAL)])
def test_device_gives_the_codes_of_the_cpu(tmp_path: Path, rows: np.ndarray, architecture: str, options: dict) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    _, weights = opened(tmp_path, architecture, options)
    on_cpu, on_device = (DenseEncoder(weights, device).encode(rows, 8, offsets=OFFSETS) for device in ("cpu", "cuda"))
    np.testing.assert_array_equal(on_device.indices, on_cpu.indices)
    np.testing.assert_allclose(on_device.values, on_cpu.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(on_device.l0, on_cpu.l0)
