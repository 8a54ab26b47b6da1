"""Progress of long work on stderr: a bar on a terminal, elsewhere a line after two seconds and every ten."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

_SILENT_SECONDS = 2.0
_LINE_SECONDS = 10.0


class Progress:
    """Counts done units of work and shows rate and time left once the work takes over two seconds.

    Parameters
    ----------
    label : str
        What is being done.
    total : int
        Units of all work.
    unit : str
        Name of a unit, in the plural (`rows`, `tokens`).
    quiet : bool
        Show nothing.

    Examples
    --------
    >>> with Progress("encode", total=10, unit="rows", quiet=True) as progress:
    ...     progress.advance(10)
    """

    def __init__(self, label: str, *, total: int, unit: str, quiet: bool = False) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._quiet = quiet
        self._done = 0
        self._begun = time.monotonic()
        self._said: float | None = None
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    @property
    def done(self) -> int:
        """Units done so far."""
        return self._done

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._said is not None and error is None:
            print(self.line(), file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        """Count more units as done; may be called from any thread."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._quiet or now - self._begun < _SILENT_SECONDS:
                return
            if sys.stderr.isatty():
                self._show_bar()
            elif self._said is None or now - self._said >= _LINE_SECONDS:
                self._said = now
                print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state in one line: done, total, rate and time left."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rate = self._done / seconds
        left = (self.total - self._done) / rate if rate else float("inf")
        remaining = f", {clock(left)} left" if self._done < self.total else f" in {clock(seconds)}"
        return f"{self.label}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s{remaining}"

    def _show_bar(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.label, total=self.total, rate="")
            self._bar.start()
        rate = self._done / max(time.monotonic() - self._begun, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} {self.unit}/s")


def clock(seconds: float) -> str:
    """Return a duration as people read it: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds == float("inf"):
        return "unknown time"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
