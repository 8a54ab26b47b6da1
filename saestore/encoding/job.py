"""One SAE over one row group of activations: what is stored, what is left to do, the check of its quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ARRAY, Activations
from saestore.code_rows import code_arrays
from saestore.encoding.plan import Part, checked_rows, plan_grid
from saestore.encoding.task import stored_dtype
from saestore.errors import ConflictError, InputError, QualityError
from saestore.lake import Lake
from saestore.layout import POSITION_TYPES, ActivationsKey, CodesKey
from saestore.rows import Grid, RowGroup, group_exists
from saestore.saes.decoder import state_names
from saestore.saes.lake import LakeWeights
from saestore.storage import Storage
from saestore.tables import Positions

# Long runs, since a stored chunk is read whole for the first of its rows.
_SAMPLE_RUNS, _SAMPLE_RUN_ROWS = 16, 128
_TEXTS_LOOKED_AT = 64


@dataclass(frozen=True)
class EncodeOptions:
    """What the caller of `encode` asked for; k None keeps all active units."""

    k: int | None
    dtype: str
    precision: str
    force: bool


class EncodeJob:
    """One pair of SAE and activations.

    missing : shards to write, once the group of codes exists
    quality : what was measured when the codes were begun; empty before
    k : slots per row; None until the largest l0 of all rows is known
    """

    def __init__(self, lake: Lake, weights: LakeWeights, source: ActivationsKey, options: EncodeOptions) -> None:
        self.storage = lake.storage
        self.weights = weights
        self.config = weights.config
        self.key = CodesKey.of(source, weights.name)
        self.activations = Activations.open_part(lake.storage, source)
        self.options = options
        self._check_activations()
        self.target = self._find_target(lake)
        self.k = self._slots()
        self._identity = {
            "sae": weights.content_hash(),
            "activations": self.activations.group.content_hash(),
            "dtype": options.dtype,
            "precision": options.precision,
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

    @cached_property
    def row_bytes(self) -> float:
        """Stored bytes of a row of the activations."""
        return self.activations.group.stored_bytes() / self.activations.n_rows

    def shard_rows(self, shard: int) -> slice:
        """Return the rows of a shard of the codes."""
        return self._grid().shard(shard)

    def all_shard_rows(self) -> list[slice]:
        """Return the rows of every shard of the codes."""
        grid = self._grid()
        return [grid.shard(shard) for shard in range(grid.n_shards)]

    def part(self, *, is_new: bool) -> Part:
        """Return what there is to do, as a part of a pass; while k is not known, of the pass that finds it."""
        return Part(
            sae=self.key.sae,
            config=self.config,
            grid=self._grid(),
            rows=self.rows,
            k=self.k,
            value_bytes=stored_dtype(self.options.dtype).itemsize,
            state_bytes=4 * len(state_names(self.config)),
            checked=0 if self.stored is not None else self._checked_rows,
            longest=int(np.diff(self.offsets).max(initial=0)) if self.config.reads_sequences else 0,
            is_new=is_new,
        )

    def written_rows(self) -> int:
        """Return the rows whose codes are stored by now."""
        return 0 if self.stored is None else self.stored.written_rows()

    def refresh(self) -> None:
        """Find out anew which shards are missing."""
        if self.stored is not None:
            self.missing = self.stored.missing_shards()

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """The first row of each sample, and the number of rows: (n_samples + 1,)."""
        return Positions.open_part(self.storage, self.activations.key.model_key).offsets

    @property
    def sampled_rows(self) -> int:
        """Rows in the chunks that hold `sample_rows`, at most."""
        per_run = self.activations.group.grid.chunk_rows + _SAMPLE_RUN_ROWS
        return min(self.activations.n_rows, _SAMPLE_RUNS * per_run)

    def sample_rows(self) -> NDArray[np.int64]:
        """Return the rows on which the quality is measured, without special tokens.

        They are spread evenly over some runs, which are the same for every SAE so that SAEs read them together. Where
        samples are sequences it is the first samples, whole.
        """
        n = self.activations.n_rows
        if self.config.reads_sequences:
            return np.arange(self._checked_rows)
        starts = np.linspace(0, max(0, n - _SAMPLE_RUN_ROWS), _SAMPLE_RUNS).astype(np.int64)
        rows = np.unique((starts[:, None] + np.arange(_SAMPLE_RUN_ROWS)).ravel())
        rows = rows[rows < n]
        if self.key.sample_type in POSITION_TYPES:
            special = Positions.open_part(self.storage, self.activations.key.model_key).group.take("special", rows)
            rows = rows[~special] if not special.all() else rows
        count = min(len(rows), self._checked_rows)
        return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]

    @cached_property
    def _checked_rows(self) -> int:
        """Rows on which the quality is measured; of sequences the first ones, whole."""
        count = checked_rows(self.activations.n_rows, self.config)
        if not self.config.reads_sequences:
            return count
        whole = self.offsets[self.offsets <= max(count, int(self.offsets[self.offsets > 0].min()))]
        return int(whole.max())

    def accept(self, quality: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Take note of a measured quality, and of what SAE and activations say of each other.

        Raises
        ------
        QualityError
            The explained variance is below zero.
        """
        path = self.activations.key.path
        self.quality = dict(quality)
        trained_on = self.config.model_name
        if trained_on is not None and not is_of_model(self.storage, self.activations.key, trained_on):
            say(f"{path}: SAE {self.key.sae} says it was trained on {trained_on}; check that this is the same model")
        if self.config.prepend_bos and _lacks_first_special(self.storage, self.activations.key):
            say(
                f"{path}: SAE {self.key.sae} was trained on texts with a token added in front, and these begin without "
                "one; the first positions of each text may be unlike what it has seen"
            )
        variance = quality["explained_variance"]
        if variance is None:
            unknown = f"{path}: {self.key.sae}: L0 {quality['l0']:.1f} over {quality['rows']} rows"
            if self.config.is_transcoder:
                hook = self.config.hook_name_out or "its output hook, which it does not name"
                unknown += f", explained variance unknown: it predicts {hook}; extract that layer to have it checked"
            say(unknown)
            return
        numbers = f"explained variance {variance:.3f}, L0 {quality['l0']:.1f} over {quality['rows']} rows"
        say(f"{path}: {self.key.sae}: {numbers}, {quality['dead_units']:,} of {self.config.d_sae:,} units dead in them")
        if not variance >= 0 and not self.options.force:
            raise QualityError(
                f"{path}: {numbers}; below zero SAE {self.key.sae} makes the data worse, which means a wrong layer, "
                "hook or normalisation: check them against the SAE's card, or give --force"
            )

    def begin(self) -> None:
        """Create the group of codes, unless it is there."""
        if self.stored is None:
            assert self.k is not None
            self.stored = self._create(self._grid(), self.k, self.quality)
            self.missing = self.stored.missing_shards()

    def _find_target(self, lake: Lake) -> Activations | None:
        """Return what the decoder should give: the activations themselves, or of a transcoder those of its output.

        The decoder of a temporal SAE gives only what the positions before do not predict, which is not stored.
        """
        if self.config.reads_sequences:
            return None
        if not self.config.is_transcoder:
            return self.activations
        here = self.activations.key
        for key in lake.activation_keys(here.dataset):
            if (key.model, key.sample_type) != (here.model, here.sample_type):
                continue
            if not group_exists(lake.storage, key.at(here.part).path):
                continue
            found = Activations.open_part(lake.storage, key.at(here.part))
            hook = found.group.attributes.get("saelens_hook_name")
            is_output = hook is not None and hook == self.config.hook_name_out and found.d_in == self.config.d_out
            if is_output and found.group.is_complete and not found.group.flagged(ARRAY):
                return found
        return None

    def _check_activations(self) -> None:
        path = self.activations.key.path
        if self.activations.d_in != self.config.d_in:
            raise InputError(
                f"SAE {self.key.sae} reads rows of width {self.config.d_in}, {path} has width "
                f"{self.activations.d_in}; choose the layer and model that the SAE was trained on"
            )
        if self.config.reads_sequences and self.key.sample_type not in POSITION_TYPES:
            raise InputError(
                f"SAE {self.key.sae} is temporal: it reads the positions of a sample in order, and {path} has one row "
                "per sample; encode token or patch activations"
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

    def _create(self, grid: Grid, k: int, quality: Mapping[str, Any]) -> RowGroup:
        dtype = self.options.dtype
        return RowGroup.create(
            self.storage,
            self.key.path,
            kind="codes",
            axis="row",
            grid=grid,
            arrays=code_arrays(k=k, d_sae=self.config.d_sae, dtype=dtype, state=state_names(self.config)),
            identity={**self._identity, "k": k},
            attributes={
                "k": k,
                "keeps_all": self.options.k is None,
                "d_sae": self.config.d_sae,
                "dtype": dtype,
                "sample_type": self.key.sample_type,
                "signed": self.config.is_signed,
                "quality": dict(quality),
                "provenance": provenance.stamp(),
            },
        )


def is_of_model(storage: Storage, key: ActivationsKey, name: str) -> bool:
    """Whether activations are of a model by that name; its owner on a hub (`google/`) is left out of account."""
    known = [key.model]
    if group_exists(storage, key.model_key.positions_path):
        known.append(Positions.open_part(storage, key.model_key).group.attributes.get("model_id") or key.model)
    return _bare(name) in map(_bare, known)


def _lacks_first_special(storage: Storage, key: ActivationsKey) -> bool:
    """Whether some text's first token was not added by the tokenizer; only the first texts are looked at."""
    if key.sample_type != "token":
        return False
    positions = Positions.open_part(storage, key.model_key)
    starts, stops = positions.offsets[:-1][:_TEXTS_LOOKED_AT], positions.offsets[1:][:_TEXTS_LOOKED_AT]
    first = starts[stops > starts]
    return first.size > 0 and not positions.group.take("special", first).all()


def _bare(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].casefold()
