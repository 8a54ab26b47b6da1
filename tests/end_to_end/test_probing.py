"""The probing benchmark from texts to its page, as a user types it, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import saestore
from saestore.cli import main

BIRDS = ("heron", "swift", "robin", "crane", "owl", "wren", "finch", "hawk", "gull", "rook")
TREES = ("oak", "birch", "maple", "cedar", "elm", "pine", "ash", "larch", "beech", "willow")
FRAMES = ("The {} was seen by the river on day {}.", "On day {1} somebody drew the {0} by the road.")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def place(tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    rows = [(frame.format(word, n), kind) for kind, words in (("bird", BIRDS), ("tree", TREES))
            for word in words for frame in FRAMES for n in range(7)]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(rows))
    table = "".join(f'"{rows[place][0]}",{rows[place][1]}\n' for place in order)
    (tmp_path / "nature.csv").write_text("text,kind\n" + table)
    for command in (
        "init lake",
        "extract lake --datasets nature.csv --model {model} --layers 2 --sample-type token last --truncation-side left",
        "sae train lake --layer 2 --out sae --d-sae 256 --k 8 --samples 8192 --batch-size 256",
        "sae import lake sae --name tiny",
        "encode lake --saes tiny --sample-type last token --dtype float32",
    ):
        assert main([word.format(model=minilm_folder) for word in command.split()]) == 0
    return tmp_path


@pytest.mark.slow
def test_from_texts_to_the_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "probe lake --label kind --methods logreg sae-l1 --settings normal label_noise --out tables --json"
    capsys.readouterr()
    assert main(command.split()) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["setting"], row["method"], row["k"], row["fraction"]): row for row in found["rows"]}
    assert len(rows) == 1 + 9 + 11 * (1 + 2)  # 512 units are more than there are
    assert {row["reason"] for row in found["rows"] if row["k"]} == {"k = 512 left out: there are 256 units", ""}

    # Fit the last probe anew from what the lake holds, with scikit-learn alone.
    lake = saestore.open("lake")
    (result,) = [one for one in lake.probes() if one.setting == "normal" and one.method == "logreg"]
    (probe,) = result.cells[0].probes
    x = lake.activations("nature", sample_type="last").read().astype(np.float64)
    y = (lake.samples("nature").column("kind") == "tree").astype(int)
    from sae_probes.utils_data import get_train_test_indices

    train, test = get_train_test_indices(y, 180, 99)
    order = np.random.RandomState(42).permutation(180)
    model = LogisticRegression(C=probe.chosen["C"], max_iter=1000, random_state=42)
    model.fit(x[train][order], y[train][order])
    auc = roc_auc_score(y[test], model.predict_proba(x[test])[:, 1])
    assert probe.test_auc == pytest.approx(auc, abs=1e-9)
    assert rows["normal", "logreg", None, None]["test_auc"] == probe.test_auc

    assert main(["status", "lake"]) == 0
    assert "default: label_noise-sae-l1, normal-sae-l1" in capsys.readouterr().out
    assert main(["report", "probes", "lake", "--out", "page.html", "--data", "data", "--png", "figures"]) == 0
    assert "nature" in Path("page.html").read_text()
    assert list(Path("figures").rglob("*.png"))
    assert list(Path("data").rglob("*.csv"))
    assert main(["probes", "export", "lake", "files", "--what", "activations"]) in (0, 3)
