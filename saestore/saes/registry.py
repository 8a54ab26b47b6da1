"""Pretrained SAEs by their names in SAELens' registry; needs ``sae_lens``, which is imported when it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from saestore.cache import cache_folder
from saestore.errors import DependencyError, MissingError, SaestoreError
from saestore.saes import dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, sparsify
from saestore.saes.files import FileWeights
from saestore.saes.json_config import read_json_config
from saestore.saes.layouts import open_path
from saestore.saes.saelens import CONFIG_NAME, WEIGHTS_NAME, is_unfolded

# The files that our readers need, by SAELens' name of the layout, relative to the folder that the registry names;
# an empty name is what it names itself.
_FILES: dict[str, tuple[str, ...]] = {
    "sae_lens": (CONFIG_NAME, WEIGHTS_NAME),
    "gemma_2": (gemma_scope.FILE_NAME,),
    "gemma_2_transcoder": (gemma_scope.FILE_NAME,),
    "gemma_3": (gemma_scope_2.FILE_NAME,),
    "llama_scope": (llama_scope.CONFIG_NAME, llama_scope.WEIGHTS_NAME),
    "dictionary_learning_1": (dictionary_learning.CONFIG_NAME, dictionary_learning.WEIGHTS_NAME),
    "qwen_scope": ("",),
    "sparsify": (sparsify.CONFIG_NAME, sparsify.WEIGHTS_NAME),
}
# Files that say more where they exist.
_OPTIONAL_FILES = {"gemma_3": gemma_scope_2.CONFIG_NAME}


def from_registry(
    release: str,
    sae_id: str,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
    cache: Path | None = None,
) -> FileWeights:
    """Download a pretrained SAE of SAELens' registry (or take it from the hub's cache) and open it.

    Layouts that have a reader here are read where the hub's client put them. Every other layout is loaded by SAELens,
    whole, once, and kept in SAELens' layout in the cache folder.

    Parameters
    ----------
    release, sae_id : str
        As in ``SAE.from_pretrained``, e.g. ``gemma-scope-9b-pt-res-canonical`` and ``layer_34/width_16k/canonical``.
    hook_name, model_name, norm_scaling_factor
        As in `saestore.saes.open_sae`; the registry's scaling factor is used where it has one.
    cache : Path, optional
        Folder for converted weights, `cache_folder` by default.

    Raises
    ------
    DependencyError
        If ``sae_lens`` is not installed.
    MissingError
        If the registry does not know the SAE, or it cannot be downloaded.
    SaestoreError
        If it cannot be kept in the cache folder, or whatever its reader raises.
    """
    try:
        from sae_lens.loading import pretrained_saes_directory as directory
    except ImportError:
        raise DependencyError(
            f"{release}:{sae_id} names an SAE of SAELens' registry and sae_lens is not installed: "
            "pip install 'saestore[sae]', or give a local folder"
        ) from None

    registry = directory.get_pretrained_saes_directory()
    entry = registry.get(release)
    if entry is None and "/" not in release:
        raise MissingError(
            f"SAELens' registry has no release {release!r}{_nearest(release, registry)}; "
            "give release:sae_id of SAELens, or a local folder"
        )
    if entry is not None and sae_id not in entry.saes_map:
        raise MissingError(f"release {release!r} has no SAE {sae_id!r}{_nearest(sae_id, entry.saes_map)}")
    repo_id, folder = directory.get_repo_id_and_folder_name(release, sae_id)
    layout = (entry.conversion_func if entry is not None else None) or "sae_lens"
    if layout in _FILES and not (entry is not None and entry.config_overrides):
        with _fetching(f"{release}:{sae_id} ({repo_id}/{folder})"):
            path = _downloaded(repo_id, folder, layout)
    else:
        path = _converted(release, sae_id, cache or cache_folder())
    config = path / CONFIG_NAME
    is_scaled = layout == "llama_scope" or (config.is_file() and is_unfolded(read_json_config(config, "SAELens")))
    if norm_scaling_factor is None and is_scaled:
        norm_scaling_factor = directory.get_norm_scaling_factor(release, sae_id)
    weights = open_path(
        path,
        hook_name=hook_name,
        model_name=model_name,
        norm_scaling_factor=norm_scaling_factor,
        repo_id=repo_id,
        cache=cache,
    )
    neuronpedia_id = entry.neuronpedia_id.get(sae_id) if entry is not None else None
    weights.config = dataclasses.replace(
        weights.config,
        release=release,
        sae_id=sae_id,
        neuronpedia_id=neuronpedia_id or weights.config.neuronpedia_id,
        source=f"{release}:{sae_id}",
    )
    return weights


def _downloaded(repo_id: str, folder: str, layout: str) -> Path:
    """Download the files of a layout that has a reader here; return the file or folder to open."""
    from huggingface_hub.errors import EntryNotFoundError

    if layout in _OPTIONAL_FILES:
        with contextlib.suppress(EntryNotFoundError):
            _download(repo_id, f"{folder}/{_OPTIONAL_FILES[layout]}")
    paths = [_download(repo_id, f"{folder}/{name}".rstrip("/")) for name in _FILES[layout]]
    return paths[0] if len(paths) == 1 else paths[0].parent


def _download(repo_id: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id=repo_id, filename=filename))


def _converted(release: str, sae_id: str, cache: Path) -> Path:
    """Load an SAE of another layout through SAELens and keep it in SAELens' layout; return the folder."""
    key = hashlib.sha256(f"{release}\0{sae_id}".encode()).hexdigest()[:16]
    folder = cache / "saelens" / key
    if _is_whole(folder):
        return folder
    from sae_lens import SAE

    with _fetching(f"{release}:{sae_id}"):
        sae = SAE.from_pretrained(release, sae_id)
    for parameter in sae.parameters():  # several loaders leave transposed views, which cannot be saved
        parameter.data = parameter.data.contiguous()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=key, suffix=".partial") as partial:
            sae.save_model(Path(partial) / "sae")
            try:
                os.rename(Path(partial) / "sae", folder)
            except OSError:
                if not _is_whole(folder):  # another process was first
                    raise
    except Exception as error:  # of the disk, or of the library that writes the file
        raise SaestoreError(
            f"{release}:{sae_id} cannot be kept in {folder} ({_first_line(error)}); remove that folder, or set "
            "SAESTORE_CACHE to one with room"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


@contextlib.contextmanager
def _fetching(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client, its HTTP library and SAELens each raise errors of their own
        raise MissingError(
            f"{name} is not in the hub's cache and cannot be downloaded or loaded ({_first_line(error)}); connect, set "
            "HF_HOME to a folder that has it, or give a local folder"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
