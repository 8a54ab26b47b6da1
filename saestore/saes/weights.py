"""The contract of a SAE source: configuration, tiles of units, vectors, and the rule that turns products into codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, IntegrityError
from saestore.saes.config import DENSE, SAEConfig

if TYPE_CHECKING:
    from saestore.kernels.encode import UnitRule

FloatArray = NDArray[np.float32]
MatrixName = Literal["W_enc", "W_dec"]

UNIT_VECTORS: dict[str, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc",),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold"),
    "topk_transcoder": ("b_enc",),
    "topk_skip_transcoder": ("b_enc",),
    "matching_pursuit": (),
    "temporal": (),
}
"""The parameters of each architecture with one number per unit, (d_sae,)."""


TILE_BYTES = 32 * 2**20


def saelens_options(config: SAEConfig) -> dict[str, Any]:
    """Return SAELens' own configuration of an architecture in `DENSE`; empty for the others."""
    options: dict[str, Any] = json.loads(config.saelens_config or "{}")
    return options


def matrix_widths(config: SAEConfig) -> dict[MatrixName, int]:
    """Return the matrices with one row per unit, and their widths."""
    if config.architecture == "matching_pursuit" or saelens_options(config).get("tied_weights"):
        return {"W_dec": config.d_out}  # W_enc is its transpose
    return {"W_enc": config.d_in, "W_dec": config.d_out}


def unit_vectors(config: SAEConfig) -> tuple[str, ...]:
    """Return the names of the parameters with one number per unit."""
    return UNIT_VECTORS[config.architecture]


def other_axes(config: SAEConfig) -> dict[str, dict[str, int]]:
    """Return the parameters that are not by unit, each with the names and lengths of its axes.

    These are ``b_dec`` (d_out), of a skip transcoder ``W_skip`` (d_out, d_in), and of a temporal SAE the weights and
    biases of its attention layers: those of keys and queries give d_sae / bottleneck_factor numbers, those of values
    and of the projection d_sae.

    References
    ----------
    SAELens 6.54, ``ManualAttention`` in ``sae_lens/saes/temporal_sae.py``.
    """
    axes = {"b_dec": {"d_out": config.d_out}}
    if config.has_skip:
        axes["W_skip"] = {"d_out": config.d_out, "d_in": config.d_in}
    if config.architecture == "temporal":
        options = saelens_options(config)
        units, key = {"unit": config.d_sae}, {"key": config.d_sae // options["bottleneck_factor"]}
        value = {"value": config.d_sae}
        maps = {"k_ctx": (key, units), "q_target": (key, units), "v_ctx": (value, units), "c_proj": (units, value)}
        for layer in range(options["n_attn_layers"]):
            for name, (given, taken) in maps.items():
                axes[f"attn_layers.{layer}.{name}.weight"] = {**given, **taken}
                axes[f"attn_layers.{layer}.{name}.bias"] = given
    return axes


def other_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Return the parameters that are not by unit, and their shapes; see `other_axes`."""
    return {name: tuple(axes.values()) for name, axes in other_axes(config).items()}


class SAEWeights(Protocol):
    """Weights of one SAE that are read tile by tile.

    The matrices are unit-major: row u of ``W_enc`` (d_sae, d_in) is the encoder direction of unit u, row u of
    ``W_dec`` (d_sae, d_out) its decoder direction. Reading never holds more than the rows that were asked for and a
    small buffer, and leaves no file open.
    """

    @property
    def config(self) -> SAEConfig:
        """The configuration of the SAE."""
        ...

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of consecutive units: (n_units, width) float32, C-contiguous, the caller's to keep."""
        ...

    def take(self, name: MatrixName, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units, ascending: (n_units, width) float32."""
        ...

    def vector(self, name: str) -> FloatArray:
        """Return a parameter of `unit_vectors` or `other_shapes`, or ``decoder_norms`` (d_sae,), float32."""
        ...

    def content_hash(self) -> str:
        """Return the hexadecimal sha256 of what the codes depend on; see `hash_weights`."""
        ...


def unit_tiles(config: SAEConfig, *, tile_bytes: int = TILE_BYTES) -> Iterator[slice]:
    """Cut the units into runs whose float32 rows take about `tile_bytes`."""
    step = max(1, tile_bytes // (4 * max(config.d_in, config.d_out)))
    for start in range(0, config.d_sae, step):
        yield slice(start, min(start + step, config.d_sae))


def decoder_norms(weights: SAEWeights) -> FloatArray:
    """Return the Euclidean norms of the decoder rows, (d_sae,) float32, in one pass over ``W_dec``."""
    norms = np.empty(weights.config.d_sae, np.float32)
    for units in unit_tiles(weights.config):
        rows = weights.rows("W_dec", units)
        norms[units] = np.sqrt(np.einsum("ui,ui->u", rows, rows, dtype=np.float64))
    return norms


def hash_weights(weights: SAEWeights) -> str:
    """Return the content hash of an SAE: the same for the same numbers, in whatever file or layout they are kept.

    It is the sha256 of the configuration fields that the codes depend on (JSON, sorted keys), then of the name and the
    numbers of each parameter, all as little-endian float32: those of `unit_vectors`, those of `other_shapes`, then
    ``W_enc`` and ``W_dec`` unit by unit.

    Raises
    ------
    IntegrityError
        If a weight is NaN or infinite, but for a threshold of infinity, which a unit has that never fires.
    """
    digest = hashlib.sha256(json.dumps(weights.config.arithmetic(), sort_keys=True).encode())

    def add(name: str, values: FloatArray) -> None:
        is_usable = np.isfinite(values)
        if name == "threshold":
            is_usable |= values == np.inf
        if not is_usable.all():
            raise IntegrityError(
                f"{name} of the SAE {weights.config.source or ''} holds NaN or infinity; the file is damaged: "
                "fetch it again"
            )
        digest.update(np.ascontiguousarray(values, "<f4").data)

    for name in (*unit_vectors(weights.config), *other_shapes(weights.config)):
        digest.update(name.encode())
        add(name, weights.vector(name))
    for matrix in matrix_widths(weights.config):
        digest.update(matrix.encode())
        for units in unit_tiles(weights.config):
            add(matrix, weights.rows(matrix, units))
    return digest.hexdigest()


def unit_rule(weights: SAEWeights) -> UnitRule:
    """Return how the product ``p = x_in @ W_enc[u]`` becomes the code of unit u, for any architecture not in `DENSE`.

    With ``v = p * scale + bias`` the unit is active iff ``v > max(threshold, 0)`` and, where there is a cut,
    ``p > cut``; a topk SAE then keeps its K largest active units. A signed rule (abstopk) has every unit active whose
    v is not 0 and keeps the K of largest ``|v|``. ``x_in`` is the normalised activation, less ``b_dec`` if the
    configuration says so.

    Notes
    -----
    The formulas are those of SAELens 6.54 (``encode`` of each class in ``sae_lens.saes``): standard
    ``relu(p + b_enc)``; jumprelu ``relu(v) * (v > threshold)``; gated ``1[p + b_gate > 0] * relu(p * exp(r_mag) +
    b_mag)``; topk ``relu(topk(v))`` with ``v = p + b_enc``, times the decoder norm where
    ``rescale_acts_by_decoder_norm`` is set; abstopk the same by magnitude and without ReLU; transcoders as the
    standard or jumprelu SAE. ReLU after the top-k equals the K largest of the active units.
    """
    from saestore.kernels.encode import UnitRule  # the kernels import torch and numba

    config = weights.config
    assert config.architecture not in DENSE, "the units of such an SAE depend on each other"
    if config.architecture == "gated":
        return UnitRule(
            scale=np.exp(weights.vector("r_mag")), bias=weights.vector("b_mag"), cut=-weights.vector("b_gate")
        )
    bias = weights.vector("b_enc")
    if "threshold" in unit_vectors(config):
        return UnitRule(bias=bias, threshold=weights.vector("threshold"))
    if not config.rescale_acts_by_decoder_norm:
        return UnitRule(bias=bias, topk=config.k, signed=config.is_signed)
    norms = weights.vector("decoder_norms")
    if not norms.all():
        dead = int(np.flatnonzero(norms == 0)[0])
        raise InputError(
            f"decoder row {dead} of the SAE {config.source or ''} is zero, so codes cannot be scaled by the decoder's "
            "norms; give the row a direction"
        )
    return UnitRule(scale=norms, bias=bias * norms, topk=config.k, signed=config.is_signed)
