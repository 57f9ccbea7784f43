"""The frozen values that travel between engine, policies and callers.

Letters: K drafted tokens of a round, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class DslError(Exception):
    """A failure that the user can fix: the message names the thing, both values and the next step. The commands
    print it without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 200 characters; its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class DraftPrimitives(NamedTuple):  # a tuple, like DraftStep: one is made for every draft token, and tuples are fast
    """What one draft distribution says, at temperature (1 when greedy), before top-k and top-p."""

    token_id: int
    """Drafted token."""
    entropy: float
    """[nats]; NaN where no policy needs it."""
    log_probs: tuple[float, ...]
    """Log-probabilities of the TOP most likely tokens, falling; at least two."""
    token_log_prob: float
    """Log-probability of the drafted token."""


def no_features() -> np.ndarray:
    """Stands in for the features of a policy that declared not to read them."""
    raise AssertionError("features are for a policy whose `needs` is 'features'")


class DraftStep(NamedTuple):
    """What a policy sees when asked "another?": never logits, never a chance to remove a token."""

    position: int
    """Tokens drafted in this block so far; 0 before the first."""
    start: int
    """Committed tokens when the round began, prompt included: the text index of the block's first token."""
    draft: DraftPrimitives | None
    """Primitives of the token just drafted; None at position 0, or if the policy's `needs` is "position"."""
    read_features: Callable[[], np.ndarray] = no_features

    @property
    def features(self) -> np.ndarray:
        """[F] float32 in `FEATURE_NAMES` order; only for policies whose `needs` is "features", and only while
        they are asked. Computed as it is read, which is most of what a policy costs."""
        return self.read_features()


@dataclass(frozen=True, slots=True)
class Round:
    """One draft-verify-commit cycle."""

    start: int
    """Committed tokens before the round, prompt included."""
    drafted: tuple[int, ...]
    """[K] token ids."""
    num_accepted: int
    committed: tuple[int, ...]
    """Accepted tokens and the corrected or bonus one; shorter when the text ended inside the block."""

    @property
    def all_accepted(self) -> bool:
        return self.num_accepted == len(self.drafted)


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation. Counts follow vLLM's names; the first token comes from the prompt's own forward."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: str
    """`eos` or `length`"""
    rounds: tuple[Round, ...]
    seconds: float
    """Wall clock, prompt included."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def stats(self) -> "AcceptanceStats":
        return AcceptanceStats.of(self.rounds)


@dataclass(frozen=True)
class AcceptanceStats:
    """Acceptance over any number of rounds, as raw counts so that they can be added."""

    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_committed_tokens: int
    drafted_by_position: tuple[int, ...] = field(default=())
    accepted_by_position: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> "AcceptanceStats":
        longest = max((len(r.drafted) for r in rounds), default=0)
        return cls(
            num_spec_steps=len(rounds),
            num_draft_tokens=sum(len(r.drafted) for r in rounds),
            num_accepted_draft_tokens=sum(r.num_accepted for r in rounds),
            num_committed_tokens=sum(len(r.committed) for r in rounds),
            drafted_by_position=tuple(sum(len(r.drafted) > k for r in rounds) for k in range(longest)),
            accepted_by_position=tuple(sum(r.num_accepted > k for r in rounds) for k in range(longest)),
        )

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round, corrected or bonus token included."""
        return self.num_committed_tokens / self.num_spec_steps if self.num_spec_steps else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        return self.num_accepted_draft_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the blocks reaching each position whose token there was accepted."""
        pairs = zip(self.accepted_by_position, self.drafted_by_position, strict=True)
        return tuple(accepted / drafted for accepted, drafted in pairs)

    def summary(self) -> dict[str, float | int | list[float]]:
        return {
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_by_position": list(self.acceptance_by_position),
        }
