"""Every command explains itself, and has the options of its Python twin."""

from __future__ import annotations

import inspect
import shlex
from typing import Any

import pytest
import typer
from command_runs import Run

from saestore.cli.app import app
from saestore.cli.argv import repeat_plural
from saestore.recipes import VERBS, run
from saestore.verbs import catalog

ROOT: Any = typer.main.get_command(app)
COMMANDS = {
    **{name: command for name, command in ROOT.commands.items() if not hasattr(command, "commands")},
    **{
        f"{group} {name}": command
        for group, commands in ROOT.commands.items()
        for name, command in getattr(commands, "commands", {}).items()
    },
}
TWINS = {**VERBS, "run": run, "catalog": catalog}
ONLY_IN_PYTHON = {"say", "catalog", "storage_options", "begun", "done"}
ONLY_ON_THE_COMMAND_LINE = {"json"}


def examples(help_text: str) -> list[str]:
    after = help_text.replace("\\\n", " ").split("Example", 1)[1]
    return [line.strip() for line in after.splitlines() if line.strip().startswith("saestore ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_the_command_does_and_shows_examples_that_parse(name: str, run: Run) -> None:
    ran = run(*name.split(), "--help")
    assert ran.code == 0
    lines = [line.strip() for line in ran.out.splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: saestore {name}")
    assert lines[1][0].isupper()
    found = examples(inspect.cleandoc(COMMANDS[name].callback.__doc__))
    assert found
    for example in found:
        assert example.split("--")[0].strip() in " ".join(ran.out.split())
        words = shlex.split(example)[1:]
        assert words[: len(name.split())] == name.split()
        arguments = [word for word in repeat_plural(words, ROOT) if not word.startswith("my-catalog")]
        arguments = [word for word in arguments if word != "--catalog"][len(name.split()) :]
        COMMANDS[name].make_context(name, arguments)  # raises where an option or argument is wrong


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_python_twin_have_the_same_parameters(name: str) -> None:
    command = {parameter.name for parameter in COMMANDS[name].params} - ONLY_ON_THE_COMMAND_LINE
    twin = inspect.signature(TWINS[name]).parameters
    expected = set(twin) - ONLY_IN_PYTHON
    assert {"import_": "import"}.get(name, name) in COMMANDS
    assert command - {"help"} - {"quiet"} == expected - {"quiet"}
    for parameter in COMMANDS[name].params:
        default = twin[parameter.name].default if parameter.name in twin else None
        if default not in (None, inspect.Parameter.empty) and not parameter.required:
            assert parameter.default == default, parameter.name


def test_without_arguments_the_commands_are_listed(run: Run) -> None:
    ran = run()
    assert ran.code == 0
    for name in ("extract", "encode", "status", "sae", "run"):
        assert f"\n  {name} " in ran.out


def test_plural_options_take_many_values_and_end_at_the_next_option() -> None:
    words = ["encode", "lake", "--saes", "a", "b", "--k", "3", "--layers", "1", "2", "--datasets=x", "y"]
    assert repeat_plural(words, ROOT) == [
        *("encode", "lake", "--saes", "a", "--saes", "b", "--k", "3", "--layers", "1", "--layers", "2"),
        *("--datasets=x", "y"),
    ]
    assert repeat_plural(["top", "l", "--units", "-1", "2"], ROOT) == ["top", "l", "--units", "-1", "--units", "2"]
    assert repeat_plural(["sae", "train", "l", "--datasets", "a", "b"], ROOT)[-2:] == ["--datasets", "b"]
    assert repeat_plural(["top", "--", "--units", "1", "2"], ROOT) == ["top", "--", "--units", "1", "2"]
