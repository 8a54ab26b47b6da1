from __future__ import annotations

from typing import Any

import pytest

from saestore.errors import InputError
from saestore.saes.config import SAEConfig

GOOD: dict[str, Any] = {"architecture": "topk", "d_in": 16, "d_sae": 64, "k": 7}


def test_json_round_trip_keeps_every_field() -> None:
    config = SAEConfig(
        **GOOD,
        apply_b_dec_to_input=False,
        normalization="layer_norm",
        rescale_acts_by_decoder_norm=True,
        dtype="bfloat16",
        hook_name="blocks.3.attn.hook_z",
        hook_head_index=2,
        reshape_activations="hook_z",
        model_name="gpt2",
        prepend_bos=True,
        context_size=128,
        release="r",
        sae_id="s",
        neuronpedia_id="gpt2/3-x",
        source="élan",
    )
    assert SAEConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "k=65 .* larger than its d_sae=64"),
        ({"k": 0}, "k=0"),
        ({"k": None}, "needs k"),
        ({"k": True}, "k=True"),
        ({"d_in": 0}, "d_in=0"),
        ({"d_sae": 64.0}, r"d_sae=64\.0"),
        ({"architecture": "clt"}, "known: standard, jumprelu"),
        ({"architecture": "matryoshka_batchtopk"}, "save_inference_model"),
        ({"architecture": "standard"}, "only topk, .* have a k"),
        ({"architecture": "standard", "k": None, "rescale_acts_by_decoder_norm": True}, "only topk, .* have it"),
        ({"normalization": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"normalization": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalization": "l2"}, "known: none, layer_norm, constant_norm_rescale"),
        ({"reshape_activations": "flat"}, "known: none, hook_z"),
        ({"hook": "x"}, "unknown SAE configuration field 'hook'; known: architecture"),
    ],
)
def test_unusable_fields_are_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        SAEConfig.from_dict(GOOD | change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "3", '{"d_in": 4}'])
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(InputError, match="SAE configuration"):
        SAEConfig.from_json(text)
