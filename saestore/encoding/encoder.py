"""An SAE made ready to encode and decode blocks of rows on a device, its weights in memory or streamed by tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.kernels.decode import decode_rows
from saestore.kernels.encode import TopK, encode_rows, plan_tile
from saestore.kernels.normalize import normalize
from saestore.kernels.quality import QualitySums
from saestore.kernels.quantize import as_float32
from saestore.prefetch import prefetch
from saestore.saes.weights import SAEWeights, unit_rule

if TYPE_CHECKING:
    from saestore.saes.weights import MatrixName

STREAM_BYTES = 64 << 20

# A product of 1 to 3 rows, or of a few units, is made by other instructions and differs in its last bits. With whole
# groups of rows, and runs of whole tiles, codes depend neither on the block of rows nor on how weights are read.
_ROW_GROUP = 16
_UNIT_GROUP = 1024


class Encoder:
    """Encode and decode rows with one SAE.

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

    def __init__(self, weights: SAEWeights, *, device: str, hold: bool) -> None:
        self.weights = weights
        self.config = weights.config
        self.device = device
        self._rule = unit_rule(weights)
        self._b_dec = torch.from_numpy(np.array(weights.vector("b_dec")))
        self._held: torch.Tensor | None = None
        if hold:
            held = torch.empty((self.config.d_sae, self.config.d_in), dtype=torch.float32, device=device)
            for units, rows in _stream(weights, "W_enc"):
                held[units] = torch.from_numpy(rows).to(device)
            self._held = held

    def encode(self, x: NDArray[np.float32], k: int) -> TopK:
        """Return the k largest activations of each row, and its true l0.

        Parameters
        ----------
        x : (n, d_in) float32
            Activations as stored: raw, not normalised.
        k : int
            Slots per row.

        Raises
        ------
        InputError
            Rows are not d_in wide, or hold values that are not finite.
        """
        if x.ndim != 2 or x.shape[1] != self.config.d_in:
            raise InputError(f"rows of shape {x.shape} were given to an SAE with d_in {self.config.d_in}")
        rows, _ = normalize(torch.from_numpy(x), self.config.normalization)
        if self.config.apply_b_dec_to_input:
            rows = rows - self._b_dec
        padding = -len(x) % _ROW_GROUP
        if padding:
            rows = torch.cat([rows, rows.new_zeros((padding, rows.shape[1]))])
        codes = encode_rows(rows, self._tiles(len(rows)), self._rule, k, device=self.device)
        return codes if not padding else TopK(*(part[: len(x)] for part in (codes.indices, codes.values, codes.l0)))

    def reconstruct(self, x: NDArray[np.float32], codes: TopK) -> NDArray[np.float32]:
        """Return the SAE's reconstruction of rows from their codes, (n, d_in) float32.

        `x` gives the row's mean and norm where the SAE normalises.
        """
        from saestore.kernels.normalize import denormalize

        _, state = normalize(torch.from_numpy(x), self.config.normalization)
        values = as_float32(codes.values)
        if self.config.rescale_acts_by_decoder_norm:
            values = values / self.weights.vector("decoder_norms")[codes.indices]
        tiles = ((units.start, torch.from_numpy(rows)) for units, rows in _stream(self.weights, "W_dec"))
        decoded = decode_rows(codes.indices, values, tiles, d_in=self.config.d_in, bias=self._b_dec.numpy())
        rebuilt: NDArray[np.float32] = denormalize(decoded, state).numpy()
        return rebuilt

    def quality(self, x: NDArray[np.float32], k: int) -> dict[str, Any]:
        """Measure how well codes with k slots stand for rows.

        Returns
        -------
        dict
            `rows`, `explained_variance` (None below two rows), `l0` (mean), `dead_units` (never stored in these rows).
        """
        sums = QualitySums.empty(self.config.d_in, self.config.d_sae)
        codes = self.encode(x, k)
        sums = sums.add(x, self.reconstruct(x, codes), indices=codes.indices, values=codes.values, l0=codes.l0)
        return {
            "rows": sums.rows,
            "explained_variance": float(sums.explained_variance) if sums.rows > 1 else None,
            "l0": float(sums.mean_l0),
            "dead_units": len(sums.dead_units),
        }

    def _tiles(self, n: int) -> Iterator[tuple[int, torch.Tensor]]:
        step = plan_tile(self.config.d_in, self.config.d_sae, n, device=self.device)
        if self._held is not None:
            for first in range(0, self.config.d_sae, step):
                yield first, self._held[first : first + step]
            return
        for units, rows in _stream(self.weights, "W_enc"):
            block = torch.from_numpy(rows).to(self.device)
            for first in range(0, len(rows), step):
                yield units.start + first, block[first : first + step]


def _stream(weights: SAEWeights, name: MatrixName) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield runs of units of bounded size, reading one ahead."""
    config = weights.config
    step = max(1, STREAM_BYTES // (4 * config.d_in * _UNIT_GROUP)) * _UNIT_GROUP
    runs = [slice(first, min(first + step, config.d_sae)) for first in range(0, config.d_sae, step)]
    return prefetch(lambda units: weights.rows(name, units), runs)
