"""Reader of CLIP-Scope checkpoints: one ``.pt`` file with a Top-K SAE of a CLIP vision transformer."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from saestore.errors import DependencyError, InputError, IntegrityError, MissingError
from saestore.saes.config import SAEConfig
from saestore.saes.weights import VECTORS, FloatArray, MatrixName, decoder_norms, hash_weights

MODEL_NAME = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"

_KEYS = ("k", "n_features", "d_in", "model_state_dict")
_TENSORS = ("pre_b", "enc", "dec")


class ClipScopeWeights:
    """A CLIP-Scope checkpoint, memory-mapped.

    ``z = (x - pre_b) @ enc``, the K largest of a row are kept; ``x_hat = z @ dec + pre_b``. In SAELens' terms: topk
    with ``b_dec = pre_b``, ``b_enc = 0`` and ``apply_b_dec_to_input``. CLIP-Scope itself applies no ReLU; negative
    values among the K largest are not codes here, as every consumer of its codes masks them.

    References
    ----------
    ``clipscope`` 0.1.8, ``sae.py``.
    """

    def __init__(self, config: SAEConfig, tensors: dict[str, Any]) -> None:
        self.config = config
        self._tensors = tensors

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of some units, (n_units, d_in) float32."""
        if name == "W_enc":
            tile = self._open("enc")[:, units].T
        else:
            tile = self._open("dec")[units]
        return np.array(tile.float().numpy(), np.float32, order="C")

    def vector(self, name: str) -> FloatArray:
        """Return ``b_enc`` (zeros), ``b_dec`` or ``decoder_norms``, float32."""
        if name == "decoder_norms":
            return decoder_norms(self)
        if name == "b_enc":
            return np.zeros(self.config.d_sae, np.float32)
        if name == "b_dec":
            return np.array(self._open("pre_b").float().numpy(), np.float32)
        raise InputError(f"a topk SAE has no vector {name!r}; it has {', '.join(VECTORS['topk'])}, decoder_norms")

    def content_hash(self) -> str:
        """Return the hexadecimal sha256 of what the codes depend on (reads all weights once)."""
        return hash_weights(self)

    def close(self) -> None:
        """Drop the memory map; the weights cannot be read afterwards."""
        self._tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, name: str) -> Any:
        if name not in self._tensors:
            raise InputError(f"the weights of {self.config.source} are closed; open the SAE again")
        return self._tensors[name]


def open_clip_scope(path: Path, *, hook_name: str | None = None, model_name: str | None = None) -> ClipScopeWeights:
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
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist; expected a CLIP-Scope checkpoint (.pt)")
    try:
        import torch
    except ImportError:
        raise DependencyError(f"reading {path} needs torch: pip install 'saestore[torch]'") from None
    try:
        # weights_only: nothing is unpickled but tensors and numbers; mmap: pages are read when tiles are, which files
        # in torch's oldest format do not allow
        checkpoint = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"{path} cannot be read as a file of tensors ({reason[:120]}); fetch it again") from None
    expected = f"expected {', '.join(_KEYS)} with {', '.join(_TENSORS)}, as CLIP-Scope saves them"
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _KEYS):
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise InputError(f"{path} is no CLIP-Scope checkpoint, it holds {held[:120]}; {expected}")
    tensors = {name: checkpoint["model_state_dict"].get(name) for name in _TENSORS}
    missing = [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]
    if missing:
        raise InputError(f"{path} lacks the tensors {', '.join(missing)}; {expected}")
    d_in, d_sae, k = int(checkpoint["d_in"]), int(checkpoint["n_features"]), int(checkpoint["k"])
    shapes = {"pre_b": (d_in,), "enc": (d_in, d_sae), "dec": (d_sae, d_in)}
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            raise InputError(f"{name} in {path} has shape {found}; d_in={d_in} and n_features={d_sae} need {shape}")
    layer = re.search(r"(\d+)_resid", path.absolute().as_posix())
    config = SAEConfig(
        architecture="topk",
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        apply_b_dec_to_input=True,
        dtype=str(tensors["enc"].dtype).removeprefix("torch."),
        hook_name=hook_name or (f"blocks.{layer.group(1)}.hook_resid_post" if layer else None),
        model_name=model_name or MODEL_NAME,
        source=str(path),
    )
    return ClipScopeWeights(config, tensors)
