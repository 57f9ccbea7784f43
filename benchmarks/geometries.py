"""Pairs with random weights, from tiny to larger: what the loops cost, whatever the models say."""

from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair

_HEAD_SIZE = 64


class Geometry(NamedTuple):
    layers: int
    hidden: int
    vocabulary: int
    draft_layers: int = 2


GEOMETRIES = {
    "tiny": Geometry(2, 64, 1024, draft_layers=1),
    "small": Geometry(8, 256, 8192),
    "large-vocabulary": Geometry(4, 256, 151_936),
    "medium": Geometry(12, 512, 8192),
    "larger": Geometry(16, 1024, 32_000),
}


def random_pair(geometry: Geometry, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """Texts of it never end by themselves. The tokenizer is for those who ask a pair for one."""
    target, draft = (_model(geometry, layers) for layers in (geometry.layers, geometry.draft_layers))
    return Pair(
        target, draft, tokenizer, describe_model(target, "random target"), describe_model(draft, "random draft")
    )


def random_prompts(geometry: Geometry, num_prompts: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    prompts: list[list[int]] = torch.randint(geometry.vocabulary, (num_prompts, length), generator=generator).tolist()
    return prompts


def _model(geometry: Geometry, num_layers: int) -> PreTrainedModel:
    torch.manual_seed(num_layers)
    num_heads = max(1, geometry.hidden // _HEAD_SIZE)
    config = LlamaConfig(
        vocab_size=geometry.vocabulary,
        hidden_size=geometry.hidden,
        intermediate_size=int(2.75 * geometry.hidden),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 2),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = []
    return model
