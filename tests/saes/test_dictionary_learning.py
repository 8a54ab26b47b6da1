from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.saes import open_sae
from saestore.saes.dictionary_learning import open_dictionary_learning
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, Hub, K, assert_same_place, load_with_saelens, oracle

REPO, FOLDER = "canrager/lm_sae", "pythia70m_sweep/resid_post_layer_3/trainer_0"
CLASSES = (
    "AutoEncoder",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)


def state(dict_class: str) -> dict[str, torch.Tensor]:
    """A state dictionary with the names, shapes, memory order and counters of the class."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    w_enc, w_dec, b_dec, unit = random(D_IN, D_SAE), random(D_SAE, D_IN), random(D_IN), random(D_SAE)
    counters = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.7)}
    linear = {"encoder.weight": w_enc.T.clone(), "decoder.weight": w_dec.T.clone()}
    biased = linear | {"encoder.bias": unit}
    # as the package initialises it: W_enc is the transpose of what lies in memory
    plain = {"W_enc": w_enc.T.clone().T, "W_dec": w_dec, "b_enc": unit, "b_dec": b_dec}
    return {
        "AutoEncoder": biased | {"bias": b_dec},
        "AutoEncoderNew": biased | {"decoder.bias": b_dec},
        "GatedAutoEncoder": linear
        | {"decoder_bias": b_dec, "r_mag": unit, "gate_bias": random(D_SAE), "mag_bias": random(D_SAE)},
        "AutoEncoderTopK": biased | counters | {"b_dec": b_dec},
        "BatchTopKSAE": biased | counters | {"b_dec": b_dec},
        "MatryoshkaBatchTopKSAE": plain | counters | {"group_sizes": torch.tensor([16, 48])},
        "JumpReluAutoEncoder": plain | {"threshold": random(D_SAE).abs()},
    }[dict_class]


def write(folder: Path, dict_class: str, *, tensors: Any = None, **changes: Any) -> Path:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "k": K,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    } | changes
    config = {"trainer": {name: value for name, value in trainer.items() if value is not None}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"buffer": {"ctx_len": 128}}))
    torch.save(state(dict_class) if tensors is None else tensors, folder / "ae.pt")
    return folder


def own_codes(dict_class: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arithmetic of each class of the package (its ``encode`` and ``decode``), outside training."""
    held, rows = state(dict_class), torch.from_numpy(x)
    w_enc = held["W_enc"] if "W_enc" in held else held["encoder.weight"].T
    w_dec = held["W_dec"] if "W_dec" in held else held["decoder.weight"].T
    b_dec = next(held[name] for name in ("b_dec", "bias", "decoder_bias", "decoder.bias") if name in held)
    b_enc = next((held[name] for name in ("b_enc", "encoder.bias") if name in held), torch.zeros(D_SAE))
    centred = rows if dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder") else rows - b_dec
    pre = centred @ w_enc + b_enc
    codes = torch.relu(pre)
    if dict_class == "GatedAutoEncoder":
        gate = (pre + held["gate_bias"] > 0).float()
        codes = gate * torch.relu(held["r_mag"].exp() * pre + held["mag_bias"])
    elif dict_class == "AutoEncoderTopK":
        values, units = codes.topk(K, dim=-1)
        codes = torch.zeros_like(codes).scatter_(-1, units, values)
    elif "threshold" in held:
        codes = codes * (pre > held["threshold"])
    return codes.numpy(), (codes @ w_dec + b_dec).numpy()


@pytest.mark.parametrize("dict_class", CLASSES)
def test_class_is_read_as_saelens_and_the_package_read_it(hub: Hub, x: np.ndarray, dict_class: str) -> None:
    folder = write(hub.root / REPO / FOLDER, dict_class)
    theirs = load_with_saelens(REPO, FOLDER, "dictionary_learning_1")
    weights = open_sae(folder)
    check_source(weights, x, *oracle(theirs, x))
    check_source(weights, x, *own_codes(dict_class, x))
    assert weights.config.architecture == theirs.cfg.architecture()
    assert weights.config.apply_b_dec_to_input == theirs.cfg.apply_b_dec_to_input
    assert_same_place(weights.config, theirs)


def test_class_that_saelens_cannot_load(tmp_path: Path, x: np.ndarray) -> None:
    weights = open_sae(write(tmp_path / "a", "AutoEncoderNew") / "ae.pt")
    check_source(weights, x, *own_codes("AutoEncoderNew", x))


def test_untrained_threshold_lets_every_positive_unit_pass(tmp_path: Path, x: np.ndarray) -> None:
    tensors = state("BatchTopKSAE") | {"threshold": torch.tensor(-1.0)}
    weights = open_sae(write(tmp_path / "a", "BatchTopKSAE", tensors=tensors))
    standard = {name: tensor for name, tensor in tensors.items() if name not in ("b_dec", "k", "threshold")}
    other = write(tmp_path / "b", "AutoEncoder", tensors=standard | {"bias": tensors["b_dec"]})
    check_source(weights, x, *own_codes("AutoEncoder", x))
    check_source(open_sae(other), x, *own_codes("AutoEncoder", x))


def test_given_names_replace_recorded_ones(tmp_path: Path) -> None:
    config = open_sae(write(tmp_path / "a", "AutoEncoder"), hook_name="blocks.3.hook_mlp_out", model_name="mine").config
    assert (config.hook_name, config.model_name) == ("blocks.3.hook_mlp_out", "mine")


@pytest.mark.parametrize(
    ("dict_class", "changes", "message"),
    [
        ("CrossCoder", {"tensors": {}}, "dict_class='CrossCoder'.*known: AutoEncoder"),
        ("AutoEncoder", {"dict_size": None}, r"no trainer\.dict_size"),
        ("AutoEncoder", {"activation_dim": 8}, r"W_enc .*\(d_in=8"),
        ("AutoEncoder", {"dict_size": -1}, "d_sae=-1"),
        ("AutoEncoder", {"layer": "three"}, "expected a whole number"),
        ("AutoEncoder", {"tensors": {}}, "lacks W_enc"),
        ("AutoEncoder", {"tensors": torch.zeros(3)}, "holds a StoredArray"),
        ("AutoEncoder", {"tensors": state("AutoEncoder") | {"bias": torch.zeros(3)}}, r"b_dec .* \(3,\)"),
        (
            "AutoEncoder",
            {"tensors": state("AutoEncoder") | {"encoder.bias": torch.zeros(D_SAE, dtype=torch.int64)}},
            r"b_enc in .*ae\.pt is int64",
        ),
        (
            "AutoEncoderTopK",
            {"k": D_SAE + 1, "tensors": state("AutoEncoderTopK") | {"k": torch.tensor(D_SAE + 1)}},
            "larger than its d_sae",
        ),
        ("AutoEncoderTopK", {"k": None}, r"no trainer\.k"),
        ("AutoEncoderTopK", {"k": K + 1}, rf"ae\.pt has k={K}, but .* says k={K + 1}"),
        ("BatchTopKSAE", {"tensors": state("AutoEncoder")}, "lacks threshold"),
    ],
)
def test_wrong_files(tmp_path: Path, dict_class: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_sae(write(tmp_path / "a", dict_class, **changes))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "AutoEncoder")
    weights = folder / "ae.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(IntegrityError, match=r"ae\.pt"):
        open_sae(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingError, match=r"config\.json"):
        open_sae(folder)
    with pytest.raises(MissingError, match=r"config\.json"):
        open_dictionary_learning(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        (None, "blocks.3.hook_resid_post"),
        ("resid_post_layer_3", "blocks.3.hook_resid_post"),
        ("mlp_out", "blocks.3.hook_mlp_out"),
        ("mlp_out_layer3", "blocks.3.hook_mlp_out"),
        ("attention_out_layer_3", "blocks.3.hook_attn_out"),
        ("resid_pre_layer_3", None),
    ],
)
def test_hook_follows_the_module_that_was_read(tmp_path: Path, module: str | None, hook: str | None) -> None:
    folder = write(tmp_path / "a", "AutoEncoder", submodule_name=module)
    assert open_sae(folder).config.hook_name == hook
    assert open_sae(folder, hook_name="mine").config.hook_name == "mine"


def test_tensors_that_no_class_has_are_left_alone(tmp_path: Path, x: np.ndarray) -> None:
    tensors = state("AutoEncoder") | {"is_dead": torch.zeros(D_SAE, dtype=torch.bool)}
    check_source(open_sae(write(tmp_path / "a", "AutoEncoder", tensors=tensors)), x, *own_codes("AutoEncoder", x))
