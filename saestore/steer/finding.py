"""Finding the module that a bundle steers, and refusing a model that it was not made for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saestore.errors import InputError, MissingError
from saestore.extraction.hooks import ResolvedHook, parse_layers, resolve
from saestore.steer.bundle import ModelPlace

if TYPE_CHECKING:
    import torch

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FINGERPRINT = "sampled-sha256:"


def find_module(model: torch.nn.Module, place: ModelPlace) -> ResolvedHook:
    """Find the hook point of a bundle on a model.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model: the base that activations were read from, or one with a head on it.
    place : ModelPlace

    Raises
    ------
    InputError
        If the model is known to be another: another width, another kind of module at that layer, another revision,
        or another name on the hub. What is not known (a model that was not loaded from anywhere) is not compared.
    MissingError
        If the model has no such layer or module.

    Notes
    -----
    A folder is compared by its fingerprint, a model from the hub by its commit, and by its name where either commit is
    not known; a name without an owner, as imported activations have it, is that of any owner's model.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no config, so it cannot be steered; give a transformers model")
    points = parse_layers([place.layer])
    towers: tuple[Any, ...] = (config, config.get_text_config(), getattr(config, "vision_config", None))
    widths = sorted({tower.hidden_size for tower in towers if hasattr(tower, "hidden_size")})
    is_of_block = points[0].layer is not None  # a module that is named by its path may be of any width
    if widths and is_of_block and place.d_model not in widths:
        raise InputError(
            f"the steering bundle is for {place.model_id} of width {place.d_model}, and this model "
            f"({_shown(model)}) is {' or '.join(map(str, widths))} wide; {_remedy(place)}"
        )
    _check_source(model, place)
    try:
        (found,) = resolve(model, points)
    except MissingError:
        base = getattr(model, "base_model", model)  # of which paths of modules are spelled
        if base is model:
            raise
        (found,) = resolve(base, points)
    ours, theirs = f".{place.hook}", f".{found.module_path}"
    if place.hook is not None and not (ours.endswith(theirs) or theirs.endswith(ours)):
        raise InputError(
            f"the steering bundle is for {place.model_id}, where {place.layer} is {place.hook}; in this model "
            f"({_shown(model)}) it is {found.module_path}: {_remedy(place)}"
        )
    return found


def _check_source(model: torch.nn.Module, place: ModelPlace) -> None:
    if place.revision is not None and place.revision.startswith(_FINGERPRINT):
        folder = Path(_name(model))
        found = _fingerprint(folder) if _name(model) and folder.is_dir() else None
        if found not in (None, place.revision):
            raise _another(model, place)
        return
    config: Any = model.config
    commit = getattr(config, "_commit_hash", None)
    if commit is not None and place.revision is not None and _COMMIT.fullmatch(place.revision):
        if commit != place.revision:
            raise _another(model, place)
        return
    name = _name(model)
    known = name if "/" in place.model_id else name.rsplit("/", 1)[-1]
    if name and known != place.model_id and not Path(name).is_dir():
        raise _another(model, place)


def _fingerprint(folder: Path) -> str:
    from saestore.extraction.model import fingerprint

    return fingerprint(folder)


def _another(model: torch.nn.Module, place: ModelPlace) -> InputError:
    config: Any = model.config
    commit = getattr(config, "_commit_hash", None)
    return InputError(
        f"the steering bundle is for {place.model_id} at {place.revision or 'an unknown revision'}, and this model is "
        f"{_shown(model)}{f' at {commit}' if commit else ''}, which is another; {_remedy(place)}, "
        "or name this one in bundle.model to steer it all the same"
    )


def _name(model: torch.nn.Module) -> str:
    return str(getattr(model, "name_or_path", "") or "")


def _shown(model: torch.nn.Module) -> str:
    return _name(model) or type(model).__name__


def _remedy(place: ModelPlace) -> str:
    return f"load {place.model_id}, or make a bundle for this model"
