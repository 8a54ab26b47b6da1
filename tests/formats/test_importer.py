"""Files imported into a lake and read back from it, against torch's and numpy's own readers of the same files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built_lake import build, sample_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from small_lake import lake_files

from saestore.errors import ConflictError, HoleError, InputError, IntegrityError, MissingError
from saestore.formats import importer_activations, importer_codes
from saestore.formats.fingerprint import sampled_digest
from saestore.formats.importer import import_activations, import_codes
from saestore.formats.importer_activations import as_stored
from saestore.indexing.writer import index
from saestore.lake import Lake
from saestore.layout import ModelKey
from saestore.samples import SampleTable
from saestore.tables import Positions, Samples, write_positions, write_samples

ROWS, D_IN, K, D_SAE = 60, 7, 4, 100
RNG = np.random.default_rng(0)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PLACE: dict[str, Any] = {"dataset": "d", "model": "m", "layer": 3, "quiet": True}
CODES: dict[str, Any] = {**PLACE, "sae": "s", "d_sae": D_SAE}


def acts(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape, np.float32)).to(dtype)


def table(n: int) -> SampleTable:
    return SampleTable(ids=[f"t{place}" for place in range(n)], kind="text", contents=[f"Text {i}." for i in range(n)])


def saved(folder: Path, rows: Any, name: str = "acts.npy") -> Path:
    np.save(folder / name, np.asarray(rows))
    return folder / name


def codes_of(dense: np.ndarray[Any, Any], k: int = K, value: torch.dtype = torch.float32) -> dict[str, Any]:
    """What the scripts save of rows."""
    values, indices = torch.from_numpy(dense).topk(k)
    return {"indices": indices, "values": values.to(value), "format": "sparse_topk", "topk": k}


def dense_codes(n: int = ROWS, d_sae: int = D_SAE, active: int = K) -> np.ndarray[Any, Any]:
    """Rows with up to `active` units of few distinct values, so that there are ties and empty slots."""
    dense = np.zeros((n, d_sae), np.float32)
    for row in dense:
        units = RNG.choice(d_sae, RNG.integers(0, active + 1), replace=False)
        row[units] = RNG.choice([0.25, 0.5, 1.5, 3.0], units.size)
    return dense


def save_codes(folder: Path, codes: dict[str, Any], name: str = "codes.pt") -> Path:
    torch.save(codes, folder / name)
    return folder / name


def sae_in(lake: Lake, folder: Path, hook_name: str | None = None) -> None:
    """Import a random Gemma Scope SAE as `s`."""
    from saestore.saes.gemma_scope import open_gemma_scope
    from saestore.saes.lake import write_sae

    weights = {"W_enc": acts(D_IN, D_SAE), "W_dec": acts(D_SAE, D_IN), "b_dec": acts(D_IN), "b_enc": acts(D_SAE)}
    np.savez(folder / "params.npz", threshold=np.ones(D_SAE, "f4"), **{n: t.numpy() for n, t in weights.items()})
    write_sae(lake.storage, "s", open_gemma_scope(folder / "params.npz", hook_name=hook_name), quiet=True)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards and blocks of few rows."""
    monkeypatch.setattr("saestore.activations._SHARD_BYTES", 16 * D_IN * 4)
    monkeypatch.setattr("saestore.activations._CHUNK_ROWS", 4)
    monkeypatch.setattr(importer_activations, "_BLOCK_BYTES", 5 * D_IN * 4)
    monkeypatch.setattr(importer_codes, "_SHARD_ROWS", 16)
    monkeypatch.setattr(importer_codes, "CHUNK_ROWS", 4)
    monkeypatch.setattr(importer_codes, "_BLOCK_BYTES", 5 * 8 * K)


# ---------------------------------------------------------------- round trips


def write_pt(folder: Path, rows: torch.Tensor) -> Path:
    torch.save({"embeddings": rows, "model": "x"}, folder / "acts.pt")
    return folder / "acts.pt"


def write_safetensors(folder: Path, rows: torch.Tensor) -> Path:
    save_file({"acts": rows}, folder / "acts.safetensors")
    return folder / "acts.safetensors"


def write_npz(folder: Path, rows: torch.Tensor) -> Path:
    np.savez(folder / "acts.npz", acts=rows.numpy())
    return folder / "acts.npz"


def write_deflated_npz(folder: Path, rows: torch.Tensor) -> Path:
    np.savez_compressed(folder / "acts.npz", acts=rows.numpy())
    return folder / "acts.npz"


def write_npy(folder: Path, rows: torch.Tensor) -> Path:
    return saved(folder, rows.numpy())


def write_chunks(folder: Path, rows: torch.Tensor) -> Path:
    (folder / "chunks").mkdir()
    entries = []
    for place, (start, end) in enumerate(pairwise([0, 24, 36, ROWS])):
        torch.save(rows[start:end].clone(), folder / "chunks" / f"acts_chunk_{place}.pt")
        entries.append({"file": f"acts_chunk_{place}.pt", "start_idx": start, "end_idx": end})
    (folder / "chunks" / "acts_chunks_info.json").write_text(json.dumps({"chunks": entries, "total_samples": ROWS}))
    return folder / "chunks" / "acts.pt"


def read_chunks(path: Path) -> torch.Tensor:
    return torch.cat([torch.load(file, weights_only=True) for file in sorted(path.parent.glob("*_chunk_*.pt"))])


WRITERS: dict[str, tuple[Callable[[Path, torch.Tensor], Path], Callable[[Path], torch.Tensor]]] = {
    "pt": (write_pt, lambda path: torch.load(path, weights_only=True)["embeddings"]),
    "safetensors": (write_safetensors, lambda path: load_file(path)["acts"]),
    "npy": (write_npy, lambda path: torch.from_numpy(np.load(path))),
    "npz": (write_npz, lambda path: torch.from_numpy(np.load(path)["acts"])),
    "deflated npz": (write_deflated_npz, lambda path: torch.from_numpy(np.load(path)["acts"])),
    "chunks": (write_chunks, read_chunks),
}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in WRITERS for dtype in DTYPES if not (kind.endswith(("npy", "npz")) and dtype[0] == "b")],
)
def test_activations_of_every_format_keep_their_precision(lake: Lake, tmp_path: Path, kind: str, dtype: str) -> None:
    write, read = WRITERS[kind]
    path = write(tmp_path, acts(ROWS, D_IN, dtype=DTYPES[dtype]))
    done = import_activations(lake, path, **PLACE, sample_type="token", per_sample=5)
    stored = lake.activations("d")
    assert stored.group.grid.n_shards > 1
    assert (stored.dtype, stored.d_in, done.dtype, done.rows, done.imported_rows, done.samples) == (
        dtype, D_IN, dtype, ROWS, ROWS, 12,
    )  # fmt: skip
    np.testing.assert_array_equal(stored.read(), read(path).float().numpy())
    assert (stored.key.layer, stored.key.sample_type, stored.key.model) == ("layer_3", "token", "m")


def test_float64_is_narrowed_and_said(lake: Lake, tmp_path: Path) -> None:
    rows = RNG.standard_normal((6, D_IN))
    said: list[str] = []
    import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls", say=said.append)
    np.testing.assert_array_equal(lake.activations("d").read(), rows.astype(np.float32))
    assert lake.activations("d").dtype == "float32"
    assert any("float64" in line for line in said)


@pytest.mark.usefixtures("small_shards")
def test_a_3d_array_brings_its_positions(lake: Lake, tmp_path: Path) -> None:
    rows = acts(12, 5, D_IN)
    torch.save(rows, tmp_path / "acts.pt")
    import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="patch")
    np.testing.assert_array_equal(lake.activations("d").read().reshape(12, 5, D_IN), rows.numpy())
    positions = lake.positions("d")
    np.testing.assert_array_equal(positions.offsets, np.arange(0, 61, 5))
    assert not positions.special().any()
    samples = lake.samples("d")
    assert (samples.kind, list(samples.ids[:3]), set(samples.contents())) == ("image", ["0", "1", "2"], {""})


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversion_is_torchs(lake: Lake, tmp_path: Path, dtype: str) -> None:
    rows = acts(ROWS, D_IN)
    rows[0, 0], rows[9, 2] = float("nan"), float("-inf")
    torch.save(rows, tmp_path / "acts.pt")
    done = import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="mean", dtype=dtype)
    np.testing.assert_array_equal(lake.activations("d").read(), rows.to(DTYPES[dtype]).float().numpy())
    assert done.nonfinite == lake.activations("d").group.flagged("activations") == 2
    assert any("2 non-finite values" in group.note for group in lake.status())


@settings(max_examples=60, deadline=None)
@given(
    bits=hnp.arrays(np.uint32, (3, 4), elements=st.integers(0, 2**32 - 1)),
    source=st.sampled_from(list(DTYPES)),
    target=st.sampled_from(list(DTYPES)),
)
def test_any_bit_pattern_converts_as_in_torch(bits: np.ndarray[Any, Any], source: str, target: str) -> None:
    if source == "float32":
        given_rows: np.ndarray[Any, Any] = bits.view(np.float32)
        tensor = torch.from_numpy(given_rows)
    else:
        given_rows = bits.astype(np.uint16)
        tensor = torch.from_numpy(given_rows.view(np.int16)).view(DTYPES[source])
        given_rows = given_rows if source == "bfloat16" else given_rows.view(np.float16)
    wanted = tensor.to(DTYPES[target])
    if bool((tensor.isfinite() & ~wanted.isfinite()).any()):
        with pytest.raises(InputError, match="does not fit"):
            as_stored(given_rows, source, target)
        return
    found = as_stored(given_rows, source, target)
    exact = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16) if target == "bfloat16" else found
    np.testing.assert_array_equal(torch.as_tensor(exact).float().numpy(), wanted.float().numpy())


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("value", list(DTYPES))
@pytest.mark.parametrize("d_sae", [D_SAE, 70_000])
def test_codes_read_as_the_dense_rows_they_stand_for(lake: Lake, tmp_path: Path, value: str, d_sae: int) -> None:
    dense = dense_codes(d_sae=d_sae)
    path = save_codes(tmp_path, codes_of(dense, value=DTYPES[value]))
    options = {**CODES, "d_sae": d_sae}
    done = import_codes(lake, path, **options, sample_type="token", offsets=np.array([0, 7, 7, 40, ROWS]))
    codes = lake.codes("d")
    assert codes.group.grid.n_shards > 1
    np.testing.assert_array_equal(codes.dense(), dense)
    stored = codes.rows(slice(None))
    np.testing.assert_array_equal(stored.l0, (dense > 0).sum(axis=1))
    assert codes.group.read("indices").dtype == (np.uint16 if d_sae == D_SAE else np.uint32)
    assert codes.group.attributes["dtype"] == value == done.dtype
    assert (codes.group.attributes["l0_exact"], codes.group.attributes["signed"]) == (False, False)
    assert (codes.quality["explained_variance"], codes.quality["dead_units"], codes.quality["rows"]) == (None, None, 60)
    assert codes.quality["l0"] == pytest.approx((dense > 0).sum(axis=1).mean())
    index(lake.storage, [codes.key], quiet=True)
    top = codes.top([int(stored.indices[0, 0])], 3)[0]
    np.testing.assert_array_equal(
        np.sort(top.values)[::-1], np.sort(dense[:, top.unit][dense[:, top.unit] > 0])[::-1][:3]
    )
    states = {group.kind: (group.state, group.rows, group.note) for group in lake.status()}
    assert states["codes"] == ("done", ROWS, "l0 counts filled slots, the imported file holds no true number")
    assert states["positions"][:2] == states["codes"][:2]


def test_chunked_codes_say_d_sae_themselves(lake: Lake, tmp_path: Path) -> None:
    dense = dense_codes()
    codes = codes_of(dense)
    entries = []
    for place, (start, end) in enumerate(pairwise([0, 25, ROWS])):
        part = {**codes, "indices": codes["indices"][start:end].clone(), "values": codes["values"][start:end].clone()}
        save_codes(tmp_path, part, f"c_chunk_{place}.pt")
        entries.append({"file": f"c_chunk_{place}.pt", "n_samples": end - start})
    info = {"chunks": entries, "total_samples": ROWS, "n_features": D_SAE, "topk": K}
    (tmp_path / "c_chunks_info.json").write_text(json.dumps(info))
    import_codes(lake, tmp_path / "c_chunks_info.json", **PLACE, sae="s", sample_type="max")
    np.testing.assert_array_equal(lake.codes("d").dense(), dense)
    assert lake.codes("d").d_sae == D_SAE


def test_signed_codes(lake: Lake, tmp_path: Path) -> None:
    codes = {"indices": torch.tensor([[5, 9, 0], [2, 3, 4]]), "values": torch.tensor([[-1.0, 2, 0], [-3, -3, 1]])}
    path = save_codes(tmp_path, codes)
    with pytest.raises(InputError, match="negative"):
        import_codes(lake, path, **CODES, sample_type="cls")
    assert lake.datasets() == []
    import_codes(lake, path, **CODES, sample_type="cls", negatives="keep")
    stored = lake.codes("d")
    np.testing.assert_array_equal(stored.group.read("indices"), [[9, 5, 0], [2, 3, 4]])
    np.testing.assert_array_equal(stored.group.read("values"), [[2, -1, 0], [-3, -3, 1]])
    assert stored.group.attributes["signed"]


def test_d_sae_from_the_sae_in_the_lake(lake: Lake, tmp_path: Path) -> None:
    sae_in(lake, tmp_path)
    path = save_codes(tmp_path, codes_of(dense_codes()))
    with pytest.raises(InputError, match=r"90 units.*has 100"):
        import_codes(lake, path, **{**CODES, "d_sae": 90}, sample_type="cls")
    import_codes(lake, path, **PLACE, sae="s", sample_type="cls")
    assert lake.codes("d").d_sae == D_SAE


def test_every_storage(lake_url: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = lake_url
    lake = Lake.create(url, storage_options=options)
    rows, dense = acts(ROWS, D_IN), dense_codes()
    axis: dict[str, Any] = {"sample_type": "token", "per_sample": 5}
    import_activations(lake, saved(tmp_path, rows), **PLACE, **axis)
    import_codes(lake, save_codes(tmp_path, codes_of(dense)), **CODES, **axis)
    again = Lake.open(url, storage_options=options)
    np.testing.assert_array_equal(again.activations("d").read(), rows.numpy())
    np.testing.assert_array_equal(again.codes("d").dense(), dense)


# ------------------------------------------------------- samples and positions


def test_samples_given_or_stored_are_used(lake: Lake, tmp_path: Path) -> None:
    path = saved(tmp_path, acts(6, D_IN))
    import_activations(lake, path, **PLACE, sample_type="cls", samples=table(6))
    assert list(lake.samples("d").contents()) == [f"Text {i}." for i in range(6)]
    write_samples(lake.storage, "e", table(6))
    import_activations(lake, path, **{**PLACE, "dataset": "e"}, sample_type="mean")
    assert lake.samples("e").digest == table(6).digest()
    with pytest.raises(ConflictError, match="digest"):
        import_activations(
            lake, path, **PLACE, sample_type="last", samples=SampleTable(list("abcdef"), "text", [""] * 6)
        )


def test_offsets_from_files_and_from_the_stored_axis(lake: Lake, tmp_path: Path) -> None:
    offsets = np.array([0, 4, 4, ROWS])
    np.save(tmp_path / "offsets.npy", offsets.astype(np.int32))
    torch.save(torch.from_numpy(offsets), tmp_path / "offsets.pt")
    rows = acts(ROWS, D_IN)
    path = saved(tmp_path, rows)
    said: list[str] = []
    for model, given_offsets in (
        ("m", tmp_path / "offsets.npy"),
        ("m2", str(tmp_path / "offsets.pt")),
        ("m3", offsets),
    ):
        place = {**PLACE, "model": model}
        import_activations(lake, path, **place, sample_type="token", offsets=given_offsets, say=said.append)
        np.testing.assert_array_equal(lake.positions("d", model).offsets, offsets)
    assert sum("special tokens is not known" in line for line in said) == 3
    # Another layer finds the axis in the lake, and says nothing new.
    import_activations(lake, path, **{**PLACE, "layer": 4}, sample_type="token", say=said.append)
    import_codes(lake, save_codes(tmp_path, codes_of(dense_codes())), **CODES, sample_type="token", say=said.append)
    assert sum("special tokens is not known" in line for line in said) == 3
    np.testing.assert_array_equal(lake.codes("d").sample_of(np.array([0, 3, 4, 59])), [0, 0, 2, 2])


def extracted_axis(lake: Lake, offsets: np.ndarray[Any, Any]) -> Positions:
    """A position axis as another writer makes it, with known special tokens."""
    special = np.zeros(int(offsets[-1]), bool)
    special[::5] = True
    write_samples(lake.storage, "d", table(len(offsets) - 1))
    return write_positions(
        lake.storage, ModelKey("d", "m"), offsets=offsets, arrays={"special": special}, digest="0" * 64, attributes={}
    )


def test_an_extracted_axis_is_kept(lake: Lake, tmp_path: Path) -> None:
    positions = extracted_axis(lake, np.arange(0, ROWS + 1, 5))
    path = saved(tmp_path, acts(ROWS, D_IN))
    for layer, options in ((3, {}), (4, {"per_sample": 5}), (5, {"offsets": np.arange(0, ROWS + 1, 5)})):
        import_activations(lake, path, **{**PLACE, "layer": layer}, sample_type="token", **options)
        key = lake.activations("d", layer=layer).group
        assert key.attributes["identity"]["positions"] == positions.digest
    assert lake.positions("d").special()[::5].all()
    with pytest.raises(ConflictError, match=r"12 samples of 60 positions cut in another way"):
        import_activations(lake, path, **{**PLACE, "layer": 6}, sample_type="token", offsets=np.r_[0:56:5, 58, 60])
    short = saved(tmp_path, acts(ROWS - 5, D_IN), "short.npy")
    with pytest.raises(InputError, match=r"holds 55 rows, the position axis of data/d/m has 60"):
        import_activations(lake, short, **{**PLACE, "layer": 6}, sample_type="token")


def test_an_unfinished_axis_of_another_writer_is_an_error(lake: Lake, tmp_path: Path) -> None:
    extracted_axis(lake, np.arange(0, ROWS + 1, 5))
    for entry in (tmp_path / "lake" / "data/d/m/positions/ledger").glob("c.*"):
        entry.unlink()
    with pytest.raises(HoleError, match="positions"):
        import_activations(lake, saved(tmp_path, acts(ROWS, D_IN)), **PLACE, sample_type="token")


def test_a_placeholder_that_was_cut_short_is_completed(lake: Lake, tmp_path: Path) -> None:
    path = saved(tmp_path, acts(6, D_IN))
    import_activations(lake, path, **PLACE, sample_type="cls")
    for entry in (tmp_path / "lake" / "data/d/samples/ledger").glob("c.*"):
        entry.unlink()
    import_activations(lake, path, **PLACE, sample_type="cls")
    assert list(Samples.open(lake.storage, "d").ids) == list("012345")


def test_encode_finds_imported_activations_by_their_hook_name(lake: Lake, tmp_path: Path) -> None:
    from saestore.encoding.writer import encode

    sae_in(lake, tmp_path, hook_name="blocks.3.hook_resid_post")
    path = saved(tmp_path, acts(6, D_IN))
    import_activations(lake, path, **PLACE, sample_type="cls", hook_name="blocks.3.hook_resid_post")
    import_activations(lake, path, **{**PLACE, "layer": 4}, sample_type="cls", hook_name="blocks.4.hook_resid_post")
    planned = encode(lake, "s", sample_type="cls", device="cpu", dry_run=True, quiet=True)
    assert [result.key.layer for result in planned] == ["layer_3"]
    with pytest.raises(InputError, match=r"trained on blocks\.3.* holds blocks\.4"):
        encode(lake, "s", layers=[4], sample_type="cls", quiet=True)


# ------------------------------------------------------------------ appended


def named(first: int, n: int) -> SampleTable:
    names = [f"t{place}" for place in range(first, first + n)]
    return SampleTable(ids=names, kind="text", contents=[f"Text {name}." for name in names])


@pytest.mark.parametrize("given_table", ["new", "all"])
def test_rows_of_new_samples_are_a_part(lake: Lake, tmp_path: Path, given_table: str) -> None:
    x = acts(ROWS, D_IN)
    dense = dense_codes()
    cuts = [(0, 30), (30, 50), (50, 60)]
    place = {**PLACE, "sample_type": "token", "per_sample": 5}
    for part, (first, stop) in enumerate(cuts):
        rows = saved(tmp_path, x[first:stop], f"{part}.npy")
        own, everything = named(first // 5, (stop - first) // 5), named(0, stop // 5)
        samples = own if given_table == "new" or not part else everything
        codes = save_codes(tmp_path, codes_of(dense[first:stop]), f"{part}.pt")
        for _ in range(2):  # the second time there is nothing to do
            result = import_activations(lake, rows, **place, samples=samples, append=part > 0)
            assert (result.key.part, result.rows) == (part, stop - first)
            result = import_codes(
                lake, codes, **CODES, sample_type="token", per_sample=5, samples=samples, append=part > 0
            )
            assert (result.key.part, result.rows) == (part, stop - first)
    # Another layer of the second part finds its samples; that of the first is not there.
    for part in (0, 1):
        result = import_activations(
            lake,
            tmp_path / f"{part}.npy",
            **{**place, "layer": 4},
            samples=named(6 * part, 6 - 2 * part),
            append=part > 0,
        )
        assert result.key.part == part
    np.testing.assert_array_equal(lake.activations("d", layer=3).read(), x.numpy())
    np.testing.assert_array_equal(lake.codes("d").dense(), dense)
    assert lake.samples("d").ids.tolist() == [f"t{number}" for number in range(12)]
    np.testing.assert_array_equal(lake.positions("d").offsets, np.arange(0, 61, 5))
    index(lake.storage, list(lake.code_keys()), quiet=True)
    unit = lake.codes("d").unit(7)
    assert unit.rows.tolist() == np.flatnonzero(dense[:, 7]).tolist()
    with pytest.raises(HoleError, match="rows 50 to 59 of data/d/m/layer_4/activations/token"):
        lake.activations("d", layer=4).read()


def test_appended_rows_without_a_table_get_numbers(lake: Lake, tmp_path: Path) -> None:
    told: list[str] = []
    x = acts(12, D_IN)
    for part, (first, stop) in enumerate([(0, 6), (6, 9), (9, 12)]):
        path = saved(tmp_path, x[first:stop], f"{part}.npy")
        result = import_activations(lake, path, **PLACE, sample_type="cls", append=part > 0, say=told.append)
        assert (result.key.part, result.imported_rows) == (part, stop - first)
        assert import_activations(lake, path, **PLACE, sample_type="cls", append=part > 0).imported_rows == 0
    assert lake.samples("d").ids.tolist() == [str(number) for number in range(12)]
    np.testing.assert_array_equal(lake.activations("d").read(), x.numpy())
    assert any("was given no table for its part 1: it now has 3 samples" in line for line in told)


def test_a_numbered_part_that_was_cut_short_is_completed(lake: Lake, tmp_path: Path) -> None:
    import_activations(lake, saved(tmp_path, acts(6, D_IN), "0.npy"), **PLACE, sample_type="cls")
    more = saved(tmp_path, acts(3, D_IN), "1.npy")
    import_activations(lake, more, **PLACE, sample_type="cls", append=True)
    for entry in (tmp_path / "lake" / "data/d/parts/1/samples/ledger").glob("c.*"):
        entry.unlink()
    assert import_activations(lake, more, **PLACE, sample_type="cls", append=True).key.part == 1
    assert lake.samples("d").ids.tolist() == [str(number) for number in range(9)]


def test_what_cannot_be_appended_is_refused_before_anything_is_written(lake: Lake, tmp_path: Path) -> None:
    path = saved(tmp_path, acts(6, D_IN))
    with pytest.raises(MissingError, match="no dataset 'd' to append to; import the first rows without append"):
        import_activations(lake, path, **PLACE, sample_type="cls", append=True)
    import_activations(lake, path, **PLACE, sample_type="cls", samples=named(0, 6))
    before = lake_files(tmp_path / "lake")
    other = saved(tmp_path, acts(3, D_IN), "other.npy")
    with pytest.raises(
        MissingError, match=r"nothing at data/d/m/layer_4/.* to append to; import the rows of the first"
    ):
        import_activations(lake, other, **{**PLACE, "layer": 4}, sample_type="cls", append=True, samples=named(6, 3))
    more = saved(tmp_path, acts(3, D_IN), "more.npy")
    with pytest.raises(InputError, match=r"dataset 'd' has 6 samples; .* or append them \(--append\)"):
        import_activations(lake, more, **PLACE, sample_type="cls")
    with pytest.raises(ConflictError, match="sample 't5' is in dataset 'd' already"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=named(5, 3))
    with pytest.raises(ConflictError, match=r"has dtype 'float32' and what is to be appended 'float16'"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=named(6, 3), dtype="float16")
    wide = saved(tmp_path, acts(3, D_IN + 1), "wide.npy")
    with pytest.raises(ConflictError, match=r"has d in 7 and what is to be appended 8"):
        import_activations(lake, wide, **PLACE, sample_type="cls", append=True, samples=named(6, 3))
    with pytest.raises(InputError, match="the table of samples has 2 samples"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=named(6, 2))
    table = SampleTable(ids=["a", "b", "c"], kind="text", contents=["A", "B", "C"], columns={"x": [1, 2, 3]})
    with pytest.raises(ConflictError, match=r"columns \[\] and what is to be appended \['x'\]"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=table)
    assert lake_files(tmp_path / "lake") == before


def test_samples_that_readers_would_refuse_are_refused_before_anything_is_written(lake: Lake, tmp_path: Path) -> None:
    def scored(first: int, score: list[Any]) -> SampleTable:
        return replace(named(first, 2), columns={"score": np.array(score)})

    import_activations(lake, saved(tmp_path, acts(2, D_IN)), **PLACE, sample_type="cls", samples=scored(0, [1, 2]))
    before = lake_files(tmp_path / "lake")
    more = saved(tmp_path, acts(2, D_IN), "more.npy")
    with pytest.raises(ConflictError, match="has type of score 'int64' and what is to be appended 'float64'"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=scored(2, [0.5, 2]))
    assert lake_files(tmp_path / "lake") == before
    import_activations(lake, more, **PLACE, sample_type="cls", append=True, samples=scored(2, [3, 4]))
    assert lake.samples("d").column("score").tolist() == [1, 2, 3, 4]


def test_numbered_samples_are_of_the_kind_of_the_dataset(lake: Lake, tmp_path: Path) -> None:
    import_activations(lake, saved(tmp_path, acts(4, D_IN), "0.npy"), **PLACE, sample_type="patch", per_sample=2)
    import_activations(lake, saved(tmp_path, acts(2, D_IN), "1.npy"), **PLACE, sample_type="cls")
    more = saved(tmp_path, acts(1, D_IN), "2.npy")
    assert import_activations(lake, more, **PLACE, sample_type="cls", append=True).key.part == 1
    assert (lake.samples("d").kind, lake.samples("d").ids.tolist()) == ("image", ["0", "1", "2"])
    whole = saved(tmp_path, acts(3, D_IN), "3.npy")
    with pytest.raises(InputError, match="part 0 of the 2 parts, which are imported one by one, of dataset 'd' has 2"):
        import_activations(lake, whole, **{**PLACE, "layer": 4}, sample_type="cls")


def test_numbers_of_samples_that_are_taken_are_refused(lake: Lake, tmp_path: Path) -> None:
    table = SampleTable(ids=["2", "3"], kind="text", contents=["A", "B"])
    import_activations(lake, saved(tmp_path, acts(2, D_IN)), **PLACE, sample_type="cls", samples=table)
    more = saved(tmp_path, acts(2, D_IN), "more.npy")
    with pytest.raises(ConflictError, match="sample '2' is in dataset 'd' already; give a table"):
        import_activations(lake, more, **PLACE, sample_type="cls", append=True)
    assert lake.samples("d").ids.tolist() == ["2", "3"]


def test_rows_do_not_follow_positions_that_were_extracted(tmp_path: Path) -> None:
    """Extracted positions have tokens and imported ones have none: readers would refuse them together."""
    built = build(str(tmp_path / "lake"))
    before = lake_files(tmp_path / "lake")
    more = saved(tmp_path, acts(6, 6), "more.npy")
    place = {**PLACE, "sample_type": "token", "per_sample": 3, "dtype": "bfloat16"}
    with pytest.raises(ConflictError, match=r"m/positions has arrays \['special', 'token_id'\] and what is to be app"):
        import_activations(built.lake, more, **place, samples=sample_table(9)[7:], append=True)
    assert lake_files(tmp_path / "lake") == before
    np.testing.assert_array_equal(built.lake.activations("d", sample_type="token").read(), built.activations)


def test_codes_follow_those_that_were_encoded(tmp_path: Path) -> None:
    built = build(str(tmp_path / "lake"), cuts=(3,))
    dense = dense_codes(2, 50)
    place = {**CODES, "d_sae": 50, "sample_type": "mean", "samples": sample_table(9)[7:], "append": True}
    path = save_codes(tmp_path, codes_of(dense, value=torch.float16))
    with pytest.raises(ConflictError, match=r"codes/s/mean has signed None and what is to be appended False"):
        import_codes(built.lake, path, **place)
    for group in ("", "parts/1/"):
        document = tmp_path / f"lake/data/d/{group}m/layer_3/codes/s/mean/zarr.json"
        content = json.loads(document.read_text())
        content["attributes"]["saestore"]["signed"] = False
        document.write_text(json.dumps(content))
    assert import_codes(built.lake, path, **place).key.part == 2
    codes = built.codes("mean")
    np.testing.assert_array_equal(codes.dense(), np.concatenate([built.means.dense, dense]))
    assert codes.group.attributes["l0_exact"] is False


def test_nothing_is_appended_behind_a_part_that_was_cut_short(lake: Lake, tmp_path: Path) -> None:
    """Readers would not find it, and nothing would say so."""
    place = {**PLACE, "sample_type": "token", "per_sample": 2}
    import_activations(lake, saved(tmp_path, acts(6, D_IN), "0.npy"), **place)
    write_samples(lake.storage, "d", SampleTable(ids=["3", "4"], kind="text", contents=["", ""]), 1)
    before = lake_files(tmp_path / "lake")
    with pytest.raises(ConflictError, match=r"part 2 of .* only behind part 1, and data/d/parts/1/m/positions is miss"):
        import_activations(lake, saved(tmp_path, acts(6, D_IN), "2.npy"), **place, append=True)
    assert lake_files(tmp_path / "lake") == before
    for part, rows in ((1, 4), (2, 6)):
        result = import_activations(lake, saved(tmp_path, acts(rows, D_IN), f"{part}.npy"), **place, append=True)
        assert result.key.part == part
    assert lake.activations("d").n_rows == len(lake.positions("d")) == 16


# --------------------------------------------------------------- going on


def test_again_does_nothing_and_another_file_conflicts(lake: Lake, tmp_path: Path) -> None:
    rows = acts(6, D_IN).numpy()
    import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls")
    moved = (tmp_path / "acts.npy").rename(tmp_path / "moved.npy")
    assert import_activations(lake, moved, **PLACE, sample_type="cls").imported_rows == 0
    with pytest.raises(ConflictError, match="dtype"):
        import_activations(lake, moved, **PLACE, sample_type="cls", dtype="float16")
    rows[3, 3] += 1
    with pytest.raises(ConflictError, match="source"):
        import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls")
    np.testing.assert_array_equal(lake.activations("d").read()[:3], rows[:3])


KILLED = """
import os, sys
import saestore.activations, saestore.rows
from saestore.formats import importer_activations, importer_codes
from saestore.formats.importer import import_activations, import_codes
from saestore.lake import Lake

what, file, url, shards = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
saestore.activations._SHARD_BYTES, importer_codes._SHARD_ROWS = 224, 16
write, written = saestore.rows.RowGroup.write_shard, []

def counted(group, shard, arrays, **options):
    if group.attributes["kind"] in ("activations", "codes"):
        written.append(shard)
        if len(written) > shards:
            # In the middle of a shard: its arrays are there, its ledger entry is not.
            put = group.storage.put
            group.storage.put = lambda key, content: os.kill(os.getpid(), 9) if "ledger" in key else put(key, content)
    return write(group, shard, arrays, **options)

saestore.rows.RowGroup.write_shard = counted
place = dict(dataset="d", model="m", layer=3, sample_type="token", per_sample=5, quiet=True)
if what == "codes":
    done = import_codes(Lake.create(url), file, sae="s", d_sae=100, **place)
else:
    done = import_activations(Lake.create(url), file, dtype="float16", **place)
print(done.imported_rows)
"""


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is sent")
@pytest.mark.parametrize("what", ["activations", "codes"])
def test_killed_and_run_again_gives_the_bytes_of_one_run(tmp_path: Path, what: str) -> None:
    if what == "codes":
        path = save_codes(tmp_path, codes_of(dense_codes()))
    else:
        path = saved(tmp_path, acts(ROWS, D_IN))

    def run(name: str, shards: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, what, str(path), str(tmp_path / name), str(shards)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run("whole", 1000)
    assert whole.stdout.strip() == str(ROWS), whole.stderr
    killed = run("killed", 2)
    assert killed.returncode == -9, killed.stderr
    partial = [group for group in Lake.open(tmp_path / "killed").status() if group.kind == what]
    assert partial[0].state == "partial"
    assert 0 < partial[0].written_rows < ROWS
    resumed = run("killed", 1000)
    assert resumed.stdout.strip() == str(ROWS - partial[0].written_rows), resumed.stderr
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


def test_tasks_can_be_sent_to_another_process(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dense = acts(ROWS, D_IN), dense_codes()
    tasks: list[Any] = []
    for module in (importer_activations, importer_codes):
        monkeypatch.setattr(module, "run_tasks", lambda given_tasks, **options: tasks.extend(given_tasks))
    import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls")
    import_codes(lake, save_codes(tmp_path, codes_of(dense)), **CODES, sample_type="cls")
    with pytest.raises(HoleError):
        lake.activations("d").read()
    for task in tasks:
        done: list[int] = []
        copy = pickle.loads(pickle.dumps(task))
        copy.run(done.append)
        assert sum(done) == task.size == ROWS
    np.testing.assert_array_equal(lake.activations("d").read(), rows.numpy())
    np.testing.assert_array_equal(lake.codes("d").dense(), dense)


def test_the_digest_knows_contents_and_not_names(tmp_path: Path) -> None:
    content = RNG.integers(0, 256, 70_000 * 100, np.uint8).tobytes()
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(content)
    second.write_bytes(content)
    assert sampled_digest([first]) == sampled_digest([second])
    for place in (0, len(content) - 1):
        harmed = bytearray(content)
        harmed[place] ^= 1
        second.write_bytes(bytes(harmed))
        assert sampled_digest([first]) != sampled_digest([second])
    second.write_bytes(content + b"\0")
    assert sampled_digest([first]) != sampled_digest([second])
    assert sampled_digest([first, second]) != sampled_digest([second, first])


def test_a_pt_file_is_known_by_all_of_its_bytes(tmp_path: Path) -> None:
    rows = acts(4000, 500)
    torch.save(rows, tmp_path / "a.pt")
    before = sampled_digest([tmp_path / "a.pt"])
    for row in (1, 1999, 2345):
        changed = rows.clone()
        changed[row, 77] += 1
        torch.save(changed, tmp_path / "a.pt")
        assert sampled_digest([tmp_path / "a.pt"]) != before


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_type": "token"}, InputError, r"60 rows of tokens.*give per_sample .* offsets"),
        ({"sample_type": "patch", "per_sample": 7}, InputError, r"60 rows.*whole samples of 7"),
        ({"sample_type": "token", "per_sample": 0}, InputError, "per_sample is 0"),
        ({"sample_type": "token", "per_sample": 5, "offsets": [0, 60]}, InputError, "both given"),
        ({"sample_type": "token", "per_sample": 5, "samples": table(11)}, InputError, r"60 rows, 11 samples.*make 55"),
        ({"sample_type": "token", "samples": table(12)}, InputError, "per_sample 5 would fit 12"),
        ({"sample_type": "token", "offsets": [0, 60], "samples": table(2)}, InputError, "of 1 samples.* has 2 samples"),
        ({"sample_type": "token", "offsets": [0, 59]}, InputError, "60 rows, the offsets end at 59"),
        ({"sample_type": "token", "offsets": [0, 61]}, InputError, "60 rows, the offsets end at 61"),
        ({"sample_type": "token", "offsets": [1, 60]}, InputError, "do not rise from 0"),
        ({"sample_type": "token", "offsets": [0, 9, 5, 60]}, InputError, "do not rise from 0"),
        ({"sample_type": "token", "offsets": [0.0, 60.0]}, InputError, "float64"),
        ({"sample_type": "token", "offsets": [[0, 60]]}, InputError, r"\(1, 2\)"),
        ({"sample_type": "token", "offsets": "nowhere.npy"}, MissingError, "no file"),
        ({"sample_type": "cls", "per_sample": 5}, InputError, "a whole sample"),
        ({"sample_type": "cls", "offsets": [0, 60]}, InputError, "a whole sample"),
        ({"sample_type": "cls", "samples": table(59)}, InputError, r"60 rows.*59 samples"),
        ({"sample_type": "word"}, InputError, "sample type 'word' is unknown"),
        ({"sample_type": "cls", "dataset": "../x"}, InputError, "dataset name"),
        ({"sample_type": "cls", "layer": "a/b"}, InputError, "layer name"),
    ],
)
@pytest.mark.parametrize("what", ["activations", "codes"])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    lake: Lake, tmp_path: Path, what: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = dict(options)
    if isinstance(options.get("offsets"), list):
        options["offsets"] = np.array(options["offsets"])
    path = save_codes(tmp_path, codes_of(dense_codes())) if what == "codes" else saved(tmp_path, acts(ROWS, D_IN))
    run: Callable[..., Any] = import_codes if what == "codes" else import_activations
    with pytest.raises(error, match=message):
        run(lake, path, **{**(CODES if what == "codes" else PLACE), **options})
    assert content_of(tmp_path / "lake").keys() == {"zarr.json"}


def test_a_stored_dataset_of_other_samples(lake: Lake, tmp_path: Path) -> None:
    write_samples(lake.storage, "d", table(59))
    with pytest.raises(InputError, match=r"60 rows.*dataset 'd' has 59 samples"):
        import_activations(lake, saved(tmp_path, acts(ROWS, D_IN)), **PLACE, sample_type="mean")


def test_positions_of_a_3d_array_are_its_own(lake: Lake, tmp_path: Path) -> None:
    torch.save(acts(12, 5, D_IN), tmp_path / "acts.pt")
    for options in ({"per_sample": 6}, {"offsets": np.array([0, 60])}):
        with pytest.raises(InputError, match="3-D"):
            import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="token", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="5 positions for each of 12 samples"):
        import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="cls")


@pytest.mark.parametrize("kind", ["list", "object", "dict", "safetensors"])
def test_offsets_that_cannot_be_read(lake: Lake, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "offsets"
    if kind == "list":
        torch.save([0, 60], path)
    elif kind == "object":
        np.save(tmp_path / "offsets.npy", np.array([{}, 60], object))
        path = tmp_path / "offsets.npy"
    elif kind == "dict":
        torch.save({"a": Path("x")}, path)
    else:
        save_file({"a": torch.tensor([0, 60])}, path)
    with pytest.raises(InputError, match="the offsets"):
        import_activations(lake, saved(tmp_path, acts(ROWS, D_IN)), **PLACE, sample_type="token", offsets=path)


def test_values_that_do_not_fit_are_refused_before_anything_is_written(lake: Lake, tmp_path: Path) -> None:
    rows = acts(ROWS, D_IN).numpy()
    rows[50, 1] = -70_000
    with pytest.raises(InputError, match=r"magnitude 70000 does not fit float16.*store bfloat16 or float32"):
        import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls", dtype="float16")
    rows[50, 1] = 3.4e38
    with pytest.raises(InputError, match="does not fit bfloat16"):
        import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls", dtype="bfloat16")
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        import_activations(lake, saved(tmp_path, rows), **PLACE, sample_type="cls", dtype="int8")
    assert lake.datasets() == []


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_only_a_file_without_any_finite_value_is_refused(lake: Lake, tmp_path: Path, dtype: str) -> None:
    rows = torch.full((ROWS, D_IN), float("nan"), dtype=DTYPES[dtype])
    rows[20:30] = float("inf")
    torch.save(rows, tmp_path / "acts.pt")
    with pytest.raises(InputError, match="none of its 60 x 7 values is finite"):
        import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="cls")
    assert lake.datasets() == []
    rows[-1, -1] = 1
    torch.save(rows, tmp_path / "acts.pt")
    done = import_activations(lake, tmp_path / "acts.pt", **PLACE, sample_type="cls")
    assert done.nonfinite == ROWS * D_IN - 1


def test_bad_codes(lake: Lake, tmp_path: Path) -> None:
    codes = codes_of(dense_codes())
    path = save_codes(tmp_path, codes)
    with pytest.raises(InputError, match=r"the lake has no SAE 's'; give d_sae"):
        import_codes(lake, path, **PLACE, sae="s", sample_type="cls")
    with pytest.raises(InputError, match="SAE name"):
        import_codes(lake, path, **{**CODES, "sae": "a/b"}, sample_type="cls")
    codes["indices"][40, 0], codes["values"][40, 0] = D_SAE, 9.0
    with pytest.raises(InputError, match="row 40 holds a unit outside 0 to 99"):
        import_codes(lake, save_codes(tmp_path, codes), **CODES, sample_type="cls")
    with pytest.raises(InputError, match="import it as codes"):
        import_activations(lake, path, **PLACE, sample_type="cls")


def test_a_file_that_changes_while_it_is_imported(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, acts(ROWS, D_IN))
    run = importer_activations.run_tasks

    def changed_first(tasks: Any, **options: Any) -> None:
        saved(tmp_path, acts(ROWS + 1, D_IN))
        run(tasks, **options)

    monkeypatch.setattr(importer_activations, "run_tasks", changed_first)
    with pytest.raises(IntegrityError, match="changed while it was read"):
        import_activations(lake, path, **PLACE, sample_type="cls")
    assert not lake.activations("d").group.is_complete
