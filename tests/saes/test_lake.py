"""SAEs inside a lake: every number of the source, in the source's own precision, and nothing read twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from safetensors.torch import load_file, save_file

from saestore.errors import ConflictError, HoleError, IntegrityError, MissingError
from saestore.lake import Lake
from saestore.saes import lake as sae_lake
from saestore.saes import open_sae
from saestore.saes.lake import open_lake_sae, write_sae
from saestore.storage import open_storage
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_OUT, make_sae, oracle
from tests.small_lake import ArrayWeights, mirror_sae, random_sae


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {"normalize_activations": "constant_norm_rescale"}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("gated", {"normalize_activations": "layer_norm"}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("abstopk", {}),
        ("skip_transcoder", {"normalize_activations": "layer_norm"}),
        ("jumprelu_skip_transcoder", {}),
    ],
)
def test_an_imported_sae_is_a_source_like_any_other(
    lake: Lake, tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, architecture: str, options: dict
) -> None:
    monkeypatch.setattr(sae_lake, "_SHARD_BYTES", 20 * 16 * 4)  # four shards, the last one short
    monkeypatch.setattr(sae_lake, "_CHUNK_BYTES", 5 * 16 * 4)
    sae = make_sae(architecture, **options)
    sae.save_model(tmp_path / "sae")
    source = open_sae(tmp_path / "sae")
    written = write_sae(lake.storage, "s", source)
    for weights in (written, open_lake_sae(open_storage(lake.storage.url), "s")):
        check_source(weights, x, *oracle(sae, x))
        assert weights.config == source.config
        assert weights.content_hash() == source.content_hash()
        np.testing.assert_array_equal(weights.vector("decoder_norms"), source.vector("decoder_norms"))
        assert weights.name == "s"
    assert lake.saes() == ["s"]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float32", "float32"), ("float16", "float16"), ("bfloat16", "uint16"), ("float64", "float32")],
)
def test_matrices_keep_the_precision_of_the_source(lake: Lake, tmp_path: Path, dtype: str, stored: str) -> None:
    sae = make_sae("jumprelu", dtype=dtype)
    sae.save_model(tmp_path / "sae")
    weights = write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
    np.testing.assert_array_equal(weights.rows("W_enc", slice(None)), sae.W_enc.T.detach().float().numpy())
    np.testing.assert_array_equal(weights.rows("W_dec", slice(None)), sae.W_dec.detach().float().numpy())
    np.testing.assert_array_equal(weights.vector("threshold"), sae.threshold.detach().float().numpy())
    # Any Zarr reader opens the group.
    group = zarr.open_group(f"{lake.storage.url}/saes/s", mode="r")
    array = group["W_enc"]
    assert isinstance(array, zarr.Array)
    assert (array.shape, str(array.dtype)) == ((64, 16), stored)
    assert array.metadata.dimension_names == ("unit", "d_in")
    if stored != "uint16":
        np.testing.assert_array_equal(np.asarray(array[:], np.float32), sae.W_enc.T.detach().float().numpy())


def test_matrices_of_two_precisions_lose_nothing(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "sae" / "sae_weights.safetensors"
    make_sae("standard").save_model(file.parent)
    tensors = load_file(file)
    save_file({**tensors, "W_enc": tensors["W_enc"].bfloat16()}, file)
    source = open_sae(file.parent)
    write_sae(lake.storage, "s", source, quiet=True)
    for matrix in ("W_enc", "W_dec"):
        stored = open_lake_sae(lake.storage, "s").rows(matrix, slice(None))
        np.testing.assert_array_equal(stored, source.rows(matrix, slice(None)))


def test_axes_of_the_skip_connection_are_named(lake: Lake, tmp_path: Path) -> None:
    sae = make_sae("skip_transcoder")
    sae.save_model(tmp_path / "sae")
    weights = write_sae(lake.storage, "s", open_sae(tmp_path / "sae"), quiet=True)
    group = xr.open_zarr(f"{lake.storage.url}/saes/s", consolidated=False)
    assert group["W_skip"].sizes == {"d_out": D_OUT, "d_in": D_IN}
    assert group["b_dec"].sizes == {"d_out": D_OUT}
    np.testing.assert_array_equal(group["W_skip"], sae.W_skip.detach())
    before = weights.vector("W_skip")
    weights.vector("W_skip")[:] = 0  # the caller's own
    np.testing.assert_array_equal(weights.vector("W_skip"), before)


def test_a_second_import_reads_and_writes_no_matrix(lake: Lake, tmp_path: Path) -> None:
    sae = mirror_sae(16)
    write_sae(lake.storage, "s", sae)
    folder = Path(lake.storage.url)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sae.rows_read.clear()
    hashed = ArrayWeights(sae.config, sae.arrays)
    hashed.content_hash()
    hashed.vector("decoder_norms")
    write_sae(lake.storage, "s", sae)
    assert len(sae.rows_read) == len(hashed.rows_read)  # to know it, and not to copy it
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_sae_of_that_name(lake: Lake) -> None:
    write_sae(lake.storage, "s", random_sae("jumprelu", d_in=16, d_sae=64))
    with pytest.raises(ConflictError, match=r"saes/s .*hash.*under another name"):
        write_sae(lake.storage, "s", random_sae("jumprelu", d_in=16, d_sae=64, seed=1))
    with pytest.raises(ConflictError, match=r"hook_name 'blocks\.3\.hook_resid_post' and was given with 'other'"):
        write_sae(lake.storage, "s", random_sae("jumprelu", d_in=16, d_sae=64, hook_name="other"))
    assert open_lake_sae(lake.storage, "s").config.hook_name == "blocks.3.hook_resid_post"


def test_what_is_not_whole_is_not_read(lake: Lake) -> None:
    with pytest.raises(MissingError, match=r"no SAE 's'; .*saestore sae import"):
        open_lake_sae(lake.storage, "s")
    sae = random_sae("jumprelu", d_in=16, d_sae=64)
    weights = write_sae(lake.storage, "s", sae)
    folder = Path(lake.storage.url) / "saes/s"
    data = folder / "W_enc/c/0/0"
    content = bytearray(data.read_bytes())
    content[-100] ^= 1
    data.write_bytes(content)
    with pytest.raises(IntegrityError, match="W_enc"):
        open_lake_sae(lake.storage, "s").rows("W_enc", slice(None))
    data.unlink()
    with pytest.raises(IntegrityError, match="lost"):
        weights.rows("W_enc", slice(0, 1))
    (folder / "ledger/c.0.0.0").unlink()
    with pytest.raises(HoleError, match="saes/s"):
        open_lake_sae(lake.storage, "s")
    write_sae(lake.storage, "s", sae)  # goes on where it stopped
    np.testing.assert_array_equal(open_lake_sae(lake.storage, "s").rows("W_enc", slice(3, 9)), sae.arrays["W_enc"][3:9])
