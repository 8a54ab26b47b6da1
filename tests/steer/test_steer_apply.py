"""Steering a real MiniLM and tiny random decoders; what comes out is measured by the SAE's formula in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from saestore.errors import InputError, MissingError  # noqa: E402
from saestore.extraction.hooks import parse_layers, resolve  # noqa: E402
from saestore.steer import apply, load_bundle  # noqa: E402
from saestore.steer.files import write_bundle  # noqa: E402
from tests.extraction.conftest import tiny  # noqa: E402
from tests.small_lake import random_sae  # noqa: E402
from tests.steer.conftest import bundle_of, hidden_of, jumprelu, place_of  # noqa: E402


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def busiest(minilm_steer):
    """The unit with most neighbours."""
    bundle = minilm_steer.bundle
    unit = int(np.bincount(bundle.source, minlength=24).argmax())
    assert len(bundle.neighbours(unit)) >= 3
    return unit


class Measured:
    """Codes and pre-activations of layer 3 of MiniLM before and within a context."""

    def __init__(self, steer, *args, bundle=None, **options):
        with apply(steer.model, bundle or steer.bundle, *args, **options):
            self.hidden = hidden_of(steer.model, "layer_3", steer.inputs)
        self.codes, self.pre = (array.reshape(-1, 24) for array in jumprelu(self.hidden, steer.weights))
        self.old_codes, self.old_pre = (array.reshape(-1, 24) for array in jumprelu(steer.hidden, steer.weights))
        self.change = self.pre - self.old_pre


def test_add_adds_the_decoder_row_at_every_position(minilm_steer, busiest):
    got = Measured(minilm_steer, busiest, 2.5)
    expected = minilm_steer.hidden + 2.5 * torch.from_numpy(minilm_steer.bundle.decoder[busiest])
    torch.testing.assert_close(got.hidden, expected, rtol=0, atol=1e-5)


def test_the_units_own_code_rises_by_the_strength(minilm_steer, busiest):
    weights, strength = minilm_steer.weights, 3 * minilm_steer.spread
    own = float(weights.arrays["W_enc"][busiest] @ weights.arrays["W_dec"][busiest])
    active = Measured(minilm_steer, busiest, strength).old_codes[:, busiest] > 0
    assert active.any()
    for corrective, rise in {"none": strength * own, "follow": strength, "hold": strength}.items():
        got = Measured(minilm_steer, busiest, strength, corrective=corrective)
        change = (got.codes - got.old_codes)[active, busiest]
        np.testing.assert_allclose(change, rise, atol=1e-4, err_msg=corrective)


def test_neighbours_are_corrected_as_the_graph_says(minilm_steer, busiest):
    """Without correction a neighbour gets the leak; with it the regression on the real codes, or nothing."""
    steer, strength = minilm_steer, 2 * minilm_steer.spread
    near = steer.bundle.neighbours(busiest)
    slopes = np.array([np.polyfit(steer.codes[:, busiest], steer.codes[:, v], 1)[0] for v in near])
    leak = steer.weights.arrays["W_enc"][near] @ steer.weights.arrays["W_dec"][busiest]
    expected = {"none": leak, "follow": slopes, "hold": np.zeros(len(near))}
    for corrective, change in expected.items():
        got = Measured(steer, busiest, strength, corrective=corrective)
        np.testing.assert_allclose(
            got.change[:, near], np.broadcast_to(strength * change, (len(got.change), len(near))), atol=2e-4
        )
        stays_active = (got.codes[:, near] > 0) & (got.old_codes[:, near] > 0)
        assert stays_active.any()
        shown = (got.codes - got.old_codes)[:, near] - strength * change
        assert np.abs(shown[stays_active]).max() < 2e-4
    assert np.abs(leak - slopes).max() > 0.05  # the three differ on these data
    assert np.abs(leak).max() > 0.05


def test_clamp_sets_the_unit_in_the_sum_of_the_sae(minilm_steer, busiest):
    steer, strength = minilm_steer, 4.0
    got = Measured(steer, busiest, strength, mode="clamp")
    z = got.old_codes[:, busiest]
    assert (z > 0).any()
    assert (z == 0).any()
    expected = steer.hidden.reshape(-1, 384) + torch.from_numpy((strength - z)[:, None] * steer.bundle.decoder[busiest])
    torch.testing.assert_close(got.hidden.reshape(-1, 384), expected.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("corrective", ["follow", "hold"])
def test_a_corrected_clamp_is_exact_where_the_unit_is_active(minilm_steer, busiest, corrective):
    steer, strength = minilm_steer, 3 * minilm_steer.spread
    got = Measured(steer, busiest, strength, mode="clamp", corrective=corrective)
    active = got.old_codes[:, busiest] > 0
    np.testing.assert_allclose(got.codes[active, busiest], strength, atol=1e-3)


def test_ablate_leaves_rows_without_the_unit_alone(minilm_steer, busiest):
    steer = minilm_steer
    got = Measured(steer, busiest, mode="ablate", corrective="hold")
    active = got.old_codes[:, busiest] > 0
    np.testing.assert_allclose(got.codes[:, busiest], 0, atol=1e-4)
    np.testing.assert_array_equal(got.hidden.reshape(-1, 384)[~active], steer.hidden.reshape(-1, 384)[~active])
    near = steer.bundle.neighbours(busiest)
    np.testing.assert_allclose(got.codes[:, near], got.old_codes[:, near], atol=1e-3)


def test_ablated_neighbours_follow(minilm_steer, busiest):
    steer = minilm_steer
    got = Measured(steer, busiest, mode="ablate", corrective="follow")
    near = steer.bundle.neighbours(busiest)
    slopes = np.array([np.polyfit(steer.codes[:, busiest], steer.codes[:, v], 1)[0] for v in near])
    np.testing.assert_allclose(got.change[:, near], -got.old_codes[:, [busiest]] * slopes, atol=1e-3)


def test_several_units_with_their_own_strengths(minilm_steer):
    steer, decoder = minilm_steer, torch.from_numpy(minilm_steer.bundle.decoder)
    got = Measured(steer, {3: 1.5, 20: -2.0})
    torch.testing.assert_close(got.hidden, steer.hidden + 1.5 * decoder[3] - 2 * decoder[20], rtol=0, atol=1e-5)
    same = Measured(steer, np.array([3, 20]), 1.5)
    torch.testing.assert_close(same.hidden, steer.hidden + 1.5 * (decoder[3] + decoder[20]), rtol=0, atol=1e-5)
    ablated = Measured(steer, [3, 20], mode="ablate", corrective="hold")
    np.testing.assert_allclose(ablated.codes[:, [3, 20]], 0, atol=1e-3)


@pytest.mark.parametrize("scale", ["deviation", "maximum"])
def test_strength_in_units_of_the_graph(minilm_steer, scale):
    size = {"deviation": minilm_steer.codes[:, 7].std(), "maximum": minilm_steer.codes[:, 7].max()}[scale]
    scaled = Measured(minilm_steer, 7, -1.5, scale=scale)
    plain = Measured(minilm_steer, 7, -1.5 * float(size))
    torch.testing.assert_close(scaled.hidden, plain.hidden)


def test_only_the_last_position(minilm_steer):
    got = Measured(minilm_steer, 7, 2.0, positions="last").hidden
    assert torch.equal(got[:, :-1], minilm_steer.hidden[:, :-1])
    expected = minilm_steer.hidden[:, -1] + 2 * torch.from_numpy(minilm_steer.bundle.decoder[7])
    torch.testing.assert_close(got[:, -1], expected, rtol=0, atol=1e-5)


def test_the_output_of_the_model_changes_and_comes_back(minilm_steer):
    steer = minilm_steer

    def output():
        with torch.no_grad():
            return steer.model(**steer.inputs).last_hidden_state

    before = output()
    with apply(steer.model, steer.bundle, 7, 5.0):
        assert not torch.allclose(output(), before, atol=0.01)
    assert torch.equal(output(), before)


def test_nested_contexts_add_up_and_each_takes_off_its_own(minilm_steer):
    steer, decoder = minilm_steer, torch.from_numpy(minilm_steer.bundle.decoder)
    before = hooks_on(steer.model)
    with apply(steer.model, steer.bundle, 7, 2.0):
        with apply(steer.model, steer.bundle, 8, 3.0):
            both = hidden_of(steer.model, "layer_3", steer.inputs)
        with pytest.raises(RuntimeError, match="by the user"), apply(steer.model, steer.bundle, 9, 3.0):
            raise RuntimeError("by the user")
        assert hooks_on(steer.model) == before + 1
        one = hidden_of(steer.model, "layer_3", steer.inputs)
    torch.testing.assert_close(both, steer.hidden + 2 * decoder[7] + 3 * decoder[8], rtol=0, atol=1e-5)
    torch.testing.assert_close(one, steer.hidden + 2 * decoder[7], rtol=0, atol=1e-5)
    assert hooks_on(steer.model) == before


def test_the_inner_clamp_sees_what_the_outer_added(minilm_steer):
    """The outer raises the unit, the inner sets it: the result is that of the inner alone."""
    steer = minilm_steer
    with apply(steer.model, steer.bundle, 7, 50.0, corrective="hold"):
        got = Measured(steer, 7, 6.0, mode="clamp", corrective="hold")
    np.testing.assert_allclose(got.codes[:, 7], 6, atol=2e-3)


def test_a_bundle_from_disk_steers_alike(minilm_steer, tmp_path, busiest):
    write_bundle(tmp_path / "b", minilm_steer.bundle)
    loaded = load_bundle(tmp_path / "b")
    got = Measured(minilm_steer, busiest, 2.0, bundle=loaded, corrective="follow", mode="clamp")
    assert torch.equal(got.hidden, Measured(minilm_steer, busiest, 2.0, corrective="follow", mode="clamp").hidden)


def test_gradients_flow(minilm_steer):
    steer = minilm_steer
    embedded = steer.model.embeddings(steer.inputs["input_ids"]).detach().requires_grad_(True)
    with apply(steer.model, steer.bundle, 7, 2.0, mode="clamp", corrective="hold"):
        steer.model(
            inputs_embeds=embedded, attention_mask=steer.inputs["attention_mask"]
        ).last_hidden_state.sum().backward()
    assert embedded.grad.abs().sum() > 0


def test_bfloat16_stays_bfloat16(minilm_folder, minilm_steer):
    model = transformers.AutoModel.from_pretrained(minilm_folder, dtype=torch.bfloat16).eval()
    plain = hidden_of(model, "layer_3", minilm_steer.inputs)
    with apply(model, minilm_steer.bundle, 7, 2.0):
        got = hidden_of(model, "layer_3", minilm_steer.inputs)
    assert got.dtype == torch.bfloat16
    expected = plain.float() + 2 * torch.from_numpy(minilm_steer.bundle.decoder[7])
    torch.testing.assert_close(got, expected.bfloat16(), rtol=0, atol=0)


# ---- causal language models -----------------------------------------------------------------------------------------

GROUPED = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24} | {
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def language_model(kind):
    """A random model of three blocks with a head."""
    torch.manual_seed(1)
    t = transformers
    if kind == "gpt2":
        config = t.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=320, n_positions=64, pad_token_id=0)
    elif kind == "llama":
        config = t.LlamaConfig(**GROUPED)
    else:
        config = t.Gemma2Config(**GROUPED, query_pre_attn_scalar=8, sliding_window=4)
    model = t.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def random_bundle(model, layer, architecture="standard", place=None, **config):
    weights = random_sae(architecture, d_in=16, d_sae=12, **config)
    codes = np.random.default_rng(0).gamma(1.0, size=(100, 12))
    return weights, bundle_of(weights, codes, place or place_of(model, layer), pairs=[(4, 1), (4, 9)])


LAYERS = ["layer_1", "layer_1.resid_pre", "layer_1.mlp_out", "layer_2", "module.{blocks}.1.mlp"]
PROMPT = torch.tensor([[5, 17, 200, 31], [8, 9, 101, 44]])


def greedy(model, **options):
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **settings | options)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("layer", LAYERS)
def test_generation_is_steered_with_and_without_a_cache_alike(kind, layer):
    model = language_model(kind)
    layer = layer.format(blocks={"gpt2": "h"}.get(kind, "layers"))
    # Made on the base, whose modules have shorter paths
    _, bundle = random_bundle(model, layer, place=place_of(model.base_model, layer))
    before, hooks = greedy(model), hooks_on(model)
    with apply(model, bundle, 4, 30.0):
        cached, whole = greedy(model), greedy(model, use_cache=False)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, before)
    assert torch.equal(greedy(model), before)
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_every_new_token_is_steered(kind):
    """Under the cache a forward is of one position: both kinds of positions must see each of them."""
    model = language_model(kind)
    _, bundle = random_bundle(model, "layer_1")
    (hook,) = resolve(model, parse_layers(["layer_1"]))
    for positions, of_prompt in (("all", 4), ("last", 1)):
        seen = {"before": [], "after": []}

        def see(when, seen=seen):
            return lambda _module, _args, output: seen[when].append(
                (output[0] if isinstance(output, tuple) else output).clone()
            )

        first = hook.module.register_forward_hook(see("before"))
        with apply(model, bundle, 4, 3.0, positions=positions):
            last = hook.module.register_forward_hook(see("after"))
            greedy(model)
        first.remove()
        last.remove()
        changed = [
            ((new - old).abs().amax(dim=-1) > 0.1).sum(dim=1).tolist()
            for old, new in zip(seen["before"], seen["after"], strict=True)
        ]
        assert changed == [[of_prompt] * 2] + [[1, 1]] * 7


@pytest.mark.parametrize("layer", ["layer_1", "layer_1.resid_pre", "layer_1.attn_out"])
def test_every_hook_is_steered_where_extraction_reads_it(layer):
    for kind in ("gpt2", "llama", "gemma2"):
        model = tiny(kind)
        _, bundle = random_bundle(model, layer)
        plain = hidden_of(model, layer, {"input_ids": PROMPT})
        with apply(model, bundle, 4, 3.0):
            got = hidden_of(model, layer, {"input_ids": PROMPT})
        torch.testing.assert_close(got, plain + 3 * torch.from_numpy(bundle.decoder[4]), rtol=0, atol=1e-5)


def test_a_topk_sae_is_measured_by_its_whole_encoder():
    model, inputs = tiny("gpt2"), {"input_ids": torch.arange(100).reshape(2, 50)}
    weights, bundle = random_bundle(model, "layer_1", "topk", k=3)
    plain = hidden_of(model, "layer_1", inputs).reshape(-1, 16)
    pre = plain.numpy() @ weights.arrays["W_enc"].T + weights.arrays["b_enc"]
    z = np.where(pre >= np.sort(pre, axis=1)[:, -3:-2], np.maximum(pre, 0), 0)
    loses = ((z == 0) & (pre > 0)).sum(axis=0)  # rows where a unit loses to others, so that a threshold would not do
    unit = int(np.minimum(loses, (z > 0).sum(axis=0)).argmax())
    assert loses[unit] > 3
    assert (z[:, unit] > 0).sum() > 3
    with apply(model, bundle, unit, 2.0, mode="clamp", sae=weights):
        got = hidden_of(model, "layer_1", inputs).reshape(-1, 16)
    expected = plain.numpy() + (2 - z[:, [unit]]) * bundle.decoder[unit]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    with pytest.raises(InputError, match="selects among all its units"), apply(model, bundle, unit, mode="ablate"):
        pass


def test_a_normalising_sae_changes_rows_by_their_own_scale():
    model = tiny("gpt2")
    _, bundle = random_bundle(model, "layer_1", normalization="layer_norm")
    plain = hidden_of(model, "layer_1", {"input_ids": PROMPT})
    with apply(model, bundle, 4, 3.0):
        got = hidden_of(model, "layer_1", {"input_ids": PROMPT})
    expected = plain + 3 * plain.std(dim=-1, keepdim=True) * torch.from_numpy(bundle.decoder[4])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_transcoder_is_steered_at_its_output_only():
    model = tiny("gpt2")
    rng = np.random.default_rng(0)
    weights = random_sae("transcoder", d_in=16, d_sae=12, d_out=16, apply_b_dec_to_input=False)
    bundle = bundle_of(weights, rng.gamma(1.0, size=(100, 12)), place_of(model, "layer_1.mlp_out"), pairs=[(4, 1)])
    plain = hidden_of(model, "layer_1.mlp_out", {"input_ids": PROMPT})
    with apply(model, bundle, 4, 3.0):
        got = hidden_of(model, "layer_1.mlp_out", {"input_ids": PROMPT})
    torch.testing.assert_close(got, plain + 3 * torch.from_numpy(bundle.decoder[4]), rtol=0, atol=1e-5)
    for options in ({"mode": "clamp"}, {"corrective": "hold"}):
        with pytest.raises(InputError, match=r"\(transcoder\)"), apply(model, bundle, 4, 3.0, **options):
            pass


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "options", "error", "message"),
    [
        (24, {"strength": 1.0}, MissingError, "unit 24 is not in the steering bundle of by-hand"),
        (7, {}, InputError, "unit 7 has no strength, which the mode add needs"),
        (7, {"strength": float("nan")}, InputError, "the strength of unit 7 is nan; expected a finite number"),
        ({7: float("inf")}, {}, InputError, "the strength of unit 7 is inf"),
        (7, {"strength": "4"}, InputError, "the strength of unit 7 is '4'"),
        ({7: 1.0}, {"strength": 1.0}, InputError, "beside a strength for each unit"),
        (7, {"strength": 1.0, "mode": "ablate"}, InputError, "takes no strength"),
        ([], {"strength": 1.0}, InputError, "no unit to steer was given"),
        ("7", {"strength": 1.0}, InputError, "'7' is not a unit"),
        (7.0, {"strength": 1.0}, InputError, "7.0 is not a unit"),
        (7, {"strength": 1.0, "mode": "boost"}, InputError, "mode is 'boost'; use one of add, clamp, ablate"),
        (7, {"strength": 1.0, "scale": "max"}, InputError, "scale is 'max'; use one of activation, deviation, maximum"),
        (7, {"strength": 1.0, "positions": "first"}, InputError, "positions is 'first'; use one of all, last"),
        (7, {"strength": 1.0, "corrective": True}, InputError, "corrective is True; use one of none, follow, hold"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_hooked(minilm_steer, unit, options, error, message):
    before = hooks_on(minilm_steer.model)
    with pytest.raises(error, match=message) as raised, apply(minilm_steer.model, minilm_steer.bundle, unit, **options):
        pass
    assert "\n" not in str(raised.value)
    assert hooks_on(minilm_steer.model) == before


def test_a_scale_of_zero_is_refused(minilm_steer):
    maximum = minilm_steer.bundle.maximum.copy()
    maximum[7] = 0
    bundle = dataclasses.replace(minilm_steer.bundle, maximum=maximum)
    with (
        pytest.raises(InputError, match="the maximum of unit 7 is 0"),
        apply(minilm_steer.model, bundle, 7, 1.0, scale="maximum"),
    ):
        pass


def refused(model, bundle, error, message, **changes):
    replaced = dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, **changes))
    with pytest.raises(error, match=message) as raised, apply(model, replaced, 4, 1.0):
        pass
    assert "\n" not in str(raised.value)


def test_another_model_is_refused():
    model = tiny("gpt2")
    model.name_or_path = "org/small"
    model.config._commit_hash = "a" * 40
    _, bundle = random_bundle(model, "layer_1", place=place_of(model, "layer_1", revision="a" * 40))
    with apply(model, bundle, 4, 1.0):
        pass
    refused(model, bundle, InputError, "of width 32, and this model .* is 16 wide", d_model=32)
    refused(model, bundle, MissingError, "has no layer 7: it has 3", layer="layer_7")
    refused(model, bundle, InputError, "layer_1 is layers.1; in this model .* it is h.1", hook="layers.1")
    refused(model, bundle, InputError, "at b{40}, and this model is org/small at a{40}", revision="b" * 40)
    refused(model, bundle, InputError, "is for org/large at an unknown revision", model_id="org/large", revision=None)
    refused(model, bundle, MissingError, "has no module 'x.y'", layer="module.x.y")


def test_what_imported_activations_do_not_tell_is_not_compared():
    model = tiny("gpt2")
    model.name_or_path = "org/small"
    place = place_of(model, "layer_1", model_id="small", hook=None)
    _, bundle = random_bundle(model, "layer_1", place=place)
    plain = hidden_of(model, "layer_1", {"input_ids": PROMPT})
    with apply(model, bundle, 4, 1.0):
        got = hidden_of(model, "layer_1", {"input_ids": PROMPT})
    torch.testing.assert_close(got, plain + torch.from_numpy(bundle.decoder[4]), rtol=0, atol=1e-5)
    refused(model, bundle, InputError, "is for other/small at an unknown revision", model_id="other/small")
    refused(model, bundle, InputError, "is for smal at an unknown revision", model_id="smal")


def test_a_module_of_its_own_width_is_steered():
    model = tiny("gpt2")
    layer = "module.h.1.mlp.c_fc"
    width = model.get_submodule("h.1.mlp.c_fc").nf
    assert width != model.config.hidden_size
    weights = random_sae("jumprelu", d_in=width, d_sae=12)
    codes = np.random.default_rng(0).gamma(1.0, size=(100, 12))
    bundle = bundle_of(weights, codes, place_of(model, layer, d_model=width), pairs=[(4, 1)])
    plain = hidden_of(model, layer, {"input_ids": PROMPT})
    with apply(model, bundle, 4, 3.0):
        got = hidden_of(model, layer, {"input_ids": PROMPT})
    torch.testing.assert_close(got, plain + 3 * torch.from_numpy(bundle.decoder[4]), rtol=0, atol=1e-5)


def test_a_model_that_was_copied_is_known_by_its_files(minilm_folder, minilm_steer, tmp_path):
    import shutil

    from saestore.extraction.model import fingerprint

    place = dataclasses.replace(
        minilm_steer.bundle.model, model_id="elsewhere/minilm", revision=fingerprint(minilm_folder)
    )
    bundle = dataclasses.replace(minilm_steer.bundle, model=place)
    shutil.copytree(minilm_folder, tmp_path / "copy")
    copied = transformers.AutoModel.from_pretrained(tmp_path / "copy").eval()
    with apply(copied, bundle, 4, 1.0):
        pass
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match="for elsewhere/minilm at sampled-sha256"), apply(copied, bundle, 4, 1.0):
        pass


def test_a_module_of_another_width_is_refused_when_it_runs():
    model = tiny("gpt2")
    _, bundle = random_bundle(model, "layer_1", place=place_of(model, "module.h.1.mlp.c_fc"))
    with (
        pytest.raises(InputError, match=r"gives hidden states 64 wide, and the decoder of by-hand writes 16"),
        apply(model, bundle, 4, 1.0),
    ):
        model(PROMPT)


def test_what_is_no_hidden_state_is_refused():
    model = tiny("vit")
    _, bundle = random_bundle(model, "layer_1", place=place_of(model, "module.embeddings.patch_embeddings.projection"))
    with (
        pytest.raises(InputError, match=r"not hidden states \(batch, positions, width\), and cannot be steered"),
        apply(model, bundle, 4, 1.0),
    ):
        model(torch.zeros(1, 3, 24, 24))


def test_what_is_no_transformers_model_is_refused(minilm_steer):
    with (
        pytest.raises(InputError, match="Linear has no config"),
        apply(torch.nn.Linear(2, 2), minilm_steer.bundle, 7, 1.0),
    ):
        pass
