"""The forward pass over batches of samples: ragged hidden states of several hook points, and their pooled kinds.

Decoders and encoders alike are padded on the right under an attention mask, so the absolute positions of the tokens are
those of the text alone. Rows are taken from the padded tensors inside the hooks, by one gather for a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from saestore.errors import InputError
from saestore.extraction.batches import batches
from saestore.extraction.hooks import HookPoint, ResolvedHook, capture, resolve
from saestore.extraction.images import ImagePositions, load_pixels
from saestore.extraction.tokens import TextPositions
from saestore.prefetch import prefetch

if TYPE_CHECKING:
    import torch

    from saestore.extraction.model import LoadedModel
    from saestore.kernels.pool import PoolKind

SampleType = Literal["token", "patch", "cls", "mean", "max", "last"]
SAMPLE_TYPES: tuple[SampleType, ...] = get_args(SampleType)
POOLED: tuple[SampleType, ...] = ("mean", "max", "last")
_OF_KIND: dict[str, tuple[SampleType, ...]] = {
    "text": ("token", "cls", "mean", "max", "last"),
    "image": ("patch", "cls", "mean", "max"),
}


@dataclass(frozen=True)
class ForwardBatch:
    """What one forward pass gives.

    Parameters
    ----------
    samples : (b,) int64
        The samples of the batch.
    rows : (n,) int64
        The positions of these samples, sample after sample in the order of `samples`: the rows of ``token`` or
        ``patch`` belong at these places of the position axis.
    hidden : dict of dict of tensors
        By name of the hook point and by sample type: ``token`` and ``patch`` (n, d) and ``cls`` (b, d) in the type of
        the model; ``mean``, ``max`` and ``last`` (b, d) float32. All on the model's device, and the caller's own.
    n_used : (b,) int64
        Positions that the pooled kinds were made from: special tokens and class tokens are left out. Where it is 0 the
        pooled row is NaN.
    """

    samples: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    hidden: dict[str, dict[str, torch.Tensor]]
    n_used: npt.NDArray[np.int64]


def forward_batches(
    loaded: LoadedModel,
    positions: TextPositions | ImagePositions,
    samples: npt.ArrayLike,
    hook_points: Iterable[HookPoint],
    *,
    sample_types: Sequence[SampleType],
    padded_tokens: int,
) -> Iterator[ForwardBatch]:
    """Run the model over samples and yield their hidden states, batch by batch.

    Parameters
    ----------
    loaded : LoadedModel
    positions : TextPositions or ImagePositions
    samples : (n,) int
        Which samples to run, as a rule those of one window (`saestore.extraction.batches.windows`). The batches are a
        function of their lengths and order alone.
    hook_points : iterable of HookPoint
    sample_types : sequence of str
        Texts: token, cls, mean, max, last; images: patch, cls, mean, max. ``cls`` is the first position, where the
        tokenizer or the model put a class token there.
    padded_tokens : int
        Most positions of a batch with its padding.

    Yields
    ------
    ForwardBatch
        Every sample with at least one position occurs in exactly one batch; samples without (empty texts of a tokenizer
        that adds no special token) in none.

    Raises
    ------
    InputError, MissingError
        When a hook point, a sample type or an image does not fit the model.
    """
    hooks = resolve(loaded.model, hook_points)
    chosen = np.asarray(samples, dtype=np.int64)
    lengths = _lengths_of(positions, chosen)
    chosen, lengths = chosen[lengths > 0], lengths[lengths > 0]
    wanted = _checked_types(loaded, positions, chosen, sample_types)
    groups = [chosen[batch] for batch in batches(lengths, padded_tokens=padded_tokens)]
    if isinstance(positions, TextPositions):
        return (_text_batch(loaded, positions, group, hooks, wanted) for group in groups)
    return _image_batches(loaded, positions, groups, hooks, wanted)


def widths(loaded: LoadedModel, hook_points: Iterable[HookPoint]) -> dict[str, int]:
    """Return the width of each hook point's rows, from a forward pass over one token or one blank image."""
    import torch

    hooks = resolve(loaded.model, hook_points)
    if loaded.kind == "text":
        inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64, device=loaded.device)}
    else:
        from PIL import Image

        blank = loaded.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        inputs = {"pixel_values": blank.to(loaded.device, getattr(torch, loaded.dtype))}
    with torch.inference_mode():
        return capture(hooks, lambda: loaded.model(**inputs), take=lambda _name, hidden: int(hidden.shape[-1]))


def _checked_types(
    loaded: LoadedModel,
    positions: TextPositions | ImagePositions,
    chosen: npt.NDArray[np.int64],
    sample_types: Sequence[SampleType],
) -> tuple[SampleType, ...]:
    if loaded.kind != ("text" if isinstance(positions, TextPositions) else "image"):
        raise InputError(f"{loaded.model_id} is a model of kind {loaded.kind}; the samples are of the other kind")
    allowed = _OF_KIND[loaded.kind]
    unknown = [kind for kind in sample_types if kind not in allowed]
    if unknown or not sample_types:
        what = f"sample type {unknown[0]!r}" if unknown else "an empty list of sample types"
        raise InputError(f"{what} does not fit a model of kind {loaded.kind}; use some of {', '.join(allowed)}")
    if "cls" in sample_types and isinstance(positions, TextPositions):
        first = positions.offsets[chosen]
        class_token = getattr(loaded.tokenizer, "cls_token_id", None)
        if class_token is None or not (positions.special[first] & (positions.token_id[first] == class_token)).all():
            raise InputError(
                f"the tokenizer of {loaded.model_id} puts no class token first, so there is no sample type 'cls'; "
                "use mean or last"
            )
    return tuple(dict.fromkeys(sample_types))


def _lengths_of(positions: TextPositions | ImagePositions, group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return positions.offsets[group + 1] - positions.offsets[group]


def _rows_of(positions: TextPositions | ImagePositions, group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions of samples, one sample after the other."""
    lengths = _lengths_of(positions, group)
    ends = np.cumsum(lengths)
    rows: npt.NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(positions.offsets[group] - (ends - lengths), lengths)
    return rows


def _text_batch(
    loaded: LoadedModel,
    positions: TextPositions,
    group: npt.NDArray[np.int64],
    hooks: Sequence[ResolvedHook],
    wanted: Sequence[SampleType],
) -> ForwardBatch:
    import torch

    rows = _rows_of(positions, group)
    lengths = _lengths_of(positions, group)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)  # any id will do at padded places: they are on the right, and masked
    ids[mask] = positions.token_id[rows]
    used = np.zeros(mask.shape, np.bool_)
    used[mask] = ~positions.special[rows]

    attention = torch.from_numpy(mask).to(loaded.device)
    gather = torch.from_numpy(np.flatnonzero(mask)).to(loaded.device)
    used_mask = torch.from_numpy(used).to(loaded.device)
    inputs = {"input_ids": torch.from_numpy(ids).to(loaded.device), "attention_mask": attention.long()}

    def take(name: str, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        if hidden.shape[:2] != mask.shape:
            raise _not_the_axis(name, hidden, mask.shape)
        taken: dict[str, torch.Tensor] = {}
        if "token" in wanted:
            taken["token"] = hidden.flatten(0, 1).index_select(0, gather)
        if "cls" in wanted:
            taken["cls"] = hidden[:, 0].clone()
        return taken | _pooled(hidden, used_mask, wanted)

    with torch.inference_mode():
        hidden = capture(hooks, lambda: loaded.model(**inputs), take=take)
    return ForwardBatch(group, rows, hidden, used.sum(axis=1, dtype=np.int64))


def _image_batches(
    loaded: LoadedModel,
    positions: ImagePositions,
    groups: Sequence[npt.NDArray[np.int64]],
    hooks: Sequence[ResolvedHook],
    wanted: Sequence[SampleType],
) -> Iterator[ForwardBatch]:
    import torch

    n_patches = positions.rows * positions.columns

    def take(name: str, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        # Class and register tokens, where a model has them, come before the patches; the class token is the first.
        n_before = hidden.shape[1] - n_patches
        if n_before < 0:
            raise _not_the_axis(name, hidden, (len(hidden), n_patches))
        patches = hidden[:, n_before:]
        taken: dict[str, torch.Tensor] = {}
        if "patch" in wanted:
            taken["patch"] = patches.reshape(-1, hidden.shape[2]).clone()
        if "cls" in wanted:
            if n_before == 0:
                raise InputError(f"{loaded.model_id} has no class token; use the sample types patch, mean or max")
            taken["cls"] = hidden[:, 0].clone()
        everything = torch.ones(patches.shape[:2], dtype=torch.bool, device=hidden.device)
        return taken | _pooled(patches, everything, wanted)

    def load(group: npt.NDArray[np.int64]) -> torch.Tensor:
        return load_pixels([positions.paths[sample] for sample in group], loaded.image_processor)

    for group, pixels in prefetch(load, groups):
        _check_size(loaded, positions, pixels)
        inputs = {"pixel_values": pixels.to(loaded.device, getattr(torch, loaded.dtype))}
        with torch.inference_mode():
            hidden = capture(hooks, lambda inputs=inputs: loaded.model(**inputs), take=take)  # type: ignore[misc]
        yield ForwardBatch(group, _rows_of(positions, group), hidden, np.full(len(group), n_patches, np.int64))


def _pooled(hidden: torch.Tensor, used: torch.Tensor, wanted: Sequence[SampleType]) -> dict[str, torch.Tensor]:
    from saestore.kernels.pool import pool

    return {kind: pool(hidden, used, cast("PoolKind", kind))[0] for kind in wanted if kind in POOLED}


def _check_size(loaded: LoadedModel, positions: ImagePositions, pixels: torch.Tensor) -> None:
    config: Any = loaded.model.config
    expected = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
    height, width = pixels.shape[-2:]
    patch = loaded.patch_size or 1
    if [height, width] != list(expected) or (height // patch, width // patch) != (positions.rows, positions.columns):
        raise InputError(
            f"the image processor gives {height} x {width} pixels, {loaded.model_id} takes {expected[0]} x "
            f"{expected[1]} and the positions are {positions.rows} x {positions.columns} patches; "
            "use the model's own image processor"
        )


def _not_the_axis(name: str, hidden: torch.Tensor, expected: tuple[int, ...]) -> InputError:
    return InputError(
        f"{name} gives hidden states of shape {tuple(hidden.shape)}, not one row for each of the {expected[0]} x "
        f"{expected[1]} positions; name another module"
    )
