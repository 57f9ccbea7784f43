"""What drafting and verifying cost at each batch size, learned from the steps of the engine.

Sizes are told apart by powers of two. For each, `costs/online.py` learns what a step takes in which the requests have
drafted so many tokens on average; until it has met some, the numbers follow from those of one request: B requests
that verify W tokens each take as long as one that verifies B * W.
"""

from collections.abc import Callable

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.costs.online import NUM_WIDTHS, OnlineCosts, TimedRound


class BatchCosts:
    """Costs and stop rules by batch size."""

    def __init__(self, prior: CostProfile, threshold_at: Callable[[float], float]) -> None:
        self._prior, self._threshold_at = prior, threshold_at
        self._costs: dict[int, OnlineCosts] = {}
        self._rules: dict[int, tuple[CostProfile, StopRule]] = {}

    def rule(self, num_requests: int) -> StopRule:
        """The thresholds that pay for a request in a batch of this size, drafting and verifying shared by all."""
        size, costs = _size(num_requests), self._of(num_requests)
        if size not in self._rules or self._rules[size][0] is not costs.profile:
            self._rules[size] = costs.profile, costs.profile.stop_rule(self._threshold_at)
        return self._rules[size][1]

    def profile(self, num_requests: int) -> CostProfile:
        """Of a step of the whole batch [seconds]; widths are tokens per request."""
        return self._of(num_requests).profile

    def verifying_share(self, num_requests: int) -> float:
        """What share of the price of one more token each is verification."""
        profile = self.profile(num_requests)
        return profile.target_step_per_token / (profile.draft_step + profile.target_step_per_token)

    def lookahead_to_try(self, num_requests: int) -> int | None:
        return self._of(num_requests).lookahead_to_try

    def observe(
        self,
        num_requests: int,
        num_drafted: int,
        num_steps: int,
        draft_seconds: float | None,
        verify_seconds: float,
    ) -> None:
        """An engine step that verified `num_drafted` tokens of all requests together, made in `num_steps` steps of the
        draft. `draft_seconds` is None where the draft had more to read than its own last tokens."""
        each = round(num_drafted / num_requests)
        known = draft_seconds * each / num_steps if draft_seconds is not None and each and num_steps else None
        self._of(num_requests).observe(TimedRound(each, known, verify_seconds, 0.0))

    def _of(self, num_requests: int) -> OnlineCosts:
        size = _size(num_requests)
        if size not in self._costs:
            self._costs[size] = OnlineCosts(_for_batch(self._prior, size))
        return self._costs[size]


def _size(num_requests: int) -> int:
    """The next power of two."""
    return 1 << (num_requests - 1).bit_length()


def _for_batch(prior: CostProfile, num_requests: int) -> CostProfile:
    widths = range(1, NUM_WIDTHS + 1)
    return CostProfile.of_steps(
        prior.draft_step, [prior.verification(width * num_requests) for width in widths], prior.round_overhead
    )
