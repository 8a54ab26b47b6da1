"""A recipe from texts to codes with the real model, run as a user does, and run again."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
import yaml

import saestore
from saestore import recipes
from saestore.catalogs import load_catalog
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


def test_steps_are_chosen_by_number_verb_or_name(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    for step in content["steps"][3:5]:
        step["name"] = "codes"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    for steps, verbs in ({("codes", "1"): ["init", "sae import", "encode"], ("top",): ["top"]}).items():
        chosen = recipes.run(recipe, steps=steps, dry_run=True)
        assert [step.verb for step in chosen.steps] == verbs
    with pytest.raises(InputError, match=r"has no step 'codez'; choose from 1 \(init\), .* 4 \(codes\), 5 \(codes\)"):
        recipes.run(recipe, steps=["codez"])
    for wrong in ("encode", "3", 7):
        content["steps"][3]["name"] = wrong
        recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(InputError, match="expected a name that is no verb and no number"):
            recipes.load_recipe(recipe)


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


SETTINGS: dict[str, list[dict[str, str]]] = {
    "concept_detection": [
        {"dataset": "GoEmotions", "words": "words.yaml"},
        {"dataset": "Coco", "embeddings": "coco.pt", "per_sample": "256", "gt": "gt.pt", "memory": "4GiB", "k": "32"},
        {"dataset": "own", "samples": "own.csv", "splits": "{train: 0.5, cal: 0.5}", "labels": "[a, b]"}
        | {"model": "MiniLM", "sample_type": "token", "sae": "s", "sae_source": "my/sae", "layer": "4"},
    ]
}
RECIPES = [
    (path, settings) for path in sorted(PIPELINES.glob("*.yaml")) for settings in ({}, *SETTINGS.get(path.stem, []))
]


@pytest.mark.parametrize(("path", "settings"), RECIPES, ids=lambda given: getattr(given, "stem", None))
def test_the_commands_of_our_recipes_mean_what_the_recipe_says(path: Path, settings: dict[str, str]) -> None:
    """Each printed command line, read back by the command line's own parser, has the step's parameters."""
    root: Any = typer.main.get_command(app)
    loaded = recipes.load_recipe(path, set=settings)
    for step in loaded.steps:
        if step.skipped:
            continue
        words = repeat_plural(shlex.split(step.command(loaded.lake))[1:], root)
        command = root
        for name in step.verb.split():
            command, words = command.commands[name], words[1:]
        read = command.make_context(step.verb, list(words)).params
        assert read["lake"] == loaded.lake
        for name, value in step.parameters.items():
            found = read[name]
            if isinstance(value, dict):
                value = [f"{key}={item}" for key, item in value.items()]
            expected = [str(item) for item in value] if isinstance(value, list) else str(value)
            assert ([str(item) for item in found] if isinstance(found, (list, tuple)) else str(found)) == expected
    for line in loaded.next:
        words = repeat_plural(shlex.split(line)[1:], root)
        command = root.commands[words[0]]
        command.make_context(words[0], words[1:])


CONCEPT_SETS = ("CLEVR", "Coco", "Broden-Pascal", "Broden-OpenSurfaces", "Sarcasm", "iSarcasm", "GoEmotions")


@pytest.mark.parametrize("dataset", CONCEPT_SETS)
def test_the_concept_recipe_knows_what_each_dataset_needs(dataset: str) -> None:
    """From the catalog: nothing but the name of the dataset is given."""
    image = dataset in CONCEPT_SETS[:4]
    loaded = recipes.load_recipe(PIPELINES / "concept_detection.yaml", set={"dataset": dataset})
    runs = {step.verb: step.parameters for step in loaded.steps if not step.skipped}
    assert runs["extract"] == {
        "datasets": [dataset],
        "name": dataset,
        "model": "clip-vit-l-14-laion2b" if image else "gemma-2-9b",
        "layers": [22 if image else 34],
        "sample_type": ["patch" if image else "token"],
    }
    sae = "clip-scope-22" if image else "gemma-scope-9b-res-34-16k"
    assert runs["sae import"] == {"source": sae, "name": sae}
    assert runs["encode"]["saes"] == [sae]
    assert runs["prune"]["parameters"] == ("clip-patch" if image else "gemma-patch")
    assert runs["thresholds"]["percentiles"] == [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    assert {step.verb for step in loaded.steps if step.skipped} == {"import", "label", "localise"}


def test_the_plan_of_the_concept_recipe_on_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(PIPELINES / "concept_detection_text.yaml"), "--dry-run", "--lake", "there"]) == 0
    verbs = [line.split()[2:4] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    chain = ["extract", "encode", "label", "prune", "thresholds", "detect", "localise", "compare", "dense", "report"]
    assert [verb for verb, _ in verbs if verb in chain] == [*chain[:3], "label", "label", *chain[3:]]
    assert {lake for verb, lake in verbs if verb not in ("sae", "report")} == {"there"}


def test_the_words_of_the_text_recipe_are_of_concepts_that_its_datasets_have() -> None:
    pytest.importorskip("sae_probes", reason="sae-probes is not installed: pip install 'saestore[probes]'")
    from saestore.samples import samples_from_entry

    loaded = recipes.load_recipe(PIPELINES / "concept_detection_text.yaml")
    labelled = [step.parameters for step in loaded.steps if step.verb == "label"]
    assert len(labelled) == 3
    for parameters in labelled:
        table = samples_from_entry(load_catalog().dataset(f"sae-probes/{parameters['dataset']}"))
        words = yaml.safe_load((PIPELINES.parent / parameters["words"]).read_text())
        assert set(words) == set(table.concept_names)
        for place, concept in enumerate(table.concept_names):
            listed = [re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in words[concept]]
            found = np.array([any(word.search(text) for word in listed) for text in table.contents])
            has = table.concepts[:, place] == 1
            assert found[has].mean() > 0.94, "most samples of a concept have one of its words"
            assert found[~has].mean() < 0.02, "and hardly any other sample has"


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Embeddings of images that are not there, with labels of samples and rows, an SAE, and a catalog that knows them.

    Every image is 2 x 2 patches of 8 numbers; the concept `red` is a large third number, `blue` a large sixth one.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'saestore[torch]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SAESTORE_CATALOG", str(tmp_path / "catalog.yaml"))
    rng = np.random.default_rng(3)
    n, d = 60, 8
    split = np.array(["train", "cal", "test"])[np.arange(n) % 3]
    here = rng.random((2, n, 4)) < 0.2
    rows = rng.random((n, 4, d)).astype(np.float32)
    rows[..., 2] += 4 * here[0]
    rows[..., 5] += 4 * here[1]
    torch.save(torch.from_numpy(rows.reshape(-1, d)), tmp_path / "acts.pt")
    concepts = ("red", "blue")
    found = {concept: np.flatnonzero(here[place].ravel()).tolist() for place, concept in enumerate(concepts)}
    torch.save(found, tmp_path / "gt.pt")
    np.savez(
        tmp_path / "params.npz",
        W_enc=np.eye(d, dtype=np.float32),
        b_enc=np.zeros(d, np.float32),
        W_dec=np.eye(d, dtype=np.float32),
        b_dec=np.zeros(d, np.float32),
        threshold=np.full(d, 0.25, np.float32),
    )
    has = here.any(axis=2).astype(int)
    lines = [f"{place}.png,{has[0, place]},{has[1, place]},{split[place]}" for place in range(n)]
    (tmp_path / "shapes.csv").write_text("\n".join(["image_path,red,blue,split", *lines]))
    (tmp_path / "catalog.yaml").write_text(
        "models: {tiny: {path: nowhere, d_model: 8}}\n"
        "saes:\n  mirror: {source: gemma_scope, path: params.npz, model: tiny, layer: 3, d_in: 8, d_sae: 8}\n"
        "parameters:\n  few: {percentiles: [0.1, 0.5, 0.98], "
        "prune: {rule: fixed, dead_threshold: 2, ubiquitous_threshold: 1.0, strength_percentile: 10}}\n"
        "datasets:\n  shapes: {kind: image, table: shapes.csv, root: nowhere, image: image_path, split: split,\n"
        "    labels: [red, blue], concepts: ['*'], model: tiny, sae: mirror, sample_type: patch, parameters: few}\n"
    )
    return tmp_path


GIVEN = ["dataset=shapes", "embeddings=acts.pt", "per_sample=4", "gt=gt.pt"]


def test_the_concept_recipe_runs_from_embeddings_without_images(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", str(PIPELINES / "concept_detection.yaml"), "--lake", "lake", "--set", *GIVEN, "--quiet"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "skipped: extract: embeddings is given (acts.pt)" in out
    assert "(1 skipped) in " in out
    lake = saestore.open("lake")
    assert saestore.compare(lake, view="pruned")[0].is_equal
    found = saestore.detect(lake, view="pruned")[0]
    assert [(best.concept, best.unit) for best in found.best] == [("red", 2), ("blue", 5)], "by construction"
    assert all(best.test.f1 > 0.9 for best in found.best)
    where = saestore.localise(lake, view="pruned")[0]
    assert {(one.concept, one.unit) for one in where.best} == {("red", 2), ("blue", 5)}
    assert all(one.test.f1 > 0.9 for one in where.best if one.method == "direct")
    tables = {path.name for path in (shapes / "concepts" / "tables" / "shapes").iterdir()}
    assert {"best.csv", "best.parquet", "counts_test.csv", "baselines.parquet", "localisation.csv"} <= tables
    assert "shapes" in (shapes / "concepts" / "shapes.html").read_text()
    dense = xr.open_zarr(shapes / "concepts" / "shapes.zarr")
    assert dense.sizes["row"] == 240
    assert {2, 5} <= set(dense.unit.values.tolist())

    files = {path: path.stat().st_mtime_ns for path in Path("lake").rglob("*") if path.is_file()}
    assert main(line) == 0
    assert "0 B made by this run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("lake").rglob("*") if path.is_file()} == files


def test_the_concept_recipe_without_labels_of_positions_leaves_localisation_out(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", str(PIPELINES / "concept_detection.yaml"), "--lake", "lake", "--quiet", "--json"]
    assert main([*line, "--set", *GIVEN[:3], "dense="]) == 0
    steps = {step["verb"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["label"]["skipped"].startswith("masks, boxes")
    assert (steps["localise"]["command"].split()[:2], steps["localise"]["result"]) == (["saestore", "localise"], None)
    assert steps["detect"]["result"][0]["of"]["view"] == "pruned"


def test_a_dry_run_as_json_has_commands_and_no_results(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--dry-run", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["result"] for step in steps] == [None] * 8
