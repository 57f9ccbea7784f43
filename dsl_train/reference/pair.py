"""Shapes of the reference pair: a deep, narrow target and a draft of two layers (decoding time goes by layers)."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 4096
CONTEXT = 2048


def target_model(device: str) -> LlamaForCausalLM:
    return llama(device, num_layers=12, hidden_size=256, mlp_size=704, num_heads=4)


def draft_model(device: str) -> LlamaForCausalLM:
    return llama(device, num_layers=2, hidden_size=256, mlp_size=704, num_heads=4)


def llama(device: str, num_layers: int, hidden_size: int, mlp_size: int, num_heads: int) -> LlamaForCausalLM:
    """Any other member of the family, for benchmarks."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)
