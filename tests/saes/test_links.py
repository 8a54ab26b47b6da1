"""SAEs whose matrices stay in their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sae_lens", reason="sae-lens is not installed: linked SAEs have no oracle")

from saestore.encoding.writer import encode
from saestore.errors import InputError, IntegrityError, MissingError
from saestore.lake import Lake
from saestore.saes import links, open_sae, stored
from saestore.saes.lake import open_lake_sae, write_sae
from saestore.saes.links import follow
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, make_sae, oracle
from tests.small_lake import HOOK, add_activations, mirror_sae


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


def as_saelens(sae: Any, folder: Path) -> Path:
    sae.save_model(folder)
    return folder / "sae_weights.safetensors"


def as_gemma_scope(sae: Any, folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "params.npz", **{name: p.detach().numpy() for name, p in sae.named_parameters()})
    return folder / "params.npz"


def in_fortran_order(sae: Any, folder: Path) -> Path:
    folder.mkdir()
    arrays = {name: np.asfortranarray(p.detach().numpy()) for name, p in sae.named_parameters()}
    np.savez(folder / "params.npz", **arrays)
    return folder / "params.npz"


def with_a_factor(sae: Any, folder: Path) -> Path:
    """The SAE of the embedding, which is stored for inputs of another scale."""
    folder = folder / "gemma-scope-2b-pt-res/embedding"
    folder.mkdir(parents=True)
    root = D_IN**0.5
    arrays = {name: p.detach().numpy() for name, p in sae.named_parameters()}
    changed = {"W_enc": arrays["W_enc"] * np.float32(root), "W_dec": arrays["W_dec"] / np.float32(root)}
    np.savez(folder / "params.npz", **arrays | changed)
    return folder / "params.npz"


def in_bfloat16(sae: Any, folder: Path) -> Path:
    for parameter in sae.parameters():
        parameter.data = parameter.data.bfloat16()
    file = as_saelens(sae, folder)
    for parameter in sae.parameters():
        parameter.data = parameter.data.float()
    return file


@pytest.mark.parametrize("layout", [as_saelens, as_gemma_scope, in_fortran_order, with_a_factor, in_bfloat16])
def test_linked_weights_encode_as_copied_ones_and_take_no_room(
    lake: Lake, tmp_path: Path, x: np.ndarray, layout: Any
) -> None:
    sae = make_sae("jumprelu", apply_b_dec_to_input=False)
    file = layout(sae, tmp_path / "sae")
    source = open_sae(file, hook_name=HOOK)
    write_sae(lake.storage, "linked", source, link=True)
    write_sae(lake.storage, "copied", source)
    check_source(open_lake_sae(lake.storage, "linked"), x, *oracle(sae, x))
    assert sorted(path.name for path in (tmp_path / "lake/saes/linked").iterdir() if path.is_dir()) == [
        *("b_dec", "b_enc", "decoder_norms", "ledger", "threshold")
    ]
    add_activations(lake, "d", x)
    linked, copied = encode(lake, ["linked", "copied"], dtype="float32", force=True, quiet=True)
    assert linked.encoded_rows == copied.encoded_rows == len(x)
    np.testing.assert_array_equal(lake.codes("d", sae="linked").dense(), lake.codes("d", sae="copied").dense())
    np.testing.assert_array_equal(lake.codes("d", sae="linked").decode(), lake.codes("d", sae="copied").decode())


def test_a_file_that_moved_or_changed_is_refused(lake: Lake, tmp_path: Path, x: np.ndarray) -> None:
    file = as_saelens(make_sae("topk"), tmp_path / "sae")
    write_sae(lake.storage, "s", open_sae(file), link=True)
    add_activations(lake, "d", x)
    os.utime(file, ns=(1, 1))
    with pytest.raises(IntegrityError, match=r"sae_weights\.safetensors.*was changed since it was linked"):
        encode(lake, "s", quiet=True)
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"sae_weights\.safetensors.*is not there; bring it back"):
        encode(lake, "s", quiet=True)
    assert list(lake.code_keys()) == []


def test_weights_in_no_file_cannot_be_linked(lake: Lake) -> None:
    with pytest.raises(InputError, match="not in local files"):
        write_sae(lake.storage, "s", mirror_sae(4), link=True)


def test_a_file_that_is_replaced_while_it_is_open_is_refused(lake: Lake, tmp_path: Path) -> None:
    file = as_saelens(make_sae("topk"), tmp_path / "sae")
    source = open_sae(file)
    write_sae(lake.storage, "s", source, link=True)
    linked = open_lake_sae(lake.storage, "s")
    linked.rows("W_enc", slice(0, 2))
    other = as_saelens(make_sae("topk", seed=1), tmp_path / "other")
    assert other.stat().st_size == file.stat().st_size
    os.utime(other, ns=(1, 1))
    os.replace(other, file)
    for weights in (linked, source):
        for name in ("W_enc", "W_dec"):
            with pytest.raises(IntegrityError, match=r"sae_weights\.safetensors was changed or replaced"):
                weights.rows(name, slice(0, 2))
    with pytest.raises(IntegrityError, match="was changed or replaced"):
        write_sae(lake.storage, "t", source, link=True)


def test_files_of_the_cache_folder_are_not_linked(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path / "cache"))
    arrays = {name: p.detach().numpy() for name, p in make_sae("jumprelu").named_parameters()}
    np.savez_compressed(tmp_path / "params.npz", **arrays)
    with pytest.raises(InputError, match="cache folder may be emptied; import the SAE without a link") as raised:
        write_sae(lake.storage, "s", open_sae(tmp_path / "params.npz"), link=True)
    assert "\n" not in str(raised.value)
    assert lake.saes() == []


@pytest.mark.parametrize(
    "change",
    [
        {"path": None},
        {"path": 3},
        {"dtype": "<i4"},
        {"dtype": "|O"},
        {"dtype": ["<f4"]},
        {"shape": [D_IN, D_SAE + 1]},
        {"shape": [D_SAE, D_IN]},
        {"shape": [D_IN * D_SAE]},
        {"shape": "wide"},
        {"offset": -4},
        {"offset": 1 << 40},
        {"offset": 1.5},
        {"bytes": "many"},
        {"reversed_axes": 0},
        {"factor": float("inf")},
        {"factor": "1"},
    ],
)
def test_damaged_links_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    link = open_sae(as_saelens(make_sae("topk"), tmp_path / "sae")).matrices["W_enc"].link()
    assert follow("W_enc", link, shape=(D_SAE, D_IN), sae="s").link() == link
    damaged = {key: value for key, value in (link | change).items() if value is not None}
    with pytest.raises(IntegrityError, match="the link of SAE s to its W_enc is damaged"):
        follow("W_enc", damaged, shape=(D_SAE, D_IN), sae="s")


@pytest.mark.parametrize("page_bytes", [0, links._READ_BYTES, 1 << 30])
@pytest.mark.parametrize("layout", [as_saelens, in_fortran_order])
def test_many_single_units_are_read_whichever_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, page_bytes: int
) -> None:
    sae = make_sae("jumprelu", d_in=9, d_sae=500)
    weights = open_sae(layout(sae, tmp_path / "sae"))
    monkeypatch.setattr(links, "_READ_BYTES", page_bytes)
    monkeypatch.setattr(stored, "_BUFFER_BYTES", 4 * 500 * 4)  # blocks of four rows, the last one short
    units = np.flatnonzero(np.random.default_rng(3).random(500) < 0.3)
    for name, matrix in (("W_enc", sae.W_enc.T), ("W_dec", sae.W_dec)):
        np.testing.assert_array_equal(weights.take(name, units), matrix.detach().numpy()[units])
