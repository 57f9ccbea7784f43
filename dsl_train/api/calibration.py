"""Times rounds of fixed lookaheads, 0 to 16 in turn, through the loop that serves and the costs learned in service.

One schedule for each thing that a policy may look at, interleaved, so that looking has a price as well.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from dsl_train.base.cost import CostProfile
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, DslError, Round
from dsl_train.base.sampling import Sampling
from dsl_train.costs.online import NUM_WIDTHS, OnlineCosts, TimedRound
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import typical_runners
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel

_TEXT_LENGTH = 128  # tokens of the text that everything is timed on, context permitting
_LOOKAHEADS = tuple(range(NUM_WIDTHS - 1, 0, -1))
_LOOKING = (8, 8, 4, 4, 2, 0, 0)  # of policies that look at more than the position
_PLAIN = 3  # rounds without drafts in a row
_MIN_TURNS = 3
#: Of :func:`calibrate`, models that are slower excepted.
MAX_SECONDS = 3.0


def calibrate(pair: Pair, predictor: Predictor | None = None, sampling: Sampling | None = None) -> CostProfile:
    """What the steps of this pair cost here and now; takes 3 s for small models."""
    return measure(*typical_runners(pair), predictor, sampling, max_seconds=MAX_SECONDS)


def measure(
    target: CachedModel,
    draft: CachedModel,
    predictor: Predictor | None = None,
    sampling: Sampling | None = None,
    turns: int = 20,
    max_seconds: float = MAX_SECONDS,
) -> CostProfile:
    """At most `turns` turns, at least three, fewer than `turns` only where `max_seconds` are over. Resets both models.
    Without a predictor its prices are 0."""
    context = min(target.context, draft.context)
    if context < 4:
        raise DslError(f"a context of {context} tokens leaves no room for drafts; use plain decoding")
    text = _random_text(target, min(_TEXT_LENGTH, context // 2))
    longest = min(_LOOKAHEADS[0], max(1, context // 8))
    needs: tuple[Needs, ...] = ("position", "confidence", "primitives", *(("features",) if predictor else ()))
    room = len(_LOOKAHEADS) + _PLAIN + longest + 1
    schedules = {need: _Scheduled(need, longest, predictor) for need in needs}
    engines = {need: SpeculativeEngine(target, draft, policy, sampling) for need, policy in schedules.items()}
    began = time.perf_counter()
    for turn in range(turns + 1):
        for need, policy in schedules.items():
            while policy.is_waiting(turn):
                engines[need].generate(text, max_new_tokens=room)
        if turn == 0:
            began = time.perf_counter()  # before it, everything warmed up
        elif turn >= _MIN_TURNS and time.perf_counter() - began > max_seconds:
            break
    return _summarise({need: policy.costs for need, policy in schedules.items()})


class _Scheduled(Policy):
    """Drafts as many tokens as the schedule says, and asks the predictor, if there is one, all the same."""

    name = "scheduled"

    def __init__(self, needs: Needs, longest: int, predictor: Predictor | None) -> None:
        self.needs: Needs = needs
        self._predictor = predictor if needs == "features" else None
        lookaheads = (*_LOOKAHEADS, *(0,) * _PLAIN) if needs == "position" else _LOOKING
        self._lookaheads = tuple(lookahead for lookahead in lookaheads if lookahead <= longest)
        self._coming, self._turn, self._cold = 0, 0, True
        self.costs = OnlineCosts(CostProfile(1.0, 1.0), longest + 1, recent=1000, prior_samples=0.0)

    def is_waiting(self, turn: int) -> bool:
        """Whether rounds of that turn are still to come."""
        return self._turn <= turn

    @property
    def max_lookahead(self) -> int:  # type: ignore[override]  # nobody sets it
        return self._lookaheads[self._coming] if self._coming < len(self._lookaheads) else 0

    def wants_another(self, step: DraftStep) -> bool:
        if self._predictor:
            self._predictor.survival(step.features)
        return True

    def observe(self, finished: Round) -> None: ...

    def reset(self) -> None:
        self._cold = True

    def timed(self, num_drafted: int, draft_seconds: float, verify_seconds: float, round_seconds: float) -> None:
        if num_drafted < self.max_lookahead:
            return  # the text is at its end
        overhead = round_seconds - draft_seconds - verify_seconds
        known = draft_seconds if num_drafted and not self._cold else None
        self._cold = not num_drafted
        if self._turn:
            self.costs.observe(TimedRound(num_drafted, known, verify_seconds, overhead))
        self._coming += 1
        if self._coming == len(self._lookaheads):
            self._coming, self._turn = 0, self._turn + 1


def _summarise(costs: dict[Needs, OnlineCosts]) -> CostProfile:
    """The steps of who looks at the position alone, and what looking at more adds to them."""
    for online in costs.values():
        online.renew()
    base = costs["position"].profile
    more = {need: max(0.0, online.profile.draft_step - base.draft_step) for need, online in costs.items()}
    predictor_round = 0.0
    if "features" in costs:
        predictor_round = max(0.0, costs["features"].profile.round_base - base.round_base)
    return replace(
        base,
        confidence=more["confidence"],
        primitives=more["primitives"],
        predictor=more.get("features", 0.0),
        predictor_round=predictor_round,
        spread=costs["position"].spread(),
    )


def _random_text(model: CachedModel, length: int) -> Sequence[int]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.model.config.get_text_config().vocab_size
    tokens: list[int] = torch.randint(vocab_size, (max(2, length),), generator=generator).tolist()
    return tokens
