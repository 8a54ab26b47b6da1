"""One call of `encode`: find the pairs of SAE and activations, plan all passes, then do pass after pass.

What fails is noted with its reason, and the rest goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.budget import readable_bytes, return_freed_memory
from saestore.encoding.groups import Failures, Group, grouped, tasks
from saestore.encoding.job import EncodeJob, EncodeOptions
from saestore.encoding.matching import Absent, Wanted, matching
from saestore.encoding.plan import TASKS_AT_ONCE, EncodePlan, Resources, about
from saestore.encoding.task import ENCODER, BlockEncoder, Loading
from saestore.engine.resources import release
from saestore.engine.run import run_tasks
from saestore.errors import InputError, MissingError, SaestoreError
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey
from saestore.parts import parts_of
from saestore.prefetch import prefetch
from saestore.progress import Progress
from saestore.rows import RowGroup, group_exists
from saestore.runs import RunRecord
from saestore.saes.config import SAEConfig
from saestore.saes.lake import open_lake_sae

Say = Callable[[str], None]


class EncodeRun:
    """The state of a call.

    jobs : pairs of SAE and activations that were found
    absent : what was asked for and is not there
    groups : SAEs that are loaded together, with their passes
    failures : what could not be done, and why
    """

    def __init__(self, lake: Lake, say: Say, *, scheduler: str | None, quiet: bool) -> None:
        self._lake = lake
        self._say = say
        self._scheduler = scheduler
        self._quiet = quiet
        self._resources: Resources | None = None
        self._rows_before: dict[CodesKey, int] = {}
        self.jobs: list[EncodeJob] = []
        self.absent: list[Absent] = []
        self.groups: list[Group] = []
        self.failures: Failures = {}

    def find(self, saes: Sequence[str], wanted: Wanted, options: EncodeOptions) -> None:
        """Find what each SAE is to encode, and what of it is stored already."""
        for name in saes:
            try:
                weights = open_lake_sae(self._lake.storage, name)
                _check_k(options.k, weights.config)
                keys, absent = matching(self._lake, weights, wanted)
            except SaestoreError as error:
                self.absent.append(Absent(name, "", "", "", error))
                continue
            self.absent += absent
            for key in keys:
                for source in self._parts(key, name):
                    try:
                        self.jobs.append(EncodeJob(self._lake, weights, source, options))
                    except SaestoreError as error:
                        self.absent.append(Absent(name, key.dataset, key.layer, key.sample_type, error))
                        if not source.part:  # what was appended is encoded as the first part is, or not at all
                            break
        told = {job.key.layer for job in self.jobs} | {absent.layer for absent in self.absent}
        is_certain = all(absent.layer or absent.dataset for absent in self.absent)  # every SAE could be opened
        for layer in dict.fromkeys(wanted.layers or () if is_certain else ()):
            if layer not in told:
                reason = (
                    f"no stored activations of layer {layer!r} fit {', '.join(saes)}; extract them, or leave it out"
                )
                self.absent.append(Absent("", "", layer, "", MissingError(reason)))

    def _parts(self, key: ActivationsKey, sae: str) -> Iterator[ActivationsKey]:
        """Yield what is stored of activations, part after part of the dataset, and note what is not."""
        stored = Activations.open(self._lake.storage, key).group
        for number, part in enumerate(parts_of(stored)):
            if isinstance(part, RowGroup):
                yield key.at(number)
                continue
            reason = MissingError(
                f"part {number} of dataset {key.dataset!r}, {part.rows:,} rows, has no activations at {part.path}; "
                "run the command that made the others again, it adds what is missing"
            )
            self.absent.append(Absent(sae, key.dataset, key.layer, key.sample_type, reason))

    def plan(self, jobs: Sequence[EncodeJob], resources: Resources) -> None:
        """Plan all passes, and say what they will cost."""
        self._resources = resources
        self._rows_before = {job.key: job.written_rows() for job in jobs}
        self.groups, self.failures = grouped(jobs, resources)
        plans = [step.plan for group in self.groups for step in group.passes]
        for plan in plans:
            self._say(plan.line())
        if len(plans) > 1:
            self._say(_total(plans, loads=len({part.sae for plan in plans for part in plan.parts})))

    def execute(self, parameters: Mapping[str, Any]) -> None:
        """Do all passes, group after group, and keep plan and outcome in the lake."""
        record = RunRecord(self._lake.storage, "encode", parameters, self._plan_documents())
        state = "failed"
        try:
            for group in list(self.groups):
                try:
                    self._execute_group(group)
                finally:
                    release(ENCODER)
            state = "done except" if self.failures or self.absent else "done"
        except KeyboardInterrupt:
            state = "stopped"
            raise
        finally:
            try:
                record.end(state, plan=self._plan_documents(), outcome=list(self._outcome()))
            except SaestoreError as error:  # of a full disk, say, which must not hide what went before
                self._say(f"the record of this run could not be written: {error}")

    def encoded_rows(self, job: EncodeJob) -> int:
        """Return the rows that this call has encoded."""
        return job.written_rows() - self._rows_before.get(job.key, job.written_rows())

    def _execute_group(self, group: Group) -> None:
        assert self._resources is not None
        ready = self._with_known_k(group)
        for part in ready:
            # First parts first: what was appended is encoded only where they could be.
            for step in sorted(part.passes, key=lambda step: step.jobs[0].key.part):
                loading = part.loading(step.plan, self._resources)
                self._together_or_each(step.jobs, functools.partial(self._begin, loading=loading))
            for step in part.passes:
                loading = part.loading(step.plan, self._resources)
                self._together_or_each(self._alive(step.jobs), functools.partial(self._encode, loading=loading))
            if len(ready) > 1:
                release(ENCODER)

    def _with_known_k(self, group: Group) -> list[Group]:
        """Count active units where k is not known yet, and plan again; what no longer fits together is split."""
        assert self._resources is not None
        counting = [step for step in group.passes if step.counts_units]
        if not counting:
            return [group]
        for step in counting:
            loading = group.loading(step.plan, self._resources)
            self._together_or_each(step.jobs, functools.partial(self._count_units, loading=loading))
        ready, failures = grouped(self._alive(group.jobs), self._resources, loaded=group.saes)
        self.failures |= failures
        place = self.groups.index(group)
        self.groups[place : place + 1] = ready
        for part in ready:
            for step in part.passes:
                self._say(step.plan.line())
        if [part.held for part in ready] != [group.held]:
            release(ENCODER)
        return ready

    def _count_units(self, jobs: Sequence[EncodeJob], loading: Loading) -> None:
        """Make the largest l0 of all rows the number of slots of each job."""
        source = jobs[0].activations
        encoders = [self._block_encoder(job, loading) for job in jobs]
        largest = [1] * len(encoders)
        starts = range(0, source.n_rows, loading.block_rows)
        blocks = [(start, min(start + loading.block_rows, source.n_rows)) for start in starts]
        label = f"{source.key.path}: count active units"
        with Progress(label, total=source.n_rows, unit="rows", quiet=self._quiet) as progress:
            for (start, stop), x in prefetch(lambda block: source.read(*block), blocks):
                for place, encoder in enumerate(encoders):
                    largest[place] = max(largest[place], int(encoder.encode(x, start, stop, 1).codes.l0.max()))
                progress.advance(len(x))
        for job, most in zip(jobs, largest, strict=True):
            job.k = most

    def _begin(self, jobs: Sequence[EncodeJob], loading: Loading) -> None:
        """Check the quality of codes that are new, and create their groups; the rows of the check are read once."""
        fresh = []
        for job in self._alive(jobs):
            if job.key.part and not group_exists(self._lake.storage, job.key.at(0).path):
                self.failures[job.key] = MissingError(
                    f"{job.key.path} is left out, because {job.key.at(0).path}, which it would follow, could not be "
                    "made; do what its own reason says, and encode again"
                )
            elif job.stored is None:
                fresh.append(job)
        if not fresh:
            return
        chosen = [job.sample_rows() for job in fresh]
        rows = np.unique(np.concatenate(chosen))
        x = fresh[0].activations.take(rows)
        for job, own in zip(fresh, chosen, strict=True):
            try:
                job.accept(self._quality(job, own, x[np.searchsorted(rows, own)], loading), self._say)
                job.begin()
            except SaestoreError as error:
                self.failures[job.key] = error

    def _quality(
        self, job: EncodeJob, rows: NDArray[np.int64], x: NDArray[np.float32], loading: Loading
    ) -> dict[str, Any]:
        """Measure how well codes stand for some rows; of sequences these are the first ones."""
        assert job.k is not None
        target = None if job.target is None else x if job.target is job.activations else job.target.take(rows)
        encoder = self._block_encoder(job, loading)
        try:
            return encoder.encoder.quality(x, encoder.encode(x, 0, len(x), job.k), target)
        except InputError as error:
            raise InputError(f"{job.activations.key.path}: {error}") from error

    def _encode(self, jobs: Sequence[EncodeJob], loading: Loading) -> None:
        """Write what is missing of the codes of jobs over the same activations."""
        for job in jobs:
            job.refresh()
        return_freed_memory()
        run_tasks(
            tasks(jobs, loading),
            label=f"encode {jobs[0].activations.key.path} with {', '.join(job.key.sae for job in jobs)}",
            unit="rows",
            threads=TASKS_AT_ONCE,
            scheduler=self._scheduler,
            quiet=self._quiet,
        )

    def _together_or_each(self, jobs: Sequence[EncodeJob], work: Callable[[Sequence[EncodeJob]], None]) -> None:
        """Do work for jobs together; where it fails, for each alone, since one SAE's failure is not the others'."""
        try:
            if jobs:
                work(jobs)
        except SaestoreError as error:
            if len(jobs) == 1:
                self.failures[jobs[0].key] = error
                return
            for job in jobs:
                self._together_or_each([job], work)

    def _block_encoder(self, job: EncodeJob, loading: Loading) -> BlockEncoder:
        return BlockEncoder(self._lake.storage, job.activations.key, job.key.sae, job.weights.content_hash(), loading)

    def _alive(self, jobs: Sequence[EncodeJob]) -> list[EncodeJob]:
        return [job for job in jobs if job.key not in self.failures]

    def _plan_documents(self) -> list[dict[str, Any]]:
        return [_plan_document(step.plan) for group in self.groups for step in group.passes]

    def _outcome(self) -> Iterator[dict[str, Any]]:
        for job in self.jobs:
            error = self.failures.get(job.key)
            is_done = job.stored is not None and job.written_rows() == job.activations.n_rows
            yield {
                "codes": job.key.path,
                "state": "left out" if error else "done" if is_done else "not finished",
                "reason": str(error or ""),
                "encoded_rows": self.encoded_rows(job),
                "quality": job.quality,
            }
        for absent in self.absent:
            names = {name: getattr(absent, name) for name in ("sae", "dataset", "layer", "sample_type")}
            yield {**names, "state": "left out", "reason": str(absent.error), "encoded_rows": 0}


def _check_k(k: int | None, config: SAEConfig) -> None:
    if k is not None and not 1 <= k <= config.d_sae:
        raise InputError(f"k is {k}; it must be 1 to d_sae, which is {config.d_sae:,}")


def _total(plans: Sequence[EncodePlan], loads: int) -> str:
    """The plans of all passes in one line."""
    return (
        f"in all: {sum(plan.rows for plan in plans):,} rows in {len(plans)} passes, {loads} SAEs loaded, memory up to "
        f"{readable_bytes(max(plan.peak_bytes for plan in plans))}, reads "
        f"{readable_bytes(sum(plan.read_bytes for plan in plans))}, writes "
        f"{readable_bytes(sum(plan.write_bytes for plan in plans))}, {sum(plan.flop for plan in plans) / 1e12:,.1f} "
        f"TFLOP, {about(None if any(plan.seconds is None for plan in plans) else sum(p.seconds or 0 for p in plans))}"
    )


def _plan_document(plan: EncodePlan) -> dict[str, Any]:
    """The plan of a pass as JSON values."""
    saes = [{"sae": part.sae, "rows": part.rows, "k": part.k} for part in plan.parts]
    numbers = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in ("source", "parts")}
    return {"activations": plan.source.path, "saes": saes, **numbers}
