"""Dense matrices as PyTorch files, written block by block."""

from __future__ import annotations

from pathlib import Path

from saestore.formats.dense_source import DenseBlocks
from saestore.formats.torch_files import StoredTensor, write_tensor

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}


def write_pt(path: Path, blocks: DenseBlocks) -> None:
    """Write a file that `torch.load(weights_only=True)` reads as one (n, m) tensor."""
    source = blocks.source
    matrix = (values for _, values in blocks)
    shape = (source.rows, len(source.units))
    write_tensor(path, StoredTensor(_STORAGES[source.dtype.name], shape, source.rows * source.row_bytes, matrix))
