"""What is to be probed: which methods in which settings, over which activations or codes, and why some cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from saestore.activations import Activations
from saestore.codes import Codes
from saestore.errors import BudgetError, HoleError, InputError, IntegrityError, MissingError, SaestoreError
from saestore.kernels.class_sums import Normalisation
from saestore.lake import Lake
from saestore.layout import ALL_UNITS, POSITION_TYPES, PROBES, ActivationsKey, CodesKey, RowsKey, check_name, probe_path
from saestore.probe_results import ProbeResult, check_free, read_result
from saestore.probing.multi_token import POOLED_K
from saestore.probing.quiver import BASELINES
from saestore.probing.sae_probes import KS, OTHER_KS
from saestore.probing.settings import GRID_CELLS, SettingName
from saestore.probing.splits import MAX_ROWS, SEED
from saestore.probing.tasks import Refusal, Task, read_task
from saestore.storage import Storage
from saestore.tables import Samples

SAE_METHODS = ("sae-l1", "sae-l2")
TOKEN_BASELINES = ("concat", "attention")
TOKEN_SAE_METHODS = ("sae-mean", "sae-max")
METHODS = (*BASELINES, *SAE_METHODS, *TOKEN_BASELINES, *TOKEN_SAE_METHODS)

SETTINGS: Mapping[SettingName, tuple[str, ...]] = {
    "normal": (*BASELINES, *SAE_METHODS),
    "scarcity": (*BASELINES, *SAE_METHODS),
    "imbalance": (*BASELINES, *SAE_METHODS),
    "label_noise": ("logreg", *SAE_METHODS),
    "ood": ("logreg", *SAE_METHODS),
    "multi_token": (*TOKEN_BASELINES, *TOKEN_SAE_METHODS),
}
"""The settings, and what the benchmark probes with in each."""

TEST_DATASET = "{dataset}_OOD"
"""The name of the dataset that tests out of distribution what another one trained."""

_COLUMN_BYTES = 36  # of a number of a design: 34 were measured with logreg, 22 to 24 with the other methods
_SLOT_BYTES = 64  # of a slot of codes, with the entries that are counted
_UNIT_BYTES = 64  # of a unit, while units are ranked


LEFT_OUT = (MissingError, InputError, IntegrityError, HoleError, BudgetError)
"""Errors that leave a job out and stop no other."""


@dataclass(frozen=True)
class ProbeOptions:
    """How to probe.

    name : of the results
    label : column or concept of the sample tables; None for `label` or `target`
    ks : numbers of units of SAE probes; None for those of the benchmark
    normalisation : of the ranking of units, as for `SampleCodes.rank`
    seed : of splits, flipped labels, folds, solvers and draws
    test_dataset : name of the dataset that tests out of distribution
    device : of attention probes
    """

    name: str = "default"
    label: str | None = None
    ks: tuple[int, ...] | None = None
    normalisation: Normalisation = "mean"
    seed: int = SEED
    test_dataset: str = TEST_DATASET
    device: str = "cpu"

    def tests(self, dataset: str) -> str:
        """Return the name of the dataset that tests out of distribution what another one trains."""
        return self.test_dataset.replace("{dataset}", dataset)

    def __post_init__(self) -> None:
        check_name(self.name, "result")
        if self.ks is not None and (not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks)):
            raise InputError(f"numbers of units are {list(self.ks)}; expected different positive ones")
        if self.normalisation not in get_args(Normalisation):
            raise InputError(f"normalisation {self.normalisation!r}; choose mean or none")
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed {self.seed}; expected a whole number from 0 to {(1 << 32) - 1}")


@dataclass(frozen=True)
class Job:
    """One method in one setting, over the rows of one dataset; picklable.

    key : the activations or codes
    view : of the codes; None for all units
    """

    key: RowsKey
    view: str | None
    setting: SettingName
    method: str
    options: ProbeOptions

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of units to probe with, ascending; none of activations."""
        if not isinstance(self.key, CodesKey):
            return ()
        if self.setting == "multi_token":
            return (POOLED_K,) if self.options.ks is None else tuple(sorted(self.options.ks))
        default = KS if self.setting == "normal" else OTHER_KS
        return default if self.options.ks is None else tuple(sorted(self.options.ks))

    @property
    def size(self) -> int:
        """How many probes it fits, skipped cells counted."""
        return GRID_CELLS[self.setting] * max(1, len(self.ks))

    @property
    def test_dataset(self) -> str | None:
        """The dataset that tests, where it is another one."""
        return self.options.tests(self.key.dataset) if self.setting == "ood" else None


@dataclass(frozen=True)
class Opened:
    """What a job reads.

    rows, test_rows : activations or codes; the same where a dataset tests itself
    """

    samples: Samples
    task: Task
    rows: Activations | Codes
    test_samples: Samples
    test_task: Task
    test_rows: Activations | Codes


@dataclass(frozen=True)
class Planned:
    """A job, and what there is of it.

    path : of its result; None where nothing can be said
    reason : why it cannot be done; else empty
    result : what is stored already, or None
    bytes : the most that its rows take while it is run; 0 for tokens, which take what they are given
    """

    job: Job
    path: str | None
    reason: str
    result: ProbeResult | None
    bytes: int = 0

    @property
    def is_todo(self) -> bool:
        """Whether there is no result, and nothing against making it."""
        return self.result is None and not self.reason

    def after(self, reason: str, storage: Storage) -> Planned:
        """Return the same after it was run: with why it was left out, or else the result that is there now."""
        assert self.path is not None
        result = None if reason else read_result(storage, self.path, self.job.key)
        return replace(self, reason=reason, result=result)


def open_job(lake: Lake, job: Job) -> Opened:
    """Open what a job reads.

    Raises
    ------
    MissingError, IntegrityError
        Activations or codes, samples or a view are absent or damaged.
    HoleError
        Rows of them were never written.
    InputError
        The dataset, or that which tests, is no task, and why.
    """
    samples, task, rows = _open(lake, job.key, job.view, job.options.label)
    if job.test_dataset is None:
        return Opened(samples, task, rows, samples, task, rows)
    if job.test_dataset == job.key.dataset:
        raise InputError(f"{job.key.dataset} would test what it has trained itself; give another --test-dataset")
    test_key = at_dataset(job.key, job.test_dataset)
    return Opened(samples, task, rows, *_open(lake, test_key, job.view, job.options.label))


def _open(lake: Lake, key: RowsKey, view: str | None, label: str | None) -> tuple[Samples, Task, Activations | Codes]:
    samples = lake.samples(key.dataset)
    rows: Activations | Codes
    if isinstance(key, CodesKey):
        codes = Codes.open(lake.storage, key)
        rows = codes if view is None else codes.view(view)
    else:
        rows = Activations.open(lake.storage, key)
    rows.group.check_present(0, rows.group.grid.rows)
    task = read_task(samples, label)
    if isinstance(task, Refusal):
        raise InputError(f"{task.name}: {task.reason}")
    return samples, task, rows


def at_dataset(key: RowsKey, dataset: str) -> RowsKey:
    """Return the same place under another dataset."""
    if isinstance(key, CodesKey):
        return CodesKey(dataset, key.model, key.layer, key.sae, key.sample_type)
    return ActivationsKey(dataset, key.model, key.layer, key.sample_type)


def identity_of(job: Job, opened: Opened) -> dict[str, Any]:
    """Return what determines the numbers of a job, as JSON values."""
    same = opened.test_rows is opened.rows
    identity: dict[str, Any] = {
        "samples": opened.samples.digest,
        "label": opened.task.label,
        "rows": opened.rows.group.attributes["run"],
        "seed": job.options.seed,
        "test": None
        if same
        else {"samples": opened.test_samples.digest, "rows": opened.test_rows.group.attributes["run"]},
    }
    if isinstance(job.key, CodesKey):
        normalisation = "none" if job.setting == "multi_token" else job.options.normalisation
        identity |= {"ks": list(job.ks), "view": job.view, "normalisation": normalisation}
    return identity


def bytes_of(job: Job, opened: Opened) -> int:
    """Return the most that the rows of a job take; 0 for jobs on tokens, which are given a limit.

    Measured: of activations float32 rows, float64 training and test rows, and scaled or fitted copies of these; of
    codes entries, and columns of the chosen units in the same copies.
    """
    if job.setting == "multi_token":
        return 0
    n = min(MAX_ROWS, len(opened.task)) + (0 if opened.test_rows is opened.rows else len(opened.test_task))
    if isinstance(opened.rows, Codes):
        return n * (opened.rows.k * _SLOT_BYTES + job.ks[-1] * _COLUMN_BYTES) + opened.rows.d_sae * _UNIT_BYTES
    return n * opened.rows.d_in * _COLUMN_BYTES


def result_path(job: Job, rows: Activations | Codes) -> str:
    """Return where the result of a job lies."""
    if isinstance(job.key, CodesKey):
        assert isinstance(rows, Codes)
        root = job.key.results_path(rows.run, job.view or ALL_UNITS, PROBES)
    else:
        root = job.key.probes_path
    return probe_path(root, job.options.name, f"{job.setting}-{job.method}")


def plan(lake: Lake, jobs: Sequence[Job]) -> list[Planned]:
    """Say of each job whether it is done, can be done, or why it cannot; nothing is written.

    Raises
    ------
    ConflictError
        A result of that name was made differently.
    """
    found = []
    # Methods and settings read the same: opened once, or refused once.
    known: dict[tuple[RowsKey, str | None, str | None], Opened | SaestoreError] = {}
    for job in jobs:
        of = (job.key, job.view, job.test_dataset)
        if of not in known:
            try:
                known[of] = open_job(lake, job)
            except LEFT_OUT as error:
                known[of] = error
        opened = known[of]
        if isinstance(opened, SaestoreError):
            found.append(Planned(job, None, str(opened), None))
            continue
        path = result_path(job, opened.rows)
        try:
            stored = check_free(lake.storage, path, identity_of(job, opened))
            result = read_result(lake.storage, path, job.key) if stored else None
        except IntegrityError as error:
            found.append(Planned(job, path, str(error), None))
            continue
        found.append(Planned(job, path, "", result, bytes_of(job, opened)))
    return found


def check_combination(setting: str, method: str, sample_type: str) -> None:
    """Refuse what no probe is: a method of tokens on samples, or the other way round (InputError)."""
    if (setting == "multi_token") != (method in (*TOKEN_BASELINES, *TOKEN_SAE_METHODS)):
        methods = ", ".join(SETTINGS["multi_token"] if setting == "multi_token" else (*BASELINES, *SAE_METHODS))
        raise InputError(f"setting {setting} has no method {method!r}; choose from {methods}")
    if (setting == "multi_token") != (sample_type in POSITION_TYPES):
        needed = "tokens" if setting == "multi_token" else "one row a sample (last, mean, max or cls)"
        raise InputError(f"setting {setting} needs {needed}, and {sample_type} is not; give another --sample-type")
