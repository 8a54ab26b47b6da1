from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[models]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from saestore.errors import InputError, IntegrityError, MissingError  # noqa: E402
from saestore.extraction.model import fingerprint, load_model  # noqa: E402


def test_minilm(minilm, minilm_path):
    assert minilm.kind == "text"
    assert (minilm.d_model, minilm.n_layers, minilm.max_length) == (384, 6, 512)
    assert minilm.model_id == str(minilm_path)
    assert minilm.revision.startswith("sampled-sha256:")
    assert minilm.image_processor is None
    assert not minilm.model.training
    assert not any(parameter.requires_grad for parameter in minilm.model.parameters())


def saved(folder, model, tokenizer=None, processor=None):
    for part in (model, tokenizer, processor):
        if part is not None:
            part.save_pretrained(folder)
    return folder


def test_a_causal_model_loses_its_head(tmp_path, tiny_model, byte_tokenizer):
    import transformers

    base = tiny_model("gpt2")
    model = transformers.GPT2LMHeadModel(base.config)
    model.transformer.load_state_dict(base.state_dict())
    loaded = load_model(saved(tmp_path, model, byte_tokenizer), device="cpu", max_length=50)
    assert type(loaded.model).__name__ == "GPT2Model"
    assert loaded.max_length == 50
    assert loaded.model.config.use_cache is False
    for name, weight in base.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)


def test_dtype(tmp_path, tiny_model, byte_tokenizer):
    folder = saved(tmp_path, tiny_model("llama"), byte_tokenizer)
    loaded = load_model(folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    with pytest.raises(InputError, match="unknown dtype 'int8'"):
        load_model(folder, dtype="int8")


@pytest.mark.parametrize("kind", ["clip", "vit", "siglip"])
def test_vision_models(tmp_path, tiny_model, image_processor_of, kind):
    loaded = load_model(saved(tmp_path, tiny_model(kind), processor=image_processor_of(kind)), device="cpu")
    assert (loaded.kind, loaded.patch_size, loaded.n_layers, loaded.d_model) == ("image", 8, 3, 16)
    assert loaded.tokenizer is None
    assert loaded.image_processor.size == image_processor_of(kind).size


def test_the_vision_tower_of_a_whole_clip(tmp_path, image_processor_of):
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20}, vision_config={**small, "image_size": 24, "patch_size": 8}
    )
    whole = transformers.CLIPModel(config)
    loaded = load_model(saved(tmp_path, whole, processor=image_processor_of("clip")), device="cpu")
    assert (loaded.kind, loaded.n_layers) == ("image", 2)
    expected = {
        name: weight for name, weight in whole.state_dict().items() if ".layers.1." in name and "vision" in name
    }
    got = {name: weight for name, weight in loaded.model.state_dict().items() if ".layers.1." in name}
    assert len(expected) == len(got) > 0
    for name, weight in got.items():
        (same,) = [value for key, value in expected.items() if key.endswith(name.split("vision_model.")[-1])]
        assert torch.equal(weight, same)
    with pytest.raises(InputError, match="kind image"):
        load_model(tmp_path, kind="text")


def test_weights_of_another_model_are_refused(tmp_path, tiny_model, byte_tokenizer):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, tiny_model("bert"), byte_tokenizer)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1.output" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"lack 4 weights of BertModel \(encoder.layer.1.output"):
        load_model(folder, device="cpu")


def test_a_checkpoint_without_pooler_is_fine(tmp_path, tiny_model, byte_tokenizer):
    import transformers

    model = transformers.BertForMaskedLM(tiny_model("bert").config)
    assert load_model(saved(tmp_path, model, byte_tokenizer), device="cpu").n_layers == 3


def test_pytorch_files_are_read_with_weights_only(tmp_path, tiny_model, byte_tokenizer, capfd):
    model = tiny_model("gpt2")
    folder = saved(tmp_path, model, byte_tokenizer)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    loaded = load_model(folder, device="cpu")
    assert torch.equal(loaded.model.wte.weight, model.wte.weight)

    class Trap:
        def __reduce__(self):
            return (print, ("a pickle was run",))

    torch.save({**model.state_dict(), "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(IntegrityError, match=r"cannot be read \(Weights only load failed"):
        load_model(folder, device="cpu")
    assert "a pickle was run" not in capfd.readouterr().out


def test_cut_weights_are_refused(tmp_path, tiny_model, byte_tokenizer):
    folder = saved(tmp_path, tiny_model("gpt2"), byte_tokenizer)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_model(folder, device="cpu")


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch, minilm_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match=r"no configuration of the model '.*none'.*folder") as missing:
        load_model(tmp_path / "none")
    assert "\n" not in str(missing.value)
    shutil.copytree(minilm_path, tmp_path / "cut", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(MissingError, match="no weights of the model"):
        load_model(tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="see that the folder is complete"):
        load_model(tmp_path / "empty")


def test_encoder_decoders_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="encoder-decoder"):
        load_model(tmp_path)


def test_devices(minilm_path):
    with pytest.raises(InputError, match="'nonsense' cannot be used here"):
        load_model(minilm_path, device="nonsense")


def test_fingerprint_sees_another_fine_tuning(tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, tiny_model("bert"))
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in weights.items()}, folder / "model.safetensors")
    assert fingerprint(folder) != before
