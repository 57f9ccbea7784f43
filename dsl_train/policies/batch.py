"""Who decides for a batch of texts, where a draft step is one forward for all of them.

Letters: B texts that are not finished, b those of them asked. Knows steps and rounds; knows no model.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dsl_train.cost import StopRule
from dsl_train.policies.base import Needs, Policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round

_TRIAL = 8  # rounds of each kind in a race; the first warms up
_FIRST_STRETCH, _LONGEST_STRETCH = 96, 6144  # rounds that the faster kind then has to itself


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

    Where the question itself costs more than the drafts bring, nobody is asked: see :class:`_Race`.
    """

    needs: Needs = "features"

    def __init__(
        self,
        predictor: Predictor,
        rule_at: Callable[[int], StopRule],
        clock: Callable[[], float] | None = time.perf_counter,
    ) -> None:
        """`rule_at`: number of unfinished texts -> thresholds at the price of a draft step there. Without `clock`
        drafting is taken to pay."""
        self.predictor, self.rule_at, self._clock = predictor, rule_at, clock
        self._races: dict[int, _Race] = {}  # of batches of 1, 2-3, 4-7, ... texts
        self._round: tuple[_Race, float] | None = None  # that this round counts for, and when it began
        self._num_tokens = 0  # committed in this round

    def max_lookahead(self, batch_size: int) -> int:
        may_pay = self.rule_at(batch_size).first < 1 and (self._clock is None or self._is_faster(batch_size))
        return self.predictor.max_lookahead if may_pay else 0

    def _is_faster(self, batch_size: int) -> bool:
        """Whether to ask in the round that begins now."""
        assert self._clock is not None
        now = self._clock()
        if self._round and self._num_tokens:
            race, began = self._round
            race.observe(self._num_tokens, now - began)
        race = self._races.setdefault(batch_size.bit_length(), _Race())
        self._round, self._num_tokens = (race, now), 0
        return race.asks

    def begin(self, num_texts: int) -> None:
        drafts = any(self.rule_at(batch_size).first < 1 for batch_size in range(1, num_texts + 1))
        self.needs = "features" if drafts else "position"
        self._round = None

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        rule = self.rule_at(batch_size)
        threshold = rule.at(steps[0].position)
        survivals = self.predictor.survival_batch(np.stack([step.features for step in steps]))  # [b]
        return [bool(survivals.sum() > threshold * batch_size)] * len(steps)

    def observe(self, text: int, finished: Round) -> None:
        self._num_tokens += len(finished.committed)


class _Race:
    """Rounds that ask against rounds that do not, by the clock: each kind runs a few, the faster has a stretch to
    itself, and a longer one each time it wins again.

    A stop rule prices drafts by rounds on made-up texts. What questions bring on these texts, and what they cost, only
    these rounds tell. It outlives a batch.
    """

    def __init__(self) -> None:
        self._stretch, self._winner = _FIRST_STRETCH, True
        self._begin()

    def _begin(self) -> None:
        self.asks, self._left, self._running = True, _TRIAL, True
        self._num_tokens, self._seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A round of the kind that `asks` says."""
        if self._running and self._left < _TRIAL:
            self._num_tokens[self.asks] += num_tokens
            self._seconds[self.asks] += seconds
        self._left -= 1
        if self._left:
            return
        if not self._running:
            self._begin()
        elif self.asks:
            self.asks, self._left = False, _TRIAL
        else:
            self._end()

    def _end(self) -> None:
        tokens, seconds = self._num_tokens, self._seconds
        self.asks = tokens[True] * seconds[False] > tokens[False] * seconds[True]
        self._stretch = min(4 * self._stretch, _LONGEST_STRETCH) if self.asks == self._winner else _FIRST_STRETCH
        self._winner, self._left, self._running = self.asks, self._stretch, False
