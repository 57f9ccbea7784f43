"""Encoder-decoder models in the loop: a runner whose text is the decoder's, read beside one encoded input.

The input is encoded once by each model with its own encoder, so a pair needs one vocabulary but no common encoder.
Letters: S encoder positions, H hidden size, T tokens fed, V
vocabulary.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from dsl_train.kv_cache import growing_cache
from dsl_train.runner import CachedModel, context_length


class EncoderDecoderModel(CachedModel):
    """The decoder's cache of one text; token ids are the decoder's, its start token first."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder_states: torch.Tensor,  # [1, S, H]
        encoder_mask: torch.Tensor | None = None,  # [1, S], 0 hides a position
    ) -> None:
        super().__init__(model)
        self.context = getattr(model.config, "max_target_positions", None) or context_length(model)
        self._decoder = _EncodedDecoder(model, encoder_states, encoder_mask)
        self.reset()

    @classmethod
    @torch.inference_mode()
    def encode(
        cls, model: PreTrainedModel, inputs: torch.Tensor, encoder_mask: torch.Tensor | None = None
    ) -> "EncoderDecoderModel":
        """`inputs` as the model's own encoder reads them: token ids [1, S], or audio features."""
        encoder: Callable[..., Any] = model.get_encoder()  # type: ignore[operator]  # annotated as Tensor | Module
        read = {model.main_input_name: inputs.to(model.device)}
        states = encoder(**read, attention_mask=encoder_mask, return_dict=True).last_hidden_state
        return cls(model, states, encoder_mask)


class _EncodedDecoder:
    """Feeds the decoder; what it reads of the encoded input is computed once and outlives a reset."""

    def __init__(self, model: PreTrainedModel, states: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.model, self.mask = model, mask
        self.encoded = BaseModelOutput(last_hidden_state=states)
        self.config = model.get_decoder().config.get_text_config(decoder=True)
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cross_attention = DynamicCache(config=self.config)  # filled by the first forward
        self.reset()

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:  # [T] -> [keep, V]
        output = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=token_ids[None],
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **({"logits_to_keep": keep} if self.keeps else {}),
        )
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def truncate(self, num_removed: int) -> None:
        self._cache.crop(-num_removed)

    def reset(self) -> None:
        self._cache = EncoderDecoderCache(growing_cache(self.config), self._cross_attention)
