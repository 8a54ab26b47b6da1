"""Shards: zarr writes what we read, zarr reads what we write."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from saestore.errors import IntegrityError
from saestore.shards import ShardedArray, checksum_bytes, decode, encode, encode_shard
from saestore.storage import open_storage

CODECS = {
    "bitshuffle": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()),
    "zstd": (ZstdCodec(level=3), Crc32cCodec()),
    "none": (Crc32cCodec(),),
}


def write_with_zarr(folder: Path, content: np.ndarray[Any, Any], dtype: str, shard: int, chunk: int, codec: str) -> Any:
    tail = content.shape[1:]
    array = zarr.create_array(
        zarr.storage.LocalStore(folder / "a"),
        shape=content.shape,
        chunks=(chunk, *tail),
        shards={"shape": (shard, *tail), "index_location": "start"},
        dtype=dtype,
        compressors=CODECS[codec],
        config={"write_empty_chunks": True},
    )
    array[:] = content
    return json.loads((folder / "a/zarr.json").read_text())


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 50),
    chunk=st.integers(1, 9),
    chunks_per_shard=st.integers(1, 5),
    codec=st.sampled_from(sorted(CODECS)),
    dtype=st.sampled_from(["uint16", "float16", "float32", "string"]),
    width=st.sampled_from([None, 3]),
)
def test_agreement_with_zarr(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    chunk: int,
    chunks_per_shard: int,
    codec: str,
    dtype: str,
    width: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("a")
    rng = np.random.default_rng(n)
    shape = (n,) if width is None else (n, width)
    numbers = rng.integers(0, 1000, shape)
    content = numbers.astype(str).astype(object) if dtype == "string" else numbers.astype(dtype)
    shard = chunk * chunks_per_shard
    document = write_with_zarr(folder, content, dtype, shard, chunk, codec)
    np.testing.assert_array_equal(ShardedArray(open_storage(folder), "a", document).read(0, n), content)

    ours = folder / "a/c"
    for number, start in enumerate(range(0, n, shard)):
        key = "/".join([str(number), *["0"] * (content.ndim - 1)])
        (ours / key).write_bytes(encode_shard(document, content[start : start + shard]))
    np.testing.assert_array_equal(zarr.open_array(folder / "a", mode="r")[:], content)


@pytest.mark.parametrize("rows", [(3, 8189), (8192, 16384), (8191, 16390)])
def test_every_flipped_bit_is_noticed(tmp_path: Path, rows: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(0, 16384, (32768, 8)).astype("uint16")
    document = write_with_zarr(tmp_path, content, "uint16", 32768, 8192, "bitshuffle")
    path = tmp_path / "a/c/0/0"
    original = path.read_bytes()
    for _ in range(40):
        place = int(rng.integers(len(original)))
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        array = ShardedArray(open_storage(tmp_path), "a", document)
        try:
            read = array.read(*rows)
        except IntegrityError:
            continue
        np.testing.assert_array_equal(read, content[slice(*rows)])
        with pytest.raises(IntegrityError):
            array.read(0, 32768)


def test_a_lost_shard_is_not_zeros(tmp_path: Path) -> None:
    content = np.ones((10, 2), dtype="float32")
    document = write_with_zarr(tmp_path, content, "float32", 4, 2, "none")
    (tmp_path / "a/c/1/0").unlink()
    assert (zarr.open_array(tmp_path / "a", mode="r")[4:8] == 0).all(), "zarr's own reader fills the hole"
    with pytest.raises(IntegrityError, match="c/1/0"):
        ShardedArray(open_storage(tmp_path), "a", document).read(3, 5)


def test_a_forked_process_reads_and_writes(tmp_path: Path) -> None:
    content = np.arange(400, dtype="float32").reshape(200, 2)
    document = write_with_zarr(tmp_path, content, "float32", 10, 2, "bitshuffle")
    array = ShardedArray(open_storage(tmp_path), "a", document)
    np.testing.assert_array_equal(array.read(0, 200), content)  # starts the pool's threads, which a fork does not copy

    def child() -> None:
        np.testing.assert_array_equal(array.read(0, 200), content)
        assert encode_shard(document, content[:10]) == (tmp_path / "a/c/0/0").read_bytes()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    stuck = process.is_alive()
    process.kill()
    assert not stuck, "the child waits for threads that it does not have"
    assert process.exitcode == 0


def test_an_object_of_another_size_than_the_ledger_says(tmp_path: Path) -> None:
    content = np.arange(20, dtype="uint16")
    document = write_with_zarr(tmp_path, content, "uint16", 10, 5, "none")
    size = (tmp_path / "a/c/1").stat().st_size
    storage = open_storage(tmp_path)
    np.testing.assert_array_equal(ShardedArray(storage, "a", document, lambda shard: size).read(0, 20), content)
    with pytest.raises(IntegrityError, match=r"c/1 .* not the object that its ledger entry is about"):
        ShardedArray(storage, "a", document, lambda shard: size + shard).read(0, 20)


def test_a_chunk_that_a_shard_leaves_out_is_not_zeros(tmp_path: Path) -> None:
    array = zarr.create_array(
        zarr.storage.LocalStore(tmp_path / "a"),
        shape=(20,),
        chunks=(5,),
        shards={"shape": (20,), "index_location": "start"},  # type: ignore[arg-type]
        dtype="uint16",
        compressors=CODECS["none"],
        config={"write_empty_chunks": False},
    )
    array[10:] = 7
    ours = ShardedArray(open_storage(tmp_path), "a", json.loads((tmp_path / "a/zarr.json").read_text()))
    with pytest.raises(IntegrityError, match="no chunk for some of its rows"):
        ours.read(8, 12)


def test_a_chunk_that_lies_about_its_length(tmp_path: Path) -> None:
    content = np.zeros(64, dtype="uint16")
    document = write_with_zarr(tmp_path, content, "uint16", 64, 64, "bitshuffle")
    codecs = document["codecs"][0]["configuration"]["codecs"]
    body = bytearray(encode(content, codecs)[:-4])
    body[12] += 1  # the compressed size in the header of blosc
    with pytest.raises(ValueError, match="another length"):
        decode(memoryview(bytes(body) + checksum_bytes(bytes(body))), codecs)
    # A sound chunk of too few rows is damage too, not numpy's error.
    short = encode(content[:32], codecs)
    index = np.array([[20, len(short)]], dtype="<u8").tobytes()
    (tmp_path / "a/c/0").write_bytes(index + checksum_bytes(index) + short)
    with pytest.raises(IntegrityError, match="chunk 0"):
        ShardedArray(open_storage(tmp_path), "a", document).read(0, 3)
