"""A batch of texts of different lengths through one model, with branches that leave them.

Like `runner.py`, this touches KV caches; no other module does. Letters: B texts, T columns (the longest text), C
columns at a time, n branches, V vocabulary. Texts are aligned at their ends, so T - 1 is everyone's last token:

    column       0   1   2   3   4
    text 0       -   -   a   b   c        position of c: 2
    text 1       a   b   c   d   e        position of e: 4
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel


class PaddedModel:
    """A causal language model over left-padded texts."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> None:
        self.model, self.device = model, model.device
        self.num_columns = max(map(len, texts))
        padding = [self.num_columns - len(text) for text in texts]
        rows = [[0] * pad + list(text) for pad, text in zip(padding, texts, strict=True)]
        self.padding = torch.tensor(padding, device=self.device)  # [B]
        self.token_ids = torch.tensor(rows, device=self.device)  # [B, T]
        columns = torch.arange(self.num_columns, device=self.device)
        self.mask = (columns >= self.padding[:, None]).long()  # [B, T]
        self._cache = DynamicCache(config=model.config)

    def logits(self, first: int, chunk: int) -> Iterator[torch.Tensor]:
        """Logits at columns `first` .. T - 1, up to `chunk` at a time: [B, <= C, V]. Fills the cache on its way."""
        if first > 0:
            self._feed(0, first, keep=1)
        for column in range(first, self.num_columns, chunk):
            yield self._feed(column, min(column + chunk, self.num_columns), keep=chunk)

    def branches(self, row: int, columns: torch.Tensor) -> "Branches":
        """Continuations of one text that leave it before the given columns [n]; the whole text must be cached."""
        return Branches(self.model, self._cache, row, self.mask[row], columns, columns - self.padding[row])

    def _feed(self, begin: int, end: int, keep: int) -> torch.Tensor:
        positions = torch.arange(begin, end, device=self.device) - self.padding[:, None]  # [B, end - begin]
        output = self.model(
            input_ids=self.token_ids[:, begin:end],
            attention_mask=self.mask[:, :end],
            position_ids=positions.clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=min(keep, end - begin),
        )
        logits: torch.Tensor = output.logits
        return logits


class Branches:
    """n continuations that share one text's cache: each sees the text before its own column and its own tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        row: int,
        text_mask: torch.Tensor,  # [T]
        columns: torch.Tensor,  # [n]
        positions: torch.Tensor,  # [n] text index of the first token of each
    ) -> None:
        self.model, self.positions = model, positions
        num_columns, count = len(text_mask), len(columns)
        before = torch.arange(num_columns, device=columns.device) < columns[:, None]
        self.mask = text_mask * before.long()  # [n, T]
        self._cache = DynamicCache(config=model.config)
        for i, layer in enumerate(cache.layers):
            keys, values = (getattr(layer, name)[row : row + 1] for name in ("keys", "values"))
            self._cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), i)

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Feed one token to each branch, [n]; returns [n, V]."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        output = self.model(
            input_ids=token_ids[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def shares_cache(model: PreTrainedModel) -> bool:
    """Whether branches may share a text's cache: every layer keeps every token (no sliding window, no state)."""
    cache = DynamicCache(config=model.config)
    return not any(getattr(layer, "is_sliding", False) for layer in cache.layers)
