"""The installed command, as its own process: what it imports, its streams, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from saestore.cli import main; sys.exit(main())"]


def test_help_version_and_status_load_nothing_heavy(lake: str) -> None:
    program = (
        "import sys\n"
        "from saestore.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'xarray', 'pandas', 'transformers', 'sae_lens', 'dask', 'zarr', 'rich', 'numba'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    for line in (["--help"], ["--version"], ["status", lake], ["sae", "list", lake], ["catalog"]):
        ran = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.splitlines()[-1] == "loaded []", line


def test_importing_saestore_loads_nothing() -> None:
    program = "import sys; before = set(sys.modules); import saestore; print(sorted(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "zarr", "pydantic", "xarray"} & set(eval(ran.stdout))


def test_the_version_is_the_package_s(lake: str) -> None:
    ran = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True)
    assert ran.stdout == f"saestore {version('saestore')}\n"


def test_stdout_holds_the_json_and_nothing_else(lake: str) -> None:
    ran = subprocess.run([*COMMAND, "encode", lake, "--saes", "small", "--json"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {result["key"]["dataset"] for result in json.loads(ran.stdout)} == {"more", "texts"}


def test_a_closed_pipe_ends_quietly(lake: str) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([*COMMAND, "status", lake], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert ran.stderr == ""
    assert ran.returncode == -signal.SIGPIPE


def test_an_error_is_on_stderr_and_in_the_exit_code(tmp_path: Path) -> None:
    ran = subprocess.run([*COMMAND, "status", str(tmp_path / "none")], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1


def test_an_interrupt_leaves_nothing_half_made_and_says_so(lake: str, tmp_path: Path) -> None:
    line = ["sae", "train", lake, "--layer", "1", "--out", str(tmp_path / "sae"), "--samples", "100000000"]
    with subprocess.Popen([*COMMAND, *line], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("training on ")
        process.send_signal(signal.SIGINT)
        try:
            rest = process.communicate(timeout=60)[1].splitlines()
        finally:
            process.kill()
    assert process.returncode == 130
    assert rest[-1] == "stopped; run the same command again, what was finished is kept"
    assert not any("Traceback" in told for told in rest)
    assert os.listdir(tmp_path) == []
