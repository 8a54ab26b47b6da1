"""The row axis of activations and codes: what its rows are, positions of samples or the samples themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.layout import POSITION_TYPES, ActivationsKey
from saestore.parts import parts_of
from saestore.storage import Storage
from saestore.tables import Positions, Samples

# Flags of special tokens of so many rows are kept in memory, one byte each; of longer axes they are read when needed.
_KEPT_FLAGS = 1 << 27


@dataclass(frozen=True)
class RowAxis:
    """The rows of one model over one dataset.

    positions : None for pooled sample types, whose rows are the samples
    """

    samples: Samples
    positions: Positions | None

    @classmethod
    def open(cls, storage: Storage, key: ActivationsKey, *, parts: int | None = None) -> RowAxis:
        """Open the axis that activations, and the codes made from them, lie on.

        Parameters
        ----------
        parts : int, optional
            How many parts of the dataset; default all that are on the axis.

        Raises
        ------
        MissingError
            There is no such dataset, or no position axis.
        """
        if key.sample_type not in POSITION_TYPES:
            return cls(Samples.open(storage, key.dataset, parts=parts), None)
        positions = Positions.open(storage, key.model_key, parts=parts)
        # Samples that were appended may be without positions yet.
        return cls(Samples.open(storage, key.dataset, parts=len(parts_of(positions.group))), positions)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.samples) if self.positions is None else len(self.positions)

    @property
    def digest(self) -> str:
        """What the rows are: axes with the same digest have the same rows."""
        return self.samples.digest if self.positions is None else self.positions.digest

    def sample_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of the sample that each row belongs to."""
        return np.asarray(rows, dtype=np.int64) if self.positions is None else self.positions.sample_of(rows)

    def place_in_sample(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of each row in its sample, counted from 0."""
        if self.positions is None:
            return np.zeros(len(rows), dtype=np.int64)
        return np.asarray(rows, dtype=np.int64) - self.positions.offsets[self.positions.sample_of(rows)]

    def rows_of(self, samples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return all rows of chosen samples, special tokens included."""
        return np.asarray(samples, dtype=np.int64) if self.positions is None else self.positions.rows_of(samples)

    def special(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return which of some rows are special tokens; analyses leave them out."""
        if self.positions is None:
            return np.zeros(len(rows), dtype=bool)
        if self.n_rows <= _KEPT_FLAGS:
            flags: NDArray[np.bool_] = self._special[rows]
            return flags
        return self.positions.group.take("special", rows)

    @cached_property
    def _special(self) -> NDArray[np.bool_]:
        assert self.positions is not None
        return self.positions.special()
