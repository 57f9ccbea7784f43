"""A tiny random pair that every test may use: 64 tokens, two layers, a draft that agrees now and then."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, dynamic_module_utils

from dsl_train.api import calibration
from dsl_train.base.records import DraftStep, no_features

#: `make test-vllm` has an environment of its own.
collect_ignore = [] if find_spec("vllm") and find_spec("vllm.engine") else ["vllm"]

VOCAB_SIZE, CONTEXT, END = 64, 256, "<|end|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; id 0 ends a text, id 1 is anything unknown."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789 \n.,:;()[]\"'_=+-*"
    tokens = [END, "<|unknown|>", *characters][:VOCAB_SIZE]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=tokens[1])


def make_model(seed: int, num_layers: int = 2, vocab_size: int = VOCAB_SIZE) -> LlamaForCausalLM:
    """Random weights, large enough for distributions that are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def seen(step: DraftStep) -> DraftStep:
    """The step with the features that it shows now, whatever the block becomes."""
    if step.read_features is no_features:
        return step
    vector = step.features
    return step._replace(read_features=lambda: vector)


def perturb(model: LlamaForCausalLM, scale: float, seed: int) -> LlamaForCausalLM:
    """A copy whose weights are off by `scale` of their spread: the larger, the fewer drafts are accepted."""
    copy = make_model(seed)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.dim() > 1:
                weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
    return copy


@dataclass(frozen=True)
class PairFolders:
    target: str
    draft: str


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is cached of tiny models stays out of the user's cache; so does code that transformers copies."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    calibration.MAX_SECONDS = 0.0  # as few turns as there may be
    dynamic_module_utils.HF_MODULES_CACHE = str(tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="session")
def tiny_target() -> LlamaForCausalLM:
    return make_model(seed=0)


@pytest.fixture(scope="session")
def tiny_draft(tiny_target: LlamaForCausalLM) -> LlamaForCausalLM:
    return perturb(tiny_target, scale=0.15, seed=1)


@pytest.fixture(scope="session")
def pair_folders(
    tiny_target: LlamaForCausalLM, tiny_draft: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> PairFolders:
    """Both models with the tokenizer, saved; tests must not change them (copy first)."""
    root: Path = tmp_path_factory.mktemp("pair")
    for name, model in (("target", tiny_target), ("draft", tiny_draft)):
        model.save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return PairFolders(str(root / "target"), str(root / "draft"))
