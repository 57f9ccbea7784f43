"""The trained stop rule: another token while its survival is worth its price."""

from typing import TYPE_CHECKING

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, Round
from dsl_train.costs.online import OnlineCosts, TimedRound
from dsl_train.policies.online import OnlineShift
from dsl_train.policies.register import register
from dsl_train.policies.resting import Resting

if TYPE_CHECKING:
    from dsl_train.predictor.runtime import Predictor


@register("learned", "the trained predictor, with the threshold that pays here, corrected by what is accepted")
class LearnedPolicy(Policy):
    """Another iff survival > threshold.

    Given thresholds stay as they are, and rounds are reproducible. Given `OnlineCosts`, rounds are timed, and the
    thresholds follow what drafting and verifying cost; now and then a round drafts what makes those costs known. They
    are also shifted by what was accepted, from text to text (`corrected` says otherwise). While a draft proves useless
    the policy rests: it wants no token, so the engine does not even ask.
    """

    needs: Needs = "features"  # of the class; of one that never drafts, "position"

    def __init__(
        self,
        predictor: "Predictor",
        threshold: float | StopRule | OnlineCosts,
        max_lookahead: int | None = None,
        corrected: bool | None = None,
    ) -> None:
        self.name = "learned"
        self.predictor = predictor
        self._cap = predictor.max_lookahead if max_lookahead is None else max_lookahead
        self.last_survival: float | None = None
        """The latest answer of the predictor, for display."""
        self._resting = Resting()
        self._survivals: list[float] = []  # that wanted this round's tokens
        self._online = threshold if isinstance(threshold, OnlineCosts) else None
        self._shift = OnlineShift() if (self._online is not None if corrected is None else corrected) else None
        self._drafted_last = False  # whether the draft has but its own last tokens to read
        if isinstance(threshold, OnlineCosts):
            self._price(threshold.profile)
        else:
            self.given_rule = self.rule = StopRule.of(threshold)
            if self.rule.first >= 1.0:  # no survival is above it: spare the loop the features
                self._cap, self.needs = 0, "position"

    @property
    def costs(self) -> CostProfile | None:
        """What the thresholds follow; None where they were given."""
        return self._online.profile if self._online else None

    @property
    def max_lookahead(self) -> int:  # type: ignore[override]  # nobody sets it
        """Of the coming round."""
        tried = self._online.lookahead_to_try if self._online else None
        if tried is not None:
            return min(tried, self._cap)
        return self._cap if self._resting.awake and self.rule.first < 1.0 else 0

    def wants_another(self, step: DraftStep) -> bool:
        tried = self._online.lookahead_to_try if self._online else None
        if tried is not None:
            return step.position < tried
        self.last_survival = survival = self.predictor.survival(step.features)
        wanted = survival > self.rule.at(step.position)
        if wanted:
            self._survivals.append(survival)
        elif step.position == 0:
            self._resting.refuse()
        return wanted

    def draft_temperature(self, temperature: float) -> float:
        return self.predictor.draft_temperature(temperature)

    def observe(self, finished: Round) -> None:
        first = self._survivals[0] if len(self._survivals) == len(finished.drafted) > 0 else None
        self._resting.observe(first, finished.num_accepted > 0)
        if self._shift:
            self._shift.observe(self._survivals, finished.num_accepted)
            self.rule = self._shift.rule(self.given_rule)
        self._survivals = []

    def timed(self, num_drafted: int, draft_seconds: float, verify_seconds: float, round_seconds: float) -> None:
        if self._online is None:
            return
        overhead = max(0.0, round_seconds - draft_seconds - verify_seconds)
        known = draft_seconds if num_drafted and self._drafted_last else None
        self._drafted_last = num_drafted > 0
        self._online.observe(TimedRound(num_drafted, known, verify_seconds, overhead))
        if self._online.profile is not self._priced:
            self._price(self._online.profile)

    def reset(self) -> None:
        self.last_survival = None
        self._survivals, self._drafted_last = [], False

    def _price(self, costs: CostProfile) -> None:
        """Set the thresholds that pay at these costs."""
        self._priced = costs
        self.given_rule = costs.stop_rule(self.predictor.threshold)
        self.rule = self._shift.rule(self.given_rule) if self._shift else self.given_rule
