"""Encode stored activations to stored codes: find what an SAE belongs to, plan, check, then one task per shard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from saestore.activations import Activations
from saestore.budget import parse_memory
from saestore.encoding.job import EncodeJob, EncodeOptions, Resources, is_of_model
from saestore.encoding.plan import TASKS_AT_ONCE, EncodePlan
from saestore.encoding.task import ENCODER, EncodeTask
from saestore.engine.resources import release
from saestore.engine.run import run_tasks
from saestore.errors import DependencyError, InputError, MissingError
from saestore.lake import Lake, layer_name
from saestore.layout import POSITION_TYPES, ActivationsKey, CodesKey, check_sample_type
from saestore.saes.config import SAEConfig
from saestore.saes.lake import LakeWeights, open_lake_sae

_LAYER_OF_HOOK = re.compile(r"blocks\.(\d+)\.")
_LAYER_OF_NAME = re.compile(r"layer_(\d+)")
VALUE_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did for one pair of SAE and activations.

    encoded_rows : rows encoded by this call; 0 when the codes were complete, and after a dry run
    quality : explained variance, mean L0 and dead units on a sample of rows; empty after a dry run
    plan : None when the codes were complete
    """

    key: CodesKey
    rows: int
    encoded_rows: int
    quality: Mapping[str, Any]
    plan: EncodePlan | None


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
    memory: str | int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[EncodeResult]:
    """Encode activations of a lake with SAEs of the lake; what is stored already is left alone.

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
        One per SAE and row group of activations.

    Raises
    ------
    MissingError
        No activations or no SAE of that name.
    InputError
        Widths or hook names disagree, k is larger than d_sae, or activations are not finite.
    HoleError
        The activations or the SAE are incomplete.
    QualityError
        The explained variance is below zero: a wrong layer, hook or normalisation.
    BudgetError
        The plan exceeds the memory.
    DependencyError
        torch or numba is not installed.
    ConflictError
        Codes made with other parameters are stored there.
    """
    if dtype not in VALUE_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose from {', '.join(VALUE_DTYPES)}")
    say = say or _silent
    names = [saes] if isinstance(saes, str) else list(dict.fromkeys(saes))
    if not names:
        raise InputError("no SAE was named; give the name of at least one imported SAE")
    types = [sample_type] if isinstance(sample_type, str) else sample_type
    for name in types or ():
        check_sample_type(name)
    parse_memory(memory)
    options = EncodeOptions(k, dtype, force)
    results: list[EncodeResult] = []
    resources: Resources | None = None
    try:
        for name in names:
            weights = open_lake_sae(lake.storage, name)
            _check_k(k, weights.config)
            keys = _matching(lake, weights, datasets, layers, types, model, force=force)
            jobs = [EncodeJob(lake.storage, weights, key, options) for key in keys]
            todo = [job for job in jobs if not job.is_complete]
            if todo and resources is None:
                resources = _resources(device, memory)
            plans, tasks = _prepare(todo, resources, dry_run=dry_run, quiet=quiet, say=say) if resources else ({}, [])
            encoded = {job.key: 0 if dry_run else job.rows for job in jobs}
            # One SAE after the other, so that each is loaded once and one is in memory at a time.
            run_tasks(
                tasks, label=f"encode {name}", unit="rows", threads=TASKS_AT_ONCE, scheduler=scheduler, quiet=quiet
            )
            results += [
                EncodeResult(job.key, job.activations.n_rows, encoded[job.key], job.quality, plans.get(job.key))
                for job in jobs
            ]
    finally:
        release(ENCODER)
    return results


def _prepare(
    jobs: Sequence[EncodeJob], resources: Resources, *, dry_run: bool, quiet: bool, say: Callable[[str], None]
) -> tuple[dict[CodesKey, EncodePlan], list[EncodeTask]]:
    """Plan all jobs of one SAE, then check and create their groups; nothing is written when one of them fails."""
    counting = [job for job in jobs if job.k is None]
    plans = _plans(counting, resources, say)
    if not dry_run:
        for job in counting:
            job.count_units(plans[job.key], resources.device, quiet=quiet)
    plans |= _plans([job for job in jobs if job.k is not None], resources, say)
    if dry_run:
        return plans, []
    for job in jobs:
        job.check(plans[job.key], resources.device, say)
    tasks: list[EncodeTask] = []
    for job in jobs:
        tasks += job.tasks(plans[job.key], resources.device)
    return plans, tasks


def _plans(jobs: Sequence[EncodeJob], resources: Resources, say: Callable[[str], None]) -> dict[CodesKey, EncodePlan]:
    """Plan jobs that share one SAE: it is held for all of them or for none, so that it is loaded once."""
    plans = [job.plan(resources, hold=True) for job in jobs]
    if not all(plan.held for plan in plans):
        plans = [job.plan(resources, hold=False) for job in jobs]
    for plan in plans:
        say(plan.line())
    return {plan.key: plan for plan in plans}


def _resources(wish: str, memory: str | int | None) -> Resources:
    # Imported first: the libraries are part of what the process uses before any SAE is loaded.
    try:
        import saestore.encoding.encoder  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"encode needs {error.name}; install it with: pip install 'saestore[torch]'") from None

    device = _device(wish)
    baseline = psutil.Process().memory_info().rss
    return Resources(device, baseline, parse_memory(memory) + (baseline if memory is None else 0))


def _matching(
    lake: Lake,
    weights: LakeWeights,
    datasets: Sequence[str] | None,
    layers: Sequence[str | int] | None,
    types: Sequence[str] | None,
    model: str | None,
    *,
    force: bool,
) -> list[ActivationsKey]:
    """Return the activations that an SAE is asked to encode, or belongs to."""
    stored = list(lake.activation_keys())
    for dataset in datasets or ():
        lake.samples(dataset)
    wanted_layers = None if layers is None else {layer_name(layer) for layer in layers}
    chosen = [
        key
        for key in stored
        if (datasets is None or key.dataset in datasets)
        and (wanted_layers is None or key.layer in wanted_layers)
        and key.sample_type in (types or POSITION_TYPES)
        and (model is None or key.model == model)
    ]
    chosen = [key for key in chosen if _belongs(lake, key, weights, named=layers is not None, force=force)]
    if layers is None:
        # Two models may name a layer alike; where nothing has the right width, the widths are the error to report.
        fitting = [key for key in chosen if Activations.open(lake.storage, key).d_in == weights.config.d_in]
        chosen = fitting or chosen
    chosen = _of_one_model(lake, chosen, weights)
    places = sorted({f"{key.model}/{key.layer}" for key in chosen})
    if layers is None and len(places) > 1 and weights.config.hook_name is None:
        raise InputError(
            f"SAE {weights.name} does not say which layer it was trained on, and {', '.join(places[:6])} have its "
            "width; name --layers"
        )
    if not chosen:
        hook = f" (it was trained on {weights.config.hook_name})" if weights.config.hook_name else ""
        there = ", ".join(sorted({f"{key.dataset}/{key.layer}/{key.sample_type}" for key in stored})[:6]) or "none"
        raise MissingError(
            f"no stored activations fit SAE {weights.name}{hook} and what was asked; there are {there}; "
            "extract the layer, or name --layers"
        )
    asked = {"dataset": datasets, "layer": wanted_layers, "sample_type": types}
    for what, given in asked.items():
        for name in set(given or ()) - {getattr(key, what) for key in chosen}:
            raise MissingError(
                f"no stored activations of {what.replace('_', ' ')} {name!r} fit SAE {weights.name} and what was "
                "asked; extract them, or leave it out"
            )
    return chosen


def _of_one_model(lake: Lake, keys: list[ActivationsKey], weights: LakeWeights) -> list[ActivationsKey]:
    """Return the activations of the model that an SAE was trained on; hook names and widths are alike in many."""
    trained_on = weights.config.model_name
    if trained_on is not None and len({key.model for key in keys}) > 1:
        keys = [key for key in keys if is_of_model(lake.storage, key, trained_on)] or keys
    models = sorted({key.model for key in keys})
    if len(models) > 1:
        raise InputError(
            f"the layer of SAE {weights.name} is stored for the models {', '.join(models)}, and the SAE says it was "
            f"trained on {trained_on or 'none by name'}; name one with --model"
        )
    return keys


def _belongs(lake: Lake, key: ActivationsKey, weights: LakeWeights, *, named: bool, force: bool) -> bool:
    """Whether an SAE was trained on this layer, as far as both say; naming a wrong layer is an error."""
    config = weights.config
    attributes = Activations.open(lake.storage, key).group.attributes
    hook = attributes.get("saelens_hook_name")
    if config.hook_name is None:
        return named or int(attributes["d_in"]) == config.d_in
    if hook is None:  # imported without one: the numbers of the layers must do
        wanted, found = _LAYER_OF_HOOK.search(config.hook_name), _LAYER_OF_NAME.match(key.layer)
        if wanted is None or found is None or wanted[1] == found[1]:
            return named or int(attributes["d_in"]) == config.d_in
    if hook == config.hook_name:
        return True
    if named and not force:
        raise InputError(
            f"SAE {weights.name} was trained on {config.hook_name}, {key.path} holds {hook or key.layer}; "
            "choose the layer it was trained on, or give --force"
        )
    return named


def _device(wish: str) -> str:
    import torch

    if wish != "auto":
        try:
            torch.empty(0, device=wish)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {wish!r} cannot be used here ({str(error).splitlines()[0][:100]}); try auto"
            ) from None
        return wish
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_k(k: int | None, config: SAEConfig) -> None:
    if k is not None and not 1 <= k <= config.d_sae:
        raise InputError(f"k is {k}; it must be 1 to d_sae, which is {config.d_sae:,}")


def _silent(line: str) -> None:
    """Say nothing."""


__all__ = ["EncodePlan", "EncodeResult", "encode"]
