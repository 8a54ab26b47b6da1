"""Import activations of other tools' files into the lake: one task per shard, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ACTIVATION_DTYPES, ARRAY, create_activations, to_float32
from saestore.engine.run import run_tasks
from saestore.errors import InputError
from saestore.formats.activations import local_path, open_activations
from saestore.formats.importer_axes import GivenRows, find_axis
from saestore.formats.importer_source import ImportResult, is_free, silent, source_identity, threads_for
from saestore.formats.sources import RowSource
from saestore.lake import Lake, layer_name
from saestore.layout import ActivationsKey
from saestore.parts import check_appended
from saestore.progress import Progress
from saestore.rows import RowGroup, group_exists
from saestore.samples import SampleTable
from saestore.storage import open_storage

_BLOCK_BYTES = 8 << 20
_LARGEST = {"float16": 65_504.0, "bfloat16": 3.3895314e38}


@dataclass(frozen=True)
class ImportActivationsTask:
    """One shard of activations; see `ShardTask`. A source is names and numbers: where its arrays lie in which files."""

    url: str
    options: Mapping[str, Any] = field(hash=False)
    key: ActivationsKey
    source: RowSource = field(hash=False)
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
        dtype = str(group.attributes["dtype"])
        rows = np.empty((self.size, int(group.attributes["d_in"])), dtype=np.uint16 if dtype == "bfloat16" else dtype)
        nonfinite = 0
        for start, stop in _blocks(self.source, self.first, self.stop):
            block = as_stored(self.source.read(start, stop), self.source.dtype, dtype)
            rows[start - self.first : stop - self.first] = block
            nonfinite += block.size - int(np.count_nonzero(_finite(block)))
            advance(stop - start)
        group.write_shard(self.shard, {ARRAY: rows}, flagged={ARRAY: nonfinite})


def import_activations(
    lake: Lake,
    path: str | Path,
    *,
    dataset: str,
    model: str,
    layer: str | int,
    sample_type: str,
    key: str | None = None,
    per_sample: int | None = None,
    offsets: NDArray[Any] | str | Path | None = None,
    samples: SampleTable | None = None,
    append: bool = False,
    hook_name: str | None = None,
    dtype: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> ImportResult:
    """Import activations from `.pt`, `.npy`, `.npz` or safetensors files; what is stored already is left alone.

    The file is read once, two shards of 64 MiB at a time (about 0.5 GB of memory at most). A killed import that is run
    again goes on. Whether the file is still the same one is told by its size, shape and type and by a digest of blocks
    of it (`sampled_digest`).

    Parameters
    ----------
    lake : Lake
    path : str or Path
        A file, a `*_chunks_info.json`, a folder of chunks, or the name without `_chunk_0`; see `open_activations`.
        Arrays are (rows, d_in) or (samples, positions, d_in).
    dataset, model, layer, sample_type
        The place in the lake. With `token` and `patch` a row is a position, with `cls`, `mean`, `max` and `last` a
        sample.
    key : str, optional
        Which array, where a file holds several.
    per_sample : int, optional
        Positions of each sample, where all have the same number.
    offsets : (n_samples + 1,) integers, or a `.npy` or `.pt` file of them, optional
        First row of each sample, and the number of rows. Of token and patch rows one of these is needed: a 3-D array,
        `per_sample`, `offsets`, or a stored position axis of the model.
    samples : SampleTable, optional
        What the rows were computed from; default the stored table of the dataset. If there is none, a placeholder is
        stored: ids `0`, `1`, ..., empty contents, images for `patch` and texts for all other types.
    append : bool
        The rows are of samples that follow those of the dataset: they become a part of their own, and what is stored
        stays as it is. `samples` is then a table of the new samples, or of all; without one they get numbers.
    hook_name : str, optional
        SAELens' name of the hook point, such as `blocks.3.hook_resid_post`; `encode` compares it with the SAE's.
    dtype : {"float16", "bfloat16", "float32"}, optional
        Stored precision; default the file's own (float64 becomes float32). A narrower one reads the file twice, since
        all values are checked before anything is written.
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
        The file, a name or an option cannot be used; the rows do not make the samples; no value is finite; or a value
        does not fit `dtype`.
    MissingError
        The file does not exist.
    IntegrityError
        The file is damaged, or changed while it was read.
    ConflictError
        The lake holds other samples, positions or activations in that place.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.save(f"{folder.name}/acts.npy", np.ones((6, 4), np.float16))
    >>> lake = Lake.create(f"{folder.name}/lake")
    >>> import_activations(
    ...     lake, f"{folder.name}/acts.npy", dataset="d", model="m", layer=3, sample_type="token", per_sample=2
    ... ).rows
    6
    """
    say = say or silent
    if dtype is not None and dtype not in ACTIVATION_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose from {', '.join(ACTIVATION_DTYPES)}")
    target = ActivationsKey(dataset, model, str(layer_name(layer)), sample_type)
    origin = local_path(path)
    with open_activations(origin, key=key) as source:
        described = source.describe()
        stored_dtype = dtype or source.dtype
        identity = source_identity(origin, described)
        axis_plan = find_axis(
            lake.storage,
            target,
            GivenRows(origin, source.n_rows, source.per_sample, per_sample, offsets, samples),
            append=append,
            is_free=lambda part: is_free(lake.storage, target.at(part).path, identity),
        )
        target = axis_plan.key
        if target.part:
            check_appended(lake.storage, target.at(0).path, {"d_in": source.d_in, "dtype": stored_dtype})
        if not group_exists(lake.storage, target.path):
            _check_values(source, origin, stored_dtype, quiet=quiet)
        axis = axis_plan.store(say)
        group = create_activations(
            lake.storage,
            target,
            rows=source.n_rows,
            d_in=source.d_in,
            dtype=stored_dtype,
            # The precision that the model ran in is not in the file; `extract` compares it with its own.
            identity={"samples": axis.samples, "positions": axis.positions, "model_dtype": None, "source": identity},
            attributes={"saelens_hook_name": hook_name, "source": described, "provenance": provenance.stamp()},
        )
        tasks = [
            ImportActivationsTask(
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
        if hook_name is None:
            say(
                f"{target.path}: no hook name was given, so encode can hold an SAE's layer number against it and no "
                "more; give --hook-name if you know it"
            )
        threads = threads_for(described)
        run_tasks(tasks, label=f"import {origin.name}", unit="rows", threads=threads, quiet=quiet)
    nonfinite = group.flagged(ARRAY)
    if nonfinite:
        say(f"{target.path}: {nonfinite:,} values are not finite; encode refuses such rows")
    return ImportResult(
        key=target,
        rows=group.grid.rows,
        imported_rows=sum(task.size for task in tasks),
        samples=axis.n_samples,
        dtype=stored_dtype,
        nonfinite=nonfinite,
    )


def as_stored(rows: NDArray[Any], source_dtype: str, dtype: str) -> NDArray[Any]:
    """Convert rows between the three stored types, rounding to nearest, ties to even.

    Parameters
    ----------
    rows : array
        float16, float32, or uint16 with the bit patterns of bfloat16.
    source_dtype, dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    array of the same shape
        NaN and infinities stay what they are.

    Raises
    ------
    InputError
        A finite value is too large for `dtype`; the message names the largest.
    """
    if source_dtype == dtype:
        return rows
    wide = to_float32(rows, source_dtype)
    if dtype == "float32":
        return wide
    stored: NDArray[Any]
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            stored = wide.astype(np.float16)
    else:
        bits = np.ascontiguousarray(wide).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        stored = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
        stored[np.isnan(wide)] = 0x7FC0  # adding to the bits of a NaN may make another number of it
    lost = np.isfinite(wide) & ~_finite(stored)
    if lost.any():
        largest = float(np.abs(wide[lost]).max())
        remedy = "bfloat16 or float32" if dtype == "float16" else "float32"
        raise InputError(
            f"an activation of magnitude {largest:.6g} does not fit {dtype} (at most {_LARGEST[dtype]:.6g}); "
            f"store {remedy}"
        )
    return stored


def _check_values(source: RowSource, origin: Path, dtype: str, *, quiet: bool) -> None:
    """Refuse rows that cannot be stored or used, before anything is written; most files need the first block only."""
    # Only when the type narrows must every value be seen.
    narrows = dtype not in (source.dtype, "float32")
    found = False
    with Progress(f"check {origin.name}", total=source.n_rows, unit="rows", quiet=quiet) as progress:
        for start, stop in _blocks(source, 0, source.n_rows):
            try:
                block = as_stored(source.read(start, stop), source.dtype, dtype)
            except InputError as error:
                raise InputError(f"{origin}, rows {start} to {stop - 1}: {error}") from None
            found = found or bool(_finite(block).any())
            if found and not narrows:
                return
            progress.advance(stop - start)
    if not found:
        raise InputError(
            f"{origin}: none of its {source.n_rows:,} x {source.d_in} values is finite; run the model in float32 or "
            "bfloat16 and save them again"
        )


def _blocks(source: RowSource, first: int, stop: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // (4 * source.d_in))
    return [(start, min(start + step, stop)) for start in range(first, stop, step)]


def _finite(stored: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_]
    if stored.dtype == np.uint16:  # bfloat16: not all exponent bits set
        finite = (stored & np.uint16(0x7F80)) != 0x7F80
    else:
        finite = np.isfinite(stored)
    return finite
