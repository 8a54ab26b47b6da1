"""One call of `encode`: find the pairs of SAE and activations, plan all passes, then do pass after pass.

What fails is noted with its reason, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np

from saestore.budget import readable_bytes
from saestore.encoding.groups import Failures, Group, Pass, grouped, plan_passes, tasks
from saestore.encoding.job import EncodeJob, EncodeOptions
from saestore.encoding.matching import Absent, Wanted, matching
from saestore.encoding.plan import TASKS_AT_ONCE, EncodePlan, Resources
from saestore.encoding.task import ENCODER, Means, load_encoder
from saestore.engine.resources import release
from saestore.engine.run import run_tasks
from saestore.errors import InputError, MissingError, SaestoreError
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.prefetch import prefetch
from saestore.progress import Progress, clock
from saestore.runs import RunRecord
from saestore.saes.config import SAEConfig
from saestore.saes.lake import open_lake_sae
from saestore.tables import Positions

Say = Callable[[str], None]


class EncodeRun:
    """The state of a call.

    jobs : pairs of SAE and activations that were found
    absent : what was asked for and is not there
    groups : SAEs that are loaded together, with their passes
    failures : what could not be done, and why
    encoded : rows encoded, by pair
    """

    def __init__(self, lake: Lake, say: Say, *, scheduler: str | None, quiet: bool) -> None:
        self._lake = lake
        self._say = say
        self._scheduler = scheduler
        self._quiet = quiet
        self._resources: Resources | None = None
        self.jobs: list[EncodeJob] = []
        self.absent: list[Absent] = []
        self.groups: list[Group] = []
        self.failures: Failures = {}
        self.encoded: dict[CodesKey, int] = {}

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
                try:
                    self.jobs.append(EncodeJob(self._lake, weights, key, options))
                except SaestoreError as error:
                    self.absent.append(Absent(name, key.dataset, key.layer, key.sample_type, error))
        told = {job.key.layer for job in self.jobs} | {absent.layer for absent in self.absent}
        for layer in dict.fromkeys(wanted.layers or ()):
            if layer not in told:
                reason = (
                    f"no stored activations of layer {layer!r} fit {', '.join(saes)}; extract them, or leave it out"
                )
                self.absent.append(Absent("", "", layer, "", MissingError(reason)))

    def plan(self, jobs: Sequence[EncodeJob], resources: Resources) -> None:
        """Plan all passes, and say what they will cost."""
        self._resources = resources
        self.groups, self.failures = grouped(jobs, resources)
        plans = [step.plan for group in self.groups for step in group.passes]
        for plan in plans:
            self._say(plan.line())
        if len(plans) > 1:
            self._say(_total(plans, loads=len({part.sae for plan in plans for part in plan.parts})))

    def do(self, parameters: Mapping[str, Any]) -> None:
        """Do all passes, group after group, and keep plan and outcome in the lake."""
        plans = [_plan_document(step.plan) for group in self.groups for step in group.passes]
        record = RunRecord(self._lake.storage, "encode", parameters, plans)
        state = "failed"
        try:
            for group in self.groups:
                try:
                    self._do_group(group)
                finally:
                    release(ENCODER)
            state = "done except" if self.failures or self.absent else "done"
        except KeyboardInterrupt:
            state = "stopped"
            raise
        finally:
            record.end(state, [*self._outcome()])

    def _do_group(self, group: Group) -> None:
        assert self._resources is not None
        counting = [step for step in group.passes if step.counts_units]
        for step in counting:
            with self._noting(step.jobs):
                self._count_units(step, group.means(step.plan, self._resources))
        if counting:
            alive = self._alive(group.jobs)
            group.passes = []
            for jobs in [alive] if group.held else [[job] for job in alive]:
                with self._noting(jobs):
                    group.passes += plan_passes(jobs, self._resources, held=group.held)
            for step in group.passes:
                self._say(step.plan.line())
        for step in group.passes:
            means = group.means(step.plan, self._resources)
            for job in step.jobs:
                with self._noting([job]):
                    self._begin(job, means)
        for step in group.passes:
            means = group.means(step.plan, self._resources)
            jobs = self._alive(step.jobs)
            try:
                self._encode(jobs, means)
            except SaestoreError as error:
                # One SAE's failure is not the others': what is missing is done by each for itself.
                for job in jobs:
                    with self._noting([job]):
                        if len(jobs) == 1:
                            raise error
                        self._encode([job], means)

    def _count_units(self, step: Pass, means: Means) -> None:
        """Make the largest l0 of all rows the number of slots of each job."""
        source = step.jobs[0].activations
        encoders = [load_encoder(self._lake.storage, job.key.sae, means) for job in step.jobs]
        largest = [1] * len(encoders)
        label = f"{source.key.path}: count active units"
        blocks = [
            (start, min(start + means.block_rows, source.n_rows)) for start in range(0, source.n_rows, means.block_rows)
        ]
        with Progress(label, total=source.n_rows, unit="rows", quiet=self._quiet) as progress:
            for _, x in prefetch(lambda block: source.read(*block), blocks):
                for place, encoder in enumerate(encoders):
                    largest[place] = max(largest[place], int(encoder.encode(x, 1).codes.l0.max()))
                progress.advance(len(x))
        for job, most in zip(step.jobs, largest, strict=True):
            job.k = most

    def _begin(self, job: EncodeJob, means: Means) -> None:
        """Check the quality of codes that are new, and create their group."""
        if job.stored is not None:
            return
        assert job.k is not None
        rows = job.sample_rows()
        x = job.activations.take(rows)
        target = None if job.target is None else x if job.target is job.activations else job.target.take(rows)
        encoder = load_encoder(self._lake.storage, job.key.sae, means)
        offsets = None
        if encoder.needs_sequences:
            offsets = Positions.open(self._lake.storage, job.key.activations.model_key).offsets
            offsets = offsets[: int(np.searchsorted(offsets, len(x), side="right"))]
        try:
            quality = encoder.quality(x, encoder.encode(x, job.k, offsets=offsets), target)
        except InputError as error:
            raise InputError(f"{job.activations.key.path}: {error}") from error
        job.accept(quality, self._say)
        job.begin()

    def _encode(self, jobs: Sequence[EncodeJob], means: Means) -> None:
        """Write what is missing of the codes of jobs over the same activations."""
        if not jobs:
            return
        before = {job.key: job.written_rows() for job in jobs}
        label = f"encode {jobs[0].activations.key.path} with {', '.join(job.key.sae for job in jobs)}"
        try:
            run_tasks(
                tasks(jobs, means),
                label=label,
                unit="rows",
                threads=TASKS_AT_ONCE,
                scheduler=self._scheduler,
                quiet=self._quiet,
            )
        finally:
            for job in jobs:
                written = job.written_rows() - before[job.key]
                self.encoded[job.key] = self.encoded.get(job.key, 0) + written

    def _alive(self, jobs: Sequence[EncodeJob]) -> list[EncodeJob]:
        return [job for job in jobs if job.key not in self.failures]

    @contextmanager
    def _noting(self, jobs: Sequence[EncodeJob]) -> Iterator[None]:
        """Note an error as the reason why jobs are left out, and go on."""
        try:
            yield
        except SaestoreError as error:
            self.failures |= {job.key: error for job in jobs if job.key not in self.failures}

    def _outcome(self) -> Iterator[dict[str, Any]]:
        for job in self.jobs:
            error = self.failures.get(job.key)
            yield {
                "codes": job.key.path,
                "state": "left out" if error else "done",
                "reason": str(error or ""),
                "encoded_rows": self.encoded.get(job.key, 0),
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
        f"TFLOP, about {clock(sum(plan.seconds for plan in plans))}"
    )


def _plan_document(plan: EncodePlan) -> dict[str, Any]:
    """The plan of a pass as JSON values."""
    saes = [{"sae": part.sae, "rows": part.rows, "k": part.k} for part in plan.parts]
    numbers = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in ("source", "parts")}
    return {"activations": plan.source.path, "saes": saes, **numbers}
