"""One text's tokens through one model: what is fed, what is kept, what is taken back."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import PreTrainedModel

from dsl_train.base.records import DraftPrimitives
from dsl_train.features.primitives import read_draft
from dsl_train.runners import compiled, llama
from dsl_train.runners.kv_cache import growing_cache, keeps_every_token
from dsl_train.runners.narrow_head import narrowed


class CachedModel:
    """A causal language model with the cache of one sequence.

    It feeds whatever is not cached yet: after a block accepted whole the draft lags by a token, after rounds without
    drafts by several, and nobody needs to know.
    """

    _compiled: compiled.CompiledDecoder | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.context = context_length(model)
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
            return read_draft(self.logits(token_ids, keep), without_entropy=True)
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
        a layer remembers no more than a window of them."""
        if self.length:
            self._decoder.truncate(max(0, self.length - length))
            self.length = min(self.length, length)
            del self._fed[self.length :]


class Decoder(Protocol):
    """How a model is run; the caller counts the tokens."""

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        """Feed `token_ids` [T] at text positions `start` ...; logits after the last `keep` of them, [keep, V]."""

    def truncate(self, num_removed: int) -> None:
        """Forget the last tokens fed; 0 says that the rest may be taken for final."""

    def reset(self) -> None: ...


class LibraryDecoder:
    """Through transformers' own forward: any causal language model whose cache can be rolled back."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        return self.run(keep, input_ids=token_ids[None])

    def run(self, keep: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits after the last `keep` positions of the model's `inputs`, [keep, V]."""
        with grouped_heads(self.model.device):
            output = self.model(
                **inputs,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
                return_dict=True,
            )
        return narrowed(self.model, output.logits[0])

    def truncate(self, num_removed: int) -> None:
        self._cache.crop(-num_removed)

    def reset(self) -> None:
        self._cache = growing_cache(self.model.config)


def _decoder_for(model: PreTrainedModel) -> Decoder:
    graphs = compiled.graphs_of(model)
    if graphs is not None:
        return compiled.CompiledDecoder(graphs)
    return llama.DirectDecoder(model) if llama.fits(model) else LibraryDecoder(model)


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that the model may read; practically unlimited where its configuration names no limit."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_target_positions", "max_position_embeddings")  # the first is a decoder's beside an encoder
    return next((limit for name in names if (limit := getattr(config, name, None))), 1 << 30)


@contextmanager
def grouped_heads(device: torch.device) -> Iterator[None]:
    """On the CPU let torch's attention share keys and values among grouped heads under a mask too: transformers would
    copy them once per head for every verification, a tenth of its time on small models. Newer releases read this
    variable at each call; older ones ignore it."""
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    if device.type != "cpu" or name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
