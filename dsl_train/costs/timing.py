"""Times whole rounds of the loop that serves, so that everything is in the price: both forwards with the caches cold as
they are in service, features, predictor, commit.

Rounds that draft nothing are timed in a row: a target alone keeps the processor's caches to itself, and what it loses
once a draft runs between its steps is part of the jump from one token to two. Letters: K drafted tokens of a round, W
widest verification.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from dsl_train.base.cost import TYPICAL_WIDTH, CostProfile, interpolate
from dsl_train.base.policy import Needs
from dsl_train.base.records import DraftStep, DslError, Round
from dsl_train.base.sampling import Sampling
from dsl_train.loop.drafter import Drafter
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel

_TEXT_LENGTH = 128  # tokens of the text that everything is timed on, context permitting
_LOOKAHEADS = (16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)
_TYPICAL = 8  # drafts of the rounds that show what looking at them costs
_UNASKED = "unasked"  # rounds of a policy that could read features and does not
_MIN_TURNS = 3
_PLAIN_STEPS = 3  # a turn

Samples = dict[tuple[str, int], list[float]]
"""Seconds of rounds, by what the policy looked at and K; `("draft", 1)`, a draft token; `("target", 1)`, a forward;
`unasked`, a policy that features are kept for without its reading them."""


@torch.inference_mode()
def measure(
    target: CachedModel,
    draft: CachedModel,
    predictor: Predictor | None = None,
    sampling: Sampling | None = None,
    turns: int = 20,
    max_seconds: float = 3.0,
) -> CostProfile:
    """Medians and quartiles over interleaved turns: at most `turns`, at least three, fewer than that only where
    `max_seconds` are over. Resets both models. Without a predictor its prices are 0."""
    sampling = sampling or Sampling()
    context = min(target.context, draft.context)
    text = _random_text(target, min(_TEXT_LENGTH, context // 2))
    longest = max(1, context // 8)
    lookaheads = [k for k in _LOOKAHEADS if k <= longest]
    typical = min(_TYPICAL, longest)
    plain = [_Turn(0, False), *[_Turn(0)] * _PLAIN_STEPS]
    looking = [_Turn(1, False), *[_Turn(typical)] * 2]
    schedules = {
        _Scheduled("position"): [_Turn(1, False), *map(_Turn, lookaheads), _Turn(typical), *plain],
        _Scheduled("confidence"): looking,
        _Scheduled("primitives"): looking,
    }
    if predictor is not None:
        schedules[_Scheduled("features", predictor)] = [*looking, *plain]
        schedules[_Scheduled("features")] = looking
    time_draft = _draft_timer(target, draft, sampling, text, typical)
    samples: Samples = defaultdict(list)
    began = time.perf_counter()
    for turn in range(turns + 1):
        for policy, schedule in schedules.items():
            engine = SpeculativeEngine(target, draft, policy, sampling)
            for lookahead, seconds in _time_rounds(engine, policy, text, schedule):
                samples[policy.label, lookahead].append(seconds)
        samples["draft", 1].append(time_draft())
        samples["target", 1] += _time_plain_steps(target, text)
        if turn == 0:
            samples.clear()  # warming up
            began = time.perf_counter()
        elif turn >= _MIN_TURNS and time.perf_counter() - began > max_seconds:
            break
    return _summarise(samples, typical)


class _Turn(NamedTuple):
    lookahead: int
    timed: bool = True


class _Scheduled:
    """Drafts what it is told to, and asks the predictor, if it has one, all the same."""

    name = "scheduled"
    max_lookahead = _LOOKAHEADS[0] + 1

    def __init__(self, needs: Needs, predictor: Predictor | None = None) -> None:
        self.needs: Needs = needs
        self.predictor = predictor
        self.label = _UNASKED if needs == "features" and predictor is None else needs
        self.lookahead = 0

    def wants_another(self, step: DraftStep) -> bool:
        if self.predictor is not None:
            self.predictor.survival(step.features)
        return step.position < self.lookahead

    def observe(self, finished: Round) -> None: ...

    def reset(self) -> None: ...


class _OverError(Exception):
    """The schedule is through."""


def _time_rounds(
    engine: SpeculativeEngine, policy: _Scheduled, text: list[int], schedule: Sequence[_Turn]
) -> list[tuple[int, float]]:
    """(K, seconds) of the timed rounds that could draft as many tokens as they were told. Where the context is full the
    text begins anew."""
    timed: list[tuple[int, float]] = []
    coming, now, since = iter(schedule), _Turn(0, False), 0.0

    def on_round(finished: Round) -> None:
        nonlocal now, since
        seconds = time.perf_counter() - since
        if now.timed and len(finished.drafted) == now.lookahead:
            timed.append((now.lookahead, seconds))
        following = next(coming, None)
        if following is None:
            raise _OverError
        now, policy.lookahead = following, following.lookahead
        since = time.perf_counter()

    room = sum(turn.lookahead + 1 for turn in schedule) + policy.max_lookahead
    with suppress(_OverError):
        while True:
            policy.lookahead = 0
            if not engine.generate(text, max_new_tokens=room, on_round=on_round).rounds:
                context = min(engine.target.context, engine.draft.context)
                raise DslError(f"a context of {context} tokens leaves no room for drafts; use plain decoding")
            coming, now = chain([now], coming), _Turn(0, False)
    return timed


def _draft_timer(
    target: CachedModel, draft: CachedModel, sampling: Sampling, text: list[int], lookahead: int
) -> Callable[[], float]:
    """A function that drafts a block after a target forward and returns the seconds per token."""
    drafter = Drafter(draft, make_policy(f"static:{lookahead}"), sampling, frozenset(), text)
    generator = torch.Generator(draft.device).manual_seed(0)

    def seconds_per_token() -> float:
        draft.reset()
        drafter.draft_block(text, 1, generator)  # the prompt
        draft.truncate(len(text) - 1)
        _time_plain_steps(target, text)
        began = time.perf_counter()
        block = drafter.draft_block(text, lookahead, generator)
        return (time.perf_counter() - began) / len(block.token_ids)

    return seconds_per_token


def _time_plain_steps(target: CachedModel, text: list[int]) -> list[float]:
    """Seconds of forwards over one new token in a row, each until its choice is on the host."""
    target.reset()
    target.logits(text, keep=1)
    seconds = []
    for _ in range(_PLAIN_STEPS + 1):
        target.truncate(len(text) - 1)
        began = time.perf_counter()
        target.logits(text, keep=1).argmax(-1).tolist()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _summarise(samples: Samples, typical: int) -> CostProfile:
    rounds = {key: float(np.median(seconds)) for key, seconds in samples.items()}
    draft, plain = rounds["draft", 1], rounds["position", 0]
    target = min(rounds["target", 1], plain)
    measured = sorted(k for needs, k in rounds if needs == "position")
    verifications = [max(0.0, rounds["position", k] - (plain - target) - k * draft) for k in measured]
    steps = [interpolate(k, measured, verifications) for k in range(measured[-1] + 1)]
    unseen = rounds["position", typical]
    prices = {name: (rounds[name, typical] - unseen) / typical for name in ("confidence", "primitives")}
    if ("features", 0) in rounds:
        looking = rounds["features", typical] - unseen
        prices["predictor_round"] = rounds["features", 0] - plain
        prices["predictor"] = (looking - prices["predictor_round"]) / typical
        prices["question"] = (rounds["features", typical] - rounds[_UNASKED, typical]) / (typical + 1)
    return CostProfile(
        draft_step=draft,
        target_step=target,
        target_step_per_token=_slope(steps),
        round_overhead=plain - target,
        target_steps=tuple(steps),
        spread={_label(key): _quartiles(seconds) for key, seconds in samples.items()},
        **{name: max(0.0, price) for name, price in prices.items()},
    )


def _label(key: tuple[str, int]) -> str:
    """`draft`, `target`, or `position 4`: a round of four drafts whose policy looks at the position."""
    return key[0] if key[0] in ("draft", "target") else f"{key[0]} {key[1]}"


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(seconds, [0.25, 0.75]).tolist()
    return low, high


def _slope(steps: Sequence[float]) -> float:
    """Seconds per token beyond the second: least squares over the typical widths; 0 where there is one width only."""
    if len(steps) < 3:
        return max(0.0, steps[-1] - steps[0])
    typical = steps[1:TYPICAL_WIDTH]
    return max(0.0, float(np.polyfit(np.arange(len(typical)), typical, 1)[0]))


def _random_text(model: CachedModel, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.model.config.get_text_config().vocab_size
    tokens: list[int] = torch.randint(vocab_size, (max(2, length),), generator=generator).tolist()
    return tokens
