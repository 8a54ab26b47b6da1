"""SAE probes over a stored lake, against the package's ranking and classifiers on the dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_lake import KnownCodes, write_codes
from package_oracle import ranking, training

from saestore.codes import Codes
from saestore.errors import InputError
from saestore.lake import Lake
from saestore.layout import CodesKey
from saestore.probing.sae_probes import KS, Design, Ranking, SampleCodes, fit_probes
from saestore.views import UnitChoice

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Inconsistent values. penalty=l1:UserWarning"),
]

D_SAE, N_TRAIN, N_TEST = 200, 140, 90


def rank_units(codes: Codes, rows: np.ndarray, labels: np.ndarray, **how: Any) -> Ranking:
    return SampleCodes(codes, rows).rank(rows, labels, **how)


def design_of(codes: Codes, units: np.ndarray, train: tuple[Any, Any], test: tuple[Any, Any]) -> Design:
    found = SampleCodes(codes, np.concatenate([train[0], test[0]]))
    return Design(units, found.columns(train[0], units), train[1], found.columns(test[0], units), test[1])


@dataclass(frozen=True)
class Task:
    """Codes whose first units tell the classes apart, and rows of them in no order."""

    codes: Codes
    dense: np.ndarray
    y: np.ndarray
    train: np.ndarray
    test: np.ndarray

    @property
    def best(self) -> Ranking:
        return rank_units(self.codes, self.train, self.y[self.train], limit=64)

    def torch(self, rows: np.ndarray) -> Any:
        torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
        return torch.from_numpy(self.dense[rows]), torch.from_numpy(self.y[rows])


def stored(folder: Path, dense: np.ndarray) -> Codes:
    """Write a dense matrix as codes of the last position, float32, and open them."""
    lake = Lake.create(str(folder / "lake"))
    order = np.argsort(-np.abs(dense), axis=1, kind="stable")
    k = int(np.count_nonzero(dense, axis=1).max())
    values = np.take_along_axis(dense, order, axis=1)[:, :k]
    indices = np.where(values != 0, order[:, :k], 0).astype(np.uint16)
    l0 = np.count_nonzero(dense, axis=1).astype(np.uint32)
    key = CodesKey("d", "m", "layer_3", "s", "last")
    known = KnownCodes(indices, values, l0, dense)
    write_codes(lake.storage, key, known, dtype="float32", shard_rows=128, chunk_rows=32)
    return Codes.open(lake.storage, key)


@pytest.fixture(scope="module", params=["positive", "signed"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    rng = np.random.default_rng(5)
    n = N_TRAIN + N_TEST + 20
    y = rng.integers(0, 2, n)
    dense = (rng.random((n, D_SAE)) < 0.12) * rng.gamma(2.0, 1.0, (n, D_SAE))
    dense[:, :30] += (rng.random((n, 30)) < 0.25 * y[:, None]) * rng.gamma(2.0, 0.3, (n, 30))
    if request.param == "signed":
        dense *= rng.choice([-1, 1], size=dense.shape, p=[0.2, 0.8])
    dense[:, 199] = 0
    dense = dense.astype(np.float32)
    order = rng.permutation(n)
    codes = stored(tmp_path_factory.mktemp(request.param), dense)
    return Task(codes, dense, y, order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_TEST])


@pytest.mark.parametrize("normalisation", ["mean", "none"])
def test_units_are_ranked_as_by_the_package(task: Task, normalisation: Any) -> None:
    x, y = task.torch(task.train)
    normalise = ranking().mean_act_normalization if normalisation == "mean" else None
    theirs = ranking().get_sorted_indices(x, y, normalise)[:100].tolist()
    mine = rank_units(task.codes, task.train, task.y[task.train], limit=100, normalisation=normalisation)
    assert mine.units.tolist() == theirs
    assert (np.diff(mine.scores) <= 0).all()


def test_a_ranking_neither_depends_on_the_order_of_rows_nor_on_its_length(task: Task) -> None:
    order = np.argsort(task.train)
    shuffled = rank_units(task.codes, task.train[order], task.y[task.train][order], limit=64)
    assert shuffled.units.tolist() == task.best.units.tolist()
    assert shuffled.scores.tolist() == task.best.scores.tolist()
    longer = rank_units(task.codes, task.train, task.y[task.train], limit=D_SAE)
    assert longer.units[:64].tolist() == task.best.units.tolist()
    assert sorted(longer.units.tolist()) == list(range(D_SAE))
    assert longer.units[-1] == 199


def test_equal_units_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    dense = np.zeros((4, 9), np.float32)
    dense[:2, [7, 2, 5]] = 1.5
    dense[0, 4] = 1.5
    best = rank_units(stored(tmp_path, dense), np.arange(4), np.array([1, 1, 0, 0]), limit=6)
    assert best.units.tolist() == [2, 5, 7, 4, 0, 1]


def test_the_design_is_the_chosen_columns(task: Task) -> None:
    units = task.best.units
    design = design_of(task.codes, units, (task.train, task.y[task.train]), (task.test, task.y[task.test]))
    assert np.array_equal(design.x_train, task.dense[task.train][:, units])
    assert np.array_equal(design.x_test, task.dense[task.test][:, units])
    assert design.x_train.dtype == np.float32


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_probes_equal_those_of_the_package(task: Task, penalty: Any) -> None:
    ks = (1, 4, 16, 64)
    design = design_of(task.codes, task.best.units, (task.train, task.y[task.train]), (task.test, task.y[task.test]))
    (x_train, y_train), (x_test, y_test) = task.torch(task.train), task.torch(task.test)
    theirs = ranking().get_sorted_indices(x_train, y_train, ranking().mean_act_normalization)
    for probe in fit_probes(design, ks=ks, penalty=penalty):
        chosen = theirs[: probe.k]
        fitted = training().find_best_reg(
            x_train[:, chosen], y_train, x_test[:, chosen], y_test, penalty=penalty, seed=42
        )
        assert probe.units.tolist() == chosen.tolist()
        mine = probe.scores
        for metric in ("test_f1", "test_acc", "test_auc", "val_auc"):
            assert getattr(mine, metric) == pytest.approx(getattr(fitted.metrics, metric), abs=1e-6)


def test_of_a_view_its_units_alone_are_ranked(task: Task) -> None:
    kept = np.array([3, 9, 40, 150])
    view = Codes(task.codes.group, task.codes.key)
    view.__dict__["_kept"] = UnitChoice(task.codes.key, D_SAE, "few", kept)
    whole = rank_units(task.codes, task.train, task.y[task.train], limit=D_SAE)
    best = rank_units(view, task.train, task.y[task.train], limit=4)
    assert best.units.tolist() == [unit for unit in whole.units.tolist() if unit in kept]


def test_more_units_than_there_are_is_refused(task: Task) -> None:
    with pytest.raises(InputError, match="which has 200; give smaller k"):
        rank_units(task.codes, task.train, task.y[task.train], limit=KS[-1])
    design = design_of(task.codes, task.best.units, (task.train, task.y[task.train]), (task.test, task.y[task.test]))
    with pytest.raises(InputError, match="expected 1 to 64"):
        fit_probes(design, ks=(16, 128))


def test_labels_of_one_class_are_refused(task: Task) -> None:
    with pytest.raises(InputError, match="expected both 0 and 1"):
        rank_units(task.codes, task.train, task.y[task.train] * 0, limit=4)


def test_an_unknown_normalisation_is_refused(task: Task) -> None:
    normalisation: Any = "max"
    with pytest.raises(InputError, match="expected mean or none"):
        rank_units(task.codes, task.train, task.y[task.train], limit=4, normalisation=normalisation)
