"""Reader of sparsify folders: ``cfg.json`` and ``sae.safetensors`` with a Top-K SAE or transcoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saestore.errors import InputError
from saestore.saes.config import Architecture, SAEConfig
from saestore.saes.files import FileWeights, require_files
from saestore.saes.json_config import config_value, read_json_config
from saestore.saes.stored import read_safetensors_header

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae.safetensors"

_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)[._](\d+)(?:[._](mlp|attn|self_attn|attention))?$")


def open_sparsify(folder: Path, *, hook_name: str | None = None, model_name: str | None = None) -> FileWeights:
    """Open the folder of one hook point that sparsify's training wrote.

    Parameters
    ----------
    folder : Path
        Holds ``cfg.json`` and ``sae.safetensors``. Its name (``layers.12``, ``layers.12.mlp``, ``h.3``,
        ``embed_tokens``) tells the hook point, and a ``config.json`` of the run in the folder above it the model.
    hook_name, model_name : str, optional
        Replace these. The input of a transcoder of an MLP has no SAELens name: give it.

    Raises
    ------
    MissingError
        If one of the two files is not there.
    InputError
        If the activation is not topk, or weights and configuration do not belong together.
    IntegrityError
        If a file is damaged.

    Notes
    -----
    ``z = topk(relu((x - b_dec) @ encoder.weight.T + encoder.bias))``, without ``b_dec`` in a transcoder; ``x_hat = z @
    W_dec + b_dec``, plus ``x @ W_skip.T`` in a transcoder with a skip connection. SAELens' loader of this layout
    transposes ``W_dec`` and decides about ``b_dec`` by ``normalize_decoder``; neither is what sparsify does.

    References
    ----------
    eai-sparsify 1.3.3, ``sparse_coder.py`` and ``fused_encoder.py``.
    """
    require_files(folder, (CONFIG_NAME, WEIGHTS_NAME), "sparsify")
    file = folder / CONFIG_NAME
    raw = read_json_config(file, "sparsify")
    d_in = config_value(raw, "d_in", int, file)
    architecture = _architecture(raw, file)
    arrays = read_safetensors_header(folder / WEIGHTS_NAME)
    parameters = {ours: arrays[theirs] for theirs, ours in _NAMES.items() if theirs in arrays}
    if "W_enc" in parameters:
        parameters["W_enc"] = parameters["W_enc"].transposed
    is_transcoder = architecture != "topk"
    if "W_skip" in parameters and architecture != "topk_skip_transcoder":
        raise InputError(
            f"{folder / WEIGHTS_NAME} holds W_skip, but {file} does not say skip_connection; weights and configuration "
            "do not belong together"
        )
    config = SAEConfig(
        architecture=architecture,
        d_in=d_in,
        d_sae=raw.get("num_latents") or d_in * config_value(raw, "expansion_factor", int, file),
        d_out=d_in,
        k=config_value(raw, "k", int, file),
        apply_b_dec_to_input=not is_transcoder,
        hook_name=hook_name or (None if is_transcoder else _hook(folder)),
        hook_name_out=_hook(folder) if is_transcoder else None,
        model_name=model_name or _model(folder),
        source=str(folder),
    )
    return FileWeights(config, parameters)


def _architecture(raw: dict[str, Any], file: Path) -> Architecture:
    """Decide the architecture, refusing what sparsify could be told to do and Top-K codes cannot say."""
    activation = raw.get("activation", "topk")
    if activation != "topk":
        raise InputError(f"{file} says activation={activation!r}; of sparsify's activations only topk is supported")
    if raw.get("signed"):
        raise InputError(f"{file} says signed, which sparsify 1.3 no longer knows; only unsigned SAEs are supported")
    if not raw.get("transcode"):
        if raw.get("skip_connection"):
            raise InputError(f"{file} says skip_connection without transcode; only transcoders may have a skip")
        return "topk"
    return "topk_skip_transcoder" if raw.get("skip_connection") else "topk_transcoder"


def _hook(folder: Path) -> str | None:
    """Return the SAELens name of the output of the module after which a folder is named, where it has one."""
    name = folder.absolute().name
    if name.split(".")[-1] == "embed_tokens":
        return "hook_embed"
    block = _BLOCK.search(name)
    if block is None:
        return None
    layer, module = block.groups()
    site = {None: "hook_resid_post", "mlp": "hook_mlp_out"}.get(module, "hook_attn_out")
    return f"blocks.{layer}.{site}"


def _model(folder: Path) -> str | None:
    run = folder.absolute().parent / "config.json"
    name = read_json_config(run, "sparsify").get("model") if run.is_file() else None
    return name if isinstance(name, str) else None
