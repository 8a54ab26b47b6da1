"""Probes on several tokens, against padded arrays, brute force and an attention probe with gradients of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import benchmark_tasks, own
from built_lake import top_k, write_activations, write_codes

from saestore.activations import Activations
from saestore.codes import Codes
from saestore.errors import BudgetError, InputError
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey
from saestore.probing import attention, multi_token
from saestore.probing.classifiers import logistic
from saestore.probing.multi_token import concat_probe, concatenated, pooled_codes, pooled_design
from saestore.probing.sae_probes import fit_probes
from saestore.probing.settings import Cell, Skipped, cells
from saestore.probing.tasks import Task
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from saestore.views import UnitChoice

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, D, D_SAE, LONGEST = 60, 30, 40, 11
HERE = 9
"""Positions of a sample that are used; samples have up to 11."""


@dataclass(frozen=True)
class Lying:
    """A lake of samples of 1 to 11 tokens, and what is in it, padded with zeros."""

    activations: Activations
    codes: Codes
    lengths: np.ndarray
    special: np.ndarray
    x: np.ndarray
    z: np.ndarray
    task: Task
    cell: Cell

    @property
    def exists(self) -> np.ndarray:
        return np.arange(LONGEST) < self.lengths[:, None]

    @property
    def counts(self) -> np.ndarray:
        """Which positions count, (n, longest): not the first, no special one, and few enough."""
        place = np.arange(LONGEST)
        return self.exists & ~self.special & (place > 0) & (place < HERE)

    @property
    def y(self) -> np.ndarray:
        return self.task.labels


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Lying:
    return build(str(tmp_path_factory.mktemp("tokens") / "lake"))


def build(url: str) -> Lying:
    rng = np.random.default_rng(5)
    y = rng.permutation(np.arange(N) % 2)
    lengths = rng.integers(2, LONGEST + 1, N)
    lengths[[3, 17]] = 1  # BOS alone
    exists = np.arange(LONGEST) < lengths[:, None]
    special = np.zeros((N, LONGEST), bool)
    special[:, 0] = True
    special[np.arange(N), lengths - 1] |= rng.random(N) < 0.4  # as if it ended with a separator
    special[20, :] = True
    x = (rng.normal(size=(N, LONGEST, D)) + y[:, None, None] * rng.normal(size=D) / 4).astype(np.float16)
    x = np.where(exists[..., None], x, 0).astype(np.float32)
    z = np.where(rng.random((N, LONGEST, D_SAE)) < 0.12, rng.choice([0.3, 0.7, 1.5, 2.0], (N, LONGEST, D_SAE)), 0)
    z[:, :, 7] += (y[:, None] == 1) * (rng.random((N, LONGEST)) < 0.5)
    z[:, :, 31] = z[:, :, 30]  # a tie
    z = np.where(exists[..., None], z, 0).astype(np.float16).astype(np.float32)
    storage = Lake.create(url).storage
    names = [f"s{place}" for place in range(N)]
    write_samples(storage, "d", SampleTable(ids=names, kind="text", contents=names))
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    arrays = {"special": special[exists], "token_id": np.zeros(offsets[-1], np.uint32)}
    write_positions(storage, ModelKey("d", "m"), offsets=offsets, arrays=arrays, digest="0" * 64, attributes={})
    layer, key = ActivationsKey("d", "m", "layer_3", "token"), CodesKey("d", "m", "layer_3", "s", "token")
    write_activations(storage, layer, x[exists], "float16")
    write_codes(storage, key, top_k(z[exists], D_SAE))
    order = rng.permutation(N)
    cell = Cell("d", "d", "multi_token", order[:40], order[40:])
    task = Task("d", "label", y, ("no", "yes"))
    return Lying(Activations.open(storage, layer), Codes.open(storage, key), lengths, special, x, z, task, cell)


# ---------------------------------------------------------------------------------------------------------------- split


def test_the_setting_leaves_no_row_over() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(300) % 2)
    (cell,) = cells(Task("t", "label", labels, ("a", "b")), "multi_token")
    (normal,) = cells(Task("t", "label", labels, ("a", "b")), "normal")
    assert isinstance(cell, Cell)
    assert isinstance(normal, Cell)
    assert cell.setting == "multi_token"
    assert (len(cell.train), len(cell.test), len(normal.test)) == (200, 100, 99)
    assert cell.train.tolist() == normal.train.tolist()
    assert sorted([*cell.train.tolist(), *cell.test.tolist()]) == list(range(300))
    (few,) = cells(Task("t", "label", labels[:90], ("a", "b")), "multi_token")
    assert isinstance(few, Skipped)
    assert "multi token needs" in few.reason


def test_cells_of_all_tasks_are_those_of_the_package() -> None:
    indices = own("utils_data").get_train_test_indices
    for name, task in benchmark_tasks().items():
        (cell,) = cells(task, "multi_token")
        assert isinstance(cell, Cell)
        num_train = min(len(task) - 100, 1024)
        train, test = indices(task.labels, num_train, len(task) - num_train, pos_ratio=0.5, seed=42)
        np.testing.assert_array_equal(cell.train, train, err_msg=name)
        np.testing.assert_array_equal(cell.test, test, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- pooling


def pooled(lying: Lying, how: str) -> np.ndarray:
    """Each sample for itself, in float64."""
    out = np.zeros((N, D_SAE))
    for sample in range(N):
        rows = lying.z[sample][lying.counts[sample]].astype(np.float64)
        if len(rows):
            out[sample] = rows.mean(0) if how == "mean" else rows.max(0)
    return out


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("block_slots", [1, 500, 1 << 20])
def test_pooled_codes_are_those_of_each_sample(
    lying: Lying, how: Any, block_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_token, "_BLOCK_SLOTS", block_slots)
    blocks = list(pooled_codes(lying.codes, lying.cell.test, how, max_positions=HERE))
    assert len(blocks) == 20 if block_slots == 1 else len(blocks) < 20
    dense = np.zeros((N, D_SAE))
    for block in blocks:
        assert len(block.pointers) == len(block.samples) + 1
        for number, sample in enumerate(block.samples):
            entries = slice(block.pointers[number], block.pointers[number + 1])
            assert (np.diff(block.units[entries]) > 0).all()
            dense[sample, block.units[entries]] = block.values[entries]
        assert block.rows.tolist() == np.repeat(np.arange(len(block.samples)), np.diff(block.pointers)).tolist()
    assert np.concatenate([block.samples for block in blocks]).tolist() == sorted(lying.cell.test.tolist())
    expected = pooled(lying, how)
    np.testing.assert_array_equal(dense[lying.cell.test], expected.astype(np.float32)[lying.cell.test])
    assert not dense[lying.cell.train].any()


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("block_slots", [100, 1 << 20])
def test_the_design_has_the_units_with_the_largest_plain_differences(
    lying: Lying, how: Any, block_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_token, "_BLOCK_SLOTS", block_slots)
    design = pooled_design(lying.codes, lying.task, lying.cell, how, limit=12, max_positions=HERE)
    dense = pooled(lying, how).astype(np.float32)
    train, y = dense[lying.cell.train].astype(np.float64), lying.y[lying.cell.train]
    differences = np.abs(train[y == 1].mean(0) - train[y == 0].mean(0)).round(12)  # equal ones stay equal
    assert design.units.tolist() == sorted(range(D_SAE), key=lambda unit: (-differences[unit], unit))[:12]
    assert design.units[0] == 7
    np.testing.assert_array_equal(design.x_train, dense[lying.cell.train][:, design.units])
    np.testing.assert_array_equal(design.x_test, dense[lying.cell.test][:, design.units])
    assert design.y_train.tolist() == lying.y[lying.cell.train].tolist()
    assert design.y_test.tolist() == lying.y[lying.cell.test].tolist()


def test_a_design_makes_probes(lying: Lying) -> None:
    design = pooled_design(lying.codes, lying.task, lying.cell, "max", limit=8, max_positions=HERE)
    small, large = fit_probes(design, ks=(2, 8), penalty="l1")
    expected = logistic(design.x_train, design.y_train, design.x_test, design.y_test, penalty="l1")
    assert large.scores == expected
    assert small.units.tolist() == design.units[:2].tolist()


def test_all_units_can_be_ranked_and_no_more(lying: Lying) -> None:
    design = pooled_design(lying.codes, lying.task, lying.cell, "mean", limit=D_SAE)
    assert sorted(design.units.tolist()) == list(range(D_SAE))
    assert design.units.tolist().index(31) == design.units.tolist().index(30) + 1
    with pytest.raises(InputError, match="which has 40; give a smaller k"):
        pooled_design(lying.codes, lying.task, lying.cell, "mean")


def test_of_a_view_its_units_alone_are_pooled(lying: Lying) -> None:
    kept = np.array([3, 7, 30, 31])
    view = Codes(lying.codes.group, lying.codes.key)
    view.__dict__["_kept"] = UnitChoice(lying.codes.key, D_SAE, "few", kept)
    design = pooled_design(view, lying.task, lying.cell, "mean", limit=4, max_positions=HERE)
    whole = pooled_design(lying.codes, lying.task, lying.cell, "mean", limit=D_SAE, max_positions=HERE)
    assert design.units.tolist() == [unit for unit in whole.units.tolist() if unit in kept]
    np.testing.assert_array_equal(
        design.x_test, pooled(lying, "mean").astype(np.float32)[lying.cell.test][:, design.units]
    )


def test_what_cannot_be_pooled_is_refused(lying: Lying) -> None:
    how: Any = "last"
    with pytest.raises(InputError, match="choose mean or max"):
        list(pooled_codes(lying.codes, lying.cell.test, how))
    with pytest.raises(InputError, match="is a selection of rows"):
        list(pooled_codes(lying.codes.where(special=False), lying.cell.test, "max"))
    with pytest.raises(InputError, match="sample 60 has no positions"):
        list(pooled_codes(lying.codes, np.array([4, N]), "max"))
    one_class = Cell("d", "d", "multi_token", np.flatnonzero(lying.y == 1), lying.cell.test)
    with pytest.raises(InputError, match="expected both 0 and 1"):
        pooled_design(lying.codes, lying.task, one_class, "max", limit=4)


# -------------------------------------------------------------------------------------------------------------- concat


def padded_components(lying: Lying, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns from arrays that are padded with zeros, position by position."""
    from sklearn.decomposition import PCA

    x = np.where(lying.counts[..., None], lying.x, 0).astype(np.float64)
    train, test = x[lying.cell.train], x[lying.cell.test]
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    for position in range(1, HERE):
        if not train[:, position].any():
            continue
        reduction = PCA(n_components=n_components, random_state=42)
        columns.append((reduction.fit_transform(train[:, position]), reduction.transform(test[:, position])))
    return np.hstack([one for one, _ in columns]), np.hstack([one for _, one in columns])


@pytest.mark.parametrize("bands", [1, 4])
def test_columns_are_those_of_padded_arrays(lying: Lying, bands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = multi_token.read_finite

    def counted(activations: Activations, rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        reads.append(len(rows))
        return read(activations, rows)

    monkeypatch.setattr(multi_token, "read_finite", counted)
    monkeypatch.setattr(multi_token, "_READ_BYTES", 1 << 20)
    fixed = N * (8 * 20 * 8 + D * 24) + (8 << 20)
    memory = None if bands == 1 else fixed + int(lying.counts.sum()) * D * 4 // 3
    found = concatenated(lying.activations, lying.cell, memory=memory, max_positions=HERE)
    for ours, theirs in zip(found, padded_components(lying, 20), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert len(reads) == bands
    assert sum(reads) == lying.counts.sum()


def test_rows_are_read_in_small_blocks(lying: Lying, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = concatenated(lying.activations, lying.cell, max_positions=HERE)
    monkeypatch.setattr(multi_token, "_READ_BYTES", 7 * D * 4)
    for ours, theirs in zip(concatenated(lying.activations, lying.cell, max_positions=HERE), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_position_that_no_training_sample_has_is_skipped(lying: Lying) -> None:
    train = np.flatnonzero(lying.lengths < 7)
    test = np.flatnonzero(lying.lengths >= 7)
    sorted_by_length = Lying(**{**vars(lying), "cell": Cell("d", "d", "multi_token", train, test)})
    found = concatenated(lying.activations, sorted_by_length.cell, max_positions=HERE)
    expected = padded_components(sorted_by_length, min(20, len(train)))
    positions = lying.counts[train].any(0).sum()
    assert 0 < positions < HERE - 1
    assert found[0].shape == (len(train), positions * min(20, len(train)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_few_training_samples_have_as_many_components(lying: Lying) -> None:
    cell = Cell("d", "d", "multi_token", lying.cell.train[:6], lying.cell.test)
    few = Lying(**{**vars(lying), "cell": cell})
    for ours, theirs in zip(
        concatenated(lying.activations, cell, max_positions=HERE), padded_components(few, 6), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_the_probe_is_logistic_regression_on_the_columns(lying: Lying) -> None:
    x_train, x_test = padded_components(lying, 20)
    y_train, y_test = lying.y[lying.cell.train], lying.y[lying.cell.test]
    expected = logistic(x_train, y_train, x_test, y_test, penalty="l1", seed=42)
    found = concat_probe(lying.activations, lying.task, lying.cell, max_positions=HERE)
    assert found.chosen == expected.chosen
    assert found.test_auc == pytest.approx(expected.test_auc, abs=1e-6)
    assert found.val_auc == pytest.approx(expected.val_auc, abs=1e-6)


def test_samples_without_tokens_and_too_little_memory_are_refused(lying: Lying) -> None:
    with pytest.raises(InputError, match="besides special ones"):
        concatenated(lying.activations, Cell("d", "d", "multi_token", np.array([3, 17, 20]), lying.cell.test))
    with pytest.raises(BudgetError, match="one position as it is read"):
        concatenated(lying.activations, lying.cell, memory="1MiB")


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than such small products take."""
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Padded:
    """A probe on padded samples."""

    epoch: int
    val_auc: float
    attention: np.ndarray
    output: np.ndarray
    bias: float
    probability: np.ndarray


def padded_attention(x: np.ndarray, exists: np.ndarray, y: np.ndarray, test: np.ndarray, there: np.ndarray) -> Padded:
    """An attention probe on padded samples, by torch's own gradients and with its global generator."""
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    from sklearn.metrics import roc_auc_score

    def logits(x: Any, exists: np.ndarray) -> Any:
        scores = (x @ attention).masked_fill(~torch.from_numpy(exists), -torch.inf)
        return (torch.softmax(scores, 1)[:, :, None] * x).sum(1) @ output + bias

    with torch.random.fork_rng():
        torch.manual_seed(3)
        order = torch.randperm(len(x)).numpy()
        output = torch.nn.Parameter(torch.randn(x.shape[2]) * 0.001)
        attention = torch.nn.Parameter(torch.randn(x.shape[2]) * 0.001)
    bias = torch.nn.Parameter(torch.zeros(1))
    fit, validate = np.split(order, [int(0.8 * len(x))])
    optimiser = torch.optim.Adam([output, attention, bias], lr=1e-4)
    loss = torch.nn.BCEWithLogitsLoss()
    best: Any = None
    for epoch in range(1_000):
        with torch.no_grad():
            held_out = roc_auc_score(y[validate], logits(torch.from_numpy(x[validate]), exists[validate]).numpy())
            if best is None or held_out > best.val_auc:
                probability = torch.sigmoid(logits(torch.from_numpy(test), there)).numpy()
                a, w = (one.detach().numpy().copy() for one in (attention, output))
                best = Padded(epoch, held_out, a, w, bias.item(), probability)
        optimiser.zero_grad()
        loss(logits(torch.from_numpy(x[fit]), exists[fit]), torch.from_numpy(y[fit]).float()).backward()
        optimiser.step()
    assert isinstance(best, Padded)
    return best


def fitted(lying: Lying, **options: Any) -> attention.AttentionProbe:
    pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    options = {"seed": 3, "max_positions": HERE, **options}
    return attention.attention_probe(lying.activations, lying.task, lying.cell, **options)


@pytest.mark.usefixtures("one_thread")
def test_attention_equals_a_probe_on_padded_samples(lying: Lying) -> None:
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    x, exists, (train, test) = lying.x[:, :HERE], lying.exists[:, :HERE], (lying.cell.train, lying.cell.test)
    expected = padded_attention(x[train], exists[train], lying.y[train], x[test], exists[test])
    found = fitted(lying)
    assert found.scores.chosen == {"epoch": expected.epoch}
    assert 0 < expected.epoch < 1_000
    assert found.scores.val_auc == expected.val_auc
    scale = float(np.abs(expected.output).max())
    np.testing.assert_allclose(found.attention, expected.attention, atol=1e-4 * scale)
    np.testing.assert_allclose(found.output, expected.output, atol=1e-4 * scale)
    assert found.bias == pytest.approx(expected.bias, abs=1e-4 * scale)
    y = lying.y[test]
    assert found.scores.test_auc == roc_auc_score(y, expected.probability)
    assert found.scores.test_acc == accuracy_score(y, expected.probability > 0.5)
    assert found.scores.test_f1 == f1_score(y, expected.probability > 0.5, average="weighted")


@pytest.mark.usefixtures("one_thread")
def test_reading_again_equals_holding_in_memory(lying: Lying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "EPOCHS", 30)
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 2_000)
    reads: list[int] = []
    read = attention.read_finite

    def counted(activations: Activations, rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        return read(activations, rows)

    monkeypatch.setattr(attention, "read_finite", counted)
    found, rows = {}, {}
    for memory in (1, 12_000 + 10_000, 1 << 30):
        reads.clear()
        found[memory], rows[memory] = fitted(lying, memory=memory), sum(reads)
    n_train, n_test = (
        int(np.minimum(lying.lengths, HERE)[samples].sum()) for samples in (lying.cell.train, lying.cell.test)
    )
    assert rows[1] == 30 * n_train + n_test
    assert rows[1 << 30] == n_train + n_test
    assert rows[1 << 30] < rows[22_000] < rows[1]
    for probe in found.values():
        assert probe.scores == found[1].scores
        np.testing.assert_array_equal(probe.attention, found[1].attention)
        np.testing.assert_array_equal(probe.output, found[1].output)


def test_the_seed_decides(lying: Lying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "EPOCHS", 3)
    torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
    one = fitted(lying)
    torch.rand(1)
    again, other = fitted(lying), fitted(lying, seed=4)
    np.testing.assert_array_equal(one.attention, again.attention)
    assert not np.array_equal(one.attention, other.attention)


def test_held_out_samples_of_one_class_keep_the_last_epoch(lying: Lying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "EPOCHS", 5)
    two = [int(np.flatnonzero(lying.y[lying.cell.train] == label)[0]) for label in (0, 1)]
    cell = Cell("d", "d", "multi_token", lying.cell.train[two], lying.cell.test)
    found = attention.attention_probe(lying.activations, lying.task, cell)
    assert np.isnan(found.scores.val_auc)
    assert found.scores.chosen == {"epoch": 4}


def test_what_attention_cannot_be_fitted_to_is_refused(lying: Lying, tmp_path: Path) -> None:
    one_class = Cell("d", "d", "multi_token", np.flatnonzero(lying.y == 1)[:10], lying.cell.test)
    with pytest.raises(InputError, match="10 training samples are not of both classes"):
        attention.attention_probe(lying.activations, lying.task, one_class)
    with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
        fitted(lying, device="abacus")
    with pytest.raises(InputError, match="expected a positive number of positions"):
        fitted(lying, max_positions=0)


@pytest.mark.parametrize("name", ["attention", "concat"])
def test_rows_that_are_not_finite_or_no_positions_are_refused(lying: Lying, tmp_path: Path, name: str) -> None:
    def fit(activations: Activations) -> None:
        if name == "concat":
            concatenated(activations, lying.cell)
        else:
            attention.attention_probe(activations, lying.task, lying.cell)

    storage = lying.activations.group.storage
    layer = ActivationsKey("d", "m", f"layer_{name}", "token")
    x = lying.x[lying.exists].copy()
    first = int(np.append(0, np.cumsum(lying.lengths))[np.flatnonzero(lying.lengths > 4)[0]])
    x[first + 1, 2] = np.nan
    write_activations(storage, layer, x, "float32")
    with pytest.raises(InputError, match=f"hold NaN or infinity, the first is {first + 1}"):
        fit(Activations.open(storage, layer))
    means = ActivationsKey("d", "m", f"layer_{name}", "mean")
    write_activations(storage, means, lying.x[:, 0], "float32")
    with pytest.raises(InputError, match="needs sample type token or patch"):
        fit(Activations.open(storage, means))
