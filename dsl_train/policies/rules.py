"""Rules that look at the position only: a fixed lookahead, the +2/-1 heuristic, a coin."""

import random

from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, Round
from dsl_train.policies.register import register

#: Cap of the rules that are defined without one.
UNBOUNDED = 1000


@register(
    "static",
    "LOOKAHEAD: always so many tokens; 0 is plain decoding",
    lambda max_lookahead: map(str, range(max_lookahead + 1)),
)
class StaticPolicy(Policy):
    """Always draft the same number of tokens; 0 is plain decoding."""

    needs: Needs = "position"

    def __init__(self, lookahead: int = 4) -> None:
        self.name = f"static:{lookahead}"
        self.max_lookahead = lookahead

    def wants_another(self, step: DraftStep) -> bool:
        return step.position < self.max_lookahead


@register("heuristic", "two more after a fully accepted round, else one less (transformers)", published=True)
class HeuristicPolicy(Policy):
    """Two more after a round whose drafts were all accepted, else one less, never under one; kept across texts.

    `num_assistant_tokens_schedule="heuristic"` of transformers.
    """

    needs: Needs = "position"
    max_lookahead = UNBOUNDED

    def __init__(self, lookahead: int = 5) -> None:
        self.name = "heuristic"
        self.lookahead = lookahead

    def wants_another(self, step: DraftStep) -> bool:
        return step.position < self.lookahead

    def observe(self, finished: Round) -> None:
        self.lookahead = self.lookahead + 2 if finished.all_accepted else max(1, self.lookahead - 1)


@register("random", "PROBABILITY,SEED,CAP: a coin, for tests")
class RandomPolicy(Policy):
    """Another with a fixed probability: for tests, where any policy must leave the text alone."""

    needs: Needs = "position"

    def __init__(self, prob: float = 0.5, seed: int = 0, max_lookahead: int = 16) -> None:
        self.name = f"random:{prob:g}"
        self.prob, self.max_lookahead = prob, max_lookahead
        self._random = random.Random(seed)

    def wants_another(self, step: DraftStep) -> bool:
        return self._random.random() < self.prob
