"""Small random SAEs made by SAELens' own classes, the oracle of every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: SAE readers have no oracle")

import torch  # noqa: E402

D_IN, D_OUT, D_SAE, K = 16, 12, 64, 7


def make_sae(architecture: str, *, seed: int = 0, dtype: str = "float32", **options: Any) -> Any:
    """Return a SAELens inference SAE with random weights of every parameter it has."""
    if architecture in ("topk", "abstopk"):
        options.setdefault("k", K)
    if "transcoder" in architecture:
        options = {"d_out": D_OUT, "apply_b_dec_to_input": False} | options
    cls, config_cls = sae_lens.registry.get_sae_class(architecture)
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="tiny", hook_name="blocks.3.hook_resid_post", prepend_bos=True)
    shape = {"d_in": options.pop("d_in", D_IN), "d_sae": options.pop("d_sae", D_SAE)}
    sae = cls(config_cls(**shape, dtype=dtype, metadata=metadata, **options))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else D_IN**-0.5)
        if name == "threshold":
            values += 0.2  # a few stay negative, where the ReLU decides
        parameter.data = values.to(parameter.dtype)
    return sae


def oracle(sae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return SAELens' own codes and reconstructions of rows x."""
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        # decode alone leaves out the skip connection of a transcoder
        x_hat = sae(torch.from_numpy(x)) if hasattr(sae, "W_skip") else sae.decode(codes)
        return codes.float().numpy(), x_hat.float().numpy()


class Hub:
    """A folder that stands for the hub, and the files that were asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

    def download(self, repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        name = f"{repo_id}/{subfolder + '/' if subfolder else ''}{filename}"
        self.asked.append(name)
        if not (self.root / name).exists():
            raise LocalEntryNotFoundError(f"offline: {name}\nmore lines")
        return str(self.root / name)

    def shapes(self, repo_id: str, filename: str) -> dict[str, list[int]]:
        from safetensors import safe_open

        with safe_open(self.root / repo_id / filename, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub
    from sae_lens.loading import pretrained_sae_loaders

    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", hub.download)
    monkeypatch.setattr(pretrained_sae_loaders, "get_safetensors_tensor_shapes", hub.shapes)
    return hub


def load_with_saelens(release: str, sae_id: str, loader: str, **shape: Any) -> Any:
    """Return what SAELens' own loader of a layout makes of the files in the hub, with fields that it would guess."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    def tiny(repo_id: str, folder_name: str, device: str, force_download: bool, cfg_overrides: dict[str, Any]) -> Any:
        load: Any = NAMED_PRETRAINED_SAE_LOADERS[loader]
        return load(repo_id, folder_name, device, force_download, cfg_overrides | shape)

    return SAE.from_pretrained(release, sae_id, converter=tiny)


def assert_same_place(config: Any, theirs: Any, *names: str) -> None:
    """Assert that a configuration says of model and hook points what SAELens' loader says."""
    for name in ("hook_name", "model_name", "prepend_bos", "context_size", *names):
        assert getattr(config, name) == theirs.cfg.metadata[name], name


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(5).normal(size=(50, D_IN)) * 3 + 0.5).astype(np.float32)


@pytest.fixture
def topk_folder(tmp_path: Path) -> Path:
    make_sae("topk").save_model(tmp_path / "topk")
    return tmp_path / "topk"
