"""Measuring the steered units in hidden states, to know by how much they must change.

This module imports torch at the top: import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from saestore.errors import InputError
from saestore.steer.bundle import Bundle, Places

if TYPE_CHECKING:
    from saestore.encoding.encoder import Encoder
    from saestore.saes.weights import SAEWeights

Measure = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states (n, width) float32, not normalised, to activations (n, units) float32 on the same device."""


def measure_of(bundle: Bundle, places: Places, sae: SAEWeights | None) -> Measure:
    """Return how the activations of units of a bundle are measured.

    Parameters
    ----------
    bundle : Bundle
    places : (n,) int64
        Of the units in the bundle.
    sae : SAEWeights or None
        The whole SAE, which is needed where units are selected among all of them; it is then held in memory.

    Raises
    ------
    InputError
        If the SAE is needed and not given, is not that of the bundle, or its units cannot be measured.
    """
    if bundle.sae.selection == "none":
        raise InputError(
            f"the units of SAE {bundle.sae.name} ({bundle.sae.architecture}) cannot be measured where its decoder "
            "writes, which clamp and ablate need; use the mode add"
        )
    if bundle.sae.selection == "threshold":
        return _by_threshold(bundle, places)
    if sae is None:
        raise InputError(
            f"the {bundle.sae.architecture} SAE {bundle.sae.name} selects among all its units, so the mode needs its "
            "weights: give sae=open_sae(...), or the SAE of the lake, or use the mode add"
        )
    _check_same(bundle, sae)
    return _by_sae(bundle, places, sae)


def _by_threshold(bundle: Bundle, places: Places) -> Measure:
    from saestore.kernels.normalize import normalize

    assert bundle.encoder is not None
    assert bundle.encoder_bias is not None
    assert bundle.threshold is not None
    encoder, bias = torch.from_numpy(bundle.encoder[places]), torch.from_numpy(bundle.encoder_bias[places])
    threshold = torch.from_numpy(bundle.threshold[places]).clamp(min=0)

    def measure(hidden: torch.Tensor) -> torch.Tensor:
        rows, _ = normalize(hidden, bundle.sae.normalization)
        values = rows @ encoder.to(hidden.device).T + bias.to(hidden.device)
        return torch.where(values > threshold.to(hidden.device), values, torch.zeros_like(values))

    return measure


def _by_sae(bundle: Bundle, places: Places, sae: SAEWeights) -> Measure:
    from saestore.encoding.encoder import Encoder

    k = sae.config.k
    assert k is not None, "SAEs that select among all units have a K"
    units = bundle.units[places].astype(np.int64)
    encoders: dict[str, Encoder] = {}  # the device is that of the first hidden state

    def measure(hidden: torch.Tensor) -> torch.Tensor:
        device = str(hidden.device)
        if device not in encoders:
            encoders[device] = Encoder(sae, device=device, hold=True)
        codes = encoders[device].encode(hidden.detach().cpu().numpy(), k).codes
        values = np.where(codes.indices[:, :, None] == units, codes.values[:, :, None], np.float32(0)).sum(axis=1)
        return torch.from_numpy(values).to(hidden.device)

    return measure


def _check_same(bundle: Bundle, sae: SAEWeights) -> None:
    """Compare the units' rows, since a hash would read the whole SAE."""
    from saestore.steer.making import unit_rows

    is_same = sae.config.architecture == bundle.sae.architecture and sae.config.d_sae > bundle.units[-1]
    if is_same:
        rows = unit_rows(sae, bundle.units)
        pairs = (
            (rows.decoder, bundle.decoder),
            (rows.encoder, bundle.encoder),
            (rows.encoder_bias, bundle.encoder_bias),
        )
        is_same = all(given is not None and held is not None and np.array_equal(given, held) for given, held in pairs)
    if not is_same:
        raise InputError(
            f"the SAE {sae.config.source or 'given'} is not the SAE {bundle.sae.name} of the steering bundle: its "
            "units differ; give the one that the bundle was made from"
        )
