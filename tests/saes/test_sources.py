from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saestore.errors import DependencyError, InputError, MissingError
from saestore.saes import open_sae
from saestore.saes.weights import unit_rule, unit_tiles
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, make_sae, oracle
from tests.saes.test_gemma_scope import write_npz


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


def test_unknown_layouts_say_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"cfg\.json.*params\.npz.*\.pt.*release:sae_id"):
            open_sae(source)
    for source in ("nowhere", "./no:where", "/no:where", tmp_path / "x.npz"):
        with pytest.raises(MissingError, match="there is no file or folder"):
            open_sae(source)
    np.savez(tmp_path / "a.npz", W_enc=np.zeros((2, 2)))
    with pytest.raises(InputError, match="leave it out"):
        open_sae(tmp_path / "a.npz", norm_scaling_factor=2.0)


def test_unknown_vector_is_named(topk_folder: Path) -> None:
    with pytest.raises(InputError, match="no vector 'threshold'; it has b_enc, b_dec"):
        open_sae(topk_folder).vector("threshold")


def test_zero_decoder_row_cannot_be_rescaled(tmp_path: Path) -> None:
    sae = make_sae("topk", rescale_acts_by_decoder_norm=True)
    sae.W_dec.data[5] = 0
    sae.save_model(tmp_path)
    with pytest.raises(InputError, match="decoder row 5"):
        unit_rule(open_sae(tmp_path))


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
    with open_sae(tmp_path) as weights:
        np.testing.assert_array_equal(
            weights.rows("W_enc", slice(1000, 3000)), sae.W_enc[:, 1000:3000].T.detach().numpy()
        )


class Hub:
    """A folder that stands for the hub, and the files that were asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

    def download(self, repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        name = f"{repo_id}/{subfolder + '/' if subfolder else ''}{filename}"
        self.asked.append(name)
        if not (self.root / name).exists():
            raise ConnectionError(f"offline: {name}\nmore lines")
        return str(self.root / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub
    from sae_lens.loading import pretrained_sae_loaders

    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", hub.download)
    return hub


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
    name = "llama_scope_lxr_8x:l0r_8x"
    for _ in range(2):
        check_source(open_sae(name, cache=tmp_path / "cache"), x, *oracle(sae, x))
    assert loads == ["l0r_8x"]


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
