"""The format page against what is written: a second reader, made from `docs/format.md` alone.

`Reader` knows json, raw bytes, and numcodecs for the two compressors that the page names; nothing of saestore and no
Zarr. Section numbers are those of the page.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from built_lake import LENGTHS, BuiltLake, build
from numcodecs import Blosc, Zstd
from small_lake import random_sae

from saestore.analysis.pruning import Criteria, prune
from saestore.indexing.stats import write_stats
from saestore.labels import write_labels
from saestore.layout import ModelKey
from saestore.rows import RowGroup
from saestore.saes.lake import write_sae
from saestore.samples import SampleTable
from saestore.storage import open_storage
from saestore.tables import write_samples

TREE = re.compile(
    r"saes/[^/]+|data/[^/]+/samples|data/[^/]+/[^/]+/positions|data/[^/]+/[^/]+/labels/[^/]+"
    r"|data/[^/]+/[^/]+/[^/]+/(activations|codes/[^/]+)/(token|patch|cls|mean|max|last)"
    r"|data/[^/]+/[^/]+/[^/]+/codes/[^/]+/(token|patch|cls|mean|max|last)"
    r"/(units/[0-9a-f]{16}/[0-9]+|stats/[0-9a-f]{16}/(all|train|cal|test|none)|views/[0-9a-f]{16}/[^/]+)"
)
KINDS = {
    "samples": "sample",
    "positions": "row",
    "labels": "row",
    "activations": "row",
    "codes": "row",
    "postings": "entry",
    "stats": "unit",
    "view": "unit",
    "sae": "unit",
}


def crc32c(content: bytes) -> int:
    """Castagnoli's polynomial, bit by bit."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def checked(content: bytes) -> bytes:
    body, checksum = content[:-4], content[-4:]
    assert crc32c(body) == int.from_bytes(checksum, "little")
    return body


def strings(content: bytes) -> np.ndarray:
    """`vlen-utf8`: a count, then length and bytes of each."""
    count, place, found = int.from_bytes(content[:4], "little"), 4, []
    for _ in range(count):
        stop = place + 4 + int.from_bytes(content[place : place + 4], "little")
        found.append(content[place + 4 : stop].decode())
        place = stop
    return np.array(found, dtype=object)


class Reader:
    """One row group, section 3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        document = json.loads((folder / "zarr.json").read_text())
        assert (document["zarr_format"], document["node_type"]) == (3, "group")
        self.own = document["attributes"]["saestore"]
        self.documents = document["consolidated_metadata"]["metadata"]
        self.grid = self.own["grid"]
        self.names = self.own["arrays"]
        self.n_shards = -(-self.grid["rows"] // self.grid["shard_rows"])

    def ledger(self) -> dict[int, list[list[int]]]:
        """3.2."""
        entries = {}
        for shard in range(self.n_shards):
            file = self.folder / f"ledger/c.{shard}.0.0"
            if file.exists():
                entry = np.frombuffer(checked(file.read_bytes()), "<u8").reshape(len(self.names), 4).tolist()
                assert all(row[1] > 0 and row[3] == int(self.own["run"], 16) for row in entry)
                entries[shard] = entry
        return entries

    def read(self, name: str) -> np.ndarray:
        """All written rows of an array, shard by shard; 3.1."""
        document, column = self.documents[name], self.names.index(name)
        shards = []
        for shard, entry in self.ledger().items():
            file = self.folder / name / "c" / "/".join([str(shard), *["0"] * (len(document["shape"]) - 1)])
            content = file.read_bytes()
            assert entry[column][:2] == [crc32c(content), len(content)]
            rows = self.shard(document, content)
            shards.append(rows[: self.grid["rows"] - shard * self.grid["shard_rows"]])
        found = np.concatenate(shards)
        if document["attributes"].get("saestore_dtype") == "bfloat16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    def shard(self, document: dict[str, Any], content: bytes) -> np.ndarray:
        (sharding,) = document["codecs"]
        options = sharding["configuration"]
        assert sharding["name"] == "sharding_indexed"
        assert options["index_location"] == "start"
        assert [codec["name"] for codec in options["index_codecs"]] == ["bytes", "crc32c"]
        assert document["chunk_grid"]["configuration"]["chunk_shape"][0] == self.grid["shard_rows"]
        assert options["chunk_shape"] == [self.grid["chunk_rows"], *document["shape"][1:]]
        assert options["codecs"][-1]["name"] == "crc32c"
        n_chunks = self.grid["shard_rows"] // self.grid["chunk_rows"]
        index = np.frombuffer(checked(content[: 16 * n_chunks + 4]), "<u8").reshape(n_chunks, 2).tolist()
        chunks = [self.chunk(document, options["codecs"], content[a : a + n]) for a, n in index if a != 2**64 - 1]
        return np.concatenate(chunks).reshape(-1, *document["shape"][1:])

    def chunk(self, document: dict[str, Any], codecs: list[dict[str, Any]], content: bytes) -> np.ndarray:
        names = [codec["name"] for codec in codecs]
        assert names[0] in ("bytes", "vlen-utf8")
        assert names[1:-1] in ([], ["zstd"], ["blosc"])
        raw = checked(content)
        if "zstd" in names:
            raw = Zstd().decode(raw)
        elif "blosc" in names:
            assert codecs[1]["configuration"]["cname"] == "zstd"
            raw = Blosc().decode(raw)
        if names[0] == "vlen-utf8":
            return strings(raw)
        return np.frombuffer(raw, np.dtype(document["data_type"]).newbyteorder("<"))

    def whole(self, name: str) -> np.ndarray:
        """An array off the axis."""
        document = self.documents[name]
        assert [codec["name"] for codec in document["codecs"]] == ["bytes", "zstd", "crc32c"]
        content = (self.folder / name / "c" / "/".join("0" * len(document["shape"]))).read_bytes()
        assert self.own["whole"][name] == {"bytes": len(content), "crc32c": crc32c(content)}
        raw = Zstd().decode(checked(content))
        return np.frombuffer(raw, np.dtype(document["data_type"])).reshape(document["shape"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltLake:
    built = build(str(tmp_path_factory.mktemp("format") / "lake"))
    for architecture in ("jumprelu", "topk"):
        config = {"k": 3} if architecture == "topk" else {}
        write_sae(built.storage, architecture, random_sae(architecture, d_in=6, d_sae=50, **config), quiet=True)
    write_stats(built.storage, list(built.lake.code_keys()), quiet=True)
    write_labels(built.storage, ModelKey("d", "m"), "by hand", position_labels(len(built.offsets)), ["cube", "a::é"])
    prune(built.codes(), name="active", criteria=Criteria(dead=1))
    prune(built.codes().view("active"), name="strong, few", criteria=Criteria(strength_percentile=50))
    return built


def position_labels(n: int) -> np.ndarray:
    return np.random.default_rng(n).choice(np.array([0, 0, 1, 255], np.uint8), size=(sum(LENGTHS), 2))


@pytest.fixture(scope="module")
def root(built: BuiltLake) -> Path:
    return Path(built.lake.url)


def groups(root: Path) -> dict[str, Reader]:
    """All row groups: the groups whose own document names a grid."""
    found = {}
    for file in sorted(root.rglob("zarr.json")):
        own = json.loads(file.read_text())["attributes"].get("saestore", {})
        if "grid" in own:
            found[file.parent.relative_to(root).as_posix()] = Reader(file.parent)
    return found


def test_the_root_and_the_tree(root: Path) -> None:
    assert json.loads((root / "zarr.json").read_text())["attributes"] == {"saestore": {"format": 1}}
    found = groups(root)
    assert len(found) == 23  # of two groups of codes each has postings and statistics over all and four splits
    assert {group.own["kind"] for group in found.values()} == set(KINDS)
    for path, group in found.items():
        assert TREE.fullmatch(path), path
        assert group.own["axis"] == KINDS[group.own["kind"]]
    for folder in {parent for path in found for parent in (root / path).parents if root in (parent, *parent.parents)}:
        assert json.loads((folder / "zarr.json").read_text())["node_type"] == "group"
    assert not list(root.rglob("*.partial"))


def test_every_file_is_one_of_the_page(root: Path) -> None:
    allowed = re.compile(r"(?:.*/)?zarr\.json|.*/c(?:/\d+)+|.*/ledger/c\.\d+\.0\.0")
    assert [file for file in root.rglob("*") if file.is_file() and not allowed.fullmatch(file.as_posix())] == []


def test_attributes_documents_and_hashes(root: Path, built: BuiltLake) -> None:
    for path, group in groups(root).items():
        own = group.own
        assert {"format", "kind", "axis", "grid", "arrays", "identity", "run", "whole"} <= set(own)
        assert own["format"] == 1
        assert set(group.documents) == {*group.names, "ledger", *own["whole"]}
        for name, document in group.documents.items():
            assert json.loads((root / path / name / "zarr.json").read_text()) == document
            assert document["fill_value"] == {"string": "", "bool": False}.get(document["data_type"], 0)
            if name in group.names:
                assert document["dimension_names"][0] == own["axis"]
        assert group.documents["ledger"]["attributes"]["run"] == own["run"]
        assert group.documents["ledger"]["dimension_names"] == ["shard", "array", "ledger_field"]
        shapes = [group.documents[name]["shape"] for name in group.names]
        plan = {name: own[name] for name in ("kind", "axis", "grid", "arrays", "identity")}
        types = {
            "dtypes": {name: group.documents[name]["data_type"] for name in group.names},
            "widths": [shape[1] if len(shape) == 2 else None for shape in shapes],
        }
        text = json.dumps([plan, types], sort_keys=True)
        assert own["run"] == hashlib.sha256(text.encode()).hexdigest()[:16]
        hashed = own["run"]
        for shard, entry in group.ledger().items():
            hashed += f"({shard}, [" + ", ".join(f"({crc}, {size})" for crc, size, _, _ in entry) + "])"
        stored = RowGroup.open(built.storage, path)
        assert stored.content_hash() == hashlib.sha256(hashed.encode()).hexdigest()


def test_samples_and_positions(root: Path, built: BuiltLake) -> None:
    samples = Reader(root / "data/d/samples")
    assert samples.own["content"] == "text"
    assert samples.own["columns"] == ["score", "source"]
    assert samples.own["concept_names"] == ["red", "cube"]
    assert samples.read("id").tolist() == list(built.table.ids)
    assert samples.read("text").tolist() == list(built.table.contents)
    assert samples.read("split").tolist() == list(built.table.split)
    assert samples.read("source").tolist() == built.table.columns["source"]
    np.testing.assert_array_equal(samples.read("score"), built.table.columns["score"])
    np.testing.assert_array_equal(samples.read("concepts"), built.table.concepts)
    positions = Reader(root / "data/d/m/positions")
    np.testing.assert_array_equal(positions.whole("offsets"), built.offsets)
    np.testing.assert_array_equal(positions.read("special"), built.special)
    np.testing.assert_array_equal(positions.read("token_id"), built.token_id)


@pytest.mark.parametrize("sample_type", ["token", "mean"])
def test_activations_and_codes(root: Path, built: BuiltLake, sample_type: str) -> None:
    known = built.tokens if sample_type == "token" else built.means
    activations = Reader(root / "data/d/m/layer_3/activations" / sample_type).read("activations")
    np.testing.assert_array_equal(activations, built.activations[: len(activations)])
    codes = Reader(root / "data/d/m/layer_3/codes/s" / sample_type)
    assert codes.documents["indices"]["data_type"] == "uint16"
    assert codes.documents["l0"]["data_type"] == "uint32"
    indices, values, l0 = codes.read("indices"), codes.read("values"), codes.read("l0")
    dense = np.zeros_like(known.dense)
    for row, (units, strengths) in enumerate(zip(indices, values, strict=True)):
        slots = list(zip(-strengths, units, strict=True))
        assert slots == sorted(slots)
        assert (units[strengths == 0] == 0).all()
        dense[row, units[strengths != 0]] = strengths[strengths != 0]
    np.testing.assert_array_equal(dense, known.dense)
    np.testing.assert_array_equal(l0, known.l0)
    flagged = sum(entry[codes.names.index("l0")][2] for entry in codes.ledger().values())
    assert flagged == (l0 > codes.own["k"]).sum()


@pytest.mark.parametrize("sample_type", ["token", "mean"])
def test_postings_and_statistics(root: Path, built: BuiltLake, sample_type: str) -> None:
    dense = built.tokens.dense if sample_type == "token" else built.means.dense
    folder = root / "data/d/m/layer_3/codes/s" / sample_type
    run = Reader(folder).own["run"]
    postings = Reader(folder / "units" / run / "0")
    indptr, gaps, values = postings.whole("indptr"), postings.read("row_gaps"), postings.read("values")
    assert postings.own["identity"] == {"codes": run, "first_row": 0, "stop_row": len(dense)}
    assert (indptr[0], indptr[-1]) == (0, len(gaps))
    for unit in range(dense.shape[1]):
        entries = slice(int(indptr[unit]), int(indptr[unit + 1]))
        rows = np.cumsum(gaps[entries])
        assert rows.tolist() == np.flatnonzero(dense[:, unit]).tolist()
        np.testing.assert_array_equal(values[entries], dense[rows, unit])
    counted = np.ones(len(dense), dtype=bool) if sample_type == "mean" else ~built.special
    sample = np.arange(len(dense)) if sample_type == "mean" else built.sample_of_row
    of_split = np.array(built.table.split)[sample]
    for split in ("all", "train", "cal", "test", "none"):
        stats = Reader(folder / "stats" / run / split)
        chosen = counted & ((split == "all") | (of_split == ("" if split == "none" else split)))
        assert (stats.own["rows"], stats.own["samples"]) == (chosen.sum(), len(np.unique(sample[chosen])))
        column = np.where(chosen[:, None], dense, 0)
        np.testing.assert_array_equal(stats.read("count"), np.count_nonzero(column, axis=0))
        np.testing.assert_allclose(stats.read("sum"), column.sum(axis=0), rtol=1e-6)
        np.testing.assert_allclose(stats.read("sum_squares"), (column**2).sum(axis=0), rtol=1e-6)
        for unit in range(dense.shape[1]):
            rows = np.flatnonzero(column[:, unit])
            active = np.sort(column[rows, unit])
            ends = (stats.read("first_row")[unit], stats.read("last_row")[unit])
            assert ends == ((rows[0], rows[-1]) if len(rows) else (-1, -1))
            assert stats.read("samples")[unit] == len(np.unique(sample[rows]))
            places = [math.ceil(len(rows) * q) - 1 for q in stats.own["percentiles"]]
            expected = active[places] if len(rows) else np.full(len(places), np.nan)
            np.testing.assert_array_equal(stats.read("percentiles")[unit], expected)
            extremes = [stats.read("min")[unit], stats.read("max")[unit]]
            np.testing.assert_array_equal(extremes, [active[0], active[-1]] if len(rows) else [np.nan] * 2)


def test_views(root: Path, built: BuiltLake) -> None:
    codes = root / "data/d/m/layer_3/codes/s/token"
    run = Reader(codes).own["run"]
    counted = (np.array(built.table.split)[built.sample_of_row] == "cal") & ~built.special
    dense = built.tokens.dense[counted]
    active, strong = (Reader(codes / "views" / run / name) for name in ("active", "strong, few"))
    count = np.count_nonzero(dense, axis=0)
    p99 = np.array(
        [np.quantile(column[column != 0], 0.99, method="inverted_cdf") for column in dense.T if column.any()]
    )
    units = active.read("unit")
    np.testing.assert_array_equal(units, np.flatnonzero(count))
    np.testing.assert_array_equal(active.read("count"), count[units])
    np.testing.assert_array_equal(active.read("fraction"), count[units] / len(dense))
    np.testing.assert_array_equal(active.read("p99"), p99)
    np.testing.assert_array_equal(strong.read("unit"), units[p99 >= np.percentile(p99, 50)])
    assert (active.own["parent"], active.own["lineage"]) == (None, [])
    assert (strong.own["parent"], strong.own["lineage"]) == ("active", ["active"])
    for view in (active, strong):
        content = b"".join(
            json.dumps([name, view.documents[name]["data_type"]]).encode() + view.read(name).tobytes()
            for name in view.names
        )
        assert view.own["identity"] == {
            "codes": run,
            "digest": hashlib.sha256(content).hexdigest(),
            "lineage": view.own["lineage"],
            "parameters": view.own["parameters"],
        }
        report = view.own["report"]
        assert report["active"] - sum(report["removed"].values()) == report["kept"] == len(view.read("unit"))


def test_labels_of_positions(root: Path, built: BuiltLake) -> None:
    labels, content = Reader(root / "data/d/m/labels/by hand"), position_labels(len(built.offsets))
    assert (labels.names, labels.own["concept_names"]) == (["concepts"], ["cube", "a::é"])
    assert labels.documents["concepts"]["dimension_names"] == ["row", "concept"]
    np.testing.assert_array_equal(labels.read("concepts"), content)
    names = json.dumps(["labels 1", ["cube", "a::é"]]).encode()
    assert labels.own["identity"] == {
        "positions": Reader(root / "data/d/m/positions").own["identity"]["digest"],
        "digest": hashlib.sha256(names + content.tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_saes(root: Path, architecture: str) -> None:
    arrays = random_sae(architecture, d_in=6, d_sae=50, **({"k": 3} if architecture == "topk" else {})).arrays
    sae = Reader(root / "saes" / architecture)
    assert sae.own["config"]["architecture"] == architecture
    vectors = {"b_enc", "decoder_norms"} | ({"threshold"} if architecture == "jumprelu" else set())
    assert set(sae.names) == {"W_enc", "W_dec"} | vectors
    for name in set(sae.names) - {"decoder_norms"}:
        np.testing.assert_array_equal(sae.read(name), arrays[name])
    np.testing.assert_allclose(sae.read("decoder_norms"), np.linalg.norm(arrays["W_dec"], axis=1), rtol=1e-6)
    np.testing.assert_array_equal(sae.whole("b_dec"), arrays["b_dec"])


def test_zarr_and_xarray_open_every_node(root: Path) -> None:
    for path, group in groups(root).items():
        plain = zarr.open_group(root / path, mode="r")
        dataset = xr.open_zarr(root / path)
        for name in group.names:
            stored = zarr.open_array(root / path / name, mode="r")[:]
            np.testing.assert_array_equal(plain[name][:], stored)
            np.testing.assert_array_equal(dataset[name].values, stored)
            if "saestore_dtype" not in group.documents[name]["attributes"]:
                np.testing.assert_array_equal(group.read(name), stored)
    assert set(zarr.open_group(root, mode="r").group_keys()) == {"data", "saes"}


def test_numbers_of_another_byte_order_are_stored_in_the_formats(tmp_path: Path) -> None:
    scores = np.array([1, 2, 3], dtype=">i8")
    table = SampleTable(ids=list("abc"), kind="text", contents=list("xyz"), columns={"score": scores})
    write_samples(open_storage(tmp_path), "d", table)
    np.testing.assert_array_equal(Reader(tmp_path / "data/d/samples").read("score"), [1, 2, 3])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "data/d/samples/score", mode="r")[:], [1, 2, 3])
