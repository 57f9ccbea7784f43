"""The direct decoder and the growing cache against transformers' own forward, on tiny models of many families."""

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_model, save_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.policies.registry import make_policy
from dsl_train.runners import llama
from dsl_train.runners.cached import CachedModel, LibraryDecoder
from dsl_train.runners.llama import DirectDecoder

VOCAB, CONTEXT = 64, 512
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DIRECT = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-biased": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama-3": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "llama-wide-heads": LlamaConfig(**SHAPE, head_dim=16),
    "llama-ungrouped": LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
}
GENERAL = {
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=16),
    "gemma-2": Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "llama-dynamic": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=None, eos_token_id=None
    ),
    "opt": OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=32,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    ),
}


def make(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def text(length, seed=0):
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", DIRECT)
@torch.inference_mode()
def test_direct_logits_are_the_models_own_whatever_is_fed_at_a_time(name):
    model, tokens = make(DIRECT[name]), text(300)
    runner = CachedModel(model)
    assert isinstance(runner._decoder, DirectDecoder)
    expected = model(torch.tensor([tokens])).logits[0]
    for end, keep, back in ((7, 7, 2), (12, 3, 11), (13, 1, 13), (270, 5, 260), (275, 15, 275), (300, 25, 0)):
        found = runner.logits(tokens[:end], keep)
        torch.testing.assert_close(found, expected[end - keep : end], rtol=0, atol=2e-5)
        runner.truncate(back)


@pytest.mark.parametrize("name", [*DIRECT, *GENERAL])
def test_every_family_generates_what_transformers_generates_alone_and_with_a_draft(name):
    model, draft = make({**DIRECT, **GENERAL}[name]), make(DIRECT["llama"], seed=1)
    runner, prompt = CachedModel(model), text(9)
    assert isinstance(runner._decoder, LibraryDecoder if name in GENERAL else DirectDecoder)
    settings = GenerationConfig(max_new_tokens=60, do_sample=False, pad_token_id=0)
    inputs = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    expected = model.generate(**inputs, generation_config=settings)[0, len(prompt) :].tolist()
    assert list(autoregressive(runner, prompt, 60).token_ids) == expected
    for other in (CachedModel(draft), CachedModel(model)):  # accepted now and then; always
        engine = SpeculativeEngine(runner, other, make_policy("random:0.7"))
        assert list(engine.generate(prompt, 60).token_ids) == expected
        reverse = SpeculativeEngine(other, CachedModel(model), make_policy("random:0.7"))
        assert reverse.generate(prompt, 60).token_ids == autoregressive(other, prompt, 60).token_ids


def test_a_model_that_somebody_has_altered_is_left_to_transformers():
    model = make(DIRECT["llama"])
    assert llama.fits(model)
    projection = model.model.layers[0].self_attn.q_proj
    handle = projection.register_forward_hook(lambda *_: None)
    assert not llama.fits(model)
    handle.remove()
    projection.forward = projection.forward
    assert not llama.fits(model)
    del projection.forward
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(torch.nn.Linear(32, 48, bias=False))
    assert not llama.fits(model)


@torch.inference_mode()
def test_weights_changed_in_place_are_seen():
    model, tokens = make(DIRECT["llama"]), text(5)
    runner = CachedModel(model)
    runner.logits(tokens, 1)
    model.load_state_dict(make(DIRECT["llama"], seed=3).state_dict())
    runner.reset()
    torch.testing.assert_close(runner.logits(tokens, 5), model(torch.tensor([tokens])).logits[0], rtol=0, atol=2e-5)


def test_matrices_laid_side_by_side_stay_the_models_own_trainable_and_savable(tmp_path):
    model, tokens = make(DIRECT["qwen2"]), torch.tensor([text(9)])
    untouched, inputs = make(DIRECT["qwen2"]), {"input_ids": tokens, "labels": tokens}
    first, second = DirectDecoder(model), DirectDecoder(model)
    assert first.layers[0].gate_up.weight.data_ptr() == second.layers[0].gate_up.weight.data_ptr()
    attention = model.model.layers[1].self_attn
    assert first.layers[1].query_key_value.bias[32:48].data_ptr() == attention.k_proj.bias.data_ptr()
    for each in (model, untouched):
        each(**inputs).loss.backward()
    for name, weight in untouched.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
        assert torch.equal(weight.grad, model.get_parameter(name).grad), name
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in untouched.state_dict().items())


def test_a_model_that_has_been_run_is_written_by_safetensors(tmp_path):
    model = make_model(seed=0)
    expected = CachedModel(model).logits([5, 9, 13], keep=3)
    save_model(model, str(tmp_path / "model.safetensors"))
    other = make_model(seed=1)
    CachedModel(other).logits([5], keep=1)
    load_model(other, str(tmp_path / "model.safetensors"))  # in place, where a decoder reads
    assert torch.equal(CachedModel(other).logits([5, 9, 13], keep=3), expected)
    layer = model.model.layers[0].self_attn
    assert layer.k_proj.weight.data_ptr() == layer.q_proj.weight.data_ptr() + layer.q_proj.weight.nbytes
