"""Normalisation of activation rows before encoding, and its inverse on reconstructions.

This module imports torch at the top: import it lazily.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class NormState:
    """What `denormalize` needs to undo `normalize`, per row.

    shift : (..., 1) float or None
        Added last; the mean of the row for ``layer_norm``.
    scale : (..., 1) float or None
        Multiplied first; the standard deviation for ``layer_norm``, ``||x|| / sqrt(d_in)`` for
        ``constant_norm_rescale``.
    """

    shift: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def normalize(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, NormState]:
    """Normalise rows as SAELens does before it encodes.

    Parameters
    ----------
    x : (..., d_in) float
    kind : {"none", "layer_norm", "constant_norm_rescale"}

    Returns
    -------
    (..., d_in) tensor of x's dtype (x itself for ``none``), and the state for `denormalize`.

    Notes
    -----
    ``layer_norm`` is ``(x - mean) / (std + 1e-5)`` with the unbiased standard deviation; ``constant_norm_rescale`` is
    ``x * sqrt(d_in) / ||x||``. A row of zeros, for which SAELens gives NaN under ``constant_norm_rescale``, stays zero.

    References
    ----------
    SAELens 6.54, ``SAE._setup_activation_normalization`` in ``sae_lens/saes/sae.py``.
    """
    if kind == "none":
        return x, NormState()
    if kind == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True)
        centered = x - mean
        std = centered.std(dim=-1, keepdim=True)
        return centered / (std + LAYER_NORM_EPS), NormState(shift=mean, scale=std)
    if kind == "constant_norm_rescale":
        norm = x.norm(dim=-1, keepdim=True)
        scale = torch.where(norm > 0, norm / x.shape[-1] ** 0.5, torch.ones_like(norm))
        return x / scale, NormState(scale=scale)
    raise AssertionError(f"unknown normalisation {kind!r}; SAEConfig admits only known ones")


def denormalize(x_hat: torch.Tensor, state: NormState) -> torch.Tensor:
    """Bring reconstructions of normalised rows, (..., d_in), back to the scale of the activations."""
    if state.scale is not None:
        x_hat = x_hat * state.scale
    if state.shift is not None:
        x_hat = x_hat + state.shift
    return x_hat
