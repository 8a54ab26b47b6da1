"""Which ends a user means: layers, SAEs and datasets of a lake, as codes or as activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from saestore._nearest import nearest
from saestore.activations import Activations
from saestore.codes import Codes
from saestore.errors import InputError, MissingError
from saestore.graphing.ends import End, Pooling, chosen_units, selection_of
from saestore.lake import Lake, layer_name
from saestore.layout import ActivationsKey, CodesKey


@dataclass(frozen=True)
class EndChoice:
    """What the ends of a graph are.

    datasets : names, with * and ?; None for all that have the rows of every end
    layers : None for all that are stored
    saes : names, with * and ?: ends are codes of these; None: ends are activations
    sample_type, model : None where there is one
    view : of the codes, whose units alone are joined
    units : a choice of units or dimensions of every end, as `0:100`; None for all
    pooling : how rows of positions are joined to one for each sample
    where, split : which rows count
    """

    datasets: Sequence[str] | None = None
    layers: Sequence[str | int] | None = None
    saes: Sequence[str] | None = None
    sample_type: str | None = None
    model: str | None = None
    view: str | None = None
    units: str | None = None
    pooling: Pooling | None = None
    where: str | None = None
    split: str | Sequence[str] | None = None


def chosen_ends(lake: Lake, choice: EndChoice) -> list[End]:
    """Return the ends that are meant, by layer and SAE.

    Raises
    ------
    MissingError
        No dataset, layer or SAE fits, or one end has rows of a dataset and another has not.
    InputError
        Several sample types or models fit, or units do not exist.
    """
    keys: list[ActivationsKey | CodesKey]
    if choice.saes is None:
        if choice.view is not None:
            raise InputError(f"view {choice.view!r} is of codes; name their SAE (--saes)")
        keys = list(lake.activation_keys())
    else:
        keys = [key for key in lake.code_keys() if any(fnmatchcase(key.sae, name) for name in choice.saes)]
        _check_saes(lake, choice.saes, keys)
    keys = _of_one_kind(lake, [key for key in keys if _is_of(key, choice)], choice)
    ends: dict[tuple[str, str | None], list[ActivationsKey | CodesKey]] = {}
    for key in keys:
        ends.setdefault((key.layer, getattr(key, "sae", None)), []).append(key)
    datasets = list(dict.fromkeys(key.dataset for key in keys))
    for (layer, sae), own in ends.items():
        lacking = [name for name in datasets if name not in {key.dataset for key in own}]
        if lacking:
            what = f"codes of {sae} over {layer}" if sae else f"activations of {layer}"
            raise MissingError(
                f"dataset {lacking[0]!r} has no {what}, which another end of the graph has; name --datasets that have "
                "all of them, or make them"
            )
    return [end_of(lake, own, choice) for own in ends.values()]


def end_of(lake: Lake, keys: Sequence[ActivationsKey | CodesKey], choice: EndChoice) -> End:
    """Open one end: the same codes or activations of one dataset or several."""
    sources: list[Codes] | list[Activations]
    if isinstance(keys[0], CodesKey):
        codes = [Codes.open(lake.storage, key) for key in keys if isinstance(key, CodesKey)]
        sources = codes if choice.view is None else [one.view(choice.view) for one in codes]
        units, width = sources[0].kept_units, sources[0].d_sae
    else:
        sources = [Activations.open(lake.storage, key) for key in keys if isinstance(key, ActivationsKey)]
        if choice.pooling is not None:
            raise InputError("activations are not pooled here; extract them with --sample-type mean or max")
        units, width = np.arange(sources[0].d_in), sources[0].d_in
    if choice.units is not None:
        units = np.intersect1d(units, chosen_units(choice.units, width, f"{keys[0].layer}"))
    selections = tuple(selection_of(source, choice.where, choice.split) for source in sources)
    return End(tuple(sources), selections, units, choice.pooling)  # type: ignore[arg-type]


def _is_of(key: ActivationsKey | CodesKey, choice: EndChoice) -> bool:
    layers = [layer_name(layer) for layer in choice.layers or ()]
    return (
        (not layers or key.layer in layers)
        and choice.model in (None, key.model)
        and choice.sample_type in (None, key.sample_type)
        and (not choice.datasets or any(fnmatchcase(key.dataset, name) for name in choice.datasets))
    )


def _of_one_kind(
    lake: Lake, keys: list[ActivationsKey | CodesKey], choice: EndChoice
) -> list[ActivationsKey | CodesKey]:
    what = "activations" if choice.saes is None else "codes"
    known = lake.datasets()
    for pattern in choice.datasets or ():
        if not any(fnmatchcase(key.dataset, pattern) for key in keys):
            if any(fnmatchcase(name, pattern) for name in known):
                raise MissingError(f"dataset {pattern!r} has no such {what}; saestore status lists what there is")
            near = nearest(pattern, known, "datasets")
            raise MissingError(f"the lake {lake.url} has no dataset {pattern!r} ({near})")
    if not keys:
        raise MissingError(f"no {what} of the lake {lake.url} fit; saestore status lists what there is")
    for layer in choice.layers or ():
        if layer_name(layer) not in {key.layer for key in keys}:
            raise MissingError(f"the lake has no {what} of {layer_name(layer)} that fit; extract or encode them")
    for name, option in (("sample_type", "--sample-type"), ("model", "--model")):
        found = sorted({getattr(key, name) for key in keys})
        if len(found) > 1:
            raise InputError(f"{what} of {', '.join(found)} fit, and a graph has one row axis; name one with {option}")
    return keys


def _check_saes(lake: Lake, names: Sequence[str], keys: Sequence[ActivationsKey | CodesKey]) -> None:
    known = sorted({key.sae for key in lake.code_keys()})
    for pattern in names:
        if not any(fnmatchcase(key.sae, pattern) for key in keys if isinstance(key, CodesKey)):
            raise MissingError(
                f"the lake {lake.url} has no codes of an SAE {pattern!r} ({nearest(pattern, known, 'SAEs')}); make "
                "them with: saestore encode"
            )
