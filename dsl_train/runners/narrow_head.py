"""A draft that proposes only the first tokens of the vocabulary.

In a small model most of a step is the output head. Byte-pair merging orders token ids by frequency, so a head over the
first few thousand rows loses little: `draft_head_tokens` in the model's config.json says how many. A folder with that
key is an ordinary model for every other engine, which may propose all tokens. Letter: V vocabulary.
"""

import torch
from transformers import PreTrainedModel


def head_tokens(model: PreTrainedModel) -> int | None:
    """How many token ids the model may propose; None if all."""
    tokens: int | None = getattr(model.config.get_text_config(), "draft_head_tokens", None)
    return tokens


def narrowed(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """`logits` [..., V] of the whole head with the others' set to minus infinity, in place."""
    tokens = head_tokens(model)
    if tokens is not None:
        logits[..., tokens:] = -torch.inf
    return logits
