from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from built_lake import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marked_lake import text_lake

import saestore.selection
from saestore.axis import RowAxis
from saestore.errors import HoleError, InputError, MissingError, SaestoreError
from saestore.labels import write_labels
from saestore.lake import Lake
from saestore.layout import ActivationsKey, ModelKey
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.samples import SampleTable
from saestore.selection import Selection
from saestore.tables import Positions, Samples, write_positions, write_samples

N = 40
SPLIT_OF = ("train", "cal", "test", "test", "")


@dataclass(frozen=True)
class KnownAxis:
    """An axis, and a table of its rows made of what was written."""

    axis: RowAxis
    frame: pd.DataFrame

    @property
    def all(self) -> Selection:
        return Selection.all(self.axis)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownAxis:
    storage = Lake.create(str(tmp_path_factory.mktemp("lake") / "l.zarr")).storage
    rng = np.random.default_rng(5)
    score = rng.integers(-8, 8, N) / 4
    score[7] = np.nan
    table = SampleTable(
        ids=[f"s{place:02}" for place in range(N)],
        kind="text",
        contents=[f"Text {place % 9} is é" for place in range(N)],
        split=[SPLIT_OF[place % 5] for place in range(N)],
        columns={
            "length": rng.integers(0, 60, N),
            "score": score,
            "checked": rng.random(N) < 0.5,
            "my source": [f"src{place % 3}" for place in range(N)],
            "naïve": [f"é{place % 2}" for place in range(N)],
        },
        concept_names=("cube", "label=yes"),
        concepts=rng.choice([0, 1, 255], (N, 2)).astype(np.uint8),
    )
    lengths = rng.integers(0, 12, N)
    lengths[[0, 3, 4]] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    arrays = {
        "special": rng.random(n) < 0.3,
        "token_id": rng.integers(0, 6, n).astype(np.uint32),
        "char_start": rng.integers(0, 90, n).astype(np.int32),
        "char_end": rng.integers(0, 90, n).astype(np.int32),
    }
    write_samples(storage, "d", table)
    write_positions(storage, ModelKey("d", "m"), offsets=offsets, arrays=arrays, digest="0" * 64, attributes={})
    sample = np.repeat(np.arange(N), lengths)
    frame = pd.DataFrame(
        {
            "id": np.array(table.ids, dtype=object)[sample],
            "split": np.array(table.split, dtype=object)[sample],
            "text": np.array(table.contents, dtype=object)[sample],
            **{name: np.asarray(column)[sample] for name, column in table.columns.items()},
            "cube": table.concepts[sample, 0].astype(int),
            "label=yes": table.concepts[sample, 1].astype(int),
            **{name: column if name == "special" else column.astype(int) for name, column in arrays.items()},
            "position": np.arange(n) - offsets[sample],
            "sample": sample,
        }
    )
    return KnownAxis(RowAxis.open(storage, ActivationsKey("d", "m", "layer_1", "token")), frame)


def rows_where(known: KnownAxis, mask: pd.Series) -> list[int]:
    return np.flatnonzero(mask.to_numpy(dtype=bool)).tolist()


def chosen(selection: Selection) -> list[int]:
    """The rows of a selection; none is an error, here an empty list."""
    try:
        return selection.rows().tolist()
    except InputError as error:
        if "the selection is empty" not in str(error):
            raise
        return []


# ---------------------------------------------------------------- conditions by keyword


def test_keywords_choose_the_rows_of_the_table(known: KnownAxis) -> None:
    frame = known.frame
    cases = [
        ({}, frame.position >= 0),
        ({"split": "test"}, frame.split == "test"),
        ({"split": ["train", "cal"]}, frame.split.isin(["train", "cal"])),
        ({"concept": "cube"}, frame.cube == 1),
        ({"concept": ("cube", "label=yes")}, (frame.cube == 1) & (frame["label=yes"] == 1)),
        ({"samples": "s07"}, frame.id == "s07"),
        ({"samples": ["s30", "s07", "s07"]}, frame.id.isin(["s07", "s30"])),
        ({"samples": 11}, frame["sample"] == 11),
        ({"samples": np.array([39, 2])}, frame["sample"].isin([2, 39])),
        ({"samples": [5, "s06"]}, frame["sample"].isin([5, 6])),
        ({"special": True}, frame.special),
        ({"special": False}, ~frame.special),
        (
            {"split": "test", "concept": "cube", "special": False, "expression": "length > 20"},
            (frame.split == "test") & (frame.cube == 1) & ~frame.special & (frame.length > 20),
        ),
    ]
    for conditions, mask in cases:
        assert chosen(known.all.where(**conditions)) == rows_where(known, mask) != [], conditions


def test_conditions_compose_in_any_order(known: KnownAxis) -> None:
    once = known.all.where("score > 0", split="test", special=False)
    assert chosen(once) == chosen(known.all.where(special=False).where("score > 0").where(split="test")) != []
    narrowed = known.all.where(split="test")
    narrowed.where(special=True)
    assert chosen(narrowed) == rows_where(known, known.frame.split == "test")  # what it was made from stays


def test_pooled_rows_are_the_samples(tmp_path) -> None:
    built = build(str(tmp_path / "l.zarr"))
    means = Selection.all(RowAxis.open(built.storage, ActivationsKey("d", "m", "layer_3", "mean")))
    split = np.array(built.table.split)
    assert means.where(split="test").rows().tolist() == np.flatnonzero(split == "test").tolist()
    assert means.where("not special and position == 0 and score >= 1").rows().tolist() == [4, 5, 6]
    assert len(means.where(special=False)) == len(means) == 7
    assert means.sample_offsets.tolist() == list(range(8))
    with pytest.raises(InputError, match="none of the 7 samples meets special tokens"):
        means.where(special=True).rows()
    with pytest.raises(MissingError, match="no column or concept 'token_id'"):
        means.where("token_id == 3")


def test_boxes_of_patches(tmp_path) -> None:
    storage = Lake.create(str(tmp_path / "l.zarr")).storage
    table = SampleTable(ids=["a", "b"], kind="image", contents=["a.png", "b.png"])
    box = np.array([[0, 0, 8.1, 8], [8.1, 0, 16, 8], [0, 8, 8.1, 16], [0, 0, 5, 5]], np.float32)
    write_samples(storage, "d", table)
    write_positions(
        storage,
        ModelKey("d", "m"),
        offsets=np.array([0, 3, 4]),
        arrays={"special": np.zeros(4, bool), "box": box},
        digest="0" * 64,
        attributes={},
    )
    patches = Selection.all(RowAxis.open(storage, ActivationsKey("d", "m", "layer_1", "patch")))
    assert patches.where("box_x1 - box_x0 < 8.15 and box_y0 >= 8").rows().tolist() == [2]
    assert patches.where('path == "b.png" or box_x0 > 8').rows().tolist() == [1, 3]
    assert patches.where("box_x1 > 8.1").rows().tolist() == np.flatnonzero(box[:, 2].astype(float) > 8.1).tolist()


# ---------------------------------------------------------------- what a selection answers


def brute_ranges(rows: list[int]) -> list[tuple[int, int]]:
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and ranges[-1][1] == row:
            ranges[-1][1] = row + 1
        else:
            ranges.append([row, row + 1])
    return [(start, stop) for start, stop in ranges]


def zipped(ranges: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(ranges[0].tolist(), ranges[1].tolist(), strict=True))


@pytest.mark.parametrize("expression", [None, "not special", 'split == "test"', "token_id == 3", "special or cube"])
def test_answers_agree_with_a_list_of_rows(known: KnownAxis, expression: str | None) -> None:
    selection = known.all if expression is None else known.all.where(expression)
    rows = selection.rows().tolist()
    n = known.axis.n_rows
    assert len(selection) == len(rows) > 0
    assert selection.starts.dtype == selection.stops.dtype == selection.rows().dtype == np.int64
    assert zipped((selection.starts, selection.stops)) == brute_ranges(rows)
    every = np.arange(n)[::-1]
    assert selection.contains(every).tolist() == [row in rows for row in every.tolist()]
    assert selection.places(every).tolist() == [rows.index(r) if r in rows else -1 for r in every.tolist()]
    for first, stop in [(0, 0), (0, 1), (1, len(rows)), (len(rows) // 3, len(rows) // 2), (len(rows), len(rows))]:
        assert selection.rows(first, stop).tolist() == rows[first:stop]
        assert zipped(selection.ranges(first, stop)) == brute_ranges(rows[first:stop])
    for start, stop in [(0, n), (0, 0), (n, n), (3, 50), (rows[0] + 1, rows[-1])]:
        assert selection.mask(start, stop).tolist() == [row in rows for row in range(start, stop)]
    expected = [sum(row < edge for row in rows) for edge in known.axis.positions.offsets.tolist()]
    assert selection.sample_offsets.tolist() == expected


def test_parts_that_do_not_exist_are_refused(known: KnownAxis) -> None:
    for ask in [lambda s: s.rows(0, 10_000), lambda s: s.rows(5, 3), lambda s: s.ranges(-1, 3), lambda s: s.mask(4, 2)]:
        with pytest.raises(InputError, match="do not exist"):
            ask(known.all)


def test_a_selection_is_a_value_that_travels(known: KnownAxis) -> None:
    selection = known.all.where("`label=yes` or position in (0, 3)", samples=[1, 5, 6, 7, 8, 9], special=False)
    again = pickle.loads(pickle.dumps(selection))
    assert again.rows().tolist() == selection.rows().tolist()
    with pytest.raises(AttributeError):
        selection.conditions = ()  # type: ignore[misc]


# ---------------------------------------------------------------- expressions against pandas

PANDAS = [
    'split == "test" and length > 20 and not special and cube == 1',
    "token_id in [1, 4]",
    "token_id not in (1, 4) and 2 <= position < 6",
    "`my source` == 'src1' and `label=yes` == 0",
    "`my source` in ['src1', 'src2'] or special",
    "checked",
    "not checked or char_end - char_start > 10",
    "special == True",
    "token_id - 3 < 0",
    "-token_id < -4",
    "length / 7 > 3.5 and length % 7 == 2",
    "length / token_id > 9",
    "score > -0.5",
    "score != 1",
    "not (score > 0)",
    "id >= 's20' and id < 's31'",
    "text == 'Text 3 is é' and position > 1",
    "naïve == 'é1' and token_id == 5",
    "(split == 'test' or special) and (cube == 255 or length * 2 + 1 > 60)",
    "2 * (position + 1) == token_id",
    "split == ''",
    "1 == 1 and token_id == 1",
    "cube == `label=yes`",
]


@pytest.mark.parametrize("expression", PANDAS)
def test_expressions_agree_with_pandas(known: KnownAxis, expression: str) -> None:
    expected = known.frame.query(expression, engine="python").index.tolist()
    assert chosen(known.all.where(expression)) == expected != []


def test_blocks_make_no_difference(known: KnownAxis, monkeypatch: pytest.MonkeyPatch) -> None:
    expressions = ["not special", "special or cube", 'split == "test" and token_id < 3', "length > 30"]
    whole = [chosen(known.all.where(expression)) for expression in expressions]
    for size in (1, 7):
        monkeypatch.setattr(saestore.selection, "_BLOCK", {"sample": size, "position": size})
        assert [chosen(known.all.where(expression)) for expression in expressions] == whole


def test_a_concept_is_true_false_or_neither(known: KnownAxis) -> None:
    frame = known.frame
    cube, yes, special = frame.cube, frame["label=yes"], frame.special
    cases = {
        "cube": cube == 1,
        "not cube": cube == 0,
        "not not cube": cube == 1,
        "cube == 255": cube == 255,
        "cube != 1": cube != 1,
        "cube == True": cube == 1,
        "cube in [1, 255]": cube != 0,
        "not (cube and `label=yes`)": (cube == 0) | (yes == 0),
        "not (cube or special)": (cube == 0) & ~special,
        "not (not cube or special)": (cube == 1) & ~special,
        "not (cube == 1)": cube != 1,
    }
    for expression, mask in cases.items():
        assert chosen(known.all.where(expression)) == rows_where(known, mask) != [], expression


def test_remainders_and_quotients_by_zero_are_no_number(known: KnownAxis) -> None:
    frame = known.frame
    assert chosen(known.all.where("5 % token_id >= 0")) == rows_where(known, frame.token_id > 0)
    assert chosen(known.all.where("1 / 0 > 5 and token_id == 1")) == rows_where(known, frame.token_id == 1)
    assert chosen(known.all.where("-7 % 3 == 2")) == list(range(len(frame)))  # Python's sign


def test_layout_of_the_text_does_not_matter(known: KnownAxis) -> None:
    plain = known.all.where('split == "test" and `my source` == "src1"')
    spread = known.all.where('\n  split == "test"\n\tand `my source`\n == """src1""" \n')
    assert chosen(spread) == chosen(plain) != []
    assert chosen(known.all.where("`my source` != 'a`b#\"'")) == list(range(len(known.frame)))
    assert chosen(known.all.where(r"text != 'it\'s `a`'")) == list(range(len(known.frame)))


# ---------------------------------------------------------------- random expressions against loops

Truth = Callable[[dict], bool | None]
Written = tuple[str, Truth]

NUMBERS = ("length", "score", "token_id", "char_start", "position", "cube")
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compared(name: str, sign: str, number: int | float) -> Written:
    return f"{name} {sign} {number}", lambda row: COMPARE[sign](row[name], number)


def remainder(name: str, divisor: int, number: int) -> Written:
    return f"({name} * 3 + 1) % {divisor} == {number}", lambda row: (row[name] * 3 + 1) % divisor == number


def label(name: str) -> Written:
    written = name if name.isidentifier() else f"`{name}`"
    return written, lambda row: {1: True, 0: False, 255: None}[row[name]]


def member(name: str, words: list[str], inside: bool) -> Written:
    written = f"`{name}` {'in' if inside else 'not in'} {words!r}"
    return written, lambda row: (row[name] in words) == inside


def negated(part: Written) -> Written:
    text, truth = part

    def opposite(row: dict) -> bool | None:
        found = truth(row)
        return None if found is None else not found

    return f"not ({text})", opposite


def joined(word: str, parts: list[Written]) -> Written:
    """`and` is false if a part is, else unknown if a part is; `or` with true in place of false."""
    decides = word == "or"

    def both(row: dict) -> bool | None:
        found = [truth(row) for _, truth in parts]
        return decides if decides in found else None if None in found else not decides

    return f" {word} ".join(f"({text})" for text, _ in parts), both


leaves = st.one_of(
    st.builds(compared, st.sampled_from(NUMBERS), st.sampled_from(list(COMPARE)), st.integers(-2, 60)),
    st.builds(compared, st.just("score"), st.sampled_from(list(COMPARE)), st.sampled_from([-0.5, 0.25, 1e300])),
    st.builds(remainder, st.sampled_from(["length", "token_id"]), st.integers(2, 5), st.integers(0, 4)),
    st.builds(label, st.sampled_from(["cube", "label=yes"])),
    st.builds(
        member, st.sampled_from(["split", "my source"]), st.lists(st.sampled_from([*SPLIT_OF, "src1"])), st.booleans()
    ),
    st.sampled_from(["special", "checked"]).map(lambda name: (name, lambda row: bool(row[name]))),
)
written = st.recursive(
    leaves,
    lambda parts: (
        parts.map(negated) | st.builds(joined, st.sampled_from(["and", "or"]), st.lists(parts, min_size=2, max_size=3))
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written)
def test_random_expressions_agree_with_a_loop_over_the_rows(known: KnownAxis, expression: Written) -> None:
    text, truth = expression
    rows = known.frame.to_dict("records")
    expected = [number for number, row in enumerate(rows) if truth(row) is True]
    assert chosen(known.all.where(text)) == expected


# ---------------------------------------------------------------- only what is needed is read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The name and number of rows of each reading of positions."""
    found: list[tuple[str, int]] = []
    plain = RowGroup.read_ranges

    def noted(self: RowGroup, name: str, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        if self.axis == "row":
            found.append((name, int((stops - starts).sum())))
        return plain(self, name, starts, stops)

    monkeypatch.setattr(RowGroup, "read_ranges", noted)
    monkeypatch.setattr(Positions, "special", None)  # which reads all rows
    return found


def test_nothing_is_read_of_positions_before_it_is_needed(known: KnownAxis, reads: list[tuple[str, int]]) -> None:
    selection = known.all.where("token_id > 1", split="test", special=False)
    assert repr(selection) == "<Selection: split test and no special tokens and token_id > 1>"
    assert reads == []
    in_test = int((known.frame.split == "test").sum())
    len(selection)
    assert reads == [("special", in_test), ("token_id", in_test)]
    selection.rows()
    assert len(reads) == 2


def test_conditions_on_samples_read_no_positions(known: KnownAxis, reads: list[tuple[str, int]]) -> None:
    assert chosen(known.all.where('length > 20 and (split == "test" or cube) and id != "s01"', concept="cube"))
    assert reads == []


def test_and_is_pushed_down_through_parentheses(known: KnownAxis, reads: list[tuple[str, int]]) -> None:
    assert chosen(known.all.where('(not special and (split == "test" and token_id == 3))'))
    assert {count for _, count in reads} == {int((known.frame.split == "test").sum())}


def test_shards_that_no_sample_needs_may_be_missing(tmp_path) -> None:
    storage = Lake.create(str(tmp_path / "l.zarr")).storage
    write_samples(storage, "d", SampleTable(ids=["a", "b", "c"], kind="text", contents=["", "", ""]))
    key = ModelKey("d", "m")
    group = RowGroup.create(
        storage,
        key.positions_path,
        kind="positions",
        axis="row",
        grid=Grid.plan(48, shard_rows=16, chunk_rows=4),
        arrays=[ArraySpec("special", "bool")],
        identity={"digest": "0" * 64},
        whole={"offsets": (np.array([0, 16, 32, 48], dtype=np.int64), ("sample_edge",))},
    )
    group.write_shard(1, {"special": np.arange(16) % 5 == 0})
    rows = Selection.all(RowAxis(Samples.open(storage, "d"), Positions(group, key)))
    assert rows.where(samples="b", special=True).rows().tolist() == [16, 21, 26, 31]
    with pytest.raises(HoleError, match="rows 0 to 15"):
        rows.where(samples=["a", "b"], special=True).rows()


# ---------------------------------------------------------------- errors for users


def message(known: KnownAxis, *args: object, error: type[SaestoreError] = InputError, **conditions: object) -> str:
    with pytest.raises(error) as raised:
        known.all.where(*args, **conditions).rows()  # type: ignore[arg-type]
    text = str(raised.value)
    assert len(text.splitlines()) == 1
    return text


def test_an_empty_selection_names_the_condition(known: KnownAxis) -> None:
    selection = known.all.where("token_id == 99", split="test", special=False)  # no error yet
    with pytest.raises(InputError) as raised:
        len(selection)
    in_test = int(((known.frame.split == "test") & ~known.frame.special).sum())
    assert f"none of the {in_test} rows left by split test and no special tokens meets token_id == 99" in str(
        raised.value
    )
    samples = sum(split == "train" for split in known.axis.samples.split)
    assert f"none of the {samples} samples left by split train meets length > 1000" in message(
        known, "length > 1000 and token_id == 1", split="train"
    )
    assert f"none of the {N} samples meets id in []" in message(known, "id in []")
    assert "the samples left by samples s00, s03 have no rows" in message(known, samples=["s00", "s03"])


def test_unknown_names_name_the_nearest(known: KnownAxis) -> None:
    assert "split 'tset' is unknown; nearest of 3 splits: 'test'" in message(known, split="tset")
    assert "no concept 'cub'; nearest of 2 concepts: 'cube'" in message(known, concept="cub", error=MissingError)
    assert "no concept 'zzzz'; its 2 concepts: 'cube', 'label=yes'" in message(
        known, concept="zzzz", error=MissingError
    )
    assert f"no sample 's077'; nearest of {N} samples: 's07'" in message(
        known, samples=["s01", "s077"], error=MissingError
    )
    assert "no column or concept 'lenght'; nearest of 15 names: 'length'" in message(
        known, "lenght > 3", error=MissingError
    )
    forgotten = message(known, "split == test", error=MissingError)
    assert "no column or concept 'test'" in forgotten
    assert "texts stand in quotes" in forgotten


def test_wrong_arguments_are_named(known: KnownAxis) -> None:
    assert "sample 40 does not exist: dataset 'd' has samples 0 to 39" in message(known, samples=40)
    assert "sample -1 does not exist" in message(known, samples=[-1])
    assert "np.flatnonzero(mask)" in message(known, samples=np.ones(N, bool))
    assert "samples= names no sample" in message(known, samples=[])
    assert "a float" in message(known, samples=[1.5])
    assert "split= names no split" in message(known, split=[])
    assert "concept= names no concept" in message(known, concept=())
    assert "special='no'" in message(known, special="no")
    assert "an expression is a text, int was given" in message(known, 3)


def test_a_name_with_two_meanings_is_refused(tmp_path) -> None:
    storage = Lake.create(str(tmp_path / "l.zarr")).storage
    table = SampleTable(
        ids=["a", "b"],
        kind="text",
        contents=["x", "y"],
        split=["train", "test"],
        columns={"special": [1, 2]},
        concept_names=("split",),
        concepts=np.array([[1], [0]], np.uint8),
    )
    write_samples(storage, "d", table)
    rows = Selection.all(RowAxis(Samples.open(storage, "d"), None))
    with pytest.raises(InputError, match="'special' is the name of a column of the samples and of a column of the pos"):
        rows.where("special == 2")
    with pytest.raises(InputError, match="'split' is the name of a column of the samples and of a concept"):
        rows.where('split == "test"')
    assert rows.where(split="test", special=False).rows().tolist() == [1]
    assert rows.where(concept="split").rows().tolist() == [0]


def test_a_concept_of_positions_alone_is_told(tmp_path) -> None:
    lake, tokens = text_lake(str(tmp_path / "lake"), ("It rains.", "Sun"), concepts={"wet": [1, 0]}, cuts=(1,))
    for part, of_text in enumerate(tokens):
        labels = np.ones((len(of_text), 1), np.uint8)
        write_labels(lake.storage, ModelKey("d", "m", part), "mine", labels, ["sunny"])
    rows = Selection.all(RowAxis.open(lake.storage, ActivationsKey("d", "m", "layer_0", "token")))
    told = r"'sunny' of dataset 'd' is labelled at positions alone \(labels 'mine'\), and concept= chooses samples; .*"
    with pytest.raises(MissingError, match=told + r"lake\.labels\('d', 'mine'\)\.concept\('sunny'\) is 1$"):
        rows.where(concept=["wet", "sunny"])
    with pytest.raises(MissingError, match="has no concept 'sun'; its 1 concepts: 'wet'"):
        rows.where(concept="sun")


def test_an_axis_without_rows_says_so(known: KnownAxis) -> None:
    empty = RowAxis(known.axis.samples, _without_rows(known.axis.positions))
    with pytest.raises(InputError, match="has no rows to choose from"):
        len(Selection.all(empty))


def _without_rows(positions: Positions) -> Positions:
    copy = Positions(positions.group, positions.key)
    copy.__dict__["offsets"] = np.zeros(N + 1, dtype=np.int64)
    return copy


def test_not_a_number_is_chosen_by_no_comparison_but_unequal(known: KnownAxis) -> None:
    rows = [number for number, score in enumerate(known.frame.score) if math.isnan(score)]
    assert rows
    assert chosen(known.all.where("score != score")) == rows
