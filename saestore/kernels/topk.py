"""Running top-k over tiles of units: the only place where codes are selected.

Ties are broken by (magnitude descending, unit ascending), so results depend neither on the tiling nor on the device.
Only the signed rule has values below 0; for the others the magnitude is the value.
`RunningTopK` is for the CPU (numba), `DeviceTopK` for any torch device; both take the same steps in the same order
of rounding and give the same bits for the same products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.kernels.quantize import TopK

__all__ = ["DeviceTopK", "RunningTopK", "TopK", "UnitRule"]

FloatArray = NDArray[np.float32]

# Units that are tested at once: two 512-bit registers, and both masks fit one 64-bit word.
_LANES = 32
# By the number of lanes seen before: the mask of the fresh ones, for both halves of the word.
_FRESH = np.array([(0xFFFFFFFF << seen & 0xFFFFFFFF) * 0x1_0000_0001 for seen in range(_LANES)], dtype=np.uint64)


@dataclass(frozen=True)
class UnitRule:
    """How the product ``p = x @ W_enc[u]`` becomes the activation of unit u.

    ``v = p * scale[u] + bias[u]``, multiplied and added with two roundings; the unit is active iff
    ``v > max(threshold[u], 0)`` and, where there is a cut, ``p > cut[u]``. A signed rule has neither cut nor threshold.

    Attributes
    ----------
    scale, bias, cut, threshold : (d_sae,) float32 or None
        None means 1, 0, no cut and 0.
    topk
        K of a top-k architecture: only the K largest active units of a row stay active.
    signed
        Units are active iff ``v != 0`` and are ranked by ``|v|``; their values keep the sign (abstopk).
    """

    scale: FloatArray | None = None
    bias: FloatArray | None = None
    cut: FloatArray | None = None
    threshold: FloatArray | None = None
    topk: int | None = None
    signed: bool = False

    def tile(self, first: int, units: int) -> UnitRule:
        """The same rule for ``units`` units from ``first`` on."""

        def part(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else np.array(array[first : first + units], dtype=np.float32)

        return UnitRule(part(self.scale), part(self.bias), part(self.cut), part(self.threshold), self.topk, self.signed)


def _check(products: FloatArray | torch.Tensor, rule: UnitRule) -> None:
    """Refuse what the compiled scan, which does not check bounds, would misread."""
    if rule.signed and not (rule.cut is None and rule.threshold is None):
        raise InputError(
            "a signed unit rule has a cut or a threshold, expected neither: its units are active wherever their value "
            "is not 0, so leave both out"
        )
    units = products.shape[1]
    for name in ("scale", "bias", "cut", "threshold"):
        array = getattr(rule, name)
        if array is not None and (array.shape != (units,) or array.dtype != np.float32 or array.strides != (4,)):
            raise InputError(
                f"{name} of the unit rule is {array.dtype} of shape {array.shape} for a tile of {units} units, "
                f"expected contiguous float32 of shape ({units},): does it belong to this SAE?"
            )
    if isinstance(products, np.ndarray) and (products.dtype != np.float32 or not products.flags.c_contiguous):
        raise InputError(f"products are {products.dtype}, expected C-contiguous float32: use numpy.ascontiguousarray")


class RunningTopK:
    """Selection state of ``n`` rows on the CPU.

    Each row keeps a buffer of candidates and the k-th best magnitude at the last compaction. A tile is scanned once:
    a group of lanes in which no unit beats that magnitude is only counted. Units ascend, hence a later unit must be
    strictly larger to displace an earlier one, which is the rule for ties.

    Not safe for concurrent use of one object; different objects may be used by different threads (the kernels
    release the GIL and start no threads of their own).
    """

    def __init__(self, n: int, k: int, *, topk: int | None = None) -> None:
        self._k = k if topk is None else min(k, topk)
        self._topk = topk
        self._keys = np.empty((n, self._k + max(self._k, _LANES)), dtype=np.uint64)
        self._fill = np.zeros(n, dtype=np.int64)
        self._floor = np.zeros(n, dtype=np.float32)
        self._l0 = np.zeros(n, dtype=np.uint32)

    def update(self, products: FloatArray, first_unit: int, rule: UnitRule) -> None:
        """Take in a tile.

        Parameters
        ----------
        products : (n, t) float32, C-contiguous
            ``x @ W_enc[first_unit : first_unit + t].T``.
        first_unit
            Must ascend from call to call.
        rule
            The rule of these t units (`UnitRule.tile`).
        """
        _check(products, rule)
        if len(products) == 0:
            return
        arrays: tuple[FloatArray | None, ...] = (rule.scale, rule.bias, rule.cut, rule.threshold)
        short = _LANES - products.shape[1]
        if short > 0:  # The scan wants one group of lanes at least; NaN is never active.
            products = np.pad(products, ((0, 0), (0, short)), constant_values=np.nan)
            arrays = tuple(None if a is None else np.pad(a, (0, short)) for a in arrays)
        # None, unlike a flag, is a type of its own: the scan is compiled for each kind of rule.
        signed = True if rule.signed else None
        arguments: Any = (*arrays, signed, self._k, self._keys, self._fill, self._floor, self._l0)
        _scan(products.reshape(-1), len(products), first_unit, *arguments)

    def finish(self) -> TopK:
        """The codes of all tiles taken in so far."""
        n = len(self._l0)
        indices = np.zeros((n, self._k), dtype=np.uint32)
        values = np.zeros((n, self._k), dtype=np.float32)
        _emit(self._k, self._keys, self._fill, indices, values)
        l0 = self._l0 if self._topk is None else np.minimum(self._l0, np.uint32(self._topk))
        return TopK(indices, values, l0)


def _lane_masks_codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """LLVM for `_lane_masks`: the compiler does not turn the loop into vector code by itself, and masks suit it best.

    Plain vector operations without fast-math flags: any target splits them into its own registers (AVX-512, AVX2,
    NEON), and no multiply-add is fused, so that the bits are those of the other devices.
    """
    products, scale, bias, cut, threshold, _, first, start, least = arguments
    product_type, scale_type, bias_type, cut_type, threshold_type, signed_type, *_ = signature.args
    lanes = ir.VectorType(ir.FloatType(), _LANES)
    words = ir.VectorType(ir.IntType(32), _LANES)

    def load(array_type: Any, array: Any, offset: Any) -> Any:
        pointer = builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])
        return builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=4)

    def splat(scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, _LANES), ir.Undefined)
        single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(single, undefined, ir.Constant(words, None))

    product = load(product_type, products, builder.add(first, start))
    value = product
    if scale_type != types.none:
        value = builder.fmul(value, load(scale_type, scale, start))
    if bias_type != types.none:
        value = builder.fadd(value, load(bias_type, bias, start))
    if signed_type != types.none:
        magnitude = builder.and_(builder.bitcast(value, words), splat(ir.Constant(ir.IntType(32), 0x7FFFFFFF)))
        value = builder.bitcast(magnitude, lanes)
    active = builder.fcmp_ordered(">", value, ir.Constant(lanes, None))
    if threshold_type != types.none:
        active = builder.and_(active, builder.fcmp_ordered(">", value, load(threshold_type, threshold, start)))
    if cut_type != types.none:
        active = builder.and_(active, builder.fcmp_ordered(">", product, load(cut_type, cut, start)))
    hits = builder.and_(active, builder.fcmp_ordered(">", value, splat(least)))
    word = ir.IntType(64)
    masks = [builder.zext(builder.bitcast(mask, ir.IntType(_LANES)), word) for mask in (active, hits)]
    return builder.or_(masks[0], builder.shl(masks[1], ir.Constant(word, 32)))


@intrinsic
def _lane_masks(
    _context: Any,
    products: Any,
    scale: Any,
    bias: Any,
    cut: Any,
    threshold: Any,
    signed: Any,
    first: Any,
    start: Any,
    least: Any,
) -> Any:
    """Which of the 32 lanes at ``start`` are active (low half), and which of those exceed ``least`` (high half).

    ``first`` is where the row begins in the flat products. An array that is None costs nothing, and so does ``signed``,
    which is None or anything else.
    """
    signature = types.uint64(products, scale, bias, cut, threshold, signed, types.intp, types.intp, types.float32)
    return signature, _lane_masks_codegen


@intrinsic
def _bit_count(_context: Any, _word: Any) -> Any:
    return types.int64(types.uint64), lambda _c, builder, _s, arguments: builder.ctpop(arguments[0])


@intrinsic
def _lowest_bit(_context: Any, _word: Any) -> Any:
    def codegen(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@numba.njit(cache=True, nogil=True)
def _scan(
    products: Any,
    n: Any,
    first_unit: Any,
    scale: Any,
    bias: Any,
    cut: Any,
    threshold: Any,
    signed: Any,
    k: Any,
    keys: Any,
    fill: Any,
    floor: Any,
    l0: Any,
) -> None:
    t = len(products) // n
    capacity = keys.shape[1]
    for i in range(n):
        least = floor[i]
        m = fill[i]
        count = 0
        for group in range(0, t, _LANES):
            # The last group overlaps the one before; its lanes that were seen are masked out.
            start = min(group, t - _LANES)
            masks: Any = _lane_masks(  # type: ignore[call-arg]
                products, scale, bias, cut, threshold, signed, i * t, start, least
            )
            masks &= _FRESH[group - start]
            count += _bit_count(masks & np.uint64(0xFFFFFFFF))
            hits = masks >> np.uint64(32)
            while hits != 0:
                unit = start + _lowest_bit(hits)
                hits &= hits - np.uint64(1)
                v = products[i * t + unit]
                if scale is not None:
                    v = v * scale[unit]
                if bias is not None:
                    v = v + bias[unit]
                if abs(v) > least:
                    if m == capacity:
                        least = _compact(keys[i], m, k)
                        m = k
                    keys[i, m] = _key(v, first_unit + unit)
                    m += 1
        floor[i] = least
        fill[i] = m
        l0[i] += count


@numba.njit(cache=True, nogil=True, inline="always")
def _key(value: Any, unit: Any) -> Any:
    # From the top: 31 bits of the magnitude, which order as the floats do, 32 of the complement of the unit, which puts
    # the smaller unit first, and the sign, which orders nothing, since a unit comes once.
    bits = np.uint64(np.float32(value).view(np.uint32))
    after = np.uint64(np.uint64(0xFFFFFFFF) - np.uint64(unit)) << np.uint64(1)
    return (bits << np.uint64(33)) | after | (bits >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _compact(keys: Any, m: Any, k: Any) -> Any:
    """Move the k largest of the first m keys to the front (Hoare's selection); returns the k-th largest magnitude."""
    low, high, target = 0, m - 1, k - 1
    while low < high:
        a, b, c = keys[low], keys[(low + high) >> 1], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return np.uint32(keys[target] >> np.uint64(33)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def _emit(k: Any, keys: Any, fill: Any, indices: Any, values: Any) -> None:
    for i in range(len(fill)):
        m = fill[i]
        if m > k:
            _compact(keys[i], m, k)
            m = k
        kept = keys[i, :m]
        kept.sort()
        for j in range(m):
            key = kept[m - 1 - j]
            sign = np.uint32(key & np.uint64(1)) << np.uint32(31)
            values[i, j] = np.uint32(np.uint32(key >> np.uint64(33)) | sign).view(np.float32)
            indices[i, j] = np.uint32(np.uint64(0xFFFFFFFF) - ((key >> np.uint64(1)) & np.uint64(0xFFFFFFFF)))


class DeviceTopK:
    """Selection state of ``n`` rows on a torch device; the same interface as `RunningTopK`, for tensors.

    The k best of a tile come from `torch.topk` on the magnitudes, which every backend has, and which picks
    arbitrarily among equal values only. Rows where such a pick was made at the boundary (rare) are selected again by a
    stable sort. Merging is a stable sort too: units kept so far precede those of the tile, so equal ones stay in
    the order of units. (A 64-bit key of value and unit would do the same with twice the memory, and MPS has no
    64-bit `topk`.)
    """

    def __init__(self, n: int, k: int, *, topk: int | None = None, device: torch.device | str = "cpu") -> None:
        self._k = k if topk is None else min(k, topk)
        self._topk = topk
        self._values = torch.zeros((n, self._k), dtype=torch.float32, device=device)
        self._units = torch.zeros((n, self._k), dtype=torch.int32, device=device)
        self._l0 = torch.zeros(n, dtype=torch.int32, device=device)

    def update(self, products: torch.Tensor, first_unit: int, rule: UnitRule) -> None:
        """Take in a tile of products, (n, t) float32, which is overwritten; see `RunningTopK.update`."""
        _check(products, rule)
        if products.numel() == 0:
            return

        def on_device(array: FloatArray | None) -> torch.Tensor | None:
            return None if array is None else torch.tensor(array, device=products.device)

        scale, bias = on_device(rule.scale), on_device(rule.bias)
        cut, threshold = on_device(rule.cut), on_device(rule.threshold)
        above_cut = None if cut is None else products > cut
        values = products
        # Two separate operations, since a fused multiply-add would round once and give other bits.
        if scale is not None:
            values.mul_(scale)
        if bias is not None:
            values.add_(bias)
        negative = None
        if rule.signed:
            negative = values < 0
            values.abs_()
        active = values > (0.0 if threshold is None else threshold.clamp(min=0))
        if above_cut is not None:
            active &= above_cut
        self._l0 += active.sum(dim=1, dtype=torch.int32)
        values.masked_fill_(~active, 0.0)
        best, units = _tile_topk(values, min(self._k, values.shape[1]))
        if negative is not None:
            best = torch.where(negative.gather(1, units.long()), -best, best)
        merged = torch.cat((self._values, best), dim=1)
        merged_units = torch.cat((self._units, units + first_unit), dim=1)
        order = torch.sort(merged.abs(), dim=1, descending=True, stable=True).indices[:, : self._k]
        self._values = merged.gather(1, order)
        self._units = merged_units.gather(1, order)

    def finish(self) -> TopK:
        """The codes of all tiles taken in so far, on the host."""
        units = torch.where(self._values != 0, self._units, 0)
        l0 = self._l0 if self._topk is None else self._l0.clamp(max=self._topk)
        return TopK(
            indices=units.cpu().numpy().astype(np.uint32),
            values=self._values.cpu().numpy(),
            l0=l0.cpu().numpy().astype(np.uint32),
        )


def _tile_topk(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of non-negative values by (value descending, column ascending)."""
    best, columns = torch.topk(values, k, dim=1)
    boundary = best[:, -1:]
    left_out = (values == boundary).sum(dim=1) > (best == boundary).sum(dim=1)
    ties = torch.nonzero(left_out & (boundary[:, 0] > 0))[:, 0]
    if len(ties):
        again = torch.sort(values[ties], dim=1, descending=True, stable=True)
        best[ties], columns[ties] = again.values[:, :k], again.indices[:, :k]
    narrow, order = torch.sort(columns.to(torch.int32), dim=1)
    best, order = torch.sort(best.gather(1, order), dim=1, descending=True, stable=True)
    return best, narrow.gather(1, order)
