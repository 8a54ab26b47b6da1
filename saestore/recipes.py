"""Recipes: a YAML file of verbs with their parameters, checked before anything runs, and run step by step.

```yaml
name: quickstart
description: What it does, in a sentence.
lake: demo/lake
steps:
  - extract: {datasets: [texts.csv], model: MiniLM, layers: [3]}
  - sae train: {layer: 3, out: demo/sae}
next:
  - saestore status demo/lake
```

A step is a verb as on the command line, and its parameters are the command's options without the dashes (`sample_type`
for `--sample-type`). Paths are relative to the folder the command is run in, as on the command line.
"""

from __future__ import annotations

import difflib
import inspect
import os
import shlex
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from saestore import verbs
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
    "status": verbs.status,
    "show": verbs.show,
    "top": verbs.top,
    "stats": verbs.stats,
    "dense": verbs.dense,
}
POSITIONAL = {"import": "path", "sae import": "source", "show": "dataset", "dense": "dataset"}
"""Parameters that are arguments on the command line, after the lake."""

_NOT_IN_RECIPES = ("lake", "quiet", "say", "catalog", "storage_options")


@dataclass(frozen=True)
class Step:
    """One verb of a recipe with its parameters."""

    verb: str
    parameters: Mapping[str, Any]

    def command(self, lake: str) -> str:
        """The same as a command line."""
        return command_line(self.verb, lake, self.parameters)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    path: Path
    name: str
    description: str
    lake: str
    steps: tuple[Step, ...]
    next: tuple[str, ...]


@dataclass(frozen=True)
class StepRun:
    """What one step did."""

    verb: str
    command: str
    result: Any
    seconds: float


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
    steps: list[dict[str, dict[str, Any] | None]] = Field(min_length=1)
    next: list[str] = []


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe.

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
    steps = []
    for number, content in enumerate(page.steps):
        keys: list[str | int] = ["steps", number]
        if len(content) != 1:
            raise file.error(keys, f"expected one verb with its parameters, got {', '.join(content) or 'nothing'}")
        verb, given = next(iter(content.items()))
        if verb not in VERBS:
            raise file.error([*keys, verb], _unknown("verb", verb, list(VERBS)))
        model = _parameters(verb)
        try:
            model.model_validate(given or {})
        except ValidationError as error:
            raise _explained(file, [*keys, verb], error, list(model.model_fields)) from None
        steps.append(Step(verb, dict(given or {})))
    return Recipe(file.path, page.name, page.description, page.lake, tuple(steps), tuple(page.next))


def run(
    recipe: str | os.PathLike[str],
    *,
    lake: str | os.PathLike[str] | None = None,
    steps: Sequence[str] | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
    begun: Callable[[str], None] | None = None,
    done: Callable[[str, Any, Mapping[str, Any]], None] | None = None,
) -> RecipeRun:
    """Run the steps of a recipe in order; what is done already is left alone.

    Parameters
    ----------
    recipe : str or path
        A YAML file.
    lake : str or path, optional
        Instead of the recipe's own.
    steps : sequence of str, optional
        Only these: verbs (`encode`, `sae train`) or numbers from 1.
    dry_run : bool
        Check the recipe and give the command lines; run nothing.
    begun, done : callable, optional
        Called with each step's command line before it, and with its verb, result and parameters after it.

    Raises
    ------
    SaestoreError
        That of the step that failed; finished steps stay.

    Examples
    --------
    >>> run("pipelines/taste.yaml").seconds  # doctest: +SKIP
    31.4
    """
    loaded = load_recipe(recipe)
    place = loaded.lake if lake is None else os.fspath(lake)
    chosen = _chosen(loaded, steps)
    before = 0 if dry_run else _stored_bytes(place, catalog)
    started = time.monotonic()
    finished: list[StepRun] = []
    for number, step in chosen:
        command = step.command(place)
        if begun is not None:
            begun(command)
        if dry_run:
            finished.append(StepRun(step.verb, command, None, 0.0))
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
    """
    words = ["saestore", *verb.split(), lake]
    argument = POSITIONAL.get(verb)
    if argument is not None and argument in parameters:
        words.append(str(parameters[argument]))
    for name, value in parameters.items():
        if name == argument or value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


@cache
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
        if name not in [str(number) for number, _ in numbered] + [step.verb for _, step in numbered]:
            there = ", ".join(f"{number} ({step.verb})" for number, step in numbered)
            raise InputError(f"{recipe.path} has no step {name!r}; choose from {there}")
    return [(number, step) for number, step in numbered if str(number) in steps or step.verb in steps]


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
