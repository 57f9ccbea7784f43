"""`padded.py` for decoders of Llama's shape on the CPU: only tokens reach the weights, padding nothing.

There each place of a padded grid costs a token's arithmetic, and transformers' Python comes on top. Here the tokens of
all texts stand in one list; the grid exists in the attention alone. Letters: N tokens, B texts, C columns at a time, L
columns so far, n branches, w branches of the text that has most, H query heads on G key heads, D head size, V
vocabulary. Columns are those of `padded.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from dsl_train.runners.cached import context_length
from dsl_train.runners.kv_cache import reserve
from dsl_train.runners.llama import Attention, LlamaLayers, fits
from dsl_train.runners.padded import BranchGrid, PaddedModel

#: Read in one go [tokens]: hundreds keep the arithmetic busy, and what lies between the weights stays in the cache.
_AT_ONCE = 512


class PackedModel:
    """A causal language model with the cache of B texts; the interface of :class:`padded.PaddedModel`."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> None:
        """Reads the texts, which may be empty; `feed` goes on."""
        self.device, self.network = model.device, LlamaLayers(model)
        self.network.begin()
        self._context, self._num_shared = context_length(model), self.network.num_heads // self.network.num_groups
        self.length = max(map(len, texts))  # cached columns
        self.padding = torch.tensor([self.length - len(text) for text in texts])  # [B]
        network = self.network
        shape = (2 * len(network.layers), len(texts), network.num_groups, 0, network.head_size)
        self.cache = network.embedding.new_empty(shape)  # [2 * layers, B, G, capacity, D]; keys, values, ...
        self.reserve(self.length)
        for row, text in enumerate(texts):  # masked, but a masked NaN is still a NaN
            self.cache[:, row, :, : self.length - len(text)] = 0
        for group in _groups(texts):
            self._read({row: texts[row] for row in group})

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after each of the tokens [B, C] that go on from the cache: [B, C, V]."""
        start, self.length = self.length, self.length + token_ids.shape[1]
        self.reserve(self.length)
        columns = torch.arange(self.length)
        mask = self.mask(columns <= columns[start:, None]) if len(columns) > start + 1 else None  # [r * C, L]
        begins = self.padding.tolist()

        def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            """Text by text, so that none reads the padding of another."""
            texts = zip(begins, queries.split(1), keys.split(1), values.split(1), strict=True)
            return torch.cat(
                [
                    functional.scaled_dot_product_attention(
                        own, k[:, :, begin:], v[:, :, begin:], None if mask is None else mask[:, begin:]
                    )
                    for begin, own, k, v in texts
                ]
            )

        positions = columns[start:] - self.padding[:, None]
        attend_to_cache = self.over_cache(len(token_ids), slice(start, self.length), attend)
        return self.logits(token_ids.flatten(), positions.flatten(), attend_to_cache).unflatten(0, token_ids.shape)

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all texts but these."""
        self.padding = self.padding[rows]
        self.cache = self.cache[:, rows, :, : self.length]

    @contextmanager
    def branches(self, rows: torch.Tensor, lengths: torch.Tensor) -> Iterator["PackedBranches"]:
        """Continuations [n] of text `rows[i]`, rising, after its first `lengths[i]` tokens; forgotten in the end."""
        yield PackedBranches(self, rows, lengths)

    def logits(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """[N, V], of tokens [N] at text positions [N]."""
        return self.network.logits_of(self._hidden(token_ids, positions, attend))

    def reserve(self, num_columns: int) -> None:
        self.cache = reserve(self.cache, self.cache.shape[-2], num_columns)

    def mask(self, visible: torch.Tensor) -> torch.Tensor:
        """What attention adds for queries of r heads each, of what each of C tokens sees: [..., C, L] bool ->
        [..., r * C, L]."""
        added = self.cache.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return torch.cat(self._num_shared * [added], dim=-2)

    def over_cache(self, num_texts: int, fresh: slice, attend: Callable[..., torch.Tensor]) -> Attention:
        """Attention of the tokens of a grid [num_texts, C], stored in the columns `fresh`, by `attend`: from queries
        [B, G, r * C, D], keys and values [B, G, L, D] to [B, G, r * C, D]; r heads share a group's keys."""
        num_fed, num_groups, num_shared = fresh.stop - fresh.start, self.network.num_groups, self._num_shared
        cache = self.cache[..., : fresh.stop, :].unbind()  # 2 * layers times [B, G, L, D]

        def attend_to_cache(i: int, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
            for stored, new in zip(cache[2 * i : 2 * i + 2], keys_values.split(num_groups, 1), strict=True):
                stored[:, :, fresh] = new.unflatten(0, (num_texts, num_fed)).transpose(1, 2)
            grid = queries.view(num_texts, num_fed, num_groups, num_shared, -1)
            attended = attend(grid.permute(0, 2, 3, 1, 4).flatten(2, 3), cache[2 * i], cache[2 * i + 1])
            heads = attended.unflatten(2, (num_shared, num_fed)).permute(0, 3, 1, 2, 4)  # [B, C, G, r, D]
            return heads.reshape(len(queries), -1)

        return attend_to_cache

    def _read(self, texts: dict[int, Sequence[int]]) -> None:
        """Store the keys and values of texts, by row; each sees itself alone."""
        lengths = list(map(len, texts.values()))
        places = {row: slice(self.length - length, self.length) for row, length in zip(texts, lengths, strict=True)}

        def attend(i: int, *parts: torch.Tensor) -> torch.Tensor:
            attended = []
            for row, queries, stored in zip(texts, *(part.split(lengths) for part in parts), strict=True):
                keys, values = stored.transpose(0, 1).split(self.network.num_groups)  # [G, T, D]
                self.cache[2 * i, row, :, places[row]], self.cache[2 * i + 1, row, :, places[row]] = keys, values
                attended.append(self.network.attend(queries, keys[None], values[None]))
            return torch.cat(attended)

        tokens = torch.tensor([token_id for text in texts.values() for token_id in text])
        self._hidden(tokens, torch.cat([torch.arange(length) for length in lengths]), attend)

    def _hidden(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """The last layer's output, [N, hidden]. What is read past a text's end stays inside the context."""
        return self.network.hidden(token_ids, *self.network.angles(positions.clamp_max(self._context - 1)), attend)


class PackedBranches:
    """Continuations within the cache of their texts."""

    def __init__(self, texts: PackedModel, rows: torch.Tensor, lengths: torch.Tensor) -> None:  # [n] each
        self._texts, self._positions = texts, lengths
        self._grid = BranchGrid(texts.padding, texts.length, rows, lengths)

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after the one token of each branch, [n, 1]: [n, 1, V]."""
        visible = self._grid.grow()  # [B, w, L]
        num_columns = visible.shape[-1]
        self._texts.reserve(num_columns)
        mask = self._texts.mask(visible)[:, None]  # [B, 1, r * w, L]
        attend = partial(functional.scaled_dot_product_attention, attn_mask=mask)
        num_texts, num_fed = self._grid.shape
        attend_to_cache = self._texts.over_cache(num_texts, slice(num_columns - num_fed, num_columns), attend)

        def attend_on_grid(i: int, *parts: torch.Tensor) -> torch.Tensor:
            return attend_to_cache(i, *map(self._grid.spread, parts))[self._grid.places]

        logits = self._texts.logits(token_ids[:, 0], self._positions, attend_on_grid)
        self._positions = self._positions + 1
        return logits[:, None]


def _groups(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the texts that are not empty, those together that are no more than _AT_ONCE tokens, or one."""
    groups: list[list[int]] = []
    num_tokens = _AT_ONCE
    for row, text in enumerate(texts):
        num_tokens += len(text)
        if text and num_tokens > _AT_ONCE:
            groups.append([])
            num_tokens = len(text)
        if text:
            groups[-1].append(row)
    return groups


def read_together(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> PackedModel | PaddedModel:
    """The texts read by the model, the faster way if it has one."""
    return (PackedModel if model.device.type == "cpu" and fits(model) else PaddedModel)(model, texts)
