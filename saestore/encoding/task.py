"""One shard of codes: read its rows block by block, encode them, write the shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saestore.activations import Activations
from saestore.codes import Codes, index_dtype
from saestore.engine.resources import device_lock, load_once
from saestore.errors import InputError
from saestore.layout import CodesKey
from saestore.prefetch import prefetch
from saestore.saes.lake import open_lake_sae
from saestore.storage import Storage, open_storage

if TYPE_CHECKING:
    from saestore.encoding.encoder import Encoder

ENCODER = "encoder"
"""The kind under which a process keeps its loaded SAE; see `saestore.engine.resources`."""


@dataclass(frozen=True)
class EncodeTask:
    """One shard of codes; see `ShardTask`. Holds names and numbers only."""

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: CodesKey
    shard: int
    first: int
    stop: int
    device: str
    held: bool
    block_rows: int

    @property
    def size(self) -> int:
        """Rows of the shard."""
        return self.stop - self.first

    def run(self, advance: Callable[[int], None]) -> None:
        """Encode the shard's rows block by block, and write it."""
        from saestore.kernels.quantize import quantize

        storage = open_storage(self.url, storage_options=self.options)
        codes = Codes.open(storage, self.key)
        activations = Activations.open(storage, self.key.activations)
        encoder = load_encoder(storage, self.key.sae, self.device, held=self.held)
        group, dtype = codes.group, str(codes.group.attributes["dtype"])
        arrays = {
            "indices": np.empty((self.size, codes.k), dtype=index_dtype(codes.d_sae)),
            "values": np.empty((self.size, codes.k), dtype=stored_dtype(dtype)),
            "l0": np.empty(self.size, dtype=np.uint32),
        }
        starts = range(self.first, self.stop, self.block_rows)
        blocks = [(start, min(start + self.block_rows, self.stop)) for start in starts]
        for (start, stop), x in prefetch(lambda block: activations.read(*block), blocks):
            try:
                with device_lock(self.device):
                    found = encoder.encode(x, codes.k)
                stored = quantize(found, dtype=dtype, d_sae=codes.d_sae)  # type: ignore[arg-type]
            except InputError as error:
                raise InputError(f"rows {start} to {stop - 1} of {activations.key.path}: {error}") from error
            part = slice(start - self.first, stop - self.first)
            arrays["indices"][part], arrays["values"][part], arrays["l0"][part] = (
                stored.indices,
                stored.values,
                stored.l0,
            )
            advance(stop - start)
        truncated = int(np.count_nonzero(arrays["l0"] > codes.k))
        group.write_shard(self.shard, arrays, flagged={"l0": truncated})


def load_encoder(storage: Storage, sae: str, device: str, *, held: bool) -> Encoder:
    """Return this process's encoder of an SAE, loading it if it is not the one in memory."""
    from saestore.encoding.encoder import Encoder

    weights = open_lake_sae(storage, sae)
    key = (ENCODER, storage.url, sae, weights.content_hash(), device, held)
    return load_once(key, lambda: Encoder(weights, device=device, hold=held))


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype of the stored array: bfloat16 is kept as its uint16 bit pattern."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
