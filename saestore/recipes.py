"""Recipes: a YAML file of verbs with their parameters, checked before anything runs, and run step by step.

```yaml
name: quickstart
description: What it does, in a sentence.
lake: demo/lake
variables:
  dataset: texts
  embeddings: ""
steps:
  - unless: ${embeddings}
    extract: {datasets: ["${dataset}.csv"], model: MiniLM, layers: [3]}
  - when: ${embeddings}
    import: {path: "${embeddings}", dataset: "${dataset}", model: MiniLM, layer: 3, sample_type: mean}
  - sae train: {layer: 3, out: demo/sae}
next:
  - saestore status ${lake}
```

A step is a verb as on the command line, and its parameters are the command's options without the dashes (`sample_type`
for `--sample-type`). Paths are relative to the folder the command is run in, as on the command line. Variables are set
with `--set name=value` (`saestore._recipe_variables`); a step runs when what `when` gives is not empty, and unless what
`unless` gives is not.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import shlex
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from saestore import verbs
from saestore._recipe_variables import Variables, resolve
from saestore._yaml_lines import YamlFile, read_yaml
from saestore.errors import InputError, SaestoreError
from saestore.verbs.names import Say, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.lake import Lake

VERBS: dict[str, Callable[..., Any]] = {
    "init": verbs.init,
    "extract": verbs.extract,
    "import": verbs.import_,
    "sae import": verbs.sae_import,
    "sae list": verbs.sae_list,
    "sae train": verbs.sae_train,
    "encode": verbs.encode,
    "index": verbs.index,
    "label": verbs.label,
    "graph": verbs.graph,
    "neighbours": verbs.neighbours,
    "steer bundle": verbs.steer_bundle,
    "probe": verbs.probe,
    "probes import": verbs.probes_import,
    "probes export": verbs.probes_export,
    "status": verbs.status,
    "show": verbs.show,
    "top": verbs.top,
    "stats": verbs.stats,
    "prune": verbs.prune,
    "thresholds": verbs.thresholds,
    "detect": verbs.detect,
    "localise": verbs.localise,
    "compare": verbs.compare,
    "report concepts": verbs.report_concepts,
    "report probes": verbs.report_probes,
    "report graph": verbs.report_graph,
    "dense": verbs.dense,
}
POSITIONAL = {
    "import": "path",
    "sae import": "source",
    "label": "dataset",
    "probes import": "folder",
    "probes export": "folder",
    "show": "dataset",
    "dense": "dataset",
}
"""Parameters that are arguments on the command line, after the lake."""

_NOT_IN_RECIPES = ("lake", "quiet", "say", "catalog", "storage_options")


@dataclass(frozen=True)
class Step:
    """One verb of a recipe with its parameters.

    skipped : why it does not run; empty if it does
    name : by which it can be chosen beside its verb and number; several steps may share one, most have none
    """

    verb: str
    parameters: Mapping[str, Any]
    skipped: str = ""
    name: str = ""

    def command(self, lake: str) -> str:
        """The same as a command line."""
        return command_line(self.verb, lake, self.parameters)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, with its variables filled in."""

    path: Path
    name: str
    description: str
    lake: str
    variables: Mapping[str, Any]
    steps: tuple[Step, ...]
    next: tuple[str, ...]


@dataclass(frozen=True)
class StepRun:
    """What one step did.

    skipped : why it did nothing; empty where it ran
    """

    verb: str
    command: str
    result: Any
    seconds: float
    skipped: str = ""


@dataclass(frozen=True)
class RecipeRun:
    """What a run of a recipe did.

    holds : how many datasets, texts or images, positions, SAEs and rows of codes the lake holds now
    stored_bytes, added_bytes : bytes in the lake now, and how many more than before the run
    """

    name: str
    lake: str
    steps: tuple[StepRun, ...]
    dry_run: bool
    seconds: float
    holds: Mapping[str, int]
    stored_bytes: int
    added_bytes: int
    next: tuple[str, ...]


class _Page(BaseModel):
    """The top of a recipe file."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1)
    description: str = ""
    lake: str = Field(min_length=1)
    variables: dict[str, Any] = {}
    steps: list[dict[str, Any]] = Field(min_length=1)
    next: list[str] = []


def load_recipe(
    path: str | os.PathLike[str],
    *,
    set: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    path : str or path
    set : mapping, optional
        Values of variables, `lake` among them.
    catalog : Catalog, optional
        What defaults such as `${dataset.model}` are looked up in.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        It is wrong; one line, `FILE:LINE: steps[1].encode.ks: ...`.
    """
    file = read_yaml(Path(path).expanduser())
    _refuse_sexagesimal(file)
    try:
        page = _Page.model_validate(file.content)
    except ValidationError as error:
        raise _explained(file, [], error, list(_Page.model_fields)) from None
    variables = resolve(file, page.variables, page.lake, set or {}, functools.partial(_catalog, catalog))
    steps = [_step(file, variables, number, content) for number, content in enumerate(page.steps)]
    following = [str(variables.filled(line, ["next", place])) for place, line in enumerate(page.next)]
    lake, description = variables.values["lake"], variables.filled(page.description, ["description"])
    return Recipe(file.path, page.name, description, lake, variables.values, tuple(steps), tuple(following))


def _step(file: YamlFile, variables: Variables, number: int, content: Mapping[str, Any]) -> Step:
    """Return a step of a recipe with its variables filled in."""
    keys: list[str | int] = ["steps", number]
    named = [key for key in content if key not in (*_CONDITIONS, _NAME)]
    if len(named) != 1:
        raise file.error(keys, f"expected one verb with its parameters, got {', '.join(named) or 'nothing'}")
    verb = named[0]
    keys.append(verb)
    if verb not in VERBS:
        raise file.error(keys, _unknown("verb", verb, list(VERBS)))
    given = content[verb] or {}
    if not isinstance(given, dict):
        raise file.error(keys, f"expected parameters and their values, got {str(given)[:60]!r}")
    model = _parameters(verb)
    for name in given:
        if name not in model.model_fields:
            raise file.error([*keys, name], _unknown("key", str(name), list(model.model_fields)))
    filled = variables.filled(given, keys)
    name = content.get(_NAME, "")
    if not isinstance(name, str) or name in VERBS or name.isdigit():
        raise file.error(["steps", number, _NAME], f"expected a name that is no verb and no number, got {name!r}")
    skipped = _why_skipped(file, variables, number, content)
    if skipped:
        return Step(verb, filled, skipped, name)
    try:
        model.model_validate(filled)
    except ValidationError as error:
        missing = [problem["loc"][0] for problem in error.errors() if problem["type"] == "missing"]
        for name in missing:
            if name in given:
                empty = " and ".join(variables.named_in(given[name]))
                raise file.error([*keys, name], f"{empty} is empty; {variables.hint(given[name])}") from None
        raise _explained(_with_step(file, number, verb, filled), keys, error, list(model.model_fields)) from None
    return Step(verb, filled, name=name)


_CONDITIONS = ("when", "unless")
_NAME = "name"


def _why_skipped(file: YamlFile, variables: Variables, number: int, content: Mapping[str, Any]) -> str:
    """Return why the conditions of a step are not met; empty if they are."""
    for condition in _CONDITIONS:
        if condition not in content:
            continue
        value = content[condition]
        keys: list[str | int] = ["steps", number, condition]
        names = variables.named_in(value)
        if not names or not isinstance(value, str):
            raise file.error(keys, f"expected variables such as ${{embeddings}}, got {str(value)[:60]!r}")
        filled = variables.filled(value, keys)
        if condition == "when" and filled is None:
            none = f"{names[0]} is empty" if len(names) == 1 else f"{', '.join(names)} are all empty"
            return f"{none}; give --set {names[0]}=... to run it"
        if condition == "unless" and filled is not None:
            return f"{' or '.join(names)} is given ({str(filled)[:60]})"
    return ""


def _with_step(file: YamlFile, number: int, verb: str, filled: Any) -> YamlFile:
    """Return a recipe's file as if a step had been written with the values of its variables."""
    steps = list(file.content["steps"])
    steps[number] = {verb: filled}
    return dataclasses.replace(file, content={**file.content, "steps": steps})


def run(
    recipe: str | os.PathLike[str],
    *,
    lake: str | os.PathLike[str] | None = None,
    set: Mapping[str, Any] | None = None,
    steps: Sequence[str] | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
    begun: Callable[[str, str, str], None] | None = None,
    done: Callable[[str, Any, Mapping[str, Any]], None] | None = None,
) -> RecipeRun:
    """Run the steps of a recipe in order; what is done already is left alone.

    Parameters
    ----------
    recipe : str or path
        A YAML file.
    lake : str or path, optional
        Instead of the recipe's own; the same as setting the variable `lake`.
    set : mapping, optional
        Values of the recipe's variables.
    steps : sequence of str, optional
        Only these: verbs (`encode`, `sae train`) or numbers from 1.
    dry_run : bool
        Check the recipe and give the command lines; run nothing.
    begun, done : callable, optional
        Called with each step's verb, command line and why it is skipped (empty if it runs) before it, and with its
        verb, result and parameters after it.

    Raises
    ------
    SaestoreError
        That of the step that failed; finished steps stay.

    Examples
    --------
    >>> run("pipelines/taste.yaml").seconds  # doctest: +SKIP
    31.4
    """
    settings = dict(set or {})
    if lake is not None and settings.setdefault("lake", os.fspath(lake)) != os.fspath(lake):
        raise InputError(
            f"--lake {os.fspath(lake)} and --set lake={settings['lake']} were given; leave one of them out"
        )
    loaded = load_recipe(recipe, set=settings, catalog=catalog)
    place = loaded.lake
    chosen = _chosen(loaded, steps)
    before = 0 if dry_run else _stored_bytes(place, catalog)
    started = time.monotonic()
    finished: list[StepRun] = []
    for number, step in chosen:
        command = step.command(place)
        if begun is not None:
            begun(step.verb, command, step.skipped)
        if dry_run or step.skipped:
            finished.append(StepRun(step.verb, command, None, 0.0, step.skipped))
            continue
        step_started = time.monotonic()
        verb = VERBS[step.verb]
        talking = {"quiet": quiet, "say": say} if "say" in inspect.signature(verb).parameters else {}
        try:
            result = verb(place, **step.parameters, **talking, catalog=catalog)
        except SaestoreError as error:
            raise type(error)(
                f"step {number} ({step.verb}) of {loaded.path}: {error}; then run the recipe again, it goes on there"
            ) from error
        finished.append(StepRun(step.verb, command, result, time.monotonic() - step_started))
        if done is not None:
            done(step.verb, result, step.parameters)
    holds, stored = ({}, 0) if dry_run else _holds(open_lake(place, catalog=catalog))
    return RecipeRun(
        name=loaded.name,
        lake=place,
        steps=tuple(finished),
        dry_run=dry_run,
        seconds=time.monotonic() - started,
        holds=holds,
        stored_bytes=stored,
        added_bytes=stored - before,
        next=loaded.next,
    )


def command_line(verb: str, lake: str, parameters: Mapping[str, Any]) -> str:
    """Return the command line that does what a verb does with these parameters.

    Examples
    --------
    >>> command_line("encode", "lake", {"saes": ["a", "b"], "sample_type": "token"})
    'saestore encode lake --saes a b --sample-type token'
    >>> command_line("encode", "lake", {"saes": "a", "postings": False, "force": False})
    'saestore encode lake --saes a --no-postings'
    """
    defaults = _parameters(verb).model_fields
    words = ["saestore", *verb.split(), lake]
    argument = POSITIONAL.get(verb)
    if argument is not None and argument in parameters:
        words.append(str(parameters[argument]))
    for name, value in parameters.items():
        if name == argument or value is None:
            continue
        if value is False:
            words += [f"--no-{name.replace('_', '-')}"] if defaults[name].default is True else []
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, dict):
            words += [f"{key}={item}" for key, item in value.items()]
        elif value is not True:
            words += [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


@functools.cache
def _parameters(verb: str) -> type[BaseModel]:
    """Return a model of the parameters that a verb takes in a recipe, from its signature."""
    function = VERBS[verb]
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _NOT_IN_RECIPES
    }
    # Annotations that are imported for type checking only cannot be evaluated; none of them is a recipe's.
    assert isinstance(function, types.FunctionType)
    bare = types.FunctionType(function.__code__, function.__globals__)
    bare.__annotations__ = {name: parameter.annotation for name, parameter in wanted.items()}
    fields: dict[str, Any] = {
        name: (hint, ... if wanted[name].default is inspect.Parameter.empty else wanted[name].default)
        for name, hint in typing.get_type_hints(bare).items()
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(verb, __config__=config, **fields)


def _chosen(recipe: Recipe, steps: Sequence[str] | None) -> list[tuple[int, Step]]:
    numbered = list(enumerate(recipe.steps, start=1))
    if not steps:
        return numbered
    for name in steps:
        if not any(name in (str(number), step.verb, step.name) for number, step in numbered):
            there = ", ".join(f"{number} ({step.name or step.verb})" for number, step in numbered)
            raise InputError(f"{recipe.path} has no step {name!r}; choose from {there}")
    return [(number, step) for number, step in numbered if {str(number), step.verb, step.name} & set(steps)]


def _explained(file: YamlFile, keys: list[str | int], error: ValidationError, allowed: list[str]) -> InputError:
    """Return the first problem that pydantic found, with file and line."""
    # A misspelt key is also a missing one; the misspelling is what helps.
    problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    path, value = list(keys), _at(file.content, keys)
    for part in problem["loc"]:
        inside = isinstance(value, dict | list) and (
            part in value if isinstance(value, dict) else isinstance(part, int)
        )
        if not inside:
            break  # the name of a type in a union, or the missing key
        path.append(part)
        value = value[part]
    if problem["type"] == "missing":
        return file.error(path, f"{problem['loc'][-1]} is missing")
    if problem["type"] == "extra_forbidden":
        return file.error(path, _unknown("key", str(path[-1]), allowed))
    shown = repr(value)
    said = str(problem["msg"]).replace("Input should be", "expected")
    return file.error(path, f"{said}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def _at(content: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        content = content[key]
    return content


def _unknown(what: str, name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what}; {hint}expected one of {', '.join(allowed)}"


def _refuse_sexagesimal(file: YamlFile) -> None:
    """Refuse `rows: 10:20` without quotes, which YAML 1.1 reads as the number 620."""
    todo = [file.root] if file.root is not None else []
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.ScalarNode) and ":" in node.value and node.tag.endswith((":int", ":float")):
            line = node.start_mark.line + 1
            raise InputError(f"{file.path}:{line}: {node.value} is a number to YAML; put it in quotes")


def _catalog(catalog: Catalog | None) -> Catalog:
    if catalog is not None:
        return catalog
    from saestore.catalogs import load_catalog

    return load_catalog()


def _stored_bytes(place: str, catalog: Catalog | None) -> int:
    try:
        return _holds(open_lake(place, catalog=catalog))[1]
    except SaestoreError:
        return 0  # the first step makes the lake, or fails with the reason


def _holds(lake: Lake) -> tuple[dict[str, int], int]:
    groups = lake.status()
    rows = {kind: sum(group.written_rows for group in groups if group.kind == kind) for kind in _COUNTED}
    holds = {"datasets": len({group.dataset for group in groups if group.kind == "samples"})}
    holds |= {told: rows[kind] for kind, told in _COUNTED.items()}
    holds["SAEs"] = sum(group.kind == "sae" for group in groups)
    return holds, sum(group.stored_bytes for group in groups)


_COUNTED = {
    "samples": "samples",
    "positions": "positions",
    "activations": "rows of activations",
    "codes": "rows of codes",
}
