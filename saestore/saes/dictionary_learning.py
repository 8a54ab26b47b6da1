"""Reader of dictionary_learning folders: ``config.json`` and ``ae.pt``, in each of its classes of SAEs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.saes.config import Architecture, SAEConfig
from saestore.saes.files import FileWeights, require_files
from saestore.saes.json_config import config_value, read_json_config
from saestore.saes.stored import StoredArray, read_torch_file

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "ae.pt"


class _Class(NamedTuple):
    architecture: Architecture
    subtracts_b_dec: bool = True


_CLASSES = {
    "AutoEncoder": _Class("standard"),
    "AutoEncoderNew": _Class("standard", subtracts_b_dec=False),
    "GatedAutoEncoder": _Class("gated"),
    "AutoEncoderTopK": _Class("topk"),
    "BatchTopKSAE": _Class("jumprelu"),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu"),
    "JumpReluAutoEncoder": _Class("jumprelu", subtracts_b_dec=False),
}
# What each parameter is called, by class; linear layers keep the transpose.
_NAMES = {
    "W_enc": ("W_enc", "encoder.weight"),
    "W_dec": ("W_dec", "decoder.weight"),
    "b_enc": ("b_enc", "encoder.bias"),
    "b_dec": ("b_dec", "bias", "decoder_bias", "decoder.bias"),
    "b_mag": ("mag_bias",),
    "b_gate": ("gate_bias",),
    "r_mag": ("r_mag",),
    "threshold": ("threshold",),
}
# What dictionary_learning calls the module that was read, and its output in SAELens' words.
_SITES = {
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attention_out": "hook_attn_out",
    "attn_out": "hook_attn_out",
}
_LINEAR = ("encoder.weight", "decoder.weight")


def open_dictionary_learning(
    folder: Path, *, hook_name: str | None = None, model_name: str | None = None
) -> FileWeights:
    """Open a folder of dictionary_learning's training, as SAEBench publishes them.

    Parameters
    ----------
    folder : Path
        Holds ``config.json`` (with ``trainer`` and ``buffer``) and ``ae.pt``.
    hook_name, model_name : str, optional
        Replace the output that ``submodule_name`` says (of the residual stream, if it is not there; none, if it is not
        known) and the last part of ``lm_name``.

    Raises
    ------
    DependencyError
        If torch is not installed.
    MissingError
        If one of the two files is not there.
    InputError
        If the class is unknown, or weights and configuration do not belong together.
    IntegrityError
        If a file is damaged.

    Notes
    -----
    The class names are mapped as SAELens maps them, and AutoEncoderNew as its own code says. BatchTopKSAE and its
    Matryoshka form keep one threshold, which here every unit gets; AutoEncoderTopK keeps one too, which its ``encode``
    does not use.

    References
    ----------
    dictionary_learning 0.1.0; ``dictionary_learning_sae_huggingface_loader_1`` of SAELens 6.54.
    """
    require_files(folder, (CONFIG_NAME, WEIGHTS_NAME), "dictionary_learning")
    file = folder / CONFIG_NAME
    raw = read_json_config(file, "dictionary_learning")
    name = config_value(raw, "trainer.dict_class", str, file)
    if name not in _CLASSES:
        raise InputError(f"{file} says dict_class={name!r}, which is not supported; known: {', '.join(_CLASSES)}")
    architecture, subtracts_b_dec = _CLASSES[name]
    buffer = raw.get("buffer")
    d_sae = config_value(raw, "trainer.dict_size", int, file)
    k = config_value(raw, "trainer.k", int, file) if architecture == "topk" else None
    parameters = _parameters(folder / WEIGHTS_NAME, d_sae, k)
    config = SAEConfig(
        architecture=architecture,
        d_in=config_value(raw, "trainer.activation_dim", int, file),
        d_sae=d_sae,
        k=k,
        apply_b_dec_to_input=subtracts_b_dec,
        hook_name=hook_name or _hook(raw, file),
        model_name=model_name or config_value(raw, "trainer.lm_name", str, file).split("/")[-1],
        prepend_bos=True,
        context_size=buffer.get("ctx_len") if isinstance(buffer, dict) else None,
        source=str(folder),
    )
    return FileWeights(config, parameters)


def _hook(raw: dict[str, Any], file: Path) -> str | None:
    layer = config_value(raw, "trainer.layer", int, file)
    module = raw["trainer"].get("submodule_name", "resid_post")
    found = re.match(rf"({'|'.join(_SITES)})(?:_layer_?\d+)?$", str(module))
    return f"blocks.{layer}.{_SITES[found.group(1)]}" if found else None


def _parameters(path: Path, d_sae: int, k: int | None) -> dict[str, StoredArray | NDArray[Any]]:
    """Locate the tensors of a state dictionary, by our names; a threshold for all units is repeated."""
    held = read_torch_file(path)
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {type(held).__name__}; expected the state dictionary of an SAE")
    own_k = held.get("k")
    if k is not None and isinstance(own_k, StoredArray) and not own_k.logical_shape and own_k.read() != k:
        raise InputError(
            f"{path} has k={own_k.read():g}, but the {CONFIG_NAME} beside it says k={k}; weights and configuration do "
            "not belong together"
        )
    parameters: dict[str, StoredArray | NDArray[Any]] = {}
    for ours, names in _NAMES.items():
        for theirs in names:
            if isinstance(held.get(theirs), StoredArray):
                parameters[ours] = held[theirs].transposed if theirs in _LINEAR else held[theirs]
                break
    threshold = parameters.get("threshold")
    if isinstance(threshold, StoredArray) and not threshold.logical_shape and d_sae > 0:
        parameters["threshold"] = np.full(d_sae, threshold.read(), np.float32)
    return parameters
