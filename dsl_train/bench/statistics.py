"""Intervals for rates and their ratios, bootstrapped by prompt. Pure numpy; knows no policy.

Tokens of one prompt depend on each other, so whole prompts are drawn with replacement. Comparisons are paired: both
sides of a ratio see the same draws. Letters: N prompts, B bootstrap samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

NUM_SAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile bootstrap interval."""

    estimate: float
    lower: float
    upper: float

    def excludes(self, value: float) -> bool:
        return not self.lower <= value <= self.upper

    def to_dict(self) -> dict[str, float]:
        return {"estimate": self.estimate, "lower": self.lower, "upper": self.upper}


@dataclass(frozen=True, eq=False)
class Rates:
    """What one contender produced on each prompt, and in what time."""

    tokens: np.ndarray
    """[N]"""
    cost: np.ndarray
    """[N] seconds, or whatever else the tokens are paid in"""

    def pooled(self, counts: np.ndarray) -> np.ndarray:
        """Tokens per cost over whole samples: [B, N] draws of each prompt -> [B]."""
        return (counts @ self.tokens) / (counts @ self.cost)


def draws(num_prompts: int, num_samples: int = NUM_SAMPLES, seed: int = 0) -> np.ndarray:
    """[B, N] int64: how often each bootstrap sample draws each prompt."""
    even = np.full(num_prompts, 1.0 / num_prompts)
    return np.random.default_rng(seed).multinomial(num_prompts, even, size=num_samples)


def rate(rates: Rates, counts: np.ndarray) -> Interval:
    """Tokens per cost: total by total."""
    return _interval(rates.pooled, counts)


def ratio(rates: Rates, base: Rates, counts: np.ndarray) -> Interval:
    """How many times `base`'s rate, paired by prompt."""
    return _interval(lambda drawn: rates.pooled(drawn) / base.pooled(drawn), counts)


def share(rates: Rates, base: Rates, bound: Rates, counts: np.ndarray) -> Interval:
    """How much of the way from `base`'s rate to `bound`'s, paired by prompt; 0 where there is no way to go."""

    def of(drawn: np.ndarray) -> np.ndarray:
        low = base.pooled(drawn)
        way = bound.pooled(drawn) - low
        return np.divide(rates.pooled(drawn) - low, way, out=np.zeros_like(way), where=way != 0.0)

    return _interval(of, counts)


def fastest(rates: Mapping[str, Rates]) -> str | None:
    """Name of the highest rate, the first of equals; None of none."""
    return max(rates, key=lambda name: rates[name].tokens.sum() / rates[name].cost.sum(), default=None)


def _interval(statistic: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> Interval:
    estimate = statistic(np.ones((1, counts.shape[1])))[0]
    lower, upper = np.quantile(statistic(counts), [0.025, 0.975])
    return Interval(float(estimate), float(lower), float(upper))
