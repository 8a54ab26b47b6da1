"""One SAE over one row group of activations: what is stored, what it costs, the check of its quality, its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ARRAY, Activations
from saestore.codes import code_arrays
from saestore.encoding.plan import EncodePlan, plan_encode, plan_grid
from saestore.encoding.task import EncodeTask, load_encoder, stored_dtype
from saestore.errors import ConflictError, InputError, QualityError
from saestore.layout import POSITION_TYPES, ActivationsKey, CodesKey
from saestore.progress import Progress
from saestore.rows import Grid, RowGroup, group_exists
from saestore.saes.lake import LakeWeights
from saestore.storage import Storage
from saestore.tables import Positions

_QUALITY_RUNS, _QUALITY_RUN_ROWS = 64, 32
_TEXTS_LOOKED_AT = 64


@dataclass(frozen=True)
class EncodeOptions:
    """What the caller of `encode` asked for; k None keeps all active units."""

    k: int | None
    dtype: str
    force: bool


@dataclass(frozen=True)
class Resources:
    """Where the work is done, the bytes this process used before any SAE was loaded, and those it may use."""

    device: str
    baseline: int
    budget: int


class EncodeJob:
    """One pair of SAE and activations.

    missing : shards to write, once the group of codes exists
    quality : what was measured when the codes were begun; empty before
    k : slots per row; None until `count_units` has found the largest l0
    """

    def __init__(self, storage: Storage, weights: LakeWeights, source: ActivationsKey, options: EncodeOptions) -> None:
        self.storage = storage
        self.config = weights.config
        self.key = CodesKey(source.dataset, source.model, source.layer, weights.name, source.sample_type)
        self.activations = Activations.open(storage, source)
        self.options = options
        self._check_activations()
        self.k = self._slots()
        self._identity = {
            "sae": weights.content_hash(),
            "activations": self.activations.group.content_hash(),
            "dtype": options.dtype,
        }
        self.stored = self._stored()
        if self.stored is not None:
            self.k = int(self.stored.attributes["k"])
        self.quality: dict[str, Any] = {} if self.stored is None else dict(self.stored.attributes.get("quality", {}))
        self.missing = [] if self.stored is None else self.stored.missing_shards()
        self.is_complete = self.stored is not None and not self.missing

    @property
    def rows(self) -> int:
        """Rows that are not encoded yet."""
        if self.stored is None:
            return self.activations.n_rows
        shards = [self.stored.grid.shard(shard) for shard in self.missing]
        return sum(rows.stop - rows.start for rows in shards)

    def plan(self, resources: Resources, *, hold: bool) -> EncodePlan:
        """Plan the encoding, or while k is not known the pass that finds it."""
        return plan_encode(
            self.key,
            self.config,
            self._grid(),
            k=self.k,
            rows=self.rows,
            value_bytes=stored_dtype(self.options.dtype).itemsize,
            device=resources.device,
            baseline=resources.baseline,
            budget=resources.budget,
            hold=hold,
        )

    def count_units(self, plan: EncodePlan, device: str, *, quiet: bool) -> None:
        """Make the largest l0 of all rows the number of slots."""
        encoder = load_encoder(self.storage, self.key.sae, device, held=plan.held)
        largest, label = 1, f"{self.key.path}: count active units"
        with Progress(label, total=self.activations.n_rows, unit="rows", quiet=quiet) as progress:
            for start in range(0, self.activations.n_rows, plan.block_rows):
                x = self.activations.read(start, min(start + plan.block_rows, self.activations.n_rows))
                largest = max(largest, int(encoder.encode(x, 1).l0.max()))
                progress.advance(len(x))
        self.k = largest

    def check(self, plan: EncodePlan, device: str, say: Callable[[str], None]) -> None:
        """Measure how well the SAE stands for the activations, unless that was done when the codes were begun.

        Raises
        ------
        QualityError
            The explained variance is below zero.
        """
        if self.stored is None:
            self.quality = self._checked_quality(plan, device, say)

    def tasks(self, plan: EncodePlan, device: str) -> list[EncodeTask]:
        """Create the group if need be, and return one task per missing shard."""
        if self.stored is None:
            assert self.k is not None
            self.stored = self._create(self._grid(), self.k, self.quality)
            self.missing = self.stored.missing_shards()
        grid = self.stored.grid
        return [
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
            for shard in self.missing
        ]

    def _check_activations(self) -> None:
        path = self.activations.key.path
        if self.activations.d_in != self.config.d_in:
            raise InputError(
                f"SAE {self.key.sae} reads rows of width {self.config.d_in}, {path} has width "
                f"{self.activations.d_in}; choose the layer and model that the SAE was trained on"
            )
        # The ledger knows before any work what would end it after hours.
        nonfinite = self.activations.group.flagged(ARRAY)
        if nonfinite:
            raise InputError(
                f"{path} holds {nonfinite:,} values that are not finite, which no SAE can encode; "
                "extract the layer in float32 or bfloat16, or leave out the samples that give them"
            )

    def _slots(self) -> int | None:
        """Slots per row as far as known before any work; a Top-K SAE never fills more than its own K."""
        if self.options.k is None or self.config.k is None:
            return self.options.k or self.config.k
        return min(self.options.k, self.config.k)

    def _grid(self) -> Grid:
        if self.stored is not None:
            return self.stored.grid
        value_bytes = stored_dtype(self.options.dtype).itemsize
        return plan_grid(self.activations.n_rows, self.k or 1, self.config, value_bytes)

    def _stored(self) -> RowGroup | None:
        """Return codes that are there and were made from the same things with as many slots."""
        if not group_exists(self.storage, self.key.path):
            return None
        group = RowGroup.open(self.storage, self.key.path)
        k = self.k
        if k is None:
            k = int(group.attributes["k"])
            if not group.attributes.get("keeps_all", False):
                raise ConflictError(
                    f"{self.key.path} is stored with k {k} and all active units were asked for; "
                    f"give --k {k}, or import the SAE under another name"
                )
        # `create` opens a group of the same identity and refuses another.
        return self._create(group.grid, k, group.attributes.get("quality", {}))

    def _checked_quality(self, plan: EncodePlan, device: str, say: Callable[[str], None]) -> dict[str, Any]:
        assert self.k is not None
        path = self.activations.key.path
        trained_on = self.config.model_name
        if trained_on is not None and not is_of_model(self.storage, self.activations.key, trained_on):
            say(f"{path}: SAE {self.key.sae} says it was trained on {trained_on}; check that this is the same model")
        if self.config.prepend_bos and _lacks_first_special(self.storage, self.activations.key):
            say(
                f"{path}: SAE {self.key.sae} was trained on texts with a token added in front, and these begin without "
                "one; the first positions of each text may be unlike what it has seen"
            )
        encoder = load_encoder(self.storage, self.key.sae, device, held=plan.held)
        try:
            quality = encoder.quality(self.activations.take(_quality_rows(self.storage, self.activations)), self.k)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        variance = quality["explained_variance"]
        if variance is None:
            return quality
        numbers = f"explained variance {variance:.3f}, L0 {quality['l0']:.1f} over {quality['rows']} rows"
        say(f"{path}: {numbers}, {quality['dead_units']:,} of {self.config.d_sae:,} units dead in them")
        if not variance >= 0 and not self.options.force:
            raise QualityError(
                f"{path}: {numbers}; below zero SAE {self.key.sae} makes the data worse, which means a wrong layer, "
                "hook or normalisation: check them against the SAE's card, or give --force"
            )
        return quality

    def _create(self, grid: Grid, k: int, quality: Mapping[str, Any]) -> RowGroup:
        dtype = self.options.dtype
        return RowGroup.create(
            self.storage,
            self.key.path,
            kind="codes",
            axis="row",
            grid=grid,
            arrays=code_arrays(k=k, d_sae=self.config.d_sae, dtype=dtype),
            identity={**self._identity, "k": k},
            attributes={
                "k": k,
                "keeps_all": self.options.k is None,
                "d_sae": self.config.d_sae,
                "dtype": dtype,
                "sample_type": self.key.sample_type,
                "signed": False,
                "quality": dict(quality),
                "provenance": provenance.stamp(),
            },
        )


def is_of_model(storage: Storage, key: ActivationsKey, name: str) -> bool:
    """Whether activations are of a model by that name; its owner on a hub (`google/`) is left out of account."""
    known = [key.model]
    if group_exists(storage, key.model_key.positions_path):
        known.append(Positions.open(storage, key.model_key).group.attributes.get("model_id") or key.model)
    return _bare(name) in map(_bare, known)


def _lacks_first_special(storage: Storage, key: ActivationsKey) -> bool:
    """Whether some text's first token was not added by the tokenizer; only the first texts are looked at."""
    if key.sample_type != "token":
        return False
    positions = Positions.open(storage, key.model_key)
    starts, stops = positions.offsets[:-1][:_TEXTS_LOOKED_AT], positions.offsets[1:][:_TEXTS_LOOKED_AT]
    first = starts[stops > starts]
    return first.size > 0 and not positions.group.take("special", first).all()


def _bare(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].casefold()


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
