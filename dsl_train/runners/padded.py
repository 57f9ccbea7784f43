"""A batch of texts of different lengths through one model, with branches that leave them.

Like `runner.py`, this touches KV caches; no other module does. Letters: B texts, T cached columns, C columns at a time,
n branches, w branches of the text that has most, V vocabulary. Texts begin padded on the left and are read on together:

    column       0   1   2   3   4
    text 0       -   -   a   b   c        position of c: 2
    text 1       a   b   c   d   e        position of e: 4
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel

from dsl_train.base.records import DslError
from dsl_train.runners.cached import context_length
from dsl_train.runners.kv_cache import keeps_every_token
from dsl_train.runners.narrow_head import narrowed
from dsl_train.runners.state import cache_argument, kind_of, without_limits


class PaddedModel:
    """A causal language model with the cache of B texts."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> None:
        """Reads the texts, which may be empty; `feed` goes on."""
        self.model, self.device = model, model.device
        self.length = 0  # cached columns
        self._cache = DynamicCache(config=model.config)
        longest = max(map(len, texts))
        self.padding = torch.tensor([longest - len(text) for text in texts], device=self.device)  # [B]
        if longest:
            rows = [[0] * (longest - len(text)) + list(text) for text in texts]
            self._forward(torch.tensor(rows, device=self.device), keep=1)

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after each of the tokens [B, C] that go on from the cache: [B, C, V]."""
        return self._forward(token_ids, keep=token_ids.shape[1])

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all texts but these."""
        self.padding = self.padding[rows]
        if self.length:
            self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # a LongTensor is a type of the past

    @contextmanager
    def branches(self, rows: torch.Tensor, lengths: torch.Tensor) -> Iterator["Branches"]:
        """Continuations [n] of text `rows[i]`, rising, after its first `lengths[i]` tokens; forgotten in the end."""
        yield Branches(self.model, self._cache, self.padding, rows, lengths)
        self._cache.crop(self.length - self._cache.get_seq_length())

    def _forward(self, token_ids: torch.Tensor, keep: int) -> torch.Tensor:
        if self.length and not kind_of(self.model).reads_on:
            steps = [self._read(column, keep=1) for column in token_ids.split(1, dim=1)]
            return torch.cat(steps[-keep:], dim=1)
        return self._read(token_ids, keep)

    def _read(self, token_ids: torch.Tensor, keep: int) -> torch.Tensor:
        columns = torch.arange(self.length + token_ids.shape[1], device=self.device)
        model = without_limits(self.model) if self.length else self.model
        output = model(
            input_ids=token_ids,
            attention_mask=(columns >= self.padding[:, None]).long(),
            position_ids=_positions(self.model, columns[self.length :] - self.padding[:, None]),
            **{cache_argument(self.model): self._cache},
            use_cache=True,
            logits_to_keep=keep,
        )
        self.length = len(columns)
        return narrowed(self.model, output.logits)


class Branches:
    """n continuations within the cache of their texts: each sees its text up to where it leaves, and itself.

    The branches of a text stand side by side as w queries over one row of keys, so that nothing is copied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        padding: torch.Tensor,  # [B]
        rows: torch.Tensor,  # [n]
        lengths: torch.Tensor,  # [n]
    ) -> None:
        self.model, self._cache = model, cache
        counts = torch.bincount(rows, minlength=len(padding))
        self._shape = len(padding), int(counts.max())
        first = counts.cumsum(0) - counts
        self._places = rows * self._shape[1] + torch.arange(len(rows), device=rows.device) - first[rows]  # [n]
        self._positions = self._spread(lengths)  # [B, w]
        columns = torch.arange(cache.get_seq_length(), device=rows.device)
        begin = padding[:, None, None]
        self._visible = (columns >= begin) & (columns < begin + self._positions[..., None])  # [B, w, T]
        self._itself = torch.eye(self._shape[1], dtype=torch.bool, device=rows.device).expand(len(padding), -1, -1)

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after the one token of each branch, [n, 1]: [n, 1, V]."""
        self._visible = torch.cat([self._visible, self._itself], dim=-1)
        hidden = torch.finfo(self.model.dtype).min
        mask = torch.zeros_like(self._visible, dtype=self.model.dtype).masked_fill_(~self._visible, hidden)
        output = self.model(
            input_ids=self._spread(token_ids[:, 0]),
            attention_mask=mask[:, None],
            position_ids=_positions(self.model, self._positions),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        return narrowed(self.model, output.logits.flatten(0, 1)[self._places])[:, None]

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """[n] to [B, w], 0 where a text has fewer branches."""
        spread = values.new_zeros(self._shape)
        spread.view(-1)[self._places] = values
        return spread


def _positions(model: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor:
    """Padding and what is read past a text's end stay inside the context; nobody looks at it."""
    return positions.clamp(0, context_length(model) - 1)


def check_padded(model: PreTrainedModel, role: str) -> None:
    """Raises DslError for a model whose texts cannot leave a batch one by one."""
    layers = DynamicCache(config=model.config).layers
    strange = sorted({type(layer).__name__ for layer in layers if not hasattr(layer, "reorder_cache")})
    if strange:
        name = model.name_or_path or model.config.model_type
        raise DslError(
            f"{role} {name} ({type(model).__name__}) cannot be read in batches: its cache "
            f"({', '.join(strange)}) cannot be cut row by row; collect with --method oracle"
        )


def shares_cache(model: PreTrainedModel) -> bool:
    """Whether `PaddedModel.branches` works: every layer keeps every token (no sliding window, no state) and the model
    heeds a mask of our own. The second is tried out, on a text of four tokens."""
    if not keeps_every_token(model.config):
        return False
    token_ids = torch.tensor([[0, 1, 2, 3]], device=model.device)
    with torch.inference_mode():
        text = PaddedModel(model, [[0, 1, 2]])
        rows, lengths = (torch.tensor(values, device=model.device) for values in ([0, 0], [3, 1]))
        try:
            with text.branches(rows, lengths) as branches:
                found = branches.feed(token_ids[0, [3, 1]][:, None])[:, 0]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False  # a mask of this shape is not understood
        expected = model(input_ids=token_ids).logits[0, [3, 1]]
    tolerance = 32 * torch.finfo(model.dtype).eps * float(expected.abs().max())
    return bool(((found - expected).abs() <= tolerance).all())
