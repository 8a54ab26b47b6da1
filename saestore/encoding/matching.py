"""Which stored activations an SAE is asked to encode, or belongs to: by hook name, width and model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from saestore.activations import Activations
from saestore.encoding.job import is_of_model
from saestore.errors import InputError, MissingError, SaestoreError
from saestore.lake import Lake, layer_name
from saestore.layout import POSITION_TYPES, ActivationsKey
from saestore.saes.lake import LakeWeights

_LAYER_OF_HOOK = re.compile(r"blocks\.(\d+)\.")
_LAYER_OF_NAME = re.compile(r"layer_(\d+)")


@dataclass(frozen=True)
class Wanted:
    """What the caller of `encode` named; None leaves it to what the SAE was trained on."""

    datasets: Sequence[str] | None
    layers: Sequence[str] | None
    sample_types: Sequence[str] | None
    model: str | None
    force: bool

    @classmethod
    def of(
        cls,
        datasets: Sequence[str] | None,
        layers: Sequence[str | int] | None,
        sample_types: Sequence[str] | None,
        model: str | None,
        *,
        force: bool,
    ) -> Wanted:
        """Bring layers to their names in the lake."""
        names = None if layers is None else [name for layer in layers if (name := layer_name(layer)) is not None]
        return cls(datasets, names, sample_types, model, force)


@dataclass(frozen=True)
class Absent:
    """Activations that were asked for and cannot be encoded with an SAE; empty names were not asked for."""

    sae: str
    dataset: str
    layer: str
    sample_type: str
    error: SaestoreError


def matching(lake: Lake, weights: LakeWeights, wanted: Wanted) -> tuple[list[ActivationsKey], list[Absent]]:
    """Return the activations that an SAE is to encode, and what was asked for and is not there.

    Raises
    ------
    InputError
        Several layers or models fit and none was named, or a layer was named that the SAE was not trained on.
    MissingError
        Nothing fits.
    """
    stored = list(lake.activation_keys())
    chosen = [
        key
        for key in stored
        if (wanted.datasets is None or key.dataset in wanted.datasets)
        and (wanted.layers is None or key.layer in wanted.layers)
        and key.sample_type in (wanted.sample_types or POSITION_TYPES)
        and (wanted.model is None or key.model == wanted.model)
    ]
    candidates, chosen = chosen, [key for key in chosen if _belongs(lake, key, weights, wanted)]
    if candidates and not chosen and wanted.layers is not None:
        held = Activations.open_part(lake.storage, candidates[0]).group.attributes.get("saelens_hook_name")
        raise InputError(
            f"SAE {weights.name} was trained on {weights.config.hook_name}, {candidates[0].path} holds "
            f"{held or candidates[0].layer}; "
            "choose the layer it was trained on, or give --force"
        )
    if wanted.layers is None:
        # Two models may name a layer alike; where nothing has the right width, the widths are the error to report.
        fitting = [key for key in chosen if Activations.open_part(lake.storage, key).d_in == weights.config.d_in]
        chosen = fitting or chosen
    chosen = _of_one_model(lake, chosen, weights)
    places = sorted({f"{key.model}/{key.layer}" for key in chosen})
    if wanted.layers is None and len(places) > 1 and weights.config.hook_name is None:
        raise InputError(
            f"SAE {weights.name} does not say which layer it was trained on, and {', '.join(places[:6])} have its "
            "width; name --layers"
        )
    if not chosen:
        for dataset in wanted.datasets or ():
            lake.samples(dataset)  # a dataset that is not there is its own error
        hook = f" (it was trained on {weights.config.hook_name})" if weights.config.hook_name else ""
        there = ", ".join(sorted({f"{key.dataset}/{key.layer}/{key.sample_type}" for key in stored})[:6]) or "none"
        raise MissingError(
            f"no stored activations fit SAE {weights.name}{hook} and what was asked; there are {there}; "
            "extract the layer, or name --layers"
        )
    return chosen, _absent(lake, weights, wanted, chosen)


def _absent(lake: Lake, weights: LakeWeights, wanted: Wanted, chosen: Sequence[ActivationsKey]) -> list[Absent]:
    """Return the combinations of what was named that are not stored."""
    there = set(lake.datasets())
    absent = []
    layers = wanted.layers
    if layers is not None and weights.config.hook_name is not None and not wanted.force:
        layers = sorted({key.layer for key in chosen})  # the others were named for other SAEs
    for dataset in wanted.datasets or [""]:
        for layer in layers or [""]:
            for sample_type in wanted.sample_types or [""]:
                asked = {"dataset": dataset, "layer": layer, "sample_type": sample_type}
                if any(all(getattr(key, name) == value for name, value in asked.items() if value) for key in chosen):
                    continue
                if dataset and dataset not in there:
                    reason = f"the lake has no dataset {dataset!r}; extract or import it"
                else:
                    named = ", ".join(f"{name.replace('_', ' ')} {value!r}" for name, value in asked.items() if value)
                    reason = (
                        f"no stored activations of {named} fit SAE {weights.name} and what was asked; "
                        "extract them, or leave it out"
                    )
                absent.append(Absent(weights.name, dataset, layer, sample_type, MissingError(reason)))
    return absent


def _of_one_model(lake: Lake, keys: list[ActivationsKey], weights: LakeWeights) -> list[ActivationsKey]:
    """Return the activations of the model that an SAE was trained on; hook names and widths are alike in many."""
    trained_on = weights.config.model_name
    if trained_on is not None and len({key.model for key in keys}) > 1:
        keys = [key for key in keys if is_of_model(lake.storage, key, trained_on)] or keys
    models = sorted({key.model for key in keys})
    if len(models) > 1:
        raise InputError(
            f"the layer of SAE {weights.name} is stored for the models {', '.join(models)}, and the SAE says it was "
            f"trained on {trained_on or 'none by name'}; name one with --model"
        )
    return keys


def _belongs(lake: Lake, key: ActivationsKey, weights: LakeWeights, wanted: Wanted) -> bool:
    """Whether an SAE was trained on this layer, as far as both say."""
    config, named = weights.config, wanted.layers is not None
    attributes = Activations.open_part(lake.storage, key).group.attributes
    hook = attributes.get("saelens_hook_name")
    if config.hook_name is None:
        return named or int(attributes["d_in"]) == config.d_in
    if hook is None:  # imported without one: the numbers of the layers must do
        trained, found = _LAYER_OF_HOOK.search(config.hook_name), _LAYER_OF_NAME.match(key.layer)
        if trained is None or found is None or trained[1] == found[1]:
            return named or int(attributes["d_in"]) == config.d_in
    return hook == config.hook_name or (named and wanted.force)
