"""One door to every SAE: a folder, a file or a name of the registry becomes weights that are read by tile."""

from __future__ import annotations

from pathlib import Path

from saestore.errors import InputError, MissingError
from saestore.saes import registry
from saestore.saes.layouts import LAYOUTS, open_path
from saestore.saes.weights import SAEWeights


def open_sae(
    source: str | Path,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
    cache: Path | None = None,
) -> SAEWeights:
    """Open the weights of an SAE, wherever they are, without loading them.

    Parameters
    ----------
    source : str or Path
        A folder of SAELens, sparsify, Llama Scope or dictionary_learning; a ``params.npz`` or ``params.safetensors`` of
        Gemma Scope (or its folder); a ``.pt`` of CLIP-Scope, Qwen Scope or saev; or ``release:sae_id`` of SAELens'
        registry, e.g. ``gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonical``.
    hook_name, model_name : str, optional
        Where the SAE belongs, if its source does not say so or says it wrongly.
    norm_scaling_factor : float, optional
        Folds an ``expected_average_only_in`` normalisation that the weights of a SAELens source do not contain yet; of
        a Llama Scope source it replaces what its ``hyperparams.json`` says.
    cache : Path, optional
        Folder for weights that must be unpacked or converted first, `saestore.cache.cache_folder` by default.

    Returns
    -------
    SAEWeights
        Nothing stays open between reads, so it need not be closed.

    Raises
    ------
    MissingError
        If there is no such file, folder or name, or a file of the registry cannot be downloaded.
    InputError
        If the layout is unknown, a file cannot be read, or the SAE is of a kind that cannot be encoded.
    IntegrityError
        If a file is damaged.
    DependencyError
        If a ``.pt`` is read without torch, or a name of the registry without sae_lens.
    SaestoreError
        If what must be unpacked or converted cannot be kept in the cache folder.

    Examples
    --------
    >>> sae = open_sae("saes/minilm-l3-4096")  # doctest: +SKIP
    >>> sae.rows("W_enc", slice(0, 8)).shape  # doctest: +SKIP
    (8, 384)
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise MissingError(f"there is no user of {source}; give the whole path") from None
    try:
        if path.exists():
            return open_path(
                path, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor, cache=cache
            )
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be read ({error.strerror}); expected the files of an SAE"
        ) from None
    release, _, sae_id = str(source).partition(":")
    if release and sae_id and not release.startswith((".", "~", "/")) and "\\" not in str(source):
        return registry.from_registry(
            release,
            sae_id,
            hook_name=hook_name,
            model_name=model_name,
            norm_scaling_factor=norm_scaling_factor,
            cache=cache,
        )
    raise MissingError(f"there is no file or folder {source}; give {LAYOUTS}")
