from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import InputError, MissingError  # noqa: E402
from saestore.extraction.hooks import HookPoint, capture, parse_layers, resolve  # noqa: E402

TEXT = ["gpt2", "llama", "gemma2", "olmo2", "bert", "roberta"]
IMAGE = ["clip", "siglip", "vit"]


def inputs_of(kind):
    torch.manual_seed(1)
    if kind in IMAGE:
        return {"pixel_values": torch.randn(2, 3, 24, 24)}
    return {"input_ids": torch.randint(3, 300, (2, 7))}


def captured(model, layers, inputs):
    hooks = resolve(model, parse_layers(layers))
    with torch.no_grad():
        return capture(hooks, lambda: model(**inputs), take=lambda _name, hidden: hidden.clone())


@pytest.mark.parametrize(
    ("written", "name", "saelens"),
    [
        (5, "layer_5", "blocks.5.hook_resid_post"),
        ("5", "layer_5", "blocks.5.hook_resid_post"),
        (" layer_22 ", "layer_22", "blocks.22.hook_resid_post"),
        ("layer_22.resid_post", "layer_22", "blocks.22.hook_resid_post"),
        ("layer_22.mlp_out", "layer_22.mlp_out", "blocks.22.hook_mlp_out"),
        ("3.attn_out", "layer_3.attn_out", "blocks.3.hook_attn_out"),
        ("blocks.34.hook_resid_pre", "layer_34.resid_pre", "blocks.34.hook_resid_pre"),
        ("module.encoder.layer.3.output", "module.encoder.layer.3.output", None),
        (HookPoint(2, "mlp_out"), "layer_2.mlp_out", "blocks.2.hook_mlp_out"),
    ],
)
def test_hook_points_as_users_write_them(written, name, saelens):
    (point,) = parse_layers([written])
    assert point.name == name
    assert point.saelens_hook_name == saelens
    assert parse_layers([point.name]) == (point,)  # a name in the lake is read back


def test_duplicates_are_dropped_and_order_is_kept():
    assert [point.name for point in parse_layers(["7", 3, "layer_7", "blocks.3.hook_resid_post"])] == [
        "layer_7",
        "layer_3",
    ]
    assert [point.name for point in parse_layers("7")] == ["layer_7"]


@pytest.mark.parametrize(
    "wrong", ["", "layer", "-1", -1, "layer_3.nonsense", "encoder.3", "module.", "module.a/b", True, 1.5]
)
def test_what_cannot_be_read_is_refused(wrong):
    with pytest.raises(InputError, match=r"layer|module"):
        parse_layers([wrong])


def test_no_layer_is_refused():
    with pytest.raises(InputError, match="no layer was given"):
        parse_layers([])


@pytest.mark.parametrize("kind", TEXT + IMAGE)
def test_residual_stream_is_that_of_transformers(tiny_model, kind):
    model, inputs = tiny_model(kind), inputs_of(kind)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    got = captured(model, ["0.resid_pre", 0, 1, "2.resid_pre", 2], inputs)
    torch.testing.assert_close(got["layer_0.resid_pre"], states[0])
    torch.testing.assert_close(got["layer_0"], states[1])
    torch.testing.assert_close(got["layer_1"], states[2])
    torch.testing.assert_close(got["layer_2.resid_pre"], states[2])
    final = {"gpt2": "ln_f", "llama": "norm", "gemma2": "norm", "olmo2": "norm"}.get(kind)
    last = got["layer_2"] if final is None else getattr(model, final)(got["layer_2"])
    if kind not in IMAGE:  # what vision models put last has changed between versions of transformers
        torch.testing.assert_close(last, states[3])


@pytest.mark.parametrize("kind", TEXT + IMAGE)
def test_parts_add_up_to_the_block(tiny_model, kind):
    """TransformerLens: resid_post = resid_pre + attn_out + mlp_out; in BERT with a norm over each sum."""
    model = tiny_model(kind)
    got = captured(model, ["1.resid_pre", "1.attn_out", "1.mlp_out", "1"], inputs_of(kind))
    before, attention, mlp = got["layer_1.resid_pre"], got["layer_1.attn_out"], got["layer_1.mlp_out"]
    if kind in ("bert", "roberta"):
        block = model.encoder.layer[1]
        total = block.output.LayerNorm(block.attention.output.LayerNorm(before + attention) + mlp)
    else:
        total = before + attention + mlp
    torch.testing.assert_close(got["layer_1"], total, rtol=1e-4, atol=1e-4)
    assert mlp.abs().mean() > 1e-3
    assert attention.abs().mean() > 1e-3


def test_saelens_name_of_a_post_norm_block_is_exact(tiny_model):
    (bert,) = resolve(tiny_model("bert"), parse_layers([1]))
    (gpt2,) = resolve(tiny_model("gpt2"), parse_layers([1]))
    assert bert.saelens_hook_name == "blocks.1.hook_normalized_resid_post"
    assert gpt2.saelens_hook_name == "blocks.1.hook_resid_post"


def test_module_paths(tiny_model):
    model, inputs = tiny_model("bert"), inputs_of("bert")
    got = captured(model, ["module.encoder.layer.1.intermediate", "1"], inputs)
    assert list(got) == ["module.encoder.layer.1.intermediate", "layer_1"]  # as asked
    assert got["module.encoder.layer.1.intermediate"].shape == (2, 7, 24)


def test_the_forward_stops_after_the_deepest_hook(tiny_model):
    model, ran = tiny_model("gpt2"), []
    for at, block in enumerate(model.h):
        block.register_forward_pre_hook(lambda _module, _args, at=at: ran.append(at))
    captured(model, [1, "0.mlp_out"], inputs_of("gpt2"))
    assert ran == [0, 1]


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_removed_whatever_happens(tiny_model):
    model = tiny_model("gpt2")
    hooks = resolve(model, parse_layers([0, "1.resid_pre"]))
    inputs = inputs_of("gpt2")
    before = hooks_on(model)

    def broken(_name, _hidden):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        capture(hooks, lambda: model(**inputs), take=broken)
    assert hooks_on(model) == before
    capture(hooks, lambda: model(**inputs), take=lambda _name, hidden: hidden.shape)
    assert hooks_on(model) == before
    with pytest.raises(InputError, match=r"never runs layer_0, layer_1.resid_pre"):
        capture(hooks, lambda: None, take=lambda _name, hidden: hidden.shape)
    assert hooks_on(model) == before


def test_a_layer_out_of_range_says_how_many_there_are(tiny_model):
    with pytest.raises(MissingError, match=r"no layer 3: it has 3, counted from 0; the last is layer_2"):
        resolve(tiny_model("llama"), parse_layers([3]))


def test_a_missing_module_says_which_exist(tiny_model):
    with pytest.raises(MissingError, match=r"in 'encoder' there are layer"):
        resolve(tiny_model("bert"), parse_layers(["module.encoder.layers.1"]))
    with pytest.raises(MissingError, match=r"at the top there are embeddings, encoder"):
        resolve(tiny_model("bert"), parse_layers(["module.transformer"]))


def test_parts_of_an_unknown_block_are_refused(tiny_model):
    model = tiny_model("llama")
    model.layers[1].add_module("extra_norm", torch.nn.LayerNorm(16))
    with pytest.raises(InputError, match=r"mlp_out is not known for blocks of kind LlamaDecoderLayer.*module.layers.1"):
        resolve(model, parse_layers(["1.mlp_out"]))
    assert resolve(model, parse_layers(["1"]))[0].module is model.layers[1]


def test_a_module_without_hidden_states_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"pooler.*gives a tensor of shape \(2, 16\)"):
        captured(tiny_model("bert"), ["module.pooler"], inputs_of("bert"))


def test_a_module_that_runs_twice_is_refused(tiny_model):
    model = tiny_model("gpt2")
    model.h[1] = model.h[0]
    with pytest.raises(InputError, match="runs more than once per forward"):
        captured(model, ["module.h.0", "2"], inputs_of("gpt2"))


def test_two_towers_cannot_be_told_apart():
    import transformers

    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    with pytest.raises(MissingError, match="several lists of 2 blocks"):
        resolve(transformers.CLIPModel(config), parse_layers([0]))
