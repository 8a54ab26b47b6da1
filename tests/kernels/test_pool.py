from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.kernels.pool import pool  # noqa: E402


def reference(hidden, mask, kind):
    """One row at a time, in float64."""
    rows = []
    for states, used in zip(hidden.astype(np.float64), mask, strict=True):
        kept = states[used]
        if not len(kept):
            rows.append(np.full(hidden.shape[2], np.nan))
        else:
            rows.append({"mean": kept.mean(0), "max": kept.max(0), "last": kept[-1]}[kind])
    return np.array(rows)


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_agrees_with_numpy(kind, dtype):
    rng = np.random.default_rng(1)
    hidden = torch.from_numpy(rng.normal(size=(7, 9, 5)) * 3 - 4).to(getattr(torch, dtype))  # maxima are negative too
    mask = rng.random((7, 9)) < 0.5
    mask[3] = False
    mask[4] = True
    pooled, n_used = pool(hidden, torch.from_numpy(mask), kind)
    assert pooled.dtype == torch.float32
    np.testing.assert_array_equal(n_used.numpy(), mask.sum(1))
    np.testing.assert_allclose(pooled.numpy(), reference(hidden.float().numpy(), mask, kind), rtol=1e-5, atol=1e-6)
    assert np.isnan(pooled[3].numpy()).all()


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_what_stands_outside_the_mask_has_no_effect(kind):
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[False, True, True, False], [True, True, True, False]])
    clean, _ = pool(hidden, mask, kind)
    hidden[~mask] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    dirty, _ = pool(hidden, mask, kind)
    assert torch.equal(clean, dirty)


def test_the_mean_accumulates_in_float32():
    hidden = torch.full((1, 4096, 1), 60_000.0, dtype=torch.float16)  # the sum is far above float16
    pooled, _ = pool(hidden, torch.ones(1, 4096, dtype=torch.bool), "mean")
    assert pooled.item() == pytest.approx(float(hidden[0, 0, 0]), rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_nonfinite_values_inside_the_mask_stay_visible(kind):
    hidden = torch.zeros(1, 2, 2)
    hidden[0, 1, 0] = torch.nan
    pooled, _ = pool(hidden, torch.ones(1, 2, dtype=torch.bool), kind)
    assert torch.isnan(pooled[0]).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_no_positions_at_all(kind):
    pooled, n_used = pool(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool), kind)
    assert pooled.shape == (2, 3)
    assert torch.isnan(pooled).all()
    assert n_used.tolist() == [0, 0]
