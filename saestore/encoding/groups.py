"""Which SAEs are loaded together, and the passes over activations that they make."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from saestore.encoding.job import EncodeJob
from saestore.encoding.plan import EncodePlan, Resources, Source, plan_encode
from saestore.encoding.task import EncodeTask, Loading
from saestore.errors import BudgetError, SaestoreError
from saestore.layout import CodesKey
from saestore.saes.config import DENSE

Failures = dict[CodesKey, SaestoreError]


@dataclass(frozen=True)
class Pass:
    """Jobs that read the same activations together; all of them know their k, or none does."""

    jobs: tuple[EncodeJob, ...]
    plan: EncodePlan

    @property
    def counts_units(self) -> bool:
        """Whether the pass finds the largest l0 and writes nothing."""
        return self.jobs[0].k is None


@dataclass
class Group:
    """SAEs that are loaded together, and what they have to do."""

    held: bool
    jobs: list[EncodeJob] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    @property
    def saes(self) -> set[str]:
        """Names of the SAEs."""
        return {job.key.sae for job in self.jobs}

    def loading(self, plan: EncodePlan, resources: Resources) -> Loading:
        """Return how the SAEs of the group are loaded for a pass."""
        return Loading(
            device=resources.device,
            precision=resources.precision,
            held=self.held,
            at_once=len(self.saes),
            block_rows=plan.block_rows,
        )


def grouped(
    jobs: Sequence[EncodeJob], resources: Resources, *, loaded: Iterable[str] = ()
) -> tuple[list[Group], Failures]:
    """Put SAEs that read the same activations and fit into memory together into groups, and plan their passes.

    An SAE that does not fit even alone gets a group of its own, in which its weights are streamed.

    Parameters
    ----------
    loaded : iterable of str
        SAEs that are in memory already.

    Returns
    -------
    (groups, failures)
        The jobs in no group, with the error that says why.
    """
    groups: list[Group] = []
    failures: Failures = {}
    for own in _by(jobs, lambda job: job.key.sae).values():
        sources = {job.key.activations for job in own}
        related = [g for g in groups if g.held and sources & {job.key.activations for job in g.jobs}]
        try:
            group = _fitting([*related, Group(held=True)], own, resources, loaded)
        except SaestoreError as error:
            if not isinstance(error, BudgetError) or own[0].config.architecture in DENSE:
                failures |= {job.key: error for job in own}
                continue
            group = Group(held=False)
            for job in own:
                try:
                    group.passes += plan_passes([job], resources, held=False, loaded=loaded)
                    group.jobs.append(job)
                except SaestoreError as refusal:
                    failures[job.key] = refusal
        if group.jobs and not any(group is known for known in groups):
            groups.append(group)
    return groups, failures


def _fitting(groups: Sequence[Group], own: list[EncodeJob], resources: Resources, loaded: Iterable[str]) -> Group:
    """Add an SAE's jobs to the first group in which there is room; BudgetError where there is none in any."""
    for group in groups:
        together = [*group.jobs, *own]
        try:
            passes = plan_passes(together, resources, held=True, loaded=loaded)
        except BudgetError:
            if group is groups[-1]:
                raise
            continue
        group.jobs, group.passes = together, passes
        return group
    raise AssertionError("the last group returns or raises")


def plan_passes(
    jobs: Sequence[EncodeJob], resources: Resources, *, held: bool, loaded: Iterable[str] = ()
) -> list[Pass]:
    """Plan the passes of jobs whose SAEs are loaded together.

    Raises
    ------
    BudgetError
        One of them needs more memory than there is.
    """
    matrices = {job.key.sae: job.part(is_new=True).matrix_bytes for job in jobs}
    seen = set(loaded)
    passes = []
    for together in _by(jobs, lambda job: (job.key.activations, job.k is None)).values():
        first = together[0]
        parts = [job.part(is_new=job.key.sae not in seen) for job in together]
        seen |= {job.key.sae for job in together}
        shards = [job.shard_rows(shard) for job in together for shard in job.missing]
        rows = _covered(shards) if all(job.stored is not None for job in together) else first.activations.n_rows
        source = Source(first.activations.key, rows, first.row_bytes, first.sampled_rows)
        plan = plan_encode(
            source, parts, resources, held_bytes=sum(matrices.values()) if held else None, weights=first.weights
        )
        passes.append(Pass(tuple(together), plan))
    return passes


def tasks(jobs: Sequence[EncodeJob], loading: Loading) -> list[EncodeTask]:
    """Cut what jobs over the same activations have to do into tasks: stretches of whole shards of all of them."""
    source, storage = jobs[0].activations, jobs[0].storage
    ends = sorted(set.intersection(*({rows.stop for rows in job.all_shard_rows()} for job in jobs)))
    waiting = {job.key.sae: sorted(job.missing, reverse=True) for job in jobs}
    stretches = []
    start = 0
    for end in ends:
        wanted: dict[str, tuple[int, ...]] = {}
        rows = 0
        for job in jobs:
            shards, left = [], waiting[job.key.sae]
            while left and job.shard_rows(left[-1]).start < end:
                shards.append(left.pop())
            if shards:
                wanted[job.key.sae] = tuple(shards)
                rows += sum(_length(job.shard_rows(shard)) for shard in shards)
        if wanted:
            stretches.append(
                EncodeTask(storage.url, dict(storage.options), source.key, start, end, wanted, rows, loading)
            )
        start = end
    return stretches


def _by(jobs: Sequence[EncodeJob], key: Callable[[EncodeJob], Hashable]) -> dict[Hashable, list[EncodeJob]]:
    found: dict[Hashable, list[EncodeJob]] = {}
    for job in jobs:
        found.setdefault(key(job), []).append(job)
    return found


def _covered(stretches: Sequence[slice]) -> int:
    """Return the number of rows in any of the stretches."""
    total = reached = 0
    for rows in sorted(stretches, key=lambda rows: int(rows.start)):
        total += max(0, rows.stop - max(reached, rows.start))
        reached = max(reached, rows.stop)
    return total


def _length(rows: slice) -> int:
    return int(rows.stop) - int(rows.start)
