"""Which SAEs are loaded together, and the passes over activations that they make."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from saestore.encoding.job import EncodeJob
from saestore.encoding.plan import EncodePlan, Resources, plan_encode
from saestore.encoding.task import EncodeTask, Means
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

    jobs: list[EncodeJob]
    passes: list[Pass]
    held: bool

    def means(self, plan: EncodePlan, resources: Resources) -> Means:
        """Return how the SAEs of the group are loaded for a pass."""
        return Means(
            device=resources.device,
            precision=resources.precision,
            held=self.held,
            keep=len({job.key.sae for job in self.jobs}),
            block_rows=plan.block_rows,
        )


def grouped(jobs: Sequence[EncodeJob], resources: Resources) -> tuple[list[Group], Failures]:
    """Put SAEs that read the same activations and fit into memory together into groups, and plan their passes.

    An SAE that does not fit even alone gets a group of its own, in which its weights are streamed.

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
        for group in [*related, Group([], [], held=True)]:
            together = [*group.jobs, *own]
            try:
                passes = plan_passes(together, resources, held=True)
            except BudgetError as error:
                refusal = error
                continue
            group.jobs, group.passes = together, passes
            if group not in groups:
                groups.append(group)
            break
        else:
            if own[0].config.architecture in DENSE:
                failures |= {job.key: refusal for job in own}
                continue
            streamed = Group([], [], held=False)
            for job in own:
                try:
                    streamed.passes += plan_passes([job], resources, held=False)
                    streamed.jobs.append(job)
                except BudgetError as error:
                    failures[job.key] = error
            groups += [streamed] if streamed.jobs else []
    return groups, failures


def plan_passes(jobs: Sequence[EncodeJob], resources: Resources, *, held: bool) -> list[Pass]:
    """Plan the passes of jobs whose SAEs are loaded together.

    Raises
    ------
    BudgetError
        One of them needs more memory than there is.
    """
    loaded = {job.key.sae: job.part(is_new=True).matrix_bytes for job in jobs}
    seen: set[str] = set()
    passes = []
    for together in _by(jobs, lambda job: (job.key.activations, job.k is None)).values():
        source = together[0].activations
        parts = [job.part(is_new=job.key.sae not in seen) for job in together]
        seen |= {job.key.sae for job in together}
        plan = plan_encode(
            source.key,
            parts,
            resources,
            held_bytes=sum(loaded.values()) if held else None,
            row_bytes=source.group.stored_bytes() / source.n_rows,
            sample=together[0].weights,
        )
        passes.append(Pass(tuple(together), plan))
    return passes


def tasks(jobs: Sequence[EncodeJob], means: Means) -> list[EncodeTask]:
    """Cut what jobs over the same activations have to do into tasks: stretches of whole shards of all of them."""
    source = jobs[0].activations
    ends = [{job.shard_rows(shard).stop for shard in range(job.n_shards)} for job in jobs]
    stretches = []
    start = 0
    for end in sorted(set.intersection(*ends)):
        shards = {job.key.sae: tuple(s for s in job.missing if start <= job.shard_rows(s).start < end) for job in jobs}
        wanted = {sae: chosen for sae, chosen in shards.items() if chosen}
        if wanted:
            rows = sum(_length(job.shard_rows(shard)) for job in jobs for shard in wanted.get(job.key.sae, ()))
            storage = jobs[0].storage
            stretches.append(
                EncodeTask(storage.url, dict(storage.options), source.key, start, end, wanted, rows, means)
            )
        start = end
    return stretches


def _by(jobs: Sequence[EncodeJob], key: Callable[[EncodeJob], Hashable]) -> dict[Hashable, list[EncodeJob]]:
    found: dict[Hashable, list[EncodeJob]] = {}
    for job in jobs:
        found.setdefault(key(job), []).append(job)
    return found


def _length(rows: slice) -> int:
    return int(rows.stop) - int(rows.start)
