"""Every policy on the held-out texts, at the measured price of a draft and at others.

Rules run as tuned on other prompts and as published. Knows replay and tuning; draws nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from dsl_train.base.cost import Price, c_of
from dsl_train.bench import statistics
from dsl_train.bench.ceiling import replay_ceiling
from dsl_train.bench.replay import BOUNDS, by_prompt, price_of
from dsl_train.bench.statistics import Interval
from dsl_train.bench.tuned import replay_spec
from dsl_train.evidence.report_data import ReportData
from dsl_train.replay.rounds import ReplayResult, replay_survival
from dsl_train.replay.tuning import AS_PUBLISHED, Tuned, tune_baselines

Setting = Literal["learned", "tuned", "published", "bound"]
LEARNED, STATIC, ORACLE_PLUS, CEILING = "learned", "static", "oracle+", "ceiling"


@dataclass(frozen=True)
class Contender:
    name: str
    """The rule: `learned`, `static`, `confidence`, ..."""
    spec: str
    """With its arguments, as `--policies` takes it; a model file left out."""
    setting: Setting
    speedup: Interval
    """Tokens per target step: how many times the speed of decoding without a draft."""
    vs_static: Interval
    """How many times the speed of the best constant lookahead, paired by prompt."""
    mean_lookahead: float
    """Drafts per round."""
    warning: str | None
    """Where the traces end too early for it."""


@dataclass(frozen=True)
class Contest:
    c: float
    """Price of a draft token for the learned policy, its predictor included [target steps]. The others pay for none."""
    contenders: tuple[Contender, ...]
    """The fastest first."""

    def __getitem__(self, name: str) -> Contender:
        """The faster one, where a rule runs at two settings."""
        return next(contender for contender in self.contenders if contender.name == name)

    @property
    def best_rule(self) -> Contender:
        """The hardest one to beat."""
        return next(contender for contender in self.contenders if contender.setting in ("tuned", "published"))

    @property
    def bound(self) -> Contender:
        """What could be reached at most: `ceiling` for sampled texts, `oracle+` for greedy ones."""
        known = {contender.name for contender in self.contenders}
        return self[CEILING if CEILING in known else ORACLE_PLUS]

    @property
    def gap_closed(self) -> float:
        """Share of the way from the best constant lookahead to the bound that the learned policy goes; 0 if there is
        none."""
        learned, static, bound = (one.speedup.estimate for one in (self[LEARNED], self[STATIC], self.bound))
        return (learned - static) / (bound - static) if bound > static else 0.0


@dataclass(frozen=True, eq=False)
class _Entry:
    name: str
    spec: str
    setting: Setting
    price: Price
    result: ReplayResult


def contests(data: ReportData, costs: Sequence[float], seed: int = 0) -> tuple[Contest, ...]:
    """The first at the price that `data` holds, then one at each other price, which all pay alike."""
    prices: list[Price] = [data.price, *(c for c in costs if c != data.price)]
    counts = statistics.draws(len(set(data.held_out.prompt_ids)), seed=seed)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "acceptance"
        tuned = tune_baselines(data.tuned_on, prices, model)
        replayed = cache(partial(replay_spec, data.held_out))
        entries = []
        for price, settings in zip(prices, tuned, strict=True):
            learned = _Entry(LEARNED, LEARNED, "learned", price, replay_learned(data, price))
            rules = [
                _Entry(name, spec.replace(f"{model},", ""), setting, price, replayed(spec))
                for name, spec, setting in _rules(settings)
            ]
            entries.append([learned, *rules, *_bounds(data, price)])
    return tuple(
        Contest(c_of(price), _compare(at_price, counts)) for price, at_price in zip(prices, entries, strict=True)
    )


def replay_learned(data: ReportData, price: Price) -> ReplayResult:
    rule = data.stop_rule(price)
    return replay_survival(data.held_out, data.survival, rule)


def _bounds(data: ReportData, price: Price) -> Iterator[_Entry]:
    for name, replay_bound in BOUNDS.items():
        yield _Entry(name, name, "bound", price, replay_bound(data.held_out))
    if data.is_sampled:
        yield _Entry(CEILING, CEILING, "bound", price, replay_ceiling(data.held_out, CEILING, price))


def _rules(tuned: Mapping[str, Tuned]) -> Iterator[tuple[str, str, Setting]]:
    """(name, spec, setting)"""
    for name, best in tuned.items():
        yield name, best.spec, "tuned"
    for name in AS_PUBLISHED:
        yield name, name, "published"


def _compare(entries: Sequence[_Entry], counts: np.ndarray) -> tuple[Contender, ...]:
    """`counts` [B, prompts] draws."""
    rates_of = [by_prompt(entry.result, price_of(entry.spec, entry.price)) for entry in entries]
    static = next(rates for entry, rates in zip(entries, rates_of, strict=True) if entry.name == STATIC)
    contenders = []
    for entry, rates in zip(entries, rates_of, strict=True):
        contenders.append(
            Contender(
                name=entry.name,
                spec=entry.spec,
                setting=entry.setting,
                speedup=statistics.rate(rates, counts),
                vs_static=statistics.ratio(rates, static, counts),
                mean_lookahead=entry.result.mean_lookahead,
                warning=entry.result.warning,
            )
        )
    return tuple(sorted(contenders, key=lambda contender: -contender.speedup.estimate))
