"""Who of a batch drafts another token: our policies, asked for many requests at once.

Letters: B requests in the batch, D drafting time, S verifying time of one more token per request.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dsl_train.base.cost import StopRule
from dsl_train.base.policy import WITHOUT_ENTROPY, Policy
from dsl_train.base.records import Round
from dsl_train.policies.registry import make_policy, needs_of
from dsl_train.policies.resting import Resting
from dsl_train.predictor.runtime import Predictor
from dsl_train.vllm.costs import BatchCosts
from dsl_train.vllm.request import RequestText


class Decision(Protocol):
    """Decides for the batch. What it wants is drafted, and what is drafted is verified."""

    name: str
    needs_features: bool
    needs_primitives: bool
    without_entropy: bool
    shown_unscaled: bool
    """Whether it was trained on the distributions of a draft that proposes its most likely token, which are shown as
    they are and not at the request's temperature."""
    num_questions: int
    num_stops: int
    """Questions that were answered by no."""

    def policy(self) -> Policy | None:
        """A policy of its own for a new request; None where all requests share one."""

    def begin(self, num_requests: int) -> int:
        """A step begins; returns how many tokens it may draft for each request."""

    def wanted(self, requests: Sequence[RequestText], position: int) -> list[RequestText]:
        """Those for which another token is drafted; `requests` have drafted `position` tokens each."""

    def observe(self, request: RequestText, finished: Round) -> None:
        """Called for each request that was verified, after commit."""


class EachOnItsOwn:
    """Any policy by name, one for each request; drafting goes on while one of them wants a token."""

    shown_unscaled = False

    def __init__(self, spec: str) -> None:
        self.spec, self.name, needs = spec, spec, needs_of(spec)
        self.needs_features, self.needs_primitives = needs == "features", needs != "position"
        self.without_entropy = needs in WITHOUT_ENTROPY
        self.num_questions = self.num_stops = 0
        self._cap = make_policy(spec).max_lookahead

    def policy(self) -> Policy:
        return make_policy(self.spec)

    def begin(self, num_requests: int) -> int:
        return self._cap

    def wanted(self, requests: Sequence[RequestText], position: int) -> list[RequestText]:
        self.num_questions += len(requests)
        wanted = [r for r in requests if r.policy and r.policy.wants_another(r.step)]
        self.num_stops += len(requests) - len(wanted)
        return wanted

    def observe(self, request: RequestText, finished: Round) -> None:
        if request.policy:
            request.policy.observe(finished)


class LearnedTogether:
    """The trained stop rule for a batch.

    One more draft step takes D for all requests, and S for each one whose block grows. So a request takes part if its
    survival is worth S, and the step is made if what the survivals of all who take part exceed S by is worth D. With
    one request this is the rule of our own loop: survival > price of D + S. Given a threshold, each request goes by it
    alone: nothing is timed, and rounds are those of our own loop whatever the batch.
    """

    needs_features = needs_primitives = without_entropy = True

    def __init__(self, predictor: Predictor, costs: StopRule | BatchCosts) -> None:
        self.name, self.predictor, self.costs = "learned", predictor, costs
        self.shown_unscaled = predictor.draft_sampling == "greedy"
        self.num_questions = self.num_stops = 0
        self._resting = Resting()
        self._num_requests = 1
        self._tried: int | None = None
        self._rule = costs if isinstance(costs, StopRule) else costs.rule(1)

    def policy(self) -> None:
        return None

    def begin(self, num_requests: int) -> int:
        self._num_requests, cap = num_requests, self.predictor.max_lookahead
        if isinstance(self.costs, BatchCosts):
            self._rule, self._tried = self.costs.rule(num_requests), self.costs.lookahead_to_try(num_requests)
            if self._tried is not None:
                return min(self._tried, cap)
        return cap if self._resting.awake and self._rule.first < 1.0 else 0

    def wanted(self, requests: Sequence[RequestText], position: int) -> list[RequestText]:
        if self._tried is not None:
            return list(requests)
        self.num_questions += len(requests)
        vectors = np.stack([r.view.vector() for r in requests if r.view])  # [N, F]
        survivals = self.predictor.survival_batch(vectors).tolist()  # [N]
        chosen = self._worth_it(survivals, self._rule.at(position))
        self.num_stops += len(chosen) - sum(chosen)
        for request, survival, is_chosen in zip(requests, survivals, chosen, strict=True):
            if is_chosen:
                request.survivals.append(survival)
            elif position == 0:
                self._resting.refuse()
        return [r for r, is_chosen in zip(requests, chosen, strict=True) if is_chosen]

    def observe(self, request: RequestText, finished: Round) -> None:
        survivals, request.survivals = request.survivals, []
        first = survivals[0] if len(survivals) == len(finished.drafted) > 0 else None
        self._resting.observe(first, finished.num_accepted > 0)

    def _worth_it(self, survivals: Sequence[float], price: float) -> list[bool]:
        """Who drafts another token, [N]; `price` is the survival that pays for a request alone in its batch."""
        share = self.costs.verifying_share(self._num_requests) if isinstance(self.costs, BatchCosts) else 1.0
        verifying, drafting = share * price, (1.0 - share) * price * self._num_requests
        takes_part = [survival > verifying for survival in survivals]
        gain = sum(survival - verifying for survival in survivals if survival > verifying)
        return takes_part if gain > drafting else [False] * len(survivals)
