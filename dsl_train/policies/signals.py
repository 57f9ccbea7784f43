"""Stateless rules on what the draft says of its own tokens: stop once a signal falls under a threshold.

All of them draft a first token without asking, as they are defined.
"""

import math
from collections.abc import Sequence

from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftPrimitives, DraftStep

#: Logits of probabilities are clipped to what this distance from 0 and 1 gives.
EPSILON = 1e-6


class ConfidencePolicy(Policy):
    """Stop behind the first token whose draft probability is under the threshold (transformers' constant threshold)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.4, max_lookahead: int = 20) -> None:
        self.name = f"confidence:{threshold:g},{max_lookahead}"
        self.threshold, self.max_lookahead = threshold, max_lookahead

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or token_prob(step.draft) >= self.threshold


class KangarooPolicy(Policy):
    """Stop behind the first distribution whose largest probability is under the threshold (2404.18911, its code)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.6, max_lookahead: int = 6) -> None:
        self.name = f"kangaroo:{threshold:g},{max_lookahead}"
        self.threshold, self.max_lookahead = threshold, max_lookahead

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or math.exp(step.draft.log_probs[0]) >= self.threshold


class SvipPolicy(Policy):
    """Stop behind the first distribution with sqrt(0.15 * entropy) over the threshold (2411.18462, its code)."""

    needs: Needs = "primitives"
    SCALE = 0.15

    def __init__(self, threshold: float = 0.3, max_lookahead: int = 40) -> None:
        self.name = f"svip:{threshold:g},{max_lookahead}"
        self.threshold, self.max_lookahead = threshold, max_lookahead

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or math.sqrt(self.SCALE * max(0.0, step.draft.entropy)) <= self.threshold


class CumulativePolicy(Policy):
    """Stop once the product of the block's draft probabilities is under the threshold (as EAGLE-2 ranks its nodes)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.3, max_lookahead: int = 16) -> None:
        self.name = f"cumulative:{threshold:g},{max_lookahead}"
        self.threshold, self.max_lookahead = threshold, max_lookahead
        self._log_prob = 0.0

    def wants_another(self, step: DraftStep) -> bool:
        self._log_prob = 0.0 if step.draft is None else self._log_prob + step.draft.token_log_prob
        return math.exp(self._log_prob) >= self.threshold


class LogisticPolicy(Policy):
    """Another iff sigmoid(slope * logit(largest draft probability) + intercept of the position) is over the threshold.

    One feature, as in vLLM's estimator, fitted offline by `tuning.fit_logistic`; one intercept per position from 0 on.
    """

    name = "logistic"
    needs: Needs = "confidence"

    def __init__(self, threshold: float, slope: float, *intercepts: float) -> None:
        self.threshold, self.slope, self.intercepts = threshold, slope, intercepts
        self.max_lookahead = len(intercepts)

    def wants_another(self, step: DraftStep) -> bool:
        signal = 0.0 if step.draft is None else top_logit(step.draft)
        logit = self.slope * signal + self.intercepts[step.position]
        return 1.0 / (1.0 + math.exp(-max(-50.0, logit))) > self.threshold


def token_prob(draft: DraftPrimitives) -> float:
    """Probability of the drafted token."""
    return math.exp(draft.token_log_prob)


def top_logit(draft: DraftPrimitives) -> float:
    """Logit of the largest probability, clipped."""
    prob = min(max(math.exp(draft.log_probs[0]), EPSILON), 1.0 - EPSILON)
    return math.log(prob / (1.0 - prob))


def logistic_spec(threshold: float, slope: float, intercepts: Sequence[float]) -> str:
    """The policy as `factory.make_policy` reads it."""
    return "logistic:" + ",".join(f"{value:.6g}" for value in (threshold, slope, *intercepts))
