from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import OOD_SETS, benchmark_tasks, own

from saestore.catalogs import load_catalog
from saestore.errors import InputError, MissingError
from saestore.lake import Lake
from saestore.probing.splits import split_rows
from saestore.probing.tasks import (
    Refusal,
    Task,
    count_shared,
    make_task,
    read_task,
    text_numbers,
)
from saestore.samples import SampleTable, read_samples, samples_from_entry
from saestore.tables import Samples, write_samples


def _stored(folder: Path, table: SampleTable, name: str = "set") -> Samples:
    return write_samples(Lake.create(folder / "lake").storage, name, table)


def _read(folder: Path, columns: dict[str, list[Any]], label: str | None = None) -> Task | Refusal:
    """The task of a table of texts and these columns, all of them label columns."""
    pandas = pytest.importorskip("pandas")
    n = len(next(iter(columns.values())))
    frame = pandas.DataFrame({"text": [f"Text {row}." for row in range(n)], **columns})
    return read_task(_stored(folder, read_samples(frame, labels=list(columns))), label)


@pytest.mark.slow
def test_labels_and_shared_texts_of_all_benchmark_tasks(tmp_path: Path) -> None:
    data = own("utils_data")
    catalog, lake = load_catalog(), Lake.create(tmp_path / "lake")
    rows, shared = 0, {}
    for tag, expected in benchmark_tasks().items():
        entry = catalog.dataset(f"sae-probes/{tag}")
        samples = write_samples(lake.storage, entry.lake_name, samples_from_entry(entry))
        task = read_task(samples)
        assert isinstance(task, Task), task
        np.testing.assert_array_equal(task.labels, expected.labels, err_msg=tag)
        targets = data.read_numbered_dataset_df(tag)["target"]
        # 0/1 and bool columns are stored as concepts, so that False is 0.
        assert task.classes == tuple(
            str(int(value) if targets.dtype == bool else value) for value in sorted(set(targets))
        )
        texts = text_numbers(samples.contents())
        rows += len(task)
        split = split_rows(task.labels, num_train=min(len(task) - 100, 1_024))
        shared[tag] = count_shared(texts[split.train], texts[split.test]) / len(split.test)
    assert (len(shared), rows) == (113, 334_092)
    percent = 100 * np.array(list(shared.values()))
    assert (round(percent.mean(), 1), round(float(np.median(percent)), 1)) == (18.6, 16.9)
    assert ((percent > 10).sum(), (percent > 50).sum()) == (71, 7)


@pytest.mark.parametrize(
    ("tag", "classes", "shared"),
    [
        ("41_truthqa_tf", ("correct", "incorrect"), 51.5),
        ("95_toxic_is", ("0", "1"), 35.4),
        ("22_headline_isobama", ("0", "1"), 24.2),
        ("151_it_tick_HR Support", ("0", "1"), 3.0),
        ("66_living-room", ("bigram", "not_bigram"), 17.3),
    ],
)
def test_shared_texts_of_known_tasks(tmp_path: Path, tag: str, classes: tuple[str, str], shared: float) -> None:
    expected = benchmark_tasks()[tag]
    entry = load_catalog().dataset(f"sae-probes/{tag}")
    samples = _stored(tmp_path, samples_from_entry(entry), entry.lake_name)
    task = read_task(samples, "target")
    assert isinstance(task, Task)
    assert (task.name, task.label, task.classes) == (entry.lake_name, "target", classes)
    np.testing.assert_array_equal(task.labels, expected.labels)
    contents = samples.contents().tolist()
    texts = text_numbers(samples.contents())
    split = split_rows(task.labels, num_train=min(len(task) - 100, 1_024))
    train = {contents[row] for row in split.train}
    brute_force = sum(contents[row] in train for row in split.test)
    assert count_shared(texts[split.train], texts[split.test]) == brute_force
    assert round(100 * brute_force / len(split.test), 1) == shared


@pytest.mark.parametrize("name", OOD_SETS)
def test_labels_of_out_of_distribution_sets(tmp_path: Path, name: str) -> None:
    path = own("constants").DATA_PATH / "OOD data" / f"{name}_OOD.csv.zst"
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn is not installed")
    frame = pytest.importorskip("pandas").read_csv(path, compression="zstd")
    entry = load_catalog().dataset(f"sae-probes-ood/{name}_OOD")
    task = read_task(_stored(tmp_path, samples_from_entry(entry)))
    assert isinstance(task, Task)
    np.testing.assert_array_equal(task.labels, preprocessing.LabelEncoder().fit_transform(frame["target"].values))
    if name == "90_glue_qnli":
        assert task.classes == ("1", "not_entailment")


def test_translations_are_no_task(tmp_path: Path) -> None:
    path = own("constants").DATA_PATH / "OOD data" / "66_living-room_translations.csv.zst"
    with pytest.raises(MissingError, match="no column named text, prompt"):
        read_samples(path)
    task = read_task(_stored(tmp_path, read_samples(path, text="Translation")))
    assert isinstance(task, Refusal)
    assert task.reason.startswith("no label column named label or target; its 1 columns and concepts: 'Language'")


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["no", "yes", "yes"], ("no", "yes"), [0, 1, 1]),
        (["B", "a", "a"], ("B", "a"), [0, 1, 1]),  # capitals come first, as in numpy
        ([2, 10, 2], ("2", "10"), [0, 1, 0]),  # numbers by their size
        ([0.5, -0.5, 0.5], ("-0.5", "0.5"), [1, 0, 1]),
        ([0, 1, 1], ("0", "1"), [0, 1, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
    ],
)
def test_labels_are_places_among_the_sorted_values(
    tmp_path: Path, values: list[Any], classes: tuple[str, str], labels: list[int]
) -> None:
    task = _read(tmp_path, {"target": values})
    assert isinstance(task, Task), task
    assert (task.classes, task.labels.tolist(), task.labels.dtype) == (classes, labels, np.int8)
    np.testing.assert_array_equal(task.labels, np.unique(values, return_inverse=True)[1])
    assert (len(task), task.n_positive) == (3, sum(labels))
    assert not task.labels.flags.writeable


def test_the_label_is_found_or_named(tmp_path: Path) -> None:
    columns = {"label": ["a", "b", "a"], "target": ["x", "x", "y"], "kind": ["p", "q", "r"]}
    chosen = {name: _read(tmp_path / str(name), columns, name) for name in (None, "target", "kind=q")}
    assert all(isinstance(task, Task) for task in chosen.values())
    assert [(task.label, task.labels.tolist()) for task in chosen.values() if isinstance(task, Task)] == [
        ("label", [0, 1, 0]),
        ("target", [0, 0, 1]),
        ("kind=q", [0, 1, 0]),
    ]
    only = _read(tmp_path / "only", {"is_odd": [1, 0, 1]})
    assert isinstance(only, Task)
    assert (only.label, only.classes) == ("is_odd", ("0", "1"))


@pytest.mark.parametrize(
    ("columns", "label", "reason"),
    [
        ({"target": [1, 1, 1]}, None, "'target' has one class only (1); a task needs two"),
        ({"target": ["a", "a", "a"]}, None, "'target' has one class only (a); a task needs two"),
        (
            {"target": ["a", "b", "c"]},
            None,
            "'target' is not binary: 3 values (a, b, c); probe a concept of one value",
        ),
        ({"target": [0.5, 1.5, 2.5]}, None, "'target' is not binary: 3 values (0.5, 1.5, 2.5); probe a concept of"),
        (
            {"target": ["a", "b", "", ""]},
            None,
            "2 of 4 samples have no 'target', the first is number 2; a task needs a value for each",
        ),
        ({"target": ["yes", "NA", "no"]}, None, "1 of 3 samples have no 'target', the first is number 1"),
        ({"target": [1, None, 0]}, None, "1 of 3 samples have no 'target', the first is number 1"),
        ({"target": [2, None, 3]}, None, "1 of 3 samples have no 'target', the first is number 1"),
        (
            {"target": ["a", "b"]},
            "targets",
            "no column or concept 'targets'; nearest of 2 columns and concepts: 'target",
        ),
        (
            {"kind": ["a", "b"], "sort": [1, 0]},
            None,
            "no label column named label or target; its 3 columns and concepts",
        ),
    ],
)
def test_datasets_that_are_no_task(
    tmp_path: Path, columns: dict[str, list[Any]], label: str | None, reason: str
) -> None:
    task = _read(tmp_path, columns, label)
    assert isinstance(task, Refusal)
    assert task.name == "set"
    assert task.reason.startswith(reason), task.reason


def test_long_values_are_shortened_in_reasons() -> None:
    values = np.array([f"line {n}\n" + "x" * 500 for n in range(30)], dtype=object)
    task = make_task("set", "target", values, np.zeros(30, bool))
    assert isinstance(task, Refusal)
    assert "\n" not in task.reason
    assert "30 values (line 0 " in task.reason
    assert len(task.reason) < 350


def test_samples_appended_later_belong_to_the_task(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    concepts = np.array([[0], [1], [1]], np.uint8)
    for part in range(2):
        table = SampleTable(
            ids=[f"{part}-{row}" for row in range(3)],
            kind="text",
            contents=["One.", "Two.", f"Part {part}."],
            concept_names=("target",),
            concepts=concepts,
        )
        write_samples(lake.storage, "set", table, part)
    samples = lake.samples("set")
    task = read_task(samples)
    assert isinstance(task, Task)
    assert task.labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert text_numbers(samples.contents()).tolist() == [0, 1, 2, 0, 1, 3]


def test_texts_are_compared_letter_by_letter() -> None:
    texts = text_numbers(["Rain.", "rain.", "Rain. ", "Rain.", "Snow.", "Rain.", "Snow."])
    assert texts.dtype == np.int64
    assert texts.tolist() == [0, 1, 2, 0, 3, 0, 3]
    assert count_shared(texts[[0, 4]], texts[[1, 3, 5, 6, 2]]) == 3
    assert count_shared(texts[:0], texts) == 0


@pytest.mark.parametrize("labels", [[0, 0], [0, 2], [1], [[0, 1]], [], [0, 1, 255]])
def test_a_task_has_both_labels_and_no_other(labels: list[Any]) -> None:
    with pytest.raises(InputError, match="labels of task 'set' have shape"):
        Task("set", "target", np.array(labels), ("a", "b"))
