"""Keys and values that grow without being copied at every step.

transformers' own layer concatenates: each forward copies the whole text's keys and values, and a token costs the more
the longer the text. Here a buffer doubles when it is full. Letters: B texts, H heads, T tokens so far, D head size.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_FIRST_CAPACITY = 256  # tokens


class GrowingLayer(DynamicLayer):
    """One layer's `keys` and `values`, views of the filled part of two buffers; cropping shortens the views."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, H, new, D] each -> [B, H, T, D] each
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states[..., :0, :], value_states[..., :0, :]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self._keys, self._values = reserve(self._keys, start, end), reserve(self._values, start, end)
        self._keys[..., start:end, :], self._values[..., start:end, :] = key_states, value_states
        self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
        return self.keys, self.values


def reserve(buffer: torch.Tensor, filled: int, needed: int) -> torch.Tensor:  # [..., capacity, D], capacity >= needed
    """`buffer` itself if it holds `needed` tokens, otherwise a larger one that begins with its first `filled`."""
    if needed <= buffer.shape[-2]:
        return buffer
    larger = buffer.new_empty((*buffer.shape[:-2], max(_FIRST_CAPACITY, 2 * needed), buffer.shape[-1]))
    larger[..., :filled, :] = buffer[..., :filled, :]
    return larger


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """transformers' cache for this model, with growing layers wherever a layer keeps every token.

    Layers that forget, sliding windows and the like, stay as they are, prepared for being rolled back.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    cache.activate_past_recording()
    return cache


def keeps_every_token(config: PreTrainedConfig) -> bool:
    """Whether every layer attends to the whole text. GPT-Neo keeps it all but has layers that look back a little."""
    decoder = config.get_text_config(decoder=True)
    hidden = "local" in (getattr(decoder, "attention_layers", None) or ())
    return not hidden and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
