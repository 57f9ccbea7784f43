"""What a round costs, and the stop rule that follows from it. `costs/online.py` learns the costs while generating.

A round that drafts K tokens takes

    seconds(K) = verification(K + 1) + overhead + K * (draft step + predictor)

and verification(1) ... verification(W) are measured one by one: from one token to two it may jump (another kernel),
further ones cost little. So each position has a threshold of its own (:class:`StopRule`). Verifying more tokens never
takes less time: steps that were measured otherwise are smoothed first (:func:`never_falling`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

#: Tokens of the widest verification that the rule's line is laid through: beyond, blocks are rare and another kernel's.
TYPICAL_WIDTH = 9
#: Drafts that the rule looks ahead, and the share of survival that each further one is taken to keep.
AHEAD, KEPT = 12, 0.8
#: Positions with a threshold of their own.
_POSITIONS = 16


@dataclass(frozen=True)
class StopRule:
    """Draft another token iff survival exceeds the threshold of the position; later positions share the last one."""

    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, threshold: "float | StopRule") -> "StopRule":
        """One number is the threshold of all positions."""
        return threshold if isinstance(threshold, StopRule) else cls((threshold,))

    @classmethod
    def solve(cls, threshold_at: Callable[[float], float], costs: Sequence[float]) -> "StopRule":
        """`threshold_at(c)` = rate * c is solved for rounds of price 1 + K * c; `costs` [K + 1] are rounds with 0 ... K
        drafts, in rounds of plain decoding.

        Going on for n more drafts gains survival * (1 + KEPT + ... + KEPT ** (n - 1)) tokens and costs
        costs[k + n] - costs[k], each worth the rate L in tokens. It pays if it does for some n: what drafting at all
        costs, and steps that widen the verification dearly, may be paid by the drafts after them. Where every draft
        costs c, one draft is the cheapest n and the threshold L * c. L is that of the line from (0, 1) closest to the
        rounds of typical length, and never below that of plain decoding.
        """
        typical = range(1, min(len(costs), TYPICAL_WIDTH))
        c = sum(k * (costs[k] - 1.0) for k in typical) / sum(k * k for k in typical)
        rate = max(1.0, threshold_at(c) / c) if c > 0.0 else 1.0
        paid = np.append(costs, [np.inf] * AHEAD)  # [K + 1 + AHEAD]
        price = np.min(  # [K]
            [
                (paid[n : len(costs) - 1 + n] - paid[: len(costs) - 1]) * (1.0 - KEPT) / (1.0 - KEPT**n)
                for n in range(1, AHEAD + 1)
            ],
            axis=0,
        )
        return cls(tuple((rate * price).clip(0.0, 1.0).tolist()))

    @property
    def first(self) -> float:
        return self.thresholds[0]

    @property
    def another(self) -> float:
        """After the first draft."""
        return self.at(1)

    def at(self, position: int) -> float:
        return self.thresholds[min(position, len(self.thresholds) - 1)]


@dataclass(frozen=True)
class CostProfile:
    """Measured times of one (target, draft) pair on one machine: medians [seconds]."""

    draft_step: float
    """One draft token: forward, draw and bookkeeping."""
    target_step: float
    """One target forward over a single new token."""
    target_step_per_token: float = 0.0
    """What each further token in a verification adds, from the second to TYPICAL_WIDTH."""
    predictor: float = 0.0
    """Features and predictor per draft token."""
    confidence: float = 0.0
    """Two largest log-probabilities and the token's per draft token, for the rules that go by them alone."""
    primitives: float = 0.0
    """The same with entropy."""
    round_overhead: float = 0.0
    """Verification, commit and bookkeeping per round, the forward excluded."""
    predictor_round: float = 0.0
    """Features and predictor per round: the question before the first draft, the committed tokens."""
    target_steps: tuple[float, ...] = ()
    """[W] target forwards over 1 ... W new tokens, never falling; empty where only the two numbers above are known."""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """First and third quartile of what was timed: `draft`, a token of a block; `target`, a forward over one token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_steps", tuple(never_falling(self.target_steps)))

    @classmethod
    def of_steps(
        cls,
        draft_step: float,
        target_steps: Sequence[float],
        round_overhead: float = 0.0,
        spread: Mapping[str, tuple[float, float]] | None = None,
    ) -> "CostProfile":
        """From the steps alone: `target_steps` [W] are forwards over 1 ... W new tokens [seconds]."""
        steps = never_falling(target_steps)
        return cls(
            draft_step, steps[0], _rise(steps), round_overhead=round_overhead, target_steps=steps, spread=spread or {}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CostProfile":
        """What :meth:`to_dict` wrote, in this or the first version (two numbers for the target). Raises KeyError,
        TypeError or ValueError if it is neither."""
        numbers = {f.name: float(values[f.name]) for f in fields(cls) if f.type is float and f.name in values}
        steps = tuple(map(float, values.get("target_steps", ())))
        spread = {name: (float(low), float(high)) for name, (low, high) in values.get("spread", {}).items()}
        return cls(**numbers, target_steps=steps, spread=spread)

    @property
    def c(self) -> float:
        """Draft step / target step (Leviathan et al. 2211.17192, section 3.3)."""
        return self.draft_step / self.target_step

    @property
    def round_base(self) -> float:
        """A round of plain decoding without a predictor [seconds]: the unit of :meth:`round_cost`."""
        return self.target_step + self.round_overhead

    @property
    def verification_jump(self) -> float:
        """What verifying more than one token costs beyond `target_step_per_token` each [seconds]: where the line
        through the steps of typical width meets a width of one, above the measured step."""
        if len(self.target_steps) < 3:
            return 0.0
        wider = self.target_steps[1:TYPICAL_WIDTH]
        on_the_line = sum(wider) / len(wider) - self.target_step_per_token * (len(wider) + 1) / 2
        return max(0.0, on_the_line - self.target_step)

    @property
    def _drafting_base(self) -> float:
        """A round that drafts, without its drafts [seconds]."""
        return self.round_base + self.predictor_round + self.verification_jump

    @property
    def c_eff(self) -> float:
        """Price of one more draft token, everything included, in rounds that draft (their drafts not counted)."""
        return (self.draft_step + self.predictor + self.target_step_per_token) / self._drafting_base

    @property
    def jump(self) -> float:
        """Price of drafting at all, in the same unit."""
        return self.verification_jump / self._drafting_base

    def stop_rule(self, threshold_at: Callable[[float], float]) -> StopRule:
        """The predictor's thresholds at these costs."""
        return StopRule.solve(threshold_at, round_costs(self, _POSITIONS + AHEAD))

    def without_predictor(self) -> "CostProfile":
        """What a rule pays that looks at nothing but the position."""
        return replace(self, predictor=0.0, predictor_round=0.0)

    def for_needs(self, needs: str) -> "CostProfile":
        """What a rule pays for what it looks at (`policies.base.Needs`)."""
        if needs == "features":
            return self
        looking = {"position": 0.0, "confidence": self.confidence, "primitives": self.primitives}[needs]
        return replace(self.without_predictor(), predictor=looking)

    def verification(self, width: int) -> float:
        """A target forward over `width` new tokens [seconds]: measured; beyond the table, a line through its second
        half."""
        measured = self.target_steps or (self.target_step,)
        if width <= len(measured):
            return measured[width - 1]
        half = len(measured) // 2
        rise = (measured[-1] - measured[half]) / (len(measured) - 1 - half) if half else self.target_step_per_token
        return measured[-1] + (width - len(measured)) * max(0.0, rise)

    def round_seconds(self, num_drafted: int) -> float:
        drafts = num_drafted * (self.draft_step + self.predictor)
        return self.verification(num_drafted + 1) + self.round_overhead + self.predictor_round + drafts

    def round_cost(self, num_drafted: int) -> float:
        """A round in rounds of plain decoding."""
        return self.round_seconds(num_drafted) / self.round_base

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "c": self.c, "c_eff": self.c_eff, "jump": self.jump}


Price = float | CostProfile
"""What rounds are paid in. A number c: a round with K drafts costs 1 + K * c target steps; a profile: as measured."""


def round_costs(price: Price, max_drafted: int) -> list[float]:
    """[max_drafted + 1] costs of rounds with 0, 1, ... drafts, in rounds of plain decoding."""
    if isinstance(price, CostProfile):
        return [price.round_cost(num_drafted) for num_drafted in range(max_drafted + 1)]
    return [1.0 + price * num_drafted for num_drafted in range(max_drafted + 1)]


def rule_at(price: Price, threshold_at: Callable[[float], float]) -> StopRule:
    """A predictor's thresholds at a price."""
    return price.stop_rule(threshold_at) if isinstance(price, CostProfile) else StopRule.of(threshold_at(price))


def price_for(needs: str, price: Price) -> Price:
    """:meth:`CostProfile.for_needs`; a number is the same for all."""
    return price.for_needs(needs) if isinstance(price, CostProfile) else price


def c_of(price: Price) -> float:
    """The price of one more draft as a number, to name a profile by."""
    return price.c_eff if isinstance(price, CostProfile) else price


def marginal(price: Price) -> float:
    """Price of one more draft, in rounds of plain decoding."""
    if isinstance(price, CostProfile):
        return (price.draft_step + price.predictor + price.target_step_per_token) / price.round_base
    return price


def never_falling(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """The closest values [W] that never fall, by weighted least squares: pool adjacent violators (Ayer et al. 1955,
    Ann. Math. Stat. 26(4))."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (low, low_weight, low_length), (high, high_weight, high_length) = pools.pop(), pools.pop()
            total = low_weight + high_weight
            mean = (low * low_weight + high * high_weight) / total
            pools.append((mean, total, low_length + high_length))
    return tuple(mean for mean, _, length in pools for _ in range(length))


def _rise(steps: Sequence[float]) -> float:
    """Seconds per token beyond the second: least squares over the typical widths; 0 where there is one width only."""
    if len(steps) < 3:
        return max(0.0, steps[-1] - steps[0])
    typical = np.array(steps[1:TYPICAL_WIDTH])
    places = np.arange(len(typical)) - (len(typical) - 1) / 2
    return max(0.0, float(places @ typical / (places @ places)))
