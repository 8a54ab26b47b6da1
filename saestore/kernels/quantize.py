"""Selected codes and their rounding to a storage type (pure numpy: the reading side needs neither torch nor numba)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError

ValueType = Literal["float16", "float32", "bfloat16"]

_UNIT_MASK = np.uint64(0xFFFF_FFFF)
# bfloat16 is the upper half of a float32, so its smallest subnormal and its largest finite value have these patterns.
_BF16_INF = np.uint16(0x7F80)


@dataclass(frozen=True)
class TopK:
    """The kept codes of each row, ordered by (magnitude descending, unit ascending).

    Attributes
    ----------
    indices : (n, k) uint32 or uint16
        Original unit ids; 0 in empty slots.
    values : (n, k) float32, float16, or uint16 (the bit patterns of bfloat16)
        A slot is empty exactly when its value is 0.
    l0 : (n,) uint32
        The true number of active units; ``l0 > k`` says that the row was truncated.
    """

    indices: NDArray[Any]
    values: NDArray[Any]
    l0: NDArray[np.uint32]


def quantize(codes: TopK, *, dtype: ValueType = "float16", d_sae: int | None = None) -> TopK:
    """Round values to a storage type and restore the order of slots, since rounding makes ties.

    A value that would underflow to 0 becomes the smallest subnormal of its sign: a slot is empty exactly when its
    value is 0. Rounding is to nearest, ties to even.

    Parameters
    ----------
    codes
        Values float32 (n, k), in any order of slots; empty slots hold value 0. Negative values are allowed.
    dtype
        The storage type; bfloat16 comes back as its uint16 bit pattern.
    d_sae
        Width of the SAE; indices become uint16 when it is at most 65,536, else uint32 (also when not given).

    Raises
    ------
    InputError
        A value is not finite or does not fit the type.
    """
    values = np.ascontiguousarray(codes.values, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        raise InputError(
            f"a code value is {values[~finite][0]}, expected finite numbers: check the activations and the SAE weights"
        )
    rounded = _round(values, dtype)
    if not np.isfinite(rounded).all():
        raise InputError(
            f"the code value {values[~np.isfinite(rounded)][0]:g} does not fit {dtype}: "
            f"store values as {'float32 or bfloat16' if dtype == 'float16' else 'float32'} instead"
        )
    indices, rounded = _ordered(codes.indices, rounded)
    narrow = d_sae is not None and d_sae <= 1 << 16
    stored: NDArray[Any] = rounded
    if dtype == "float16":
        stored = rounded.astype(np.float16)
    elif dtype == "bfloat16":
        stored = (rounded.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return TopK(indices=indices.astype(np.uint16 if narrow else np.uint32), values=stored, l0=codes.l0)


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values as float32: uint16 holds the bit patterns of bfloat16, anything else is a number already."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def _round(values: NDArray[np.float32], dtype: ValueType) -> NDArray[np.float32]:
    """The nearest numbers of the storage type, as float32; nonzero stays nonzero, overflow becomes inf."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16).astype(np.float32)
        smallest = np.float32(2.0**-24)
    elif dtype == "bfloat16":
        bits = values.view(np.uint32)
        # Round half to even on the 16 bits that go; finite values carry into the exponent at worst (to inf).
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF_0000)).view(np.float32)
        smallest = np.float32(2.0**-133)
    else:
        raise InputError(f"unknown value type {dtype!r}: expected float16, float32 or bfloat16")
    vanished = (rounded == 0) & (values != 0)
    return np.where(vanished, np.copysign(smallest, values), rounded)


def _ordered(indices: NDArray[Any], values: NDArray[np.float32]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Slots by (magnitude descending, unit ascending), the empty ones last, by sorting one 64-bit key per slot.

    The key holds the 31 bits of the magnitude above the complement of the unit and the sign, so that a plain numeric
    sort orders both and the slot is read back from the key.
    """
    bits = values.view(np.uint32).astype(np.uint64)
    unit = np.asarray(indices).astype(np.uint64)
    key = (bits << np.uint64(33)) | ((_UNIT_MASK - unit) << np.uint64(1)) | (bits >> np.uint64(31))
    key[values == 0] = 0
    # Ascending sort of the complement is the descending sort of the key.
    key = ~np.sort(~key, axis=1)
    sign = (key << np.uint64(31)).astype(np.uint32)
    value = ((key >> np.uint64(33)).astype(np.uint32) | sign).view(np.float32)
    unit_out = (_UNIT_MASK - ((key >> np.uint64(1)) & _UNIT_MASK)).astype(np.uint32)
    unit_out[value == 0] = 0
    return unit_out, value
