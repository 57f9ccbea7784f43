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

_TRIAL = 6  # rounds after which asking is judged
_FIRST_REST, _LONGEST_REST = 24, 384  # rounds without a question after trials that lost


class BatchPolicy(Protocol):
    """Answers "another?" for every text that could draft one more token. Texts are known by their number in the batch;
    like a :class:`Policy` it cannot remove a token, so every text keeps the target's own law."""

    needs: Needs

    def max_lookahead(self, batch_size: int) -> int:
        """Nobody is asked once so many tokens are drafted; 0 for a round in which nobody is asked at all. Called once,
        at the beginning of a round."""

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

    Where the question itself costs more than the drafts bring, nobody is asked: see :class:`_Ledger`.
    """

    needs: Needs = "features"

    def __init__(
        self,
        predictor: Predictor,
        rule_at: Callable[[int], StopRule],
        prices_at: Callable[[int], Sequence[float]] | None = None,
    ) -> None:
        """`rule_at`: number of unfinished texts -> thresholds at the price of a draft step there; `prices_at`: -> what
        rounds with 0, 1, ... drafts cost, in rounds without a question. Without it drafting is taken to pay."""
        self.predictor, self.rule_at, self.prices_at = predictor, rule_at, prices_at
        self._ledgers: dict[int, _Ledger] = {}  # of batches of 1, 2-3, 4-7, ... texts
        self._asked = 0  # texts of this round's batch, 0 if nobody was asked

    def max_lookahead(self, batch_size: int) -> int:
        self._asked = 0
        if self.rule_at(batch_size).first >= 1 or not (self.prices_at is None or self._ledger(batch_size).is_open()):
            return 0
        return self.predictor.max_lookahead

    def begin(self, num_texts: int) -> None:
        drafts = any(self.rule_at(batch_size).first < 1 for batch_size in range(1, num_texts + 1))
        self.needs = "features" if drafts else "position"

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        self._asked = batch_size
        rule = self.rule_at(batch_size)
        threshold = rule.at(steps[0].position)
        survivals = self.predictor.survival_batch(np.stack([_features(step) for step in steps]))  # [b]
        return [bool(survivals.sum() > threshold * batch_size)] * len(steps)

    def observe(self, text: int, finished: Round) -> None:
        if self._asked and self.prices_at:
            prices, num_drafted = self.prices_at(self._asked), len(finished.drafted)
            beyond = max(0, num_drafted + 1 - len(prices))  # on the line of the last two
            price = prices[num_drafted - beyond] + beyond * (prices[-1] - prices[-2])
            self._ledger(self._asked).gain += len(finished.committed) - price

    def _ledger(self, batch_size: int) -> "_Ledger":
        return self._ledgers.setdefault(batch_size.bit_length(), _Ledger())


class _Ledger:
    """What asking has brought of late: tokens, less what plain rounds would have brought in the same time.

    A stop rule prices each draft but not the question, whose features cost every text of a batch, and its survivals may
    be wrong for these texts. So rounds are tried a few at a time; if they lost, nobody is asked for a while, and longer
    after each further loss. It outlives a batch.
    """

    def __init__(self) -> None:
        self.gain = 0.0
        self._tried = self._resting = 0  # rounds of this trial, and rounds to come without one
        self._rest = _FIRST_REST

    def is_open(self) -> bool:
        """Whether to ask in the round that begins now."""
        if self._tried == _TRIAL:
            lost = self.gain < 0
            self._resting = self._rest if lost else 0
            self._rest = min(2 * self._rest, _LONGEST_REST) if lost else _FIRST_REST
            self._tried, self.gain = 0, 0.0
        if self._resting:
            self._resting -= 1
            return False
        self._tried += 1
        return True


def _features(step: DraftStep) -> np.ndarray:
    assert step.features is not None, "the drafter gives features to a policy whose needs is 'features'"
    return step.features
