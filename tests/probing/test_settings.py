from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from benchmark_rows import OOD_SETS, benchmark_tasks, own, row_numbers, rows_and_labels

from saestore.errors import InputError
from saestore.probing.settings import (
    FLIPPED_FRACTIONS,
    POSITIVE_FRACTIONS,
    TRAIN_SIZES,
    Cell,
    Skipped,
    cells,
    flipped_places,
    imbalance_sizes,
    out_of_distribution,
)
from saestore.probing.splits import split_rows
from saestore.probing.tasks import Task

__all__ = ["row_numbers"]  # a fixture


def _task(positive: int, negative: int, name: str = "task") -> Task:
    labels = np.random.default_rng(1).permutation([1] * positive + [0] * negative)
    return Task(name, "label", labels.astype(np.int8), ("no", "yes"))


def _of(task: Task, setting: Any, **options: int) -> list[Cell]:
    found = cells(task, setting, **options)
    assert all(isinstance(cell, Cell) for cell in found), found
    return [cell for cell in found if isinstance(cell, Cell)]


def _check(cell: Cell, labels: np.ndarray, expected: list[np.ndarray]) -> None:
    given = [cell.train, cell.test, cell.train_labels(labels), cell.test_labels(labels)]
    for ours, theirs in zip(given, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{cell.task} {cell.num_train} {cell.fraction}")


def test_grids_are_those_of_the_package() -> None:
    data = own("utils_data")
    assert list(TRAIN_SIZES) == data.get_training_sizes()
    assert list(POSITIVE_FRACTIONS) == data.get_class_imbalance()
    assert list(FLIPPED_FRACTIONS) == data.get_corrupt_frac()
    assert POSITIVE_FRACTIONS[7] == 0.39999999999999997


def test_normal_cells_of_all_tasks_are_those_of_the_package(row_numbers: Any) -> None:
    assert len(benchmark_tasks()) == 113
    for name, task in benchmark_tasks().items():
        (cell,) = _of(task, "normal")
        _check(cell, task.labels, rows_and_labels(row_numbers, name, "normal", num_train=None, frac=None))


@pytest.mark.slow
def test_scarcity_cells_of_all_tasks_are_those_of_the_package(row_numbers: Any) -> None:
    n_cells = 0
    for name, task in benchmark_tasks().items():
        found = cells(task, "scarcity")
        assert [cell.num_train for cell in found] == list(TRAIN_SIZES)
        for cell in found:
            assert isinstance(cell, Cell) is (cell.num_train <= len(task) - 100)
            if isinstance(cell, Cell):
                n_cells += 1
                expected = rows_and_labels(row_numbers, name, "scarcity", num_train=cell.num_train, frac=None)
                _check(cell, task.labels, expected)
    assert n_cells == 2_247


@pytest.mark.slow
def test_imbalance_cells_of_all_tasks_are_those_of_the_package(row_numbers: Any) -> None:
    sizes = own("utils_data").get_classimabalance_num_train
    found = []
    for name, task in benchmark_tasks().items():
        assert imbalance_sizes(task.labels) == sizes(name)
        for cell in _of(task, "imbalance"):
            found.append(cell)
            expected = rows_and_labels(row_numbers, name, "imbalance", num_train=None, frac=cell.fraction)
            _check(cell, task.labels, expected)
    assert len(found) == 2_147
    assert {cell.num_train for cell in found} == {
        283, 313, 426, 453, 458, 557, 620, 630, 651, 686, 771, 832, 877, 931, 952, 1024,
    }  # fmt: skip
    assert Counter(len(cell.test) for cell in found)[100] == 41 * 19
    assert max(len(cell.test) for cell in found) == 1_606


def test_rounded_fractions_would_draw_other_rows_in_41_sets() -> None:
    differing = 0
    for task in benchmark_tasks().values():
        num_train, num_test = imbalance_sizes(task.labels)
        for fraction in POSITIVE_FRACTIONS:
            for size in (num_train, num_test):
                differing += int(np.ceil(fraction * size) != np.ceil(round(fraction * 20) / 20 * size))
    assert differing == 41


def test_label_noise_flips_the_labels_that_the_package_flips() -> None:
    corrupt = own("utils_data").corrupt_ytrain
    n_cells = 0
    for task in benchmark_tasks().values():
        (normal,) = _of(task, "normal")
        for cell, fraction in zip(_of(task, "label_noise"), FLIPPED_FRACTIONS, strict=True):
            n_cells += 1
            clean = task.labels[normal.train]
            np.testing.assert_array_equal(cell.train, normal.train)
            np.testing.assert_array_equal(cell.test_labels(task.labels), task.labels[normal.test])
            np.testing.assert_array_equal(cell.train_labels(task.labels), corrupt(clean, fraction))
            assert (cell.fraction, len(cell.flipped)) == (fraction, int(fraction * len(clean)))
    assert n_cells == 1_243


def test_another_seed_draws_and_flips_as_the_package_does(row_numbers: Any) -> None:
    task = benchmark_tasks()["95_toxic_is"]
    (normal,) = _of(task, "normal", seed=7)
    made = row_numbers.generate_sae_activations_normal(_Same(), task.name, "h", "m", "cpu", "nowhere", seed=7)
    np.testing.assert_array_equal(normal.train, made.X_train.numpy()[:, 0])
    noisy = _of(task, "label_noise", seed=7)[-1]
    corrupt = own("utils_data").corrupt_ytrain
    np.testing.assert_array_equal(
        noisy.train_labels(task.labels), corrupt(task.labels[normal.train], noisy.fraction, seed=7)
    )


class _Same:
    def encode(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("name", OOD_SETS)
def test_out_of_distribution_trains_on_the_packages_rows(
    row_numbers: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data = own("utils_data")
    test_task = _task(150, 149, f"{name}_OOD")
    whole = (np.arange(len(test_task)), test_task.labels)
    monkeypatch.setattr(data, "get_xy_OOD", lambda *_: whole)
    x_train, y_train, x_test, y_test = data.get_OOD_traintest(name, "model", "hook", "nowhere")
    task = benchmark_tasks()[name]
    cell = out_of_distribution(task, test_task)
    assert isinstance(cell, Cell)
    np.testing.assert_array_equal(cell.train, x_train.numpy()[:, 0])
    np.testing.assert_array_equal(cell.train_labels(task.labels), y_train)
    np.testing.assert_array_equal(cell.test, x_test)
    np.testing.assert_array_equal(cell.test_labels(test_task.labels), y_test)
    assert (cell.task, cell.test_task, cell.setting) == (name, f"{name}_OOD", "ood")
    assert np.bincount(y_train).tolist() == [512, 512]
    assert cell.train.max() < 1_500


@pytest.mark.parametrize("setting", ["normal", "scarcity", "imbalance", "label_noise"])
@pytest.mark.parametrize(("positive", "negative"), [(2_000, 2_000), (400, 900), (3_500, 700)])
def test_rows_of_a_cell_are_distinct_and_have_both_classes(setting: Any, positive: int, negative: int) -> None:
    task = _task(positive, negative)
    found = [cell for cell in cells(task, setting) if isinstance(cell, Cell)]
    assert found
    for cell in found:
        both = np.concatenate([cell.train, cell.test])
        assert len(np.unique(both)) == len(both)
        assert both.min() >= 0
        assert both.max() < min(len(task), 5_000)
        ratio = cell.fraction if setting == "imbalance" and cell.fraction is not None else 0.5
        for rows in (cell.train, cell.test):
            assert int(task.labels[rows].sum()) == int(np.ceil(ratio * len(rows)))
            assert set(task.labels[rows].tolist()) == {0, 1}
        assert len(cell.test) >= 99


def test_a_larger_fraction_flips_what_a_smaller_one_does() -> None:
    places = [flipped_places(200, fraction) for fraction in FLIPPED_FRACTIONS]
    assert [len(some) for some in places] == [int(200 * fraction) for fraction in FLIPPED_FRACTIONS]
    for smaller, larger in itertools.pairwise(places):
        np.testing.assert_array_equal(larger[: len(smaller)], smaller)


def test_flipping_leaves_the_tasks_labels_alone() -> None:
    task = _task(300, 300)
    before = task.labels.copy()
    noisy = _of(task, "label_noise")[-1]
    assert (noisy.train_labels(task.labels) != task.labels[noisy.train]).sum() == 250
    np.testing.assert_array_equal(task.labels, before)


def test_cells_that_a_small_task_has_no_rows_for_are_skipped_with_a_reason() -> None:
    small = _task(60, 60)
    (normal,) = _of(small, "normal")
    assert (normal.num_train, len(normal.test)) == (20, 99)
    scarce = cells(small, "scarcity")
    assert [isinstance(cell, Cell) for cell in scarce] == [size <= 20 for size in TRAIN_SIZES]
    last = scarce[-1]
    assert isinstance(last, Skipped)
    assert (last.num_train, last.setting) == (1_024, "scarcity")
    assert last.reason == "120 rows of equal classes; scarcity needs 1,124 here"
    imbalanced = cells(small, "imbalance")
    assert [cell.fraction for cell in imbalanced] == list(POSITIVE_FRACTIONS)
    assert all(isinstance(cell, Skipped) for cell in imbalanced)


def test_a_task_below_every_size_is_skipped_everywhere() -> None:
    tiny = _task(50, 300)
    for setting, expected in (("normal", 1), ("scarcity", 20), ("imbalance", 19), ("label_noise", 11)):
        found = cells(tiny, setting)
        assert len(found) == expected
        for cell in found:
            assert isinstance(cell, Skipped)
            assert cell.reason
    assert [cell.fraction for cell in cells(tiny, "label_noise")] == list(FLIPPED_FRACTIONS)


def test_out_of_distribution_needs_512_rows_of_each_class() -> None:
    cell = out_of_distribution(_task(500, 3_000), _task(20, 20, "other"))
    assert isinstance(cell, Skipped)
    assert "512 positive rows needed of" in cell.reason


def test_classes_of_other_sizes_share_the_rarer_one() -> None:
    (cell,) = _of(_task(300, 5_000), "normal", max_rows=5_300)
    assert (cell.num_train, len(cell.test)) == (500, 99)
    expected = split_rows(_task(300, 5_000).labels, num_train=500, num_test=99, max_rows=5_300)
    np.testing.assert_array_equal(cell.train, expected.train)


def test_unknown_settings_and_fractions_are_refused() -> None:
    with pytest.raises(InputError, match=r"choose from normal, scarcity, imbalance, label_noise, multi_token$"):
        cells(_task(200, 200), "abundance")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tests on another dataset: out_of_distribution"):
        cells(_task(200, 200), "ood")
    with pytest.raises(InputError, match=r"a fraction 0\.6 of flipped labels; expected 0 to 0\.5"):
        flipped_places(100, 0.6)
