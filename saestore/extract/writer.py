"""Extract activations into a lake: lay out positions, then run the model once over them for all layers.

Samples are run in fixed windows of consecutive samples, sorted by length inside a window. Every batch is a function of
its window alone, so a killed run that goes on computes the same numbers and writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ACTIVATION_DTYPES, ARRAY, Activations, create_activations, shard_rows_for
from saestore.engine.resources import load_once
from saestore.engine.run import run_tasks
from saestore.errors import InputError
from saestore.extract.batches import windows
from saestore.extract.hooks import HookPoint, parse_layers
from saestore.extract.images import ImagePositions
from saestore.extract.tokens import TextPositions
from saestore.layout import POSITION_TYPES, ActivationsKey, ModelKey, check_sample_type
from saestore.rows import RowGroup, group_exists
from saestore.samples import SampleTable
from saestore.storage import Storage, open_storage
from saestore.tables import Positions, Samples, write_positions, write_samples

if TYPE_CHECKING:
    from saestore.extract.forward import ForwardBatch
    from saestore.extract.model import LoadedModel
    from saestore.lake import Lake

PADDED_TOKENS = {"cpu": 2_048, "cuda": 65_536, "mps": 16_384}
_TASKS_PER_CLUSTER = 64


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and in what form: enough for a worker to load it.

    name : its name in the lake
    source : folder or hub id
    """

    name: str
    source: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    max_length: int | None = None


@dataclass(frozen=True)
class ExtractResult:
    """What `extract` did for one dataset.

    groups : the row groups of activations, layer by layer
    positions, samples : length of the position axis, number of samples
    extracted : positions that were run through the model by this call
    truncated : samples cut at the model's longest input
    nonfinite : non-finite values by path of the group, where there are any
    """

    dataset: str
    groups: tuple[ActivationsKey, ...]
    samples: int
    positions: int
    extracted: int
    truncated: int
    nonfinite: Mapping[str, int]


@dataclass(frozen=True)
class ExtractTask:
    """Shards of one dataset to fill in one pass; see `ShardTask`. Holds names and numbers only.

    shards : for each group's path, the shards to write
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

    def run(self, advance: Callable[[int], None]) -> None:
        """Run the windows in order; write each shard when its last row is there."""
        storage = open_storage(self.url, storage_options=self.options)
        loaded = _loaded(self.model)
        positions = _stored_positions(storage, self.key)
        with ThreadPoolExecutor(1) as pool:
            sinks = [
                _Sink(Activations.open(storage, _group_key(self.key, hook.name, name)), self.shards, pool)
                for hook in self.hooks
                for name in self.sample_types
            ]
            for start, stop in self.windows:
                first, last = int(positions.offsets[start]), int(positions.offsets[stop])
                blocks = [sink.block(*((first, last) if sink.by_position else (start, stop))) for sink in sinks]
                for batch in _forward(loaded, positions, np.arange(start, stop), self.hooks, self.sample_types):
                    for sink, block in zip(sinks, blocks, strict=True):
                        sink.place(block, batch)
                for sink, block in zip(sinks, blocks, strict=True):
                    sink.take(first if sink.by_position else start, block)
                advance(last - first)
            for sink in sinks:
                sink.finish()


def extract(
    lake: Lake,
    datasets: Mapping[str, SampleTable],
    *,
    model: ModelSpec,
    layers: Sequence[str | int],
    sample_type: str | Sequence[str] | None = None,
    dtype: str = "float16",
    scheduler: str | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[ExtractResult]:
    """Run a model over datasets and store the activations of several layers from one pass.

    Parameters
    ----------
    lake : Lake
    datasets : mapping of str to SampleTable
        By the name each gets in the lake; `saestore.samples.read_samples` makes tables of lists, frames and files.
    model : ModelSpec
        Any Hugging Face text or vision model.
    layers : sequence of str or int
        Such as `3`, `layer_3.mlp_out`, `module.encoder.layer.3.attention`. A number is the output of that block,
        counted from 0.
    sample_type : str or sequence of str, optional
        `token`, `patch`, `cls`, `mean`, `max`, `last`; default `token` for text and `patch` for images. Pooled kinds
        leave special tokens out.
    dtype : {"float16", "bfloat16", "float32"}
        Stored precision.
    scheduler : str, optional
        Address of a Dask scheduler; default the active client if there is one, else this process.
    dry_run : bool
        Lay out samples and positions, print what would be extracted, and stop.
    quiet : bool
        Show no progress.
    say : callable, optional
        Receives lines for the user.

    Returns
    -------
    list of ExtractResult

    Raises
    ------
    InputError
        A layer, sample type or dtype does not fit, values overflow the dtype, a layer is wholly non-finite, or a
        pooled kind is asked of a text without tokens.
    ConflictError
        The lake holds the dataset with other samples, another tokenizer, or activations made differently.
    """
    say = say or (lambda line: None)
    if dtype not in ACTIVATION_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose from {', '.join(ACTIVATION_DTYPES)}")
    hooks = parse_layers(layers)
    types = (sample_type,) if isinstance(sample_type, str) else tuple(sample_type or ())
    for name in types:
        check_sample_type(name)
    results, tasks = [], []
    for dataset, table in datasets.items():
        wanted = types or (("token",) if table.kind == "text" else ("patch",))
        job = _Job(lake.storage, dataset, table, model, hooks, wanted, dtype, say)
        missing = job.missing()
        todo = 0
        if missing is not None:
            parts = job.tasks(missing, split=scheduler is not None)
            todo = sum(task.size for task in parts)
            tasks += parts
        results.append((job, todo))
    if not dry_run:
        run_tasks(tasks, label="extract", unit="positions", threads=1, scheduler=scheduler, quiet=quiet)
    return [job.result(todo) for job, todo in results]


class _Job:
    """One dataset's part of an extraction."""

    def __init__(
        self,
        storage: Storage,
        dataset: str,
        table: SampleTable,
        model: ModelSpec,
        hooks: tuple[HookPoint, ...],
        sample_types: tuple[str, ...],
        dtype: str,
        say: Callable[[str], None],
    ) -> None:
        self.storage = storage
        self.key = ModelKey(dataset, model.name)
        self.model = model
        self.hooks = hooks
        self.sample_types = sample_types
        self.dtype = dtype
        self.say = say
        self.groups = tuple(
            ActivationsKey(dataset, model.name, hook.name, name) for hook in hooks for name in sample_types
        )
        self.samples = write_samples(storage, dataset, table)

    def missing(self) -> dict[str, list[int]] | None:
        """Return the shards to write by group, or None when all is there; then no model is loaded."""
        if self._all_done():
            return None
        positions = self._lay_out()
        groups = self._create(positions)
        return {group.path: group.missing_shards() for group in groups}

    def tasks(self, missing: Mapping[str, list[int]], *, split: bool) -> list[ExtractTask]:
        """Cut the missing shards into tasks: one on this machine, several for a cluster."""
        positions = Positions.open(self.storage, self.key)
        cuts = windows(np.diff(positions.offsets))
        grids = {path: RowGroup.open(self.storage, path).grid for path in missing}
        ranges = {
            path: {shard: self._samples_of(path, grids[path].shard(shard), positions) for shard in shards}
            for path, shards in missing.items()
        }
        finest = max(ranges, key=lambda path: len(ranges[path]))
        borders = [first for first, _ in ranges[finest].values()][:: max(1, len(ranges[finest]) // _TASKS_PER_CLUSTER)]
        starts = borders if split else borders[:1]
        tasks = []
        for number, start in enumerate(starts):
            low = 0 if number == 0 else start
            high = starts[number + 1] if number + 1 < len(starts) else len(self.samples)
            mine = {
                path: tuple(shard for shard, (first, _) in shards.items() if low <= first < high)
                for path, shards in ranges.items()
            }
            spans = [ranges[path][shard] for path, shards in mine.items() for shard in shards]
            needed = tuple(cut for cut in cuts if any(cut[0] < last and cut[1] > first for first, last in spans))
            if needed:
                size = sum(int(positions.offsets[b] - positions.offsets[a]) for a, b in needed)
                tasks.append(
                    ExtractTask(
                        url=self.storage.url,
                        options=dict(self.storage.options),
                        model=self.model,
                        key=self.key,
                        hooks=self.hooks,
                        sample_types=self.sample_types,
                        shards=mine,
                        windows=needed,
                        size=size,
                    )
                )
        return tasks

    def result(self, extracted: int) -> ExtractResult:
        """Return what is stored now."""
        positions = Positions.open(self.storage, self.key)
        counts = {key.path: Activations.open(self.storage, key).group.flagged(ARRAY) for key in self.groups}
        for path, count in counts.items():
            if count:
                self.say(f"{path}: {count:,} values are not finite; encode refuses such rows")
        return ExtractResult(
            dataset=self.key.dataset,
            groups=self.groups,
            samples=len(self.samples),
            positions=len(positions),
            extracted=extracted,
            truncated=int(positions.group.attributes.get("truncated", 0)),
            nonfinite={path: count for path, count in counts.items() if count},
        )

    def _all_done(self) -> bool:
        """Whether everything asked for is stored, as far as can be told without loading the model."""
        if not all(group_exists(self.storage, key.path) for key in self.groups):
            return False
        stored = Positions.open(self.storage, self.key).group
        if stored.attributes["samples"] != self.samples.digest or not stored.is_complete:
            return False
        asked = {"source_revision": _revision(self.model), "max_length": self.model.max_length}
        if any(stored.attributes[name] != value for name, value in asked.items()):
            return False
        groups = [RowGroup.open(self.storage, key.path) for key in self.groups]
        wanted = {
            "dtype": self.dtype,
            "model_dtype": self.model.dtype,
            "positions": stored.attributes["identity"]["digest"],
        }
        return all(
            group.is_complete and all(group.attributes["identity"][name] == value for name, value in wanted.items())
            for group in groups
        )

    def _lay_out(self) -> Positions:
        """Tokenise texts, or lay out patches, and store the position axis."""
        loaded = _loaded(self.model)
        if loaded.kind != self.samples.kind:
            raise InputError(
                f"dataset {self.key.dataset!r} holds {self.samples.kind}s and {loaded.model_id} is a model of "
                f"{loaded.kind}s; choose another model"
            )
        contents = self.samples.contents()
        positions: TextPositions | ImagePositions
        arrays: dict[str, NDArray[Any]]
        if loaded.kind == "text":
            from saestore.extract.tokens import positions_digest, texts_digest, tokenize, tokenizer_digest

            assert loaded.max_length is not None
            positions = tokenize(loaded.tokenizer, list(contents), max_length=loaded.max_length)
            digest = positions_digest(
                positions, tokenizer=tokenizer_digest(loaded.tokenizer), texts=texts_digest(contents)
            )
            arrays = {
                "special": positions.special,
                "token_id": positions.token_id.astype(np.uint32),
                "char_start": positions.char_start,
                "char_end": positions.char_end,
            }
            about: dict[str, Any] = {
                "tokenizer": type(loaded.tokenizer).__name__,
                "model_max_length": loaded.max_length,
                "truncated": positions.n_truncated,
            }
            if positions.n_truncated:
                self.say(
                    f"{self.key.dataset}: {positions.n_truncated:,} of {len(contents):,} texts have more than "
                    f"{loaded.max_length} tokens and were cut there"
                )
            self._check_pooled(positions)
        else:
            from saestore.extract.images import image_positions

            assert loaded.patch_size is not None
            positions = image_positions(list(contents), loaded.image_processor, patch_size=loaded.patch_size)
            processor = json.dumps(loaded.image_processor.to_dict(), sort_keys=True, default=str)
            hashed = hashlib.sha256(f"image positions 1\n{processor}\n{self.samples.digest}\n".encode())
            hashed.update(positions.boxes.astype("<f4").tobytes())
            digest = hashed.hexdigest()
            arrays = {"special": np.zeros(len(positions.boxes), dtype=bool), "box": positions.boxes}
            about = {
                "image_processor": type(loaded.image_processor).__name__,
                "patch_rows": positions.rows,
                "patch_columns": positions.columns,
            }
        return write_positions(
            self.storage,
            self.key,
            offsets=positions.offsets,
            arrays=arrays,
            digest=digest,
            attributes={
                **about,
                "samples": self.samples.digest,
                "content": loaded.kind,
                "model_id": loaded.model_id if not Path(loaded.model_id).is_dir() else self.model.name,
                "revision": loaded.revision,
                "source_revision": _revision(self.model),
                "max_length": self.model.max_length,
                "provenance": provenance.stamp(),
            },
        )

    def _create(self, positions: Positions) -> list[RowGroup]:
        from saestore.extract.forward import widths
        from saestore.extract.hooks import resolve

        loaded = _loaded(self.model)
        d_in = widths(loaded, self.hooks)
        groups = []
        for hook in resolve(loaded.model, self.hooks):
            token_shard = shard_rows_for(d_in[hook.name], self.dtype)
            # Pooled shards cover about the samples of a token shard, so that both are done at the same time.
            per_sample = max(1.0, len(positions) / len(self.samples))
            for name in self.sample_types:
                by_position = name in POSITION_TYPES
                created = create_activations(
                    self.storage,
                    _group_key(self.key, hook.name, name),
                    rows=len(positions) if by_position else len(self.samples),
                    d_in=d_in[hook.name],
                    dtype=self.dtype,
                    shard_rows=token_shard if by_position else max(64, int(token_shard / per_sample)),
                    identity={
                        "positions": positions.digest,
                        "model": loaded.revision,
                        "model_dtype": self.model.dtype,
                        "module": hook.module_path,
                        "reads_input": hook.reads_input,
                    },
                    attributes={"saelens_hook_name": hook.saelens_hook_name, "provenance": provenance.stamp()},
                )
                groups.append(created.group)
        return groups

    def _check_pooled(self, positions: TextPositions) -> None:
        """Refuse pooled kinds of samples that have nothing to pool."""
        pooled = [name for name in self.sample_types if name in ("mean", "max", "last")]
        if not pooled:
            return
        used = np.concatenate([[0], np.cumsum(~positions.special)])
        empty = np.flatnonzero(used[positions.offsets[1:]] == used[positions.offsets[:-1]])
        if empty.size:
            raise InputError(
                f"sample {self.samples.ids[empty[0]]!r} of {self.key.dataset} has no token besides special ones "
                f"({empty.size} such samples), so {', '.join(pooled)} is undefined; remove empty texts, or leave "
                "pooled sample types out"
            )

    def _samples_of(self, path: str, rows: slice, positions: Positions) -> tuple[int, int]:
        """Return the range of samples that a shard's rows belong to."""
        if path.rsplit("/", 1)[1] not in POSITION_TYPES:
            return rows.start, rows.stop
        first, last = positions.sample_of(np.array([rows.start, rows.stop - 1]))
        return int(first), int(last) + 1


class _Sink:
    """Collects the rows of one group, in ascending order, and writes each shard when it is full."""

    def __init__(
        self, activations: Activations, shards: Mapping[str, tuple[int, ...]], pool: ThreadPoolExecutor
    ) -> None:
        self.group = activations.group
        self.layer, self.sample_type = activations.key.layer, activations.key.sample_type
        self.by_position = self.sample_type in POSITION_TYPES
        self._dtype, self._d_in = activations.dtype, activations.d_in
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
        if nonfinite == rows.size:
            raise InputError(
                f"{self.group.path}: all values of rows from {self.group.grid.shard(shard).start} on are not finite; "
                "run the model in float32 or bfloat16, or choose another layer"
            )
        self.group.write_shard(shard, {ARRAY: rows}, flagged={ARRAY: nonfinite})


def _count_nonfinite(stored: NDArray[Any]) -> int:
    if stored.dtype == np.uint16:  # bfloat16: all exponent bits set
        return int(np.count_nonzero((stored & 0x7F80) == 0x7F80))
    return int(stored.size - np.count_nonzero(np.isfinite(stored)))


def _forward(
    loaded: LoadedModel,
    positions: TextPositions | ImagePositions,
    samples: NDArray[np.int64],
    hooks: Sequence[HookPoint],
    sample_types: Sequence[str],
) -> Iterator[ForwardBatch]:
    from saestore.extract.forward import forward_batches

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
    stored = Positions.open(storage, key)
    if stored.group.attributes["content"] == "image":
        paths = Samples.open(storage, key.dataset).contents()
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


def _group_key(key: ModelKey, layer: str, sample_type: str) -> ActivationsKey:
    return ActivationsKey(key.dataset, key.model, layer, sample_type)


def _loaded(spec: ModelSpec) -> LoadedModel:
    from saestore.extract.model import load_model

    return load_once(
        ("model", spec),
        lambda: load_model(
            spec.source, revision=spec.revision, dtype=spec.dtype, device=spec.device, max_length=spec.max_length
        ),
    )


def _revision(spec: ModelSpec) -> str:
    """Return what identifies the model's source without loading it."""
    from saestore.extract.model import fingerprint

    folder = Path(spec.source)
    return fingerprint(folder) if folder.is_dir() else f"{spec.source}@{spec.revision or 'default'}"


__all__ = ["ExtractResult", "ExtractTask", "ModelSpec", "extract"]
