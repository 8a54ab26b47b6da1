"""Command lines as users write them: `--datasets A B C` for an option that the parser takes once per value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def repeat_plural(arguments: Sequence[str], command: Any) -> list[str]:
    """Repeat every plural option before each of its values, for whatever command the line names.

    Parameters
    ----------
    arguments : sequence of str
        What follows the program's name.
    command : typer's command or group
        Its options say themselves whether they are plural.

    Examples
    --------
    >>> import typer
    >>> def run(layers: list[str] = typer.Option([])) -> None: ...
    >>> app = typer.Typer()
    >>> _ = app.command()(run)
    >>> repeat_plural(["--layers", "3", "5"], typer.main.get_command(app))
    ['--layers', '3', '--layers', '5']
    """
    expanded: list[str] = []
    plural = _plural_options(command)
    option: str | None = None
    given = False
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*expanded, *arguments[place:]]
        if argument.startswith("-") and not _is_number(argument):
            option = argument if argument in plural else None
            given = False
            expanded.append(argument)
            continue
        subcommands: Mapping[str, Any] = getattr(command, "commands", {})
        if option is None and argument in subcommands:
            command = subcommands[argument]
            plural = _plural_options(command)
        elif option is not None and given:
            expanded.append(option)
        given = True
        expanded.append(argument)
    return expanded


def take_flags(
    arguments: Sequence[str], *, switches: Sequence[str], valued: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Take options out that may stand anywhere, before the verb or after it.

    Returns
    -------
    (list of str, mapping of str to list of str)
        The other arguments; and for each option found its values (a switch has an empty one).
    """
    rest: list[str] = []
    found: dict[str, list[str]] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*rest, argument, *waiting], found
        if argument in switches:
            found.setdefault(argument, []).append("")
        elif name in valued:
            taken = value if equals else next(waiting, None)
            if taken is None:
                rest.append(argument)  # the parser says what is missing
            else:
                found.setdefault(name, []).append(taken)
        else:
            rest.append(argument)
    return rest, found


def _plural_options(command: Any) -> set[str]:
    return {name for option in command.params if getattr(option, "multiple", False) for name in option.opts}


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True
