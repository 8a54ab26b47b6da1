"""One stretch of rows through one SAE or several: read block by block, encode each block with all, write the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.code_rows import index_dtype
from saestore.engine.resources import device_lock, load_once
from saestore.errors import InputError
from saestore.layout import ActivationsKey, CodesKey
from saestore.prefetch import prefetch
from saestore.rows import RowGroup
from saestore.saes.lake import open_lake_sae
from saestore.storage import Storage, open_storage
from saestore.tables import Positions

if TYPE_CHECKING:
    from saestore.encoding.encoder import Encoded, Encoder
    from saestore.kernels.encode import Precision

ENCODER = "encoder"
"""The kind under which a process keeps its loaded SAEs; see `saestore.engine.resources`."""


@dataclass(frozen=True)
class Loading:
    """How SAEs are loaded and rows are cut into blocks, alike for all tasks of a pass.

    held : whether encoder matrices stay in memory
    at_once : SAEs that are loaded together
    """

    device: str
    precision: Precision
    held: bool
    at_once: int
    block_rows: int


@dataclass(frozen=True)
class EncodeTask:
    """A stretch of the rows of one group of activations; see `ShardTask`. Holds names and numbers only.

    first, stop : the rows, whole shards of every SAE's codes
    shards : for each SAE the shards to write
    """

    url: str
    options: Mapping[str, Any] = field(hash=False)
    source: ActivationsKey
    first: int
    stop: int
    shards: Mapping[str, tuple[int, ...]] = field(hash=False)
    size: int
    loading: Loading

    def run(self, advance: Callable[[int], None]) -> None:
        """Encode the rows block by block, and write each shard when it is whole."""
        storage = open_storage(self.url, storage_options=self.options)
        activations = Activations.open_part(storage, self.source)
        writers = [_ShardWriter(storage, self, sae, shards) for sae, shards in self.shards.items()]
        blocks = [block for block in self._blocks(writers) if any(writer.wants(block[0]) for writer in writers)]
        for (start, stop), x in prefetch(lambda block: activations.read(*block), blocks):
            for writer in writers:
                if writer.wants(start):
                    try:
                        writer.encode(x, start, stop, advance)
                    except InputError as error:
                        where = f"rows {start} to {stop - 1} of {activations.key.path} with {writer.sae}"
                        raise InputError(f"{where}: {error}") from error

    def _blocks(self, writers: Sequence[_ShardWriter]) -> Iterator[tuple[int, int]]:
        """Cut the rows where a shard ends, and into blocks."""
        ends = {min(stop, self.stop) for writer in writers for stop in writer.shard_ends(self.first, self.stop)}
        start = self.first
        for end in sorted(ends):
            for first in range(start, end, self.loading.block_rows):
                yield first, min(first + self.loading.block_rows, end)
            start = end


class _ShardWriter:
    """Fills the shards of one SAE's codes block by block, and writes each when its last block is in."""

    def __init__(self, storage: Storage, task: EncodeTask, sae: str, shards: tuple[int, ...]) -> None:
        self.sae = sae
        self._group = RowGroup.open(storage, CodesKey.of(task.source, sae).path)
        self._grid = self._group.grid
        self._k, self._d_sae = int(self._group.attributes["k"]), int(self._group.attributes["d_sae"])
        self._dtype = str(self._group.attributes["dtype"])
        self._shards = set(shards)
        content_hash = str(self._group.attributes["identity"]["sae"])
        self._rows = BlockEncoder(storage, task.source, sae, content_hash, task.loading)
        self._arrays: dict[str, NDArray[Any]] = {}

    def wants(self, row: int) -> bool:
        """Whether the shard of a row is to be written."""
        return row // self._grid.shard_rows in self._shards

    def shard_ends(self, start: int, stop: int) -> list[int]:
        """Return where the shards of rows end."""
        return [self._grid.shard(shard).stop for shard in self._grid.shards(start, stop)]

    def encode(self, x: NDArray[np.float32], start: int, stop: int, advance: Callable[[int], None]) -> None:
        """Encode a block of rows, and write its shard if the block is the shard's last."""
        from saestore.kernels.quantize import quantize

        shard = start // self._grid.shard_rows
        rows = self._grid.shard(shard)
        if start == rows.start:
            self._arrays = {
                name: np.empty((rows.stop - rows.start, *tail), dtype) for name, (tail, dtype) in self._layout().items()
            }
        encoded = self._rows.encode(x, start, stop, self._k, advance)
        stored = quantize(encoded.codes, dtype=self._dtype, d_sae=self._d_sae)  # type: ignore[arg-type]
        parts = {"indices": stored.indices, "values": stored.values, "l0": stored.l0}
        for name, array in self._arrays.items():
            array[start - rows.start : stop - rows.start] = parts[name] if name in parts else getattr(encoded, name)
        if stop == rows.stop:
            truncated = int(np.count_nonzero(self._arrays["l0"] > self._k))
            self._group.write_shard(shard, self._arrays, flagged={"l0": truncated})
            self._arrays = {}

    def _layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return the arrays of the group: the shape of a row, and the dtype."""
        layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "indices": ((self._k,), index_dtype(self._d_sae)),
            "values": ((self._k,), stored_dtype(self._dtype)),
            "l0": ((), np.dtype(np.uint32)),
        }
        states = [name for name in self._group.array_names if name not in layout]
        return layout | {name: ((), np.dtype(np.float32)) for name in states}


class BlockEncoder:
    """Encodes blocks of the rows of one group of activations with one SAE.

    Where the SAE reads samples as sequences, the rows of a block's first sample that come before the block are read
    too.
    """

    def __init__(self, storage: Storage, source: ActivationsKey, sae: str, content_hash: str, loading: Loading) -> None:
        self._device = loading.device
        self.encoder = load_encoder(storage, sae, content_hash, loading)
        self._offsets: NDArray[np.int64] | None = None
        if self.encoder.config.reads_sequences:
            self._offsets = Positions.open_part(storage, source.model_key).offsets
            self._activations = Activations.open_part(storage, source)

    def encode(
        self,
        x: NDArray[np.float32],
        start: int,
        stop: int,
        k: int,
        advance: Callable[[int], None] | None = None,
    ) -> Encoded:
        """Return the codes of the rows `start:stop`, which x holds; `advance` counts them as units are multiplied."""
        offsets, before = None, 0
        units = rows = 0

        def tick(count: int) -> None:
            nonlocal units, rows
            if advance is not None:
                units += count
                done = (stop - start) * units // self.encoder.config.d_sae
                advance(done - rows)
                rows = done

        if self._offsets is not None:
            samples = slice(*np.searchsorted(self._offsets, [start, stop], side="right"))
            first = int(self._offsets[samples.start - 1])
            before = start - first
            if before:
                x = np.concatenate([self._activations.read(first, start), x])
            offsets = np.unique(np.concatenate([[first], self._offsets[samples], [stop]])) - first
        with device_lock(self._device):
            encoded = self.encoder.encode(x, k, offsets=offsets, tick=tick)
        if advance is not None:
            advance(stop - start - rows)
        return encoded.part(slice(before, None), k) if before else encoded


def load_encoder(storage: Storage, sae: str, content_hash: str, loading: Loading) -> Encoder:
    """Return this process's encoder of an SAE, loading it if it is not among those in memory."""
    from saestore.encoding.encoder import Encoder

    key = (ENCODER, storage.url, sae, content_hash, loading.device, loading.precision, loading.held)
    return load_once(
        key,
        lambda: Encoder(
            open_lake_sae(storage, sae), device=loading.device, hold=loading.held, precision=loading.precision
        ),
        keep=loading.at_once,
    )


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype of the stored array: bfloat16 is kept as its uint16 bit pattern."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
