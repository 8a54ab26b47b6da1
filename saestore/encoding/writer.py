"""The verb `encode`: what was asked is checked, found, planned and done, and what became of it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil

from saestore.budget import parse_memory
from saestore.encoding.job import EncodeOptions
from saestore.encoding.matching import Wanted
from saestore.encoding.plan import EncodePlan, Resources
from saestore.encoding.run import EncodeRun
from saestore.engine.resources import usable_device
from saestore.errors import DependencyError, InputError
from saestore.lake import Lake
from saestore.layout import CodesKey, check_sample_type

if TYPE_CHECKING:
    from saestore.kernels.encode import Precision

VALUE_DTYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("fp32", "tf32", "bf16")

_DEVICE_SHARE = 0.9

State = Literal["done", "planned", "left out"]


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did for one pair of SAE and activations.

    key : None where no such activations are stored
    dataset, layer, sample_type : as far as known
    encoded_rows : rows encoded by this call; 0 when the codes were complete, and after a dry run
    quality : explained variance, mean L0 and dead units on a sample of rows; empty after a dry run
    plan : of the pass that the pair belongs to; None when the codes were complete
    state, reason : `left out` with the reason where the pair could not be encoded
    """

    sae: str
    dataset: str
    layer: str
    sample_type: str
    key: CodesKey | None
    rows: int
    encoded_rows: int
    quality: Mapping[str, Any]
    plan: EncodePlan | None
    state: State
    reason: str = ""


def encode(
    lake: Lake,
    saes: str | Sequence[str],
    *,
    datasets: Sequence[str] | None = None,
    layers: Sequence[str | int] | None = None,
    sample_type: str | Sequence[str] | None = None,
    model: str | None = None,
    k: int | None = None,
    dtype: str = "float16",
    device: str = "auto",
    precision: str = "fp32",
    memory: str | int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[EncodeResult]:
    """Encode activations of a lake with SAEs of the lake; what is stored already is left alone.

    SAEs of one layer that fit into memory together are loaded together, and each block of rows is read once for all
    of them. What cannot be encoded is left out with its reason, and the rest is done; plan and outcome are kept in
    the lake (`Lake.runs`).

    Parameters
    ----------
    lake : Lake
    saes : str or sequence of str
        Names of imported SAEs. Each is loaded once per process.
    datasets : sequence of str, optional
        Default: every dataset that has the SAE's layer.
    layers : sequence of str or int, optional
        Default: the layer that the SAE was trained on, by its hook name; without one, the layers of its width.
    sample_type : str or sequence of str, optional
        Default: `token` and `patch`, whichever is stored.
    model : str, optional
        Default: the one whose layer fits; where several do, the one that the SAE names.
    k : int, optional
        Slots per row; a Top-K SAE gets at most its own K. Default: the K of a Top-K SAE; for others all active units
        are kept, for which the largest l0 is found in a first pass over the rows.
    dtype : {"float16", "bfloat16", "float32"}
        Precision of the stored values.
    device : str
        `auto` takes CUDA, then MPS, then the CPU.
    precision : {"fp32", "tf32", "bf16"}
        Of the encoder's products; see `saestore.kernels.encode.encode_rows` for the errors of the last two.
    memory : str or int, optional
        The most this process may use, such as `4GiB`; default what it uses now and 60 % of the free memory.
    scheduler : str, optional
        Address of a Dask scheduler; default the active client if there is one, else threads.
    force : bool
        Go on although layer, hook or explained variance say that the SAE does not belong to the activations.
    dry_run : bool
        Stop after the plans.
    quiet : bool
        Show no progress.
    say : callable, optional
        Receives lines for the user (plans, warnings).

    Returns
    -------
    list of EncodeResult
        One per SAE and row group of activations, those that were left out last.

    Raises
    ------
    MissingError, InputError, HoleError, QualityError, BudgetError, ConflictError
        Nothing could be done: no such SAE or activations; widths or hook names disagree, k is larger than d_sae, or
        activations are not finite; they are incomplete; an explained variance below zero; more memory is needed;
        other codes are stored there. Where only some of it cannot be done, the results say so.
    DependencyError
        torch or numba is not installed.
    """
    _check_choice("dtype", dtype, VALUE_DTYPES)
    _check_choice("precision", precision, PRECISIONS)
    names = [saes] if isinstance(saes, str) else list(dict.fromkeys(saes))
    if not names:
        raise InputError("no SAE was named; give the name of at least one imported SAE")
    types = [sample_type] if isinstance(sample_type, str) else sample_type
    for name in types or ():
        check_sample_type(name)
    parse_memory(memory)
    options = EncodeOptions(k, dtype, precision, force)
    wanted = Wanted.of(datasets, layers, types, model, force=force)
    run = EncodeRun(lake, say or _silent, scheduler=scheduler, quiet=quiet)
    run.find(names, wanted, options)
    todo = [job for job in run.jobs if not job.is_complete]
    if todo:
        run.plan(todo, _resources(device, cast("Precision", precision), memory))
        if not dry_run:
            asked = {"datasets": datasets, "layers": layers, "sample_type": types, "model": model, "memory": memory}
            run.execute({"saes": names, **asked, **dataclasses.asdict(options), "device": device})
    return _results(run, say or _silent, dry_run=dry_run)


def _results(run: EncodeRun, say: Callable[[str], None], *, dry_run: bool) -> list[EncodeResult]:
    """Return what became of every pair.

    Raises
    ------
    SaestoreError
        The first of the reasons, if not one pair could be encoded.
    """
    errors = [*run.failures.values(), *(absent.error for absent in run.absent)]
    if errors and not any(job.key not in run.failures for job in run.jobs):
        for error in errors[1:]:
            say(str(error))
        raise errors[0]
    plans = {job.key: step.plan for group in run.groups for step in group.passes for job in step.jobs}
    results = [
        EncodeResult(
            job.key.sae,
            job.key.dataset,
            job.key.layer,
            job.key.sample_type,
            key=job.key,
            rows=job.activations.n_rows,
            encoded_rows=run.encoded_rows(job),
            quality=job.quality,
            plan=plans.get(job.key),
            state="planned" if dry_run and not job.is_complete else "done",
        )
        for job in run.jobs
        if job.key not in run.failures
    ]
    for job in run.jobs:
        if job.key in run.failures:
            key, reason = job.key, str(run.failures[job.key])
            named = (key.sae, key.dataset, key.layer, key.sample_type)
            rows = job.activations.n_rows
            results.append(EncodeResult(*named, key, rows, run.encoded_rows(job), {}, None, "left out", reason))
    for absent in run.absent:
        named = (absent.sae, absent.dataset, absent.layer, absent.sample_type)
        results.append(EncodeResult(*named, None, 0, 0, {}, None, "left out", str(absent.error)))
    return results


def _resources(wish: str, precision: Precision, memory: str | int | None) -> Resources:
    # Imported first: the libraries are part of what the process uses before any SAE is loaded.
    try:
        import saestore.encoding.encoder  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"encode needs {error.name}; install it with: pip install 'saestore[torch]'") from None

    device, device_budget = _device(wish)
    if precision == "tf32" and not device.startswith("cuda"):
        raise InputError(f"precision tf32 is of CUDA devices only, and this is {device}; give fp32 or bf16")
    baseline = psutil.Process().memory_info().rss
    budget = parse_memory(memory) + (baseline if memory is None else 0)
    return Resources(device, precision, baseline, budget, device_budget)


def _device(wish: str) -> tuple[str, int | None]:
    """Return the device that is meant, and how much of its own memory may be used; None where it has none."""
    device = usable_device(wish)
    if not device.startswith("cuda"):
        return device, None
    import torch

    return device, int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)


def _check_choice(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise InputError(f"{what} {given!r} is unknown; choose from {', '.join(known)}")


def _silent(line: str) -> None:
    """Say nothing."""


__all__ = ["EncodePlan", "EncodeResult", "encode"]
