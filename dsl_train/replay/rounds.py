"""What a policy would have done on traced texts: rounds, tokens and price. No model is loaded.

A stateless rule answers all decisions at once, and its rounds then follow from start to start. Any other policy goes
through the texts round by round, as in the live loop. Knows decisions, policies and the price of a draft; knows no
model and no network. Letters: N decisions, S starts, R rounds, Q sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dsl_train.base.cost import Price, StopRule, marginal, round_costs
from dsl_train.base.policy import Policy
from dsl_train.base.records import Round
from dsl_train.replay.policy_rounds import PolicyRounds
from dsl_train.traces.decisions import Decisions

#: Share of rounds that may run out of recorded tail before a replay is called inexact.
MAX_EXHAUSTED = 0.005
MAX_ITERATIONS = 8
#: Thresholds tried besides the solved one: multiples of it, and fixed ones (1.0 never drafts).
NEARBY = (0.8, 0.9, 1.1, 1.25)
ANYWHERE = (*(i / 20 for i in range(1, 20)), 0.98, 1.0)
#: Relative gain in rate from which another threshold replaces the solved one.
CLEARLY = 0.001


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """Rounds in text order, sequence after sequence; the prompt's own forward is not among them."""

    sequence: np.ndarray
    """[R] int64: 0 .. Q - 1"""
    start: np.ndarray
    """[R] int32: committed tokens before the round, prompt included."""
    num_drafted: np.ndarray
    """[R] int64"""
    num_accepted: np.ndarray
    """[R] int64"""
    exhausted: np.ndarray
    """[R] bool: the policy wanted more drafts than the traces hold."""
    tokens: np.ndarray
    """[Q] int64: tokens committed by rounds: the response but its first."""
    prompt_ids: tuple[str, ...]
    """[Q]"""
    rounds: tuple[tuple[Round, ...], ...] | None = None
    """One tuple per sequence, from `replay_policy` only; a drafted token that the traces do not hold is -1."""

    @property
    def num_rounds(self) -> int:
        return len(self.start)

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())

    @cached_property
    def rounds_by_sequence(self) -> np.ndarray:
        """[Q] int64"""
        return np.bincount(self.sequence, minlength=len(self.tokens))

    @cached_property
    def drafted_by_sequence(self) -> np.ndarray:
        """[Q] int64"""
        return np.bincount(self.sequence, self.num_drafted, len(self.tokens)).astype(np.int64)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round, corrected or bonus token included."""
        return self.num_tokens / max(1, self.num_rounds)

    @property
    def mean_lookahead(self) -> float:
        return float(self.num_drafted.sum()) / max(1, self.num_rounds)

    @property
    def draft_acceptance_rate(self) -> float:
        return float(self.num_accepted.sum()) / max(1, int(self.num_drafted.sum()))

    @property
    def exhausted_share(self) -> float:
        return float(self.exhausted.sum()) / max(1, self.num_rounds)

    @property
    def warning(self) -> str | None:
        """What to tell the user if the traces end too early for this policy."""
        if self.exhausted_share <= MAX_EXHAUSTED:
            return None
        return (
            f"{self.exhausted_share:.1%} of {self.num_rounds} rounds ran out of recorded draft steps (allowed: "
            f"{MAX_EXHAUSTED:.1%}), so this replay drafts too little; collect with a larger --tail_length"
        )

    def rate(self, price: Price) -> float:
        """Tokens per target step, or per round of plain decoding if the price is a profile: the speedup over decoding
        without a draft."""
        cost = float(self._round_costs(price).sum())
        return self.num_tokens / cost if cost else 0.0

    def cost_by_sequence(self, price: Price) -> np.ndarray:
        """[Q] in the same unit; `tokens.sum() / cost.sum()` over resampled prompts bootstraps :meth:`rate`."""
        return np.bincount(self.sequence, self._round_costs(price), len(self.tokens))

    def _round_costs(self, price: Price) -> np.ndarray:
        """[R]"""
        costs: np.ndarray = np.array(round_costs(price, int(self.num_drafted.max(initial=0))))[self.num_drafted]
        return costs


def replay_lookahead(
    decisions: Decisions, num_drafted: np.ndarray, exhausted: np.ndarray | None = None
) -> ReplayResult:
    """Rounds of a policy that drafts `num_drafted` [S] tokens at each start, or fewer where the text has no room."""
    num_drafted = np.minimum(num_drafted, decisions.limit)
    num_accepted = np.minimum(num_drafted, decisions.run)
    ends = np.repeat(decisions.bounds[1:], np.diff(decisions.bounds))  # [S]
    visited = _hop(np.minimum(np.arange(len(ends)) + num_accepted + 1, ends))
    return ReplayResult(
        sequence=np.searchsorted(decisions.bounds, visited, side="right") - 1,
        start=decisions.start_index[visited],
        num_drafted=num_drafted[visited].astype(np.int64),
        num_accepted=num_accepted[visited].astype(np.int64),
        exhausted=np.zeros(len(visited), dtype=bool) if exhausted is None else exhausted[visited],
        tokens=np.diff(decisions.bounds),
        prompt_ids=tuple(decisions.prompt_ids),
    )


def _hop(following: np.ndarray) -> np.ndarray:
    """[R] the starts of the rounds: from the first start on, `following` [S] gives the next one."""
    next_start, visited, here = following.tolist(), [], 0
    while here < len(next_start):
        visited.append(here)
        here = next_start[here]
    return np.array(visited, dtype=np.int64)


def replay_answers(decisions: Decisions, another: np.ndarray, max_lookahead: int | None = None) -> ReplayResult:
    """Rounds of a stateless rule: `another` [N] bool is its answer to every decision.

    `max_lookahead` is the rule's own cap; that of the decisions applies as well.
    """
    counts = decisions.num_decisions
    lookahead = np.zeros(len(counts), dtype=np.int64)
    asked = np.flatnonzero(counts)
    if len(asked):
        stops = np.where(another, np.iinfo(np.int16).max, decisions.position)
        lookahead[asked] = np.minimum.reduceat(stops, decisions.offsets[asked])
    cap = min(decisions.max_lookahead if max_lookahead is None else max_lookahead, decisions.max_lookahead)
    possible = np.minimum(decisions.limit, cap)
    exhausted = (lookahead >= counts) & (counts < possible)
    return replay_lookahead(decisions, np.minimum(np.minimum(lookahead, counts), cap), exhausted)


def replay_survival(decisions: Decisions, survival: np.ndarray, threshold: float | StopRule) -> ReplayResult:
    """Rounds of the rule "another if and only if survival > threshold"; `survival` is [N].

    These are the rounds of the learned policy as long as it does not pause drafting (`policies/resting.py`), which only
    `replay_policy` reproduces.
    """
    rule = StopRule.of(threshold)
    thresholds = np.array(rule.thresholds)
    return replay_answers(decisions, survival > thresholds[np.minimum(decisions.position, len(thresholds) - 1)])


def replay_static(decisions: Decisions, lookahead: int) -> ReplayResult:
    """Rounds of a fixed lookahead; exact whatever the length of the tails."""
    return replay_lookahead(decisions, np.full(len(decisions.run), lookahead))


def replay_oracle(decisions: Decisions, max_lookahead: int | None = None) -> ReplayResult:
    """Upper bound: stop after the last draft that will be accepted."""
    cap = decisions.max_lookahead if max_lookahead is None else max_lookahead
    return replay_lookahead(decisions, np.minimum(decisions.run, cap))


def replay_oracle_plus(decisions: Decisions, max_lookahead: int | None = None) -> ReplayResult:
    """Upper bound of policies that pay for the rejected draft: stop after it."""
    cap = decisions.max_lookahead if max_lookahead is None else max_lookahead
    return replay_lookahead(decisions, np.minimum(decisions.run + 1, cap))


def replay_policy(decisions: Decisions, policy: Policy) -> ReplayResult:
    """Rounds of any policy, called as in the live loop; this uses and changes the policy's state."""
    starts: list[int] = []
    exhausted: list[bool] = []
    rounds: list[tuple[Round, ...]] = []
    for number in range(decisions.num_sequences):
        in_text = PolicyRounds(decisions, policy, number)
        policy.reset()
        rounds.append(tuple(in_text))
        starts += in_text.starts
        exhausted += in_text.exhausted
    visited = np.array(starts, dtype=np.int64)
    return ReplayResult(
        sequence=np.searchsorted(decisions.bounds, visited, side="right") - 1,
        start=decisions.start_index[visited],
        num_drafted=np.array([len(r.drafted) for text in rounds for r in text], dtype=np.int64),
        num_accepted=np.array([r.num_accepted for text in rounds for r in text], dtype=np.int64),
        exhausted=np.array(exhausted, dtype=bool),
        tokens=np.diff(decisions.bounds),
        prompt_ids=tuple(decisions.prompt_ids),
        rounds=tuple(rounds),
    )


def start_numbers(decisions: Decisions, result: ReplayResult) -> np.ndarray:
    """[R] number of each round's start among all starts."""
    firsts = decisions.bounds[result.sequence]
    return firsts + result.start - decisions.start_index[firsts]


def solve_thresholds(decisions: Decisions, survival: np.ndarray, prices: Sequence[Price]) -> list[float]:
    """For each price, the survival above which another draft pays; `survival` is [N].

    Another draft pays if and only if survival > rate * its price; the best rate is the fixed point of replaying that
    rule (Dinkelbach). Other thresholds are tried as well and preferred where clearly better, which a calibrated
    survival never needs. The threshold is the same before and after the first draft.
    """
    rounds_by_drafts: dict[float, np.ndarray] = {}  # threshold -> [max_lookahead + 1] rounds with 0, 1, ... drafts
    num_counts = decisions.max_lookahead + 1
    num_tokens = int(decisions.bounds[-1])

    def rate_at(threshold: float, costs: np.ndarray) -> float:
        if threshold not in rounds_by_drafts:
            drafted = replay_survival(decisions, survival, threshold).num_drafted
            rounds_by_drafts[threshold] = np.bincount(drafted, minlength=num_counts)
        cost = float(rounds_by_drafts[threshold] @ costs)
        return num_tokens / cost if cost else 1.0

    def solve(price: Price) -> float:
        costs = np.array(round_costs(price, decisions.max_lookahead))
        return _solve_threshold(lambda threshold: rate_at(threshold, costs), marginal(price))

    return list(map(solve, prices))


def _solve_threshold(rate_at: Callable[[float], float], c: float) -> float:
    rate = 1.0  # of drafting nothing
    for _ in range(MAX_ITERATIONS):
        previous, rate = rate, max(1.0, rate_at(rate * c))
        if abs(rate - previous) < 1e-4 * rate:
            break
    solved = rate * c
    best = max((*(solved * factor for factor in NEARBY), *ANYWHERE), key=rate_at)
    return best if rate_at(best) > rate_at(solved) * (1 + CLEARLY) else solved
