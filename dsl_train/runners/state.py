"""Recurrent and hybrid models: layers that fold the text into a state, which is kept and put back instead of cropped.

A state cannot be taken back token by token, but it is small, whatever the text's length: before each forward it is
copied. After a rejection the latest copy before the rejected token is put back, and what was accepted after it is read
again in front of the next tokens, in the same forward, so that a round stays one target forward. Only when a block
comes after more than `MOST_REREAD` tokens to be read again do these get a forward of their own. A draft is copied at
each of its tokens and reads none of them twice.
"""

import copy
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

#: What may lie beside a state in one layer, the narrower kind first.
_ATTENTION = (DynamicSlidingWindowLayer, DynamicLayer)
#: Settled tokens that a block's forward may read again, round after round.
MOST_REREAD = 32


@dataclass(frozen=True)
class StateKind:
    """How a model keeps states."""

    folds: bool = False
    """A layer folds the text into a state that cannot be cropped. Convolutions' last inputs can: transformers records
    them."""
    lies_elsewhere: bool = False
    """A layer that should leave a state in the cache leaves none."""
    reads_on: bool = True
    """Several tokens at once go on from the state before them. A scan written for prompts alone, as Mamba's first,
    begins anew: its logits are the same whatever the state is."""


_known: WeakKeyDictionary[PreTrainedModel, StateKind] = WeakKeyDictionary()


def kind_of(model: PreTrainedModel) -> StateKind:
    """Tried out on five tokens, once a model; not at all where the configuration names no layer with a state."""
    if not any(is_linear(layer) for layer in DynamicCache(config=model.config).layers):
        return StateKind()
    if model not in _known:
        _known[model] = _try_out(model)
    return _known[model]


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in takes), "")


class CachedDecoder(Protocol):
    """A decoder over transformers' cache."""

    model: PreTrainedModel
    cache: DynamicCache

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor: ...
    def reset(self) -> None: ...


class StateDecoder:
    """Another decoder of a model that folds the text; its states are kept before each forward."""

    def __init__(self, inner: CachedDecoder) -> None:
        self._inner, self._reads_on = inner, kind_of(inner.model).reads_on
        self._beginning, self._later = inner.model, without_limits(inner.model)
        self._end = 0  # tokens read
        self._kept: dict[int, list[_State]] = {}  # by the number of tokens read

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:  # [T] -> [keep, V]
        num_settled = len(token_ids) - keep
        if keep > 1 and num_settled > MOST_REREAD:
            self._read(token_ids[:num_settled], start, keep=1)
            token_ids, start = token_ids[num_settled:], start + num_settled
        if start and not self._reads_on:
            return self._read_one_by_one(token_ids, start, keep)
        return self._read(token_ids, start, keep)

    def truncate(self, num_removed: int) -> int:
        """Goes back to the latest kept state before the removed tokens, which may be further back, or to the text's
        beginning where none is kept."""
        if not num_removed:
            self._kept.clear()
            self._crop(0)
            return 0
        end = self._end
        position = max((kept for kept in self._kept if kept <= end - num_removed), default=0)
        if not position:
            self.reset()
            return end
        for state in self._kept[position]:
            state.put_back()
        self._crop(end - position)
        self._end = position
        self._kept.clear()
        return end - position

    def reset(self) -> None:
        self._inner.reset()
        for layer in _linear_layers(self._inner.cache):
            if not isinstance(layer, DynamicSlidingWindowLayer):
                layer.record_past = False  # its inputs are kept with its state
        self._end = 0
        self._kept.clear()

    @property
    def num_kept_bytes(self) -> int:
        """What all copies take."""
        return sum(state.tensor.nbytes for states in self._kept.values() for state in states)

    def _read_one_by_one(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        rows = []
        for i in range(len(token_ids)):
            if i <= len(token_ids) - keep:
                self._kept.clear()  # nobody goes back among settled tokens, and there may be many
            rows.append(self._read(token_ids[i : i + 1], start + i, keep=1))
        return torch.cat(rows[-keep:])

    def _read(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        if start:
            self._kept[start] = list(_copies(self._inner.cache))
        self._end = start + len(token_ids)
        self._inner.model = self._later if start else self._beginning
        return self._inner.logits(token_ids, start, keep)

    def _crop(self, num_removed: int) -> None:
        """Take the last tokens back from what attends to them."""
        layers: list[Any] = self._inner.cache.layers
        for layer in layers:
            if not is_linear(layer):
                layer.crop(-num_removed)
                continue
            attention = next((kind for kind in _ATTENTION if isinstance(layer, kind)), None)
            if attention is not None:
                attention.crop(layer, -num_removed)
            if layer.record_past:
                LinearAttentionLayer.crop(layer, 0)  # the convolution's inputs, to its width


_unlimited: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()


def without_limits(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it reads after the prompt: transformers clamps the time steps of Mamba 2's layers where several
    tokens are read, but not where one is, and `generate` reads one at a time after its prompt. A copy over the same
    weights where there are limits, the model itself where there are none."""
    known = _unlimited.get(model)
    if known is None or (known.device, known.dtype) != (model.device, model.dtype):
        if not any(map(_is_limited, model.modules())):
            return model
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        copied = copy.deepcopy(model, shared)
        for module in filter(_is_limited, copied.modules()):
            setattr(module, "time_step_limit", (0.0, math.inf))  # noqa: B010  # a module's attributes are tensors to mypy
        _unlimited[model] = copied
    return _unlimited[model]


def _is_limited(module: Any) -> bool:
    lowest, highest = getattr(module, "time_step_limit", None) or (0.0, math.inf)
    return bool(lowest > 0 or highest < math.inf)


@dataclass(frozen=True, eq=False)
class _State:
    """A copy of one tensor of a layer: of a recurrence, or a convolution's last inputs."""

    layer: Any
    is_recurrent: bool
    index: int
    tensor: torch.Tensor

    def put_back(self) -> None:
        states = self.layer.recurrent_states if self.is_recurrent else self.layer.conv_states
        states[self.index] = self.tensor


def _copies(cache: DynamicCache) -> Iterator[_State]:
    """Layers write into their states, so that a reference would not do."""
    for layer in _linear_layers(cache):
        for index, inputs in layer.conv_states.items():
            if inputs is not None:  # more than the convolution's width where transformers records them
                yield _State(layer, False, index, inputs[..., -layer.conv_kernel_size[index] :].clone())
        for index, state in layer.recurrent_states.items():
            if state is not None:
                yield _State(layer, True, index, state.clone())


@torch.inference_mode()
def _try_out(model: PreTrainedModel) -> StateKind:
    text = torch.arange(1, 6, device=model.device)[None] % model.config.get_text_config().vocab_size  # [1, 5]
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for cache in caches:
        _forward(model, text[:, :3], cache)
    layers = _linear_layers(caches[1])
    if not all(layer.has_previous_state[0] or _folds(layer) for layer in layers):
        return StateKind(folds=True, lies_elsewhere=True)
    if not any(map(_folds, layers)):
        return StateKind()
    for state in _copies(caches[1]):
        if state.is_recurrent:
            state.tensor.zero_()
            state.put_back()
    with_states, without_states = (_forward(model, text[:, 3:], cache) for cache in caches)
    return StateKind(folds=True, reads_on=not torch.equal(with_states, without_states))


def _forward(model: PreTrainedModel, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    output = model(input_ids=token_ids, use_cache=True, **{cache_argument(model): cache})
    logits: torch.Tensor = output.logits
    return logits


def is_linear(layer: object) -> bool:
    """Whether a cache's layer has room for states."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _linear_layers(cache: DynamicCache) -> list[Any]:
    return [layer for layer in cache.layers if is_linear(layer)]


def _folds(layer: Any) -> bool:
    return any(layer.is_recurrent_states_initialized.values())
