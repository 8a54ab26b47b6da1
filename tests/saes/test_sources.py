from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import DependencyError, InputError, MissingError, SaestoreError
from saestore.saes import open_sae
from saestore.saes.weights import unit_rule, unit_tiles
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, Hub, make_sae, oracle
from tests.saes.test_dictionary_learning import own_codes
from tests.saes.test_dictionary_learning import write as write_dictionary_learning
from tests.saes.test_gemma_scope import write_npz
from tests.saes.test_gemma_scope_2 import write as write_gemma_scope_2
from tests.saes.test_qwen_scope import write as write_qwen_scope
from tests.saes.test_sparsify import sparsify_codes
from tests.saes.test_sparsify import write as write_sparsify


def test_each_way_to_name_a_saelens_source(topk_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(topk_folder.parent)
    hashes = {
        open_sae(source).content_hash()
        for source in (topk_folder, str(topk_folder), "topk", "./topk", topk_folder / "sae_weights.safetensors")
    }
    assert len(hashes) == 1


def test_given_names_replace_recorded_ones(topk_folder: Path) -> None:
    config = open_sae(topk_folder, hook_name="blocks.9.hook_mlp_out", model_name="other").config
    assert (config.hook_name, config.model_name) == ("blocks.9.hook_mlp_out", "other")


def test_unknown_layouts_list_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    torch.save({"indices": torch.zeros(3)}, tmp_path / "a.pt")
    known = (
        r"cfg\.json.*sparsify.*hyperparams\.json.*ae\.pt.*params\.npz or params\.safetensors.*"
        r"CLIP-Scope, Qwen Scope or saev.*release:sae_id"
    )
    for source in (tmp_path, tmp_path / "notes.txt", tmp_path / "a.pt"):
        with pytest.raises(InputError, match=known) as raised:
            open_sae(source)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="it holds indices"):
        open_sae(tmp_path / "a.pt")
    for source in ("nowhere", "./no:where", "/no:where", tmp_path / "x.npz"):
        with pytest.raises(MissingError, match="there is no file or folder"):
            open_sae(source)
    np.savez(tmp_path / "a.npz", W_enc=np.zeros((2, 2)))
    with pytest.raises(InputError, match="leave it out"):
        open_sae(tmp_path / "a.npz", norm_scaling_factor=2.0)


def test_paths_that_cannot_be_asked_for() -> None:
    with pytest.raises(MissingError, match="no user of ~nobody-of-that-name/x"):
        open_sae("~nobody-of-that-name/x")
    with pytest.raises(InputError, match=r"cannot be read .*too long"):
        open_sae("x" * 5000)


def test_weights_decide_before_a_configuration_of_the_same_name(tmp_path: Path, x: np.ndarray) -> None:
    sae = make_sae("jumprelu", apply_b_dec_to_input=False)
    write_npz(tmp_path, sae)
    write_dictionary_learning(tmp_path / "d", "AutoEncoderTopK")
    for folder in (tmp_path, tmp_path / "d"):
        (folder / "cfg.json").write_text("{}")
        (folder / "hyperparams.json").write_text("{}")
    check_source(open_sae(tmp_path), x, *oracle(sae, x))
    check_source(open_sae(tmp_path / "d"), x, *own_codes("AutoEncoderTopK", x))
    write_sparsify(tmp_path / "layers.1")
    check_source(open_sae(tmp_path / "layers.1" / "cfg.json"), x, *sparsify_codes(x))
    make_sae("topk").save_model(tmp_path / "s")
    (tmp_path / "s" / "sae_weights.safetensors").unlink()
    with pytest.raises(MissingError, match=r"has no sae_weights\.safetensors"):
        open_sae(tmp_path / "s")


def test_unknown_vector_is_named(topk_folder: Path) -> None:
    with pytest.raises(InputError, match="no vector 'threshold'; it has b_enc, b_dec"):
        open_sae(topk_folder).vector("threshold")


def test_zero_decoder_row_cannot_be_rescaled(tmp_path: Path) -> None:
    sae = make_sae("topk", rescale_acts_by_decoder_norm=True)
    sae.W_dec.data[5] = 0
    sae.save_model(tmp_path)
    with pytest.raises(InputError, match="decoder row 5"):
        unit_rule(open_sae(tmp_path))


def test_tiles_go_by_the_wider_of_the_two_matrices(tmp_path: Path) -> None:
    make_sae("transcoder", d_in=4, d_out=50).save_model(tmp_path)
    assert {tile.stop - tile.start for tile in unit_tiles(open_sae(tmp_path).config, tile_bytes=4 * 50 * 8)} == {8}


def test_tiles_cover_all_units_once(topk_folder: Path) -> None:
    config = open_sae(topk_folder).config
    for tile_bytes in (1, 4 * D_IN * 7, 2**20):
        units = np.concatenate([np.arange(D_SAE)[tile] for tile in unit_tiles(config, tile_bytes=tile_bytes)])
        np.testing.assert_array_equal(units, np.arange(D_SAE))


def test_tiles_of_wide_sae_need_little_memory(tmp_path: Path) -> None:
    """A tile of a W_enc of 64 MiB is read without taking the memory of the matrix."""
    sae = make_sae("standard", d_in=256, d_sae=65_536)
    sae.save_model(tmp_path)
    program = (
        "import resource, sys; from saestore.saes import open_sae; w = open_sae(sys.argv[1]);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak();"
        "tile = w.rows('W_enc', slice(1000, 3000)); w.rows('W_dec', slice(1000, 3000));"
        "assert peak() - before < 20 * 1024, peak() - before"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    rows = open_sae(tmp_path).rows("W_enc", slice(1000, 3000))
    np.testing.assert_array_equal(rows, sae.W_enc[:, 1000:3000].T.detach().numpy())


def test_registry_name_in_saelens_layout_is_folded_with_the_registry_factor(hub: Hub, x: np.ndarray) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, sae_id, entry = next(
        (name, next(iter(entry.norm_scaling_factor)), entry)
        for name, entry in get_pretrained_saes_directory().items()
        if entry.norm_scaling_factor and entry.conversion_func is None and not entry.config_overrides
    )
    sae = make_sae("standard", normalize_activations="expected_average_only_in")
    sae.save_model(hub.root / entry.repo_id / entry.saes_map[sae_id])
    weights = open_sae(f"{release}:{sae_id}")
    assert hub.asked
    assert (weights.config.release, weights.config.sae_id) == (release, sae_id)
    sae.fold_activation_norm_scaling_factor(entry.norm_scaling_factor[sae_id])
    check_source(weights, x, *oracle(sae, x))


def test_registry_name_of_gemma_scope(hub: Hub, x: np.ndarray) -> None:
    sae = make_sae("jumprelu", apply_b_dec_to_input=False, d_sae=16_384)
    write_npz(hub.root / "google/gemma-scope-9b-pt-res/layer_34/width_16k/average_l0_114", sae)
    config = open_sae("gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonical").config
    assert hub.asked == ["google/gemma-scope-9b-pt-res/layer_34/width_16k/average_l0_114/params.npz"]
    assert config.hook_name == "blocks.34.hook_resid_post"
    assert config.neuronpedia_id == "gemma-2-9b/34-gemmascope-res-16k"


def test_registry_name_of_gemma_scope_2_with_and_without_its_configuration(hub: Hub, x: np.ndarray) -> None:
    folder = "google/gemma-scope-2-4b-pt/transcoder/layer_17_width_16k_l0_big_affine"
    sae = make_sae("jumprelu_skip_transcoder", d_sae=16_384)
    write_gemma_scope_2(hub.root / folder, sae)
    name = "gemma-scope-2-4b-pt-transcoders:transcoder/layer_17_width_16k_l0_big_affine"
    weights = open_sae(name)
    assert hub.asked == [f"{folder}/config.json", f"{folder}/params.safetensors"]
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.model_name == "google/gemma-3-4b-pt"
    assert weights.config.source == name
    raw = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-it"}
    write_gemma_scope_2(hub.root / folder, sae, raw=raw)
    assert open_sae(name).config.model_name == "google/gemma-3-1b-it"


@pytest.mark.parametrize(
    ("release", "layout", "files"),
    [
        ("gemma-scope-2b-pt-transcoders", "gemma_2_transcoder", ["/params.npz"]),
        ("sae_bench_pythia70m_sweep_topk_ctx128_0730", "dictionary_learning_1", ["/config.json", "/ae.pt"]),
        ("qwen-scope-3-1.7b-base-w32k-l50", "qwen_scope", [""]),
        ("llama_scope_lxm_32x", "llama_scope", ["/hyperparams.json", "/checkpoints/final.safetensors"]),
    ],
)
def test_registry_asks_for_the_files_of_our_reader(hub: Hub, release: str, layout: str, files: list[str]) -> None:
    """Empty files are enough to see which ones a layout needs, and that its reader looks at them."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory()[release]
    assert entry.conversion_func == layout
    sae_id, folder = next(iter(entry.saes_map.items()))
    names = [f"{entry.repo_id}/{folder}{file}" for file in files]
    for name in names:
        (hub.root / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.root / name).touch()
    with pytest.raises(SaestoreError, match=re.escape(str(hub.root))):
        open_sae(f"{release}:{sae_id}")
    assert hub.asked == names


def test_registry_names_of_readers_through_torch_files(hub: Hub, x: np.ndarray) -> None:
    write_dictionary_learning(
        hub.root / "canrager/lm_sae/pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0", "AutoEncoderTopK"
    )
    weights = open_sae("sae_bench_pythia70m_sweep_topk_ctx128_0730:blocks.3.hook_resid_post__trainer_0")
    check_source(weights, x, *own_codes("AutoEncoderTopK", x))
    write_qwen_scope(hub.root / "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer4.sae.pt")
    config = open_sae("qwen-scope-3-1.7b-base-w32k-l50:layer4").config
    assert (config.k, config.hook_name, config.release) == (
        50,
        "blocks.4.hook_resid_post",
        "qwen-scope-3-1.7b-base-w32k-l50",
    )


def test_registry_name_in_sparsify_layout(hub: Hub, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens.loading import pretrained_saes_directory as directory

    entry = directory.PretrainedSAELookup(
        release="mine",
        repo_id="someone/sparsified",
        model="tiny",
        conversion_func="sparsify",
        saes_map={"l5": "layers.5"},
        expected_var_explained={},
        expected_l0={},
        neuronpedia_id={},
        norm_scaling_factor={},
        config_overrides=None,
    )
    monkeypatch.setitem(directory.get_pretrained_saes_directory(), "mine", entry)
    write_sparsify(hub.root / "someone/sparsified/layers.5")
    weights = open_sae("mine:l5")
    check_source(weights, x, *sparsify_codes(x))
    assert weights.config.hook_name == "blocks.5.hook_resid_post"


def test_registry_name_of_another_layout_goes_through_saelens_once(
    hub: Hub, tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens import SAE

    sae = make_sae("topk")
    sae.W_dec.data = sae.W_enc.data.T  # transposed views, as SAELens' converters leave them
    loads: list[str] = []

    def from_pretrained(release: str, sae_id: str) -> Any:
        loads.append(sae_id)
        return sae

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    name = "llama_scope_r1_distill:l0r_800m_slimpajama"
    for _ in range(2):
        check_source(open_sae(name, cache=tmp_path / "cache"), x, *oracle(sae, x))
    assert loads == ["l0r_800m_slimpajama"]


def test_two_processes_convert_the_same_sae(
    hub: Hub, tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds the folder of the first in its way, and takes it."""
    from sae_lens import SAE

    name, cache, sae = "llama_scope_r1_distill:l0r_800m_slimpajama", tmp_path / "cache", make_sae("topk")
    opened: list[Any] = []

    def from_pretrained(release: str, sae_id: str) -> Any:
        if not opened:
            opened.append(None)
            opened.append(open_sae(name, cache=cache))  # another process, meanwhile
        return sae

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    ours = open_sae(name, cache=cache)
    for weights in (ours, opened[1]):
        check_source(weights, x, *oracle(sae, x))
    assert len(list((cache / "saelens").iterdir())) == 1


def test_what_cannot_be_converted_or_kept_says_so(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens import SAE

    name = "llama_scope_r1_distill:l0r_800m_slimpajama"
    (tmp_path / "file").touch()
    monkeypatch.setattr(SAE, "from_pretrained", lambda release, sae_id: make_sae("topk"))
    with pytest.raises(SaestoreError, match=r"cannot be kept in .*Not a directory.*SAESTORE_CACHE") as raised:
        open_sae(name, cache=tmp_path / "file")
    assert not isinstance(raised.value, MissingError)

    def fail(*_: Any) -> None:
        raise OSError("No space left\nand more")

    broken = make_sae("topk")
    monkeypatch.setattr(broken, "save_model", fail)
    monkeypatch.setattr(SAE, "from_pretrained", lambda release, sae_id: broken)
    with pytest.raises(SaestoreError, match=r"cannot be kept in .*\(No space left\); remove"):
        open_sae(name, cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "saelens").iterdir()) == []


def test_registry_errors_are_one_line_with_the_remedy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"did you mean .*gemma-scope-9b-pt-res-canonical"):
        open_sae("gemma-scope-9b-res-canonical:layer_34/width_16k/canonical")
    with pytest.raises(MissingError, match="no SAE 'layer_34/width_16k/canonicl'"):
        open_sae("gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonicl")
    for name in ("gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonical", "some/repo:folder"):
        with pytest.raises(MissingError, match=r"HF_HOME.* or give a local folder") as raised:
            open_sae(name)
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "sae_lens.loading", None)
    with pytest.raises(DependencyError, match="pip install"):
        open_sae("some/repo:folder")


def test_repository_that_is_not_in_the_registry(hub: Hub, x: np.ndarray) -> None:
    sae = make_sae("gated")
    folder = hub.root / "someone/saes" / "layer_3"
    sae.save_model(folder)
    raw = json.loads((folder / "cfg.json").read_text())
    raw["metadata"]["neuronpedia_id"] = "tiny/3-mine"
    (folder / "cfg.json").write_text(json.dumps(raw))
    weights = open_sae("someone/saes:layer_3")
    check_source(weights, x, *oracle(sae, x))
    assert weights.config.neuronpedia_id == "tiny/3-mine"
    assert weights.config.source == "someone/saes:layer_3"
