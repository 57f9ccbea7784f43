"""What a collector is asked for and what it gives: one text and its rows, whatever the method.

Letters: N text positions, R tail steps, V vocabulary. Index rows of one round that drafted a b c at s, s+1, s+2 and
had b corrected to B (R = 1 shown; `features.py` draws which distribution describes which token):

    index, depth      s, 0     s+1, 0    s+1, 1
    token_id          a        b         c         drafted
    text_token_id     a        B         -1        committed
    accepted          True     False     False
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from dsl_train.features import draft_primitives, target_primitives
from dsl_train.records import DslError
from dsl_train.sampling import Sampling
from dsl_train.schema import TOP
from dsl_train.traces import Rows
from dsl_train.verify import acceptance

_DRAFT_COLUMNS = ("entropy", *(f"log_prob_{i}" for i in range(1, TOP + 1)), "token_log_prob")
_TEXT_COLUMNS = ("accept_prob", "accept_ratio", "agreement", "target_entropy", "target_top_prob")


@dataclass(frozen=True)
class Request:
    """A prompt to be continued."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    """Of this text's generator: rows do not depend on what else is collected."""

    def check(self, context: int) -> None:
        """Raises DslError unless there is a prompt that fits `context` tokens."""
        if not self.prompt_token_ids:
            raise DslError("the prompt has no tokens; remove it")
        if len(self.prompt_token_ids) > context:
            raise DslError(
                f"the prompt has {len(self.prompt_token_ids)} tokens but the models' context holds {context}; "
                "shorten it or use models with a longer context"
            )


@dataclass(frozen=True, eq=False)
class CollectedText:
    """The target's continuation of one prompt."""

    response_token_ids: tuple[int, ...]
    finish_reason: str
    """`eos` or `length`"""
    rows: Rows
    """All of `schema.ROW_COLUMNS` but `sequence_id`, sorted by index and depth."""


@dataclass(frozen=True)
class Reject:
    """A prompt put aside."""

    reason: str


class Collector(Protocol):
    """One method of collection over one pair."""

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request, in their order."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model gave at consecutive positions, and the token that came of it."""

    logits: torch.Tensor  # [N, V] raw
    probs: torch.Tensor  # [N, V] float32 after temperature, top-k and top-p: what tokens were drawn from
    token_ids: Sequence[int]  # [N] drafted, or committed


def text_rows(
    index: int, draft: Predictions, target: Predictions, accepted: Sequence[bool], sampling: Sampling
) -> Rows:
    """Depth-0 rows of N consecutive positions from `index` on, drafted and committed tokens with the predictions.

    Raises DslError if a model gave something that is not a number.
    """
    columns = torch.stack(
        [
            torch.minimum(target.probs, draft.probs).sum(-1),
            acceptance(target.probs, draft.probs, draft.token_ids),
            acceptance(draft.probs, target.probs, target.token_ids),
            *target_primitives(sampling.scale(target.logits)).T,
        ]
    )  # [5, N]
    count = len(accepted)
    return {
        **_draft_columns(draft, sampling),
        **_named("target", _TEXT_COLUMNS, columns),
        "index": np.arange(index, index + count, dtype=np.int32),
        "depth": np.zeros(count, np.int16),
        "accepted": np.array(accepted, bool),
        "text_token_id": np.array(target.token_ids, np.int32),
    }


def tail_rows(index: int, draft: Predictions, sampling: Sampling) -> Rows:
    """Rows of depth 1..R: the tokens drafted after the rejected one at `index`."""
    count = len(draft.token_ids)
    return {
        **_draft_columns(draft, sampling),
        **{name: np.full(count, np.nan, np.float32) for name in _TEXT_COLUMNS},
        "index": np.full(count, index, np.int32),
        "depth": np.arange(1, count + 1, dtype=np.int16),
        "accepted": np.zeros(count, bool),
        "text_token_id": np.full(count, -1, np.int32),
    }


def _draft_columns(draft: Predictions, sampling: Sampling) -> Rows:
    ids = torch.tensor(draft.token_ids, device=draft.logits.device)
    columns = draft_primitives(sampling.scale(draft.logits), ids).T  # [1 + TOP + 1, N]
    return {"token_id": np.array(draft.token_ids, np.int32), **_named("draft", _DRAFT_COLUMNS, columns)}


def _named(role: str, names: Sequence[str], columns: torch.Tensor) -> Rows:  # columns [len(names), N]
    named = dict(zip(names, columns.float().cpu().numpy(), strict=True))
    if any(np.isnan(column).any() for column in named.values()):
        raise DslError(f"the {role} model's logits are not numbers (NaN); try --dtype float32")
    return named
