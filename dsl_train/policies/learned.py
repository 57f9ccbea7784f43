"""The trained stop rule: another token while its survival is worth its price."""

from dsl_train.cost import StopRule
from dsl_train.policies.base import Needs
from dsl_train.policies.online import OnlineShift
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round


class LearnedPolicy:
    """Another iff survival > threshold; `CostProfile.stop_rule(predictor.threshold)` gives it for measured costs, one
    for each position. With `adapt` they follow what was accepted, from text to text."""

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
        self.max_lookahead = predictor.max_lookahead if max_lookahead is None else max_lookahead
        if self.rule.first >= 1.0:  # no survival is above it: spare the loop the question and its features
            self.max_lookahead, self.needs = 0, "position"
        self.last_survival: float | None = None
        """Of the latest decision, for display."""
        self._online = OnlineShift() if adapt else None
        self._survivals: list[float] = []  # that asked for the tokens of this round

    def wants_another(self, step: DraftStep) -> bool:
        assert step.features is not None, "the engine gives features to a policy whose needs is 'features'"
        self.last_survival = survival = self.predictor.survival(step.features)
        wanted = survival > self.rule.at(step.position)
        if wanted and self._online:
            self._survivals.append(survival)
        return wanted

    def observe(self, finished: Round) -> None:
        if self._online:
            self._online.observe(self._survivals, finished.num_accepted)
            self.rule = self._online.rule(self.given_rule)
            self._survivals = []

    def reset(self) -> None:
        self.last_survival = None
        self._survivals = []
