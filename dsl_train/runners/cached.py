"""One text's tokens through one model: what is fed, what is kept, what is taken back."""

import inspect
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from dsl_train.base.records import DraftPrimitives
from dsl_train.features.primitives import read_draft
from dsl_train.runners import compiled, llama
from dsl_train.runners.kv_cache import growing_cache, keeps_every_token
from dsl_train.runners.narrow_head import head_tokens, narrowed
from dsl_train.runners.state import StateDecoder, cache_argument, kind_of


class CachedModel:
    """A causal language model with the cache of one sequence.

    It feeds whatever is not cached yet: after a block accepted whole the draft lags by a token, after rounds without
    drafts by several, and the caller need not know.
    """

    _compiled: compiled.CompiledDecoder | None = None
    _num_proposed: int | None = None
    """Token ids that have logits, the first ones; None: all."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.context = context_length(model)
        self._num_proposed = head_tokens(model)
        self._decoder: Decoder = _decoder_for(model)
        if isinstance(self._decoder, compiled.CompiledDecoder):
            self._compiled = self._decoder
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.length = 0  # cached tokens
        self._fed: list[int] = []  # those tokens
        self._decoder.reset()

    def resume(self, token_ids: Sequence[int]) -> None:
        """Keep what the cached sequence shares with the beginning of `token_ids`, as from turn to turn of a
        conversation; forget the rest, or all of it where a layer cannot go back to any token."""
        longest = min(self.length, len(token_ids) - 1)
        shared = next((i for i in range(longest) if self._fed[i] != token_ids[i]), longest)
        if shared > 0 and keeps_every_token(self.model.config):
            self.truncate(shared)
        else:
            self.reset()

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        """Logits after the last `keep` of `token_ids`, [keep, V]; row -1 predicts the token to come.

        `token_ids` is the whole sequence and must begin with what is cached; at least `keep` of it must be new.
        """
        if not torch.is_inference_mode_enabled():  # the loop has done it once for all forwards
            with torch.inference_mode():
                return self.logits(token_ids, keep)
        logits = self._decoder.logits(self._new(token_ids, keep), self.length, keep)
        self._remember(token_ids)
        return logits

    def choose(self, token_ids: Sequence[int], keep: int) -> tuple[list[int], DraftPrimitives]:
        """What greedy drafting reads of :meth:`logits`: each row's most likely token, and the last row's primitives
        without entropy."""
        if self._compiled is None:
            return read_draft(self.logits(token_ids, keep)[:, : self._num_proposed], without_entropy=True)
        rows = self._compiled.read(self._new(token_ids, keep), self.length, keep)
        self._remember(token_ids)
        _, first, second = rows[-1]
        ids = [int(row[0]) for row in rows]
        return ids, DraftPrimitives(ids[-1], math.nan, (first, second), first)

    def _new(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        fed = len(token_ids) - self.length
        assert 0 < keep <= fed, f"keep {keep} of {fed} new tokens ({self.length} of {len(token_ids)} are cached)"
        return torch.tensor(token_ids[self.length :], device=self.device)

    def _remember(self, token_ids: Sequence[int]) -> None:
        self._fed += token_ids[self.length :]
        self.length = len(token_ids)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens, and for good: the next call may not ask for fewer where
        a layer remembers no more than a window of them. A model with a state may forget more and read it again."""
        if self.length:
            self.length -= self._decoder.truncate(max(0, self.length - length))
            del self._fed[self.length :]


class Decoder(Protocol):
    """How a model is run; the caller counts the tokens."""

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        """Feed `token_ids` [T] at text positions `start` ...; logits after the last `keep` of them, [keep, V]."""

    def truncate(self, num_removed: int) -> int:
        """Forget the last tokens fed, and say how many it were: a state may have to go back further. 0 says that the
        rest may be taken for final."""

    def reset(self) -> None: ...


class LibraryDecoder:
    """Through transformers' own forward: any causal language model whose cache can be rolled back, or would be but for
    its states."""

    cache: DynamicCache

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._takes_positions, self._cache_argument = takes_positions(model), cache_argument(model)

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        return self.run(keep, input_ids=token_ids[None], **self.positions(start, len(token_ids)))

    def positions(self, start: int, count: int) -> dict[str, torch.Tensor]:
        """What `generate` passes as positions; models that are given none may count theirs from another number."""
        if not self._takes_positions:
            return {}
        return {"position_ids": torch.arange(start, start + count, device=self.model.device)[None]}

    def run(self, keep: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits after the last `keep` positions of the model's `inputs`, [keep, V]."""
        with grouped_heads(self.model.device):
            output = self.model(
                **inputs,
                **{self._cache_argument: self.cache},
                use_cache=True,
                logits_to_keep=keep,
                return_dict=True,
            )
        return narrowed(self.model, output.logits[0, -keep:])  # TrOCR keeps them all

    def truncate(self, num_removed: int) -> int:
        self.cache.crop(-num_removed)
        return num_removed

    def reset(self) -> None:
        self.cache = growing_cache(self.model.config)


def _decoder_for(model: PreTrainedModel) -> Decoder:
    graphs = compiled.graphs_of(model)
    if graphs is not None:
        return compiled.CompiledDecoder(graphs)
    return llama.DirectDecoder(model) if llama.fits(model) else with_state(LibraryDecoder(model))


def with_state(decoder: LibraryDecoder) -> Decoder:
    """The decoder itself, or what keeps states for it."""
    return StateDecoder(decoder) if kind_of(decoder.model).folds else decoder


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether `generate` passes this model the positions 0, 1, 2, ... of a text."""
    kind = type(model)
    plain = kind._prepare_position_ids_for_generation is GenerationMixin._prepare_position_ids_for_generation  # type: ignore[attr-defined]
    return plain and "position_ids" in inspect.signature(kind.forward).parameters


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that the model may read; practically unlimited where its configuration names no limit."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_target_positions", "max_position_embeddings")  # the first is a decoder's beside an encoder
    return next((limit for name in names if (limit := getattr(config, name, None))), 1 << 30)


class _GroupedHeads:
    """Whether forwards are running that want the variable, counted over all threads; the last one takes it back."""

    NAME = "TRANSFORMERS_SDPA_FORCE_GQA"

    def __init__(self) -> None:
        self._lock, self._num_running, self._is_ours = threading.Lock(), 0, False

    def enter(self) -> None:
        with self._lock:
            if self._num_running == 0:
                self._is_ours = self.NAME not in os.environ
                os.environ.setdefault(self.NAME, "1")
            self._num_running += 1

    def leave(self) -> None:
        with self._lock:
            self._num_running -= 1
            if self._num_running == 0 and self._is_ours:
                os.environ.pop(self.NAME, None)


_grouped_heads = _GroupedHeads()


@contextmanager
def grouped_heads(device: torch.device) -> Iterator[None]:
    """On the CPU let torch's attention share keys and values among grouped heads under a mask too: transformers would
    copy them once per head for every verification, a tenth of its time on small models. Newer releases read an
    environment variable at each call; older ones ignore it."""
    if device.type != "cpu":
        yield
        return
    _grouped_heads.enter()
    try:
        yield
    finally:
        _grouped_heads.leave()
