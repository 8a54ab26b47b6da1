"""Probes on several tokens of a sample: activations position by position, and codes joined over the positions.

The multi-token setting of the sparse-probing benchmark (Kantamneni et al. 2025), whose third probe is
`saestore.probing.attention`. Both probes here leave out position 0, which is BOS in the benchmark's models, and what
the lake marks as special tokens.

The benchmark pads samples to one length with zeros and encodes these too; what is padding it guesses from the last
position with an active unit, which can take padding in (a unit whose bias exceeds its threshold is active there) or
leave tokens out. A lake holds no padding, and the positions of a sample are known. A sample without any position that
counts is a row of zeros, for which the benchmark has NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.bridges.packages import imported
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.cuts import cuts
from saestore.errors import InputError
from saestore.kernels.class_sums import ClassSums, ranked
from saestore.kernels.densify import unit_lookup
from saestore.kernels.reduce import reduce_entries
from saestore.probing.classifiers import logistic
from saestore.probing.sae_probes import Design
from saestore.probing.settings import Cell
from saestore.probing.splits import SEED
from saestore.probing.tasks import Task
from saestore.probing.token_rows import MAX_POSITIONS, TokenRows, check_finite, read_finite, token_rows
from saestore.probing.validation import Labels, Scores

Pooling = Literal["mean", "max"]

POOLED_K = 128
"""Units of the benchmark's probes on pooled codes."""

COMPONENTS = 20
"""Principal components of each position."""

_READ_BYTES = 16 << 20
_READ_COPIES = 8  # of what is read at a time: stored, as float32, and chunks that are decoded; measured
_POSITION_COPIES = 24  # bytes of each number of a position while its components are found: three float64 copies
_BLOCK_SLOTS = 1 << 20


@dataclass(frozen=True, eq=False)
class PooledCodes:
    """Codes of samples, each joined from its positions, as the arrays of a CSR matrix of all units.

    samples : (m,) int64
        Places in the sample table, ascending.
    pointers : (m + 1,) int64
        Where the entries of each sample begin, and their number.
    units : (e,) int64
        Original unit ids, ascending within a sample.
    values : (e,) float32
    """

    samples: NDArray[np.int64]
    pointers: NDArray[np.int64]
    units: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each entry, counted among these samples: (e,) int64."""
        return np.repeat(np.arange(len(self.samples)), np.diff(self.pointers))


def pooled_codes(
    codes: Codes,
    samples: NDArray[np.int64],
    how: Pooling,
    *,
    units: NDArray[np.int64] | None = None,
    max_positions: int = MAX_POSITIONS,
) -> Iterator[PooledCodes]:
    """Yield the pooled codes of samples, a block of whole samples at a time; no row is ever dense.

    Rows where a unit is not active are zeros and take part, see `saestore.kernels.reduce`. Positions are left out as
    the module says.

    A block has a million slots at most, or those of one sample, and takes about 100 bytes a slot, however many units
    there are; choosing units takes 9 bytes for each unit of the SAE.

    Parameters
    ----------
    codes : Codes
        Of positions, without a selection. Of a view, its units alone are there.
    samples : (m,) int64
        Places in the sample table, in any order, each once; they come back ascending.
    how : {"mean", "max"}
    units : (u,) int64, optional
        Original ids of the units to keep; default all.
    max_positions : int
        Positions of a sample from this one on are not used.

    Raises
    ------
    InputError
        Rows are samples and not positions, rows were selected, a sample does not exist, or values are not finite.
    HoleError
        Some rows were never written.
    """
    if how not in ("mean", "max"):
        raise InputError(f"pooling {how!r} is unknown; choose mean or max")
    if codes.is_selection:
        raise InputError(f"{codes!r} is a selection of rows; give all rows, samples are chosen here")
    wanted = None if units is None else unit_lookup(units, codes.d_sae).wanted
    chosen = token_rows(codes.axis, samples, content=True, max_positions=max_positions)
    edges = cuts(chosen.lengths, max(1, _BLOCK_SLOTS // codes.k)).tolist()
    for first, stop in itertools.pairwise(edges):
        offsets = chosen.offsets[first : stop + 1]
        block = codes.rows(chosen.rows[offsets[0] : offsets[-1]])
        check_finite(block.values, block.rows, codes.key.path)
        held = block.values != 0
        if wanted is not None:
            held &= wanted[block.indices]
        entries = np.nonzero(held)[0], block.indices[held], block.values[held]
        of_sample, of_unit, values = reduce_entries(*entries, offsets - offsets[0], how)
        pointers = np.searchsorted(of_sample, np.arange(stop - first + 1))
        yield PooledCodes(chosen.samples[first:stop], pointers, of_unit, values)


def pooled_design(
    codes: Codes,
    task: Task,
    cell: Cell,
    how: Pooling,
    *,
    limit: int = POOLED_K,
    max_positions: int = MAX_POSITIONS,
) -> Design:
    """Choose units of pooled codes and return their columns, for `saestore.probing.sae_probes.fit_probes`.

    Units are ranked by the plain difference of their mean between the classes of the training samples
    (`saestore.kernels.class_sums`, which says how ties are broken). Training codes are read twice, so that memory is
    that of a block of `pooled_codes`, 64 bytes for each unit of the SAE, and the columns: 165 MB for a million units
    were measured.

    Parameters
    ----------
    codes : Codes
        Of positions. Of a view, its units alone are ranked.
    task : Task
    cell : Cell
        Of the task alone: it trains and tests on its samples.
    how : {"mean", "max"}
    limit : int
        How many units, at most as many as there are.
    max_positions : int
        As for `pooled_codes`.

    Raises
    ------
    InputError
        As for `pooled_codes`; or there are fewer units, or the training samples are of one class.
    HoleError
        Some rows were never written.
    """
    y_train, y_test = cell.train_labels(task.labels), cell.test_labels(task.labels)
    best = _ranked_units(codes, cell.train, y_train, how, limit, max_positions)
    column = np.zeros(codes.d_sae, dtype=np.int64)
    column[best] = np.arange(limit)
    columns = []
    for samples in (cell.train, cell.test):
        x = np.zeros((len(samples), limit), dtype=np.float32)
        order = np.argsort(samples)
        first = 0
        for block in pooled_codes(codes, samples, how, units=best, max_positions=max_positions):
            x[order[first + block.rows], column[block.units]] = block.values
            first += len(block.samples)
        columns.append(x)
    return Design(best, columns[0], y_train, columns[1], y_test)


def _ranked_units(
    codes: Codes, samples: NDArray[np.int64], labels: Labels, how: Pooling, limit: int, max_positions: int
) -> NDArray[np.int64]:
    """Return the units whose means differ most between the classes, the best first."""
    units = codes.kept_units
    if not 1 <= limit <= len(units):
        raise InputError(f"{limit} units of {codes!r} were asked for, which has {len(units)}; give a smaller k")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise InputError(f"labels of training samples are {np.unique(labels).tolist()[:5]}; expected both 0 and 1")
    sums = ClassSums.empty(codes.d_sae)
    ordered = labels[np.argsort(samples)]
    first = 0
    for block in pooled_codes(codes, samples, how, max_positions=max_positions):
        stop = first + len(block.samples)
        sums.add_entries(block.rows, block.units, block.values, ordered[first:stop])
        first = stop
    return units[ranked(sums.scores(normalised=False)[units], limit)]


def concat_probe(
    activations: Activations,
    task: Task,
    cell: Cell,
    *,
    seed: int = SEED,
    memory: str | int | None = None,
    max_positions: int = MAX_POSITIONS,
) -> Scores:
    """Fit logistic regression (L1) to the principal components of each position, side by side; see `concatenated`.

    Parameters
    ----------
    activations : Activations
        Of positions.
    task : Task
    cell : Cell
        Of the task alone: it trains and tests on its samples.
    seed : int
        Of PCA and of the solver.
    memory : str or int, optional
        The most that activations may take, such as `4GiB`.
    max_positions : int
        Positions of a sample from this one on are not used.

    Raises
    ------
    InputError, HoleError, BudgetError
        As for `concatenated`, and `saestore.probing.classifiers.logistic`.
    """
    x_train, x_test = concatenated(activations, cell, seed=seed, memory=memory, max_positions=max_positions)
    y_train, y_test = cell.train_labels(task.labels), cell.test_labels(task.labels)
    return logistic(x_train, y_train, x_test, y_test, penalty="l1", seed=seed)


def concatenated(
    activations: Activations,
    cell: Cell,
    *,
    seed: int = SEED,
    memory: str | int | None = None,
    max_positions: int = MAX_POSITIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first 20 principal components of each position, the columns of one position after the other.

    Of position 1, 2, ... the components are fitted to the training rows. Where a sample has no token that counts there
    its activations are zeros, in fitting too, as the benchmark's padding is. A position that no training sample has is
    skipped. With fewer training samples or a narrower layer there are as many components as these. PCA takes the seed,
    which the benchmark does not give it.

    Positions are gone through in as many bands as memory asks for, each one pass over the activations.

    Parameters
    ----------
    activations : Activations
        Of positions.
    cell : Cell
        It trains and tests on samples of the same dataset.
    seed : int
        Of the randomised solver.
    memory : str or int, optional
        The most that activations, components and the columns may take, such as `4GiB`; default 60 % of the free memory.
    max_positions : int
        Positions from this one on are not used.

    Returns
    -------
    x_train, x_test : (n, columns) float64

    Raises
    ------
    InputError
        Rows are samples and not positions, some are not finite, or no training sample has a position that counts.
    HoleError
        Some rows were never written.
    BudgetError
        One position and the columns exceed the memory.
    DependencyError
        scikit-learn is not installed.
    """
    pca = imported("sklearn.decomposition", "the probe on concatenated positions").PCA
    axis = RowAxis.open(activations.group.storage, activations.key)
    chosen = token_rows(axis, np.concatenate([cell.train, cell.test]), content=True, max_positions=max_positions)
    trains = np.isin(chosen.samples, cell.train)
    sample = np.repeat(np.arange(len(chosen.samples)), chosen.lengths)
    present = np.bincount(chosen.positions[trains[sample]], minlength=max_positions) > 0
    if not present.any():
        raise InputError(f"no training sample of {cell.task!r} has a token besides special ones; give longer samples")
    order = np.argsort(chosen.positions, kind="stable")
    order = order[present[chosen.positions[order]]]
    counts = np.bincount(chosen.positions[order], minlength=max_positions)[present]

    n, d, n_train = len(chosen.samples), activations.d_in, len(cell.train)
    n_components = min(COMPONENTS, n_train, d)
    fixed = n * (len(counts) * n_components * 8 + d * _POSITION_COPIES) + _READ_COPIES * _READ_BYTES
    budget = parse_memory(memory)
    require_memory(
        fixed + int(counts.max()) * d * 4,
        budget=budget,
        what=f"{n_components} components of {len(counts)} positions of {n:,} samples, and one position as it is read",
        remedy="give more memory, or fewer positions",
    )
    place = np.argsort(np.concatenate([cell.train, cell.test]))  # of the ascending samples in the cell, training first
    columns = np.empty((n, len(counts) * n_components))
    ends = np.append(0, np.cumsum(counts))
    edges = cuts(counts * d * 4, budget - fixed).tolist()
    for first, stop in itertools.pairwise(edges):
        band = order[ends[first] : ends[stop]]
        x = _read_in_blocks(activations, chosen, band)
        for number in range(first, stop):
            part = slice(ends[number] - ends[first], ends[number + 1] - ends[first])
            dense = np.zeros((n, d))
            dense[place[sample[band[part]]]] = x[part]
            reduction = pca(n_components=n_components, random_state=seed)
            target = slice(number * n_components, (number + 1) * n_components)
            columns[:n_train, target] = reduction.fit_transform(dense[:n_train])
            columns[n_train:, target] = reduction.transform(dense[n_train:])
    return columns[:n_train], columns[n_train:]


def _read_in_blocks(activations: Activations, chosen: TokenRows, wanted: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read rows in any order, block by block in ascending order: one more copy of all would double the memory."""
    x = np.empty((len(wanted), activations.d_in), dtype=np.float32)
    ascending = np.argsort(wanted)
    step = max(1, _READ_BYTES // (activations.d_in * 4))
    for first in range(0, len(wanted), step):
        places = ascending[first : first + step]
        x[places] = read_finite(activations, chosen.rows[wanted[places]])
    return x
