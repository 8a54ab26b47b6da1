"""Hook points: which tensor of a model is read, what it is called, and how it is captured.

Layers are counted from 0; ``resid_post`` of layer i is the raw output of block i, that is transformers'
``hidden_states[i + 1]`` (except the last, to which many models have applied the final norm: ours never has it) and
TransformerLens' ``blocks.i.hook_resid_post``. ``mlp_out`` and ``attn_out`` are what the MLP and the attention add to
the residual stream, as TransformerLens defines its ``hook_mlp_out`` and ``hook_attn_out``: for Gemma-2 and its kin this
is after the norm that follows the MLP or the attention. They are known for the block layouts in `_LAYOUTS` and refused
for all others, where a module path must be named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from saestore.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")

BLOCK_HOOKS = ("resid_post", "resid_pre", "mlp_out", "attn_out")
_FORMS = "3, 'layer_3', 'layer_3.mlp_out', 'blocks.3.hook_resid_post' or 'module.<path of a module>'"
_LAYER = re.compile(r"(?:layer_)?(\d+)(?:\.(\w+))?")
_SAELENS = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


@dataclass(frozen=True)
class HookPoint:
    """One tensor of a model: a hook of a block, or the output of a named module.

    Parameters
    ----------
    layer : int or None
        Index of the block, from 0; None for a module path.
    hook : str
        One of ``resid_post``, ``resid_pre``, ``mlp_out``, ``attn_out``; or, when `layer` is None, the path of a module.
    """

    layer: int | None
    hook: str = "resid_post"

    def __post_init__(self) -> None:
        if self.layer is None:
            if not _MODULE.fullmatch(self.hook):
                raise InputError(f"{self.hook!r} is not the path of a module; write it as in 'encoder.layer.3.output'")
        elif self.layer < 0:
            raise InputError(f"layer {self.layer} is negative; layers are counted from 0")
        elif self.hook not in BLOCK_HOOKS:
            raise InputError(
                f"unknown hook {self.hook!r} of layer {self.layer}; "
                f"use one of {', '.join(BLOCK_HOOKS)}, or 'module.<path>'"
            )

    @property
    def name(self) -> str:
        """The name in the lake: ``layer_22``, ``layer_22.mlp_out`` or ``module.<path>``."""
        if self.layer is None:
            return f"module.{self.hook}"
        return f"layer_{self.layer}" + ("" if self.hook == "resid_post" else f".{self.hook}")

    @property
    def saelens_hook_name(self) -> str | None:
        """SAELens' name of the same tensor in a pre-norm model, or None for a module path.

        `ResolvedHook.saelens_hook_name` is the exact name on a given model (post-norm models differ).
        """
        return None if self.layer is None else f"blocks.{self.layer}.hook_{self.hook}"


@dataclass(frozen=True)
class ResolvedHook:
    """A hook point found on a model.

    Parameters
    ----------
    point : HookPoint
    module : torch.nn.Module
        The module whose output (or input) is read.
    module_path : str
        Its path in the model.
    reads_input : bool
        True when the first input of the module is the tensor, not its output.
    saelens_hook_name : str or None
        TransformerLens' name of exactly this tensor.
    """

    point: HookPoint
    module: torch.nn.Module
    module_path: str
    reads_input: bool
    saelens_hook_name: str | None

    @property
    def name(self) -> str:
        """The name in the lake."""
        return self.point.name


@dataclass(frozen=True)
class _Layout:
    """A kind of block: recognised by its children, with the submodules that add to the residual stream."""

    children: frozenset[str]
    attn_out: str
    mlp_out: str
    post_norm: bool = False  # the block ends with a norm over the residual stream


_AFTER = {"self_attn", "mlp", "post_attention_layernorm", "post_feedforward_layernorm"}

# The blocks whose additive contributions are known. A block must have exactly these children (`dropout` apart), for a
# relative with one more norm or scale would be read wrongly.
_LAYOUTS = (
    _Layout(  # Gemma 2 and 3: norms before and after
        frozenset({*_AFTER, "input_layernorm", "pre_feedforward_layernorm"}),
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    _Layout(frozenset(_AFTER), "post_attention_layernorm", "post_feedforward_layernorm"),  # OLMo 2: norms after only
    _Layout(  # Llama, Mistral, Qwen, Gemma 1
        frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}), "self_attn", "mlp"
    ),
    _Layout(frozenset({"ln_1", "attn", "ln_2", "mlp"}), "attn", "mlp"),  # GPT-2, DialoGPT
    _Layout(frozenset({"self_attn", "layer_norm1", "mlp", "layer_norm2"}), "self_attn", "mlp"),  # CLIP, SigLIP
    _Layout(frozenset({"attention", "layernorm_before", "mlp", "layernorm_after"}), "attention", "mlp"),  # ViT
    _Layout(  # BERT, MiniLM, RoBERTa, ELECTRA
        frozenset({"attention", "intermediate", "output"}), "attention.output.dense", "output.dense", post_norm=True
    ),
)


def parse_layers(layers: Iterable[str | int | HookPoint]) -> tuple[HookPoint, ...]:
    """Read hook points as users write them, in their order, without duplicates.

    Parameters
    ----------
    layers : iterable of str, int or HookPoint
        ``5``, ``"5"``, ``"layer_5"``, ``"layer_5.mlp_out"``, ``"blocks.5.hook_mlp_out"`` or ``"module.<path>"``.

    Raises
    ------
    InputError
        When one of them cannot be read, or there is none.

    Examples
    --------
    >>> [point.name for point in parse_layers([3, "layer_3.mlp_out", "blocks.5.hook_resid_post"])]
    ['layer_3', 'layer_3.mlp_out', 'layer_5']
    """
    if isinstance(layers, (str, int)):
        layers = [layers]
    points = tuple(dict.fromkeys(_parse(layer) for layer in layers))
    if not points:
        raise InputError(f"no layer was given; name at least one, as {_FORMS}")
    return points


def _parse(layer: str | int | HookPoint) -> HookPoint:
    if isinstance(layer, HookPoint):
        return layer
    if isinstance(layer, bool) or not isinstance(layer, (int, str)):
        raise InputError(f"{layer!r} is not a layer; write it as {_FORMS}")
    if isinstance(layer, int):
        return HookPoint(layer)
    text = layer.strip()
    if text.startswith("module."):
        return HookPoint(None, text.removeprefix("module."))
    found = _LAYER.fullmatch(text) or _SAELENS.fullmatch(text)
    if not found:
        raise InputError(f"{layer!r} is not a layer; write it as {_FORMS}")
    return HookPoint(int(found[1]), found[2] or "resid_post")


def resolve(model: torch.nn.Module, hook_points: Iterable[HookPoint]) -> tuple[ResolvedHook, ...]:
    """Find hook points on a transformers model.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model with a ``config``.
    hook_points : iterable of HookPoint

    Returns
    -------
    tuple of ResolvedHook
        In the given order.

    Raises
    ------
    MissingError
        When a layer or module does not exist; the message says which do.
    InputError
        When ``mlp_out`` or ``attn_out`` cannot be defined exactly for this kind of block.
    """
    return tuple(_resolve(model, point) for point in hook_points)


def blocks_of(model: torch.nn.Module) -> tuple[str, Sequence[torch.nn.Module]]:
    """Return the path and the blocks of a model: the outermost ModuleList as long as the model has layers.

    Raises
    ------
    MissingError
        When there is none, or several that cannot be told apart (a model of two towers).
    """
    from torch import nn

    config: Any = model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists = {
        path: list(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers > 0
    }
    shallowest = min((path.count(".") for path in lists), default=0)
    found = {path: blocks for path, blocks in lists.items() if path.count(".") == shallowest}
    if len(found) != 1:
        what = f"several lists of {n_layers} blocks ({', '.join(found)})" if found else f"no list of {n_layers} blocks"
        raise MissingError(f"{type(model).__name__} has {what}; name the modules to read as 'module.<path>'")
    return next(iter(found.items()))


def _resolve(model: torch.nn.Module, point: HookPoint) -> ResolvedHook:
    if point.layer is None:
        return ResolvedHook(point, _submodule(model, point.hook), point.hook, False, None)
    path, blocks = blocks_of(model)
    if point.layer >= len(blocks):
        raise MissingError(
            f"{type(model).__name__} has no layer {point.layer}: it has {len(blocks)}, counted from 0; "
            f"the last is layer_{len(blocks) - 1}"
        )
    block = blocks[point.layer]
    block_path = f"{path}.{point.layer}"
    layout = _layout_of(block)
    name = point.saelens_hook_name
    if point.hook == "resid_pre":
        return ResolvedHook(point, block, block_path, True, name)
    if point.hook == "resid_post":
        if layout is not None and layout.post_norm:
            # TransformerLens' hook_resid_post of a BERT block is before the norm that ends the block.
            name = f"blocks.{point.layer}.hook_normalized_resid_post"
        return ResolvedHook(point, block, block_path, False, name)
    if layout is None:
        children = ", ".join(child for child, _ in block.named_children())
        raise InputError(
            f"{point.hook} is not known for blocks of kind {type(block).__name__}; "
            f"name the module that adds to the residual stream as 'module.{block_path}.<one of: {children}>'"
        )
    part = layout.mlp_out if point.hook == "mlp_out" else layout.attn_out
    return ResolvedHook(point, block.get_submodule(part), f"{block_path}.{part}", False, name)


def _layout_of(block: torch.nn.Module) -> _Layout | None:
    children = {child for child, _ in block.named_children()} - {"dropout"}
    if getattr(block, "residual_multiplier", 1.0) != 1.0 or getattr(block, "is_decoder", False):
        return None  # Granite scales what is added; BERT as a decoder may add a cross attention
    return next((layout for layout in _LAYOUTS if children == layout.children), None)


def _submodule(model: torch.nn.Module, path: str) -> torch.nn.Module:
    module = model
    at = ""
    for part in path.split("."):
        children = dict(module.named_children())
        if part not in children:
            where = f"in {at!r}" if at else "at the top"
            raise MissingError(
                f"{type(model).__name__} has no module {path!r}: {where} there are {', '.join(children) or 'none'}"
            )
        module = children[part]
        at = f"{at}.{part}" if at else part
    return module


class _DeepestReached(Exception):  # noqa: N818 - not an error: it ends a forward whose rest is not needed
    """All hooks have fired."""


def _first_tensor(value: Any, hook: ResolvedHook) -> torch.Tensor:
    import torch

    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(
            f"{hook.name} ({hook.module_path}) gives {got}, not hidden states (batch, positions, width); "
            "name another module"
        )
    return value


def capture(
    hooks: Sequence[ResolvedHook],
    run: Callable[[], object],
    *,
    take: Callable[[str, torch.Tensor], _T],
) -> dict[str, _T]:
    """Run a model once, read the hooked tensors, and stop as soon as the last of them is known.

    Parameters
    ----------
    hooks : sequence of ResolvedHook
    run : callable
        Runs the model's forward; it is left half way by an exception, which is caught here.
    take : callable
        ``take(name, hidden)`` is called when the tensor (batch, positions, width) is there, and must return something
        that does not alias it, since some models go on to change it in place (``hidden.clone()`` will do).

    Returns
    -------
    dict
        What `take` returned, by the name of the hook point, in the order of `hooks`. The hooks are removed again,
        whatever happens.

    Raises
    ------
    InputError
        When a module is not run by the forward, or more than once, or gives no hidden states.
    """
    taken: dict[str, _T] = {}

    def seen(hook: ResolvedHook, value: Any) -> None:
        if hook.name in taken:
            raise InputError(f"{hook.name} ({hook.module_path}) runs more than once per forward; name another module")
        taken[hook.name] = take(hook.name, _first_tensor(value, hook))
        if len(taken) == len(hooks):
            raise _DeepestReached

    def on_input(hook: ResolvedHook) -> Callable[..., None]:
        return lambda _module, args, kwargs: seen(hook, args if args else kwargs.get("hidden_states"))

    def on_output(hook: ResolvedHook) -> Callable[..., None]:
        return lambda _module, _args, output: seen(hook, output)

    handles: list[Any] = []
    try:
        for hook in hooks:
            if hook.reads_input:
                handles.append(hook.module.register_forward_pre_hook(on_input(hook), with_kwargs=True))
            else:
                handles.append(hook.module.register_forward_hook(on_output(hook)))
        run()
    except _DeepestReached:
        return {hook.name: taken[hook.name] for hook in hooks}
    finally:
        for handle in handles:
            handle.remove()
    silent = ", ".join(hook.name for hook in hooks if hook.name not in taken)
    raise InputError(f"the forward never runs {silent or 'any hook, since none was given'}; name another module")
