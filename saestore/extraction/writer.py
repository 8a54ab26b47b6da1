"""Extract activations into a lake: lay out positions, then run the model once over them for all layers.

Samples are run in fixed windows of consecutive samples, sorted by length inside a window. Every batch is a function of
its window alone, so a killed run that goes on computes the same numbers and writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ACTIVATION_DTYPES, ARRAY, Activations, create_activations, shard_rows_for
from saestore.budget import readable_bytes
from saestore.engine.resources import release
from saestore.engine.run import run_tasks, uses_cluster
from saestore.errors import InputError
from saestore.extraction.batches import windows
from saestore.extraction.hooks import HookPoint, parse_layers
from saestore.extraction.images import ImagePositions
from saestore.extraction.task import MODEL, PADDED_TOKENS, ExtractTask, ModelSpec, forward, group_key, loaded_model
from saestore.extraction.tokens import TextPositions
from saestore.layout import POSITION_TYPES, ActivationsKey, ModelKey, check_sample_type, samples_path
from saestore.rows import RowGroup, group_exists
from saestore.samples import SampleTable
from saestore.storage import Storage
from saestore.tables import Positions, Samples, table_parts, write_positions, write_samples

if TYPE_CHECKING:
    from saestore.extraction.model import LoadedModel
    from saestore.lake import Lake

_TASKS_PER_CLUSTER = 64
_CUT = {"right": "there", "left": "at their beginning"}
_SETTINGS = ("*.json", "*.txt", "*.model")  # the files of tokenizers and image processors


@dataclass(frozen=True)
class ExtractResult:
    """What `extract` did for one dataset.

    groups : the row groups of activations, layer by layer, of one part of the dataset after the other
    positions, samples : length of the position axis, number of samples
    extracted : positions that were run through the model by this call; after a dry run, those that would be at most
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
        Lay out positions in memory, say what would be extracted, and stop; nothing is written.
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
    try:
        for dataset, table in datasets.items():
            wanted = tuple(dict.fromkeys(types)) or (("token",) if table.kind == "text" else ("patch",))
            pieces = table_parts(lake.storage, dataset, table)
            found = []
            for part, piece in enumerate(pieces):
                if part and not group_exists(lake.storage, samples_path(dataset, part)):
                    first = sum(map(len, pieces[:part]))
                    say(
                        f"{dataset}: its table has grown; samples {first} to {first + len(piece) - 1} become part "
                        f"{part} of it"
                    )
                job = _Job(lake.storage, dataset, part, piece, model, hooks, wanted, dtype)
                todo = 0
                if not job.is_done():
                    layout = job.lay_out(say)
                    if dry_run:
                        found.append(job.would_give(layout))
                        continue
                    own = job.tasks(layout, split=uses_cluster(scheduler))
                    todo = sum(task.size for task in own)
                    tasks += own
                found.append(job.result(todo))
            results.append(_joined(found))
        run_tasks(tasks, label="extract", unit="positions", threads=1, scheduler=scheduler, quiet=quiet)
    finally:
        release(MODEL)
    return [_with_nonfinite(lake.storage, result, say) for result in results]


@dataclass(frozen=True)
class _Layout:
    """The position axis of a dataset, checked against the model and not yet stored.

    arrays : what is stored beside the offsets
    about : attributes of the stored axis
    d_in : width of the rows by name of the layer
    """

    positions: TextPositions | ImagePositions
    digest: str
    arrays: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any]
    d_in: Mapping[str, int]


class _Job:
    """One part of a dataset in an extraction."""

    def __init__(
        self,
        storage: Storage,
        dataset: str,
        part: int,
        table: SampleTable,
        model: ModelSpec,
        hooks: tuple[HookPoint, ...],
        sample_types: tuple[str, ...],
        dtype: str,
    ) -> None:
        self.storage = storage
        self.key = ModelKey(dataset, model.name, part)
        self.table = table
        self.model = model
        self.hooks = hooks
        self.sample_types = sample_types
        self.dtype = dtype
        self.groups = tuple(group_key(self.key, hook.name, name) for hook in hooks for name in sample_types)

    def is_done(self) -> bool:
        """Whether everything asked for is stored, as far as can be told without loading the model.

        That stored samples are those of the table is known: `table_parts` cut the table by them.
        """
        if not group_exists(self.storage, samples_path(self.key.dataset, self.key.part)):
            return False
        samples = Samples.open_part(self.storage, self.key.dataset, self.key.part)
        if not samples.group.is_complete or not all(group_exists(self.storage, key.path) for key in self.groups):
            return False
        stored = Positions.open_part(self.storage, self.key).group
        asked = {
            "samples": samples.digest,
            "source_revision": _revision(self.model),
            "max_length": self.model.max_length,
            "truncation_side": self.model.truncation_side,
        }
        if not stored.is_complete or any(stored.attributes.get(name) != value for name, value in asked.items()):
            return False
        groups = [RowGroup.open(self.storage, key.path) for key in self.groups]
        wanted = {
            "dtype": self.dtype,
            "model_dtype": self.model.dtype,
            "positions": stored.attributes["identity"]["digest"],
        }
        return all(
            group.is_complete and all(group.attributes["identity"].get(name) == value for name, value in wanted.items())
            for group in groups
        )

    def lay_out(self, say: Callable[[str], None]) -> _Layout:
        """Tokenise texts, or lay out patches, and check that model, layers and sample types fit; writes nothing."""
        loaded = loaded_model(self.model)
        if loaded.kind != self.table.kind:
            raise InputError(
                f"dataset {self.key.dataset!r} holds {self.table.kind}s and {loaded.model_id} is a model of "
                f"{loaded.kind}s; choose another model"
            )
        positions, digest, arrays, about = (self._texts if loaded.kind == "text" else self._images)(loaded)
        forward(loaded, positions, np.arange(len(self.table)), self.hooks, self.sample_types)
        if isinstance(positions, TextPositions):
            self._check_pooled(positions)
            if positions.n_truncated:
                say(
                    f"{self.key.dataset}: {positions.n_truncated:,} of {len(self.table):,} texts have more than "
                    f"{loaded.max_length} tokens and were cut {_CUT[self.model.truncation_side]}"
                )
        if not len(arrays["special"]):
            raise InputError(f"dataset {self.key.dataset!r} has no position: all its texts are empty; give some text")
        layout = _Layout(
            positions,
            digest,
            arrays,
            {
                **about,
                "content": loaded.kind,
                "model_id": loaded.model_id if not Path(loaded.model_id).is_dir() else self.model.name,
                "revision": loaded.revision,
                "source_revision": _revision(self.model),
                "max_length": self.model.max_length,
                "truncation_side": self.model.truncation_side,
                "provenance": provenance.stamp(),
            },
            _widths(loaded, self.hooks),
        )
        say(self._line(layout))
        return layout

    def tasks(self, layout: _Layout, *, split: bool) -> list[ExtractTask]:
        """Store samples, positions and the empty groups, and cut the missing shards into tasks.

        There is one task on this machine, which loads the model once, and there are several for a cluster.
        """
        samples = write_samples(self.storage, self.key.dataset, self.table, self.key.part)
        positions = write_positions(
            self.storage,
            self.key,
            offsets=layout.positions.offsets,
            arrays=layout.arrays,
            digest=layout.digest,
            attributes={**layout.about, "samples": samples.digest},
        )
        groups = self._create(layout)
        cuts = windows(np.diff(positions.offsets))
        ranges = {
            group.path: {
                shard: self._samples_of(group.path, group.grid.shard(shard), positions)
                for shard in group.missing_shards()
            }
            for group in groups
        }
        finest = max(ranges, key=lambda path: len(ranges[path]))
        borders = [first for first, _ in ranges[finest].values()][:: max(1, len(ranges[finest]) // _TASKS_PER_CLUSTER)]
        starts = borders if split else borders[:1]
        tasks = []
        for number, start in enumerate(starts):
            low = 0 if number == 0 else start
            high = starts[number + 1] if number + 1 < len(starts) else len(self.table)
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
                        revision=str(layout.about["revision"]),
                    )
                )
        return tasks

    def result(self, extracted: int) -> ExtractResult:
        """Return what is stored, or will be when the tasks have run."""
        positions = Positions.open_part(self.storage, self.key)
        truncated = int(positions.group.attributes.get("truncated", 0))
        return ExtractResult(
            self.key.dataset, self.groups, len(self.table), len(positions), extracted, truncated, nonfinite={}
        )

    def would_give(self, layout: _Layout) -> ExtractResult:
        """Return what a dry run can tell."""
        n, truncated = len(layout.arrays["special"]), int(layout.about.get("truncated", 0))
        return ExtractResult(self.key.dataset, self.groups, len(self.table), n, n, truncated, nonfinite={})

    def _line(self, layout: _Layout) -> str:
        n_positions, item = len(layout.arrays["special"]), 4 if self.dtype == "float32" else 2
        size = sum(self._rows(layout, key) * layout.d_in[key.layer] * item for key in self.groups)
        layers = ", ".join(hook.name for hook in self.hooks)
        return (
            f"{self.key.path}: {len(self.table):,} samples with {n_positions:,} positions, {layers} as "
            f"{', '.join(self.sample_types)} in one pass, writes up to {readable_bytes(size)}"
        )

    def _texts(self, loaded: LoadedModel) -> tuple[TextPositions, str, dict[str, NDArray[Any]], dict[str, Any]]:
        from saestore.extraction.tokens import positions_digest, texts_digest, tokenize, tokenizer_digest

        assert loaded.max_length is not None
        texts = self.table.contents
        positions = tokenize(
            loaded.tokenizer, texts, max_length=loaded.max_length, truncation_side=self.model.truncation_side
        )
        digest = positions_digest(positions, tokenizer=tokenizer_digest(loaded.tokenizer), texts=texts_digest(texts))
        arrays = {
            "special": positions.special,
            "token_id": positions.token_id.astype(np.uint32),
            "char_start": positions.char_start,
            "char_end": positions.char_end,
        }
        about = {
            "tokenizer": type(loaded.tokenizer).__name__,
            "model_max_length": loaded.max_length,
            "truncated": positions.n_truncated,
        }
        return positions, digest, arrays, about

    def _images(self, loaded: LoadedModel) -> tuple[ImagePositions, str, dict[str, NDArray[Any]], dict[str, Any]]:
        from saestore.extraction.images import image_positions, image_positions_digest, processor_digest

        assert loaded.patch_size is not None
        paths = self.table.contents
        positions = image_positions(paths, loaded.image_processor, patch_size=loaded.patch_size)
        digest = image_positions_digest(
            positions, processor=processor_digest(loaded.image_processor), images=self.table.digest()
        )
        arrays = {"special": np.zeros(len(positions.boxes), dtype=bool), "box": positions.boxes}
        about = {
            "image_processor": type(loaded.image_processor).__name__,
            "patch_rows": positions.rows,
            "patch_columns": positions.columns,
        }
        return positions, digest, arrays, about

    def _create(self, layout: _Layout) -> list[RowGroup]:
        from saestore.extraction.hooks import resolve

        loaded = loaded_model(self.model)
        # Pooled shards cover about the samples of a token shard, so that both are done at the same time.
        per_sample = max(1.0, len(layout.arrays["special"]) / len(self.table))
        resolved = {hook.name: hook for hook in resolve(loaded.model, self.hooks)}
        groups = []
        for key in self.groups:
            hook, d_in = resolved[key.layer], layout.d_in[key.layer]
            shard = shard_rows_for(d_in, self.dtype)
            group = create_activations(
                self.storage,
                key,
                rows=self._rows(layout, key),
                d_in=d_in,
                dtype=self.dtype,
                shard_rows=shard if key.sample_type in POSITION_TYPES else max(64, int(shard / per_sample)),
                identity={
                    "positions": layout.digest,
                    "model": loaded.revision,
                    "model_dtype": self.model.dtype,
                    "module": hook.module_path,
                    "reads_input": hook.reads_input,
                },
                attributes={"saelens_hook_name": hook.saelens_hook_name, "provenance": provenance.stamp()},
            )
            groups.append(group)
        return groups

    def _rows(self, layout: _Layout, key: ActivationsKey) -> int:
        return len(layout.arrays["special"]) if key.sample_type in POSITION_TYPES else len(self.table)

    def _check_pooled(self, positions: TextPositions) -> None:
        """Refuse pooled kinds of samples that have nothing to pool."""
        pooled = [name for name in self.sample_types if name in ("mean", "max", "last")]
        if not pooled:
            return
        used = np.concatenate([[0], np.cumsum(~positions.special)])
        empty = np.flatnonzero(used[positions.offsets[1:]] == used[positions.offsets[:-1]])
        if empty.size:
            raise InputError(
                f"sample {self.table.ids[empty[0]]!r} of {self.key.dataset} has no token besides special ones "
                f"({empty.size} such samples), so {', '.join(pooled)} is undefined; remove empty texts, or leave "
                "pooled sample types out"
            )

    def _samples_of(self, path: str, rows: slice, positions: Positions) -> tuple[int, int]:
        """Return the range of samples that a shard's rows belong to."""
        if path.rsplit("/", 1)[1] not in POSITION_TYPES:
            return rows.start, rows.stop
        first, last = positions.sample_of(np.array([rows.start, rows.stop - 1]))
        return int(first), int(last) + 1


def _joined(parts: Sequence[ExtractResult]) -> ExtractResult:
    """Return what was done for a dataset from what was done for its parts."""
    groups = tuple(key for part in parts for key in part.groups)
    sums = {
        name: sum(getattr(part, name) for part in parts) for name in ("samples", "positions", "extracted", "truncated")
    }
    return replace(parts[0], groups=groups, **sums)


def _with_nonfinite(storage: Storage, result: ExtractResult, say: Callable[[str], None]) -> ExtractResult:
    """Count what is not finite in the groups that exist, and tell the user."""
    counts = {}
    for key in result.groups:
        if group_exists(storage, key.path):
            count = Activations.open_part(storage, key).group.flagged(ARRAY)
            if count:
                counts[key.path] = count
                say(f"{key.path}: {count:,} values are not finite; encode refuses such rows")
    return replace(result, nonfinite=counts)


def _widths(loaded: LoadedModel, hooks: Sequence[HookPoint]) -> dict[str, int]:
    from saestore.extraction.forward import widths

    return widths(loaded, hooks)


def _revision(spec: ModelSpec) -> str:
    """Return what identifies the model's source, its tokenizer or image processor included, without loading it."""
    from saestore.extraction.model import fingerprint

    folder = Path(spec.source)
    if not folder.is_dir():
        return f"{spec.source}@{spec.revision or 'default'}"
    settings = hashlib.sha256(fingerprint(folder).encode())
    for file in sorted(path for ending in _SETTINGS for path in folder.glob(ending)):
        settings.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        settings.update(file.read_bytes())
    return f"sha256:{settings.hexdigest()}"


__all__ = ["PADDED_TOKENS", "ExtractResult", "ExtractTask", "ModelSpec", "extract"]
