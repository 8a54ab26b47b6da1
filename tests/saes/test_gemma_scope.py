from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saestore.errors import InputError, IntegrityError, MissingError, SaestoreError
from saestore.saes import open_sae
from saestore.saes.gemma_scope import open_gemma_scope
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_OUT, Hub, assert_same_place, load_with_saelens, make_sae, oracle

FOLDER = "google/gemma-scope-9b-pt-res/layer_34/average_l0_114"


def write_npz(folder: Path, sae: Any, *, save: Any = np.savez, **changes: Any) -> Path:
    arrays = {name: tensor.detach().numpy() for name, tensor in sae.named_parameters()} | changes
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "params.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "params.npz"


@pytest.fixture
def sae() -> Any:
    return make_sae("jumprelu", apply_b_dec_to_input=False)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_gemma_scope_file_encodes_as_saelens(tmp_path: Path, x: np.ndarray, sae: Any, save: Any, order: str) -> None:
    path = write_npz(
        tmp_path / FOLDER,
        sae,
        save=save,
        W_enc=np.asarray(sae.W_enc.detach().numpy(), order=order),
        W_dec=np.asarray(sae.W_dec.detach().numpy(), order=order),
    )
    weights = open_sae(path, cache=tmp_path / "cache")
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.model_name == "gemma-2-9b"
    assert weights.config.hook_name == "blocks.34.hook_resid_post"
    assert (tmp_path / "cache").exists() == (save is np.savez_compressed)
    sae.save_model(tmp_path / "saelens")
    assert weights.content_hash() == open_sae(tmp_path / "saelens").content_hash()


def test_matches_saelens_own_loader(tmp_path: Path, x: np.ndarray, sae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAELens' loader, pointed at the same file, gives the same configuration and codes."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    for repo, folder in (
        ("google/gemma-scope-2b-it-mlp", "layer_7/average_l0_9"),
        ("google/gemma-scope-27b-pt-att", "layer_2/average_l0_9"),
        ("google/gemma-scope-2b-pt-res", "embedding/average_l0_9"),
    ):
        path = write_npz(tmp_path / repo / folder, sae)
        monkeypatch.setattr(loaders, "hf_hub_download", lambda path=path, **_: str(path))

        def tiny(repo_id: str, folder_name: str, device: str, force_download: bool, cfg_overrides: dict) -> Any:
            shape = {"d_in": D_IN, "d_sae": sae.cfg.d_sae}
            return loaders.gemma_2_sae_huggingface_loader(repo_id, folder_name, device, False, cfg_overrides | shape)

        theirs = SAE.from_pretrained(repo, folder, converter=tiny)
        theirs.turn_off_forward_pass_hook_z_reshaping()
        weights = open_sae(path)
        check_source(weights, x, *oracle(theirs, x))
        for name in ("hook_name", "model_name", "prepend_bos", "context_size"):
            assert getattr(weights.config, name) == theirs.cfg.metadata[name]
        assert weights.config.reshape_activations == theirs.cfg.reshape_activations


def test_transcoder_is_read_as_saelens_reads_it(hub: Hub, x: np.ndarray) -> None:
    repo, folder = "google/gemma-scope-2b-pt-transcoders", "layer_7/width_16k/average_l0_76"
    sae = make_sae("jumprelu_transcoder", d_sae=16_384)
    path = write_npz(hub.root / repo / folder, sae)
    shape = {"d_in": D_IN, "d_out": D_OUT, "d_sae": 16_384}
    theirs = load_with_saelens(repo, folder, "gemma_2_transcoder", **shape)
    weights = open_sae(path)
    check_source(weights, x, *oracle(theirs, x))
    assert weights.config.architecture == "jumprelu_transcoder"
    assert_same_place(weights.config, theirs, "hook_name_out")
    assert open_sae(path, hook_name="mine").config.hook_name_out == "blocks.7.hook_mlp_out"


def test_transcoder_of_an_unknown_layer(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "gemma-scope-2b-pt-transcoders", make_sae("jumprelu_transcoder"))
    config = open_sae(path).config
    assert (config.architecture, config.d_out, config.hook_name, config.hook_name_out) == (
        "jumprelu_transcoder",
        D_OUT,
        None,
        None,
    )


def test_lower_case_names_and_unit_scaling_factor(tmp_path: Path, x: np.ndarray, sae: Any) -> None:
    ones = np.ones(sae.cfg.d_sae, np.float32)
    w_enc, w_dec = sae.W_enc.detach().numpy(), sae.W_dec.detach().numpy()
    path = write_npz(tmp_path, sae, W_enc=None, W_dec=None, w_enc=w_enc, w_dec=w_dec, scaling_factor=ones)
    weights = open_gemma_scope(path, hook_name="blocks.1.hook_resid_post", model_name="gemma-2-2b")
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.hook_name == "blocks.1.hook_resid_post"
    with pytest.raises(InputError, match="scaling_factor"):
        open_sae(write_npz(tmp_path, sae, scaling_factor=ones * 2))


def test_nothing_is_guessed_where_the_folders_say_nothing(tmp_path: Path, sae: Any) -> None:
    config = open_sae(write_npz(tmp_path / "mine", sae).parent).config
    assert (config.hook_name, config.model_name, config.apply_b_dec_to_input) == (None, None, False)


def test_deflated_members_are_unpacked_once(tmp_path: Path, sae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "x", sae, save=np.savez_compressed)
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path / "cache"))
    first = open_sae(path)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    assert len(times) == 5
    assert open_sae(path).content_hash() == first.content_hash()
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_cache_that_cannot_be_written(tmp_path: Path, sae: Any) -> None:
    path = write_npz(tmp_path, sae, save=np.savez_compressed)
    (tmp_path / "file").touch()
    with pytest.raises(SaestoreError, match="SAESTORE_CACHE"):
        open_sae(path, cache=tmp_path / "file")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_file(tmp_path: Path, sae: Any, save: Any) -> None:
    path = write_npz(tmp_path, sae, save=save)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"params\.npz"):
        open_sae(path, cache=tmp_path / "cache")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            archive.writestr(f"{name}.npy", b"no array")
    with pytest.raises(IntegrityError, match=r"params\.npz"):
        open_sae(path)


def test_flipped_bit_in_a_deflated_member(tmp_path: Path, sae: Any) -> None:
    path = write_npz(tmp_path, sae, save=np.savez_compressed)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"params\.npz"):
        open_sae(path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "lacks threshold"),
        ({"W_enc": np.zeros(16, np.float32)}, r"expected \(d_in, d_sae\)"),
        ({"W_dec": np.zeros(64, np.float32)}, r"expected \(d_sae, d_out\)"),
        ({"W_dec": np.zeros((64, 8), np.float32)}, r"W_dec .* \(64, 8\)"),
        ({"b_enc": np.zeros(64, np.int64)}, "int64"),
        ({"b_enc": np.zeros(64, object)}, "b_enc"),
    ],
)
def test_wrong_arrays(tmp_path: Path, sae: Any, changes: dict, message: str) -> None:
    with pytest.raises((InputError, IntegrityError), match=message):
        open_sae(write_npz(tmp_path, sae, **changes))


def test_folder_named_for_another_width(tmp_path: Path, sae: Any) -> None:
    with pytest.raises(InputError, match="width_16k"):
        open_sae(write_npz(tmp_path / "layer_3" / "width_16k", sae))
    with pytest.raises(MissingError, match=r"params\.npz"):
        open_gemma_scope(tmp_path / "nowhere")


def test_folders_of_the_user_say_nothing_about_the_weights(tmp_path: Path, x: np.ndarray, sae: Any) -> None:
    """Only a folder `embedding` inside the repository means the SAE of the embedding."""
    above = write_npz(tmp_path / "embedding" / FOLDER, sae)
    check_source(open_sae(above), x, *oracle(sae, x))
    assert open_sae(above).config.hook_name == "blocks.34.hook_resid_post"
    check_source(open_sae(write_npz(tmp_path / "embedding/mine", sae)), x, *oracle(sae, x))
    inside = open_sae(write_npz(tmp_path / "google/gemma-scope-9b-pt-res/embedding/average_l0_9", sae))
    assert inside.config.hook_name == "hook_embed"
    np.testing.assert_allclose(inside.rows("W_enc", slice(None)), sae.W_enc.detach().T / D_IN**0.5, rtol=1e-6)


def test_an_unrelated_array_of_whole_numbers_is_left_alone(tmp_path: Path, x: np.ndarray, sae: Any) -> None:
    path = write_npz(tmp_path, sae, steps=np.arange(3), names=np.array(["a", "b"]))
    check_source(open_sae(path), x, *oracle(sae, x))
