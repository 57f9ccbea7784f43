"""Who decides for a batch of texts, where a draft step is one forward for all of them.

Letters: B texts that are not finished, b those of them asked. Knows steps and rounds; knows no model.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dsl_train.cost import StopRule
from dsl_train.policies.base import Needs, Policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round


class BatchPolicy(Protocol):
    """Answers "another?" for every text that could draft one more token. Texts are known by their number in the batch;
    like a :class:`Policy` it cannot remove a token, so every text keeps the target's own law."""

    needs: Needs

    def max_lookahead(self, batch_size: int) -> int:
        """Nobody is asked once so many tokens are drafted; 0 where no answer could be yes."""

    def begin(self, num_texts: int) -> None:
        """A new batch."""

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        """[b] answers for the texts at `steps`, all at one position; `batch_size` texts are not finished. A text that
        was refused is not asked again in that round."""

    def observe(self, text: int, finished: Round) -> None:
        """Called once per round and text, after commit."""


class EachItsOwn:
    """One policy for each text, with a memory of its own. The batch drafts on while any of them wants to: the others
    wait, their slots in the draft's forward wasted."""

    def __init__(self, make: Callable[[], Policy]) -> None:
        self._make = make
        self._policies = [make()]
        self.needs = self._policies[0].needs

    def max_lookahead(self, batch_size: int) -> int:
        return self._policies[0].max_lookahead

    def begin(self, num_texts: int) -> None:
        self._policies += [self._make() for _ in range(num_texts - len(self._policies))]
        for policy in self._policies:
            policy.reset()

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        return [self._policies[text].wants_another(step) for text, step in zip(texts, steps, strict=True)]

    def observe(self, text: int, finished: Round) -> None:
        self._policies[text].observe(finished)


class LearnedBatchPolicy:
    """One answer for the whole batch: another draft step while what it gains over all texts is worth its price.

    Let s_i be text i's survival, the chance that everything it has drafted and the next token are accepted, and 0 if it
    can draft no more. One more step of the batch gains sum(s_i) tokens in expectation. It costs c rounds of the batch,
    c = (draft forward + features and predictor + widening the verification by one column, for B texts) / a round of B
    texts. Its worth is what that time would have brought otherwise: by renewal reward the long-run rate, L tokens per
    text and round, hence B * L * c tokens. So

        another  iff  sum(s_i) > B * L * c  iff  mean(s_i) > L * c = threshold(c)

    with the mean over all B texts: the rule of a single text, for the mean survival at the batch's price. The table
    threshold(c) was solved for single texts, each stopping at its own best moment; a batch cannot, so its own L is
    smaller and the rule a little too careful. Where the widening costs as much as the step it replaces (a batch that
    keeps the machine's arithmetic busy), c approaches 1, threshold(1) = 1 and the batch drafts nothing.

    A drafting text's slot is free once the step is paid, so texts of little survival draft along.
    """

    needs: Needs = "features"

    def __init__(self, predictor: Predictor, rule_at: Callable[[int], StopRule]) -> None:
        """`rule_at`: number of unfinished texts -> thresholds at the price of a draft step there."""
        self.predictor, self.rule_at = predictor, rule_at

    def max_lookahead(self, batch_size: int) -> int:
        return self.predictor.max_lookahead if self.rule_at(batch_size).first < 1 else 0

    def begin(self, num_texts: int) -> None: ...

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        rule = self.rule_at(batch_size)
        threshold = rule.at(steps[0].position)
        survivals = self.predictor.survival_batch(np.stack([_features(step) for step in steps]))  # [b]
        return [bool(survivals.sum() > threshold * batch_size)] * len(steps)

    def observe(self, text: int, finished: Round) -> None: ...


def _features(step: DraftStep) -> np.ndarray:
    assert step.features is not None, "the drafter gives features to a policy whose needs is 'features'"
    return step.features
