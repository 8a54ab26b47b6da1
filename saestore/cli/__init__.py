"""The command line: `main` reads it, runs the command, and turns every failure into one line and an exit code.

Exit codes: 0 done; 1 something in a lake is partial; 2 wrong input, or the work could not be done; 3 a bug of
saestore; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_INTERRUPTED = 130
_BUG = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code; without arguments, that of the process.

    Examples
    --------
    >>> main(["catalog", "MiniLM", "--json"])  # doctest: +SKIP
    0
    """
    if arguments is None:
        arguments = sys.argv[1:]
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `saestore status | head` ends quietly
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("stopped; run the same command again, what was finished is kept", file=sys.stderr)
        return _INTERRUPTED


def _main(arguments: Sequence[str]) -> int:
    import typer

    from saestore.cli.app import app
    from saestore.cli.argv import repeat_plural, take_flags
    from saestore.errors import SaestoreError

    # typer brings its own copy of click; this is click's base of errors in a command line.
    command_line_error: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]
    command = typer.main.get_command(app)
    rest, flags = take_flags(arguments, switches=["--debug"], valued=["--catalog"])
    known = os.environ.get("SAESTORE_CATALOG")
    if "--catalog" in flags:
        os.environ["SAESTORE_CATALOG"] = os.pathsep.join([*filter(None, [known]), *flags["--catalog"]])
    try:
        code = command.main(repeat_plural(rest or ["--help"], command), prog_name="saestore", standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return int(code or 0)
    except (SaestoreError, command_line_error) as error:
        if "--debug" in flags:
            raise
        return _fail(_line(error), 2)
    except Exception as error:
        if "--debug" in flags:
            raise
        return _fail(f"{type(error).__name__}: {_line(error)}; this is a bug of saestore, --debug shows where", _BUG)
    finally:
        if "--catalog" in flags:
            if known is None:
                del os.environ["SAESTORE_CATALOG"]
            else:
                os.environ["SAESTORE_CATALOG"] = known


def _line(error: Exception) -> str:
    """Return an error's message on one line, for a wrong command line with where to look."""
    if not hasattr(error, "format_message"):
        return " ".join(str(error).split())
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "saestore"
    message = " ".join(error.format_message().split()).rstrip(".")
    after_list = " (it stands before the options)" if "Missing argument" in message else ""
    return f"{message}{after_list}; see: {where} --help"


def _fail(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return code
