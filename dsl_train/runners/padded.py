"""A batch of texts of different lengths through one model, with branches that leave them.

Letters: B texts, T cached columns, C columns at a time, n branches, w branches of the text that has most, V vocabulary.
Texts begin padded on the left and are read on together:

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


class BranchGrid:
    """n continuations side by side, w places for each text; each sees its text up to where it leaves, and itself."""

    def __init__(
        self,
        padding: torch.Tensor,  # [B]
        num_columns: int,
        rows: torch.Tensor,  # [n] rising
        lengths: torch.Tensor,  # [n]
    ) -> None:
        counts = torch.bincount(rows, minlength=len(padding))
        self.shape = len(padding), int(counts.max())
        first = counts.cumsum(0) - counts
        self.places = rows * self.shape[1] + torch.arange(len(rows), device=rows.device) - first[rows]  # [n] in [B * w]
        columns, begin = torch.arange(num_columns, device=rows.device), padding[:, None, None]
        ends = self.spread(lengths).view(*self.shape, 1)
        self.visible = (columns >= begin) & (columns < begin + ends)  # [B, w, T]
        self._itself = torch.eye(self.shape[1], dtype=torch.bool, device=rows.device).expand(len(padding), -1, -1)

    def grow(self) -> torch.Tensor:
        """What is visible once each continuation has one more token: w more columns."""
        self.visible = torch.cat([self.visible, self._itself], dim=-1)
        return self.visible

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[n, ...] to [B * w, ...], 0 where a text has fewer branches."""
        spread = values.new_zeros((self.shape[0] * self.shape[1], *values.shape[1:]))
        spread[self.places] = values
        return spread


class Branches:
    """Continuations within the cache of their texts. Those of a text are w queries over one row of keys, so that
    nothing is copied."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        padding: torch.Tensor,  # [B]
        rows: torch.Tensor,  # [n]
        lengths: torch.Tensor,  # [n]
    ) -> None:
        self.model, self._cache = model, cache
        self._grid = BranchGrid(padding, cache.get_seq_length(), rows, lengths)
        self._positions = self._on_grid(lengths)

    def feed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits after the one token of each branch, [n, 1]: [n, 1, V]."""
        visible = self._grid.grow()
        hidden = torch.finfo(self.model.dtype).min
        mask = torch.zeros_like(visible, dtype=self.model.dtype).masked_fill_(~visible, hidden)
        output = self.model(
            input_ids=self._on_grid(token_ids[:, 0]),
            attention_mask=mask[:, None],
            position_ids=_positions(self.model, self._positions),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        return narrowed(self.model, output.logits.flatten(0, 1)[self._grid.places])[:, None]

    def _on_grid(self, values: torch.Tensor) -> torch.Tensor:  # [n] -> [B, w]
        return self._grid.spread(values).view(self._grid.shape)


def _positions(model: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor:
    """Padding, and what is read past a text's end, stay inside the context; their logits are not used."""
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
