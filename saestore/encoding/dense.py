"""Encode rows with an SAE whose units depend on each other: SAELens' own encoder, in batches of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.kernels.encode import ROW_GROUP
from saestore.kernels.finite import count_nonfinite
from saestore.kernels.normalize import normalize
from saestore.kernels.topk import DeviceTopK, RunningTopK, TopK, UnitRule
from saestore.saes.config import SAEConfig
from saestore.saes.dense import saelens_model
from saestore.saes.weights import FloatArray, SAEWeights, matrix_widths, other_shapes, saelens_options

BATCH_BYTES = 256 << 20
"""Bytes of what SAELens makes of one batch. A sample that needs more is a batch by itself."""

# Arrays of (rows, d_sae) float32 that SAELens holds at its peak, of a temporal SAE within and outside the attention,
# and those of (rows, heads, positions) within it. Measured 3.3, 5.3, 8.4 and 2.3.
_PURSUIT_ARRAYS = 3.5
_ATTENTION_ARRAYS, _SCORE_ARRAYS = 5.5, 2.5
_TEMPORAL_ARRAYS = 8.5


class DenseEncoder:
    """Encode rows with an SAE of `saestore.saes.config.DENSE`, all of it in the device's memory.

    Parameters
    ----------
    weights : SAEWeights
    device : str
        `cpu`, `cuda` or `mps`, with an index where there are several.

    Raises
    ------
    DependencyError
        If ``sae_lens`` is not installed.

    Notes
    -----
    The codes of a row of matching pursuit, and of a sample of a temporal SAE, do not depend on what else is encoded
    with it. Those of a row of a temporal SAE depend on the earlier rows of its sample, and on no later ones.
    """

    def __init__(self, weights: SAEWeights, device: str) -> None:
        self._config = weights.config
        self._device = device
        self._model = saelens_model(weights, device)

    def encode(self, x: FloatArray, k: int, *, offsets: NDArray[np.int64] | None = None) -> TopK:
        """Return the k largest activations of each row, and its true l0.

        Parameters
        ----------
        x : (n, d_in) float32
            Activations as stored: raw, not normalised.
        k : int
            Slots per row.
        offsets : (m + 1,) int64, optional
            Where samples begin in x, 0 first and n last; a temporal SAE needs it, the others do not use it. Row 0 must
            begin a sample, the last sample may be cut off.

        Returns
        -------
        TopK
            indices uint32 and values float32 of shape (n, k), l0 uint32 (n,).

        Raises
        ------
        InputError
            Rows or their codes are not finite, or a temporal SAE was given no usable offsets.
        """
        broken = int((~np.isfinite(x).all(axis=1)).sum()) if count_nonfinite(torch.from_numpy(x)) else 0
        if broken:
            raise InputError(
                f"{broken} of {len(x)} rows hold values that are not finite: repair or leave out these activations"
            )
        rows, _ = normalize(torch.from_numpy(x), self._config.normalization)
        codes = TopK(
            indices=np.zeros((len(x), k), np.uint32),
            values=np.zeros((len(x), k), np.float32),
            l0=np.zeros(len(x), np.uint32),
        )
        for batch, is_row in self._batches(len(x), offsets):
            found = self._encode_batch(rows[torch.from_numpy(batch)], k)
            places = batch[is_row]
            codes.indices[places], codes.values[places] = found.indices[is_row.ravel()], found.values[is_row.ravel()]
            codes.l0[places] = found.l0[is_row.ravel()]
        return codes

    def _batches(
        self, n: int, offsets: NDArray[np.int64] | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Yield the rows of each batch, and which of them are not there to fill it up only."""
        if self._config.reads_sequences:
            yield from _samples(self._config, _checked(offsets, n))
            return
        size = _batch_rows(self._config, 1)
        for first in range(0, n, size):
            taken = np.arange(first, min(first + size, n))
            batch = np.append(taken, np.full(-len(taken) % ROW_GROUP, taken[-1]))
            yield batch, np.arange(len(batch)) < len(taken)

    def _encode_batch(self, rows: torch.Tensor, k: int) -> TopK:
        with torch.inference_mode():
            z: torch.Tensor = self._model.encode(rows.to(self._device))  # type: ignore[operator]
            z = z.reshape(-1, z.shape[-1])
            if not bool(torch.isfinite(z.amax(dim=1)).all()):
                raise InputError(
                    f"the {self._config.architecture} SAE {self._config.source} gives codes that are not finite: its "
                    "weights or these activations are not in the scale that it was trained on"
                )
            if z.device.type == "cpu":
                on_host = RunningTopK(len(z), k)
                on_host.update(z.contiguous().numpy(), 0, UnitRule())
                return on_host.finish()
            on_device = DeviceTopK(len(z), k, device=z.device)
            on_device.update(z, 0, UnitRule())
            return on_device.finish()


def _checked(offsets: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    if offsets is None:
        raise InputError("a temporal SAE reads each sample as one sequence: give the offsets of the samples")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise InputError(f"offsets of the samples must ascend from 0 to the number of rows, {n}")
    return offsets


def _samples(config: SAEConfig, offsets: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield batches (samples, positions) of samples that are equally long in whole groups of rows.

    A sample does not notice that it is lengthened, since attention looks back only.
    """
    lengths = np.diff(offsets)
    padded = -(-lengths // ROW_GROUP) * ROW_GROUP
    for length in np.unique(padded[padded > 0]):
        samples = np.flatnonzero(padded == length)
        size = max(1, _batch_rows(config, int(length)) // int(length))
        for first in range(0, len(samples), size):
            chosen = samples[first : first + size, None]
            position = np.arange(length)
            last = lengths[chosen] - 1
            yield offsets[chosen] + np.minimum(position, last), position <= last


def _batch_rows(config: SAEConfig, length: int) -> int:
    """Return how many rows go in a batch, whole groups, where each sees up to `length` positions."""
    return max(1, int(BATCH_BYTES / (_row_bytes(config, length) * ROW_GROUP))) * ROW_GROUP


def _row_bytes(config: SAEConfig, length: int) -> float:
    """Return what SAELens holds for each row of a batch, where each sees up to `length` positions."""
    if config.reads_sequences:
        attention = _ATTENTION_ARRAYS * config.d_sae + _SCORE_ARRAYS * saelens_options(config)["n_heads"] * length
        return float(4 * (max(attention, _TEMPORAL_ARRAYS * config.d_sae) + 4 * config.d_in))
    return 4 * (_PURSUIT_ARRAYS * config.d_sae + 5 * config.d_in)


def working_bytes(config: SAEConfig, n: int, k: int, *, longest: int = 512) -> int:
    """Peak bytes that `DenseEncoder.encode` needs beside its rows and the weights.

    Parameters
    ----------
    n, k : int
        Rows and slots per row.
    longest : int
        Positions of the longest sample, which counts only for a temporal SAE.
    """
    length = -(-min(longest, n) // ROW_GROUP) * ROW_GROUP if config.reads_sequences else ROW_GROUP
    batch = min(max(_batch_rows(config, length), length), n + ROW_GROUP)
    selection = batch * (8 * (k + max(k, 32)) + 8 * k + 24)
    return int(batch * _row_bytes(config, length)) + selection + n * (4 * config.d_in + 8 * k + 4)


def weight_bytes(config: SAEConfig) -> int:
    """Bytes of all parameters in memory, as float32; a temporal SAE's attention has more than 2 d_sae squared."""
    matrices = sum(matrix_widths(config).values()) * config.d_sae
    return 4 * (matrices + sum(math.prod(shape) for shape in other_shapes(config).values()))
