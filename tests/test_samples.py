"""Sample tables against pandas as the oracle, on the real tables and the real probing datasets; and wrong input."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saestore._entries import package_folder
from saestore.catalogs import Catalog, load_catalog
from saestore.errors import InputError, MissingError, SaestoreError
from saestore.samples import SampleTable, read_samples, samples_from_entry

METADATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "metadata"
needs_metadata = pytest.mark.skipif(not METADATA.is_dir(), reason="the concept metadata is not beside the repository")
needs_probes = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sae_probes", "zstandard")),
    reason="sae-probes or zstandard is not installed",
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", "/nonexistent")
        for name in ("SAESTORE_CATALOG", "SAESTORE_METADATA"):
            patch.delenv(name, raising=False)
        return load_catalog()


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# --- the real tables ---


@needs_metadata
@pytest.mark.parametrize(
    ("name", "counts", "n_labels", "n_kept"),
    [  # rows in train, cal, test; label columns; concepts kept: concepts.md 1.1
        ("CLEVR", (634, 200, 166), 6, 6),
        ("Coco", (4001, 500, 999), 91, 29),
        ("Broden-Pascal", (2703, 891, 909), 94, 83),
        ("Broden-OpenSurfaces", (2118, 717, 743), 37, 26),
        ("Sarcasm", (861, 300, 285), 1, 1),
        ("iSarcasm", (1028, 357, 349), 7, 1),
        ("GoEmotions", (3271, 1082, 1074), 19, 14),
    ],
)
def test_concept_datasets(
    catalog: Catalog, name: str, counts: tuple[int, ...], n_labels: int, n_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalog.dataset(name)
    table = samples_from_entry(entry, check_files=False)
    oracle = pd.read_csv(METADATA / f"{name}.csv")
    assert tuple(table.split.count(s) for s in ("train", "cal", "test")) == counts
    assert list(table.split) == oracle["split"].tolist()
    assert list(table.ids) == [str(i) for i in oracle.index]
    path = entry.image or entry.text_path
    assert path is not None
    assert list(table.contents if entry.image else table.columns["text_path"]) == oracle[path].tolist()
    assert len(table.concept_names) == n_labels
    assert np.array_equal(table.concepts, oracle[list(table.concept_names)].to_numpy())
    assert set(oracle.columns) == {*table.concept_names, "split", path} | ({"class"} if name == "CLEVR" else set())
    frame = pd.DataFrame(columns=list(table.concept_names))
    kept = {c for p in entry.concepts for c in frame.columns if c == p or (p[-1] == "*" and c.startswith(p[:-1]))}
    assert len(kept) == n_kept
    monkeypatch.delenv("SAESTORE_DATA", raising=False)
    with pytest.raises(InputError, match="SAESTORE_DATA is not set"):
        samples_from_entry(entry)


@needs_metadata
def test_texts_and_images_come_from_the_root(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESTORE_DATA", str(tmp_path))
    (tmp_path / "Sarcasm" / "paragraphs").mkdir(parents=True)
    texts = [" Oh,\r\ngreat. \n", "", "naïve 🙂"]
    for i, text in enumerate(texts):
        write(tmp_path / "Sarcasm" / "paragraphs" / f"paragraph_{i + 1:06d}.txt", text)
    table = samples_from_entry(catalog.dataset("Sarcasm"), limit=3)
    assert list(table.contents) == texts
    with pytest.raises(MissingError, match=r"row 3: no file .*paragraph_000004\.txt"):
        samples_from_entry(catalog.dataset("Sarcasm"), limit=4)
    (tmp_path / "CLEVR" / "images").mkdir(parents=True)
    image = tmp_path / "CLEVR" / "images" / "CLEVR_new_000000.png"
    image.write_bytes(b"png")
    assert samples_from_entry(catalog.dataset("CLEVR"), limit=1).contents == (str(image),)


@needs_probes
@pytest.mark.parametrize(
    "name",
    [
        "5_hist_fig_ismale",  # 0/1
        "21_headline_istrump",  # bool
        "65_high-school",  # two texts
        "41_truthqa_tf",
        "145_disease_class_digestive system diseases",  # a blank in the name, line breaks in texts
        "158_code_C",  # long texts, no prompt_len
        "13_us_state",  # ten classes
        "45_context_ans",  # four whole numbers
        "2_hist_fig_birthyear",  # 1,319 years
        "8_nyc_lat",  # fractions
    ],
)
def test_probing_datasets(catalog: Catalog, name: str) -> None:
    table = samples_from_entry(catalog.dataset(f"sae-probes/{name}"))
    file = package_folder("sae_probes") / "data" / "cleaned_data" / f"{name}.csv.zst"
    oracle = pd.read_csv(file, keep_default_na=False)
    assert list(table.contents) == oracle["prompt"].tolist()
    assert set(table.split) == {""}
    if "prompt_len" in oracle:
        lengths = table.columns["prompt_len"]
        assert isinstance(lengths, np.ndarray)
        assert (lengths.dtype, lengths.tolist()) == (np.int64, oracle["prompt_len"].tolist())
    target, classes = oracle["target"], sorted(oracle["target"].unique())
    if len(classes) == 2:  # y = index of the sorted classes: probes.md 1.4
        assert np.array_equal(table.concepts[:, 0], np.searchsorted(classes, target))
        assert table.concept_names == (("target",) if target.dtype != object else (f"target={classes[1]}",))
    elif len(classes) <= 10:
        assert table.concept_names == tuple(f"target={c}" for c in classes)
        assert np.array_equal(table.concepts, pd.get_dummies(target)[classes].to_numpy())
    else:
        assert table.concept_names == ()
    if table.concept_names != ("target",):
        assert list(table.columns["target"]) == target.tolist()


@needs_probes
def test_limit_keeps_the_concepts_of_the_whole_table(catalog: Catalog) -> None:
    entry = catalog.dataset("sae-probes/13_us_state")
    whole, part = samples_from_entry(entry), samples_from_entry(entry, limit=3)
    assert part.concept_names == whole.concept_names
    assert part.digest() == whole.head(3).digest() != whole.digest()
    assert len(part) == 3


# --- every kind of source gives the same table ---

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "text": " NA ", "split": "train", "label": 1, "n": 3, "note": "x,y"},
    {"id": "b", "text": "", "split": "cal", "label": 0, "n": -4, "note": 'quote " and\nline'},
    {"id": "c", "text": "null", "split": "test", "label": 1, "n": 50, "note": "NaN is no number"},
    {"id": "007", "text": "naïve 🙂\r\n", "split": "train", "label": 0, "n": 0, "note": "é"},
]


def _sources(folder: Path) -> dict[str, Any]:
    frame = pd.DataFrame(RECORDS)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_csv(folder / "t.csv.gz", index=False)
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    frame.to_json(folder / "t.json", orient="records")
    found: dict[str, Any] = {"frame": frame, "csv": folder / "t.csv", "tsv": str(folder / "t.tsv")}
    found |= {"gz": folder / "t.csv.gz", "jsonl": folder / "t.jsonl", "json": folder / "t.json"}
    if importlib.util.find_spec("zstandard"):
        frame.to_csv(folder / "t.csv.zst", index=False)
        found["zst"] = folder / "t.csv.zst"
    if importlib.util.find_spec("pyarrow"):
        frame.to_parquet(folder / "t.parquet")
        found["parquet"] = folder / "t.parquet"
    return found


def test_sources_agree(tmp_path: Path) -> None:
    tables = {name: read_samples(source) for name, source in _sources(tmp_path).items()}
    assert len({table.digest() for table in tables.values()}) == 1
    for table in tables.values():
        assert list(table.contents) == [r["text"] for r in RECORDS]
        assert list(table.ids) == [r["id"] for r in RECORDS]
        assert list(table.split) == [r["split"] for r in RECORDS]
        assert list(table.columns["note"]) == [r["note"] for r in RECORDS]
        assert np.array_equal(table.columns["n"], [3, -4, 50, 0])
        assert table.concept_names == ("label",)
        assert table.concepts.tolist() == [[1], [0], [1], [0]]
    assert list(read_samples([r["text"] for r in RECORDS]).contents) == [r["text"] for r in RECORDS]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
        | st.sampled_from(["NA", "1.0", ""]),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_survives_csv_and_json(tmp_path: Path, texts: list[str]) -> None:
    frame = pd.DataFrame({"text": texts, "n": range(len(texts))})
    frame.to_csv(tmp_path / "t.csv", index=False, quoting=1)
    with (tmp_path / "t.jsonl").open("w", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(record) + "\n" for record in frame.to_dict("records"))
    assert list(read_samples(tmp_path / "t.csv").contents) == texts
    assert list(read_samples(tmp_path / "t.jsonl").contents) == texts


def test_text_longer_than_the_csv_limit_and_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\ufefftext,n\n" + "x" * 200_000 + ",1\n\n")
    table = read_samples(path)
    assert table.contents == ("x" * 200_000,)


def test_folder_of_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/2.jpg", "a/10.jpeg", "c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    table = read_samples(tmp_path)
    assert table.kind == "image"
    assert table.ids == ("a/10.jpeg", "a/2.jpg", "b.PNG", "c.webp")
    assert table.contents == tuple(str(tmp_path / name) for name in table.ids)
    assert read_samples(tmp_path, limit=2).ids == table.ids[:2]
    before = table.digest()
    assert read_samples(tmp_path).digest() == before
    (tmp_path / "c.webp").write_bytes(b"other pixels")
    assert table.digest() != before
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    (tmp_path / "c.webp").write_bytes(b"c.webp")
    tmp_path.rename(moved)
    assert read_samples(moved).digest() == before


# --- labels and columns ---


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        ([1, 0, None], ("y",), [[1], [0], [255]]),
        ([1.0, float("nan"), 0.0], ("y",), [[1], [255], [0]]),
        (["1", "", "0"], ("y",), [[1], [255], [0]]),
        (["True", "false", "nan"], ("y",), [[1], [0], [255]]),
        ([True, False, True], ("y",), [[1], [0], [1]]),
        ([1, 1, 1], ("y",), [[1], [1], [1]]),
        (["no", "yes", ""], ("y=yes",), [[0], [1], [255]]),
        (["b", "c", "a"], ("y=a", "y=b", "y=c"), [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
        ([3, 1, 3], ("y=3",), [[1], [0], [1]]),
        ([0, 1, 2], ("y=0", "y=1", "y=2"), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([0.5, 1, 2], (), [[], [], []]),
    ],
)
def test_labels(values: list[Any], names: tuple[str, ...], labels: list[list[int]]) -> None:
    table = read_samples(pd.DataFrame({"text": list("xyz"), "y": pd.Series(values, dtype=object)}), labels=["y"])
    assert table.concept_names == names
    assert table.concepts.dtype == np.uint8
    assert table.concepts.tolist() == labels


def test_label_patterns_and_missing_labels() -> None:
    frame = pd.DataFrame({"text": ["x", "y"], "c::a": [1, 0], "d::b": [0, 1], "c::*": [1, 1], "label": [0, 1]})
    assert read_samples(frame, labels=["c::?"]).concept_names == ("c::a", "c::*")
    assert read_samples(frame, labels=["c::*"]).concept_names == ("c::*",)  # an exact name comes first
    assert read_samples(frame, labels=["d::*", "c::a"]).concept_names == ("d::b", "c::a")
    assert read_samples(frame).concept_names == ("label",)
    assert read_samples(frame, labels=()).concept_names == ()
    with pytest.raises(MissingError, match=r"no label column matches 'e::\*'; columns are: c::a, d::b"):
        read_samples(frame, labels=["e::*"])


def test_column_types_lose_nothing(tmp_path: Path) -> None:
    text = "text,zip,big,part,flag,gap,void\na,007,1234567890123456789,0.5,True,3,\nb,123,12,1e3,false,,\n"
    columns = read_samples(write(tmp_path / "t.csv", text)).columns
    assert columns["zip"] == ["007", "123"]
    assert columns["big"] == ["1234567890123456789", "12"]
    assert columns["void"] == ["", ""]
    for name, expected in (("part", [0.5, 1000.0]), ("flag", [True, False]), ("gap", [3.0, np.nan])):
        column = columns[name]
        assert isinstance(column, np.ndarray)
        assert np.array_equal(column, np.array(expected), equal_nan=name == "gap")
        assert column.dtype == np.array(expected).dtype


# --- the table itself ---


def test_digest_sees_everything() -> None:
    base: dict[str, Any] = {
        "ids": ["a", "b"],
        "kind": "text",
        "contents": ["ab", "c"],
        "split": ["train", ""],
        "columns": {"n": np.array([1, 2]), "s": ["x", "y"]},
        "concept_names": ["p", "q"],
        "concepts": np.array([[0, 1], [255, 0]], np.uint8),
    }
    changes: list[dict[str, Any]] = [
        {"ids": ["a", "c"]},
        {"contents": ["a", "bc"]},
        {"split": ["", "train"]},
        {"columns": {"n": np.array([1, 3]), "s": ["x", "y"]}},
        {"columns": {"n": np.array([1.0, 2.0]), "s": ["x", "y"]}},
        {"columns": {"n": np.array([1, 2]), "s": ["xy", ""]}},
        {"concept_names": ["p", "r"]},
        {"concepts": np.array([[0, 1], [1, 0]], np.uint8)},
    ]
    digests = {SampleTable(**{**base, **change}).digest() for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1
    assert SampleTable(**base).digest() == SampleTable(**base).digest()
    other = SampleTable(ids=("0",), kind="text", contents=("One.",))
    # Written into lakes, so it must not change: the layout spelled out once more.
    parts = [b"saestore samples 1", b"text", (1).to_bytes(8, "little"), b"0", b"", b"One.", b""]
    layout = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert other.digest() == hashlib.sha256(layout).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (), "contents": ()}, "no samples"),
        ({"contents": ("x",)}, "contents has 1 values; expected 2"),
        ({"ids": ("a", "a")}, "sample id 'a' is there twice, in rows 0 and 1"),
        ({"ids": ("a", "")}, "row 1 has an empty id"),
        ({"ids": ("a", 3)}, "row 1: id is int"),
        ({"kind": "audio"}, "expected text or image"),
        ({"split": ("train", "val")}, "row 1 has the split 'val'; expected train, cal, test"),
        ({"split": ("train",)}, "split has 1 values"),
        ({"columns": {"n": [1]}}, "n has 1 values"),
        ({"concept_names": ("p", "p"), "concepts": np.zeros((2, 2))}, "concept name 'p' is there twice"),
        ({"concept_names": ("p",), "concepts": np.zeros((2, 2))}, r"concepts of shape \(2, 2\); expected \(2, 1\)"),
        ({"concept_names": ("p",), "concepts": np.array([[0], [7]])}, "none of 0, 1 and 255"),
        ({"contents": ("x", "\ud800")}, "row 1: text holds half of a surrogate pair"),
    ],
)
def test_table_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SampleTable(**{"ids": ("a", "b"), "kind": "text", "contents": ("x", "y"), **changes})


def test_labels_cannot_be_changed_in_place() -> None:
    labels = np.zeros((1, 1), np.uint8)
    table = SampleTable(ids=("a",), kind="text", contents=("x",), concept_names=("p",), concepts=labels)
    labels[0, 0] = 1
    assert table.concepts[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        table.concepts[0, 0] = 1


# --- wrong input ---


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "", {}, "table is empty"),
        ("t.csv", "text,label\n", {}, "table is empty"),
        ("t.csv", "text,label\na,1\nb\n", {}, r"t\.csv:3: row 1 has 1 fields, expected 2"),
        ("t.csv", 'text,label\n"a\nb",1\nc,2,3\n', {}, r"t\.csv:4: row 1 has 3 fields, expected 2"),
        ("t.csv", 'text,label\n"a,1\n', {}, r"t\.csv:2: row 0 cannot be read"),
        ("t.csv", "text,text\na,b\n", {}, "column 'text' is there twice"),
        ("t.csv", "a,b\n1,2\n", {}, r"no column named text, .*columns are: a, b"),
        ("t.csv", "text,b\n1,2\n", {"text": "words"}, r"t\.csv: no column 'words'; columns are: text, b"),
        ("t.csv", "text,b\n1,2\n", {"split": "fold"}, "no column 'fold'"),
        ("t.csv", "text,b\n1,2\n", {"text": "text", "image": "b"}, "exclude each other"),
        ("t.csv", "text,image\n1,2\n", {}, "say text= or image="),
        ("t.csv", "text,split\na,dev\n", {}, "row 0 has the split 'dev'; expected train, cal, test"),
        ("t.csv", "text,id\na,x\nb,x\n", {}, "sample id 'x' is there twice, in rows 0 and 1"),
        ("t.csv", "text,id\na,x\nb,\n", {}, "row 1: id 'id' is ''"),
        ("t.csv", "text\na\n", {"limit": 0}, "limit 0; expected a positive"),
        ("t.csv", "image\na.png\n", {}, r"row 0: no file .*a\.png; give the folder"),
        ("t.csv", "image\n../a.png\n", {"root": "."}, r"row 0: the path '\.\./a\.png' is empty or leaves"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', {}, r"t\.jsonl:2: row 1 is not JSON"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', {}, "row 1 is list, expected an object"),
        ("t.jsonl", '{"text": "a"}\n{"words": "b"}\n', {}, "row 1: 'text' is missing"),
        ("t.jsonl", '{"text": "a", "text": "b"}\n', {}, "key is given twice"),
        ("t.jsonl", '{"text": "a"}\n{"text": 3}\n', {}, "row 1: 'text' is int, expected a text"),
        ("t.jsonl", '{"text": "\\ud800"}\n', {}, "row 0: text holds half of a surrogate pair"),
        ("t.jsonl", '{"text": "a", "label": [1]}\n', {}, "row 0: label 'label' is list"),
        ("t.json", '{"text": "a"}', {}, "expected a list of objects, got dict"),
        ("t.json", "[", {}, r"not JSON .*\.jsonl"),
        ("t.parquet", "no parquet", {}, "not a sound Parquet file"),
        ("t.xlsx", "x", {}, "unknown format '.xlsx'; expected .csv"),
        ("t.csv.zst", "no zstd", {}, "cannot be read"),
        ("t.csv.gz", "no gzip", {}, "cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(SaestoreError, match=message) as caught:
        read_samples(path, **options)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"text,n\na,1\n\xff,2\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_samples(tmp_path / "t.csv")
    whole = gzip.compress(b"text,n\n" + b"a,1\n" * 5000)
    (tmp_path / "t.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(tmp_path / "t.csv.gz")
    if importlib.util.find_spec("zstandard"):
        import zstandard

        noise = np.random.default_rng(0).integers(0, 10**9, 20_000)
        whole = zstandard.compress(b"text\n" + b"\n".join(b"%d" % n for n in noise))
        (tmp_path / "t.csv.zst").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="cannot be read"):
            read_samples(tmp_path / "t.csv.zst")


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_samples(tmp_path / "absent.csv")
    with pytest.raises(MissingError, match="given as a list"):
        read_samples("It rains.")
    with pytest.raises(InputError, match="no images in this folder"):
        read_samples(tmp_path)
    with pytest.raises(InputError, match="no samples"):
        read_samples([])
    with pytest.raises(InputError, match="row 1: text is int"):
        read_samples(["a", 1])
    with pytest.raises(InputError, match="of type int"):
        read_samples(3)
    with pytest.raises(InputError, match="row 1: 'text' is missing"):
        read_samples(pd.DataFrame({"text": ["a", None]}))
    with pytest.raises(InputError, match="row 1: 'text' is missing"):
        read_samples(pd.DataFrame({"text": ["a", np.nan]}))
    with pytest.raises(InputError, match="DataFrame is empty"):
        read_samples(pd.DataFrame({"text": []}))
    with pytest.raises(InputError, match="column 'text' is there twice"):
        read_samples(pd.DataFrame([["a", "b"]], columns=["text", "text"]))
    with pytest.raises(InputError, match="no text as name"):
        read_samples(pd.DataFrame([["a", "b"]]))
    with pytest.raises(InputError, match="expected at most 1000 classes"):
        read_samples(pd.DataFrame({"text": ["x"] * 1001, "label": [f"c{i}" for i in range(1001)]}))
