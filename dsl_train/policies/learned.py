"""The trained stop rule: another token while its survival is worth its price."""

from dsl_train.cost import StopRule
from dsl_train.policies.alertness import Alertness
from dsl_train.policies.base import Needs
from dsl_train.policies.online import OnlineShift
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round


class LearnedPolicy:
    """Another iff survival > threshold; `CostProfile.stop_rule(predictor.threshold)` gives it for measured costs, one
    for each position. With `adapt` they follow what was accepted, from text to text.

    While a draft proves useless the policy rests: it wants no token, so the engine does not even ask.
    """

    needs: Needs = "features"  # of the class; of one that never drafts, "position"

    def __init__(
        self,
        predictor: Predictor,
        threshold: float | StopRule,
        max_lookahead: int | None = None,
        adapt: bool = False,
    ) -> None:
        self.name = "learned:adapt" if adapt else "learned"
        self.predictor = predictor
        self.given_rule = self.rule = StopRule.of(threshold)
        self._cap = predictor.max_lookahead if max_lookahead is None else max_lookahead
        if self.rule.first >= 1.0:  # no survival is above it: spare the loop the question and its features
            self._cap, self.needs = 0, "position"
        self.last_survival: float | None = None
        """Of the latest decision, for display."""
        self._alertness = Alertness()
        self._online = OnlineShift() if adapt else None
        self._survivals: list[float] = []  # that asked for the tokens of this round

    @property
    def max_lookahead(self) -> int:
        """Of the coming round."""
        return self._cap if self._alertness.awake else 0

    @max_lookahead.setter
    def max_lookahead(self, cap: int) -> None:
        self._cap = cap

    def wants_another(self, step: DraftStep) -> bool:
        assert step.features is not None, "the engine gives features to a policy whose needs is 'features'"
        self.last_survival = survival = self.predictor.survival(step.features)
        wanted = survival > self.rule.at(step.position)
        if wanted:
            self._survivals.append(survival)
        return wanted

    def observe(self, finished: Round) -> None:
        first = self._survivals[0] if len(self._survivals) == len(finished.drafted) > 0 else None
        self._alertness.observe(first, finished.num_accepted > 0)
        if self._online:
            self._online.observe(self._survivals, finished.num_accepted)
            self.rule = self._online.rule(self.given_rule)
        self._survivals = []

    def reset(self) -> None:
        self.last_survival = None
        self._survivals = []
