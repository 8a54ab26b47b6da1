"""How the sparse-probing benchmark names its files: of which dataset, hook or SAE each one in a folder is.

Activations are `model_activations_MODEL/DATASET_HOOK.pt`, with `_OOD` behind the model for the datasets that test out
of distribution; codes are `sae_activations_MODEL/normal_setting/DATASET_SAE_PART.pt`. Names of datasets hold spaces,
hyphens and underscores, and some begin with others, so that a file is told by the longest known name it begins with.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saestore.errors import InputError, MissingError
from saestore.extraction.hooks import parse_layers

OOD = "_OOD"
"""Behind the name of a dataset that tests what another one trained, and of the folder of its activations."""

CODE_PARTS = ("X_train_sae", "X_test_sae", "y_train", "y_test")
NORMAL_SETTING = "normal_setting"

_ACTIVATIONS, _CODES, _ENDING = "model_activations_", "sae_activations_", ".pt"
_HOOK = re.compile(r"(?:\w+\.)*hook_\w+")
_FRACTION = re.compile(r"_frac[0-9.e-]+$")
_LAYERS_OF_SAES = (re.compile(r"(?:layer_)?(\d+)_width"), re.compile(r"l(\d+)r_"))


@dataclass(frozen=True)
class ActivationsFile:
    """A file of activations: those of one dataset at one hook."""

    path: Path
    dataset: str
    hook: str

    @property
    def layer(self) -> str:
        """The layer's name in a lake."""
        return layer_of_hook(self.hook)


@dataclass(frozen=True)
class FoundFiles:
    """The files of a folder.

    activations : by dataset, in the order of the known names
    codes : name of the SAE in the files -> dataset -> part -> path
    unknown : files that begin with no known name, or go on with no hook
    """

    activations: tuple[ActivationsFile, ...]
    codes: dict[str, dict[str, dict[str, Path]]]
    unknown: tuple[Path, ...]


def is_ood(dataset: str) -> bool:
    """Whether a dataset tests what another one trained."""
    return dataset.endswith(OOD)


def activations_file(model: str, dataset: str, hook: str) -> Path:
    """Return where the benchmark looks for activations, from its folder of data on.

    Parameters
    ----------
    model, dataset : str
        Names in the lake.
    hook : str
        SAELens' name, as `blocks.20.hook_resid_post`.
    """
    return Path(f"{_ACTIVATIONS}{model}{OOD if is_ood(dataset) else ''}", f"{dataset}_{hook}{_ENDING}")


def codes_file(model: str, dataset: str, sae: str, part: str) -> Path:
    """Return where the benchmark looks for codes of the normal setting, or their labels.

    Parameters
    ----------
    model, dataset : str
        Names in the lake.
    sae : str
        The SAE's name in names of files.
    part : str
        One of `CODE_PARTS`.
    """
    return Path(f"{_CODES}{model}", NORMAL_SETTING, f"{dataset}_{sae}_{part}{_ENDING}")


def layer_of_hook(hook: str) -> str:
    """Return the name in a lake of the layer that a hook is of: that of the hook itself where it is of no layer.

    Examples
    --------
    >>> layer_of_hook("blocks.20.hook_resid_post"), layer_of_hook("hook_embed")
    ('layer_20', 'hook_embed')
    """
    try:
        return parse_layers([hook])[0].name
    except InputError:
        return hook


def hook_of_layer(layer: str) -> str:
    """Return the hook that a layer of a lake is of, as far as its name tells."""
    try:
        return parse_layers([layer])[0].saelens_hook_name or layer
    except InputError:
        return layer


def layer_of_sae(name: str) -> str | None:
    """Return the layer that the name of an SAE in the files says, or None.

    Examples
    --------
    >>> layer_of_sae("20_width_16k_average_l0_408"), layer_of_sae("l16r_32x")
    ('layer_20', 'layer_16')
    """
    found = next((match for match in (form.match(name) for form in _LAYERS_OF_SAES) if match), None)
    return None if found is None else f"layer_{found[1]}"


def name_in_files(sae_id: str) -> str:
    """Return an SAE's id as the benchmark's files have it.

    Examples
    --------
    >>> name_in_files("layer_20/width_16k/average_l0_408")
    '20_width_16k_average_l0_408'
    """
    return sae_id.removeprefix("layer_").replace("/", "_")


def find_files(folder: Path, datasets: Collection[str], model: str) -> FoundFiles:
    """Find the benchmark's files in a folder: in itself, and in the folders that the benchmark makes in it.

    Parameters
    ----------
    folder : Path
        That of the benchmark's data, of activations, or of codes.
    datasets : collection of str
        Names that files may begin with.
    model : str
        Whose folders are taken, where there are those of several models.

    Raises
    ------
    MissingError
        There is no such folder.
    InputError
        There are folders of several models, none of them of this one.
    """
    if not folder.is_dir():
        raise MissingError(f"{folder} is no folder; give the one with the benchmark's {_ACTIVATIONS}... folders")
    known = sorted(datasets, key=len, reverse=True)
    activations: list[ActivationsFile] = []
    codes: dict[str, dict[str, dict[str, Path]]] = {}
    unknown: list[Path] = []
    for place in _places(folder, model):
        for path in sorted(place.glob(f"*{_ENDING}")):
            part = next((part for part in CODE_PARTS if path.stem.endswith(f"_{part}")), None)
            if part is not None:
                found = _matched(path.stem.removesuffix(f"_{part}"), known)
                if found is None:
                    unknown.append(path)
                else:
                    codes.setdefault(found[1], {}).setdefault(found[0], {})[part] = path
                continue
            found = _matched(path.stem, known, _HOOK)
            if found is not None and place.name.endswith(OOD) and not is_ood(found[0]):
                found = (f"{found[0]}{OOD}", found[1]) if f"{found[0]}{OOD}" in datasets else None
            if found is None:
                unknown.append(path)
            else:
                activations.append(ActivationsFile(path, *found))
    order = {name: place for place, name in enumerate(datasets)}
    activations.sort(key=lambda file: order[file.dataset])
    return FoundFiles(tuple(activations), _of_normal_setting(codes), tuple(unknown))


def chosen_sae(
    found: Iterable[str], folder: Path, *, named: str | None, likely: Sequence[str], layer: str | None
) -> str:
    """Return which SAE of those that files are of is meant.

    Parameters
    ----------
    found : iterable of str
        Names of SAEs in the files.
    named : str, optional
        As the user says it.
    likely : sequence of str
        Names that the SAE may have in files, where the user does not say it.
    layer : str, optional
        Name of the layer in the lake, where the user says it.

    Raises
    ------
    MissingError, InputError
        There are none, none of that name, or several.
    """
    names = sorted(found)
    if not names:
        raise MissingError(f"{folder} has no codes; they are in files like DATASET_SAE_{CODE_PARTS[0]}{_ENDING}")
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    if named is not None:
        if named not in names:
            raise MissingError(f"{folder} has no codes of {named!r}; there are those of {listed}")
        return named
    for name in likely:
        if name in names:
            return name
    names = [name for name in names if layer is None or layer_of_sae(name) in (None, layer)] or names
    if len(names) > 1:
        raise InputError(f"{folder} has codes of {len(names)} SAEs ({listed}); name one with --files")
    return names[0]


def _places(folder: Path, model: str) -> list[Path]:
    """Return the folders to look into."""
    own = [folder]
    for prefix in (_ACTIVATIONS, _CODES):
        there = sorted(place for place in folder.glob(f"{prefix}*") if place.is_dir())
        models = {place.name.removeprefix(prefix).removesuffix(OOD) for place in there}
        if len(models) > 1 and model not in models:
            raise InputError(
                f"{folder} has files of the models {', '.join(sorted(models))}, none of them {model!r}; give one of "
                "its folders, or the name as --model"
            )
        if models:
            of = model if model in models else models.pop()
            own += [place for place in there if place.name.removeprefix(prefix) in (of, f"{of}{OOD}")]
    return [place / NORMAL_SETTING if (place / NORMAL_SETTING).is_dir() else place for place in own]


def _matched(stem: str, known: Sequence[str], rest: re.Pattern[str] | None = None) -> tuple[str, str] | None:
    """Return the longest known name that a file's begins with, and what follows."""
    for name in known:
        if stem.startswith(f"{name}_"):
            following = stem.removeprefix(f"{name}_")
            if following and (rest is None or rest.fullmatch(following)):
                return name, following
    return None


def _of_normal_setting(codes: dict[str, dict[str, dict[str, Path]]]) -> dict[str, dict[str, dict[str, Path]]]:
    """Leave out the files of other settings: behind the SAE's name they have a fraction or a number of rows."""

    def is_other(name: str) -> bool:
        shorter, _, number = name.rpartition("_")
        return _FRACTION.search(name) is not None or (number.isdigit() and shorter in codes)

    return {name: of for name, of in codes.items() if not is_other(name)}
