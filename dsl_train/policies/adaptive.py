"""Rules whose threshold follows what was accepted. All begin anew with every text, as the originals do."""

import math
from collections.abc import Sequence

import numpy as np

from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, Round
from dsl_train.policies.register import register
from dsl_train.policies.signals import token_prob


@register(
    "confidence-roc",
    "THRESHOLD,CAP: the same as confidence, refitted every round (transformers with scikit-learn)",
    published=True,
)
class ConfidenceRocPolicy(Policy):
    """`confidence` with its threshold refitted after every round: transformers with scikit-learn installed.

    Probabilities of a block's accepted tokens and of its first rejected one are kept. A token drafted at the cap is
    not among them: no decision follows it.
    """

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.4, max_lookahead: int = 20) -> None:
        self.name = f"confidence-roc:{threshold:g},{max_lookahead}"
        self.initial_threshold, self.max_lookahead = threshold, max_lookahead
        self.reset()

    def reset(self) -> None:
        self.threshold = self.initial_threshold
        self._block: list[float] = []
        self._probs: list[float] = []
        self._matches: list[bool] = []

    def wants_another(self, step: DraftStep) -> bool:
        if step.draft is None:
            return True
        self._block.append(token_prob(step.draft))
        return self._block[-1] >= self.threshold

    def observe(self, finished: Round) -> None:
        known = self._block[: finished.num_accepted + 1]
        self._probs += known
        self._matches += [i < finished.num_accepted for i in range(len(known))]
        self._block = []
        if len(self._probs) > 5 and len(set(self._matches)) == 2:
            self.threshold = roc_threshold(self._probs, self._matches)


def roc_threshold(probs: Sequence[float], matches: Sequence[bool]) -> float:
    """The probability at which false-positive rate + 3 * false-negative rate is least; the largest such one."""
    order = np.argsort(probs)[::-1]
    falling, hits = np.asarray(probs)[order], np.asarray(matches)[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    true_positives, false_positives = np.cumsum(hits)[last_of_ties], np.cumsum(~hits)[last_of_ties]
    costs = false_positives / false_positives[-1] + 3 * (1 - true_positives / true_positives[-1])
    return float(falling[last_of_ties][np.argmin(costs)])


class _FollowsAcceptance(Policy):
    """A threshold that moves slowly towards 0.9 of the drafts being accepted."""

    TARGET, RATE_DECAY, STEP, THRESHOLD_DECAY = 0.9, 0.5, 0.01, 0.9

    def __init__(self, name: str, threshold: float, max_lookahead: int) -> None:
        self.name = f"{name}:{threshold:g},{max_lookahead}"
        self.initial_threshold, self.max_lookahead = threshold, max_lookahead
        self.reset()

    def reset(self) -> None:
        self.threshold, self.rate = self.initial_threshold, 0.0

    def observe(self, finished: Round) -> None:
        drafted = len(finished.drafted)
        if not drafted:
            return
        self.rate = self.RATE_DECAY * self.rate + (1 - self.RATE_DECAY) * finished.num_accepted / drafted
        if self.rate < self.TARGET:
            wanted = self.threshold + self.STEP
        else:
            wanted = self.threshold if drafted == self.max_lookahead else self.threshold - self.STEP
        self.threshold = self.THRESHOLD_DECAY * self.threshold + (1 - self.THRESHOLD_DECAY) * wanted


@register(
    "draft-verify",
    "THRESHOLD,CAP: the same as confidence, moving towards 0.9 acceptance",
    lambda _: ("0.2", "0.5", "0.8"),
    published=True,
)
class DraftVerifyPolicy(_FollowsAcceptance):
    """Stop after the first token whose draft probability is under the threshold (2309.08168, its code)."""

    needs: Needs = "confidence"

    def __init__(self, threshold: float = 0.8, max_lookahead: int = 8) -> None:
        super().__init__("draft-verify", threshold, max_lookahead)

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or token_prob(step.draft) >= self.threshold


@register(
    "adaedl",
    "THRESHOLD,CAP: stop where 1 - sqrt(0.2 * entropy) is smaller, moving towards 0.9 acceptance",
    lambda _: ("0.3", "0.5", "0.7"),
    published=True,
)
class AdaEdlPolicy(_FollowsAcceptance):
    """Stop after the first distribution with 1 - sqrt(0.2 * entropy) under the threshold (2410.18351)."""

    needs: Needs = "primitives"
    SCALE = 0.2

    def __init__(self, threshold: float = 0.5, max_lookahead: int = 16) -> None:
        super().__init__("adaedl", threshold, max_lookahead)

    def wants_another(self, step: DraftStep) -> bool:
        return step.draft is None or 1.0 - math.sqrt(self.SCALE * max(0.0, step.draft.entropy)) >= self.threshold
