"""Steering a running model: a forward hook that changes units of an SAE for as long as a context lasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from saestore.errors import InputError
from saestore.steer.bundle import Bundle, FloatArray, Places
from saestore.steer.finding import find_module
from saestore.steer.vectors import Corrective, steering_vectors

if TYPE_CHECKING:
    import torch

    from saestore.extraction.hooks import ResolvedHook
    from saestore.saes.weights import SAEWeights
    from saestore.steer.measuring import Measure

Mode = Literal["add", "clamp", "ablate"]
Scale = Literal["activation", "deviation", "maximum"]
Positions = Literal["all", "last"]

Edit = Callable[["torch.Tensor"], "torch.Tensor"]


@contextmanager
def apply(
    model: torch.nn.Module,
    bundle: Bundle,
    unit: int | Sequence[int] | Mapping[int, float],
    strength: float | None = None,
    *,
    mode: Mode = "add",
    scale: Scale = "activation",
    corrective: Corrective = "none",
    positions: Positions = "all",
    sae: SAEWeights | None = None,
) -> Iterator[None]:
    """Steer units while the context lasts; every forward of the model in it, ``generate`` too, is changed.

    Parameters
    ----------
    model : torch.nn.Module
        The transformers model of the bundle, with or without a head.
    bundle : Bundle
    unit : int, sequence of int, or mapping of int to float
        Original ids of the units; a mapping gives each its own strength.
    strength : float, optional
        Of all units; left out where `unit` is a mapping, and with the mode ``ablate``.
    mode : {"add", "clamp", "ablate"}
        ``add``: ``x + strength * decoder[unit]``. ``clamp``: ``x + (strength - z) * decoder[unit]`` with z the unit's
        activation in x, so that the SAE's sum has the unit at `strength`. ``ablate``: ``clamp`` to 0.
    scale : {"activation", "deviation", "maximum"}
        The unit of `strength`: 1, the unit's standard deviation or its maximum, both over the rows of the graph. Where
        those are pooled samples, they are smaller than at single positions.
    corrective : {"none", "follow", "hold"}
        ``none``: the neighbours in the graph get what the decoder row does to them. ``follow``: each neighbour's
        pre-activation moves by what the graph says goes along with the change of the unit, its regression coefficient
        times that change. ``hold``: it does not move. With either, the unit's own pre-activation moves by exactly the
        change asked for, which ``none`` does only where its encoder and decoder row have product 1. The formula is in
        `saestore.steer.vectors.steering_vectors`.
    positions : {"all", "last"}
        ``last``: only the last position of what each forward is given; with a cache of keys and values that is the end
        of the prompt and then each new token.
    sae : SAEWeights, optional
        The SAE of the bundle. ``clamp`` and ``ablate`` need it where units are selected among all (topk, abstopk); its
        encoder is then held in memory on the device of the hidden states.

    Raises
    ------
    InputError
        If the bundle is for another model or SAE, or an option is not usable.
    MissingError
        If the model has no such layer, or the bundle no such unit.

    Notes
    -----
    The hook knows no mask: padding and special tokens are steered as all positions are, and with padding on the right
    ``last`` is padding. Contexts may be nested, on the same layer too: the inner sees what the outer has changed, and
    each removes its own hook when it ends, however it ends. Changes are computed in float32 and then rounded to the
    model's dtype. Without correction, what a steered unit measures afterwards is not what was asked for but the part of
    it that the product of its two rows lets through, which may be less than half in a trained SAE: ``ablate`` then
    leaves the rest of the unit, and with ``hold`` leaves nothing. Where the SAE normalises rows, the unit's share is
    that of the normalised row: the change is multiplied by the row's own scale as it is before the change. Gradients
    flow, but not through what `sae` measures.

    Examples
    --------
    >>> with apply(model, load_bundle("happy"), unit=123, strength=4.0):  # doctest: +SKIP
    ...     model.generate(**tokenizer("I am", return_tensors="pt"))
    """
    for name, given, kinds in (("mode", mode, Mode), ("scale", scale, Scale), ("positions", positions, Positions)):
        if given not in get_args(kinds):
            raise InputError(f"{name} is {given!r}; use one of {', '.join(get_args(kinds))}")
    places, strengths = _strengths(bundle, unit, strength, mode, scale)
    vectors = steering_vectors(bundle, places, corrective=corrective)
    hook = find_module(model, bundle.model)
    measure = None
    if mode != "add":
        from saestore.steer.measuring import measure_of

        measure = measure_of(bundle, places, sae)
    handle = _register(hook, _edit(bundle, hook, vectors, strengths, measure, positions))
    try:
        yield
    finally:
        handle.remove()


def _strengths(
    bundle: Bundle,
    unit: int | Sequence[int] | Mapping[int, float],
    strength: float | None,
    mode: Mode,
    scale: Scale,
) -> tuple[Places, FloatArray]:
    """Return the places of the units, and for each its strength in units of the activation."""
    if isinstance(unit, Mapping):
        if strength is not None:
            raise InputError(f"strength={strength} was given beside a strength for each unit; give one of them")
        by_unit: dict[int, float | None] = dict(unit)
    else:
        by_unit = dict.fromkeys(unit if isinstance(unit, Iterable) else [unit], strength)
    if not by_unit:
        raise InputError("no unit to steer was given; name at least one of the bundle")
    for one in by_unit:
        if isinstance(one, bool) or not isinstance(one, (int, np.integer)):
            raise InputError(f"{one!r} is not a unit; give the number that it has in the SAE")
    if mode == "ablate":
        if any(given is not None for given in by_unit.values()):
            raise InputError("the mode ablate sets units to 0 and takes no strength; use clamp to set another value")
        by_unit = dict.fromkeys(by_unit, 0.0)
    amounts = []
    for one, given in by_unit.items():
        if given is None:
            raise InputError(f"unit {one} has no strength, which the mode {mode} needs; give strength=...")
        if isinstance(given, bool) or not isinstance(given, (int, float, np.number)) or not math.isfinite(given):
            raise InputError(f"the strength of unit {one} is {given!r}; expected a finite number")
        amounts.append(float(given))
    places = bundle.places(by_unit)
    if scale != "activation":
        scales = getattr(bundle, scale)[places]
        if not scales.all():
            still = bundle.units[places[scales == 0][0]]
            raise InputError(f"the {scale} of unit {still} is 0 in the graph's rows; use the scale activation")
        amounts = list(np.asarray(amounts) * scales)
    return places, np.asarray(amounts, np.float32)


def _edit(
    bundle: Bundle,
    hook: ResolvedHook,
    vectors: FloatArray,
    strengths: FloatArray,
    measure: Measure | None,
    positions: Positions,
) -> Edit:
    """Return what makes new hidden states (batch, positions, width) of old ones."""
    import torch

    from saestore.kernels.normalize import normalize

    of_units, wanted, width = torch.from_numpy(vectors), torch.from_numpy(strengths), vectors.shape[1]

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[-1] != width:
            raise InputError(
                f"{hook.name} ({hook.module_path}) gives hidden states {hidden.shape[-1]} wide, and the decoder of "
                f"{bundle.sae.name} writes {width}; make a bundle for this layer"
            )
        seen = hidden if positions == "all" else hidden[:, -1:]
        rows = seen.reshape(-1, width).float()
        changes = wanted.to(rows.device)[None]
        if measure is not None:
            changes = changes - measure(rows)
        added = changes @ of_units.to(rows.device)
        scale = normalize(rows, bundle.sae.normalization)[1].scale
        if scale is not None:
            added = added * scale
        steered = (rows + added).reshape(seen.shape).to(hidden.dtype)
        return steered if positions == "all" else torch.cat([hidden[:, :-1], steered], dim=1)

    return edit


def _register(hook: ResolvedHook, edit: Edit) -> Any:
    """Put an edit where the tensor of a hook point is read; return the handle that takes it off again."""

    def on_input(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(_hidden(args[0], hook)), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(_hidden(kwargs.get("hidden_states"), hook))}

    def on_output(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, (tuple, list)) and output:
            parts = [edit(_hidden(output[0], hook)), *output[1:]]
            return parts if isinstance(output, list) else tuple(parts)
        return edit(_hidden(output, hook))

    if hook.reads_input:
        return hook.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return hook.module.register_forward_hook(on_output)


def _hidden(value: Any, hook: ResolvedHook) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(
            f"{hook.name} ({hook.module_path}) gives {got}, not hidden states (batch, positions, width), and cannot be "
            "steered"
        )
    return value
