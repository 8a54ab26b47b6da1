"""Run probing jobs: each reads its rows once, fits every cell of its setting, and writes one result."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.bridges.packages import imported
from saestore.budget import parse_memory, readable_bytes
from saestore.codes import Codes
from saestore.engine.run import run_tasks
from saestore.errors import InputError
from saestore.lake import Lake
from saestore.probe_results import Probe, ProbedCell, ProbeResult, write_result
from saestore.probing import classifiers
from saestore.probing.attention import attention_probe
from saestore.probing.classifiers import Penalty
from saestore.probing.jobs import LEFT_OUT, Job, Opened, Planned, identity_of, open_job, plan, result_path
from saestore.probing.multi_token import Pooling, concat_probe, pooled_design
from saestore.probing.sae_probes import Design, SampleCodes, fit_probes
from saestore.probing.settings import Cell, Skipped, cells, out_of_distribution
from saestore.probing.tasks import Task, count_shared, text_numbers
from saestore.probing.validation import Scores

Advance = Callable[[int], None]


def run_jobs(
    lake: Lake,
    jobs: Sequence[Job],
    *,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
) -> list[Planned]:
    """Run what is missing of some jobs, and return what there is of each.

    Jobs run side by side, one thread each, and share the memory. What cannot be done, since rows are damaged or do not
    fit the memory for example, has its reason and stops nothing.

    Parameters
    ----------
    lake : Lake
    jobs : sequence of Job
    memory : str or int, optional
        The most that the rows of all jobs that run may take together, such as `4GiB`; default 60 % of the free memory.
    scheduler : str, optional
        Address of a Dask scheduler; default threads.
    quiet : bool
        Show no progress.

    Raises
    ------
    ConflictError
        A result of that name was made differently; nothing is run.
    """
    budget = parse_memory(memory)
    planned = [_affordable(one, budget) for one in plan(lake, jobs)]
    todo = [one for one in planned if one.is_todo]
    largest = max((one.bytes for one in todo), default=0)
    threads = max(1, min(os.cpu_count() or 1, len(todo), budget // max(1, largest)))
    share = budget // threads
    tasks = [ProbeTask(lake.storage.url, dict(lake.storage.options), one.job, share) for one in todo]
    with single_threaded(), warnings.catch_warnings():
        # Most fits with a large C stop at their limit; they are counted in `unconverged`.
        warnings.simplefilter("ignore", imported("sklearn.exceptions", "probing").ConvergenceWarning)
        returned = run_tasks(tasks, label="probe", unit="probes", threads=threads, scheduler=scheduler, quiet=quiet)
    reasons = iter(returned)
    return [one.after(next(reasons), lake.storage) if one.is_todo else one for one in planned]


def _affordable(one: Planned, budget: int) -> Planned:
    if not one.is_todo or one.bytes <= budget:
        return one
    reason = f"its rows take {readable_bytes(one.bytes)}, the memory is {readable_bytes(budget)}; give more (--memory)"
    return replace(one, reason=reason)


@dataclass(frozen=True)
class ProbeTask:
    """One job as work for Dask; `memory` is how many bytes its rows may take."""

    url: str
    options: dict[str, Any]
    job: Job
    memory: int

    @property
    def size(self) -> int:
        """How many probes it fits."""
        return self.job.size

    def run(self, advance: Advance) -> str:
        """Fit the cells of the setting and write the result; return why that cannot be done, or nothing."""
        try:
            self._run(advance)
        except LEFT_OUT as error:
            return str(error)
        return ""

    def _run(self, advance: Advance) -> None:
        lake = Lake.open(self.url, storage_options=self.options)
        opened = open_job(lake, self.job)
        if self.job.method == "attention":
            imported("torch", "the attention probe")  # before its threads are counted
        with single_threaded():
            found = tuple(_probed(self.job, opened, self.memory, advance))
        result = ProbeResult(
            path=result_path(self.job, opened.rows),
            key=self.job.key,
            view=self.job.view,
            name=self.job.options.name,
            setting=self.job.setting,
            method=self.job.method,
            label=opened.task.label,
            classes=opened.task.classes,
            identity=identity_of(self.job, opened),
            truncated=_truncated(opened),
            cells=found,
        )
        write_result(lake.storage, result)


def _truncated(opened: Opened) -> int:
    """Return how many rows of codes have more active units than are stored."""
    groups = {rows.group.path: rows.group for rows in (opened.rows, opened.test_rows) if isinstance(rows, Codes)}
    return sum(group.flagged("l0") for group in groups.values())


def _probed(job: Job, opened: Opened, memory: int, advance: Advance) -> Iterator[ProbedCell]:
    """Yield what becomes of each cell of a job's setting."""
    texts, test_texts = _text_numbers(opened)
    there = _cells(job, opened)
    wanted = [cell for cell in there if isinstance(cell, Cell)]
    fit = _fits(job, opened, wanted, memory)
    other_classes = _other_classes(opened.task, opened.test_task)
    for cell in there:
        if isinstance(cell, Skipped):
            yield ProbedCell(cell.num_train, 0, cell.fraction, 0, cell.reason, (), ())
        else:
            shared = count_shared(texts[cell.train], test_texts[cell.test])
            try:
                units, probes, reason = fit(cell)
            except InputError as error:
                units, probes, reason = (), (), str(error)
            told = "; ".join(filter(None, [reason, other_classes]))
            yield ProbedCell(len(cell.train), len(cell.test), cell.fraction, shared, told, units, probes)
        advance(max(1, len(job.ks)))


def _other_classes(task: Task, test: Task) -> str:
    """Return a warning where training and test rows name their classes differently; the benchmark's do so too."""
    if task.classes == test.classes:
        return ""
    own, others = (" and ".join(classes) for classes in (task.classes, test.classes))
    return f"classes are {own} in training and {others} in the test; they are taken for the same in this order"


Fitted = tuple[tuple[int, ...], tuple[Probe, ...], str]


def _cells(job: Job, opened: Opened) -> list[Cell | Skipped]:
    if job.setting == "ood":
        return [out_of_distribution(opened.task, opened.test_task, seed=job.options.seed)]
    return cells(opened.task, job.setting, seed=job.options.seed)


def _text_numbers(opened: Opened) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return numbers of the texts of the rows that train and of those that test, equal for equal texts."""
    own = opened.samples.contents()
    if opened.test_samples is opened.samples:
        numbers = text_numbers(own)
        return numbers, numbers
    numbers = text_numbers(np.concatenate([own, opened.test_samples.contents()]))
    return numbers[: len(own)], numbers[len(own) :]


def _fits(job: Job, opened: Opened, wanted: Sequence[Cell], memory: int) -> Callable[[Cell], Fitted]:
    """Return what fits a cell; rows of samples are read now, once for all cells."""
    if job.setting == "multi_token":
        return partial(_token_fit, job, opened, memory)
    rows, test_rows = _all_rows(wanted)
    if isinstance(opened.rows, Codes):
        return _sae_fit(job, opened, rows, test_rows)
    return _baseline_fit(job, opened, rows, test_rows)


def _token_fit(job: Job, opened: Opened, memory: int, cell: Cell) -> Fitted:
    seed = job.options.seed
    if isinstance(opened.rows, Codes):
        ks, reason = _possible(job.ks, opened.rows.kept_units)
        if not ks:
            return (), (), reason
        how: Pooling = "mean" if job.method == "sae-mean" else "max"
        design = pooled_design(opened.rows, opened.task, cell, how, limit=ks[-1])
        probes = fit_probes(design, ks=ks, penalty="l1", seed=seed)
        return tuple(design.units.tolist()), tuple(probe_of(one.scores, one.k) for one in probes), reason
    if job.method == "concat":
        return (), (probe_of(concat_probe(opened.rows, opened.task, cell, seed=seed, memory=memory)),), ""
    device = job.options.device
    found = attention_probe(opened.rows, opened.task, cell, seed=seed, device=device, memory=memory)
    return (), (probe_of(found.scores),), ""


def _possible(ks: Sequence[int], units: NDArray[np.int64]) -> tuple[list[int], str]:
    """Return the numbers of units that there are enough units for, and why others are left out."""
    left_out = [k for k in ks if k > len(units)]
    reason = f"k = {', '.join(map(str, left_out))} left out: there are {len(units)} units" if left_out else ""
    return [k for k in ks if k <= len(units)], reason


def _all_rows(wanted: Sequence[Cell]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the dataset that trains which some cell needs, and those of another that tests."""
    nothing = [np.empty(0, dtype=np.int64)]
    own = [cell.test for cell in wanted if cell.test_task == cell.task]
    others = [cell.test for cell in wanted if cell.test_task != cell.task]
    train = [cell.train for cell in wanted]
    return np.unique(np.concatenate(train + own + nothing)), np.unique(np.concatenate(others + nothing))


def _baseline_fit(
    job: Job, opened: Opened, rows: NDArray[np.int64], test_rows: NDArray[np.int64]
) -> Callable[[Cell], Fitted]:
    assert isinstance(opened.rows, Activations)
    assert isinstance(opened.test_rows, Activations)
    fit_and_score = classifiers.BASELINES[job.method]
    x = opened.rows.take(rows)
    other = x if opened.test_rows is opened.rows else opened.test_rows.take(test_rows)
    other_rows = rows if opened.test_rows is opened.rows else test_rows

    def fit(cell: Cell) -> Fitted:
        train = x[np.searchsorted(rows, cell.train)]
        test = other[np.searchsorted(other_rows, cell.test)]
        y_train, y_test = cell.train_labels(opened.task.labels), cell.test_labels(opened.test_task.labels)
        scores = fit_and_score(train, y_train, test, y_test, seed=job.options.seed)
        return (), (probe_of(scores),), ""

    return fit


def _sae_fit(
    job: Job, opened: Opened, rows: NDArray[np.int64], test_rows: NDArray[np.int64]
) -> Callable[[Cell], Fitted]:
    assert isinstance(opened.rows, Codes)
    assert isinstance(opened.test_rows, Codes)
    codes = SampleCodes(opened.rows, rows)
    other = codes if opened.test_rows is opened.rows else SampleCodes(opened.test_rows, test_rows)
    ks, reason = _possible(job.ks, codes.units)

    def fit(cell: Cell) -> Fitted:
        if not ks:
            return (), (), reason
        y_train, y_test = cell.train_labels(opened.task.labels), cell.test_labels(opened.test_task.labels)
        best = codes.rank(cell.train, y_train, limit=ks[-1], normalisation=job.options.normalisation)
        x_train, x_test = codes.columns(cell.train, best.units), other.columns(cell.test, best.units)
        design = Design(best.units, x_train, y_train, x_test, y_test)
        penalty: Penalty = "l1" if job.method == "sae-l1" else "l2"
        probes = fit_probes(design, ks=ks, penalty=penalty, seed=job.options.seed)
        return tuple(best.units.tolist()), tuple(probe_of(one.scores, one.k) for one in probes), reason

    return fit


def probe_of(scores: Scores, k: int | None = None) -> Probe:
    """Return what is stored of the scores of a probe."""
    return Probe(
        k=k,
        test_f1=scores.test_f1,
        test_acc=scores.test_acc,
        test_auc=scores.test_auc,
        val_auc=None if np.isnan(scores.val_auc) else scores.val_auc,
        chosen=_plain(scores.chosen),
        fits=scores.fits,
        unconverged=scores.unconverged,
    )


def _plain(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


_first: list[Any] = []
_holders = 0
_counting = threading.Lock()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep linear algebra to one thread while someone is inside; tasks are what runs side by side.

    Results then do not depend on the number of cores either. Some libraries count threads for the process, others for
    the thread that calls them: each who enters limits both, and the last to leave gives the process's back.
    """
    global _holders
    with _counting:
        own = imported("threadpoolctl", "probing").threadpool_limits(limits=1)
        if not _holders:
            _first.append(own)
        _holders += 1
    try:
        yield
    finally:
        with _counting:
            _holders -= 1
            if own not in _first:
                own.restore_original_limits()  # the process's were 1 already
            if not _holders:
                _first.pop().restore_original_limits()
