"""What the rows of an imported file belong to: the samples, and for tokens and patches the position axis."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore.errors import ConflictError, DependencyError, InputError, MissingError
from saestore.formats.activations import local_path, sniff
from saestore.layout import POSITION_TYPES, ActivationsKey, samples_path
from saestore.parts import check_appended, n_parts, open_axis, parts_of
from saestore.rows import group_exists
from saestore.samples import SampleTable
from saestore.storage import Storage
from saestore.tables import Positions, Samples, stored_parts, table_parts, write_positions, write_samples

Offsets = NDArray[np.int64]

_ARRAYS = ("special",)
"""What is stored of imported positions, beside the offsets: no token is known to be special."""


@dataclass(frozen=True)
class StoredAxis:
    """The axis that imported rows lie on, as it is in the lake.

    samples : digest of the sample table
    positions : digest of the position axis; None where a row is a sample
    n_samples : number of samples
    """

    samples: str
    positions: str | None
    n_samples: int


@dataclass(frozen=True)
class AxisPlan:
    """An axis that fits the rows and what the lake holds; `store` writes what is not there yet.

    key : names the part of the dataset that the rows are
    table : the samples to store; None where the stored table is used
    offsets : (n_samples + 1,) int64; None where a row is a sample
    """

    storage: Storage
    key: ActivationsKey
    table: SampleTable | None
    is_placeholder: bool
    offsets: Offsets | None

    def store(self, say: Callable[[str], None]) -> StoredAxis:
        """Write the samples and the positions, or open them where they are stored.

        Raises
        ------
        ConflictError
            The dataset holds other samples.
        HoleError
            The stored position axis is of another writer, which did not finish it.
        """
        dataset, part = self.key.dataset, self.key.part
        if self.table is None:
            samples = Samples.open_part(self.storage, dataset, part)
        else:
            samples = write_samples(self.storage, dataset, self.table, part)
            if self.is_placeholder:
                new = f"was given no table for its part {part}" if part else "was not in the lake"
                say(
                    f"dataset {dataset!r} {new}: it now has {len(samples):,} samples without "
                    f"{samples.kind}s, split or labels; give a table of samples to have them"
                )
        if self.offsets is None:
            return StoredAxis(samples.digest, None, len(samples))
        hashed = hashlib.sha256(f"imported positions 1\n{samples.digest}\n".encode())
        hashed.update(self.offsets.astype("<i8").tobytes())
        positions = _stored_positions(self.storage, self.key)
        if positions is not None and positions.digest != hashed.hexdigest():
            positions.group.check_present(0, positions.group.grid.rows)
            return StoredAxis(samples.digest, positions.digest, len(samples))
        if positions is None:
            say(
                f"{self.key.model_key.path}: which positions are special tokens is not known of imported rows, so "
                "analyses use them all"
            )
        positions = write_positions(
            self.storage,
            self.key.model_key,
            offsets=self.offsets,
            arrays={name: np.zeros(int(self.offsets[-1]), dtype=bool) for name in _ARRAYS},
            digest=hashed.hexdigest(),
            attributes={
                "samples": samples.digest,
                "content": samples.kind,
                "model_id": self.key.model,
                "revision": None,
                "source_revision": None,
                "max_length": None,
                "truncated": 0,
                "special_known": False,
                "provenance": provenance.stamp(),
            },
        )
        return StoredAxis(samples.digest, positions.digest, len(samples))


@dataclass(frozen=True)
class GivenRows:
    """The rows of a file, and what the caller of an import says of them.

    source : the file, for messages
    n_rows : its rows
    own_per_sample : positions of each sample as the file's own third axis says
    per_sample, offsets, samples : as given
    """

    source: Path
    n_rows: int
    own_per_sample: int | None
    per_sample: int | None
    offsets: NDArray[Any] | str | Path | None
    samples: SampleTable | None


def find_axis(
    storage: Storage, key: ActivationsKey, rows: GivenRows, *, append: bool, is_free: Callable[[int], bool]
) -> AxisPlan:
    """Find the axis that the rows of a file lie on; nothing is written.

    Parameters
    ----------
    append : bool
        Whether the rows are of samples that follow those of the dataset. The table, if there is one, is then of these
        samples, or of all.
    is_free : callable
        Whether nothing but these rows is stored in the place of a part.

    Returns
    -------
    AxisPlan
        Its key names the part: the first, or an appended one that waits for the rows, or a new one.

    Raises
    ------
    InputError
        The rows do not make the samples.
    ConflictError
        The model has another position axis over the dataset, or one of another kind that the rows cannot follow; or
        samples that are to be appended are in it already, or a part before them is not complete.
    MissingError, IntegrityError
        The dataset to append to is not in the lake; or the file of the offsets does not exist, or is damaged.
    """
    if not append:
        return _plan(storage, key, rows)
    stored = stored_parts(storage, key.dataset)
    if not stored:
        raise MissingError(
            f"the lake {storage.url} has no dataset {key.dataset!r} to append to; import the first rows without append"
        )
    table = rows.samples
    own = None if table is None else _without_stored(storage, key.dataset, table, stored)
    rows = replace(rows, samples=own)
    kind: Literal["text", "image"] = "image" if stored[0].kind == "image" else "text"
    first_ids = np.cumsum([0, *map(len, stored)]).tolist()
    for part, known in enumerate(stored[1:], start=1):
        if not is_free(part) or (own is not None and own.digest() != known.digest):
            continue
        try:
            plan = _plan(storage, key.at(part), rows, first_ids[part], kind)
        except (InputError, ConflictError):
            if own is not None:
                raise  # it is this part, and the rows do not fit
        else:
            _check_readable(plan)
            return plan
    plan = _plan(storage, key.at(len(stored)), rows, first_ids[-1], kind)
    _check_readable(plan)
    if plan.table is not None:
        known_ids = np.concatenate([part.ids for part in stored])
        taken = np.flatnonzero(np.isin(np.asarray(plan.table.ids, dtype=object), known_ids))
        if taken.size:
            raise ConflictError(
                f"sample {plan.table.ids[taken[0]]!r} is in dataset {key.dataset!r} already; give a table of the "
                "samples that are new, or of all of them in the order in which they are stored"
            )
    return plan


def _check_readable(plan: AxisPlan) -> None:
    """Refuse rows to append that no reader would find, or that would make the axis unreadable (ConflictError)."""
    storage, key, model = plan.storage, plan.key, plan.key.model_key
    by_position = plan.offsets is not None
    whole = [
        model.at(part).positions_path if by_position else samples_path(key.dataset, part) for part in range(key.part)
    ]
    n_before = len(parts_of(open_axis(storage, whole)))
    if n_before < key.part:
        raise ConflictError(
            f"the rows would be part {key.part} of dataset {key.dataset!r}, which is read only behind part {n_before}, "
            f"and {whole[n_before]} is missing or not complete; run the command that was stopped there again, or "
            "append the rows of its samples first"
        )
    if by_position and not group_exists(storage, model.positions_path):
        check_appended(storage, whole[0], {"arrays": list(_ARRAYS), "model_id": key.model})


def _without_stored(storage: Storage, dataset: str, samples: SampleTable, stored: Sequence[Samples]) -> SampleTable:
    """Return the last piece of a table that holds the stored samples too, or the table where it does not."""
    if samples.ids[0] != stored[0].ids[0]:
        return samples
    return table_parts(storage, dataset, samples)[-1]


def _plan(
    storage: Storage,
    key: ActivationsKey,
    rows: GivenRows,
    first_id: int = 0,
    kind: Literal["text", "image"] | None = None,
) -> AxisPlan:
    """Find the axis over the part of the dataset that the key names.

    Parameters
    ----------
    first_id : int
        Number of the first sample, where the samples have no other name.
    kind : {"text", "image"}, optional
        What the samples of the dataset are; default what the sample type tells.
    """
    source, n_rows, samples = rows.source, rows.n_rows, rows.samples
    own_per_sample, per_sample, offsets = rows.own_per_sample, rows.per_sample, rows.offsets
    stored = _stored_samples(storage, key)
    known = stored if samples is None else samples
    n_known = None if known is None else len(known)
    edges: Offsets | None = None
    if key.sample_type in POSITION_TYPES:
        edges = _edges(storage, key, source, n_rows, own_per_sample, per_sample, offsets, n_known)
        n_found, how = len(edges) - 1, f"{n_rows:,} rows of {len(edges) - 1:,} samples"
    else:
        _refuse_positions(key.sample_type, source, n_rows, own_per_sample, per_sample, offsets)
        n_found, how = n_rows, f"{n_rows:,} rows, one for each sample of kind {key.sample_type}"
    if n_known is not None and n_found != n_known:
        whose = f"{_dataset(storage, key)} has" if samples is None else "the table of samples has"
        raise InputError(
            f"{source} holds {how}, {whose} {n_known:,} samples; give the samples that the file was made from, or "
            f"another dataset name{_growth(storage, key)}"
        )
    table, is_placeholder = samples, False
    if samples is None and (stored is None or not stored.group.is_complete):
        # An unfinished table is the placeholder of a killed import, or a conflict that writing it reports.
        told: Literal["text", "image"] = "image" if key.sample_type == "patch" else "text"
        table, is_placeholder = _placeholder(n_found, kind or told, first_id), True
    return AxisPlan(storage, key, table, is_placeholder, edges)


def _dataset(storage: Storage, key: ActivationsKey) -> str:
    """Return the dataset in words, or the part of it whose rows are asked for."""
    count = n_parts(storage, key.dataset)
    parts = f"part {key.part} of the {count} parts, which are imported one by one, of " if count > 1 else ""
    return f"{parts}dataset {key.dataset!r}"


def _growth(storage: Storage, key: ActivationsKey) -> str:
    """Return the further remedy where rows may be those of samples that are new."""
    return ", or append them (--append) if they are of new samples" if group_exists(storage, key.path) else ""


def _placeholder(n: int, kind: Literal["text", "image"], first_id: int) -> SampleTable:
    """Samples of which only the number is known: ids 0, 1, ..., and no contents."""
    return SampleTable(
        ids=[str(place) for place in range(first_id, first_id + n)],
        kind=kind,
        contents=("",) * n,
    )


def _edges(
    storage: Storage,
    key: ActivationsKey,
    source: Path,
    n_rows: int,
    own: int | None,
    per_sample: int | None,
    offsets: NDArray[Any] | str | Path | None,
    n_known: int | None,
) -> Offsets:
    """Return the first row of each sample and the number of rows, from what was given, the file or the lake."""
    if own is not None and (offsets is not None or per_sample not in (None, own)):
        raise InputError(
            f"{source} has {own} positions for each sample itself (it is 3-D); leave per_sample and offsets out"
        )
    if offsets is not None and per_sample is not None:
        raise InputError(f"per_sample {per_sample} and offsets were both given for {source}; give one of them")
    stored = _stored_positions(storage, key)
    each = per_sample if own is None else own
    if offsets is not None:
        edges = _checked(_read_offsets(offsets), source, n_rows)
    elif each is not None:
        edges = _uniform(source, n_rows, each, n_known)
    elif stored is not None:
        edges = stored.offsets
        if edges[-1] != n_rows:
            raise InputError(
                f"{source} holds {n_rows:,} rows, the position axis of {key.model_key.path} has {edges[-1]:,}; give "
                "the file of the same texts and tokenizer, or another model name with per_sample or offsets"
            )
        return edges
    else:
        fits = n_known is not None and n_rows % n_known == 0
        hint = f" (per_sample {n_rows // n_known} would fit {n_known} samples)" if fits and n_known else ""
        raise InputError(
            f"{source} holds {n_rows:,} rows of {key.sample_type}s, and which sample each belongs to is not known; "
            f"give per_sample where all samples have the same number, else offsets{hint}"
        )
    if stored is not None and not np.array_equal(stored.offsets, edges):
        raise ConflictError(
            f"{key.model_key.positions_path} in {storage.url} has {len(stored.offsets) - 1:,} samples of "
            f"{stored.offsets[-1]:,} positions cut in another way than the {len(edges) - 1:,} samples of {n_rows:,} "
            f"rows of {source}; leave per_sample and offsets out to use that axis, or give another model name"
        )
    return edges


def _uniform(source: Path, n_rows: int, each: int, n_known: int | None) -> Offsets:
    if each < 1:
        raise InputError(f"per_sample is {each}; expected 1 or more")
    if n_known is not None and n_known * each != n_rows:
        raise InputError(
            f"{source} holds {n_rows:,} rows, {n_known:,} samples of {each} positions make {n_known * each:,}; check "
            "per_sample, or give the samples that the file was made from"
        )
    if n_rows % each:
        raise InputError(f"{source} holds {n_rows:,} rows, which are not whole samples of {each}; check per_sample")
    return np.arange(n_rows // each + 1, dtype=np.int64) * each


def _refuse_positions(
    sample_type: str,
    source: Path,
    n_rows: int,
    own: int | None,
    per_sample: int | None,
    offsets: NDArray[Any] | str | Path | None,
) -> None:
    """Refuse positions where a row is a sample."""
    if per_sample is not None or offsets is not None:
        raise InputError(
            f"per_sample and offsets are of positions, and a row of sample type {sample_type} is a whole sample; "
            "leave them out, or choose token or patch"
        )
    if own is not None and own != 1:
        raise InputError(
            f"{source} has {own} positions for each of {n_rows // own:,} samples (it is 3-D), and sample type "
            f"{sample_type} has one row for each; choose token or patch"
        )


def _checked(edges: NDArray[Any], source: Path, n_rows: int) -> Offsets:
    if edges.ndim != 1 or edges.size < 2 or edges.dtype.kind not in "iu":
        raise InputError(
            f"offsets of shape {edges.shape} and type {edges.dtype} were given; expected (n_samples + 1,) whole numbers"
        )
    edges = edges.astype(np.int64)
    if edges[0] != 0 or (np.diff(edges) < 0).any():
        raise InputError(
            "offsets do not rise from 0; expected the first row of each sample, and the number of rows at the end"
        )
    if edges[-1] != n_rows:
        raise InputError(
            f"{source} holds {n_rows:,} rows, the offsets end at {edges[-1]:,}; give the offsets of the same file"
        )
    return edges


def _read_offsets(offsets: NDArray[Any] | str | Path) -> NDArray[Any]:
    """Return offsets that were given as an array or as a `.npy` or `.pt` file of one."""
    if not isinstance(offsets, str | Path):
        return np.asarray(offsets)
    path = local_path(offsets)
    if not path.is_file():
        raise MissingError(f"there is no file {path} of offsets; check the path")
    kind = sniff(path)
    if kind == "npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except ValueError as error:
            raise InputError(f"the offsets {path} cannot be read ({error}); save them with numpy.save") from None
    if kind == "pt":
        return _read_pt_offsets(path)
    raise InputError(f"the offsets {path} are a {kind} file; save them with numpy.save or torch.save")


def _read_pt_offsets(path: Path) -> NDArray[Any]:
    from pickle import UnpicklingError

    try:
        import torch
    except ImportError:
        raise DependencyError(f"reading {path} needs torch; install saestore[torch]") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"the offsets {path} cannot be read ({reason}); save one tensor with torch.save") from None
    if not isinstance(content, torch.Tensor):
        raise InputError(f"the offsets {path} hold a {type(content).__name__}; expected one tensor of whole numbers")
    values: NDArray[Any] = content.numpy()
    return values


def _stored_samples(storage: Storage, key: ActivationsKey) -> Samples | None:
    exists = group_exists(storage, samples_path(key.dataset, key.part))
    return Samples.open_part(storage, key.dataset, key.part) if exists else None


def _stored_positions(storage: Storage, key: ActivationsKey) -> Positions | None:
    model = key.model_key
    return Positions.open_part(storage, model) if group_exists(storage, model.positions_path) else None
