"""Import sparse codes of other tools' files into the lake: one task per shard, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.code_rows import CHUNK_ROWS, code_arrays
from saestore.engine.run import run_tasks
from saestore.errors import InputError
from saestore.formats.activations import local_path
from saestore.formats.importer_axes import GivenRows, find_axis
from saestore.formats.importer_source import ImportResult, is_free, silent, source_identity, threads_for
from saestore.formats.sources import CodesSource
from saestore.formats.sparse_topk import Negatives, open_codes
from saestore.lake import Lake, layer_name
from saestore.layout import CodesKey, sae_path
from saestore.parts import check_appended
from saestore.rows import Grid, RowGroup, group_exists
from saestore.saes.lake import open_lake_sae
from saestore.samples import SampleTable
from saestore.storage import open_storage

_SHARD_ROWS = 262_144
_SHARD_BYTES = 64 << 20
_BLOCK_BYTES = 4 << 20
_QUALITY_RUNS, _QUALITY_RUN_ROWS = 64, 32


@dataclass(frozen=True)
class ImportCodesTask:
    """One shard of codes; see `ShardTask`. A source is names and numbers: where its arrays lie in which files."""

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: CodesKey
    source: CodesSource = field(hash=False)
    shard: int
    first: int
    stop: int

    @property
    def size(self) -> int:
        """Rows of the shard."""
        return self.stop - self.first

    def run(self, advance: Callable[[int], None]) -> None:
        """Read the shard's rows block by block, and write it."""
        group = RowGroup.open(open_storage(self.url, storage_options=self.options), self.key.path)
        k = int(group.attributes["k"])
        arrays = {
            array.name: np.empty((self.size, *array.shape_tail), dtype=array.dtype)
            for array in code_arrays(k=k, d_sae=int(group.attributes["d_sae"]), dtype=self.source.dtype)
        }
        step = max(1, _BLOCK_BYTES // (8 * k))
        for start in range(self.first, self.stop, step):
            stop = min(start + step, self.stop)
            part = slice(start - self.first, stop - self.first)
            arrays["indices"][part], arrays["values"][part], arrays["l0"][part] = _read(self.source, start, stop)
            advance(stop - start)
        truncated = int(np.count_nonzero(arrays["l0"] > k))
        group.write_shard(self.shard, arrays, flagged={"l0": truncated})


def import_codes(
    lake: Lake,
    path: str | Path,
    *,
    dataset: str,
    model: str,
    layer: str | int,
    sae: str,
    sample_type: str,
    d_sae: int | None = None,
    negatives: Negatives = "refuse",
    per_sample: int | None = None,
    offsets: NDArray[Any] | str | Path | None = None,
    samples: SampleTable | None = None,
    append: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> ImportResult:
    """Import codes from `sparse_topk` files; what is stored already is left alone.

    Values keep the precision of the file. Such files do not say how many units were active before the k largest were
    kept, so `l0` is the number of filled slots, which the true number is at least; the group's attribute `l0_exact` is
    then false (codes without that attribute have the exact number).

    Parameters
    ----------
    lake : Lake
    path : str or Path
        A `.pt` file, a `*_chunks_info.json`, a folder of chunks, or the name without `_chunk_0`; see `open_codes`.
    dataset, model, layer, sae, sample_type
        The place in the lake. The SAE itself and the activations need not be there.
    d_sae : int, optional
        Units of the SAE; default what the files say, else the SAE of that name in the lake.
    negatives : {"refuse", "drop", "keep"}
        What a negative value means: an error, an empty slot, or a signed code.
    per_sample, offsets, samples, append
        As for `import_activations`.
    quiet : bool
        Show no progress.
    say : callable, optional
        Receives lines for the user.

    Returns
    -------
    ImportResult

    Raises
    ------
    InputError
        The file, a name or an option cannot be used; the rows do not make the samples; d_sae is not known or is not
        the SAE's; or a row is not a valid code.
    MissingError
        The file does not exist.
    IntegrityError
        The file is damaged, or changed while it was read.
    ConflictError
        The lake holds other samples, positions or codes in that place.
    """
    target = CodesKey(dataset, model, str(layer_name(layer)), sae, sample_type)
    origin = local_path(path)
    with _open(lake, origin, sae, d_sae, negatives) as source:
        rows = GivenRows(origin, source.n_rows, None, per_sample, offsets, samples)
        return import_code_source(
            lake, source, rows, target=target, negatives=negatives, append=append, quiet=quiet, say=say
        )


def import_code_source(
    lake: Lake,
    source: CodesSource,
    rows: GivenRows,
    *,
    target: CodesKey,
    negatives: Negatives = "refuse",
    append: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> ImportResult:
    """Import codes from anywhere; see `import_codes`, which has them from files.

    Parameters
    ----------
    source : CodesSource
        Knows its number of units. What it describes with `keeps_all` holds all active units of each row.
    rows : GivenRows
        What the rows are of.
    target : CodesKey
    """
    say = say or silent
    origin = rows.source
    described = source.describe()
    source_hash = source_identity(origin, described)
    axis_plan = find_axis(
        lake.storage,
        target.activations,
        rows,
        append=append,
        is_free=lambda part: is_free(lake.storage, target.at(part).path, source_hash),
    )
    target = target.at(axis_plan.key.part)
    if target.part:
        assert source.d_sae is not None
        about = {"d_sae": source.d_sae, "dtype": source.dtype, "signed": negatives == "keep"}
        arrays = code_arrays(k=source.k, d_sae=source.d_sae, dtype=source.dtype)
        check_appended(lake.storage, target.at(0).path, about, arrays)
    quality = _quality(source)
    axis = axis_plan.store(say)
    identity = {
        "samples": axis.samples,
        "positions": axis.positions,
        "d_sae": source.d_sae,
        "k": source.k,
        "dtype": source.dtype,
        "negatives": negatives,
        "source": source_hash,
    }
    group = _create(lake, target, source, identity, quality, described, signed=negatives == "keep")
    tasks = [
        ImportCodesTask(
            url=lake.storage.url,
            options=dict(lake.storage.options),
            key=target,
            source=source,
            shard=shard,
            first=group.grid.shard(shard).start,
            stop=group.grid.shard(shard).stop,
        )
        for shard in group.missing_shards()
    ]
    for note in described["notes"]:
        say(f"{origin.name}: {note}")
    threads = threads_for(described)
    run_tasks(tasks, label=f"import {origin.name}", unit="rows", threads=threads, quiet=quiet)
    return ImportResult(
        key=target,
        rows=group.grid.rows,
        imported_rows=sum(task.size for task in tasks),
        samples=axis.n_samples,
        dtype=source.dtype,
    )


def _open(lake: Lake, origin: Path, sae: str, d_sae: int | None, negatives: Negatives) -> CodesSource:
    """Open the files with the number of units that they, the caller or the lake's SAE say."""
    source = open_codes(origin, d_sae=d_sae, negatives=negatives)
    if not group_exists(lake.storage, sae_path(sae)):
        if source.d_sae is None:
            raise InputError(
                f"{origin} does not say how many units the SAE has, and the lake has no SAE {sae!r}; give d_sae, or "
                "import the SAE first"
            )
        return source
    units = open_lake_sae(lake.storage, sae).config.d_sae
    if source.d_sae is None:
        return open_codes(origin, d_sae=units, negatives=negatives)
    if source.d_sae != units:
        raise InputError(
            f"{origin} has codes of {source.d_sae:,} units, SAE {sae!r} of the lake has {units:,}; give the name of "
            "the SAE that made the codes"
        )
    return source


def _create(
    lake: Lake,
    key: CodesKey,
    source: CodesSource,
    identity: Mapping[str, Any],
    quality: Mapping[str, Any],
    described: Mapping[str, Any],
    *,
    signed: bool,
) -> RowGroup:
    assert source.d_sae is not None
    arrays = code_arrays(k=source.k, d_sae=source.d_sae, dtype=source.dtype)
    row_bytes = sum(array.row_bytes for array in arrays)
    exact = source.read(0, 1)[2] is not None
    return RowGroup.create(
        lake.storage,
        key.path,
        kind="codes",
        axis="row",
        grid=Grid.plan(
            source.n_rows,
            shard_rows=min(_SHARD_ROWS, max(1, _SHARD_BYTES // row_bytes)),
            chunk_rows=CHUNK_ROWS,
        ),
        arrays=arrays,
        identity=identity,
        attributes={
            "k": source.k,
            "keeps_all": described.get("keeps_all", False),
            "d_sae": source.d_sae,
            "dtype": source.dtype,
            "sample_type": key.sample_type,
            "signed": signed,
            **({} if exact else {"l0_exact": False}),
            "quality": dict(quality),
            "source": dict(described),
            "provenance": provenance.stamp(),
        },
    )


def _quality(source: CodesSource) -> dict[str, Any]:
    """Measure the mean l0 on short runs of rows spread evenly; the rest needs activations, which the file has not."""
    n = source.n_rows
    if n <= _QUALITY_RUNS * _QUALITY_RUN_ROWS:
        starts = np.arange(0, n, _QUALITY_RUN_ROWS)
    else:
        starts = np.linspace(0, n - _QUALITY_RUN_ROWS, _QUALITY_RUNS).astype(np.int64)
    l0 = np.concatenate([_read(source, int(start), min(int(start) + _QUALITY_RUN_ROWS, n))[2] for start in starts])
    return {"explained_variance": None, "l0": float(l0.mean()), "dead_units": None, "rows": int(l0.size)}


def _read(source: CodesSource, start: int, stop: int) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[np.uint32]]:
    """Read rows; where the source does not know l0, count the filled slots."""
    indices, values, l0 = source.read(start, stop)
    return indices, values, np.count_nonzero(values, axis=1).astype(np.uint32) if l0 is None else l0
