"""The attention probe over samples of any lengths: its scores, and their gradient without a graph.

With x_p (d,) the activations of position p of a sample, and the parameters a, w (d,) and b:

    weight_p = exp(x_p . a) / sum over q of exp(x_q . a)
    logit    = (sum over p of weight_p x_p) . w + b  =  sum over p of weight_p (x_p . w)  +  b

as in the sparse-probing benchmark (Kantamneni et al. 2025), which pads samples to one length and marks padding by
scores that are exactly 0. The second form needs two numbers of each position instead of a mean of activations, and so
does the gradient of a loss L. With g = dL / dlogit of the position's sample:

    dL/d(x_p . w) = g weight_p        dL/d(x_p . a) = g weight_p (x_p . w + b - logit)        dL/db = sum of g

Activations are thus multiplied by two vectors, once in each direction, and never copied or padded; the two numbers of
each position are laid out as a grid of samples and places. All is float32. Nothing is added up by atomic operations, so
that a device gives the same bits each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

OVERHEAD_BYTES = 48
"""Of each position, what a block and a step over it take besides its activations."""


@dataclass(frozen=True, eq=False)
class Block:
    """Samples, one after the other.

    x : (r, d) float32
        Activations of all positions.
    sample : (r,) int64
        The sample of each position.
    slot : (r,) int64
        Its place in the grid of samples and places, row by row.
    n_samples, longest : int
        The shape of the grid.
    """

    x: torch.Tensor
    sample: torch.Tensor
    slot: torch.Tensor
    n_samples: int
    longest: int

    @classmethod
    def of(cls, x: NDArray[np.float32], lengths: NDArray[np.integer[Any]], device: str) -> Block:
        """Put samples on a device.

        Parameters
        ----------
        x : (r, d) float32
        lengths : (n,) integers
            Positions of each sample, 0 for one without any.
        device : str
        """
        assert x.dtype == np.float32
        assert len(x) == lengths.sum()
        longest = max(1, int(lengths.max(initial=0)))
        sample = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        place = np.arange(len(x), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        x_there, sample_there, slot = (torch.from_numpy(a).to(device) for a in (x, sample, sample * longest + place))
        return cls(x_there, sample_there, slot, len(lengths), longest)

    def grid(self, numbers: torch.Tensor, empty: float) -> torch.Tensor:
        """Lay out one number of each position as (n, longest), with another one where a sample has no position."""
        grid = numbers.new_full((self.n_samples * self.longest,), empty)
        grid[self.slot] = numbers
        return grid.view(self.n_samples, self.longest)


@dataclass(frozen=True, eq=False)
class Attended:
    """What a probe makes of a block.

    logits : (n,) float32
        That of a sample without positions is the bias.
    weights, outputs : (r,) float32
        Of each position its weight, and its product with w.
    """

    logits: torch.Tensor
    weights: torch.Tensor
    outputs: torch.Tensor


def attend(block: Block, vectors: torch.Tensor, bias: torch.Tensor) -> Attended:
    """Score the samples of a block.

    Parameters
    ----------
    block : Block
    vectors : (2, d) float32
        a and w.
    bias : (1,) float32
    """
    scores, outputs = (block.x @ vectors.T).unbind(1)
    # A sample without positions is a row of NaN, which no position reads.
    weights = torch.softmax(block.grid(scores, -torch.inf), dim=1).view(-1)[block.slot]
    return Attended(block.grid(weights * outputs, 0.0).sum(1) + bias, weights, outputs)


def gradient(block: Block, attended: Attended, bias: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a loss by the vectors, (2, d) float32; that by the bias is the sum of the slopes.

    Parameters
    ----------
    block, attended, bias
        As given to `attend`, and what it returned.
    slopes : (n,) float32
        The derivative of the loss by the logit of each sample.
    """
    of_outputs = slopes[block.sample] * attended.weights
    of_scores = of_outputs * (attended.outputs - (attended.logits - bias)[block.sample])
    return torch.stack([of_scores, of_outputs]) @ block.x
