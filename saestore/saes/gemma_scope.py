"""Reader of Gemma Scope weights: one ``params.npz`` with a JumpReLU SAE or transcoder."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from saestore.errors import InputError, MissingError
from saestore.saes.config import Architecture, SAEConfig
from saestore.saes.files import Factors, FileWeights, matrix_shape, require_tensors
from saestore.saes.stored import read_npz_members

FILE_NAME = "params.npz"

_HOOKS = {
    "res": "blocks.{layer}.hook_resid_post",
    "mlp": "blocks.{layer}.hook_mlp_out",
    "att": "blocks.{layer}.attn.hook_z",
    "transcoders": "blocks.{layer}.ln2.hook_normalized",
}
_EMBEDDING_HOOK = "hook_embed"
_TRANSCODER_OUTPUT = "blocks.{layer}.hook_mlp_out"
_PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_WIDTH = re.compile(r"width_(\d+)(k|m)(?![a-z0-9])")


@dataclass(frozen=True)
class Place:
    """Where weights belong, as far as the names of their folders say."""

    model_name: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    is_transcoder: bool = False

    def config(
        self,
        architecture: Architecture,
        file: Path,
        *,
        d_in: int,
        d_sae: int,
        d_out: int,
        hook_name: str | None,
        model_name: str | None,
    ) -> SAEConfig:
        """Return the configuration of weights that belong here, or where the names that are given say."""
        hook = hook_name or self.hook_name
        return SAEConfig(
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            d_out=d_in if architecture == "jumprelu" else d_out,  # where they differ, the shape of W_dec is refused
            apply_b_dec_to_input=False,
            hook_name=hook,
            hook_name_out=self.hook_name_out,
            reshape_activations="hook_z" if hook and hook.endswith("hook_z") else "none",
            model_name=model_name or self.model_name,
            prepend_bos=True,
            context_size=1024,
            source=str(file),
        )


def open_gemma_scope(
    path: Path,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    repo_id: str | None = None,
    cache: Path | None = None,
) -> FileWeights:
    """Open a Gemma Scope ``params.npz``, or the folder that holds it.

    Shapes come from the file. Model, site and layer come from the names of the folders above it
    (``gemma-scope-9b-pt-res/layer_34/width_16k/average_l0_114``), where they are kept; otherwise give them. A folder
    ``gemma-scope-2b-pt-transcoders`` says that the file is a transcoder: the numbers alone do not.

    Parameters
    ----------
    path : Path
    hook_name, model_name : str, optional
        Replace what the folder names say.
    repo_id : str, optional
        Name of the repository the file comes from, if it is not among the folder names.
    cache : Path, optional
        Folder where deflated members are unpacked; `saestore.cache.cache_folder` by default.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it holds no SAE that can be encoded here, or the width in the folder name is not that of the weights.
    IntegrityError
        If the file is damaged.

    Notes
    -----
    ``apply_b_dec_to_input`` is False and nothing is normalised. SAEs of the embedding are stored for inputs scaled by
    sqrt(d_in); SAELens' loader divides ``W_enc`` and multiplies ``W_dec`` by it, and so does this one. Transcoders
    read the normalised input of an MLP and predict its output.

    References
    ----------
    Lieberum et al. 2024, Gemma Scope; ``gemma_2_sae_huggingface_loader`` and
    ``gemma_2_transcoder_huggingface_loader`` of SAELens 6.54.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingError(f"{file} does not exist; expected a Gemma Scope {FILE_NAME}")
    names = f"{repo_id or ''}/{file.absolute().as_posix()}"
    members = read_npz_members(file, cache=cache)
    arrays = {"W_" + name[2:] if name.startswith("w_") else name: array for name, array in members.items()}
    require_tensors(arrays, _PARAMETERS, file, "Gemma Scope")
    scaling = arrays.pop("scaling_factor", None)
    if scaling is not None and not (scaling.read() == 1).all():
        raise InputError(
            f"{file} has a scaling_factor other than 1, which SAELens 6 does not apply; multiply it into W_dec"
        )
    d_in, d_sae = matrix_shape("W_enc", arrays["W_enc"], "(d_in, d_sae)")
    _, d_out = matrix_shape("W_dec", arrays["W_dec"], "(d_sae, d_out)")
    check_width(names, d_sae, file)
    place = _place(names)
    architecture: Architecture = "jumprelu_transcoder" if place.is_transcoder else "jumprelu"
    config = place.config(
        architecture, file, d_in=d_in, d_sae=d_sae, d_out=d_out, hook_name=hook_name, model_name=model_name
    )
    root = math.sqrt(d_in) if place.hook_name == _EMBEDDING_HOOK else 1.0
    return FileWeights(config, arrays, factors=Factors(W_enc=1 / root, W_dec=root))


def check_width(names: str, d_sae: int, file: Path) -> None:
    """Refuse a file whose folder is named for another width (16k is 16,384, 1m is 1,048,576)."""
    found = _WIDTH.findall(names)
    if found:
        number, unit = found[-1]
        named = int(number) * (1024 if unit == "k" else 1024 * 1024)
        # Gemma Scope rounds in names: 65k is 65,536 = 64 * 1024, 131k is 131,072 = 128 * 1024
        if not 0.9 < d_sae / named <= 1.0:
            raise InputError(
                f"{file} holds {d_sae} units, but its folder says width_{number}{unit}; one of them is wrong"
            )


def _place(names: str) -> Place:
    """Derive from repository and folder names where the weights belong."""
    repositories = list(re.finditer(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)", names))
    if not repositories:
        return Place()
    size, tuning, site = repositories[-1].groups()
    inside = names[repositories[-1].end() :]  # what lies above are the user's own folders
    model = f"gemma-2-{size}" + ("-it" if tuning == "it" else "")
    if "embedding" in inside.split("/"):
        return Place(model, _EMBEDDING_HOOK)
    layers = re.findall(r"layer_(\d+)", inside)
    hook, hook_out = (
        pattern.format(layer=layers[-1]) if layers else None for pattern in (_HOOKS[site], _TRANSCODER_OUTPUT)
    )
    is_transcoder = site == "transcoders"
    return Place(model, hook, hook_out if is_transcoder else None, is_transcoder)
