"""Measures what a draft step costs a batch here, and makes the policy that follows from it.

Whole rounds of the engine are timed, so that everything is in the price: both forwards, features, predictor, commit.
Letters: B texts, K drafted tokens of a round.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from dsl_train.batch_engine import Batch, BatchEngine
from dsl_train.cost import StopRule, interpolate
from dsl_train.loading import Pair
from dsl_train.policies.base import Needs, Policy
from dsl_train.policies.batch import BatchPolicy, EachItsOwn, LearnedBatchPolicy
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import DraftStep, Round
from dsl_train.runner import context_length
from dsl_train.sampling import Sampling

_TEXT_LENGTH = 64  # tokens of the texts that rounds are timed on, context permitting
_LOOKAHEADS = (0, 1, 2, 4, 8)
_REPEATS = 5


@dataclass(frozen=True)
class BatchCost:
    """Whole rounds [seconds], the fastest of several: anything else that runs can only slow them."""

    batch_sizes: tuple[int, ...]
    """Measured, rising."""
    alone: tuple[float, ...]
    """[batch sizes] a round of so many texts in which nobody is asked and no feature computed."""
    seconds: tuple[tuple[float, ...], ...]
    """[batch sizes][lookaheads] one in which the predictor is asked and 0, 1, 2, 4 or 8 tokens of each are drafted."""

    def rounds(self, batch_size: int) -> list[float]:
        """[lookaheads] in rounds without a question; between measured batch sizes linear."""
        alone = interpolate(batch_size, self.batch_sizes, self.alone)
        columns = zip(*self.seconds, strict=True)
        return [max(1.0, interpolate(batch_size, self.batch_sizes, column) / alone) for column in columns]

    def prices(self, batch_size: int) -> tuple[float, ...]:
        """[1 + most drafts] of rounds with 0, 1, 2, ... drafts, in rounds without a question."""
        rounds = self.rounds(batch_size)
        return tuple(interpolate(k, _LOOKAHEADS, rounds) for k in range(_LOOKAHEADS[-1] + 1))

    def stop_rule(self, predictor: Predictor, batch_size: int) -> StopRule:
        """The thresholds of survival for a batch of this size."""
        return StopRule.solve(predictor.threshold, self.prices(batch_size))


class _Exactly:
    """Drafts `lookahead` tokens whatever the predictor says, but asks it; with None nobody is asked."""

    needs: Needs = "features"

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.lookahead: int | None = None

    def max_lookahead(self, batch_size: int) -> int:
        return 0 if self.lookahead is None else max(_LOOKAHEADS) + 1

    def begin(self, num_texts: int) -> None: ...

    def wants_another(self, texts: Sequence[int], steps: Sequence[DraftStep], batch_size: int) -> list[bool]:
        LearnedBatchPolicy(self.predictor, _never).wants_another(texts, steps, batch_size)
        return [self.lookahead is not None and steps[0].position < self.lookahead] * len(steps)

    def observe(self, text: int, finished: Round) -> None: ...


def _never(batch_size: int) -> StopRule:
    return StopRule.of(1.0)


@torch.inference_mode()
def measure_batch(pair: Pair, predictor: Predictor, batch_size: int, sampling: Sampling | None = None) -> BatchCost:
    """At `batch_size`, a quarter of it, and so on down to 1: texts leave, and the price falls with them."""
    sizes = {1, batch_size}
    while batch_size > 4:
        batch_size //= 4
        sizes.add(batch_size)
    rising = tuple(sorted(sizes))
    alone, asked = zip(*(_time_rounds(pair, predictor, size, sampling) for size in rising), strict=True)
    return BatchCost(rising, alone, asked)


def _time_rounds(
    pair: Pair, predictor: Predictor, batch_size: int, sampling: Sampling | None
) -> tuple[float, tuple[float, ...]]:
    """[seconds] of a round without a question, and of those with 0, 1, ... drafts."""
    policy = _Exactly(predictor)
    engine = BatchEngine(pair.target, pair.draft, policy, sampling)
    length = min(_TEXT_LENGTH, max(1, context_length(pair.target) // 4))
    vocab_size = pair.target.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab_size, (batch_size, length), generator=generator).tolist()
    batch = Batch(engine, prompts, context_length(pair.target), range(batch_size))
    batch.run_round()
    seconds: dict[int | None, list[float]] = {lookahead: [] for lookahead in (None, *_LOOKAHEADS)}
    for _ in range(_REPEATS):
        for policy.lookahead in seconds:
            batch.rewind(length + 1)
            batch.run_round()  # leaves the draft as far behind as such rounds do
            began = time.perf_counter()
            batch.run_round()
            seconds[policy.lookahead].append(time.perf_counter() - began)
    return min(seconds[None]), tuple(min(seconds[lookahead]) for lookahead in _LOOKAHEADS)


def batch_policy(
    policy: Policy, pair: Pair, batch_size: int, sampling: Sampling | None = None, threshold: float | None = None
) -> BatchPolicy:
    """What `policy` is for a batch: the learned one decides for all texts together, at prices measured here unless a
    threshold is given (a few seconds for small models); of any other each text has a copy."""
    if not isinstance(policy, LearnedPolicy):
        return EachItsOwn(lambda: copy.deepcopy(policy))
    predictor = policy.predictor
    if threshold is not None:
        return LearnedBatchPolicy(predictor, lambda _: StopRule.of(threshold), clock=None)
    cost = measure_batch(pair, predictor, batch_size, sampling)
    return LearnedBatchPolicy(predictor, cache(partial(cost.stop_rule, predictor)))
