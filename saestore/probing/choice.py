"""Which jobs a user means: the grid of datasets, layers, SAEs, settings and methods, with what is missing in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from saestore._nearest import nearest
from saestore.errors import InputError, MissingError, SaestoreError
from saestore.lake import Lake, layer_name
from saestore.layout import POSITION_TYPES, CodesKey, RowsKey
from saestore.probing.jobs import (
    METHODS,
    SAE_METHODS,
    SETTINGS,
    TOKEN_SAE_METHODS,
    Job,
    ProbeOptions,
    at_dataset,
    check_combination,
)
from saestore.probing.settings import SettingName
from saestore.probing.tasks import Task, read_task

_DEFAULT_SAE_METHODS = ("sae-l1", *TOKEN_SAE_METHODS)


@dataclass(frozen=True)
class Choice:
    """What is to be probed; None is all that there is.

    datasets : names, with * and ?
    settings : of `SETTINGS`
    methods : of `METHODS`; None for those of the benchmark, SAE probes with L1
    saes : names, with * and ?
    layers, sample_type, model, view : as elsewhere; without a sample type `last`, or the only one of a row a sample
    """

    datasets: Sequence[str] | None = None
    settings: Sequence[str] = ("normal",)
    methods: Sequence[str] | None = None
    saes: Sequence[str] | None = None
    layers: Sequence[str | int] | None = None
    sample_type: str | None = None
    model: str | None = None
    view: str | None = None


def chosen_jobs(lake: Lake, choice: Choice, options: ProbeOptions) -> list[Job]:
    """Return the jobs that are meant.

    Where some dataset has activations of a layer, or codes of an SAE, every task of the lake is asked for those; what
    is missing then has its reason in the plan.

    Parameters
    ----------
    lake : Lake
    choice : Choice
        What is to be probed.
    options : ProbeOptions
        How; every job has them.

    Raises
    ------
    MissingError
        No dataset, layer or SAE fits.
    InputError
        There is no such setting or method, or not of these rows.
    """
    for setting in choice.settings:
        if setting not in SETTINGS:
            raise InputError(f"setting {setting!r} is unknown; choose from {', '.join(SETTINGS)}")
    for method in choice.methods or ():
        if method not in METHODS:
            raise InputError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")
    named = _named(lake, choice.datasets) if choice.datasets else None
    jobs: list[Job] = []
    for setting in choice.settings:
        found = list(_of_setting(lake, choice, options, setting, named))  # type: ignore[arg-type]
        if not found and setting == "ood":
            raise MissingError(
                f"no dataset of the lake {lake.url} is named {options.test_dataset} after another one, to test what "
                "that one trains; give --test-dataset, or another setting"
            )
        jobs += found
    if not jobs:
        raise MissingError(f"no dataset of the lake {lake.url} has a label of two values; give --datasets or --label")
    return jobs


def _named(lake: Lake, patterns: Sequence[str]) -> list[str]:
    """Return the names that patterns fit; one without * and ? is meant, whether it is there or not."""
    known = lake.datasets()
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting and set(pattern) & set("*?"):
            raise MissingError(f"the lake {lake.url} has no dataset that {pattern!r} fits; see saestore status")
        found += [name for name in fitting or [pattern] if name not in found]
    return found


def _of_setting(
    lake: Lake, choice: Choice, options: ProbeOptions, setting: SettingName, named: Sequence[str] | None
) -> Iterator[Job]:
    wanted = choice.methods or [
        method for method in SETTINGS[setting] if method not in SAE_METHODS or method in _DEFAULT_SAE_METHODS
    ]
    of_codes = [method for method in wanted if method.startswith("sae-")]
    of_activations = [method for method in wanted if method not in of_codes]
    if choice.methods is None and choice.saes:
        of_activations = []
    grid: list[tuple[list[RowsKey], list[str]]] = []
    if of_activations:
        grid.append((_fitting(list(lake.activation_keys()), choice, setting), of_activations))
    if of_codes:
        codes = [key for key in lake.code_keys() if _is_chosen(key.sae, choice.saes)]
        _check_saes(lake, choice, codes)
        if codes or choice.saes or choice.methods:  # the baselines alone where the lake has no codes
            grid.append((_fitting(codes, choice, setting), of_codes))
    for keys, methods in grid:
        datasets = _asked(lake, options, setting, keys) if named is None else named
        for dataset in datasets:
            for place in sorted({at_dataset(key, dataset) for key in keys}, key=repr):
                for method in methods:
                    check_combination(setting, method, place.sample_type)
                    yield Job(place, choice.view if isinstance(place, CodesKey) else None, setting, method, options)


def _is_chosen(name: str, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _asked(lake: Lake, options: ProbeOptions, setting: SettingName, keys: Sequence[RowsKey]) -> list[str]:
    """Return the datasets that are meant where none is named: tasks, and what has such rows and may be none.

    Those that only test others are left out; out of distribution those that have no test.
    """
    known = lake.datasets()
    tests = {name: options.tests(name) for name in known}
    with_rows = {key.dataset for key in keys}
    found = []
    for name in known:
        if setting == "ood":
            trains = tests[name] in known and tests[name] != name
        else:
            trains = name not in tests.values()
        if trains and (name in with_rows or _is_task(lake, name, options.label)):
            found.append(name)
    return found


def _is_task(lake: Lake, dataset: str, label: str | None) -> bool:
    try:
        return isinstance(read_task(lake.samples(dataset), label), Task)
    except SaestoreError:  # it has no rows either, so that nobody asks for it
        return False


def _check_saes(lake: Lake, choice: Choice, codes: Sequence[CodesKey]) -> None:
    known = sorted({key.sae for key in lake.code_keys()})
    for pattern in choice.saes or ():
        if not any(fnmatchcase(key.sae, pattern) for key in codes):
            raise MissingError(
                f"the lake {lake.url} has no codes of an SAE {pattern!r} ({nearest(pattern, known, 'SAEs')}); make "
                "them with: saestore encode"
            )


def _fitting(keys: Sequence[RowsKey], choice: Choice, setting: SettingName) -> list[RowsKey]:
    """Return the keys, of all datasets, of the layers, model and sample type that are meant."""
    layers = [layer_name(layer) for layer in choice.layers or ()]
    fitting = [key for key in keys if (not layers or key.layer in layers) and choice.model in (None, key.model)]
    sample_type = choice.sample_type or _default_type(sorted({key.sample_type for key in fitting}), setting)
    found = [key for key in fitting if key.sample_type == sample_type]
    if not found:
        what = "codes" if keys and isinstance(keys[0], CodesKey) else "activations"
        asked = [f"layer {name}" for name in layers] + [f"sample type {sample_type}"]
        there = ", ".join(sorted({f"{key.layer}/{key.sample_type}" for key in keys})[:8]) or "none"
        raise MissingError(f"no {what} fit {', '.join(asked)}; the lake has {there}; extract, import or encode them")
    return found


def _default_type(types: Sequence[str], setting: SettingName) -> str:
    if setting == "multi_token":
        return next((name for name in types if name in POSITION_TYPES), "token")
    of_samples = [name for name in types if name not in POSITION_TYPES]
    if "last" in of_samples or not of_samples:
        return "last"
    if len(of_samples) > 1:
        raise InputError(f"rows are stored as {', '.join(of_samples)}; name one with --sample-type")
    return of_samples[0]
