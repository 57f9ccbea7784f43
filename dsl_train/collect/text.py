"""What a collector is asked for and what it gives: one text and its rows, whatever the method.

Letters: N predictions, R tail steps, V vocabulary. Index rows of one round that drafted a b c at s, s+1, s+2 and
had b corrected to B (R = 1 shown; `features.py` draws which distribution describes which token):

    index, depth      s, 0     s+1, 0    s+1, 1
    token_id          a        b         c         drafted
    text_token_id     a        B         -1        committed
    accepted          True     False     False
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.base.schema import BLOCK_COLUMNS, GAIN_WEIGHTS, TOP
from dsl_train.collect.log_probs import TopLogProbs
from dsl_train.features.primitives import draft_primitives, target_primitives
from dsl_train.loop.verify import acceptance
from dsl_train.pair.prompt import EncodedPrompt, PairPrompt
from dsl_train.traces.store import Rows

#: What a model may raise over one text; that text is put aside and the others go on. Out of memory is a RuntimeError.
MODEL_FAILURES = (DslError, RuntimeError, IndexError, ValueError, MemoryError)

_DRAFT_COLUMNS = ("entropy", *(f"log_prob_{i}" for i in range(1, TOP + 1)), "token_log_prob")
_TEXT_COLUMNS = ("accept_prob", "accept_ratio", "agreement", "target_entropy", "target_top_prob")


@dataclass(frozen=True)
class Request:
    """A prompt to be continued, or one whose continuation is from a log."""

    prompt_token_ids: tuple[int, ...]
    """Of an encoder-decoder: what its decoder begins with."""
    seed: int
    """Of this text's generator: rows do not depend on what else is collected."""
    sampling: Sampling
    """What the response is drawn with, or was."""
    response_token_ids: tuple[int, ...] | None = None
    """What the target said elsewhere, labelled as it is; None: the target is asked now."""
    source: torch.Tensor | None = field(default=None, compare=False)
    """What the encoders of an encoder-decoder pair read (`inputs.EncodedPrompt`)."""
    log_probs: TopLogProbs | None = field(default=None, compare=False)
    """Of the response, as the server that gave it said."""

    @property
    def prompt(self) -> PairPrompt:
        return self.prompt_token_ids if self.source is None else EncodedPrompt(self.source, self.prompt_token_ids)

    def check(self, context: int, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        """Raises DslError unless prompt and response are tokens that a pair with these limits can read."""
        if not self.prompt_token_ids:
            raise DslError("the prompt has no tokens; remove it")
        if len(self.prompt_token_ids) > context:
            raise DslError(
                f"the prompt has {len(self.prompt_token_ids)} tokens but the models' context holds {context}; "
                "shorten it or use models with a longer context"
            )
        _check_vocabulary("prompt", self.prompt_token_ids, vocab_size)
        if self.response_token_ids is not None:
            self._check_response(self.response_token_ids, context, vocab_size, eos_token_ids)

    def has_tail(self, count: int, fraction: float) -> torch.Tensor:
        """Which of the first `count` response positions get a tail if their draft is rejected, [count] bool."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.rand(count, generator=generator, dtype=torch.float64) < fraction

    def _check_response(
        self, response: tuple[int, ...], context: int, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        if not response:
            raise DslError("the response has no tokens; remove it, or leave it out to have the target generate one")
        if len(self.prompt_token_ids) + len(response) > context + 1:
            raise DslError(
                f"prompt and response have {len(self.prompt_token_ids)} + {len(response)} tokens but the models' "
                f"context holds {context}, and the last one is not read; cut the response"
            )
        _check_vocabulary("response", response, vocab_size)
        end = next((i for i, token_id in enumerate(response) if token_id in eos_token_ids), len(response) - 1)
        if end + 1 < len(response):
            raise DslError(
                f"response token {end} (id {response[end]}) ends the text, but {len(response) - end - 1} more follow; "
                "cut the response there"
            )


def _check_vocabulary(role: str, token_ids: Sequence[int], vocab_size: int) -> None:
    for i, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise DslError(
                f"{role} token {i} has id {token_id} but the target's vocabulary holds {vocab_size}; "
                "was it encoded by another tokenizer?"
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

    @classmethod
    def of(cls, error: Exception) -> "Reject":
        return cls(f"{error}".strip() or type(error).__name__)


class Collector(Protocol):
    """One method of collection over one pair."""

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request, in their order; a text that cannot be used is a Reject, never an exception."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What became of N drafted tokens that stood where text is now."""

    drafted: torch.Tensor  # [N] int64
    committed: torch.Tensor  # [N] int64
    accepted: torch.Tensor  # [N] bool
    accept_prob: torch.Tensor  # [N]
    accept_ratio: torch.Tensor  # [N]
    agreement: torch.Tensor  # [N]

    @classmethod
    def of(
        cls,
        target_probs: torch.Tensor,  # [N, V] float32, what tokens are drawn from
        draft_probs: torch.Tensor,  # [N, V]
        drafted: torch.Tensor,
        committed: torch.Tensor,
        accepted: torch.Tensor,
    ) -> "Labels":
        return cls(
            drafted,
            committed,
            accepted,
            torch.minimum(target_probs, draft_probs).sum(-1),
            acceptance(target_probs, draft_probs, drafted.tolist()),
            acceptance(draft_probs, target_probs, committed.tolist()),
        )

    @classmethod
    def greedy(cls, drafted: torch.Tensor, committed: torch.Tensor) -> "Labels":
        """The same of one-hot distributions, without them: both models' choices say it all."""
        accepted = drafted == committed
        sure = accepted.float()
        return cls(drafted, committed, accepted, sure, sure, sure)


def text_rows(
    index: np.ndarray,  # [N] text positions
    labels: Labels,
    draft_logits: torch.Tensor,  # [N, V] raw
    target_logits: torch.Tensor,  # [N, V] raw
    sampling: Sampling,
) -> Rows:
    """Depth-0 rows. Raises DslError if a model gave something that is not a number."""
    columns = torch.stack(
        [
            labels.accept_prob,
            labels.accept_ratio,
            labels.agreement,
            *target_primitives(sampling.scale(target_logits)).T,
        ]
    )  # [5, N]
    return {
        **_draft_columns(labels.drafted, draft_logits, sampling),
        **_named("target", _TEXT_COLUMNS, columns),
        "index": index.astype(np.int32),
        "depth": np.zeros(len(index), np.int16),
        "accepted": labels.accepted.cpu().numpy(),
        "text_token_id": labels.committed.cpu().numpy().astype(np.int32),
    }


def tail_rows(
    index: np.ndarray,  # [N] text positions of the rejected tokens
    depth: np.ndarray,  # [N] steps after them
    drafted: torch.Tensor,  # [N] int64
    draft_logits: torch.Tensor,  # [N, V] raw
    sampling: Sampling,
) -> Rows:
    """Rows of tokens drafted after a rejected one. Raises DslError like `text_rows`."""
    count = len(index)
    return {
        **_draft_columns(drafted, draft_logits, sampling),
        **{name: np.full(count, np.nan, np.float32) for name in _TEXT_COLUMNS},
        "index": index.astype(np.int32),
        "depth": depth.astype(np.int16),
        "accepted": np.zeros(count, bool),
        "text_token_id": np.full(count, -1, np.int32),
    }


def block_columns(
    target_probs: torch.Tensor,  # [N, V] float32
    draft_probs: torch.Tensor,  # [N, V]
    drafted: torch.Tensor,  # [N] int64
) -> Rows:
    """What is also recorded of a draft where rounds are judged by block, but for `kept`."""
    token_probs = [probs.gather(-1, drafted[:, None])[:, 0].log() for probs in (target_probs, draft_probs)]
    gains = [torch.minimum(weight * target_probs, draft_probs).sum(-1) for weight in GAIN_WEIGHTS]
    columns = torch.stack([token_probs[0] - token_probs[1], *gains]).float().cpu().numpy()
    return dict(zip(BLOCK_COLUMNS, columns, strict=False))  # `kept` is the last of them


def _draft_columns(drafted: torch.Tensor, logits: torch.Tensor, sampling: Sampling) -> Rows:
    columns = draft_primitives(sampling.of_draft.scale(logits), drafted).T  # [1 + TOP + 1, N]
    return {"token_id": drafted.cpu().numpy().astype(np.int32), **_named("draft", _DRAFT_COLUMNS, columns)}


def _named(role: str, names: Sequence[str], columns: torch.Tensor) -> Rows:  # columns [len(names), N]
    named = dict(zip(names, columns.float().cpu().numpy(), strict=True))
    if any(np.isnan(column).any() for column in named.values()):
        raise DslError(f"the {role} model's logits are not numbers (NaN); try --dtype float32")
    return named
