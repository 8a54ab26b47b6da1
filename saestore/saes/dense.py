"""Architectures whose units depend on each other: what SAELens builds their class from, the class, and its decoder.

In a matching pursuit SAE each unit takes its part of the row before the next is chosen; a temporal SAE removes what it
predicts from the earlier positions of the sample. No tile of units can be encoded alone, so SAELens' own code does it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saestore.errors import DependencyError, InputError
from saestore.saes.config import DENSE
from saestore.saes.weights import MatrixName, SAEWeights, matrix_widths, other_shapes, saelens_options, unit_tiles

if TYPE_CHECKING:
    import torch

RESCALED = "constant_scalar_rescale"
"""A normalisation that only temporal SAEs have: a fixed factor, which their class applies itself."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_count(value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_COUNT, _COUNT_OR_NONE = (_is_count, "a whole number above 0"), (_is_count_or_none, "a whole number above 0, or null")
_NUMBER, _BOOL = (_is_number, "a number"), (_is_bool, "true or false")
_POSITIVE = (lambda value: _is_number(value) and value > 0, "a number above 0")
_KIND = (lambda value: value in ("relu", "topk"), "relu or topk")

# The fields of each class beyond those of every SAE: SAELens' default, what is usable, and words for that.
_FIELDS: dict[str, dict[str, tuple[Any, tuple[Callable[[Any], bool], str]]]] = {
    "matching_pursuit": {
        "residual_threshold": (1e-2, _NUMBER),
        "max_iterations": (None, _COUNT_OR_NONE),
        "stop_on_duplicate_support": (True, _BOOL),
    },
    "temporal": {
        "n_heads": (8, _COUNT),
        "n_attn_layers": (1, _COUNT),
        "bottleneck_factor": (64, _COUNT),
        "sae_diff_type": ("topk", _KIND),
        "kval_topk": (None, _COUNT_OR_NONE),
        "tied_weights": (True, _BOOL),
        "activation_normalization_factor": (1.0, _POSITIVE),
    },
}


def saelens_config(raw: Mapping[str, Any], source: str) -> str:
    """Return what SAELens' class is built from, with every default spelled out, as JSON with sorted keys.

    The normalisations that every SAE may have are left to `SAEConfig`: rows are normalised before the class gets them,
    by `saestore.kernels.normalize`, as for every SAE. Rows are flat and numbers float32, so neither the reshaping of
    ``hook_z`` nor the dtype is here.

    Parameters
    ----------
    raw : mapping
        The content of a ``cfg.json`` of SAELens 6.
    source : str
        Where it was read, for the errors.

    Raises
    ------
    InputError
        A field is not usable, or the normalisation is one that SAELens cannot fold into this class.
    """
    architecture = raw["architecture"]
    _check_normalization(architecture, raw.get("normalize_activations"), source)
    fields = {name: _field(raw, name, source) for name in _FIELDS[architecture]}
    if architecture == "temporal":
        _check_temporal(fields, raw.get("d_sae"), source)
    is_rescaled = raw.get("normalize_activations") == RESCALED
    shared = {name: raw[name] for name in ("architecture", "d_in", "d_sae") if name in raw}
    shared["apply_b_dec_to_input"] = raw.get("apply_b_dec_to_input", True)  # SAEConfig checks it
    shared["normalize_activations"] = RESCALED if is_rescaled else "none"
    return json.dumps({**shared, **fields}, sort_keys=True)


def fold_scaling(raw: Mapping[str, Any], factor: float, source: str) -> Mapping[str, Any]:
    """Return a configuration of any architecture as it is once the scaling of its inputs is folded into the weights.

    References
    ----------
    SAELens 6.54, ``fold_activation_norm_scaling_factor`` of each class: matching pursuit compares its residual with a
    threshold, which goes to the scale of the activations too.
    """
    if raw.get("architecture") == "temporal":
        _check_normalization("temporal", "expected_average_only_in", source)
    if raw.get("architecture") == "matching_pursuit":
        return {**raw, "residual_threshold": _field(raw, "residual_threshold", source) / factor}
    return raw


def _field(raw: Mapping[str, Any], name: str, source: str) -> Any:
    default, (is_usable, words) = _FIELDS[raw["architecture"]][name]
    value = raw.get(name, default)
    if not is_usable(value):
        raise InputError(f"{name}={value!r} of the {raw['architecture']} SAE in {source} is unknown; expected {words}")
    return value


def _check_normalization(architecture: str, normalization: object, source: str) -> None:
    if normalization == "covariance_whitening":
        remedy = "train it without, since SAELens cannot fold a whitening into it"
    elif normalization == "expected_average_only_in" and architecture == "temporal":
        remedy = f"set normalize_activations to {RESCALED!r} and activation_normalization_factor to the factor"
    else:
        return
    raise InputError(
        f"normalisation {normalization!r} of the {architecture} SAE in {source} cannot be folded into its weights: "
        f"{remedy}"
    )


def _check_temporal(fields: Mapping[str, Any], d_sae: object, source: str) -> None:
    if not isinstance(d_sae, int):
        return  # SAEConfig says so
    parts = fields["bottleneck_factor"] * fields["n_heads"]
    if d_sae % parts:
        raise InputError(
            f"d_sae={d_sae} of the temporal SAE in {source} is not divisible by bottleneck_factor x n_heads = {parts}; "
            "weights and configuration do not belong together"
        )
    if fields["kval_topk"] is not None and fields["kval_topk"] > d_sae:
        raise InputError(
            f"kval_topk={fields['kval_topk']} of the temporal SAE in {source} is larger than its d_sae={d_sae}; "
            "it must be 1 to d_sae"
        )


def saelens_model(weights: SAEWeights, device: str | torch.device) -> torch.nn.Module:
    """Build SAELens' own class of an SAE and give it the weights, in float32.

    Parameters
    ----------
    weights : SAEWeights
        Of an architecture in `DENSE`.
    device : str or torch.device
        Where the parameters are put, tile by tile: nothing is held twice.

    Returns
    -------
    torch.nn.Module
        In inference mode; its ``encode`` takes rows that are normalised as the SAE's configuration says.

    Raises
    ------
    DependencyError
        If ``sae_lens`` is not installed.
    """
    config = weights.config
    assert config.architecture in DENSE, "tiles encode the others"
    try:
        import torch
        from sae_lens import registry
    except ImportError as error:
        raise DependencyError(
            f"a {config.architecture} SAE is encoded by SAELens, and {error.name} is not installed: "
            "pip install 'saestore[sae]'"
        ) from None
    model_class, config_class = registry.get_sae_class(config.architecture)
    options = saelens_options(config)
    del options["architecture"]
    with torch.device("meta"):
        model: torch.nn.Module = model_class(config_class(**options, dtype="float32", device="meta"))
    parameters = {name: torch.from_numpy(weights.vector(name)).to(device) for name in other_shapes(config)}
    for name, width in matrix_widths(config).items():
        held = _held(weights, name, width, device)
        parameters[name] = held if name == "W_dec" else held.T
    model.load_state_dict(parameters, assign=True)
    return model.to(device).eval().requires_grad_(False)


def _held(weights: SAEWeights, name: MatrixName, width: int, device: str | torch.device) -> torch.Tensor:
    """Return a matrix with one row per unit on the device."""
    import torch

    held = torch.empty((weights.config.d_sae, width), dtype=torch.float32, device=device)
    for units in unit_tiles(weights.config):
        held[units] = torch.from_numpy(weights.rows(name, units))
    return held
