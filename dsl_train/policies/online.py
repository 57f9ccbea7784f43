"""A correction of the survival estimate by what became of the drafts: one number, learned while generating.

The estimate may be trained on other texts, another temperature, even another draft. Its logit is shifted, which is the
same as shifting the thresholds. The text stays the target's own: only finished rounds are looked at.

What is seen: every drafted token either survived or did not, also after the first rejection, so every decision to draft
has its outcome. A decision not to draft has none. That does not bias the fit, since given the estimate the choice does
not depend on the outcome; but a rule that never drafts would never learn that drafts have become better. So the
evidence fades, round by round, towards no shift at all, and the rule tries again.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from dsl_train.base.cost import StopRule


class OnlineShift:
    """The most probable shift of the logit under a normal prior, one Newton step a round."""

    PRIOR_STD = 1.0
    WEIGHT = 0.3
    """Of a decision as evidence: those of one round share their fate."""
    KEPT = 0.998
    """Share of the evidence that a round leaves."""

    def __init__(self) -> None:
        self.shift = 0.0
        """Added to the logit of the estimate."""
        self._prior = self.PRIOR_STD**-2
        self._precision = self._prior

    def observe(self, survivals: Sequence[float], num_accepted: int) -> None:
        """A round: the estimate that asked for each drafted token, and how many of them were accepted."""
        gradient = curvature = 0.0
        for number, survival in enumerate(survivals):
            prob = moved(survival, self.shift)
            gradient += (number < num_accepted) - prob
            curvature += prob * (1.0 - prob)
        faded = (1.0 - self.KEPT) * self._prior
        self._precision = self.KEPT * self._precision + faded + self.WEIGHT * curvature
        self.shift += (self.WEIGHT * gradient - faded * self.shift) / self._precision

    def rule(self, rule: StopRule) -> StopRule:
        """For the estimate as it is, what `rule` says of the corrected one."""
        return replace(rule, thresholds=tuple(moved(threshold, -self.shift) for threshold in rule.thresholds))


def moved(prob: float, shift: float) -> float:
    """`prob` with its logit shifted; 0 and 1 stay."""
    if not 0.0 < prob < 1.0:
        return prob
    return 1.0 / (1.0 + math.exp(-shift) * (1.0 - prob) / prob)
