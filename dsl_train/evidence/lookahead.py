"""How far drafting would have paid, and how far the policies draft: along one text and over all rounds."""

from dataclasses import dataclass

import numpy as np

from dsl_train.base.cost import Price
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.traces.decisions import Decisions

_MIN_ROUNDS = 8  # of the text that is shown, if there is one with so many


@dataclass(frozen=True)
class LookaheadAlong:
    """One text, at the starts of the learned policy's rounds."""

    prompt_id: str
    token: tuple[int, ...]
    """Response tokens before the round."""
    oracle: tuple[int, ...]
    """Drafts that would be accepted from here, at most the cap."""
    learned: tuple[int, ...]
    """Drafts that the learned policy made."""
    accepted: tuple[int, ...]
    """How many of them the target took."""
    static: int
    """The best constant lookahead."""


@dataclass(frozen=True)
class LookaheadDistribution:
    """Share of rounds with 0, 1, ... cap drafts, each policy's own rounds."""

    oracle: tuple[float, ...]
    learned: tuple[float, ...]
    oracle_mean: float
    learned_mean: float
    static: int


@dataclass(frozen=True)
class Acceptance:
    """By position in the block from 1 on, over the rounds of one policy, as far as any of them drafts."""

    policy: str
    reached: tuple[float, ...]
    """Share of the rounds that draft so far."""
    conditional: tuple[float, ...]
    """Accepted, of the drafts after accepted ones only."""
    cumulative: tuple[float, ...]
    """Accepted, of all drafts at this position."""


def typical_text(learned: ReplayResult, static: ReplayResult, price: Price) -> int:
    """Number of the text on which the learned policy's gain is the median one: neither the best nor the worst."""
    enough = learned.rounds_by_sequence >= min(_MIN_ROUNDS, int(learned.rounds_by_sequence.max()))
    gain = static.cost_by_sequence(price) / np.maximum(learned.cost_by_sequence(price), 1.0)
    candidates = np.flatnonzero(enough)
    ranked = candidates[np.argsort(gain[candidates], kind="stable")]
    return int(ranked[(len(ranked) - 1) // 2])


def along(decisions: Decisions, learned: ReplayResult, text: int, static: int) -> LookaheadAlong:
    rounds = np.flatnonzero(learned.sequence == text)
    starts = replay.start_numbers(decisions, learned)[rounds]
    begin = len(decisions.sequences[text].prompt_token_ids)
    return LookaheadAlong(
        prompt_id=decisions.prompt_ids[text],
        token=tuple((learned.start[rounds] - begin).tolist()),
        oracle=tuple(np.minimum(decisions.run[starts], decisions.max_lookahead).tolist()),
        learned=tuple(learned.num_drafted[rounds].tolist()),
        accepted=tuple(learned.num_accepted[rounds].tolist()),
        static=static,
    )


def distribution(decisions: Decisions, learned: ReplayResult, static: int) -> LookaheadDistribution:
    oracle = replay.replay_oracle(decisions)

    def shares(result: ReplayResult) -> tuple[float, ...]:
        counts = np.bincount(result.num_drafted, minlength=decisions.max_lookahead + 1)
        return tuple((counts / max(1, result.num_rounds)).tolist())

    return LookaheadDistribution(
        oracle=shares(oracle),
        learned=shares(learned),
        oracle_mean=oracle.mean_lookahead,
        learned_mean=learned.mean_lookahead,
        static=static,
    )


def acceptance(policy: str, result: ReplayResult) -> Acceptance:
    drafted, accepted = (
        np.array([np.sum(values > k) for k in range(int(result.num_drafted.max(initial=0)))], dtype=np.float64)
        for values in (result.num_drafted, result.num_accepted)
    )
    after_accepted = np.array(
        [np.sum((result.num_drafted > k) & (result.num_accepted >= k)) for k in range(len(drafted))], dtype=np.float64
    )
    return Acceptance(
        policy=policy,
        reached=tuple((drafted / max(1, result.num_rounds)).tolist()),
        conditional=tuple((accepted / np.maximum(1, after_accepted)).tolist()),
        cumulative=tuple((accepted / drafted).tolist()),
    )
