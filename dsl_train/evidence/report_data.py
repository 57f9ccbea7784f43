"""What a report is computed from: held-out decisions, those that rules are tuned on, the predictor, prices."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dsl_train.base.cost import CostProfile, Price, StopRule, rule_at
from dsl_train.predictor.runtime import Predictor
from dsl_train.traces.decisions import Decisions

#: Price of a draft token [target steps] where none was measured.
ASSUMED_C = 0.1


@dataclass(frozen=True, eq=False)
class ReportData:
    """Letters: N decisions."""

    held_out: Decisions
    tuning: Decisions | None
    """Of other prompts. Without any, rules are tuned on `held_out` itself, in their favour."""
    predictor: Predictor
    cost: CostProfile | None = None
    threshold: float | None = None
    """Instead of the predictor's own for the price."""

    @cached_property
    def survival(self) -> np.ndarray:
        """[N] the predictor's estimate for every held-out decision."""
        return self.predictor.survival_batch(self.held_out.features)

    @property
    def tuned_on(self) -> Decisions:
        return self.held_out if self.tuning is None else self.tuning

    @property
    def price(self) -> Price:
        """What the learned policy's rounds are paid in, its predictor included."""
        return self.cost or ASSUMED_C

    @property
    def is_sampled(self) -> bool:
        return any(sequence.temperature > 0 for sequence in self.held_out.sequences)

    def stop_rule(self, price: Price) -> StopRule:
        """Survival above which the learned policy drafts on."""
        return rule_at(price, self.predictor.threshold) if self.threshold is None else StopRule.of(self.threshold)
