"""One part of an extraction: run the model over windows of samples, and write the shards that they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import ARRAY
from saestore.engine.resources import load_once, release
from saestore.errors import ConflictError, InputError
from saestore.extraction.hooks import HookPoint
from saestore.extraction.images import ImagePositions
from saestore.extraction.tokens import TextPositions, TruncationSide
from saestore.layout import POSITION_TYPES, ActivationsKey, ModelKey
from saestore.rows import RowGroup
from saestore.storage import Storage, open_storage
from saestore.tables import Positions, Samples

if TYPE_CHECKING:
    from saestore.extraction.forward import ForwardBatch
    from saestore.extraction.model import LoadedModel

MODEL = "model"
"""The kind under which a process keeps its loaded model; see `saestore.engine.resources`."""

PADDED_TOKENS = {"cpu": 2_048, "cuda": 65_536, "mps": 16_384}


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and in what form: enough for a worker to load it.

    name : its name in the lake
    source : folder or hub id
    truncation_side : which end of texts that are too long is cut off
    """

    name: str
    source: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    max_length: int | None = None
    truncation_side: TruncationSide = "right"


@dataclass(frozen=True)
class ExtractTask:
    """Shards of one dataset to fill in one pass; see `ShardTask`. Holds names and numbers only.

    shards : for each group's path, the shards to write
    revision : what the model's weights were when the work was planned
    """

    url: str
    options: Mapping[str, Any] = field(hash=False)
    model: ModelSpec
    key: ModelKey
    hooks: tuple[HookPoint, ...]
    sample_types: tuple[str, ...]
    shards: Mapping[str, tuple[int, ...]] = field(hash=False)
    windows: tuple[tuple[int, int], ...]
    size: int
    revision: str

    def run(self, advance: Callable[[int], None]) -> None:
        """Run the windows in order; write each shard when its last row is there."""
        storage = open_storage(self.url, storage_options=self.options)
        loaded = loaded_model(self.model, self.revision)
        positions = _stored_positions(storage, self.key)
        with ThreadPoolExecutor(1) as pool:
            sinks = [
                _Sink(storage, group_key(self.key, hook.name, name), self.shards, pool)
                for hook in self.hooks
                for name in self.sample_types
            ]
            for start, stop in self.windows:
                first, last = int(positions.offsets[start]), int(positions.offsets[stop])
                blocks = [sink.block(*((first, last) if sink.by_position else (start, stop))) for sink in sinks]
                for batch in forward(loaded, positions, np.arange(start, stop), self.hooks, self.sample_types):
                    for sink, block in zip(sinks, blocks, strict=True):
                        sink.place(block, batch)
                for sink, block in zip(sinks, blocks, strict=True):
                    sink.take(first if sink.by_position else start, block)
                advance(last - first)
            for sink in sinks:
                sink.finish()


class _Sink:
    """Collects the rows of one group, in ascending order, and writes each shard when it is full."""

    def __init__(
        self, storage: Storage, key: ActivationsKey, shards: Mapping[str, tuple[int, ...]], pool: ThreadPoolExecutor
    ) -> None:
        self.group = RowGroup.open(storage, key.path)
        self.layer, self.sample_type = key.layer, key.sample_type
        self.by_position = self.sample_type in POSITION_TYPES
        self._dtype, self._d_in = str(self.group.attributes["dtype"]), int(self.group.attributes["d_in"])
        self._wanted = set(shards[self.group.path])
        self._open: dict[int, NDArray[Any]] = {}
        self._pool = pool
        self._writing: list[Future[None]] = []

    def block(self, first: int, last: int) -> NDArray[Any] | None:
        """Return an array for rows `first:last`, or None when no wanted shard holds any of them."""
        if self._wanted.isdisjoint(self.group.grid.shards(first, last)):
            return None
        self._first = first
        stored = np.uint16 if self._dtype == "bfloat16" else self._dtype
        return np.zeros((last - first, self._d_in), dtype=stored)

    def place(self, block: NDArray[Any] | None, batch: ForwardBatch) -> None:
        """Put a batch's rows where they belong."""
        if block is None:
            return
        from saestore.kernels.finite import to_storage_dtype

        rows = batch.rows if self.by_position else batch.samples
        try:
            block[rows - self._first] = to_storage_dtype(batch.hidden[self.layer][self.sample_type], self._dtype)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"{self.group.path}: {error}") from error

    def take(self, first: int, block: NDArray[Any] | None) -> None:
        """Distribute a finished window's rows over shards, and write those that are full."""
        if block is None:
            return
        last = first + len(block)
        for shard in self.group.grid.shards(first, last):
            if shard not in self._wanted:
                continue
            rows = self.group.grid.shard(shard)
            buffer = self._open.get(shard)
            if buffer is None:
                buffer = self._open[shard] = np.empty((rows.stop - rows.start, self._d_in), dtype=block.dtype)
            low, high = max(first, rows.start), min(last, rows.stop)
            buffer[low - rows.start : high - rows.start] = block[low - first : high - first]
            if high == rows.stop:
                self._submit(shard, self._open.pop(shard))

    def finish(self) -> None:
        """Wait for the writes and raise what went wrong."""
        assert not self._open, f"{self.group.path}: shards {sorted(self._open)} were not filled"
        for future in self._writing:
            future.result()

    def _submit(self, shard: int, rows: NDArray[Any]) -> None:
        # One write at a time behind the model: a second full shard waits here, which bounds the memory.
        while len(self._writing) > 1:
            self._writing.pop(0).result()
        self._writing.append(self._pool.submit(self._write, shard, rows))

    def _write(self, shard: int, rows: NDArray[Any]) -> None:
        nonfinite = _count_nonfinite(rows)
        if nonfinite == rows.size and self.group.flagged(ARRAY) == self.group.written_rows() * self._d_in:
            raise InputError(
                f"{self.group.path}: no value up to row {self.group.grid.shard(shard).stop - 1} is finite; "
                "run the model in float32 or bfloat16, or choose another layer"
            )
        self.group.write_shard(shard, {ARRAY: rows}, flagged={ARRAY: nonfinite})


def _count_nonfinite(stored: NDArray[Any]) -> int:
    if stored.dtype == np.uint16:  # bfloat16: all exponent bits set
        return int(np.count_nonzero((stored & 0x7F80) == 0x7F80))
    return int(stored.size - np.count_nonzero(np.isfinite(stored)))


def forward(
    loaded: LoadedModel,
    positions: TextPositions | ImagePositions,
    samples: NDArray[np.int64],
    hooks: Sequence[HookPoint],
    sample_types: Sequence[str],
) -> Iterator[ForwardBatch]:
    """Run the model over samples; the call itself checks that layers, sample types and samples fit the model."""
    from saestore.extraction.forward import forward_batches

    kind = loaded.device.split(":")[0]
    return forward_batches(
        loaded,
        positions,
        samples,
        hooks,
        sample_types=sample_types,  # type: ignore[arg-type]
        padded_tokens=PADDED_TOKENS[kind],
    )


def _stored_positions(storage: Storage, key: ModelKey) -> TextPositions | ImagePositions:
    """Read the position axis back from the lake, so that a task needs no tokenizer."""
    stored = Positions.open_part(storage, key)
    if stored.group.attributes["content"] == "image":
        paths = Samples.open_part(storage, key.dataset, key.part).contents()
        return ImagePositions(
            paths=tuple(Path(path) for path in paths),
            offsets=stored.offsets,
            boxes=stored.group.read("box"),
            rows=int(stored.group.attributes["patch_rows"]),
            columns=int(stored.group.attributes["patch_columns"]),
        )
    return TextPositions(
        offsets=stored.offsets,
        token_id=stored.group.read("token_id").astype(np.int32),
        char_start=stored.group.read("char_start"),
        char_end=stored.group.read("char_end"),
        special=stored.special(),
        truncated=np.zeros(len(stored.offsets) - 1, dtype=bool),
    )


def group_key(key: ModelKey, layer: str, sample_type: str) -> ActivationsKey:
    """Return the key of one layer and sample type of a model over a dataset."""
    return ActivationsKey(key.dataset, key.model, layer, sample_type, key.part)


def loaded_model(spec: ModelSpec, revision: str | None = None) -> LoadedModel:
    """Return this process's model, loading it if it is not the one in memory.

    Parameters
    ----------
    revision : str, optional
        What its weights have to be. A process of a cluster may have loaded it before its folder or branch changed.

    Raises
    ------
    ConflictError
        They are others.
    """
    from saestore.extraction.model import load_model

    def load() -> LoadedModel:
        return load_once(
            (MODEL, spec),
            lambda: load_model(
                spec.source, revision=spec.revision, dtype=spec.dtype, device=spec.device, max_length=spec.max_length
            ),
        )

    loaded = load()
    if revision not in (None, loaded.revision):
        release(MODEL)
        loaded = load()
        if revision != loaded.revision:
            raise ConflictError(
                f"the model {spec.source} has changed since the work was planned, or is another on this worker; run "
                "the command again"
            )
    return loaded
