"""A recipe from texts to codes with the real model, run as a user does, and run again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import saestore
from saestore import recipes
from saestore.cli import main
from saestore.cli.app import app
from saestore.cli.argv import repeat_plural
from saestore.errors import ConflictError, InputError

PIPELINES = Path(__file__).parents[2] / "pipelines"
SENTENCES = ("It was raining in the harbour.", "Nobody opened the second letter.", "Seven birds left the roof at dawn.")


@pytest.fixture
def recipe(tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    texts = [f"{place}: {sentence}" for place in range(8) for sentence in SENTENCES]
    (tmp_path / "birds.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    content: dict[str, Any] = {
        "name": "small",
        "lake": "lake",
        "steps": [
            {"init": None},
            {
                "extract": {
                    "datasets": ["birds.csv"],
                    "model": str(minilm_folder),
                    "layers": [0, 1],
                    "sample_type": ["token", "mean"],
                }
            },
            {"sae train": {"layer": 1, "out": "sae", "d_sae": 32, "k": 4, "samples": 1024, "batch_size": 128}},
            {"sae import": {"source": "sae", "name": "tiny"}},
            {"encode": {"saes": ["tiny"], "force": True}},
            {"status": {"storage": True}},
            {"top": {"n": 2}},
            {"dense": {"dataset": "birds", "rows": "0:3", "units": [1, 2]}},
        ],
        "next": ["saestore status lake"],
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_recipe_runs_every_step_and_a_second_run_does_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe)]) == 0
    first = capsys.readouterr().out
    commands = [line for line in first.splitlines() if line.startswith("$ ")]
    assert commands[0] == "$ saestore init lake"
    assert commands[4] == "$ saestore encode lake --saes tiny --force"
    assert commands[7] == "$ saestore dense lake birds --rows 0:3 --units 1 2"
    lake = saestore.open("lake")
    assert saestore.status(lake).complete
    codes = lake.codes("birds")
    assert (codes.n_rows, codes.d_sae) == (len(lake.positions("birds")), 32)
    assert f"{codes.n_rows:,} rows of codes, 1 SAE;" in first
    assert first.rstrip().endswith("$ saestore status lake")
    files = {path: path.stat().st_mtime_ns for path in Path("lake").rglob("*") if path.is_file()}

    assert main(["run", str(recipe)]) == 0
    again = capsys.readouterr().out
    assert again.count("nothing to do: ") == 4
    assert "0 B made by this run" in again
    assert {path: path.stat().st_mtime_ns for path in Path("lake").rglob("*") if path.is_file()} == files


def test_a_dry_run_gives_the_commands_and_runs_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--dry-run", "--lake", "else where"]) == 0
    out = capsys.readouterr().out
    assert "$ saestore init 'else where'" in out
    assert out.count("$ saestore ") == 8
    assert not Path("lake").exists()
    assert not Path("else where").exists()


def test_chosen_steps_run_alone_and_a_failing_step_stops_with_its_number(recipe: Path) -> None:
    ran = saestore.run(recipe, steps=["1", "status"], quiet=True)
    assert [step.verb for step in ran.steps] == ["init", "status"]
    assert ran.steps[1].result.groups == ()
    with pytest.raises(saestore.errors.MissingError, match=r"^step 5 \(encode\) of .*no SAE 'tiny'.*goes on there$"):
        saestore.run(recipe, steps=["encode", "top"], quiet=True)
    with pytest.raises(InputError, match=r"no step '9'.*choose from 1 \(init\)"):
        saestore.run(recipe, steps=["9"])


def test_a_changed_training_is_refused_by_the_second_run(recipe: Path) -> None:
    saestore.run(recipe, steps=["1", "2", "3"], quiet=True)
    recipe.write_text(recipe.read_text().replace("d_sae: 32", "d_sae: 40"))
    with pytest.raises(ConflictError, match=r"^step 3 \(sae train\).*other d_sae"):
        saestore.run(recipe, steps=["3"], quiet=True)


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_of_our_recipes_mean_what_the_recipe_says(path: Path) -> None:
    """Each printed command line, read back by the command line's own parser, has the step's parameters."""
    root: Any = typer.main.get_command(app)
    loaded = recipes.load_recipe(path)
    for step in loaded.steps:
        words = repeat_plural(shlex.split(step.command(loaded.lake))[1:], root)
        command = root
        for name in step.verb.split():
            command, words = command.commands[name], words[1:]
        read = command.make_context(step.verb, list(words)).params
        assert read["lake"] == loaded.lake
        for name, value in step.parameters.items():
            found = read[name]
            expected = [str(item) for item in value] if isinstance(value, list) else str(value)
            assert ([str(item) for item in found] if isinstance(found, (list, tuple)) else str(found)) == expected
    for line in loaded.next:
        words = repeat_plural(shlex.split(line)[1:], root)
        command = root.commands[words[0]]
        command.make_context(words[0], words[1:])
