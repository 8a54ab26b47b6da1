"""A small lake made once by the commands themselves with the real MiniLM; a way to run commands in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_runs import Ran, Run, write_texts

from saestore.cli import main

SUBJECTS = ("The old bridge", "A quiet harbour", "Her brother", "This library", "The new engine", "Winter", "My dog")
PREDICATES = ("was built in 1904.", "keeps its doors open.", "does not like rain!", "runs faster than yours; much.")


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Iterator[Path]:
    """A user's configuration and cache of our own for the whole session."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        patch.setenv("SAESTORE_CACHE", str(home / "cache"))
        patch.delenv("SAESTORE_CATALOG", raising=False)
        (home / "config" / "saestore").mkdir(parents=True)
        (home / "config" / "saestore" / "catalog.yaml").write_text(
            f"models:\n  mini: {{kind: text, path: {minilm_folder}}}\nlakes:\n  ours: {{url: {home / 'lake'}}}\n"
        )
        yield home


@pytest.fixture(scope="session")
def texts(surroundings: Path) -> Path:
    """28 short texts in a CSV file."""
    return write_texts(surroundings / "texts.csv", [f"{who} {what}" for who in SUBJECTS for what in PREDICATES])


@pytest.fixture(scope="session")
def lake(surroundings: Path, texts: Path) -> str:
    """A lake with datasets `texts` and `more`, layers 1 and 2 of MiniLM, a trained SAE `small` and its codes."""
    place = str(surroundings / "lake")
    write_texts(surroundings / "more.csv", [f"{what} {who}?" for who in SUBJECTS[:3] for what in PREDICATES])
    extracted = ["--model", "mini", "--layers", "1", "2", "--sample-type", "token", "mean"]
    assert main(["init", place]) == 0
    assert main(["extract", place, "--datasets", str(texts), str(surroundings / "more.csv"), *extracted]) == 0
    sae = str(surroundings / "sae")
    training = ["--d-sae", "64", "--k", "4", "--samples", "4096", "--batch-size", "256"]
    assert main(["sae", "train", place, "--layer", "2", "--out", sae, *training, "--quiet"]) == 0
    assert main(["sae", "import", place, sae, "--name", "small"]) == 0
    assert main(["encode", place, "--saes", "small", "--force"]) == 0
    return place


@pytest.fixture
def run(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command
