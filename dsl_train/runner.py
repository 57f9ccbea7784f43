"""The only code that touches a KV cache."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel


class CachedModel:
    """A causal language model with the cache of one sequence.

    It feeds whatever is not cached yet: after a block accepted whole the draft lags by a token, after rounds without
    drafts by several, and nobody needs to know.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.context = context_length(model)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.length = 0  # cached tokens
        self._cache = DynamicCache(config=self.model.config)

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        """Logits after the last `keep` of `token_ids`, [keep, V]; row -1 predicts the token to come.

        `token_ids` is the whole sequence and must begin with what is cached; at least `keep` of it must be new.
        """
        fed = len(token_ids) - self.length
        assert 0 < keep <= fed, f"keep {keep} of {fed} new tokens ({self.length} of {len(token_ids)} are cached)"
        input_ids = torch.tensor([token_ids[self.length :]], device=self.device)
        with _grouped_heads(self.device):
            output = self.model(
                input_ids=input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=keep, return_dict=True
            )
        self.length = len(token_ids)
        return output.logits[0]

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        if length < self.length:
            self._cache.crop(length - self.length)
            self.length = length


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that the model may read; practically unlimited where its configuration names no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit or 1 << 30


@contextmanager
def _grouped_heads(device: torch.device) -> Iterator[None]:
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
