"""Reader of Gemma Scope 2 weights: one ``params.safetensors`` with a JumpReLU SAE or transcoder of Gemma 3."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saestore.errors import InputError, MissingError
from saestore.saes.config import Architecture
from saestore.saes.files import FileWeights, matrix_shape, require_tensors
from saestore.saes.gemma_scope import Place, check_width
from saestore.saes.json_config import config_value, read_json_config
from saestore.saes.stored import StoredArray, read_safetensors_header

FILE_NAME = "params.safetensors"
CONFIG_NAME = "config.json"

_HOOKS = {
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.attn.hook_z",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "transcoder": "blocks.{layer}.hook_mlp_in",
}
_TRANSCODER_OUTPUT = "blocks.{layer}.hook_mlp_out"
_SITE = re.compile(rf"(?:^|/)({'|'.join(_HOOKS)})(?:_all)?/layer_(\d+)_")
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"


def open_gemma_scope_2(
    path: Path, *, hook_name: str | None = None, model_name: str | None = None, repo_id: str | None = None
) -> FileWeights:
    """Open a Gemma Scope 2 ``params.safetensors``, or the folder that holds it.

    Parameters
    ----------
    path : Path
        Beside the file may lie a ``config.json``, which names the model. Site, layer and, without that file, the model
        come from the names of the folders (``gemma-scope-2-4b-pt/transcoder/layer_17_width_16k_l0_big_affine``).
    hook_name, model_name : str, optional
        Replace what the folder names and ``config.json`` say.
    repo_id : str, optional
        Name of the repository the file comes from, if it is not among the folder names.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it holds no SAE that can be encoded here, or its ``config.json`` or folder name says something else.
    IntegrityError
        If the file is damaged.

    Notes
    -----
    The weights are a transcoder if the folder says so, the configuration names an output, or there is an
    ``affine_skip_connection``, whose transpose is ``W_skip``. ``apply_b_dec_to_input`` is False and nothing is
    normalised. Cross-layer transcoders, whose ``w_dec`` has three axes, are refused: SAELens adds their layers up.

    References
    ----------
    ``gemma_3_sae_huggingface_loader`` of SAELens 6.54.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingError(f"{file} does not exist; expected a Gemma Scope 2 {FILE_NAME}")
    names = f"{repo_id or ''}/{file.absolute().as_posix()}"
    arrays = require_tensors(read_safetensors_header(file), _NAMES, file, "Gemma Scope 2")
    d_in, d_sae = matrix_shape("w_enc", arrays["w_enc"], "(d_in, d_sae)")
    _, d_out = matrix_shape("w_dec", arrays["w_dec"], "(d_sae, d_out), not that of a cross-layer transcoder")
    check_width(names, d_sae, file)
    raw = _read_config(file.with_name(CONFIG_NAME))
    place = _place(names, raw)
    architecture = _architecture(place, raw, arrays, file)
    config = place.config(
        architecture, file, d_in=d_in, d_sae=d_sae, d_out=d_out, hook_name=hook_name, model_name=model_name
    )
    parameters = {ours: arrays[theirs] for theirs, ours in _NAMES.items()}
    if config.has_skip:
        parameters["W_skip"] = arrays[_SKIP].transposed
    return FileWeights(config, parameters)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    raw = read_json_config(path, "Gemma Scope 2")
    architecture = config_value(raw, "architecture", str, path)
    if architecture != "jump_relu":
        raise InputError(f"{path} says architecture={architecture!r}; a Gemma Scope 2 SAE has 'jump_relu'")
    return raw


def _place(names: str, raw: dict[str, Any]) -> Place:
    """Derive where the weights belong from repository and folder names and the configuration."""
    repository = re.search(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)", names)
    model = raw.get("model_name")
    if not isinstance(model, str | None):
        raise InputError(f"model_name={model!r} in the {CONFIG_NAME} of {names} is not usable; expected a text")
    model = model or (repository and f"gemma-3-{repository.group(1)}-{repository.group(2)}")
    if model:
        model = model if "google" in model else f"google/{model}"
        model = model.replace("-v3", "-3")
        if "270m" in model:  # the base model of this size has no suffix
            model = model.replace("-pt", "")
    site = _SITE.search(names)
    if site is None:
        output = raw.get("hf_hook_point_out")
        return Place(model, is_transcoder=output is not None and output != raw.get("hf_hook_point_in"))
    kind, layer = site.groups()
    is_transcoder = kind == "transcoder"
    hook_out = _TRANSCODER_OUTPUT.format(layer=layer) if is_transcoder else None
    return Place(model, _HOOKS[kind].format(layer=layer), hook_out, is_transcoder)


def _architecture(place: Place, raw: dict[str, Any], arrays: dict[str, StoredArray], file: Path) -> Architecture:
    if _SKIP in arrays:
        return "jumprelu_skip_transcoder"
    if raw.get("affine_connection"):
        raise InputError(f"{file} lacks {_SKIP}, but the {CONFIG_NAME} beside it says affine_connection")
    return "jumprelu_transcoder" if place.is_transcoder else "jumprelu"
