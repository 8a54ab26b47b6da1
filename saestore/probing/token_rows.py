"""Which rows of the position axis the probes on several tokens of a sample use, and reading activations of them.

Of each sample the first 256 positions are used, as many as the sparse-probing benchmark has. There the tokenizer cut
longer texts at their start, so that their last tokens were kept; here nothing is cut, and the first ones count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.errors import InputError
from saestore.kernels.ramps import ramps

MAX_POSITIONS = 256


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of samples on a position axis.

    samples : (m,) int64
        Places in the sample table, ascending; a sample may have no row.
    offsets : (m + 1,) int64
        The first row of each sample, counted among these rows, and their number.
    rows : (r,) int64
        Numbers on the axis, ascending.
    positions : (r,) int64
        Their places in their sample, counted from 0.
    """

    samples: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each sample, (m,) int64."""
        return np.diff(self.offsets)


def token_rows(
    axis: RowAxis, samples: NDArray[np.int64], *, content: bool, max_positions: int = MAX_POSITIONS
) -> TokenRows:
    """Find the rows of samples.

    Parameters
    ----------
    axis : RowAxis
    samples : (m,) int64
        Places in the sample table, in any order, each once.
    content : bool
        Leave out position 0, where the benchmark's models have BOS, and what the lake marks as special tokens.
    max_positions : int
        Positions from this one on are left out.

    Raises
    ------
    InputError
        Rows of the axis are samples and not positions, or a sample does not exist.
    """
    if axis.positions is None:
        raise InputError(
            f"rows of dataset {axis.samples.dataset!r} are samples here; a probe on several tokens needs sample type "
            "token or patch"
        )
    if max_positions < 1:
        raise InputError(f"max_positions {max_positions}; expected a positive number of positions")
    ordered = np.sort(samples)
    n_samples = len(axis.positions.offsets) - 1
    if ordered.size and not 0 <= ordered[0] <= ordered[-1] < n_samples:
        wrong = int(ordered[0] if ordered[0] < 0 else ordered[-1])
        raise InputError(f"sample {wrong} has no positions: there are those of {n_samples} samples; extract the others")
    first = axis.positions.offsets[ordered]
    lengths = np.minimum(axis.positions.offsets[ordered + 1] - first, max_positions)
    rows, positions = ramps(first, lengths), ramps(np.zeros_like(first), lengths)
    offsets = np.append(0, np.cumsum(lengths))
    if content:
        kept = (positions > 0) & ~axis.special(rows)
        rows, positions = rows[kept], positions[kept]
        offsets = np.append(0, np.cumsum(kept))[offsets]
    return TokenRows(ordered, offsets, rows, positions)


def read_finite(activations: Activations, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return activations of rows, (r, d_in) float32.

    Raises
    ------
    InputError
        Some are NaN or infinite, which no probe can be fitted to.
    HoleError
        Some were never written.
    """
    x = activations.take(rows)
    check_finite(x, rows, activations.key.path)
    return x


def check_finite(x: NDArray[np.float32], rows: NDArray[np.int64], path: str) -> None:
    """Refuse rows (r, m) of a group at a path where some number is NaN or infinite (InputError)."""
    if not np.isfinite(x.sum(dtype=np.float64)):  # float64 does not overflow here, and one sum costs less than a mask
        wrong = rows[~np.isfinite(x).all(axis=1)]
        raise InputError(
            f"{wrong.size} of {len(rows)} rows of {path} hold NaN or infinity, the first is {wrong[0]}; expected "
            "finite numbers only"
        )
