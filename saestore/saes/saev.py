"""Reader of saev checkpoints: one file with a line of JSON and then the tensors of an SAE of a vision model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, MissingError
from saestore.saes.config import Architecture, SAEConfig
from saestore.saes.files import FileWeights, require_tensors
from saestore.saes.json_config import config_value, parse_json_config
from saestore.saes.stored import StoredArray, read_torch_file

_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
# The JSON of a configuration has some hundred bytes; a file without a line break shall not be read whole.
_LONGEST_HEADER = 1 << 20
_THRESHOLD = "activation.threshold"


def open_saev(path: Path, *, hook_name: str | None = None, model_name: str | None = None) -> FileWeights:
    """Open a saev checkpoint.

    Parameters
    ----------
    path : Path
        A line of JSON, then what ``torch.save`` writes: ``W_enc`` (d_in, d_sae), ``W_dec`` (d_sae, d_in), ``b_enc``,
        ``b_dec`` and, of BatchTopK, a threshold for all units.
    hook_name, model_name : str, optional
        Where the SAE belongs; the file does not say it.

    Raises
    ------
    DependencyError
        If torch is not installed.
    MissingError, IntegrityError, InputError
        If there is no such file, it is damaged, or it is no such checkpoint.

    Notes
    -----
    ``f = act(x @ W_enc + b_enc)`` and ``x_hat = f @ W_dec + b_dec``. The activation is ReLU, TopK (saev applies no
    ReLU to it; negative values among the K largest are not codes here) or BatchTopK, which outside training compares
    with its threshold. Files whose header has no ``schema`` were written by saev 0.1.0, which always has ReLU and
    subtracts ``b_dec`` from x first.

    References
    ----------
    saev, ``nn/modeling.py`` (header schemas 1 to 5); saev 0.1.0, ``nn.py``.
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist; expected a saev checkpoint")
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_HEADER)
    header = parse_json_config(line, path, "saev")
    tensors = require_tensors(read_torch_file(path, offset=len(line)), _TENSORS, path, "saev")
    is_first = "schema" not in header
    raw = header if is_first else _settings(header)
    d_in = config_value(raw, "d_model" if "d_model" in raw else "d_vit", int, path)
    d_sae = raw.get("d_sae") or d_in * config_value(raw, "exp_factor", int, path)
    architecture, k = _activation(header, path)
    config = SAEConfig(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        apply_b_dec_to_input=is_first,
        hook_name=hook_name,
        model_name=model_name,
        source=str(path),
    )
    parameters: dict[str, StoredArray | NDArray[Any]] = {name: tensors[name] for name in _TENSORS}
    if architecture == "jumprelu":
        threshold = tensors.get(_THRESHOLD)
        if threshold is None or threshold.logical_shape:
            raise InputError(
                f"{path} is a BatchTopK SAE without {_THRESHOLD}, so its codes would depend on the batch; train it "
                "with a saev that stores the threshold"
            )
        parameters["threshold"] = np.full(d_sae, threshold.read(), np.float32)
    return FileWeights(config, parameters)


def _settings(header: dict[str, Any]) -> dict[str, Any]:
    settings = header.get("cfg")
    return settings if isinstance(settings, dict) else {}


def _activation(header: dict[str, Any], path: Path) -> tuple[Architecture, int | None]:
    """Return the architecture and its K; the header has said it in three ways."""
    if "schema" not in header:
        return "standard", None
    if header["schema"] not in (1, 2, 3, 4, 5):
        raise InputError(f"{path} has header schema {header['schema']!r}; known: 1 to 5")
    is_by_class = "activation" not in _settings(header)
    name = config_value(header, "cls" if is_by_class else "cfg.activation.cls", str, path)
    if name == "TopK":
        k = config_value(header, "cfg.top_k" if is_by_class else "cfg.activation.params.top_k", int, path)
        return "topk", k
    known: dict[str, Architecture] = {"Relu": "standard", "BatchTopK": "jumprelu"}
    if name not in known:
        raise InputError(f"{path} has the activation {name!r}, which is not supported; known: Relu, TopK, BatchTopK")
    return known[name], None
