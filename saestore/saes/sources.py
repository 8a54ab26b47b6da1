"""One door to every SAE: a folder, a file or a name of the registry becomes weights that are read by tile."""

from __future__ import annotations

from pathlib import Path

from saestore.errors import InputError, MissingError
from saestore.saes import gemma_scope, registry, saelens
from saestore.saes.clip_scope import open_clip_scope
from saestore.saes.weights import SAEWeights

_LAYOUTS = (
    f"a SAELens folder ({saelens.CONFIG_NAME} and {saelens.WEIGHTS_NAME}), a Gemma Scope {gemma_scope.FILE_NAME}, "
    "a CLIP-Scope .pt, or release:sae_id of SAELens' registry"
)


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
        A SAELens folder, a Gemma Scope ``params.npz`` (or its folder), a CLIP-Scope ``.pt``, or ``release:sae_id`` of
        SAELens' registry, e.g. ``gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonical``.
    hook_name, model_name : str, optional
        Where the SAE belongs, if its source does not say so or says it wrongly.
    norm_scaling_factor : float, optional
        Folds an ``expected_average_only_in`` normalisation that the weights of a SAELens source do not contain yet.
    cache : Path, optional
        Folder for weights that must be unpacked or converted first.

    Returns
    -------
    SAEWeights
        Close it, or use it as a context manager.

    Raises
    ------
    MissingError
        If there is no such file, folder or name.
    InputError
        If the layout is unknown, or the SAE is of a kind that cannot be encoded.
    IntegrityError
        If a file is damaged.

    Examples
    --------
    >>> with open_sae("saes/minilm-l3-4096") as sae:  # doctest: +SKIP
    ...     sae.rows("W_enc", slice(0, 8)).shape
    (8, 384)
    """
    path = Path(source).expanduser()
    if path.exists():
        return _open_path(path, hook_name, model_name, norm_scaling_factor, cache)
    release, colon, sae_id = str(source).partition(":")
    if colon and release and sae_id and not str(source).startswith((".", "~", "/")) and "\\" not in str(source):
        return registry.from_registry(
            release,
            sae_id,
            hook_name=hook_name,
            model_name=model_name,
            norm_scaling_factor=norm_scaling_factor,
            cache=cache,
        )
    raise MissingError(f"there is no file or folder {source}; give {_LAYOUTS}")


def _open_path(
    path: Path, hook_name: str | None, model_name: str | None, norm_scaling_factor: float | None, cache: Path | None
) -> SAEWeights:
    if path.name == saelens.WEIGHTS_NAME:
        path = path.parent
    if path.is_dir() and any((path / name).is_file() for name in (saelens.CONFIG_NAME, saelens.WEIGHTS_NAME)):
        return saelens.open_saelens(
            path, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor
        )
    if norm_scaling_factor is not None:
        raise InputError(
            f"norm_scaling_factor was given for {path}; only SAELens sources have such a factor: leave it out"
        )
    if path.suffix == ".npz" or (path / gemma_scope.FILE_NAME).is_file():
        return gemma_scope.open_gemma_scope(path, hook_name=hook_name, model_name=model_name, cache=cache)
    if path.suffix == ".pt":
        return open_clip_scope(path, hook_name=hook_name, model_name=model_name)
    if path.is_dir():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
        raise InputError(f"{path} is no known SAE folder, it holds {held}; looked for {_LAYOUTS}")
    raise InputError(f"{path} has no known SAE layout; looked for {_LAYOUTS}")
