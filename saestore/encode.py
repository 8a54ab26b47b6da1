"""Encode stored activations to stored codes: plan, check of the SAE against the data, then one task per shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import Activations
from saestore.budget import parse_memory
from saestore.codes import Codes, code_arrays, index_dtype
from saestore.encode_plan import TASKS_AT_ONCE, EncodePlan, plan_encode
from saestore.engine.resources import device_lock, load_once
from saestore.engine.run import run_tasks
from saestore.errors import ConflictError, InputError, MissingError, QualityError
from saestore.lake import Lake, layer_name
from saestore.layout import POSITION_TYPES, ActivationsKey, CodesKey, check_sample_type
from saestore.progress import Progress
from saestore.rows import Grid, RowGroup, group_exists
from saestore.saes.config import SAEConfig
from saestore.saes.lake import LakeWeights, open_lake_sae
from saestore.storage import Storage, open_storage
from saestore.tables import Positions

if TYPE_CHECKING:
    from saestore.encoder import Encoder

VALUE_DTYPES = ("float16", "bfloat16", "float32")

_SHARD_ROWS = 262_144
_CHUNK_ROWS = 8_192
_SHARD_FLOP = 5e13  # a killed run loses at most some minutes of work on a laptop
_QUALITY_RUNS, _QUALITY_RUN_ROWS = 64, 32


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did for one pair of SAE and activations.

    encoded_rows : rows encoded by this call; 0 when the codes were complete
    """

    key: CodesKey
    rows: int
    encoded_rows: int
    quality: Mapping[str, Any]
    plan: EncodePlan | None


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
        encoder = _encoder(storage, self.key.sae, self.device, held=self.held)
        group, dtype = codes.group, str(codes.group.attributes["dtype"])
        arrays = {
            "indices": np.empty((self.size, codes.k), dtype=index_dtype(codes.d_sae)),
            "values": np.empty((self.size, codes.k), dtype=_stored_dtype(dtype)),
            "l0": np.empty(self.size, dtype=np.uint32),
        }
        for start in range(self.first, self.stop, self.block_rows):
            stop = min(start + self.block_rows, self.stop)
            x = activations.read(start, stop)
            with device_lock(self.device):
                found = encoder.encode(x, codes.k)
            stored = quantize(found, dtype=dtype, d_sae=codes.d_sae)  # type: ignore[arg-type]
            part = slice(start - self.first, stop - self.first)
            arrays["indices"][part], arrays["values"][part], arrays["l0"][part] = (
                stored.indices,
                stored.values,
                stored.l0,
            )
            advance(stop - start)
        truncated = int(np.count_nonzero(arrays["l0"] > codes.k))
        group.write_shard(self.shard, arrays, flagged={"l0": truncated})


def encode(
    lake: Lake,
    saes: str | Sequence[str],
    *,
    datasets: Sequence[str] | None = None,
    layers: Sequence[str | int] | None = None,
    sample_type: str | Sequence[str] | None = None,
    model: str | None = None,
    k: int | None = None,
    dtype: str = "float16",
    device: str = "auto",
    memory: str | int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[EncodeResult]:
    """Encode activations of a lake with SAEs of the lake; what is stored already is left alone.

    Parameters
    ----------
    lake : Lake
    saes : str or sequence of str
        Names of imported SAEs. Each is loaded once per process.
    datasets : sequence of str, optional
        Default: every dataset that has the SAE's layer.
    layers : sequence of str or int, optional
        Default: the layer that the SAE was trained on, by its hook name; without one, the layers of its width.
    sample_type : str or sequence of str, optional
        Default: `token` and `patch`, whichever is stored.
    model : str, optional
        Default: every model in the lake that has the layer.
    k : int, optional
        Slots per row. Default: the K of a Top-K SAE; for others all active units are kept, for which the largest l0
        is found in a first pass over the rows.
    dtype : {"float16", "bfloat16", "float32"}
        Precision of the stored values.
    device : str
        `auto` takes CUDA, then MPS, then the CPU.
    memory : str or int, optional
        The most this process may use, such as `4GiB`; default what it uses now and 60 % of the free memory.
    scheduler : str, optional
        Address of a Dask scheduler; default the active client if there is one, else threads.
    force : bool
        Go on although layer, hook or explained variance say that the SAE does not belong to the activations.
    dry_run : bool
        Stop after the plans.
    quiet : bool
        Show no progress.
    say : callable, optional
        Receives lines for the user (plans, warnings).

    Returns
    -------
    list of EncodeResult
        One per SAE and row group of activations.

    Raises
    ------
    MissingError
        No activations or no SAE of that name.
    InputError
        Widths or hook names disagree, k is larger than d_sae, or activations are not finite.
    HoleError
        The activations or the SAE are incomplete.
    QualityError
        The explained variance is below zero: a wrong layer, hook or normalisation.
    BudgetError
        The plan exceeds the memory.
    ConflictError
        Codes made with other parameters are stored there.
    """
    if dtype not in VALUE_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose from {', '.join(VALUE_DTYPES)}")
    say = say or _silent
    names = [saes] if isinstance(saes, str) else list(saes)
    types = [sample_type] if isinstance(sample_type, str) else list(sample_type or POSITION_TYPES)
    for name in types:
        check_sample_type(name)
    baseline = psutil.Process().memory_info().rss
    budget = parse_memory(memory) + (baseline if memory is None else 0)
    results: list[EncodeResult] = []
    for name in names:
        tasks: list[EncodeTask] = []
        weights = open_lake_sae(lake.storage, name)
        _check_k(k, weights.config)
        keys = _matching(lake, weights, datasets, layers, types, model, force=force)
        for key in keys:
            job = _Job(lake.storage, weights, key, k=k, dtype=dtype, device=device, force=force)
            job.baseline, job.budget = baseline, budget
            result, shards = job.prepare(dry_run=dry_run, quiet=quiet, say=say)
            results.append(result)
            tasks += shards
        # One SAE after the other, so that each is loaded once and one is in memory at a time.
        run_tasks(tasks, label=f"encode {name}", unit="rows", threads=TASKS_AT_ONCE, scheduler=scheduler, quiet=quiet)
    return results


class _Job:
    """One SAE over one row group of activations."""

    def __init__(
        self,
        storage: Storage,
        weights: LakeWeights,
        source: ActivationsKey,
        *,
        k: int | None,
        dtype: str,
        device: str,
        force: bool,
    ) -> None:
        self.baseline = 0
        self.budget = 0
        self.storage = storage
        self.weights = weights
        self.config = weights.config
        self.key = CodesKey(source.dataset, source.model, source.layer, weights.name, source.sample_type)
        self.activations = Activations.open(storage, source)
        self.k = k
        self.dtype = dtype
        self._device_wish = device
        self._force = force
        if self.activations.d_in != self.config.d_in:
            raise InputError(
                f"SAE {weights.name} reads rows of width {self.config.d_in}, {source.path} has width "
                f"{self.activations.d_in}; choose the layer and model that the SAE was trained on"
            )

    def prepare(
        self, *, dry_run: bool, quiet: bool, say: Callable[[str], None]
    ) -> tuple[EncodeResult, list[EncodeTask]]:
        """Make the group, or find what is missing in it; nothing heavy is loaded when all is done."""
        identity = {
            "sae": self.weights.content_hash(),
            "activations": self.activations.group.content_hash(),
            "dtype": self.dtype,
        }
        stored = self._stored(identity)
        if stored is not None and stored.is_complete:
            quality = stored.attributes["quality"]
            return EncodeResult(self.key, stored.grid.rows, 0, quality, None), []
        device = _device(self._device_wish)
        rows = self.activations.n_rows
        k = int(stored.attributes["k"]) if stored is not None else self._slots()
        grid = stored.grid if stored is not None else _grid(rows, self.config)
        missing = stored.missing_shards() if stored is not None else list(range(grid.n_shards))
        todo = sum(grid.shard(shard).stop - grid.shard(shard).start for shard in missing)
        plan = self._plan(grid, k or self.config.d_sae, todo, device)
        say(plan.line())
        if dry_run:
            return EncodeResult(self.key, rows, 0, {}, plan), []
        if k is None:
            k = self._largest_l0(device, plan, quiet=quiet)
            plan = self._plan(grid, k, todo, device)
        if stored is None:
            quality = self._check_quality(device, plan, k, say)
            stored = self._create(grid, k, {**identity, "k": k}, quality)
        tasks = [
            EncodeTask(
                url=self.storage.url,
                options=dict(self.storage.options),
                key=self.key,
                shard=shard,
                first=grid.shard(shard).start,
                stop=grid.shard(shard).stop,
                device=device,
                held=plan.held,
                block_rows=plan.block_rows,
            )
            for shard in missing
        ]
        return EncodeResult(self.key, rows, todo, stored.attributes["quality"], plan), tasks

    def _stored(self, identity: Mapping[str, Any]) -> RowGroup | None:
        """Return codes that are there and were made from the same things with as many slots."""
        if not group_exists(self.storage, self.key.path):
            return None
        group = RowGroup.open(self.storage, self.key.path)
        k = self._slots()
        if k is None:
            k = int(group.attributes["k"])
            if not group.attributes["keeps_all"]:
                raise ConflictError(
                    f"{self.key.path} is stored with k {k} and all active units were asked for; "
                    f"give --k {k}, or import the SAE under another name"
                )
        # `create` opens a group of the same identity and refuses another.
        return self._create(group.grid, k, {**identity, "k": k}, group.attributes["quality"])

    def _slots(self) -> int | None:
        """Slots per row as far as known before any work."""
        if self.k is not None:
            return self.k
        return self.config.k

    def _largest_l0(self, device: str, plan: EncodePlan, *, quiet: bool) -> int:
        encoder = _encoder(self.storage, self.key.sae, device, held=plan.held)
        largest = 1
        with Progress(f"{self.key.path}: count active units", total=plan.rows, unit="rows", quiet=quiet) as progress:
            for start in range(0, self.activations.n_rows, plan.block_rows):
                x = self.activations.read(start, min(start + plan.block_rows, self.activations.n_rows))
                largest = max(largest, int(encoder.encode(x, 1).l0.max()))
                progress.advance(len(x))
        return largest

    def _check_quality(self, device: str, plan: EncodePlan, k: int, say: Callable[[str], None]) -> dict[str, Any]:
        rows = _quality_rows(self.storage, self.activations)
        encoder = _encoder(self.storage, self.key.sae, device, held=plan.held)
        try:
            quality = encoder.quality(self.activations.take(rows), k)
        except InputError as error:
            raise InputError(f"{self.activations.key.path}: {error}") from error
        variance = quality["explained_variance"]
        if variance is None:
            return quality
        numbers = f"explained variance {variance:.3f}, L0 {quality['l0']:.1f} over {quality['rows']} rows"
        say(f"{self.key.path}: {numbers}, {quality['dead_units']:,} of {self.config.d_sae:,} units dead in them")
        if not variance >= 0 and not self._force:
            raise QualityError(
                f"{self.key.path}: {numbers}; below zero the SAE makes the data worse, which means a wrong layer, hook "
                "or normalisation: check them against the SAE's card, or give --force"
            )
        return quality

    def _plan(self, grid: Grid, k: int, rows: int, device: str) -> EncodePlan:
        return plan_encode(
            self.key,
            self.config,
            grid,
            k=k,
            rows=rows,
            value_bytes=_stored_dtype(self.dtype).itemsize,
            device=device,
            baseline=self.baseline,
            budget=self.budget,
        )

    def _create(self, grid: Grid, k: int, identity: Mapping[str, Any], quality: Mapping[str, Any]) -> RowGroup:
        return RowGroup.create(
            self.storage,
            self.key.path,
            kind="codes",
            axis="row",
            grid=grid,
            arrays=code_arrays(k=k, d_sae=self.config.d_sae, dtype=self.dtype),
            identity=identity,
            attributes={
                "k": k,
                "keeps_all": self.k is None,
                "d_sae": self.config.d_sae,
                "dtype": self.dtype,
                "sample_type": self.key.sample_type,
                "signed": False,
                "quality": dict(quality),
                "provenance": provenance.stamp(),
            },
        )


def _matching(
    lake: Lake,
    weights: LakeWeights,
    datasets: Sequence[str] | None,
    layers: Sequence[str | int] | None,
    types: Sequence[str],
    model: str | None,
    *,
    force: bool,
) -> list[ActivationsKey]:
    """Return the activations that an SAE is asked to encode, or belongs to."""
    stored = list(lake.activation_keys())
    for dataset in datasets or ():
        lake.samples(dataset)
    wanted_layers = None if layers is None else {layer_name(layer) for layer in layers}
    chosen = [
        key
        for key in stored
        if (datasets is None or key.dataset in datasets)
        and (wanted_layers is None or key.layer in wanted_layers)
        and key.sample_type in types
        and (model is None or key.model == model)
    ]
    chosen = [key for key in chosen if _belongs(lake, key, weights, named=layers is not None, force=force)]
    if not chosen:
        hook = f" (it was trained on {weights.config.hook_name})" if weights.config.hook_name else ""
        there = ", ".join(sorted({f"{key.dataset}/{key.layer}/{key.sample_type}" for key in stored})[:6]) or "none"
        raise MissingError(
            f"no stored activations fit SAE {weights.name}{hook} and what was asked; there are {there}; "
            "extract the layer, or name --layers"
        )
    return chosen


def _belongs(lake: Lake, key: ActivationsKey, weights: LakeWeights, *, named: bool, force: bool) -> bool:
    """Whether an SAE was trained on this layer, as far as both say; naming a wrong layer is an error."""
    config = weights.config
    attributes = Activations.open(lake.storage, key).group.attributes
    hook = attributes.get("saelens_hook_name")
    if config.hook_name is None or hook is None:
        return named or int(attributes["d_in"]) == config.d_in
    if hook == config.hook_name:
        return True
    if named and not force:
        raise InputError(
            f"SAE {weights.name} was trained on {config.hook_name}, {key.path} holds {hook}; "
            "choose the layer it was trained on, or give --force"
        )
    return named


def _quality_rows(storage: Storage, activations: Activations) -> NDArray[np.int64]:
    """Return up to 2,048 rows, in short runs spread evenly, without special tokens."""
    n = activations.n_rows
    runs = min(_QUALITY_RUNS, -(-n // _QUALITY_RUN_ROWS))
    starts = np.linspace(0, max(0, n - _QUALITY_RUN_ROWS), runs).astype(np.int64)
    rows = np.unique((starts[:, None] + np.arange(_QUALITY_RUN_ROWS)).ravel())
    rows = rows[rows < n]
    if activations.key.sample_type in POSITION_TYPES:
        special = Positions.open(storage, activations.key.model_key).group.take("special", rows)
        rows = rows[~special] if not special.all() else rows
    return rows


def _grid(rows: int, config: SAEConfig) -> Grid:
    affordable = int(_SHARD_FLOP / (2 * config.d_in * config.d_sae))
    return Grid.plan(rows, shard_rows=max(_CHUNK_ROWS // 2, min(_SHARD_ROWS, affordable)), chunk_rows=_CHUNK_ROWS)


def _encoder(storage: Storage, sae: str, device: str, *, held: bool) -> Encoder:
    from saestore.encoder import Encoder

    weights = open_lake_sae(storage, sae)
    key = ("encoder", storage.url, sae, weights.content_hash(), device)
    return load_once(key, lambda: Encoder(weights, device=device, hold=held))


def _device(wish: str) -> str:
    import torch

    if wish != "auto":
        try:
            torch.empty(0, device=wish)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {wish!r} cannot be used here ({str(error).splitlines()[0][:100]}); try auto"
            ) from None
        return wish
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_k(k: int | None, config: SAEConfig) -> None:
    if k is not None and not 1 <= k <= config.d_sae:
        raise InputError(f"k is {k}; it must be 1 to d_sae, which is {config.d_sae:,}")


def _stored_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def _silent(line: str) -> None:
    """Say nothing."""


__all__ = ["EncodePlan", "EncodeResult", "encode"]
