"""A batch of texts through one model, each of a length of its own: token t of a text lies in column t of its row.

Like `runner.py`, this touches KV caches. Columns are positions, so texts need no padding before them, and a row
forgets tokens by being shorter: what lies behind its length is masked, and overwritten by what is fed next. Letters: B
rows, T slots fed, n new tokens of a row, L columns, H heads, D head size, V vocabulary. New tokens end in the last
slot; the slots before them are dummies, written behind the row's end:

    column      0  1  2  3  4  5  6            slots (T = 2)
    row 0       a  b  c  d  e                   d  e
    row 1       a  b  c  d  e  f  -             -  f
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dsl_train.hf.families import check_supported
from dsl_train.kv_cache import keeps_every_token
from dsl_train.records import DslError
from dsl_train.runner import context_length, grouped_heads

_FIRST_CAPACITY = 128  # columns
_MAX_SLOTS = 256  # fed at a time: bounds the mask of a long prompt


class RaggedModel:
    """A causal language model with the caches of B texts, each truncated on its own.

    Raises DslError for a model whose cache cannot be cut row by row (running states, compressed keys, chunks).
    """

    def __init__(self, model: PreTrainedModel, num_rows: int) -> None:
        self.model, self.device = model, model.device
        self.context = context_length(model)
        self.lengths = [0] * num_rows
        """Cached tokens of each row."""
        self._windows = _layer_windows(model)
        self._layers = [_RaggedLayer() for _ in self._windows]
        self._cache = DynamicCache()
        self._cache.layers = [*self._layers]

    def logits(self, texts: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """Logits after the last `keep` tokens of each text, [B, keep, V]; a row has as many as it has new tokens.

        Each text is whole and begins with what its row has cached; one without new tokens is left alone.
        """
        fresh = [list(text[length:]) for text, length in zip(texts, self.lengths, strict=True)]
        num_slots = max(map(len, fresh))
        assert 0 < keep <= num_slots, f"keep {keep} of {num_slots} new tokens"
        kept = []
        for begin in range(0, num_slots, _MAX_SLOTS):
            end = min(begin + _MAX_SLOTS, num_slots)
            behind = [num_slots - len(tokens) for tokens in fresh]  # dummies of each row
            pieces = [
                tokens[max(0, begin - skip) : max(0, end - skip)] for tokens, skip in zip(fresh, behind, strict=True)
            ]
            wanted = end - max(begin, num_slots - keep)
            logits = self._feed(pieces, max(1, wanted))
            if wanted > 0:
                kept.append(logits)
        return torch.cat(kept, dim=1) if len(kept) > 1 else kept[0]

    def truncate(self, row: int, length: int) -> None:
        """Forget everything after a row's first `length` tokens."""
        self.lengths[row] = min(length, self.lengths[row])

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self._layers:
            layer.select(torch.tensor(rows, device=self.device))

    def _feed(self, fresh: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        num_slots = max(map(len, fresh))
        tokens, columns, positions = [], [], []  # [B][T] each
        for new, length in zip(fresh, self.lengths, strict=True):
            end, dummies = length + len(new), num_slots - len(new)
            tokens.append([0] * dummies + list(new))
            columns.append([*range(end, end + dummies), *range(length, end)])
            positions.append([0] * dummies + list(range(length, end)))
        self.lengths = [length + len(new) for length, new in zip(self.lengths, fresh, strict=True)]
        slots = torch.tensor(columns, device=self.device)
        position_ids = torch.tensor(positions, device=self.device)
        num_columns = max(map(max, columns)) + 1
        for layer in self._layers:
            layer.aim(slots, num_columns)
        with grouped_heads(self.device):
            output = self.model(
                input_ids=torch.tensor(tokens, device=self.device),
                attention_mask=self._mask(position_ids, num_columns),
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
                return_dict=True,
            )
        logits: torch.Tensor = output.logits
        return logits

    def _mask(self, position_ids: torch.Tensor, num_columns: int) -> Any:
        """What `forward` takes for `attention_mask`: [B, 1, T, L], 0 or minus infinity; one for each kind of layer if
        the model mixes kinds. A dummy sees the first column: something, and nobody sees it."""
        kinds = {
            "full_attention" if window is None else "sliding_attention": self._additive(
                position_ids, num_columns, window
            )
            for window in dict.fromkeys(self._windows)
        }
        return kinds if len(kinds) > 1 else next(iter(kinds.values()))

    def _additive(self, position_ids: torch.Tensor, num_columns: int, window: int | None) -> torch.Tensor:
        columns = torch.arange(num_columns, device=self.device)
        hidden = columns > position_ids[:, :, None]  # [B, T, L]
        if window is not None:
            hidden |= columns <= position_ids[:, :, None] - window
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.model.dtype).min)[:, None]


class _RaggedLayer(DynamicLayer):
    """One layer's keys and values [B, H, capacity, D], written where :meth:`aim` says."""

    def aim(self, columns: torch.Tensor, num_columns: int) -> None:
        """Where the next tokens go, [B, T], and how many columns are read then."""
        self._columns, self._num_columns = columns, num_columns
        self._rows = torch.arange(len(columns), device=columns.device)[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, H, T, D] each -> [B, H, L, D] each
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        self._keys, self.keys = self._write(self._keys, key_states)
        self._values, self.values = self._write(self._values, value_states)
        return self.keys, self.values

    def select(self, rows: torch.Tensor) -> None:
        if self.is_initialized:
            self._keys, self._values = self._keys[rows], self._values[rows]

    def _write(self, buffer: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._num_columns > buffer.shape[2]:
            capacity = max(_FIRST_CAPACITY, self._num_columns + buffer.shape[2] // 2)
            larger = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))  # a masked NaN is still a NaN
            larger[:, :, : buffer.shape[2]] = buffer
            buffer = larger
        buffer[self._rows, :, self._columns] = states.transpose(1, 2)
        return buffer, buffer[:, :, : self._num_columns]


def _layer_windows(model: PreTrainedModel) -> list[int | None]:
    """The attention window of each layer [tokens], None where it sees the whole text."""
    layers = DynamicCache(config=model.config).layers
    if all(type(layer) is DynamicLayer for layer in layers) and not keeps_every_token(model.config):
        raise DslError(
            f"{model.config.model_type} cannot be generated in batches: some of its layers look back a little only, "
            "counted in columns of the cache; generate its prompts one at a time"
        )
    strange = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if strange or not layers:
        raise DslError(
            f"{model.config.model_type} cannot be generated in batches: its cache ({', '.join(sorted(strange))}) "
            "cannot be cut back row by row; generate its prompts one at a time"
        )
    return [layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in layers]


@torch.inference_mode()
def check_ragged(model: PreTrainedModel) -> None:
    """Try out whether rows of different lengths, cut back and fed again, get the logits each gets alone.

    Raises DslError naming the model if they do not: it derives positions from a padding mask (ALiBi), or its attention
    takes no mask of ours.
    """
    if model.config.is_encoder_decoder:
        raise DslError(
            f"{model.config.model_type} cannot be generated in batches: it is an encoder-decoder, and each text has an "
            "encoded input of its own; generate its prompts one at a time"
        )
    check_supported(model, "model")
    vocab_size = model.config.get_text_config().vocab_size
    first, second = ([(7 * i + seed) % vocab_size for i in range(9)] for seed in (1, 2))
    ragged = RaggedModel(model, num_rows=2)
    try:
        ragged.logits([first[:6], second[:3]], keep=1)
        ragged.truncate(0, 4)
        found = ragged.logits([first, second[:4]], keep=1)[:, -1].float()  # [2, V]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DslError(_refusal(model, f"its forward fails ({str(error).splitlines()[0][:100]})")) from error
    alone = [model(torch.tensor([text], device=model.device)).logits[0, -1].float() for text in (first, second[:4])]
    expected = torch.stack(alone)
    tolerance = 100 * torch.finfo(model.dtype).eps * float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if not difference <= tolerance:
        raise DslError(_refusal(model, f"logits are off by {difference:.2g}, {tolerance:.2g} is rounding"))


def _refusal(model: PreTrainedModel, why: str) -> str:
    attention = model.config._attn_implementation
    return (
        f"{model.config.model_type} ({attention} attention) cannot be generated in batches: with a mask of its own for "
        f"each row {why}; generate its prompts one at a time, or load it with attn_implementation='sdpa'"
    )
