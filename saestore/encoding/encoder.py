"""An SAE made ready to encode blocks of rows on a device, its weights in memory or streamed by tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saestore.encoding.dense import DenseEncoder
from saestore.errors import BudgetError, InputError
from saestore.kernels.encode import ROW_GROUP, Precision, TopK, encode_rows, plan_tile
from saestore.kernels.normalize import NormState, normalize
from saestore.kernels.quality import QualitySums
from saestore.kernels.quantize import as_float32
from saestore.prefetch import prefetch
from saestore.saes.config import DENSE
from saestore.saes.decoder import decode
from saestore.saes.weights import FloatArray, SAEWeights, unit_rule

STREAM_BYTES = 64 << 20

_UNIT_GROUP = 1024  # runs are whole tiles, since a product of a few units differs in its last bits


@dataclass(frozen=True)
class Encoded:
    """Codes of n rows, and what was taken from each row before.

    shift, scale : (n,) float32, or None where the SAE's normalisation has none; see `saestore.saes.decoder.decode`
    """

    codes: TopK
    shift: FloatArray | None = None
    scale: FloatArray | None = None

    def part(self, rows: slice, k: int) -> Encoded:
        """Return some of the rows, with their k largest activations."""
        codes = self.codes
        return Encoded(
            TopK(codes.indices[rows, :k], codes.values[rows, :k], codes.l0[rows]),
            *(None if state is None else state[rows] for state in (self.shift, self.scale)),
        )


class Encoder:
    """Encode rows with one SAE.

    Parameters
    ----------
    weights : SAEWeights
    device : str
        `cpu`, `cuda` or `mps`, with an index where there are several.
    hold : bool
        Keep the encoder's matrix in the device's memory; otherwise read it once per block of rows, a tile ahead.

    Notes
    -----
    The order of arithmetic is that of SAELens: normalise the row, subtract `b_dec` where the configuration says so,
    multiply, apply the unit rule.
    """

    def __init__(self, weights: SAEWeights, *, device: str, hold: bool, precision: Precision = "fp32") -> None:
        self.weights = weights
        self.config = weights.config
        self.device = device
        self._precision = precision
        self._dense = DenseEncoder(weights, device) if self.config.architecture in DENSE else None
        self._held: torch.Tensor | None = None
        if self._dense is not None:
            return
        self._rule = unit_rule(weights)
        self._b_dec = torch.from_numpy(weights.vector("b_dec"))
        if hold:
            held = torch.empty((self.config.d_sae, self.config.d_in), dtype=torch.float32, device=device)
            for units, rows in _stream(weights):
                held[units] = torch.from_numpy(rows).to(device)
            self._held = held

    def encode(
        self,
        x: FloatArray,
        k: int,
        *,
        offsets: NDArray[np.int64] | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> Encoded:
        """Return the k largest activations of each row, and its true l0.

        Parameters
        ----------
        x : (n, d_in) float32
            Activations as stored: raw, not normalised.
        k : int
            Slots per row.
        offsets : (m + 1,) int64, optional
            The first row of each sample within x, and n: a temporal SAE reads each sample as one sequence.
        tick : callable, optional
            Called with the number of units that are multiplied next; what it raises ends the work.

        Raises
        ------
        InputError
            Rows are not d_in wide, or hold values that are not finite.
        BudgetError
            The memory of the process or the device did not suffice.
        """
        try:
            return self._encode(x, k, offsets, tick or _no_tick)
        except (MemoryError, RuntimeError) as error:
            if not _is_want_of_memory(error):
                raise
            raise BudgetError(
                f"{len(x):,} rows could not be encoded for want of memory ({str(error).splitlines()[0][:120]}); "
                "give less with --memory, or another --device"
            ) from error

    def _encode(self, x: FloatArray, k: int, offsets: NDArray[np.int64] | None, tick: Callable[[int], None]) -> Encoded:
        if x.ndim != 2 or x.shape[1] != self.config.d_in:
            raise InputError(f"rows of shape {x.shape} were given to an SAE with d_in {self.config.d_in}")
        if self._dense is not None:
            codes = self._dense.encode(x, k, offsets=offsets)
            return Encoded(codes, *_vectors(normalize(torch.from_numpy(x), self.config.normalization)[1]))
        rows, state = normalize(torch.from_numpy(x), self.config.normalization)
        if self.config.apply_b_dec_to_input:
            rows = rows - self._b_dec
        padding = -len(x) % ROW_GROUP
        if padding:
            rows = torch.cat([rows, rows.new_zeros((padding, rows.shape[1]))])
        codes = encode_rows(
            rows, self._tiles(len(rows), tick), self._rule, k, device=self.device, precision=self._precision
        )
        encoded = Encoded(codes, *_vectors(state))
        return encoded if not padding else encoded.part(slice(len(x)), k)

    def quality(self, x: FloatArray, encoded: Encoded, target: FloatArray | None) -> dict[str, Any]:
        """Measure how well codes stand for rows.

        Parameters
        ----------
        x : (n, d_in) float32
        encoded : Encoded
            The codes of these rows.
        target : (n, d_out) float32 or None
            What the decoder should give: the rows themselves, or what a transcoder predicts; None where that is not
            stored.

        Returns
        -------
        dict
            `rows`, `explained_variance` (None below two rows, and without a target), `l0` (mean), `dead_units` (never
            stored in these rows).
        """
        codes = encoded.codes
        known = x if target is None else target
        sums = QualitySums.empty(known.shape[1], self.config.d_sae)
        rebuilt = known
        if target is not None:
            rebuilt = decode(
                self.weights, codes.indices, as_float32(codes.values), shift=encoded.shift, scale=encoded.scale, x=x
            )
        sums = sums.add(known, rebuilt, indices=codes.indices, values=codes.values, l0=codes.l0)
        return {
            "rows": sums.rows,
            "explained_variance": float(sums.explained_variance) if target is not None and sums.rows > 1 else None,
            "l0": float(sums.mean_l0),
            "dead_units": len(sums.dead_units),
        }

    def _tiles(self, n: int, tick: Callable[[int], None]) -> Iterator[tuple[int, torch.Tensor]]:
        for first, tile in self._all_tiles(n):
            tick(len(tile))
            yield first, tile

    def _all_tiles(self, n: int) -> Iterator[tuple[int, torch.Tensor]]:
        step = plan_tile(self.config.d_in, self.config.d_sae, n, device=self.device)
        if self._held is not None:
            for first in range(0, self.config.d_sae, step):
                yield first, self._held[first : first + step]
            return
        for units, rows in _stream(self.weights):
            block = torch.from_numpy(rows)  # uploaded tile by tile, beside the products
            for first in range(0, len(rows), step):
                yield units.start + first, block[first : first + step]


def _stream(weights: SAEWeights) -> Iterator[tuple[slice, FloatArray]]:
    """Yield runs of units of the encoder, of bounded size, reading one ahead."""
    config = weights.config
    step = max(1, STREAM_BYTES // (4 * config.d_in * _UNIT_GROUP)) * _UNIT_GROUP
    runs = [slice(first, min(first + step, config.d_sae)) for first in range(0, config.d_sae, step)]
    return prefetch(lambda units: weights.rows("W_enc", units), runs)


def _is_want_of_memory(error: Exception) -> bool:
    """Whether Python, a device, or torch's allocator on the CPU, which has no error class of its own, ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _no_tick(units: int) -> None:
    """Nobody counts."""


def _vectors(state: NormState) -> tuple[FloatArray | None, FloatArray | None]:
    shift, scale = (None if part is None else part[:, 0].numpy() for part in (state.shift, state.scale))
    return shift, scale
