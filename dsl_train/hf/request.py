"""What transformers' `generate` prepared for a decoding method. Every option is honoured or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerationMode

from dsl_train.base.records import DslError

#: Arguments of the forward that `generate` sets by itself, or that are read here.
_READ = {
    *("attention_mask", "position_ids", "past_key_values", "cache_params", "use_cache", "logits_to_keep"),
    *("encoder_outputs", "inputs_embeds"),
}
_REFUSED_SETTINGS = ("output_attentions", "output_hidden_states", "prefill_chunk_size", "compile_config")


@dataclass(frozen=True, eq=False)
class TextRequest:
    """One text to continue."""

    token_ids: list[int]
    """The prompt without its left padding."""
    padding: list[int]
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    criteria: tuple[StoppingCriteria, ...]
    """All but maximum length and end-of-text tokens."""
    return_dict: bool
    output_scores: bool
    output_logits: bool

    @property
    def keep_rows(self) -> bool:
        """Whether each token's logits are wanted at the end."""
        return self.return_dict and (self.output_scores or self.output_logits)

    def check_room(self, context: int) -> None:
        """Raises DslError unless the whole text fits: transformers would go on where the model was never trained."""
        longest = len(self.token_ids) + self.max_new_tokens
        if longest > context + 1:
            raise DslError(
                f"a text of {longest} tokens does not fit the target's context of {context}; "
                f"set max_new_tokens to {max(0, context + 1 - len(self.token_ids))} or less"
            )


def read_request(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    criteria: StoppingCriteriaList,
    settings: GenerationConfig,
    model_kwargs: Mapping[str, Any],
) -> TextRequest:
    """Raises DslError naming the first option that the loop cannot honour."""
    _check_settings(settings)
    _check_inputs(input_ids, model_kwargs)
    num_padding = 0 if model.config.is_encoder_decoder else left_padding(input_ids, model_kwargs)
    ids: list[int] = input_ids[0].tolist()
    ends = [c.eos_token_id.flatten().tolist() for c in criteria if isinstance(c, EosTokenCriteria)]
    longest = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    if not longest:
        raise DslError("generation has no maximum length; pass max_new_tokens or max_length")
    wanted = bool(settings.return_dict_in_generate)
    return TextRequest(
        token_ids=ids[num_padding:],
        padding=ids[:num_padding],
        max_new_tokens=min(longest) - len(ids),
        eos_token_ids=frozenset(token_id for end in ends for token_id in end),
        criteria=tuple(c for c in criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)),
        return_dict=wanted,
        output_scores=wanted and bool(settings.output_scores),
        output_logits=wanted and bool(settings.output_logits),
    )


def _check_settings(settings: GenerationConfig) -> None:
    mode = settings.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise _unsupported(f"generation mode {mode.value!r}", "use greedy search or sampling with one beam")
    if (settings.num_return_sequences or 1) > 1:
        raise _unsupported(f"num_return_sequences={settings.num_return_sequences}", "call generate once per text")
    for name in _REFUSED_SETTINGS:
        if getattr(settings, name, None):
            raise _unsupported(f"{name}={getattr(settings, name)!r}", "leave it out")
    if settings.cache_implementation == "quantized":
        raise _unsupported("cache_implementation='quantized'", "its rounding depends on the lookahead; leave it out")


def _check_inputs(input_ids: torch.Tensor, model_kwargs: Mapping[str, Any]) -> None:
    if input_ids.shape[0] > 1:
        raise _unsupported(f"a batch of {input_ids.shape[0]}", "call generate once per text")
    embeddings = model_kwargs.get("inputs_embeds")
    if embeddings is not None and embeddings.shape[1] != input_ids.shape[1]:
        raise _unsupported(
            f"inputs_embeds of {embeddings.shape[1]} positions beside {input_ids.shape[1]} input_ids",
            "the draft cannot read the target's embeddings; pass an id for each position beside them",
        )
    for name in ("past_key_values", "cache_params"):
        if getattr(model_kwargs.get(name), "_is_user_defined", False):
            raise _unsupported(f"{name} of an earlier call", "pass the whole text as input_ids")
    for name, value in model_kwargs.items():
        if name not in _READ and not _blank(name, value):
            raise _unsupported(name, "leave it out, or generate without a draft")


def _blank(name: str, value: Any) -> bool:
    """Whether an argument has no effect: text has token types 0, and no images."""
    if name.endswith("token_type_ids"):
        return value is None or not bool(value.any())
    if name == "mm_encoder_outputs":
        return not any(output is not None for output in (value or {}).values())
    return value is None or value is False


def left_padding(input_ids: torch.Tensor, model_kwargs: Mapping[str, Any]) -> int:
    """Leading positions that the mask hides. Raises DslError for other masks, and for positions of the user's own."""
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    hidden = 0 if mask is None else int((mask[0] == 0).sum())
    if mask is not None and (mask.shape != input_ids.shape or not bool((mask[0, hidden:] == 1).all())):
        raise _unsupported("an attention mask other than left padding", "pass the visible tokens alone")
    if positions is not None:
        plain = torch.arange(positions.shape[-1] - hidden, device=positions.device)
        if not bool((positions[..., hidden:] == plain).all()):
            raise _unsupported("position_ids other than 0, 1, 2, ...", "leave them out")
    return hidden


def _unsupported(what: str, advice: str) -> DslError:
    return DslError(f"speculative decoding cannot honour {what}; {advice}")
