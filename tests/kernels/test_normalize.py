from __future__ import annotations

import pytest
import torch

from saestore.kernels.normalize import denormalize, normalize

KINDS = ("none", "layer_norm", "constant_norm_rescale")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_saelens_run_time_normalisation(kind: str) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: normalisation has no oracle")
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=12, d_sae=20, normalize_activations=kind))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator) * 5 + 2
    y = torch.randn(40, 12, generator=generator)
    ours, state = normalize(x, kind)
    torch.testing.assert_close(ours, sae.run_time_activation_norm_fn_in(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denormalize(y, state), sae.run_time_activation_norm_fn_out(y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_denormalize_undoes_normalize(kind: str) -> None:
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(1)) * 3 - 1
    ours, state = normalize(x, kind)
    torch.testing.assert_close(denormalize(ours, state), x, rtol=1e-4, atol=1e-4)  # layer_norm divides by std + 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_zero_and_constant_rows_stay_finite(kind: str) -> None:
    for x in (torch.zeros(2, 8), torch.full((2, 8), 3.0)):
        ours, state = normalize(x, kind)
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(denormalize(ours, state), x)
