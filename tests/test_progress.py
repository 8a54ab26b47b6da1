"""Progress with a clock that the tests turn."""

from __future__ import annotations

import io
import threading

import pytest

from saestore import progress
from saestore.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_lines_without_a_terminal(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode s", total=10_000, unit="rows") as bar:
        for seconds, rows in ((1.0, 100), (4.0, 900), (9.0, 1000), (14.5, 1000), (20.0, 1000)):
            now[0] = 100 + seconds
            bar.advance(rows)
        assert capsys.readouterr().err.splitlines() == [
            "encode s: 1,000 of 10,000 rows, 250 rows/s, 36 s left",
            "encode s: 3,000 of 10,000 rows, 207 rows/s, 34 s left",
        ]
        now[0] = 140
        bar.advance(6000)
        assert bar.done == 10_000
    assert capsys.readouterr().err.splitlines()[-1] == "encode s: 10,000 of 10,000 rows, 250 rows/s in 40 s"


def test_short_work_and_quiet_work_say_nothing(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("short", total=2, unit="rows") as bar:
        now[0] += 1.9
        bar.advance(2)
    with Progress("quiet", total=2, unit="rows", quiet=True) as bar:
        now[0] += 60
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_an_error_ends_without_a_last_line(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Progress("broken", total=2, unit="rows") as bar:
            now[0] += 5
            bar.advance(1)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bar_on_a_terminal(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("encode s", total=100, unit="rows") as bar:
        now[0] += 5
        bar.advance(50)
        now[0] += 5
        bar.advance(50)
    assert "encode s" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert "10 rows/s" in terminal.getvalue()


def test_threads_lose_no_count() -> None:
    with Progress("many", total=40_000, unit="rows", quiet=True) as bar:
        threads = [threading.Thread(target=lambda: [bar.advance(1) for _ in range(10_000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bar.done == 40_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (float("inf"), "unknown time")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
