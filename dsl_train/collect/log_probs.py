"""What a server tells of the target's distribution: the log-probabilities of its most likely tokens.

    {"top_logprobs": [{"token_id:5": -0.1, …}, …]}                     completions (OpenAI, vLLM)
    {"content": [{"top_logprobs": [{"token": "token_id:5", …}], …}]}   chat completions
    [{"5": {"logprob": -0.1}, …}, …]                                   vLLM's own, as JSON

Tokens have to be named by their ids (vLLM: `return_tokens_as_token_ids`). Pure. Letters: T tokens of a response, N
places, K known tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dsl_train.base.records import DslError

_PREFIX = "token_id:"


@dataclass(frozen=True, eq=False)
class TopLogProbs:
    """Of the law that a response was drawn from: after temperature, top-k and top-p. Short rows repeat their first."""

    token_ids: np.ndarray
    """[T, K] int64, the token said among them"""
    log_probs: np.ndarray
    """[T, K] float32"""
    is_top: np.ndarray
    """[T, K] bool: told because it is likely, and not because it was said."""

    @classmethod
    def of(cls, rows: Sequence[dict[int, float]], said: Sequence[int]) -> "TopLogProbs":
        """A dictionary for each token of the response, with that token and as many of the most likely ones in each."""
        counts = list(map(len, rows))
        width, num_top = max(counts, default=0), min(counts, default=0)
        filled = [[*row.items(), *[next(iter(row.items()))] * (width - len(row))] for row in rows]
        pairs = np.array(filled, np.float64).reshape(len(rows), width, 2)
        token_ids = pairs[..., 0].astype(np.int64)
        is_top = np.arange(width) < np.array(counts).reshape(-1, 1)
        is_top[np.array(counts) > num_top] &= (token_ids != np.array(said).reshape(-1, 1))[np.array(counts) > num_top]
        return cls(token_ids, pairs[..., 1].astype(np.float32), is_top & (num_top > 1))  # one alone may be the one said


def read_log_probs(where: str, value: Any, token_ids: Sequence[int]) -> TopLogProbs | None:
    """None if there are none, or the tokens are named by their texts. Raises DslError if they are not those of this
    response."""
    try:
        named = _named(value)
        rows = [{_token_id(name): float(log_prob) for name, log_prob in row.items()} for row in named]
    except _NoIdError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DslError(f"{where}: log-probabilities in a form that is not known here ({error!r})") from error
    if not rows:
        return None
    if len(rows) != len(token_ids):
        raise DslError(f"{where}: log-probabilities of {len(rows)} tokens for a response of {len(token_ids)}")
    lacking = next((i for i, (row, said) in enumerate(zip(rows, token_ids, strict=True)) if said not in row), None)
    if lacking is not None:
        raise DslError(f"{where}: no log-probability of response token {lacking} (id {token_ids[lacking]})")
    return TopLogProbs.of(rows, token_ids)


def completed(
    token_ids: torch.Tensor,  # [N, K] int64
    log_probs: torch.Tensor,  # [N, K]
    draft_logits: torch.Tensor,  # [N, V] at the target's temperature
) -> torch.Tensor:  # [N, V] float32, rows sum to 1
    """A distribution with the known probabilities; what is left of 1 is shared among the others as the draft would."""
    known = log_probs.float().exp()
    probs = torch.zeros_like(draft_logits, dtype=torch.float32).scatter_(-1, token_ids, known)
    others = draft_logits.float().scatter(-1, token_ids, -torch.inf).softmax(-1)
    left = (1.0 - probs.sum(-1, keepdim=True)).clamp_min(0.0)
    return probs + left * others.nan_to_num(0.0)  # NaN: every token is known


class _NoIdError(Exception):
    """A token is named by its text."""


def _named(value: Any) -> Sequence[dict[Any, Any]]:
    """A dictionary from token to log-probability for each token of the response."""
    if not value:
        return []
    if isinstance(value, list):
        return [{name: x["logprob"] if isinstance(x, dict) else x for name, x in row.items()} for row in value]
    if value.get("content"):
        return [{each["token"]: each["logprob"] for each in (*row["top_logprobs"], row)} for row in value["content"]]
    tops, said = value.get("top_logprobs") or [], zip(value["tokens"], value["token_logprobs"], strict=True)
    return [{**(top or {}), name: log_prob} for (name, log_prob), top in zip(said, tops, strict=True)] if tops else []


def _token_id(name: Any) -> int:
    text = str(name).removeprefix(_PREFIX)
    if not text.isdecimal():
        raise _NoIdError
    return int(text)
