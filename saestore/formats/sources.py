"""What every reader of this package gives to the lake's writers: rows of activations or of codes, a range at a time."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError


class RowSource(Protocol):
    """Activations in another tool's files.

    n_rows, d_in : shape of the whole
    dtype : ``float16``, ``bfloat16`` or ``float32``
    per_sample : rows of each sample where all samples have the same number of positions, else None
    """

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        ...

    @property
    def d_in(self) -> int:
        """Width of a row."""
        ...

    @property
    def dtype(self) -> str:
        """Type of the numbers, in the field's words."""
        ...

    @property
    def per_sample(self) -> int | None:
        """Rows of each sample."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` (rows, d_in); bfloat16 as its bit pattern in uint16."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what was opened, as JSON: ``format``, ``key``, ``files`` (name, bytes), ``shape``, ``notes``, ..."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CodesSource(Protocol):
    """Sparse codes in another tool's files.

    n_rows, k : shape of the whole
    d_sae : width of the SAE; None when the files do not say and the caller did not
    dtype : of the values: ``float16``, ``bfloat16`` or ``float32``
    """

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        ...

    @property
    def k(self) -> int:
        """Slots of a row."""
        ...

    @property
    def d_sae(self) -> int | None:
        """Units of the SAE."""
        ...

    @property
    def dtype(self) -> str:
        """Type of the numbers, in the field's words."""
        ...

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[np.uint32] | None]:
        """Return (indices, values, l0) of rows ``start`` to ``stop``: (rows, k), (rows, k), (rows,).

        Slots are in the lake's order: magnitude descending, unit ascending, empty slots (value 0, index 0) last.
        bfloat16 values come as their bit pattern in uint16. l0 is None when the files do not say how many units were
        active before the k largest were kept.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what was opened, as JSON: ``format``, ``files`` (name, bytes), ``shape``, ``notes``, ..."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_range(start: int, stop: int, n_rows: int) -> None:
    """Raise InputError unless ``0 <= start <= stop <= n_rows``."""
    if not 0 <= start <= stop <= n_rows:
        raise InputError(f"rows {start}:{stop} were asked for; expected a range within 0:{n_rows}")
