"""Bring the files of the sparse-probing benchmark into a lake; what cannot be is told, and stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations, to_float32
from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.formats.activations import open_activations
from saestore.formats.fingerprint import sampled_digest
from saestore.formats.importer_activations import import_activations
from saestore.formats.importer_axes import GivenRows
from saestore.formats.importer_codes import import_code_source
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey
from saestore.probing.file_names import CODE_PARTS, ActivationsFile, FoundFiles, is_ood
from saestore.probing.split_codes import SparseRow, SplitCodes, open_split_codes
from saestore.probing.tasks import Refusal, read_task
from saestore.rows import RowGroup, group_exists
from saestore.saes.lake import LakeWeights, open_lake_sae
from saestore.samples import SampleTable

SAMPLE_TYPE = "last"

State = Literal["imported", "stored", "written", "left out"]
Say = Callable[[str], None]
Tables = Mapping[str, Callable[[], SampleTable]]
"""What reads the samples of each known dataset."""

_TOLD = (ConflictError, HoleError, InputError, IntegrityError, MissingError)
_BLOCK_BYTES = 8 << 20
_COMPARED_ROWS = 8
_MOST_DIFFERENT = 0.05
_ENCODED_SLOTS = 8 << 20  # of rows that are encoded together: at most 100 MB of codes


@dataclass(frozen=True)
class BenchmarkFile:
    """What became of a file of the benchmark; codes of a dataset are four files, of which one is named.

    kind : `activations`, `codes`, `table`, or empty for a file that is none of the benchmark's
    file : its name
    rows : of the dataset, or of a table
    state : `imported`; `stored` where it was in the lake; `written`; or `left out`
    reason : why it was left out
    """

    kind: str
    dataset: str
    layer: str
    sae: str
    file: str
    rows: int
    state: State
    reason: str = ""


def import_activation_files(
    lake: Lake,
    found: FoundFiles,
    tables: Tables,
    *,
    model: str,
    layer: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
) -> Iterator[BenchmarkFile]:
    """Import files of activations as rows of sample type `last`, and yield what became of each.

    A file is expected of each task for each hook that there is a file of, and of the datasets that test out of
    distribution where there is one of these; what is not there is told, unless the lake holds it.

    Parameters
    ----------
    found : FoundFiles
    tables : mapping
        Of the datasets that are wanted.
    layer : str, optional
        Only that of this name in the lake.
    """
    wanted = [file for file in found.activations if file.dataset in tables and layer in (None, file.layer)]
    for file in wanted:
        yield _imported_activations(lake, file, tables[file.dataset], model, quiet, say)
    there = {(file.dataset, file.hook) for file in wanted}
    for ood in (False, True):
        hooks = {file.hook: file.layer for file in wanted if is_ood(file.dataset) == ood}
        for dataset in tables:
            if is_ood(dataset) != ood:
                continue
            for hook, hook_layer in hooks.items():
                key = ActivationsKey(dataset, model, hook_layer, SAMPLE_TYPE)
                expected = (dataset, hook) not in there and not group_exists(lake.storage, key.path)
                if expected and _is_task(tables[dataset]):
                    name = f"{dataset}_{hook}.pt"
                    yield BenchmarkFile("activations", dataset, hook_layer, "", name, 0, "left out", "there is no file")


def _is_task(table: Callable[[], SampleTable]) -> bool:
    try:
        return len(table().concept_names) == 1
    except _TOLD:
        return True  # its own error is to be told where a file of it is imported


def _imported_activations(
    lake: Lake, file: ActivationsFile, table: Callable[[], SampleTable], model: str, quiet: bool, say: Say | None
) -> BenchmarkFile:
    about = BenchmarkFile("activations", file.dataset, file.layer, "", file.path.name, 0, "left out")
    key = ActivationsKey(file.dataset, model, file.layer, SAMPLE_TYPE)
    try:
        if not group_exists(lake.storage, key.path):
            _check_finite(file.path)
        result = import_activations(
            lake,
            file.path,
            dataset=file.dataset,
            model=model,
            layer=file.layer,
            sample_type=SAMPLE_TYPE,
            samples=table(),
            hook_name=file.hook,
            quiet=quiet,
            say=say,
        )
    except _TOLD as error:
        return replace(about, reason=str(error))
    return replace(about, rows=result.rows, state="imported" if result.imported_rows else "stored")


def _check_finite(path: Path) -> None:
    """Refuse rows with NaN or infinite values before anything of them is stored (InputError)."""
    with open_activations(path) as source:
        step = max(1, _BLOCK_BYTES // (4 * source.d_in))
        for start in range(0, source.n_rows, step):
            rows = to_float32(source.read(start, min(start + step, source.n_rows)), source.dtype)
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise InputError(f"{path}: row {start + int(np.argmax(bad))} is not finite; make the file again")


@dataclass(frozen=True)
class _Opened:
    """The codes of one dataset, before they are stored."""

    about: BenchmarkFile
    key: CodesKey
    codes: SplitCodes


def import_code_files(
    lake: Lake,
    files: Mapping[str, Mapping[str, Path]],
    tables: Tables,
    *,
    name: str,
    model: str,
    layer: str,
    sae: str,
    seed: int,
    quiet: bool = False,
    say: Say | None = None,
) -> Iterator[BenchmarkFile]:
    """Import the codes of one SAE, of the normal setting, and yield what became of those of each dataset.

    Rows go back to their samples by the benchmark's split, which the files of labels are checked against. The rows that
    no file has are encoded with the SAE of the lake from the activations of the lake, and so are a few others: where
    these are not as in the files, the codes are left out.

    Parameters
    ----------
    files : mapping
        Dataset -> part -> path, of this SAE.
    tables : mapping
        Of the datasets that are wanted.
    name : str
        Of the SAE in the files.
    layer, sae : str
        Names in the lake.
    seed : int
        Of the split.
    """
    opened: list[_Opened] = []
    for dataset in tables:
        paths = files.get(dataset, {})
        key = CodesKey(dataset, model, layer, sae, SAMPLE_TYPE)
        about = BenchmarkFile("codes", dataset, layer, sae, f"{dataset}_{name}_{CODE_PARTS[0]}.pt", 0, "left out")
        if not paths and (is_ood(dataset) or group_exists(lake.storage, key.path) or not _is_task(tables[dataset])):
            continue
        try:
            found = _stored_or_opened(lake, key, name, paths, seed)
        except _TOLD as error:
            yield replace(about, reason=str(error))
            continue
        if isinstance(found, int):
            yield replace(about, rows=found, state="stored")
        else:
            opened.append(_Opened(about, key, found))
    for one, whole in _completed(lake, opened, sae):
        if isinstance(whole, str):
            yield replace(one.about, reason=whole)
            continue
        try:
            rows = GivenRows(whole.train.path.parent, whole.n_rows, None, None, None, None)
            result = import_code_source(lake, whole, rows, target=one.key, quiet=quiet, say=say)
        except _TOLD as error:
            yield replace(one.about, reason=str(error))
        else:
            yield replace(one.about, rows=result.rows, state="imported")


def _stored_or_opened(lake: Lake, key: CodesKey, name: str, paths: Mapping[str, Path], seed: int) -> int | SplitCodes:
    """Return the rows of codes that came from these files already, or the files opened and checked."""
    missing = [part for part in CODE_PARTS if part not in paths]
    if missing:
        raise MissingError(f"there is no file {', '.join(f'{key.dataset}_{name}_{part}.pt' for part in missing)}")
    if group_exists(lake.storage, key.path):
        group = RowGroup.open(lake.storage, key.path)
        stored = group.attributes["identity"].get("source") or {}
        if stored.get("digest") != sampled_digest([paths[part] for part in CODE_PARTS[:2]]):
            raise ConflictError(f"{key.path} holds codes that did not come from these files; give another --sae")
        if group.is_complete:
            return group.grid.rows
    task = read_task(lake.samples(key.dataset))
    if isinstance(task, Refusal):
        raise InputError(f"{task.name}: {task.reason}")
    return open_split_codes(name, paths, task, seed=seed)


def _completed(lake: Lake, opened: Sequence[_Opened], sae: str) -> Iterator[tuple[_Opened, SplitCodes | str]]:
    """Yield codes with the rows that no file has, or why these cannot be made; the SAE is read once for many."""
    weights: LakeWeights | str
    try:
        weights = open_lake_sae(lake.storage, sae)
    except _TOLD as error:
        weights = str(error)
    todo: list[tuple[_Opened, NDArray[np.int64], NDArray[np.float32]]] = []
    for one in opened:
        absent = one.codes.absent
        if not absent.size:
            yield one, one.codes
            continue
        which = f"row {absent[0]}" if len(absent) == 1 else f"{len(absent)} rows"
        needs = f"the benchmark's files leave {which} of {one.key.dataset} out, to be encoded here, and"
        if isinstance(weights, str):
            yield one, f"{needs} {weights}"
            continue
        if weights.config.d_sae != one.codes.d_sae:
            yield one, f"{one.codes.train.path} is of {one.codes.d_sae:,} units, SAE {sae} has {weights.config.d_sae:,}"
            continue
        present = np.flatnonzero(one.codes.place >= 0)
        compared = present[np.linspace(0, len(present) - 1, _COMPARED_ROWS).astype(int)]
        rows = np.concatenate([absent, np.unique(compared)])
        try:
            todo.append((one, rows, Activations.open(lake.storage, one.key.activations).take(rows)))
        except _TOLD as error:
            yield one, f"{needs} its activations cannot be read: {error}"
    if todo:
        assert not isinstance(weights, str)
        yield from _filled(weights, todo)


def _filled(
    weights: LakeWeights, todo: Sequence[tuple[_Opened, NDArray[np.int64], NDArray[np.float32]]]
) -> Iterator[tuple[_Opened, SplitCodes | str]]:
    """Yield codes with the rows that no file has, where the SAE makes the others of their activations too."""
    narrow = [one for one in todo if one[2].shape[1] != weights.config.d_in]
    for one, _, x in narrow:
        yield one, f"the activations are {x.shape[1]} wide, SAE {weights.name} has d_in {weights.config.d_in}"
    fitting = [one for one in todo if one[2].shape[1] == weights.config.d_in]
    if not fitting:
        return
    k = max(one.codes.k for one, _, _ in fitting)
    encoded = iter(_encoded(weights, np.concatenate([x for _, _, x in fitting]), k))
    for one, rows, _ in fitting:
        made = dict(zip(rows.tolist(), encoded, strict=False))
        absent = one.codes.absent.tolist()
        others = np.array([row for row in rows.tolist() if row not in absent], np.int64)
        apart = [_difference(made[int(row)], known) for row, known in zip(others, one.codes.rows(others), strict=True)]
        if max(apart) > _MOST_DIFFERENT:
            why = (
                f"SAE {weights.name} makes other codes of the activations in the lake than the files hold: of "
                f"{len(apart)} rows one differs by {max(apart):.0%}; import the SAE and the activations that made them"
            )
            yield one, why
            continue
        filled = {row: made[row] for row in absent}
        yield one, replace(one.codes, filled=filled, encoder=weights.content_hash())


def _encoded(weights: LakeWeights, x: NDArray[np.float32], k: int) -> Iterator[SparseRow]:
    """Yield all active units of rows."""
    from saestore.encoding.encoder import Encoder
    from saestore.kernels.quantize import as_float32

    encoder = Encoder(weights, device="cpu", hold=False)
    step = max(64, _ENCODED_SLOTS // k)
    for start in range(0, len(x), step):
        block = x[start : start + step]
        codes = encoder.encode(block, k).codes
        most = int(np.asarray(codes.l0).max())
        if most > k:
            codes = encoder.encode(block, most).codes
        for units, values in zip(np.asarray(codes.indices), as_float32(np.asarray(codes.values)), strict=True):
            kept = np.flatnonzero(values)
            kept = kept[np.argsort(units[kept])]
            yield units[kept].astype(np.int64), values[kept].astype(np.float32)


def _difference(made: SparseRow, known: SparseRow) -> float:
    """Return how far codes of a row are from those that are known, relative to these."""
    units = np.union1d(made[0], known[0])
    dense = np.zeros((2, len(units)))
    for line, (active, values) in enumerate((made, known)):
        dense[line, np.searchsorted(units, active)] = values
    norm = float(np.linalg.norm(dense[1]))
    apart = float(np.linalg.norm(dense[0] - dense[1]))
    return apart / norm if norm else float(apart > 0)
