"""What a model's path may be: a GGUF file, an adapter, or something else that is named with what to give instead."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer

from dsl_train.base.records import DslError
from dsl_train.pair import source
from dsl_train.pair.loading import identify, kind_named, load_pair, load_tokenizer, share_tokenizer
from dsl_train.pair.source import find_source
from dsl_train.predictor.runtime import shipped_with

TOKENS = torch.tensor([[3, 4, 5, 6]])


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits


def write_gguf(model, path: Path) -> None:
    """As llama.cpp's converter writes a Llama: queries and keys in the order of its rotations."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(0)
    names = {
        **{"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"},
        **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q"},
        **{"self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"},
        **{"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
    }
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        if name in names:
            writer.add_tensor(f"{names[name]}.weight", values)
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part in heads:
            values = values.reshape(heads[part], 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"blk.{layer}.{names[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tiny_draft, tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(tiny_draft, folder / "draft.gguf")
    make_tokenizer().save_pretrained(folder)
    return folder / "draft.gguf"


def test_a_gguf_file_is_a_model(pair_folders, tiny_draft, gguf_file):
    pytest.importorskip("accelerate")
    pair = load_pair(pair_folders.target, str(gguf_file), "float32", "cpu")
    torch.testing.assert_close(logits(pair.draft), logits(tiny_draft))
    assert identify(str(gguf_file), "draft", torch.float32) == pair.draft_identity
    assert kind_named(str(gguf_file)) == "decoder-only"
    assert pair.draft_identity.revision not in (None, load_pair(*[pair_folders.draft] * 2).draft_identity.revision)
    (gguf_file.parent / "dsl").mkdir()
    (gguf_file.parent / "dsl" / "config.json").touch()
    assert shipped_with(gguf_file) == gguf_file.parent / "dsl"


def save_adapter(model_folder, folder, config):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config(peft))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight += torch.randn(weight.shape, generator=generator)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.filterwarnings("ignore")  # of peft
def test_an_adapter_is_its_model_with_the_difference_added(pair_folders, tmp_path):
    adapted = save_adapter(
        pair_folders.draft, tmp_path / "lora", lambda peft: peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    )
    plain = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    pair = load_pair(pair_folders.target, str(tmp_path / "lora"), "float32", "cpu")
    torch.testing.assert_close(logits(pair.draft), logits(adapted.eval()))
    assert not torch.allclose(logits(pair.draft), logits(plain.draft))
    assert type(pair.draft) is type(plain.draft)
    assert identify(str(tmp_path / "lora"), "draft", torch.float32) == pair.draft_identity
    assert pair.draft_identity.revision != plain.draft_identity.revision
    assert share_tokenizer(pair_folders.target, str(tmp_path / "lora"))  # that of its model
    assert load_tokenizer(str(tmp_path / "lora")).get_vocab() == make_tokenizer().get_vocab()
    with pytest.raises(DslError, match="does not merge exactly into 8bit weights; leave --quantization out"):
        load_pair(str(tmp_path / "lora"), pair_folders.draft, "float32", "cpu", quantization="8bit")


@pytest.mark.filterwarnings("ignore")  # of peft
def test_an_adapter_without_weights_to_merge_is_named(pair_folders, tmp_path):
    save_adapter(
        pair_folders.draft,
        tmp_path / "prompt",
        lambda peft: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    )
    with pytest.raises(DslError, match=r"draft .*prompt .*its adapter is PROMPT_TUNING, which has no weights to merge"):
        load_pair(pair_folders.target, str(tmp_path / "prompt"), "float32", "cpu")


@pytest.fixture
def lora(tmp_path):
    """The files of an adapter, as far as its kind is concerned."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/model"}))
    (folder / "adapter_model.safetensors").touch()
    return folder


@pytest.mark.parametrize("missing", ["gguf", "accelerate", "peft"])
def test_a_missing_library_is_named_with_what_installs_it(monkeypatch, tmp_path, lora, missing):
    monkeypatch.setattr(source, "find_spec", lambda name: None if name == missing else True)
    (tmp_path / "m.gguf").touch()
    name = str(lora if missing == "peft" else tmp_path / "m.gguf")
    what = "a PEFT adapter of some/model" if missing == "peft" else "a GGUF file"
    hint = rf"is {what}, which needs {missing}, which is not installed; run pip install 'dsl-train\[formats\]'"
    with pytest.raises(DslError, match=f"draft {name} {hint}"):
        find_source(name, "draft")


def test_an_adapter_that_names_no_model_or_is_damaged_is_named(monkeypatch, lora):
    monkeypatch.setattr(source, "find_spec", lambda name: True)
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(DslError, match=r"lora does not name its model; set base_model_name_or_path"):
        find_source(str(lora), "draft")
    (lora / "adapter_config.json").write_text("[")
    with pytest.raises(DslError, match=r"adapter_config.json is damaged .*save the adapter again"):
        find_source(str(lora), "draft")
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/where"}')
    with pytest.raises(DslError, match=r"model of draft .*lora, folder /no/where does not exist"):
        find_source(str(lora), "draft")


def test_a_file_or_folder_that_is_no_model_is_answered_with_what_to_give(pair_folders, tmp_path):
    model = Path(shutil.copytree(pair_folders.target, tmp_path / "run" / "checkpoint-9"))
    (tmp_path / "files").mkdir()
    for name in ("alone.safetensors", "notes.txt", "q.gguf"):
        (tmp_path / "files" / name).touch()
    (tmp_path / "dsl").mkdir()
    (tmp_path / "dsl" / "config.json").touch()
    (tmp_path / "dsl" / "predictor.onnx").touch()
    expected = {
        model / "model.safetensors": rf"is a file of weights, not a model's folder; give its folder, {model}",
        tmp_path / "files" / "alone.safetensors": r"is a file of weights, .*no config.json beside it; give a GGUF file",
        model / "tokenizer.json": r"is a file, not a model's folder; give its folder",
        tmp_path / "files": rf"has no config.json; give a GGUF file of it, such as {tmp_path}/files/q.gguf",
        tmp_path / "run": rf"has no config.json; give a model's folder in it, such as {model}",
        tmp_path / "dsl": r"holds a predictor, not a model; give the draft's folder",
        tmp_path: r"has no config.json; give a folder written by save_pretrained",
    }
    for path, message in expected.items():
        with pytest.raises(DslError, match=message):
            load_pair(pair_folders.target, str(path))
