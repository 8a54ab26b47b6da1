"""What codes cost on disk, measured now: against the legacy `.pt` layout and against dense float32.

References
----------
The legacy layout is that of BrachioLab/SuperActivators, scripts/pretrained_saes/compute_activations_sae_sparse.py:
`torch.save` of int64 indices and float32 values, (n, k) each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saestore.codes import Codes
from saestore.errors import DependencyError
from saestore.lake import Lake

_LEGACY_ROWS = 20_000
_DENSE_BYTES = 64 << 20


@dataclass(frozen=True)
class StorageCost:
    """Bytes per row of one codes group, and of the same rows in other layouts.

    measured_rows : rows that were saved as `.pt` to measure
    """

    path: str
    rows: int
    k: int
    d_sae: int
    bytes_per_row: float
    legacy_pt_bytes_per_row: float
    dense_pt_bytes_per_row: float
    measured_rows: int

    @property
    def versus_legacy(self) -> float:
        """Legacy bytes per stored byte."""
        return self.legacy_pt_bytes_per_row / self.bytes_per_row

    @property
    def versus_dense(self) -> float:
        """Dense bytes per stored byte."""
        return self.dense_pt_bytes_per_row / self.bytes_per_row


def storage_costs(lake: Lake) -> Iterator[StorageCost]:
    """Measure every complete codes group of a lake.

    Raises
    ------
    DependencyError
        torch, which writes the `.pt` files to compare with, is not installed.
    """
    try:
        import torch
    except ImportError:
        raise DependencyError("--storage writes .pt files to compare with: pip install 'saestore[torch]'") from None
    for key in lake.code_keys():
        codes = Codes.open(lake.storage, key)
        if not codes.group.is_complete:
            continue
        rows = min(codes.n_rows, _LEGACY_ROWS)
        block = codes.rows(slice(0, rows))
        legacy = {
            "indices": torch.from_numpy(block.indices.astype(np.int64)),
            "values": torch.from_numpy(block.values.astype(np.float32)),
            "format": "sparse_topk",
            "topk": codes.k,
        }
        dense_rows = max(1, min(rows, _DENSE_BYTES // (4 * codes.d_sae)))
        dense = torch.from_numpy(codes.dense(slice(0, dense_rows)))
        yield StorageCost(
            path=key.path,
            rows=codes.n_rows,
            k=codes.k,
            d_sae=codes.d_sae,
            bytes_per_row=codes.group.stored_bytes() / codes.n_rows,
            legacy_pt_bytes_per_row=_saved_bytes(legacy) / rows,
            dense_pt_bytes_per_row=_saved_bytes(dense) / dense_rows,
            measured_rows=rows,
        )


def _saved_bytes(content: Any) -> int:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.pt"
        torch.save(content, path)
        return path.stat().st_size
