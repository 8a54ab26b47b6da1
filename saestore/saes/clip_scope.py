"""Reader of CLIP-Scope checkpoints: one ``.pt`` file with a Top-K SAE of a CLIP vision transformer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from saestore.errors import InputError
from saestore.saes.config import SAEConfig
from saestore.saes.files import FileWeights, require_tensors
from saestore.saes.stored import read_torch_file

MODEL_NAME = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"

_KEYS = ("k", "n_features", "d_in", "model_state_dict")
_TENSORS = ("pre_b", "enc", "dec")


def open_clip_scope(path: Path, *, hook_name: str | None = None, model_name: str | None = None) -> FileWeights:
    """Open a CLIP-Scope checkpoint.

    Parameters
    ----------
    path : Path
        A ``.pt`` file with ``k``, ``n_features``, ``d_in`` and ``model_state_dict`` (``pre_b`` (d_in,), ``enc`` (d_in,
        n_features), ``dec`` (n_features, d_in)). Its folder (``22_resid``) tells the layer.
    hook_name, model_name : str, optional
        Replace what the folder name says, and CLIP ViT-L/14 of laion2B.

    Raises
    ------
    DependencyError
        If torch is not installed.
    MissingError, IntegrityError, InputError
        If there is no such file, it cannot be read as tensors, or it is no such checkpoint.

    Notes
    -----
    ``z = (x - pre_b) @ enc``, the K largest of a row are kept; ``x_hat = z @ dec + pre_b``. In SAELens' terms: topk
    with ``b_dec = pre_b``, ``b_enc = 0`` and ``apply_b_dec_to_input``. CLIP-Scope itself applies no ReLU; negative
    values among the K largest are not codes here, as every consumer of its codes masks them.

    References
    ----------
    ``clipscope`` 0.1.8, ``sae.py``.
    """
    checkpoint = read_torch_file(path)
    expected = f"expected {', '.join(_KEYS)} with {', '.join(_TENSORS)}, as CLIP-Scope saves them"
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _KEYS):
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise InputError(f"{path} is no CLIP-Scope checkpoint, it holds {held[:120]}; {expected}")
    numbers, state = [checkpoint[name] for name in ("d_in", "n_features", "k")], checkpoint["model_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(number, int) for number in numbers):
        kinds = ", ".join(type(value).__name__ for value in (*numbers, state))
        raise InputError(
            f"{path} is no CLIP-Scope checkpoint, its d_in, n_features, k and model_state_dict are {kinds}; {expected}"
        )
    tensors = require_tensors(state, _TENSORS, path, "CLIP-Scope")
    d_in, d_sae, k = numbers
    shapes = {"pre_b": (d_in,), "enc": (d_in, d_sae), "dec": (d_sae, d_in)}
    for name, shape in shapes.items():
        found = tensors[name].logical_shape
        if found != shape:
            raise InputError(f"{name} in {path} has shape {found}; d_in={d_in} and n_features={d_sae} need {shape}")
    layer = re.search(r"(\d+)_resid", path.absolute().as_posix())
    config = SAEConfig(
        architecture="topk",
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        apply_b_dec_to_input=True,
        hook_name=hook_name or (f"blocks.{layer.group(1)}.hook_resid_post" if layer else None),
        model_name=model_name or MODEL_NAME,
        source=str(path),
    )
    parameters = {"W_enc": tensors["enc"], "W_dec": tensors["dec"], "b_dec": tensors["pre_b"]}
    return FileWeights(config, {**parameters, "b_enc": np.zeros(d_sae, np.float32)})
