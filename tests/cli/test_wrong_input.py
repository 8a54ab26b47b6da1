"""Every mistake that a user can make gives one line that says what to do, an exit code, and no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_runs import Ran, Run, write_texts

from saestore.cli import main

MODEL = ["--model", "mini", "--layers", "0"]


def assert_one_line(ran: Ran, *parts: str, code: int = 2) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.err.splitlines()[-1:] == lines, ran.err
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in lines[0]


LINES: dict[str, tuple[list[str], list[str]]] = {
    "no lake": (["status", "{tmp}/none"], ["there is no lake", "saestore init"]),
    "unknown command": (["frobnicate"], ["No such command", "saestore --help"]),
    "unknown option": (["status", "{lake}", "--frob"], ["--frob", "saestore status --help"]),
    "missing argument": (["show", "--rows", "0:1"], ["LAKE", "saestore show --help"]),
    "lake after a list": (["encode", "--saes", "small", "{lake}"], ["LAKE", "before the options"]),
    "not a number": (["encode", "{lake}", "--saes", "small", "--k", "many"], ["--k", "integer"]),
    "unknown dataset": (["extract", "{lake}", "--datasets", "sae-probes/5_hist_fig_isfemale", *MODEL], ["nearest"]),
    "missing file": (["extract", "{lake}", "--datasets", "{tmp}/none.csv", *MODEL], ["none.csv"]),
    "unknown model": (["extract", "{lake}", "--datasets", "{texts}", "--model", "minni", "--layers", "0"], ["minni"]),
    "unknown layer": (["extract", "{lake}", "--datasets", "{texts}", "--model", "mini", "--layers", "99"], ["99"]),
    "unknown sample type": (
        ["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--sample-type", "word"],
        ["word", "token, patch"],
    ),
    "unknown column": (["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--text", "body"], ["body"]),
    "column of a catalog entry": (
        ["extract", "{lake}", "--datasets", "sae-probes/5_hist_fig_ismale", *MODEL, "--text", "prompt"],
        ["--text", "leave it out"],
    ),
    "a name for two": (
        ["extract", "{lake}", "--datasets", "{texts}", "{tmp}/b.csv", *MODEL, "--name", "x"],
        ["--name x is for one dataset"],
    ),
    "a name with a path": (["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--name", "../x"], ["'../x'"]),
    "other samples": (
        ["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--limit", "3"],
        ["28 samples against 3", "at the end only"],
    ),
    "unknown SAE": (["encode", "{lake}", "--saes", "large"], ["no SAE 'large'", "saestore sae import"]),
    "unknown SAE source": (["sae", "import", "{lake}", "demmo"], ["demmo", "nearest", "release:sae_id"]),
    "k above d_sae": (["encode", "{lake}", "--saes", "small", "--k", "65"], ["k is 65", "64"]),
    "k above d_sae in training": (
        ["sae", "train", "{lake}", "--layer", "2", "--out", "{tmp}/sae", "--d-sae", "8", "--k", "9"],
        ["k=9", "d_sae=8"],
    ),
    "a layer that is not stored": (
        ["sae", "train", "{lake}", "--layer", "5", "--out", "{tmp}/sae"],
        ["layer 5", "layer_2/token"],
    ),
    "the wrong layer": (["encode", "{lake}", "--saes", "small", "--layers", "1"], ["blocks.2", "--force"]),
    "unknown dataset of a lake": (["show", "{lake}", "nothing"], ["no dataset 'nothing'"]),
    "a row that is not there": (["show", "{lake}", "texts", "--rows", "99999"], ["99999"]),
    "rows that cannot be read": (["show", "{lake}", "texts", "--rows", "a:b"], ["0:5"]),
    "no rows": (["dense", "{lake}", "texts", "--rows", "5:5"], ["5:5"]),
    "a unit that is not there": (["top", "{lake}", "--units", "64"], ["unit 64", "0 to 63"]),
    "a way to count that is not there": (["top", "{lake}", "--units", "1", "--per", "row"], ["position or sample"]),
    "quantiles that do not ascend": (["top", "{lake}", "--units", "1", "--quantiles", "1", "0"], ["ascending"]),
    "more than the memory": (["dense", "{lake}", "texts", "--memory", "1KiB"], ["budget is 1.0 KiB", "--rows"]),
    "not a size": (["dense", "{lake}", "texts", "--memory", "lots"], ["4GiB"]),
    "unknown ending": (["dense", "{lake}", "texts", "--out", "{tmp}/block.xyz"], [".npy, .npz, .pt, .zarr, .parquet"]),
    "unknown type": (["dense", "{lake}", "texts", "--dtype", "int8"], ["'int8'", "float32, float16"]),
    "a bucket as target": (["dense", "{lake}", "texts", "--out", "s3://b/x.npy"], ["s3://b/x.npy", "give a path"]),
    "a unit twice": (
        ["dense", "{lake}", "texts", "--units", "3", "3", "--out", "{tmp}/x.npy"],
        ["unit 3 is named twice", "once"],
    ),
    "no file of labels": (["label", "{lake}", "texts"], ["no file of labels", "--spans, --words"]),
    "two files of labels": (
        ["label", "{lake}", "texts", "--words", "a.yaml", "--gt", "b.pt"],
        ["--words and --gt were given"],
    ),
    "a missing file of labels": (
        ["label", "{lake}", "texts", "--words", "{tmp}/none.yaml"],
        ["none.yaml", "no such file"],
    ),
    "labels of images for texts": (
        ["label", "{lake}", "texts", "--boxes", "{texts}"],
        ["texts.csv: no column 'sample'", "x0, y0, x1, y1"],
    ),
    "labels of an unknown dataset": (["label", "{lake}", "nothing", "--gt", "b.pt"], ["no dataset 'nothing'"]),
    "a fraction of words": (
        ["label", "{lake}", "texts", "--words", "a.yaml", "--fraction", "0.5"],
        ["--fraction 0.5 is of --boxes and --masks"],
    ),
    "nothing to prune by": (["prune", "{lake}", "--name", "v"], ["--parameters", "clip-patch", "--dead"]),
    "a view without a name": (["prune", "{lake}", "--dead", "3"], ["--name", "saestore prune --help"]),
    "a view with a path": (["prune", "{lake}", "--name", "../v", "--dead", "3"], ["'../v'"]),
    "a view called all": (["prune", "{lake}", "--name", "all", "--dead", "3"], ["'all' is taken"]),
    "an unknown view": (["top", "{lake}", "--view", "prunned"], ["no view 'prunned'", "saestore prune"]),
    "an unknown view to prune": (["prune", "{lake}", "--name", "v", "--view", "w", "--dead", "3"], ["no view 'w'"]),
    "an unknown parameter set": (
        ["prune", "{lake}", "--name", "v", "--parameters", "clip-pach"],
        ["clip-pach", "clip-patch"],
    ),
    "a percentile above 100": (
        ["prune", "{lake}", "--name", "v", "--strength-percentile", "101"],
        ["strength_percentile 101", "between 0 and 100"],
    ),
    "criteria that leave nothing": (
        ["prune", "{lake}", "--name", "v", "--dead", "100000", "--quiet"],
        ["dead (100000) removed the last", "--dead"],
    ),
    "an unknown split to prune by": (
        ["prune", "{lake}", "--name", "v", "--dead", "3", "--split", "calibration"],
        ["'calibration' is unknown", "train, cal, test"],
    ),
    "an adaptive rule for all rows": (
        ["prune", "{lake}", "--name", "v", "--parameters", "clip-patch", "--split", "all", "--quiet"],
        ["--split cal"],
    ),
    "an adaptive rule and an unknown concept": (
        ["prune", "{lake}", "--name", "v", "--parameters", "clip-patch", "--concepts", "labl", "--quiet"],
        ["'labl'", "'label'"],
    ),
    "splits of a table that has some": (
        ["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--splits", "train=0.5", "test=0.5"],
        ["texts: the table has splits already"],
    ),
    "splits that are no parts": (
        ["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--splits", "train=most", "test=0.5"],
        ["--splits train=most test=0.5", "like 0.6"],
    ),
    "splits without names": (
        ["extract", "{lake}", "--datasets", "{texts}", *MODEL, "--splits", "0.5"],
        ["--splits 0.5", "--splits NAME=VALUE"],
    ),
    "a report without a place": (["report", "concepts", "{lake}"], ["--out", "saestore report concepts --help"]),
    "a report in a folder": (["report", "concepts", "{lake}", "--out", "{tmp}"], ["is a folder", "report.html"]),
    "a report of an unknown view": (
        ["report", "concepts", "{lake}", "--view", "strong", "--out", "{tmp}/r.html"],
        ["no view 'strong'", "saestore prune"],
    ),
    "a report below no maps": (
        ["report", "concepts", "{lake}", "--maps", "-1", "--out", "{tmp}/r.html"],
        ["maps -1 is below 0", "0 for none"],
    ),
    "missing recipe": (["run", "{tmp}/none.yaml"], ["none.yaml", "no such file"]),
    "missing catalog": (["catalog", "--catalog", "{tmp}/none.yaml"], ["none.yaml"]),
    "no match": (["catalog", "zzz*"], ["zzz*"]),
    "missing import": (
        [
            "import",
            "{lake}",
            "{tmp}/none.pt",
            "--dataset",
            "d",
            "--model",
            "m",
            "--layer",
            "1",
            "--sample-type",
            "mean",
        ],
        ["none.pt"],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_mistake_is_one_line(name: str, lake: str, texts: Path, tmp_path: Path, run: Run) -> None:
    line, parts = LINES[name]
    ran = run(*(word.format(lake=lake, texts=texts, tmp=tmp_path) for word in line))
    assert_one_line(ran, *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("lake: l\nsteps:\n  - status: {}\n", [":1:", "name is missing"]),
        ("name: x\nlake: l\nsteps: []\n", [":3: steps", "at least 1"]),
        ("name: x\nlake: l\nsteps:\n  - encod: {}\n", [":4: steps.0.encod", "did you mean 'encode'"]),
        ("name: x\nlake: l\nsteps:\n  - encode:\n      saess: [a]\n", [":5:", "did you mean 'saes'"]),
        ("name: x\nlake: l\nsteps:\n  - encode:\n      saes: [a]\n      k: lots\n", [":6: steps.0.encode.k", "'lots'"]),
        ("name: x\nlake: l\nsteps:\n  - status: {}\n    show: {}\n", [":4:", "one verb"]),
        ("name: x\nlake: l\nsteps:\n  - show: {rows: 1:30}\n", [":4: 1:30", "quotes"]),
        ("name: x\nlake: l\nsteps:\n  - show: {rows: '0:3'\n", ["not valid YAML"]),
        ("name: x\nlake: l\nsteps:\n  - encode: {}\n", [":4: steps.0.encode", "saes is missing"]),
    ],
)
def test_a_wrong_recipe_is_told_with_file_and_line(content: str, parts: list[str], tmp_path: Path, run: Run) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert_one_line(run("run", path), str(path), *parts)


RECIPE = "name: x\nlake: l\nvariables: {dataset: a}\nsteps:\n  - show: {dataset: '${dataset}'}\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--set", "datset=b"], ["no variable 'datset'", "'dataset'", "--set NAME=VALUE"]),
        (["--set", "dataset"], ["--set dataset is not a setting", "NAME=VALUE"]),
        (["--set", "=b"], ["--set =b is not a setting"]),
        (["--set", "dataset=b", "dataset=c"], ["dataset twice, 'b' and 'c'"]),
        (["--set", "lake=a", "--lake", "b"], ["--lake b and --set lake=a were given; leave one"]),
        (["--set", "lake=s3://me:mine@bucket/lake"], ["URL given for 'lake' holds a secret"]),
        (["--set", "dataset="], [":5: steps.0.show.dataset: dataset is empty; give --set dataset=..."]),
    ],
)
def test_a_wrong_setting_of_a_recipe_is_told(words: list[str], parts: list[str], tmp_path: Path, run: Run) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert_one_line(run("run", path, *words), *parts)


def test_a_wrong_catalog_is_told_with_file_and_line(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(
        "saes:\n  x:\n    source: folder\n    path: p\n    model: MiniLM\n    layer: deep\n    d_in: 2\n    d_sae: 4\n"
    )
    assert_one_line(run("catalog", f"--catalog={path}"), f"{path}:6", "layer number")
    assert run("catalog").code == 0, "a catalog given once must not stay"


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that nobody can write to, not even root."""
    if os.geteuid() == 0:
        return Path("/proc/saestore-test")
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o500)
    return folder / "lake"


def test_a_folder_that_cannot_be_written_is_told(unwritable: Path, tmp_path: Path, lake: str, run: Run) -> None:
    assert_one_line(run("init", unwritable), "cannot write", str(unwritable))
    (tmp_path / "file").write_text("")
    assert_one_line(run("init", tmp_path / "file" / "lake"), "file, not a folder")
    out = unwritable / "block.npy"
    assert_one_line(run("dense", lake, "texts", "--rows", "0:1", "--out", out), "cannot write", "--out")


def test_labels_of_a_sample_that_is_not_there_are_refused(tmp_path: Path, lake: str, run: Run) -> None:
    (tmp_path / "spans.csv").write_text("sample,concept,start,end\ns0,a,0,1\ns28,a,0,1\n")
    ran = run("label", lake, "texts", "--spans", tmp_path / "spans.csv")
    assert_one_line(ran, "spans.csv", "no sample 's28'", "nearest of 28 samples")


Texts = Callable[[list[str]], Path]


@pytest.fixture
def own(tmp_path: Path, surroundings: Path) -> Texts:
    """Write texts beside an empty lake."""
    assert main(["init", str(tmp_path / "own")]) == 0
    return lambda texts: write_texts(tmp_path / "few.csv", texts)


def test_an_empty_dataset_is_refused(own: Texts, tmp_path: Path, run: Run) -> None:
    assert_one_line(run("extract", tmp_path / "own", "--datasets", own([]), *MODEL), "few.csv")


def test_one_sample_is_enough(own: Texts, tmp_path: Path, run: Run) -> None:
    ran = run("extract", tmp_path / "own", "--datasets", own(["Alone."]), *MODEL, "--json")
    assert ran.code == 0, ran.err
    assert [(result["samples"], result["positions"]) for result in ran.json] == [(1, 4)]


def test_an_empty_text_has_tokens_and_no_mean(own: Texts, tmp_path: Path, run: Run) -> None:
    path = own(["A text.", "", "Another."])
    refused = run("extract", tmp_path / "own", "--datasets", path, *MODEL, "--sample-type", "mean")
    assert_one_line(refused, "'s1'", "remove empty texts")
    kept = run("extract", tmp_path / "own", "--datasets", path, *MODEL)
    assert kept.code == 0, kept.err


def test_debug_shows_the_traceback_before_and_after_the_verb(run: Run, tmp_path: Path) -> None:
    from saestore.errors import MissingError

    for line in (["--debug", "status", tmp_path / "none"], ["status", tmp_path / "none", "--debug"]):
        with pytest.raises(MissingError):
            run(*line)


def test_a_bug_is_one_line_too_and_has_its_own_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saestore.verbs.status", lambda *arguments, **options: 1 / 0)
    assert_one_line(run("status", "x"), "ZeroDivisionError", "--debug", code=3)


def test_an_interrupt_says_that_the_command_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saestore.verbs.status", interrupted)
    ran = run("status", "x")
    assert ran.code == 130
    assert ran.err.splitlines() == ["stopped; run the same command again, what was finished is kept"]
