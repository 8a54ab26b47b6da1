"""Graphs against dense numpy: every measure of every pair, of codes and activations, in one block and in many."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from built_lake import sample_table, top_k, write_activations, write_codes
from numpy.typing import NDArray

from saestore.errors import BudgetError, ConflictError, InputError, IntegrityError, MissingError
from saestore.graphing import build, plan
from saestore.graphing.options import GraphOptions
from saestore.graphing.pairs import CodesPairTask
from saestore.graphs import EDGE_COLUMNS, UNIT_COLUMNS
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import ActivationsKey, CodesKey, ModelKey, graph_table_path
from saestore.tables import write_positions, write_samples
from saestore.verbs import graph

pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
pytest.importorskip("igraph", reason="igraph is absent: pip install 'saestore[graph]'")

D_SAE, K, D_IN = 40, 9, 7
NAMES = ("one", "two")
ENDS = ("layer_3/s", "layer_4/t")


@dataclass(frozen=True)
class Made:
    """A lake of two datasets; `dense` are the rows that count of both, by end, and `samples` where each is of."""

    lake: Lake
    dense: dict[str, NDArray[np.float64]]
    samples: NDArray[np.int64]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    lake = Lake.create(str(tmp_path_factory.mktemp("graph") / "lake"))
    rng = np.random.default_rng(5)
    parts: dict[str, list[NDArray[np.float64]]] = {}
    samples: list[NDArray[np.int64]] = []
    for name, n_samples in zip(NAMES, (40, 30), strict=True):
        lengths = rng.integers(1, 8, n_samples)
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
        n = int(offsets[-1])
        special = np.zeros(n, bool)
        special[offsets[:-1]] = True
        write_samples(lake.storage, name, sample_table(n_samples))
        arrays = {"special": special, "token_id": np.zeros(n, np.uint32)}
        write_positions(
            lake.storage, ModelKey(name, "m"), offsets=offsets, arrays=arrays, digest=name[0] * 64, attributes={}
        )
        causes = rng.random((n, 8)) < 0.25
        for place, (layer, sae) in enumerate((("layer_3", "s"), ("layer_4", "t"))):
            rates = rng.random((n, D_SAE)) < 0.06
            rates[:, :16] |= np.repeat(causes, 2, axis=1)
            values = rng.integers(1, 9, (n, D_SAE)) / 4
            dense = np.where(rates, values, 0).astype(np.float32)
            dense[:, 20] = 0  # dead
            dense[:, 21 + place] = 1.5  # active everywhere: constant
            dense[:, 30] = np.where(rng.random(n) < 0.97, values[:, 30] + 9, 0)  # nearly everywhere, never cut off
            known = top_k(dense, K)
            write_codes(lake.storage, CodesKey(name, "m", layer, sae, "token"), known)
            parts.setdefault(ENDS[place], []).append(known.dense[~special].astype(np.float64))
            x = rng.normal(size=(n, D_IN)).astype(np.float32)
            x[:, 1] = 0.5 * x[:, 0] + x[:, 1]
            x[:, 2] += 2 * causes[:, 0]
            x[:, 3] = 2.5
            write_activations(lake.storage, ActivationsKey(name, "m", layer, "token"), x, "float32")
            parts.setdefault(layer, []).append(x[~special].astype(np.float64))
        index(lake.storage, list(lake.code_keys(name)), quiet=True)
        samples.append(np.repeat(np.arange(n_samples), lengths)[~special] + 100 * len(samples))
    return Made(lake, {name: np.concatenate(rows) for name, rows in parts.items()}, np.concatenate(samples))


def expected_edges(
    a: NDArray[np.float64], b: NDArray[np.float64], *, within: bool, options: GraphOptions, sparse: bool = True
) -> dict[tuple[int, int], dict[str, float]]:
    """Every kept pair of two ends by brute force, with its measures but for q."""
    n = len(a)
    found = {}
    for u in range(a.shape[1]):
        for v in range(u + 1 if within else 0, b.shape[1]):
            x, y = a[:, u], b[:, v]
            if x.std() == 0 or y.std() == 0:
                continue
            on_x, on_y = x != 0, y != 0
            if sparse and max(on_x.mean(), on_y.mean()) > options.max_base_rate:
                continue
            r = float(np.corrcoef(x, y)[0, 1])
            n_a, n_b, n_ab = int(on_x.sum()), int(on_y.sum()), int((on_x & on_y).sum())
            if abs(r) < options.min_r or (sparse and max(n_ab, n_a * n_b / n) < options.min_support):
                continue
            joint = np.histogram2d(on_x, on_y, bins=[[0, 0.5, 1], [0, 0.5, 1]])[0] / n
            alone = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
            held = joint > 0
            found[u, v] = {
                "r": r,
                "n_a": n_a,
                "n_b": n_b,
                "n_ab": n_ab,
                "lift": n_ab * n / (n_a * n_b),
                "mutual_information": float((joint[held] * np.log2(joint[held] / alone[held])).sum()),
                "jaccard": n_ab / int((on_x | on_y).sum()),
            }
    return found


def of_pair(edges: pd.DataFrame, end_a: str, end_b: str) -> dict[tuple[int, int], dict[str, float]]:
    chosen = edges[(edges.end_a == end_a) & (edges.end_b == end_b)]
    measures = ["r", "n_a", "n_b", "n_ab", "lift", "mutual_information", "jaccard"]
    return {(row.unit_a, row.unit_b): {name: getattr(row, name) for name in measures} for row in chosen.itertuples()}


def check_edges(found: dict[tuple[int, int], Any], expected: dict[tuple[int, int], Any], measures: list[str]) -> None:
    assert set(found) == set(expected)
    for pair, known in expected.items():
        for name in measures:
            assert found[pair][name] == pytest.approx(known[name], abs=1e-6), (pair, name)


ALL = ["r", "n_a", "n_b", "n_ab", "lift", "mutual_information", "jaccard"]


@pytest.mark.parametrize("blocks", ["one", "many"])
def test_edges_of_codes_are_those_of_dense_numpy(made: Made, blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = GraphOptions(min_r=0.15, min_support=3)
    if blocks == "many":
        monkeypatch.setattr(
            build,
            "plan_blocks",
            lambda a, b, n, budget, *, within: plan.Blocks(np.array([0, 7, 13, 40]), np.array([0, 11, 25, 40]), 0, 9),
        )
    result = graph(
        made.lake, saes=["s", "t"], sample_type="token", min_r=0.15, min_support=3, name=blocks, null=True, quiet=True
    )
    stored = made.lake.open_graph(blocks)
    edges, units = stored.edges(), stored.units()
    assert tuple(edges) == EDGE_COLUMNS
    assert tuple(units) == UNIT_COLUMNS
    assert stored.n_rows == len(made.samples)
    total = 0
    for a, b in ((ENDS[0], ENDS[0]), (ENDS[0], ENDS[1]), (ENDS[1], ENDS[1])):
        expected = expected_edges(made.dense[a], made.dense[b], within=a == b, options=options)
        assert len(expected) > 10
        assert any(one["r"] < 0 for one in expected.values()) or a == b
        check_edges(of_pair(edges, a, b), expected, ALL)
        total += len(expected)
        part = "within_layer" if a == b else "between_layers"
        told = result.summary[part][a if a == b else f"{a} x {b}"]  # type: ignore[index]
        assert told["edges"] == len(expected)
        strongest = max(expected.values(), key=lambda one: abs(one["r"]))
        assert told["strongest"][0]["r"] == pytest.approx(strongest["r"], abs=1e-9)
    assert len(edges) == total
    assert np.all(np.diff(np.abs(edges.r)) <= 0)
    assert not made.lake.storage.names(f"{stored.path}/work")


def test_significance_is_that_of_scipy(made: Made) -> None:
    from scipy.stats import false_discovery_control, norm

    graph(made.lake, saes="s", sample_type="token", min_r=0.01, min_support=0, max_base_rate=1, name="all", quiet=True)
    edges = made.lake.open_graph("all").edges()
    x = made.dense[ENDS[0]]
    able = np.flatnonzero(x.std(axis=0) > 0)
    r = np.corrcoef(x[:, able].T)
    upper = r[np.triu_indices(len(able), 1)]
    p = 2 * norm.sf(np.abs(np.arctanh(upper)) * np.sqrt(len(x) - 3))
    q = false_discovery_control(p)
    kept = np.abs(upper) >= 0.01
    order = np.argsort(-np.abs(upper[kept]), kind="stable")
    np.testing.assert_allclose(np.sort(edges.p), np.sort(p[kept][order]), rtol=1e-6, atol=1e-15)
    significant = q[kept][order] < 0.5  # larger ones may be larger here, as what was left out is not known
    np.testing.assert_allclose(np.sort(edges.q)[: significant.sum()], np.sort(q[kept])[: significant.sum()], rtol=1e-6)


def test_units_that_cannot_have_edges_are_left_out_and_counted(made: Made) -> None:
    result = graph(made.lake, saes="s", sample_type="token", name="states", quiet=True)
    assert result.summary is not None
    assert result.summary["left_out"] == {ENDS[0]: {"dead": 1, "constant": 1, "always_on": 1}}
    units = made.lake.open_graph("states").units().set_index("unit")
    assert units.state[[20, 21, 30]].tolist() == ["dead", "constant", "always on"]
    assert (units.degree[[20, 21, 30]] == 0).all()
    x = made.dense[ENDS[0]]
    np.testing.assert_allclose(units["mean"], x.mean(axis=0))
    np.testing.assert_allclose(units["deviation"], x.std(axis=0), atol=1e-9)
    np.testing.assert_array_equal(units["maximum"], x.max(axis=0))
    np.testing.assert_array_equal(units["active"].astype(int), (x != 0).sum(axis=0))


def test_adjacency_neighbours_and_groups(made: Made) -> None:
    import networkx

    graph(made.lake, saes=["s", "t"], sample_type="token", min_r=0.25, name="groups", quiet=True)
    stored = made.lake.open_graph("groups")
    edges, units = stored.edges(), stored.units()
    place = {(row.end, row.unit): number for number, row in enumerate(units.itertuples())}
    dense = np.zeros((len(units), len(units)))
    for row in edges.itertuples():
        first, second = place[row.end_a, row.unit_a], place[row.end_b, row.unit_b]
        dense[first, second] = dense[second, first] = row.r
    np.testing.assert_array_equal(stored.adjacency().toarray(), dense)
    np.testing.assert_array_equal(stored.adjacency(signed=False).toarray(), np.abs(dense))
    np.testing.assert_array_equal(stored.adjacency(weighted=False).toarray(), np.sign(dense))
    np.testing.assert_array_equal(stored.adjacency(signed=False, weighted=False).toarray(), dense != 0)
    np.testing.assert_array_equal(units.degree, (dense != 0).sum(axis=1))
    groups = {frozenset(part) for part in networkx.connected_components(networkx.from_numpy_array(dense != 0))}
    mine = units[units.degree > 0].groupby("component").groups.values()
    assert {frozenset(part) for part in mine} == {part for part in groups if len(part) > 1}
    assert units.component[units.degree == 0].isna().all()
    unit = int(edges.unit_b[edges.end_b == ENDS[1]].iloc[0])
    found = stored.neighbours(unit, ENDS[1])
    row = dense[place[ENDS[1], unit]]
    assert {(one.end, one.unit): one.r for one in found.itertuples()} == {
        key: row[number] for key, number in place.items() if row[number]
    }
    counts = units.set_index(["end", "unit"]).active
    assert (found.n_a == counts[ENDS[1], unit]).all()
    with pytest.raises(MissingError, match="has no unit 999"):
        stored.neighbours(999, ENDS[0])
    with pytest.raises(MissingError, match="has 2 ends"):
        stored.neighbours(1)


def test_only_the_strongest_edges_of_each_unit(made: Made) -> None:
    graph(made.lake, saes="s", sample_type="token", min_r=0.05, min_support=0, name="loose", quiet=True)
    graph(made.lake, saes="s", sample_type="token", min_r=0.05, min_support=0, name="top", top=2, quiet=True)
    edges = made.lake.open_graph("loose").edges()
    kept = set()
    for unit in range(D_SAE):
        own = edges[(edges.unit_a == unit) | (edges.unit_b == unit)].head(2)
        kept |= set(zip(own.unit_a, own.unit_b, strict=True))
    found = made.lake.open_graph("top").edges()
    assert set(zip(found.unit_a, found.unit_b, strict=True)) == kept
    assert len(kept) < len(edges)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_positions_are_pooled_to_samples(made: Made, how: str) -> None:
    options = GraphOptions(min_r=0.2, min_support=2)
    graph(
        made.lake, saes="s", sample_type="token", pooling=how, min_r=0.2, min_support=2, name=f"by-{how}",  # type: ignore[arg-type]
        quiet=True,
    )  # fmt: skip
    frame = pd.DataFrame(made.dense[ENDS[0]]).groupby(made.samples)
    x = (frame.mean() if how == "mean" else frame.max()).to_numpy()
    stored = made.lake.open_graph(f"by-{how}")
    assert stored.n_rows == len(x)
    expected = expected_edges(x, x, within=True, options=options)
    assert len(expected) > 10
    check_edges(of_pair(stored.edges(), ENDS[0], ENDS[0]), expected, ALL)


def test_activations_are_joined_by_products(made: Made, tmp_path: Path) -> None:
    result = graph(
        made.lake, layers=[3, 4], sample_type="token", units="0:5", min_r=0.1, name="dense", out=tmp_path,
        matrices=True, quiet=True,
    )  # fmt: skip
    edges = made.lake.open_graph("dense").edges()
    assert edges[["n_a", "n_b", "n_ab"]].isna().all(axis=None)
    assert edges[["lift", "mutual_information", "jaccard"]].isna().all(axis=None)
    options = GraphOptions(min_r=0.1)
    for a, b in (("layer_3", "layer_3"), ("layer_3", "layer_4"), ("layer_4", "layer_4")):
        x, y = made.dense[a][:, :5], made.dense[b][:, :5]
        expected = expected_edges(x, y, within=a == b, options=options, sparse=False)
        check_edges(of_pair(edges, a, b), expected, ["r"])
        with np.errstate(invalid="ignore"):
            whole = np.nan_to_num(np.corrcoef(x.T, y.T)[:5, 5:])
        np.testing.assert_allclose(np.load(tmp_path / f"correlation_{a}_{b}.npy"), whole, atol=1e-6)
    assert result.summary is not None
    assert result.summary["left_out"]["layer_3"] == {"dead": 0, "constant": 1, "always_on": 0}


def test_codes_and_activations_are_joined(made: Made) -> None:
    lake = made.lake
    codes = lake.codes("one", sae="s", sample_type="token")
    activations = lake.activations("one", layer=3, sample_type="token")
    stored = lake.graph(activations, codes, name="mixed", options=GraphOptions(min_r=0.1, min_support=0), quiet=True)
    n = len(codes.where(special=False))
    x, y = made.dense[ENDS[0]][:n], made.dense["layer_3"][:n]
    able = (x != 0).mean(axis=0) <= 0.9
    expected = expected_edges(x, y, within=False, options=GraphOptions(min_r=0.1, min_support=0), sparse=False)
    expected = {pair: known for pair, known in expected.items() if able[pair[0]]}
    assert expected
    check_edges(of_pair(stored.edges(), ENDS[0], "layer_3"), expected, ["r"])
    assert len(stored.edges()) == len(expected)


def test_rows_of_a_selection_and_units_of_a_view(made: Made) -> None:
    from saestore.verbs import prune

    lake = made.lake
    where = "position > 1"
    prune(lake, ["one"], sae="s", sample_type="token", name="some", ubiquitous=0.3, quiet=True)
    codes = lake.codes("one", sae="s", sample_type="token").view("some").where(where)
    stored = lake.graph(codes, name="selected", options=GraphOptions(min_r=0.1, min_support=0), quiet=True)
    x = codes.where(special=False).dense().astype(np.float64)
    assert stored.n_rows == len(x) > 0
    kept = codes.kept_units
    expected = expected_edges(x, x, within=True, options=GraphOptions(min_r=0.1, min_support=0))
    named = {(int(kept[a]), int(kept[b])): known for (a, b), known in expected.items()}
    assert named
    check_edges(of_pair(stored.edges(), "layer_3/s/some", "layer_3/s/some"), named, ALL)


def test_shuffled_rows_have_no_more_edges_than_are_declared_false(made: Made) -> None:
    result = graph(made.lake, saes=["s", "t"], sample_type="token", min_r=0.05, name="null", null=True, quiet=True)
    assert result.summary is not None
    null, counts = result.summary["null"], result.summary["counts"]
    assert null["edges"] > 0  # by chance, with so low a threshold
    assert null["q_up_to_0.05"] <= 0.05 * counts["q_up_to_0.05"]


def test_a_stopped_graph_goes_on_and_a_complete_one_is_left_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"saes": ["s", "t"], "sample_type": "token", "min_r": 0.15, "min_support": 3, "quiet": True}
    done: list[str] = []
    found = CodesPairTask.found

    def stopping(task: CodesPairTask, share: tuple[int, int]) -> Any:
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(task.key)
        return found(task, share)

    with monkeypatch.context() as patch:
        patch.setattr(CodesPairTask, "found", stopping)
        with pytest.raises(KeyboardInterrupt):
            graph(made.lake, name="stopped", **given)
    with pytest.raises(MissingError, match=r"graph .stopped. .* is not complete; run saestore graph again"):
        made.lake.open_graph("stopped")
    (row,) = [row for row in made.lake.status() if row.path == "graphs/stopped"]
    assert row.state == "partial"
    again: list[str] = []

    def counted(task: CodesPairTask, share: tuple[int, int]) -> Any:
        again.append(task.key)
        return found(task, share)

    monkeypatch.setattr(CodesPairTask, "found", counted)
    graph(made.lake, name="stopped", **given)
    assert again
    assert not set(again) & set(done)
    graph(made.lake, name="whole", **given)
    first, second = (made.lake.open_graph(name) for name in ("stopped", "whole"))
    pd.testing.assert_frame_equal(first.edges(), second.edges())
    pd.testing.assert_frame_equal(first.units(), second.units())
    again.clear()
    assert graph(made.lake, name="whole", **given).summary == json.loads(json.dumps(second.summary))
    assert not again
    with pytest.raises(ConflictError, match=r"graph .whole. .* was made differently .*give another --name"):
        graph(made.lake, name="whole", **{**given, "min_r": 0.2})


def test_files_for_other_tools(made: Made, tmp_path: Path) -> None:
    import networkx
    import scipy.sparse

    result = graph(made.lake, saes=["s", "t"], sample_type="token", name="files", out=tmp_path, quiet=True)
    stored = made.lake.open_graph("files")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "edges.parquet"), stored.edges())
    np.testing.assert_array_equal(
        scipy.sparse.load_npz(tmp_path / "adjacency.npz").toarray(), stored.adjacency().toarray()
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == result.summary
    read = networkx.read_graphml(tmp_path / "graph.graphml")
    named = {
        frozenset((read.nodes[a]["name"], read.nodes[b]["name"])): data["weight"]
        for a, b, data in read.edges(data=True)
    }
    assert named == {
        frozenset((f"{row.end_a}:{row.unit_a}", f"{row.end_b}:{row.unit_b}")): pytest.approx(row.r)
        for row in stored.edges().itertuples()
    }


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"saes": "x"}, MissingError, "no codes of an SAE 'x'"),
        ({"saes": "s", "layers": 9}, MissingError, "no codes of the lake .* fit"),
        ({"saes": "s", "datasets": "nine"}, MissingError, "has no dataset 'nine'"),
        ({"layers": 3, "view": "v"}, InputError, "view 'v' is of codes"),
        ({"layers": 3, "pooling": "mean"}, InputError, "activations are not pooled here"),
        ({"layers": 3, "units": "5:99"}, InputError, "units '5:99' do not exist"),
        ({"layers": 3, "units": "a"}, InputError, "units 'a' of .* cannot be read"),
        ({"saes": "s", "min_r": 1.5}, InputError, "min r 1.5 is out of range"),
        ({"saes": "s", "max_base_rate": 0}, InputError, "max base rate 0 is out of range"),
        ({"saes": "s", "where": "position > 900"}, InputError, "position > 900"),
        (
            {"saes": "s", "datasets": "one", "where": "position < 2 and id in ['sample-0', 'sample-2', 'sample-3']"},
            InputError,
            "4 rows or more",
        ),
        ({"saes": "s", "min_r": 0.01, "min_support": 0, "max_edges": 9}, BudgetError, "would have about .* --min-r 0"),
        ({"layers": 3, "min_r": 0.01, "max_edges": 2}, BudgetError, "would have about .* edges, 2 may be"),
        ({"saes": "s", "memory": "1MiB"}, BudgetError, "give more --memory"),
        ({"saes": "s", "name": "../x"}, InputError, "graph name '../x' cannot be used"),
    ],
)
def test_what_is_asked_wrongly_is_refused(made: Made, given: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as raised:
        graph(made.lake, **{"sample_type": "token", "name": "wrong", "quiet": True, **given})
    assert "\n" not in str(raised.value)


def test_ends_of_other_rows_are_refused_and_it_is_said_how(made: Made) -> None:
    one, two = (made.lake.codes(name, sae="s", sample_type="token") for name in NAMES)
    other = made.lake.codes("one", sae="t", sample_type="token")
    with pytest.raises(InputError, match=r"is given twice"):
        made.lake.graph([one, two], quiet=True)
    with pytest.raises(InputError, match=r"need the same rows: layer_3/s has .* of one .*, layer_4/t has .* of two"):
        made.lake.graph(one, made.lake.codes("two", sae="t", sample_type="token"), quiet=True)
    with pytest.raises(InputError, match=r"need the same rows: .*position > 2"):
        made.lake.graph(one, other.where("position > 2"), quiet=True)


def test_rows_that_are_named_alike_are_told_apart(made: Made) -> None:
    """Words of conditions have no brackets, and long ones are cut."""
    given: dict[str, Any] = {"saes": "s", "sample_type": "token", "datasets": "one", "name": "rows", "quiet": True}
    long = " or ".join(f"position == {place}" for place in range(1, 30))
    graph(made.lake, where=f"({long}) and position > 0", **given)
    with pytest.raises(ConflictError, match=r"graph 'rows' .* was made differently \(rows: "):
        graph(made.lake, where=f"({long.replace('29', '28').replace('== 2 ', '== 3 ')}) and position > 0", **given)


def test_a_damaged_table_is_named(made: Made) -> None:
    graph(made.lake, saes="s", sample_type="token", name="damaged", quiet=True)
    key = graph_table_path("damaged", "edges")
    content = bytearray(made.lake.storage.get(key) or b"")
    content[len(content) // 2] ^= 1
    made.lake.storage.put(key, bytes(content))
    with pytest.raises(IntegrityError, match=r"graphs/damaged/edges.parquet .* is lost or damaged"):
        made.lake.open_graph("damaged").edges()


def test_a_dry_run_writes_nothing(made: Made) -> None:
    result = graph(made.lake, saes="s", sample_type="token", name="dry", dry_run=True, quiet=True)
    assert result.summary is None
    assert result.plan.ends == ((ENDS[0], D_SAE),)
    active = (made.dense[ENDS[0]] != 0).sum()
    assert result.plan.sums == int(active * (active / len(made.samples)))
    assert not made.lake.storage.names("graphs/dry")
