"""Units, selections of rows and dense blocks by unit, against the dense matrix of a small lake."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from built_lake import CUTS, BuiltLake, build, top_k, write_codes
from numpy.typing import NDArray

from saestore import codes as codes_module
from saestore.codes import Codes
from saestore.errors import HoleError, InputError, MissingError
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from saestore.units import Unit
from saestore.xarray_engine import to_xarray


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    return build(str(tmp_path_factory.mktemp("units") / "lake"), cuts=request.param)


def busiest(built: BuiltLake) -> int:
    return int(np.count_nonzero(built.tokens.dense, axis=0).argmax())


def test_where_a_unit_is_active(built: BuiltLake) -> None:
    codes = built.codes()
    for number in range(codes.d_sae):
        unit = codes.unit(number)
        rows = np.flatnonzero(built.tokens.dense[:, number])
        samples = built.sample_of_row[rows]
        assert unit.rows.tolist() == rows.tolist()
        assert unit.sample_places.tolist() == samples.tolist()
        assert unit.samples.tolist() == [f"sample-{place}" for place in samples]
        assert unit.positions.tolist() == (rows - built.offsets[samples]).tolist()
        assert unit.special.tolist() == built.special[rows].tolist()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("n", [1, 2, 100])
def test_the_strongest_row_of_each_sample(built: BuiltLake, n: int, special: bool) -> None:
    dense = built.tokens.dense * (built.special[:, None] <= special)
    for number in range(50):
        best: dict[int, int] = {}
        for row in np.flatnonzero(dense[:, number]):
            sample = int(built.sample_of_row[row])
            if sample not in best or dense[row, number] > dense[best[sample], number]:
                best[sample] = int(row)
        expected = sorted(best.values(), key=lambda row: (-dense[row, number], row))[:n]
        found = built.codes().unit(number).top(n, per="sample", special=special)
        assert found.rows.tolist() == expected
        assert found.active_rows == np.count_nonzero(dense[:, number])


def test_a_histogram_counts_every_row_once(built: BuiltLake) -> None:
    number = busiest(built)
    column = built.tokens.dense[~built.special, number]
    found = built.codes().unit(number).histogram(4)
    counts, edges = np.histogram(column[column > 0], 4)
    assert found.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(found.edges, edges)
    assert found.zeros == np.count_nonzero(column == 0)
    whole = built.codes().unit(number).histogram(special=True)
    assert whole.zeros + whole.counts.sum() == len(built.tokens.dense)


def test_examples_come_from_every_band_strongest_first(built: BuiltLake) -> None:
    number = busiest(built)
    unit = built.codes().unit(number)
    everything = unit.top(1000)
    plain = unit.examples(3)
    assert [example.place.row for example in plain] == everything.rows[:3].tolist()
    assert [example.band for example in plain] == [None] * 3
    banded = unit.examples(2, quantiles=[0, 0.5, 1])
    values = np.sort(everything.values)
    assert [example.band for example in banded] == [(0.5, 1.0)] * 2 + [(0.0, 0.5)] * 2
    for example in banded:
        assert example.band is not None
        low, high = (round(edge * len(values)) for edge in example.band)
        assert example.value in values[low:high]
    assert [example.value for example in banded] == sorted((example.value for example in banded), reverse=True)


def test_a_selection_is_the_rows_that_meet_it(built: BuiltLake) -> None:
    tests = built.codes().where(split="test", special=False)
    of_sample = np.array([built.table.split[place] == "test" for place in range(len(built.table.ids))])
    rows = np.flatnonzero(of_sample[built.sample_of_row] & ~built.special)
    assert len(tests) == tests.n_rows == len(rows)
    np.testing.assert_array_equal(tests.dense(), built.tokens.dense[rows])
    np.testing.assert_array_equal(tests.dense(slice(2, 5), [7, 0]), built.tokens.dense[rows[2:5]][:, [7, 0]])
    assert tests.rows([3, 0]).rows.tolist() == rows[[3, 0]].tolist()
    assert np.concatenate([block.rows for block in tests.scan()]).tolist() == rows.tolist()
    np.testing.assert_array_equal(tests.to_scipy().toarray(), built.tokens.dense[rows])
    for number in range(50):
        active = rows[built.tokens.dense[rows, number] > 0]
        unit = tests.unit(number)
        assert unit.rows.tolist() == active.tolist()
        assert unit.histogram(special=True).zeros == len(rows) - len(active)
    again = pickle.loads(pickle.dumps(tests))
    np.testing.assert_array_equal(again.dense(), tests.dense())
    narrower = tests.where("position > 1").where("token_id > 0")
    places = rows - built.offsets[built.sample_of_row[rows]]
    assert narrower.rows(slice(None)).rows.tolist() == rows[(places > 1) & (built.token_id[rows] > 0)].tolist()
    with pytest.raises(InputError, match=f"row {len(rows)} does not exist"):
        tests.rows([len(rows)])


def test_a_selection_in_xarray_keeps_the_numbers_of_its_rows(built: BuiltLake) -> None:
    tests = built.codes().where(split="test")
    dataset = to_xarray(tests)
    rows = tests.selection.rows()
    assert dataset["row_number"].values.tolist() == rows.tolist()
    np.testing.assert_array_equal(dataset["codes"].values, built.tokens.dense[rows])
    assert set(dataset["split"].values) == {"test"}
    one = dataset.isel(row=1)
    np.testing.assert_array_equal(one["codes"].sel(unit=[3, 1]).values, built.tokens.dense[rows[1], [3, 1]])


def test_empty_and_unknown_selections(built: BuiltLake) -> None:
    codes = built.codes()
    with pytest.raises(InputError, match="split 'tset' is unknown"):
        codes.where(split="tset")
    with pytest.raises(MissingError, match="cube"):
        codes.where(concept="cub")
    empty = codes.where("position > 1000")
    with pytest.raises(InputError, match=r"the selection is empty.*position > 1000"):
        empty.rows(0)
    with pytest.raises(InputError, match="the selection is empty"):
        empty.unit(3)
    with pytest.raises(InputError, match="character"):
        codes.where("position >")


@pytest.mark.parametrize("rows", [slice(None), slice(3, 30), [5, 30, 5, 0], "selection"])
def test_dense_blocks_are_the_same_by_row_and_by_unit(
    built: BuiltLake, monkeypatch: pytest.MonkeyPatch, rows: object
) -> None:
    codes = built.codes().where(special=False) if rows == "selection" else built.codes()
    chosen = slice(None) if rows == "selection" else rows
    units = [7, 3, 7, 0]
    expected = codes.dense(chosen, units)  # type: ignore[arg-type]
    monkeypatch.setattr(codes_module, "_WORTH_POSTINGS", 0)
    monkeypatch.setattr(codes_module, "_UNIT_SLOTS", -1_000)
    taken: list[NDArray[np.int64]] = []
    by_unit = Codes._dense_by_unit
    monkeypatch.setattr(
        Codes, "_dense_by_unit", lambda self, *given: (taken.append(given[0]), by_unit(self, *given))[1]
    )
    np.testing.assert_array_equal(codes.dense(chosen, units), expected)  # type: ignore[arg-type]
    assert len(taken) == 1
    with pytest.raises(MissingError, match="unit 50"):
        codes.dense(chosen, [50])  # type: ignore[arg-type]


def test_without_postings_dense_blocks_are_read_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holed = build(str(tmp_path / "lake"), holes={1}).codes()
    monkeypatch.setattr(codes_module, "_WORTH_POSTINGS", 0)
    monkeypatch.setattr(codes_module, "_UNIT_SLOTS", -1_000)
    assert np.isnan(holed.dense(units=[3], holes="nan")[16:32]).all()
    with pytest.raises(HoleError, match="rows 16 to 31"):
        holed.dense(units=[3])


def test_wrong_requests_are_refused(built: BuiltLake) -> None:
    unit: Unit = built.codes().unit(busiest(built))
    with pytest.raises(MissingError, match=r"unit 50 does not exist: this SAE has units 0 to 49"):
        built.codes().unit(50)
    with pytest.raises(InputError, match="at least 1 row"):
        unit.top(0)
    with pytest.raises(InputError, match="position or sample"):
        unit.top(3, per="text")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 bin"):
        unit.histogram(0)
    for quantiles in ([0.5], [0.5, 0.5], [1, 0], [-0.1, 1], [0, 1.5], [0, np.nan], [np.nan, 1], [0, "x"], [0, None]):
        with pytest.raises(InputError, match=r"quantiles .* at least two ascending numbers from 0 to 1"):
            unit.examples(2, quantiles=quantiles)  # type: ignore[arg-type]
    for number in (2.5, "3", None, True):
        for ask in (unit.top, unit.examples):
            with pytest.raises(InputError, match=f"n is {number!r}; ask for a whole number of rows, at least 1"):
                ask(number)  # type: ignore[operator]
        with pytest.raises(InputError, match=f"bins is {number!r}; ask for a whole number of bins, at least 1"):
            unit.histogram(number)  # type: ignore[arg-type]
    assert len(unit.top(np.int64(1)).rows) == 1
    with pytest.raises(InputError, match="holes='xx' is unknown; choose from error, nan"):
        built.codes().dense(slice(0, 2), holes="xx")  # type: ignore[arg-type]


def test_while_postings_are_being_built_dense_blocks_are_read_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(str(tmp_path / "lake"))
    expected = built.codes().dense(units=[3, 7])
    (tmp_path / "lake" / built.codes().key.segment_path(built.codes().run, 0) / "ledger/c.0.0.0").unlink()
    monkeypatch.setattr(codes_module, "_WORTH_POSTINGS", 0)
    monkeypatch.setattr(codes_module, "_UNIT_SLOTS", -1_000)
    np.testing.assert_array_equal(built.codes().dense(units=[3, 7]), expected)
    with pytest.raises(HoleError, match=r"postings of rows 0 to 38 in .* are not complete; .* saestore index"):
        built.codes().unit(3)


def test_no_units_and_units_that_are_no_list(built: BuiltLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_WORTH_POSTINGS", 0)
    assert built.codes().dense(units=[]).shape == (len(built.tokens.dense), 0)
    for units in (5, [[1, 2]], [1.5]):
        with pytest.raises(InputError, match="units"):
            built.codes().units(units)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 row"):
        built.codes().unit(3).examples(0, quantiles=[0, 1])


def test_examples_of_images_name_the_file_and_the_box(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    table = SampleTable(ids=["a", "b"], kind="image", contents=["one.png", "two.png"])
    write_samples(lake.storage, "d", table)
    boxes = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 5, 9]], np.float32)
    write_positions(
        lake.storage,
        ModelKey("d", "m"),
        offsets=np.array([0, 2, 3]),
        arrays={"special": np.zeros(3, bool), "box": boxes},
        digest="0" * 64,
        attributes={"content": "image"},
    )
    key = CodesKey("d", "m", "layer_3", "s", "patch")
    write_codes(lake.storage, key, top_k(np.array([[1], [3], [2]], np.float32), 1))
    index(lake.storage, [key], quiet=True)
    found = Codes.open(lake.storage, key).unit(0).examples(2)
    assert [(one.place.sample, one.place.position, one.place.box) for one in found] == [
        ("a", 1, (8, 0, 16, 8)),
        ("b", 0, (0, 0, 5, 9)),
    ]
    assert [one.place.text for one in found] == ["one.png box 8, 0, 16, 8", "two.png box 0, 0, 5, 9"]
