"""Reconstruct activations from codes: the decoder rows of the units that occur, gathered from wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import DependencyError, InputError
from saestore.saes.config import SAEConfig
from saestore.saes.dense import RESCALED
from saestore.saes.weights import FloatArray, SAEWeights, saelens_options

if TYPE_CHECKING:
    import torch

GATHER_BYTES = 32 << 20
"""The most decoder rows that are in memory at once."""


@dataclass(frozen=True)
class DecoderRule:
    """What SAELens' ``decode`` makes of codes z: ``(z @ W_dec + b_dec) / factor``, then the normalisation undone.

    Attributes
    ----------
    adds_b_dec : bool
        Whether ``b_dec`` is added.
    factor : float
        That by which the class multiplied the rows; 1 but for `RESCALED`.
    undoes_normalization : bool
        Whether ``saestore.kernels.normalize.denormalize`` comes last. What a transcoder gives belongs to another hook
        point and is not brought back.
    is_partial : bool
        Whether the result is only a part of the reconstruction: a temporal SAE adds what it predicted from earlier
        positions, which its codes do not hold.
    """

    adds_b_dec: bool = True
    factor: float = 1.0
    undoes_normalization: bool = True
    is_partial: bool = False


def decoder_rule(config: SAEConfig) -> DecoderRule:
    """Return how codes of an SAE of any architecture are decoded.

    References
    ----------
    SAELens 6.54, ``decode`` of each class in ``sae_lens.saes``.
    """
    if config.architecture == "matching_pursuit":
        return DecoderRule(adds_b_dec=config.apply_b_dec_to_input)
    if config.reads_sequences:
        options = saelens_options(config)
        is_rescaled = options["normalize_activations"] == RESCALED
        return DecoderRule(
            adds_b_dec=config.apply_b_dec_to_input or not options["tied_weights"],
            factor=float(options["activation_normalization_factor"]) if is_rescaled else 1.0,
            is_partial=True,
        )
    return DecoderRule(undoes_normalization=not config.is_transcoder)


def decode(
    weights: SAEWeights,
    indices: NDArray[Any],
    values: FloatArray,
    *,
    shift: FloatArray | None = None,
    scale: FloatArray | None = None,
    x: FloatArray | None = None,
    device: str = "cpu",
) -> FloatArray:
    """Return the reconstruction that an SAE makes of codes.

    Only the rows of ``W_dec`` whose units occur are read, in parts of bounded size.

    Parameters
    ----------
    weights : SAEWeights
    indices : (n, k) unsigned int
        Units; a slot is empty where its value is 0.
    values : (n, k) float32
    shift, scale : (n,) float32, optional
        What the normalisation took from each row; needed for ``layer_norm`` (both) and ``constant_norm_rescale``
        (scale).
    x : (n, d_in) float32, optional
        The activations, which a transcoder with a skip connection needs.
    device : str
        Where the sums are made.

    Returns
    -------
    (n, d_out) float32
        ``z @ W_dec + b_dec``, brought back by ``* scale + shift``, plus ``x @ W_skip.T`` where there is a skip, as
        `decoder_rule` says. With ``rescale_acts_by_decoder_norm`` z is divided by the norms of the decoder rows
        first. Of a temporal SAE this is the part that the positions before do not predict.

    Raises
    ------
    InputError
        The state of the rows, or the activations of a skip connection, were not given.
    DependencyError
        torch or numba is not installed.

    References
    ----------
    SAELens 6.54, ``decode`` of each class in ``sae_lens.saes`` and ``SAE.forward`` of the skip transcoders.
    """
    try:
        import torch

        from saestore.kernels.decode import decode_rows
        from saestore.kernels.normalize import NormState, denormalize
    except ImportError as error:
        raise DependencyError(f"decoding needs {error.name}; install it with: pip install 'saestore[torch]'") from None
    config = weights.config
    lacking = [
        name
        for name, given in {"shift": shift, "scale": scale}.items()
        if given is None and name in state_names(config)
    ]
    if lacking:
        raise InputError(
            f"the SAE {config.source} normalises with {config.normalization}, so its reconstructions need the "
            f"{' and the '.join(lacking)} of each row; encode the activations again to have them stored"
        )
    if config.has_skip and x is None:
        raise InputError(f"the SAE {config.source} has a skip connection, so its output needs the activations too")
    if config.rescale_acts_by_decoder_norm:
        norms = weights.vector("decoder_norms")[indices]
        values = np.divide(values, norms, out=np.zeros_like(values), where=values != 0)  # an empty slot names unit 0
    units = np.unique(indices[values != 0])
    places = np.searchsorted(units, indices).clip(0, max(0, len(units) - 1))
    rule = decoder_rule(config)
    decoded = decode_rows(
        places,
        values,
        _gathered(weights, units),
        d_in=config.d_out,
        bias=weights.vector("b_dec") if rule.adds_b_dec else None,
        device=device,
    )
    state = NormState()
    if rule.undoes_normalization:
        state = NormState(*(None if part is None else _column(part, decoded) for part in (shift, scale)))
    rebuilt = denormalize(decoded / rule.factor if rule.factor != 1 else decoded, state)
    if config.has_skip:
        skip = torch.from_numpy(weights.vector("W_skip")).to(rebuilt.device)
        rebuilt = rebuilt + torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(rebuilt.device) @ skip.T
    result: FloatArray = rebuilt.cpu().numpy()
    return result


def state_names(config: SAEConfig) -> tuple[str, ...]:
    """Return which numbers of each row a reconstruction needs beside its codes."""
    if not decoder_rule(config).undoes_normalization:
        return ()
    return {"layer_norm": ("shift", "scale"), "constant_norm_rescale": ("scale",)}.get(config.normalization, ())


def _gathered(weights: SAEWeights, units: NDArray[Any]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield runs of the chosen units' decoder rows, each with its place among them."""
    import torch

    step = max(1, GATHER_BYTES // (4 * weights.config.d_out))
    for first in range(0, len(units), step):
        yield first, torch.from_numpy(weights.take("W_dec", units[first : first + step]))


def _column(part: FloatArray, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(like.device)[:, None]
