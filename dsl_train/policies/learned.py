"""The trained stop rule: another token while its survival is worth its price."""

from dsl_train.cost import StopRule
from dsl_train.policies.base import Needs
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round


class LearnedPolicy:
    """Another iff survival > threshold; `CostProfile.stop_rule(predictor.threshold)` gives it for measured costs, with
    one of its own for the first draft."""

    name = "learned"
    needs: Needs = "features"

    def __init__(self, predictor: Predictor, threshold: float | StopRule, max_lookahead: int | None = None) -> None:
        self.predictor = predictor
        self.rule = StopRule.of(threshold)
        self.max_lookahead = predictor.max_lookahead if max_lookahead is None else max_lookahead
        self.last_survival: float | None = None
        """Of the latest decision, for display."""

    def wants_another(self, step: DraftStep) -> bool:
        assert step.features is not None, "the engine gives features to a policy whose needs is 'features'"
        self.last_survival = survival = self.predictor.survival(step.features)
        return survival > (self.rule.another if step.position else self.rule.first)

    def observe(self, finished: Round) -> None: ...

    def reset(self) -> None:
        self.last_survival = None
