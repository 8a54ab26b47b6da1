"""Training of the attention probe of the sparse-probing benchmark on activations of the tokens of samples.

The rule (Kantamneni et al. 2025), with the probe of `saestore.kernels.attention_probe`:

- a random 80 % of the training samples fit, the others validate;
- w and then a are drawn as 0.001 * normal, b is 0;
- 1,000 epochs of Adam (learning rate 1e-4, no weight decay) on the binary cross-entropy of all fitting samples at once;
- of the parameters before each epoch's step those are kept that have the best AUC on the validating samples, the first
  of equal ones.

All positions count, BOS and other special tokens too. Padding does not exist here; the benchmark knows it by scores
that are exactly 0. The benchmark gives its draws no seed; here one seed gives the samples that validate and the first
parameters, in the benchmark's order of drawing, so that its code after `torch.manual_seed(seed)` draws the same.

Activations go through in blocks of whole samples, of which as many stay in memory as fit; the others are read again in
each epoch. The blocks are the same either way, and so are the results, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.bridges.packages import imported
from saestore.budget import parse_memory
from saestore.cuts import cuts
from saestore.engine.resources import usable_device
from saestore.errors import InputError
from saestore.prefetch import prefetch
from saestore.probing.settings import Cell
from saestore.probing.splits import SEED
from saestore.probing.tasks import Task
from saestore.probing.token_rows import MAX_POSITIONS, read_finite, token_rows
from saestore.probing.validation import Scores, auc, measure

if TYPE_CHECKING:
    from saestore.kernels.attention_probe import Block

EPOCHS = 1_000

_FITTING_SHARE = 0.8
_LEARNING_RATE = 1e-4
_INITIAL_SCALE = 0.001
_BLOCK_BYTES = 16 << 20
_BLOCK_COPIES = 6  # one that is used and one that is read ahead, each as it is stored, as float32 and on the device
_DEVICE_SHARE = 0.6


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """A fitted attention probe.

    scores : Scores
        `chosen` has the epoch, from 0.
    attention, output : (d_in,) float32
        The vectors a and w of `saestore.kernels.attention_probe`.
    bias : float
    """

    scores: Scores
    attention: NDArray[np.float32]
    output: NDArray[np.float32]
    bias: float


def attention_probe(
    activations: Activations,
    task: Task,
    cell: Cell,
    *,
    seed: int = SEED,
    device: str = "cpu",
    memory: str | int | None = None,
    max_positions: int = MAX_POSITIONS,
) -> AttentionProbe:
    """Fit an attention probe to the training samples of a cell and measure it on the test samples.

    Where the samples that validate are of one class no epoch has a score: the last one is kept, and `val_auc` is NaN.

    Parameters
    ----------
    activations : Activations
        Of positions.
    task : Task
    cell : Cell
        Of the task alone: it trains and tests on its samples.
    seed : int
    device : str
        `auto`, `cpu`, `cuda` or `mps`.
    memory : str or int, optional
        How much activations may take, such as `4GiB`; default 60 % of the free memory, of a CUDA device too. Blocks of
        16 MiB that are in use, about 96 MiB together, are taken from it, and used also where it is less.
    max_positions : int
        Positions of a sample from this one on are not used.

    Raises
    ------
    InputError
        Rows are samples and not positions, some are not finite, or training or test samples are too few or of one
        class.
    HoleError
        Some rows were never written.
    DependencyError
        torch or scikit-learn is not installed.
    """
    torch = imported("torch", "the attention probe")
    from saestore.kernels.attention_probe import attend, gradient

    y_train, y_test = cell.train_labels(task.labels), cell.test_labels(task.labels)
    n_fitting = int(_FITTING_SHARE * len(y_train))
    for which, given in (("training", y_train), ("test", y_test)):
        if len(np.unique(given)) < 2:
            raise InputError(f"the {len(given)} {which} samples are not of both classes; a probe needs both")
    device = usable_device(device)
    held_bytes = _held_bytes(memory, device)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(y_train), generator=generator).numpy()
    output = torch.randn(activations.d_in, generator=generator)
    attention = torch.randn(activations.d_in, generator=generator)
    vectors = (torch.stack([attention, output]) * _INITIAL_SCALE).to(device)
    bias = torch.zeros(1, device=device)
    optimiser = torch.optim.Adam([vectors, bias], lr=_LEARNING_RATE)

    source = _Blocks(activations, cell.train, max_positions, device, held_bytes)
    order = np.argsort(cell.train)  # blocks have samples in ascending order
    y = torch.from_numpy(y_train[order].astype(np.float32)).to(device)
    fits = np.zeros(len(order), dtype=bool)
    fits[drawn[:n_fitting]] = True
    fits = fits[order]
    share = torch.from_numpy(fits.astype(np.float32) / n_fitting).to(device)
    y_validation = y_train[order][~fits]

    best_auc, best = math.nan, (0, vectors.clone(), bias.clone())
    for epoch in range(EPOCHS):
        vectors.grad, bias.grad = torch.zeros_like(vectors), torch.zeros_like(bias)
        logits = torch.empty_like(y)
        for part, block in source:
            attended = attend(block, vectors, bias)
            logits[part] = attended.logits
            slopes = (torch.sigmoid(attended.logits) - y[part]) * share[part]
            vectors.grad += gradient(block, attended, bias, slopes)
            bias.grad += slopes.sum()
        val_auc = auc(y_validation, logits.cpu().numpy()[~fits])
        if not val_auc <= best_auc:  # of equal ones the first; where none is a number the last
            best_auc, best = val_auc, (epoch, vectors.clone(), bias.clone())
        optimiser.step()

    epoch, vectors, bias = best
    tests = _Blocks(activations, cell.test, max_positions, device, 0)
    found = np.concatenate([attend(block, vectors, bias).logits.cpu().numpy() for _, block in tests])
    f1, accuracy, test_auc = measure(y_test[np.argsort(cell.test)], (found > 0).astype(np.int8), found)
    scores = Scores(f1, accuracy, test_auc, best_auc, {"epoch": epoch}, fits=1, unconverged=0)
    fitted_attention, fitted_output = vectors.cpu().numpy()
    return AttentionProbe(scores, fitted_attention, fitted_output, float(bias))


class _Blocks:
    """Blocks of samples in ascending order, with their places among them; the first stay where they are once read."""

    def __init__(
        self,
        activations: Activations,
        samples: NDArray[np.int64],
        max_positions: int,
        device: str,
        held_bytes: int,
    ) -> None:
        from saestore.kernels.attention_probe import OVERHEAD_BYTES

        axis = RowAxis.open(activations.group.storage, activations.key)
        self._rows = token_rows(axis, samples, content=False, max_positions=max_positions)
        self._activations, self._device = activations, device
        sizes = self._rows.lengths * (activations.d_in * 4 + OVERHEAD_BYTES)
        edges = cuts(sizes, _BLOCK_BYTES)
        self._parts = [slice(first, stop) for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        self._n_held = int(np.searchsorted(np.cumsum(sizes)[edges[1:] - 1], held_bytes, side="right"))
        self._held: list[Block] = []

    def __iter__(self) -> Iterator[tuple[slice, Block]]:
        n = len(self._held)
        yield from zip(self._parts[:n], self._held, strict=True)
        for part, block in prefetch(self._read, self._parts[n:]):
            if len(self._held) < self._n_held:
                self._held.append(block)
            yield part, block

    def _read(self, part: slice) -> Block:
        from saestore.kernels.attention_probe import Block

        start, stop = self._rows.offsets[[part.start, part.stop]].tolist()
        x = read_finite(self._activations, self._rows.rows[start:stop])
        return Block.of(x, self._rows.lengths[part], self._device)


def _held_bytes(memory: str | int | None, device: str) -> int:
    """Return how many bytes of activations may stay on a device."""
    budget = parse_memory(memory)
    if memory is None and device.startswith("cuda"):
        torch = imported("torch", "the attention probe")
        budget = min(budget, int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE))
    return max(0, budget - _BLOCK_COPIES * _BLOCK_BYTES)
