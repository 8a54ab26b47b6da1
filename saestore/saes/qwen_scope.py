"""Reader of Qwen Scope weights: one ``layer{n}.sae.pt`` with a Top-K SAE."""

from __future__ import annotations

import re
from pathlib import Path

from saestore.errors import InputError
from saestore.saes.config import SAEConfig
from saestore.saes.files import FileWeights, matrix_shape, require_tensors
from saestore.saes.stored import read_torch_file

FILE_NAME = re.compile(r"layer(\d+)\.sae\.pt$")
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")

_REPOSITORY = re.compile(r"SAE-Res-([^/]+)-W(\d+)K-L0_(\d+)")


def open_qwen_scope(
    path: Path, *, hook_name: str | None = None, model_name: str | None = None, repo_id: str | None = None
) -> FileWeights:
    """Open a Qwen Scope checkpoint.

    Parameters
    ----------
    path : Path
        A ``layer{n}.sae.pt`` with ``W_enc`` (d_sae, d_in), ``W_dec`` (d_in, d_sae), ``b_enc`` and ``b_dec``. K is
        written nowhere but in the name of the repository, ``SAE-Res-{model}-W{width}K-L0_{k}``, which must be among
        the folder names.
    hook_name, model_name : str, optional
        Replace what the names say.
    repo_id : str, optional
        Name of the repository the file comes from, if it is not among the folder names.

    Raises
    ------
    DependencyError
        If torch is not installed.
    MissingError, IntegrityError, InputError
        If there is no such file, it is damaged, it is no such checkpoint, or the names do not tell its K.

    Notes
    -----
    ``z = topk(relu(x @ W_enc.T + b_enc))``; ``b_dec`` is not subtracted.

    References
    ----------
    ``qwen_scope_sae_huggingface_loader`` of SAELens 6.54.
    """
    tensors = require_tensors(read_torch_file(path), TENSORS, path, "Qwen Scope")
    repository = _REPOSITORY.search(f"{repo_id or ''}/{path.absolute().as_posix()}")
    if repository is None:
        raise InputError(
            f"the K of {path} is unknown: keep the file in a folder with the name of its repository, e.g. "
            "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    model, width, k = repository.groups()
    d_sae, d_in = matrix_shape("W_enc", tensors["W_enc"], "(d_sae, d_in)")
    if d_sae != int(width) * 1024:
        raise InputError(f"{path} holds {d_sae} units, but its repository says W{width}K; one of them is wrong")
    layer = FILE_NAME.search(path.name)
    config = SAEConfig(
        architecture="topk",
        d_in=d_in,
        d_sae=d_sae,
        k=int(k),
        apply_b_dec_to_input=False,
        hook_name=hook_name or (f"blocks.{layer.group(1)}.hook_resid_post" if layer else None),
        model_name=model_name or f"Qwen/{model}",
        prepend_bos=True,
        context_size=1024,
        source=str(path),
    )
    parameters = {name: tensors[name].transposed if name.startswith("W_") else tensors[name] for name in TENSORS}
    return FileWeights(config, parameters)
