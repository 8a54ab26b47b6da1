"""Non-finite values, and the conversion of activations to the type they are stored in."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from saestore.errors import InputError

StorageDtype = Literal["float16", "bfloat16", "float32"]
STORAGE_DTYPES: tuple[StorageDtype, ...] = get_args(StorageDtype)


def count_nonfinite(x: torch.Tensor) -> int:
    """Count the NaN and infinite values of a float tensor of any shape."""
    if x.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()):
        return 0  # aminmax propagates NaN, and is several times cheaper than isfinite over everything
    return x.numel() - int(torch.isfinite(x).sum())


def to_storage_dtype(x: torch.Tensor, dtype: StorageDtype) -> npt.NDArray[Any]:
    """Convert a float tensor to the array that is stored, rounding to nearest, ties to even.

    Parameters
    ----------
    x : float tensor of any shape, on any device
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    array of the same shape
        float16, float32, or uint16 with the bit patterns of bfloat16. NaN and infinities stay what they are.

    Raises
    ------
    InputError
        When a finite value is too large for `dtype`; the message names the largest.
    """
    if dtype not in STORAGE_DTYPES:
        raise InputError(f"unknown dtype {dtype!r} for activations; use one of {', '.join(STORAGE_DTYPES)}")
    target: torch.dtype = getattr(torch, dtype)
    stored = x.detach().to(target)
    if target != x.dtype and target != torch.float32 and stored.numel():
        _refuse_overflow(x.detach(), target)
    stored = stored.cpu().contiguous()
    if dtype == "bfloat16":
        return stored.view(torch.int16).numpy().view(np.uint16)
    return stored.numpy()


def _refuse_overflow(x: torch.Tensor, target: torch.dtype) -> None:
    extremes = torch.stack(torch.aminmax(x))
    if not bool(torch.isfinite(extremes).all()):
        extremes = x[torch.isfinite(x)]
    if extremes.numel() == 0:
        return
    largest = extremes.abs().amax()
    if bool(torch.isinf(largest.to(target))):
        remedy = "bfloat16 or float32" if target == torch.float16 else "float32"
        raise InputError(
            f"an activation of magnitude {float(largest):.6g} does not fit {str(target).removeprefix('torch.')} "
            f"(at most {torch.finfo(target).max:.6g}); store {remedy}"
        )
