"""Encoder-decoder models in the loop: a runner whose text is the decoder's, read beside one encoded input.

The input is encoded once by each model with its own encoder, so a pair needs one vocabulary but no common encoder.
Letters: B texts, S encoder positions, H hidden size, T tokens fed, V vocabulary.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from dsl_train.runners.cached import CachedModel
from dsl_train.runners.kv_cache import growing_cache


class EncoderDecoderModel(CachedModel):
    """The decoder's cache of one text; token ids are the decoder's, its start token first."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder_states: torch.Tensor | None = None,  # [1, S, H]; None: `read` comes first
        encoder_mask: torch.Tensor | None = None,  # [1, S], 0 hides a position
    ) -> None:
        super().__init__(model)
        self._inputs: torch.Tensor | None = None
        self._decoder = self._encoded = _EncodedDecoder(model)
        if encoder_states is not None:
            self._encoded.begin(lambda: encoder_states, encoder_mask)
        self.reset()

    @classmethod
    def encode(
        cls, model: PreTrainedModel, inputs: torch.Tensor, encoder_mask: torch.Tensor | None = None
    ) -> "EncoderDecoderModel":
        """A runner that has been given `inputs` to read."""
        runner = cls(model)
        runner.read(inputs, encoder_mask)
        return runner

    def read(self, inputs: torch.Tensor, encoder_mask: torch.Tensor | None = None) -> None:
        """From now on continue texts beside `inputs`, as the model's own encoder reads them: token ids [1, S], or audio
        features. They are encoded when a text first needs it; the same tensor again is not encoded again."""
        if inputs is not self._inputs:
            self._inputs = inputs
            self._encoded.begin(partial(encoder_states, self.model, inputs, encoder_mask), encoder_mask)
        self.reset()


class _EncodedDecoder:
    """Feeds the decoder; what it reads of the encoded input is computed once and outlives a reset."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.get_decoder().config.get_text_config(decoder=True)
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cross_attention = DynamicCache(config=self.config)

    def begin(self, encode: Callable[[], torch.Tensor], mask: torch.Tensor | None) -> None:
        """`encode` gives the encoder's states [1, S, H]; it is called when they are needed."""
        self._encode, self.mask = encode, mask
        self._states: BaseModelOutput | None = None
        self._cross_attention = DynamicCache(config=self.config)  # filled by the first forward

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:  # [T] -> [keep, V]
        if self._states is None:
            self._states = BaseModelOutput(last_hidden_state=self._encode())
        output = self.model(
            encoder_outputs=self._states,
            attention_mask=self.mask,
            decoder_input_ids=token_ids[None],
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **({"logits_to_keep": keep} if self.keeps else {}),
        )
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def truncate(self, num_removed: int) -> int:
        self._cache.crop(-num_removed)
        return num_removed

    def reset(self) -> None:
        self._cache = EncoderDecoderCache(growing_cache(self.config), self._cross_attention)


@torch.inference_mode()
def encoder_states(
    model: PreTrainedModel,
    inputs: torch.Tensor,  # [B, S] token ids, or [B, ...] audio features
    mask: torch.Tensor | None = None,  # [B, S]
) -> torch.Tensor:  # [B, S, H]
    encoder: Callable[..., Any] = model.get_encoder()  # type: ignore[operator]  # annotated as Tensor | Module
    placed = inputs.to(model.device, model.dtype if inputs.is_floating_point() else inputs.dtype)
    read = {model.main_input_name: placed}
    states: torch.Tensor = encoder(**read, attention_mask=mask, return_dict=True).last_hidden_state
    return states
