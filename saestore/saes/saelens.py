"""Reader of SAELens' own layout, ``cfg.json`` and ``sae_weights.safetensors``; needs neither SAELens nor torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from saestore.errors import InputError
from saestore.saes.config import DENSE, TOPK, TRANSCODERS, SAEConfig
from saestore.saes.dense import RESCALED, fold_scaling, saelens_config
from saestore.saes.files import Factors, FileWeights, parameter_shapes, require_files
from saestore.saes.json_config import read_json_config
from saestore.saes.stored import StoredArray, read_safetensors_header

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"

_METADATA = (
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "model_name",
    "prepend_bos",
    "context_size",
    "neuronpedia_id",
)


def open_saelens(
    folder: Path,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
) -> FileWeights:
    """Open a folder that SAELens' ``save_model`` or ``save_inference_model`` wrote.

    Parameters
    ----------
    folder : Path
        Holds ``cfg.json`` (of SAELens 6 or older) and ``sae_weights.safetensors``.
    hook_name, model_name : str, optional
        Replace what the configuration says.
    norm_scaling_factor : float, optional
        Folds an unfolded ``expected_average_only_in`` normalisation while reading, as SAELens'
        ``fold_activation_norm_scaling_factor`` does: of a transcoder, too, it divides ``W_dec`` and ``b_dec``, though
        they give activations of another hook point, and leaves ``W_skip``.

    Raises
    ------
    MissingError
        If one of the two files is not there.
    InputError
        If the configuration is of a kind that cannot be encoded here, or disagrees with the weights.
    IntegrityError
        If a file is damaged.
    """
    require_files(folder, (CONFIG_NAME, WEIGHTS_NAME), "SAELens")
    raw = read_json_config(folder / CONFIG_NAME, "SAELens")
    arrays = read_safetensors_header(folder / WEIGHTS_NAME)
    factors = Factors.of_norm_scaling(norm_scaling_factor)
    if norm_scaling_factor is not None:
        if not is_unfolded(raw):
            raise InputError(
                f"norm_scaling_factor={norm_scaling_factor} was given, but {folder / CONFIG_NAME} says "
                f"normalize_activations={raw.get('normalize_activations')!r}; leave it out"
            )
        raw = {**fold_scaling(raw, norm_scaling_factor, str(folder)), "normalize_activations": "none"}
    config = _config(raw, str(folder))
    config = dataclasses.replace(
        config, hook_name=hook_name or config.hook_name, model_name=model_name or config.model_name
    )
    if config.architecture == "matching_pursuit":
        factors = Factors(b_dec=factors.b_dec)  # one matrix encodes and decodes: multiplied, then divided
    _check_names(config, arrays, folder / WEIGHTS_NAME)
    return FileWeights(config, arrays, factors=factors)


def _check_names(config: SAEConfig, arrays: dict[str, StoredArray], file: Path) -> None:
    """Refuse tensors that the architecture does not have: the configuration may be that of another SAE."""
    for name in sorted(set(arrays) - set(parameter_shapes(config))):
        if name == "scaling_factor":  # SAELens wrote one for a time, and takes it for nothing where it is 1
            if (arrays[name].read() == 1).all():
                continue
            raise InputError(f"{file} has a scaling_factor other than 1; multiply it into W_dec and save the SAE again")
        raise InputError(
            f"{file} holds {name}, which a {config.architecture} SAE does not have; weights and configuration do not "
            "belong together"
        )


def _config(raw: dict[str, Any], source: str) -> SAEConfig:
    """Translate the content of a ``cfg.json``, of SAELens 6 or older.

    What is not set there has SAELens' default, where SAELens has one that cannot be wrong: the architecture, the K of a
    topk SAE and the d_out of a transcoder must be set.

    Raises
    ------
    InputError
        If a field that the codes depend on is missing, or has a value that is not known.

    References
    ----------
    Older configurations are read as ``handle_pre_6_0_config`` in SAELens 6.54 does.
    """
    metadata = _mapping(raw, "metadata", source)
    major = str(raw.get("sae_lens_version") or metadata.get("sae_lens_version") or "0").split(".")[0]
    if not major.isdigit() or int(major) < 6:
        metadata = raw = _modern(raw, source)
    if "architecture" not in raw:
        raise InputError(f"the configuration of the SAE in {source} names no architecture; add it, e.g. jumprelu")
    architecture = raw["architecture"]
    normalization = raw.get("normalize_activations", "none")
    own = saelens_config(raw, source) if architecture in DENSE else None
    return SAEConfig.from_dict(
        {
            "architecture": architecture,
            **{name: raw[name] for name in ("d_in", "d_sae") if name in raw},
            "d_out": raw.get("d_out", 0) if architecture in TRANSCODERS else 0,
            "k": raw.get("k") if architecture in TOPK else None,
            "apply_b_dec_to_input": raw.get("apply_b_dec_to_input", architecture not in TRANSCODERS),
            "normalization": "none" if (architecture, normalization) == ("temporal", RESCALED) else normalization,
            "rescale_acts_by_decoder_norm": raw.get("rescale_acts_by_decoder_norm", False)
            if architecture in TOPK
            else False,
            "reshape_activations": raw.get("reshape_activations") or "none",
            **{name: metadata.get(name) for name in _METADATA},
            "source": source,
            "saelens_config": own,
        }
    )


def _modern(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """Bring the fields of a configuration from before SAELens 6 to their names and values of today."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    raw = {"prepend_bos": True} | {renamed.get(key, key): value for key, value in raw.items()}
    activation = raw.get("activation_fn_str") or raw.get("activation_fn") or "relu"
    arguments = _mapping(raw, "activation_fn_kwargs", source)
    if activation not in ("relu", "topk"):
        raise InputError(f"activation {activation!r} of the SAE in {source} is not supported; known: relu, topk")
    if raw.get("finetuning_scaling_factor"):
        raise InputError(
            f"the SAE in {source} has a finetuning_scaling_factor, which SAELens 6 no longer applies; "
            "multiply it into W_dec and save the SAE again"
        )
    if activation == "topk" or raw.get("architecture") == "topk":
        raw["architecture"] = "topk"
        raw["k"] = arguments.get("k", raw.get("k"))
    raw.setdefault("architecture", "standard")
    if raw.get("normalize_activations") in (None, False):
        raw["normalize_activations"] = "none"
    if raw["normalize_activations"] is True:
        raw["normalize_activations"] = "expected_average_only_in"
    if "reshape_activations" not in raw:
        raw["reshape_activations"] = "hook_z" if "hook_z" in str(raw.get("hook_name")) else "none"
    return raw


def is_unfolded(raw: dict[str, Any]) -> bool:
    """Return whether a configuration names a scaling of inputs that SAELens applies only by folding it in."""
    return raw.get("normalize_activations") in ("expected_average_only_in", True)


def _mapping(raw: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    found = raw.get(name)
    if not isinstance(found, dict | None):
        raise InputError(f"{name}={found!r} of the SAE in {source} is not usable; expected a JSON object")
    return found or {}
