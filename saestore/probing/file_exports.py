"""Write what a lake holds as files of the sparse-probing benchmark: activations, codes, and tables of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from saestore._whole_files import whole_file
from saestore.activations import Activations
from saestore.codes import Codes
from saestore.errors import HoleError, InputError, IntegrityError, MissingError
from saestore.formats.tables import write_table
from saestore.formats.torch_files import StoredTensor, write_sparse, write_tensor
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey
from saestore.probe_results import Probe, ProbedCell, ProbeResult
from saestore.probing.file_imports import BenchmarkFile
from saestore.probing.file_names import (
    CODE_PARTS,
    activations_file,
    codes_file,
    hook_of_layer,
    name_in_files,
)
from saestore.probing.split_codes import normal_cell
from saestore.probing.tasks import Refusal, read_task
from saestore.progress import Progress
from saestore.saes.lake import open_lake_sae

Say = Callable[[str], None]
Key = TypeVar("Key")

RESULTS_FOLDER = "results"

_PLACE = "another FOLDER"
_TOLD = (HoleError, InputError, IntegrityError, MissingError)
_BLOCK_BYTES = 8 << 20
_METRICS = ("test_f1", "test_acc", "test_auc", "val_auc")


def export_activations(
    lake: Lake, keys: Sequence[ActivationsKey], folder: Path, *, quiet: bool = False
) -> Iterator[BenchmarkFile]:
    """Write activations as dense float32 tensors, a row for each sample, and yield what became of each.

    Parameters
    ----------
    lake : Lake
    keys : sequence of ActivationsKey
        Of one row a sample. What cannot be written is yielded with its reason.
    folder : Path
        The benchmark's folder of data.
    quiet : bool
        Show no progress.
    """
    for key in _counted("write activations", keys, quiet):
        about = BenchmarkFile("activations", key.dataset, key.layer, "", "", 0, "left out")
        try:
            stored = Activations.open(lake.storage, key)
            hook = stored.group.attributes.get("saelens_hook_name") or hook_of_layer(key.layer)
            path = folder / activations_file(key.model, key.dataset, hook)
            about = replace(about, file=path.name, rows=stored.n_rows)
            stored.group.check_present(0, stored.n_rows)
            with whole_file(path, option=_PLACE) as partial:
                shape = (stored.n_rows, stored.d_in)
                size = stored.n_rows * stored.d_in * 4
                write_tensor(partial, StoredTensor("FloatStorage", shape, size, _activation_blocks(stored)))
        except _TOLD as error:
            yield replace(about, reason=str(error))
        else:
            yield replace(about, state="written")


def _activation_blocks(stored: Activations) -> Iterator[NDArray[np.float32]]:
    step = max(1, _BLOCK_BYTES // (4 * stored.d_in))
    for start in range(0, stored.n_rows, step):
        yield np.ascontiguousarray(stored.read(start, min(start + step, stored.n_rows)))


def export_codes(
    lake: Lake, keys: Sequence[CodesKey], folder: Path, *, seed: int, quiet: bool = False, say: Say | None = None
) -> Iterator[BenchmarkFile]:
    """Write codes of the normal setting, and yield what became of those of each dataset.

    They are sparse COO tensors of float32, (num_train, d_sae) and (num_test, d_sae), and tensors of labels (int64), in
    the order that the split draws rows in. The four files of a dataset are written all or none.

    Parameters
    ----------
    lake : Lake
    keys : sequence of CodesKey
        Of one row a sample. What cannot be written is yielded with its reason.
    folder : Path
        The benchmark's folder of data.
    seed : int
        Of the split.
    quiet : bool
        Show no progress.
    say : callable, optional
        Is told where rows have more active units than are stored.
    """
    for key in _counted("write codes", keys, quiet):
        about = BenchmarkFile("codes", key.dataset, key.layer, key.sae, "", 0, "left out")
        try:
            codes = Codes.open(lake.storage, key)
            paths = {
                part: folder / codes_file(key.model, key.dataset, _sae_in_files(lake, codes), part)
                for part in CODE_PARTS
            }
            about = replace(about, file=paths[CODE_PARTS[0]].name, rows=codes.n_rows)
            _write_codes(lake, codes, paths, seed)
        except _TOLD as error:
            yield replace(about, reason=str(error))
            continue
        cut = codes.group.flagged("l0")
        if cut and say is not None:
            say(f"{key.path}: {cut:,} rows have more active units than the {codes.k} that are stored and written")
        yield replace(about, state="written")


def _sae_in_files(lake: Lake, codes: Codes) -> str:
    """Return the name that an SAE has in files: that of those its codes came from, else its id, else its own."""
    source = codes.group.attributes.get("source") or {}
    if source.get("format") == "sparse_coo":
        return str(source["key"])
    try:
        sae_id = open_lake_sae(lake.storage, codes.key.sae).config.sae_id
    except _TOLD:
        sae_id = None  # codes may be there without their SAE
    return name_in_files(sae_id or codes.key.sae)


def _write_codes(lake: Lake, codes: Codes, paths: Mapping[str, Path], seed: int) -> None:
    task = read_task(lake.samples(codes.key.dataset))
    if isinstance(task, Refusal):
        raise InputError(f"{task.name}: {task.reason}")
    cell = normal_cell(task, seed)
    of_part = dict(zip(CODE_PARTS, (cell.train, cell.test, cell.train, cell.test), strict=True))
    with ExitStack() as all_or_none:
        for part, path in paths.items():
            partial = all_or_none.enter_context(whole_file(path, option=_PLACE))
            rows = of_part[part]
            if part.startswith("y_"):
                labels = task.labels[rows].astype("<i8")
                write_tensor(partial, StoredTensor("LongStorage", labels.shape, labels.nbytes, [labels]))
            else:
                _write_matrix(partial, codes, rows)


@dataclass(frozen=True)
class _Block:
    """Codes of some rows without empty slots: how many each row has, their units (ascending in a row) and values."""

    counts: NDArray[np.int64]
    units: NDArray[np.int64]
    values: NDArray[np.float32]


def _write_matrix(path: Path, codes: Codes, rows: NDArray[np.int64]) -> None:
    """Write codes of rows as a sparse matrix; they are read three times, so that memory does not grow with them."""
    counts = np.concatenate([block.counts for block in _code_blocks(codes, rows)])
    n = int(counts.sum())
    places = (np.repeat(np.arange(len(part)) + first, part) for first, part in _pieces(counts, codes.k))
    units = (block.units for block in _code_blocks(codes, rows))
    values = (block.values for block in _code_blocks(codes, rows))
    write_sparse(
        path,
        (len(rows), codes.d_sae),
        StoredTensor("LongStorage", (2, n), 16 * n, itertools.chain(places, units)),
        StoredTensor("FloatStorage", (n,), 4 * n, values),
    )


def _code_blocks(codes: Codes, rows: NDArray[np.int64]) -> Iterator[_Block]:
    for _, part in _pieces(rows, codes.k):
        read = codes.rows(part)
        at, slot = np.nonzero(read.values)
        units = read.indices[at, slot].astype("<i8")
        values = read.values[at, slot].astype("<f4", copy=False)
        order = np.lexsort((units, at))
        yield _Block(np.bincount(at, minlength=len(part)), units[order], values[order])


def _pieces(values: NDArray[np.int64], k: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield pieces of a value for each row, with the place of the first, so that k slots of each row fit in memory."""
    step = max(1, _BLOCK_BYTES // (16 * k))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def _counted(label: str, keys: Sequence[Key], quiet: bool) -> Iterator[Key]:
    """Yield keys, showing how many are done."""
    with Progress(label, total=len(keys), unit="datasets", quiet=quiet) as progress:
        for key in keys:
            yield key
            progress.advance(1)


def export_tables(lake: Lake, results: Sequence[ProbeResult], folder: Path) -> Iterator[BenchmarkFile]:
    """Write results as the benchmark's tables, and yield each.

    Tables of baselines have no column of the layer. There is one for each layer in the normal setting, as in the
    benchmark; in the others the benchmark has one layer, and results of several get a table each too. Results of the
    setting `multi_token` have no table there.

    Parameters
    ----------
    lake : Lake
        With the SAEs, for the names that the benchmark gives them.
    results : sequence of ProbeResult
    folder : Path
        Tables are written below it.
    """
    import pandas as pd

    tables: dict[Path, list[dict[str, Any]]] = {}
    layers_of: dict[Hashable, set[str]] = {}
    for result in results:
        if result.sae is None:
            layers_of.setdefault((result.key.model, result.setting), set()).add(result.key.layer)
    ids: dict[str, str] = {}
    for result in results:
        layers = layers_of.get((result.key.model, result.setting), set())
        path = _table_path(result, alone=len(layers) < 2)
        if path is None:
            continue
        if result.sae is not None and result.sae not in ids:
            ids[result.sae] = _sae_id(lake, result.sae)
        for cell in result.cells:
            for probe in cell.probes:
                row = _baseline_row(result, cell, probe) if result.sae is None else _sae_row(result, cell, probe, ids)
                tables.setdefault(folder / RESULTS_FOLDER / path, []).append(row)
    for path, rows in tables.items():
        write_table(path, pd.DataFrame(rows))
        name = str(path.relative_to(folder))
        yield BenchmarkFile("table", "", "", "", name, len(rows), "written")


_BASELINE_FOLDERS = {
    "normal": "normal_settings",
    "scarcity": "scarcity",
    "imbalance": "imbalance",
    "label_noise": "corrupt",
    "ood": "ood",
}
_SAE_FOLDERS = {
    "normal": "normal_setting",
    "scarcity": "scarcity_setting",
    "imbalance": "class_imbalance_setting",
    "label_noise": "label_noise_setting",
    "ood": "OOD_setting",
}
_FRACTION_COLUMNS = {"imbalance": "frac", "label_noise": "corrupt_frac"}


def _table_path(result: ProbeResult, *, alone: bool) -> Path | None:
    """Return where the benchmark has a result, from its folder of results on; None where it has no table."""
    if result.setting not in _BASELINE_FOLDERS:
        return None
    if result.sae is not None:
        return Path(f"sae_probes_{result.key.model}", _SAE_FOLDERS[result.setting], "all_metrics.csv")
    layer = f"layer{_layer(result)}_"
    name = f"{layer}results.csv" if result.setting == "normal" else f"{'' if alone else layer}all_results.csv"
    return Path(f"baseline_probes_{result.key.model}", _BASELINE_FOLDERS[result.setting], name)


def _layer(result: ProbeResult) -> str:
    """Return a layer as the benchmark has it: a number, `embed`, or the name where it is another."""
    return result.key.layer.removeprefix("layer_").removeprefix("hook_")


def _baseline_row(result: ProbeResult, cell: ProbedCell, probe: Probe) -> dict[str, Any]:
    if result.setting == "ood":
        return {"dataset": result.key.dataset, "test_auc_baseline": probe.test_auc}
    row: dict[str, Any] = {"dataset": result.key.dataset, "method": result.method}
    if cell.fraction is not None:
        row["ratio"] = round(cell.fraction * 20) / 20  # as the benchmark's baselines have them
    if result.setting != "normal":
        row["num_train"] = cell.num_train
    return row | {name: getattr(probe, name) for name in _METRICS}


def _sae_row(result: ProbeResult, cell: ProbedCell, probe: Probe, ids: Mapping[str, str]) -> dict[str, Any]:
    assert result.sae is not None
    row: dict[str, Any] = {
        "k": probe.k,
        "dataset": result.key.dataset,
        "layer": _layer(result),
        "sae_id": ids[result.sae],
        "reg_type": result.method.removeprefix("sae-"),
    }
    if result.setting == "scarcity":
        row["num_train"] = cell.num_train
    if result.setting in _FRACTION_COLUMNS:
        row[_FRACTION_COLUMNS[result.setting]] = cell.fraction
    return row | {name: getattr(probe, name) for name in _METRICS}


def _sae_id(lake: Lake, sae: str) -> str:
    """Return an SAE's id where it has one in the lake, else its name."""
    try:
        return open_lake_sae(lake.storage, sae).config.sae_id or sae
    except _TOLD:
        return sae
