"""Reader of Llama Scope weights: ``hyperparams.json`` and ``checkpoints/final.safetensors`` with a JumpReLU SAE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.saes.config import SAEConfig
from saestore.saes.files import Factors, FileWeights, require_files, require_tensors
from saestore.saes.json_config import config_value, read_json_config
from saestore.saes.stored import StoredArray, read_safetensors_header

CONFIG_NAME = "hyperparams.json"
WEIGHTS_NAME = "checkpoints/final.safetensors"
MODEL_NAME = "meta-llama/Llama-3.1-8B"

_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def open_llama_scope(
    folder: Path,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
) -> FileWeights:
    """Open a Llama Scope folder.

    Parameters
    ----------
    folder : Path
        Holds ``hyperparams.json`` and ``checkpoints/final.safetensors``.
    hook_name, model_name : str, optional
        Replace ``hook_point_in`` and Llama 3.1 8B.
    norm_scaling_factor : float, optional
        What inputs are multiplied by before they are encoded; sqrt(d_in) over the average norm of the activations, as
        ``hyperparams.json`` gives it, by default. SAELens' registry lists the same number.

    Raises
    ------
    MissingError
        If one of the two files is not there.
    InputError
        If a field is missing, or weights and configuration do not belong together.
    IntegrityError
        If a file is damaged.

    Notes
    -----
    With s the factor of the weights and r that of ``hyperparams.json``, as SAELens loads them: ``W_enc * s``,
    ``W_dec / s``, ``b_dec / s``, and the one threshold of the file times r for every unit. ``apply_b_dec_to_input`` is
    False.

    References
    ----------
    He et al. 2024, Llama Scope; ``llama_scope_sae_huggingface_loader`` and ``fold_activation_norm_scaling_factor`` of
    SAELens 6.54.
    """
    require_files(folder, (CONFIG_NAME, WEIGHTS_NAME), "Llama Scope")
    file = folder / CONFIG_NAME
    raw = read_json_config(file, "Llama Scope")
    d_in, d_sae = config_value(raw, "d_model", int, file), config_value(raw, "d_sae", int, file)
    threshold = config_value(raw, "jump_relu_threshold", float, file)
    norm = config_value(raw, "dataset_average_activation_norm.in", float, file)
    if not (norm > 0 and d_in > 0):
        raise InputError(f"{file} says d_model={d_in} and an average norm of {norm}; expected numbers above 0")
    weights_file = folder / WEIGHTS_NAME
    tensors = require_tensors(read_safetensors_header(weights_file), _NAMES, weights_file, "Llama Scope")
    factor = math.sqrt(d_in) / norm
    factors = Factors.of_norm_scaling(factor if norm_scaling_factor is None else norm_scaling_factor)
    config = SAEConfig(
        architecture="jumprelu",
        d_in=d_in,
        d_sae=d_sae,
        apply_b_dec_to_input=False,
        hook_name=hook_name or config_value(raw, "hook_point_in", str, file),
        model_name=model_name or MODEL_NAME,
        prepend_bos=True,
        context_size=1024,
        source=str(folder),
    )
    parameters: dict[str, StoredArray | NDArray[Any]] = {
        "W_enc": tensors["encoder.weight"].transposed,
        "W_dec": tensors["decoder.weight"].transposed,
        "b_enc": tensors["encoder.bias"],
        "b_dec": tensors["decoder.bias"],
        "threshold": np.full(d_sae, threshold * factor, np.float32),
    }
    return FileWeights(config, parameters, factors=factors)
