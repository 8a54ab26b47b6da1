"""Every layout of SAE files that can be read: recognised by the files that are there, opened by its reader."""

from __future__ import annotations

from pathlib import Path

from saestore.errors import InputError
from saestore.saes import (
    clip_scope,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    qwen_scope,
    saelens,
    saev,
    sparsify,
)
from saestore.saes.files import FileWeights
from saestore.saes.stored import read_torch_file

LAYOUTS = (
    f"a folder of SAELens ({saelens.CONFIG_NAME} and {saelens.WEIGHTS_NAME}), sparsify ({sparsify.CONFIG_NAME} and "
    f"{sparsify.WEIGHTS_NAME}), Llama Scope ({llama_scope.CONFIG_NAME} and {llama_scope.WEIGHTS_NAME}) or "
    f"dictionary_learning ({dictionary_learning.CONFIG_NAME} and {dictionary_learning.WEIGHTS_NAME}), a Gemma Scope "
    f"{gemma_scope.FILE_NAME} or {gemma_scope_2.FILE_NAME}, a .pt of CLIP-Scope, Qwen Scope or saev, or "
    "release:sae_id of SAELens' registry"
)


def open_path(
    path: Path,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
    repo_id: str | None = None,
    cache: Path | None = None,
) -> FileWeights:
    """Open an SAE by its folder, or by the file of its weights.

    Parameters
    ----------
    path : Path
        Exists.
    hook_name, model_name, norm_scaling_factor, cache
        As in `saestore.saes.open_sae`.
    repo_id : str, optional
        Name of the repository the files come from, for the layouts that say by names where an SAE belongs.

    Raises
    ------
    InputError
        If the layout is unknown, with all known ones, or a factor is given for a layout that has none.
    SaestoreError
        Whatever the reader of the layout raises.
    """
    if path.parts[-2:] == Path(llama_scope.WEIGHTS_NAME).parts:
        path = path.parent.parent
    elif path.name in (saelens.CONFIG_NAME, llama_scope.CONFIG_NAME):
        path = path.parent
    held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    # a configuration decides only where no weights do: tools share its name
    others = (sparsify.WEIGHTS_NAME, gemma_scope.FILE_NAME, gemma_scope_2.FILE_NAME, dictionary_learning.WEIGHTS_NAME)
    is_decided = any(name in held for name in others)
    if saelens.WEIGHTS_NAME in held or (saelens.CONFIG_NAME in held and not is_decided):
        return saelens.open_saelens(
            folder, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor
        )
    if llama_scope.CONFIG_NAME in held and not is_decided:
        return llama_scope.open_llama_scope(
            folder, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor
        )
    if norm_scaling_factor is not None:
        raise InputError(
            f"norm_scaling_factor was given for {path}; only SAELens and Llama Scope sources have such a factor: "
            "leave it out"
        )
    if sparsify.WEIGHTS_NAME in held:
        return sparsify.open_sparsify(folder, hook_name=hook_name, model_name=model_name)
    if path.suffix == ".npz" or gemma_scope.FILE_NAME in held:
        return gemma_scope.open_gemma_scope(
            path, hook_name=hook_name, model_name=model_name, repo_id=repo_id, cache=cache
        )
    if gemma_scope_2.FILE_NAME in held:
        return gemma_scope_2.open_gemma_scope_2(path, hook_name=hook_name, model_name=model_name, repo_id=repo_id)
    if dictionary_learning.WEIGHTS_NAME in held:
        return dictionary_learning.open_dictionary_learning(folder, hook_name=hook_name, model_name=model_name)
    if path.suffix == ".pt":
        return _open_torch_file(path, hook_name=hook_name, model_name=model_name, repo_id=repo_id)
    if path.is_dir():
        raise InputError(
            f"{path} is no known SAE folder, it holds {', '.join(held[:6]) or 'nothing'}; looked for {LAYOUTS}"
        )
    raise InputError(f"{path} has no known SAE layout; looked for {LAYOUTS}")


def _open_torch_file(path: Path, *, hook_name: str | None, model_name: str | None, repo_id: str | None) -> FileWeights:
    """Open a checkpoint of one of the tools that keep everything in one ``.pt``; what is in it tells which."""
    with open(path, "rb") as file:
        is_headed = file.read(1) == b"{"
    if is_headed:
        return saev.open_saev(path, hook_name=hook_name, model_name=model_name)
    content = read_torch_file(path)
    held = list(map(str, content)) if isinstance(content, dict) else [type(content).__name__]
    if "model_state_dict" in held:
        return clip_scope.open_clip_scope(path, hook_name=hook_name, model_name=model_name)
    if qwen_scope.FILE_NAME.search(path.name) or set(qwen_scope.TENSORS) <= set(held):
        return qwen_scope.open_qwen_scope(path, hook_name=hook_name, model_name=model_name, repo_id=repo_id)
    raise InputError(f"{path} is no known SAE checkpoint, it holds {', '.join(held[:6])[:120]}; looked for {LAYOUTS}")
