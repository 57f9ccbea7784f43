"""`padded.py` for encoder-decoders: decoders of several texts, each beside its own encoded input.

Decoders of one pair begin alike, so nothing is padded. Branches are read in copies of the cache, those that leave at
one text length together: positions are counted from the cache's length. Letters: B texts, C tokens at a time, S encoder
positions, H hidden size, n branches, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from dsl_train.base.records import DslError
from dsl_train.runners.encoder_decoder import encoder_states


class EncodedTexts:
    """An encoder-decoder with the caches of B texts; the interface of :class:`padded.PaddedModel`."""

    def __init__(
        self,
        model: PreTrainedModel,
        states: torch.Tensor,  # [B, S, H]
        mask: torch.Tensor | None,  # [B, S], 0 hides a position
        cache: EncoderDecoderCache | None = None,
    ) -> None:
        self.model, self.device = model, model.device
        self._states, self._mask = states, mask
        self._config = model.get_decoder().config.get_text_config(decoder=True)
        self._cache = cache or EncoderDecoderCache(*(DynamicCache(config=self._config) for _ in range(2)))

    @classmethod
    def read(
        cls, model: PreTrainedModel, sources: Sequence[torch.Tensor], texts: Sequence[Sequence[int]]
    ) -> "EncodedTexts":
        """Encodes the sources, [1, ...] each, and reads the texts, which may be empty. Raises DslError for texts of
        different lengths."""
        if len(set(map(len, texts))) > 1:
            raise DslError(f"decoder prompts of different lengths in one batch: {sorted(set(map(len, texts)))} tokens")
        inputs, mask = _side_by_side(sources, model.device)
        read = cls(model, encoder_states(model, inputs, mask), mask)
        if texts[0]:
            read.feed(torch.tensor([list(text) for text in texts], device=model.device))
        return read

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after each of the tokens [B, C] that go on from the cache: [B, C, V]."""
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=token_ids,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        logits: torch.Tensor = output.logits
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all texts but these."""
        self._states = self._states[rows]
        self._mask = None if self._mask is None else self._mask[rows]
        self._cache.batch_select_indices(rows)

    @contextmanager
    def branches(self, rows: torch.Tensor, lengths: torch.Tensor) -> Iterator["EncodedBranches"]:
        """Continuations [n] of text `rows[i]` after its first `lengths[i]` tokens; forgotten in the end."""
        yield EncodedBranches(self, rows, lengths)

    def copy(self, rows: torch.Tensor, length: int) -> "EncodedTexts":
        """These texts, as they were after their first `length` tokens."""
        own, cross = (DynamicCache(config=self._config) for _ in range(2))
        layers: Any = zip(
            self._cache.self_attention_cache.layers, self._cache.cross_attention_cache.layers, strict=True
        )
        for i, (text, read) in enumerate(layers):
            own.update(text.keys[rows, :, :length], text.values[rows, :, :length], i)
            cross.update(read.keys[rows], read.values[rows], i)
        mask = None if self._mask is None else self._mask[rows]
        return EncodedTexts(self.model, self._states[rows], mask, EncoderDecoderCache(own, cross))


class EncodedBranches:
    """n continuations of some texts."""

    def __init__(self, texts: EncodedTexts, rows: torch.Tensor, lengths: torch.Tensor) -> None:  # [n] each
        places = [(lengths == length).nonzero().squeeze(-1) for length in lengths.unique()]
        self._groups = [(group, texts.copy(rows[group], int(lengths[group[0]]))) for group in places]
        self._order = torch.cat(places).argsort()

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after the one token of each branch, [n, 1]: [n, 1, V]."""
        return torch.cat([texts.feed(token_ids[group]) for group, texts in self._groups])[self._order]


def _side_by_side(
    sources: Sequence[torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [B, ...], and [B, S] where token ids are padded
    if len({source.shape for source in sources}) == 1:
        return torch.cat(list(sources)).to(device), None
    if sources[0].is_floating_point():
        shapes = sorted({tuple(source.shape[1:]) for source in sources})
        raise DslError(f"audio of different shapes in one batch: {shapes}; read it one by one")
    inputs = pad_sequence([source[0] for source in sources], batch_first=True)
    lengths = torch.tensor([source.shape[1] for source in sources])
    mask = torch.arange(inputs.shape[1]) < lengths[:, None]
    return inputs.to(device), mask.long().to(device)
