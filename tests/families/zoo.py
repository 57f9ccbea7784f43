"""Tiny models of many families, built from their real configuration classes: random weights, two layers, float32.

A draft is its target with noise on the weights, so that some of its tokens are accepted and some are not.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB_SIZE, CONTEXT, WINDOW, END = 48, 128, 8, 0
SPREAD, NOISE = 0.3, 0.1  # standard deviation of the weights; of the draft's noise, in theirs

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
}
_OLD_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48, "rotary_dim": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SLIDING = {"sliding_window": WINDOW}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
_IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


_ENCODED = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_T5 = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
_AUDIO = {
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": CONTEXT,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture; its classes are named as transformers names them."""

    model: str
    what: str
    """What is special about it."""
    settings: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    """Configuration class; by default the model's with the head replaced."""
    draft: dict[str, Any] = field(default_factory=dict)
    """Settings in which the draft differs."""
    seed: int = 0
    """Of the weights: some draws repeat one token for ever."""

    @property
    def name(self) -> str:
        """transformers' without the head."""
        return (
            self.model.removesuffix("ForCausalLM").removesuffix("LMHeadModel").removesuffix("ForConditionalGeneration")
        )

    @property
    def title(self) -> str:
        return f"{self.name}: {self.what}"

    def make(self, **changes: Any) -> PreTrainedModel:
        """Weights are wide enough for distributions that are not flat; they depend on their shapes alone."""
        config_class = getattr(transformers, self.config or f"{self.name}Config")
        shape = {} if "text_config" in self.settings else _ENCODED if "encoder" in self.what else _SHAPE
        torch.manual_seed(self.seed)
        model: PreTrainedModel = getattr(transformers, self.model)(config_class(**shape | self.settings | changes))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=SPREAD)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = END
        return model.eval()


@cache
def make_pair(family: Family) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The draft has the target's weights, as far as it has them, with noise. Both are shared: not to be changed."""
    target, draft = family.make(), family.make(**family.draft)
    draft.load_state_dict(target.state_dict(), strict=not family.draft)
    return target, add_noise(draft)


def add_noise(model: PreTrainedModel) -> PreTrainedModel:
    """What makes a draft of a target."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight += NOISE * SPREAD * torch.randn(weight.shape, generator=generator)
    return model


FAMILIES: tuple[Family, ...] = (
    Family("LlamaForCausalLM", "grouped heads, rotary positions"),
    Family("MistralForCausalLM", "sliding window", _SLIDING),
    Family("MixtralForCausalLM", "mixture of experts", _EXPERTS),
    Family("Qwen2ForCausalLM", "biased projections"),
    Family("Qwen2MoeForCausalLM", "experts, one shared", _EXPERTS | {"shared_expert_intermediate_size": 24}),
    Family("Qwen3ForCausalLM", "normalised queries and keys", {"head_dim": 8}),
    Family("Qwen3MoeForCausalLM", "mixture of experts", _EXPERTS | {"head_dim": 8}),
    Family("GemmaForCausalLM", "wide heads", {"head_dim": 16}),
    Family("Gemma2ForCausalLM", "mixed window, soft caps", _MIXED),
    Family("Gemma3ForCausalLM", "mixed window, two rotary bases", _MIXED, "Gemma3TextConfig"),
    Family(
        "Gemma3nForCausalLM",
        "mixed window, layers that share keys and values",
        _MIXED
        | {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        "Gemma3nTextConfig",
    ),
    Family("Phi3ForCausalLM", "fused projections, sliding window", _SLIDING),
    Family("GPT2LMHeadModel", "learned positions", _OLD_NAMES),
    Family(
        "GPTNeoForCausalLM",
        "learned positions, local window",
        {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "num_layers": 2, "num_heads": 4},
    ),
    Family("GPTNeoXForCausalLM", "partial rotary positions, parallel blocks"),
    Family("GPTJForCausalLM", "partial rotary positions", _OLD_NAMES),
    Family("OPTForCausalLM", "learned positions counted from the mask", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Family("CodeGenForCausalLM", "partial rotary positions", _OLD_NAMES),
    Family("GPTBigCodeForCausalLM", "one key-value head", _OLD_NAMES),
    Family("BloomForCausalLM", "ALiBi positions", {"n_layer": 2, "n_head": 4}),
    Family(
        "MptForCausalLM",
        "ALiBi positions",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT, "use_cache": True},
    ),
    Family("FalconForCausalLM", "one key-value head, parallel blocks"),
    Family("StableLmForCausalLM", "partial rotary positions"),
    Family("Starcoder2ForCausalLM", "sliding window", _SLIDING),
    Family("Olmo2ForCausalLM", "norms after the blocks"),
    Family("CohereForCausalLM", "parallel blocks, scaled logits"),
    Family("Cohere2ForCausalLM", "mixed window", _MIXED),
    Family("GraniteForCausalLM", "scaled residuals and logits"),
    Family("DeepseekV3ForCausalLM", "compressed keys and values, experts", _EXPERTS | _LATENT),
    Family("SmolLM3ForCausalLM", "a layer without positions", {"no_rope_layers": [1, 0]}),
    Family("GptOssForCausalLM", "mixed window, attention sinks, experts", _EXPERTS | _MIXED),
    Family(
        "Llama4ForCausalLM",
        "chunked window, experts",
        _EXPERTS
        | {
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "layer_types": ["chunked_attention", "full_attention"],
            "head_dim": 8,
        },
        "Llama4TextConfig",
    ),
    Family("Lfm2ForCausalLM", "convolution layers", {"layer_types": ["conv", "full_attention"]}),
    Family(
        "LlavaForConditionalGeneration",
        "text through a multimodal model",
        {
            "text_config": {"model_type": "llama"} | _SHAPE,
            "vision_config": {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8} | _IMAGES,
            "image_token_index": VOCAB_SIZE - 1,
        },
    ),
    Family(
        "Gemma3ForConditionalGeneration",
        "text through a multimodal model, mixed window",
        {
            "text_config": _SHAPE | _MIXED,
            "vision_config": {"image_size": 16, "patch_size": 8} | _IMAGES,
            "image_token_index": VOCAB_SIZE - 1,
            "tie_word_embeddings": False,
        },
    ),
)
ENCODER_DECODERS: tuple[Family, ...] = (
    Family("T5ForConditionalGeneration", "encoder-decoder, relative positions", _T5),
    Family(
        "T5ForConditionalGeneration", "encoder-decoder, the draft's encoder is smaller", _T5, draft={"num_layers": 1}
    ),
    Family("MT5ForConditionalGeneration", "encoder-decoder, gated", _T5),
    Family("BartForConditionalGeneration", "encoder-decoder, learned positions", seed=1),
    Family("PegasusForConditionalGeneration", "encoder-decoder, fixed positions"),
    Family("WhisperForConditionalGeneration", "encoder-decoder of audio features", _AUDIO),
    Family(
        "WhisperForConditionalGeneration",
        "encoder-decoder of audio features, the draft's encoder is smaller",
        _AUDIO,
        draft={"encoder_layers": 1},
    ),
)
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}
_ROUTED = _EXPERTS | {"shared_expert_intermediate_size": 24, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
_INKLING = _ROUTED | {
    "head_dim": 8,
    "sliding_window_size": WINDOW,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 16,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
_SMALL_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_NO_LIMIT = {"time_step_min": 1e-30}  # tests/test_recurrent.py tells what transformers does with limits
RECURRENT: tuple[Family, ...] = (
    Family(
        "Mamba2ForCausalLM",
        "recurrent state",
        {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    ),
    Family("Qwen3NextForCausalLM", "full and linear attention, experts", _ROUTED | _LINEAR),
    Family("Qwen3_5ForCausalLM", "full and linear attention", _LINEAR, "Qwen3_5TextConfig"),
    Family("Qwen3_5MoeForCausalLM", "full and linear attention, experts", _ROUTED | _LINEAR, "Qwen3_5MoeTextConfig"),
    Family(
        "Qwen4ExpForCausalLM",
        "full and linear attention, experts, hashed n-grams",
        _ROUTED
        | _LINEAR
        | {
            "hc_count": 2,
            "hc_lowrank": 8,
            "ple_layer_ids": [1],
            "ple_embed_dim": 16,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 40,
            "make_ngram_vocab_size_divisible_by": 4,
            "split_ngram_parts": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        },
        "Qwen4ExpTextConfig",
    ),
    Family("OlmoHybridForCausalLM", "full and linear attention", _LINEAR),
    Family(
        "KimiLinearForCausalLM",
        "compressed and linear attention, experts",
        _ROUTED | _LINEAR | _SMALL_LATENT | {"linear_head_dim": 8, "linear_num_heads": 4},
    ),
    Family("BailingHybridForCausalLM", "compressed and linear attention, experts", _ROUTED | _LINEAR | _SMALL_LATENT),
    Family(
        "NemotronHForCausalLM",
        "attention and recurrent layers, experts",
        _ROUTED
        | _NO_LIMIT
        | {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "moe", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    Family(
        "FalconH1ForCausalLM",
        "attention beside a recurrent state",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16},
    ),
    Family("BambaForCausalLM", "attention and recurrent layers", _MAMBA2 | {"attn_layer_indices": [1]}),
    Family(
        "GraniteMoeHybridForCausalLM",
        "attention and recurrent layers, experts",
        _MAMBA2 | _EXPERTS | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    Family(
        "Zamba2ForCausalLM",
        "shared attention beside recurrent layers",
        _NO_LIMIT
        | {
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "chunk_size": 16,
        },
    ),
    Family(
        "ZayaForCausalLM",
        "attention over convolutions, experts",
        {
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 24,
            "router_hidden_size": 16,
            "head_dim": 8,
        },
    ),
    Family(
        "InklingForCausalLM",
        "mixed window over convolutions, experts",
        _INKLING
        | {
            "layer_types": ["hybrid_sliding", "hybrid"],
            "n_shared_experts": 1,
        },
        "InklingTextConfig",
    ),
    Family(
        "Inkling2ForCausalLM",
        "mixed window over convolutions, experts",
        _INKLING
        | {
            "n_layers_per_attn_res_block": 2,
            "unpadded_vocab_size": VOCAB_SIZE,
        },
        "Inkling2TextConfig",
    ),
    Family("Lfm2MoeForCausalLM", "convolution layers, experts", _EXPERTS | {"layer_types": ["conv", "full_attention"]}),
    Family("Lfm3ForCausalLM", "convolution layers", {"layer_types": ["conv", "full_attention"]}),
)
#: They read several tokens from an empty state: drafts at most.
ONE_BY_ONE: tuple[Family, ...] = (
    Family("MambaForCausalLM", "recurrent state"),
    Family("FalconMambaForCausalLM", "recurrent state"),
    Family(
        "JambaForCausalLM",
        "attention and recurrent layers, experts",
        _EXPERTS | {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    Family(
        "ZambaForCausalLM",
        "shared attention beside recurrent layers",
        {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 2, "mamba_d_state": 8},
    ),
)
REFUSED: tuple[Family, ...] = (
    *ONE_BY_ONE,
    Family(
        "RecurrentGemmaForCausalLM",
        "window and recurrent layers",
        {"attention_window_size": WINDOW, "lru_width": 32, "num_hidden_layers": 3},
    ),
    Family(
        "DeepseekV4ForCausalLM",
        "compressed spans of text",
        {
            "head_dim": 8,
            "q_lora_rank": 8,
            "o_lora_rank": 8,
            "o_groups": 2,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "sliding_window": WINDOW,
        },
    ),
    Family("RwkvForCausalLM", "recurrent state", {"attention_hidden_size": 32}),
    Family("xLSTMForCausalLM", "recurrent state"),
    Family("BertLMHeadModel", "reads in both directions"),
)
ALL = (*FAMILIES, *RECURRENT, *ENCODER_DECODERS, *REFUSED)
