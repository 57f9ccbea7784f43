"""Stateless rules on what the draft says of its own tokens: stop once a signal falls under a threshold.

All of them draft a first token without asking, as they are defined. Letters: N decisions.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftPrimitives, DraftStep
from dsl_train.policies.register import register

#: Logits of probabilities are clipped to what this distance from 0 and 1 gives.
EPSILON = 1e-6
#: What tuning tries.
PROBS = (0.02, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.98)
CAPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


def probs_and_caps(max_lookahead: int) -> Iterable[str]:
    return (f"{prob:g},{cap}" for prob in PROBS for cap in CAPS)


class SignalPolicy(Policy):
    """Another iff the signal of the token drafted last is at least the threshold."""

    def __init__(self, name: str, threshold: float, max_lookahead: int) -> None:
        self.name = f"{name}:{threshold:g},{max_lookahead}"
        self.threshold, self.max_lookahead = threshold, max_lookahead

    @staticmethod
    def signal(seen: Any) -> Any:
        """Of a token's primitives, or [N] of the same names as arrays, which also have the `block_log_prob`."""
        raise NotImplementedError

    def passes(self, signal: Any) -> Any:
        return signal >= self.threshold

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or bool(self.passes(self.signal(step.draft)))


@register(
    "confidence",
    "THRESHOLD,CAP: stop after a token of smaller draft probability (transformers)",
    probs_and_caps,
    published=True,
)
class ConfidencePolicy(SignalPolicy):
    """Stop after the first token whose draft probability is under the threshold (transformers' constant threshold)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.4, max_lookahead: int = 20) -> None:
        super().__init__("confidence", threshold, max_lookahead)

    @staticmethod
    def signal(seen: Any) -> Any:
        return np.exp(seen.token_log_prob)


@register(
    "kangaroo", "THRESHOLD,CAP: stop where the largest draft probability is smaller", probs_and_caps, published=True
)
class KangarooPolicy(SignalPolicy):
    """Stop after the first distribution whose largest probability is under the threshold (2404.18911, its code)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.6, max_lookahead: int = 6) -> None:
        super().__init__("kangaroo", threshold, max_lookahead)

    @staticmethod
    def signal(seen: Any) -> Any:
        return np.exp(seen.log_probs[0])


@register(
    "svip",
    "THRESHOLD,CAP: stop where sqrt(0.15 * entropy) is larger",
    lambda _: (f"{round(1.0 - prob, 2):g},{cap}" for prob in PROBS for cap in CAPS),
    published=True,
)
class SvipPolicy(SignalPolicy):
    """Stop after the first distribution with sqrt(0.15 * entropy) over the threshold (2411.18462, its code)."""

    needs: Needs = "primitives"
    SCALE = 0.15

    def __init__(self, threshold: float = 0.3, max_lookahead: int = 40) -> None:
        super().__init__("svip", threshold, max_lookahead)

    @staticmethod
    def signal(seen: Any) -> Any:
        return np.sqrt(SvipPolicy.SCALE * np.maximum(0.0, seen.entropy))

    def passes(self, signal: Any) -> Any:
        return signal <= self.threshold


@register("cumulative", "THRESHOLD,CAP: stop once the product of draft probabilities is smaller", probs_and_caps)
class CumulativePolicy(SignalPolicy):
    """Stop once the product of the block's draft probabilities is under the threshold (as EAGLE-2 ranks its nodes)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.3, max_lookahead: int = 16) -> None:
        super().__init__("cumulative", threshold, max_lookahead)
        self._log_prob = 0.0

    @staticmethod
    def signal(seen: Any) -> Any:
        return np.exp(seen.block_log_prob)

    def wants_another(self, step: DraftStep) -> bool:
        self._log_prob = 0.0 if step.position <= 1 else self._log_prob
        self._log_prob += 0.0 if step.draft is None else step.draft.token_log_prob
        return bool(self.passes(math.exp(self._log_prob)))


@register("logistic", "THRESHOLD,SLOPE,INTERCEPT,...: one feature and an intercept per position")
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
    """The policy as `registry.make_policy` reads it."""
    return "logistic:" + ",".join(f"{value:.6g}" for value in (threshold, slope, *intercepts))
