"""Policies over traces, priced by a cost model; no model runs unless its costs are to be measured.

Exact for greedy traces (the rounds are those of the live loop), exact in distribution for sampled ones: each traced
text is one draw of the coupling between target and draft. More draws are more folders of the same texts, collected with
another seed; their number is told.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsl_train.api.calibration import calibrate
from dsl_train.api.serving import load_predictor
from dsl_train.base.cost import CostProfile, Price, StopRule, c_of, price_for, rule_at
from dsl_train.bench import statistics
from dsl_train.bench.ceiling import CEILINGS, replay_ceiling
from dsl_train.bench.config import LIVE_ONLY, BenchConfig, is_learned
from dsl_train.bench.setup import open_pair, open_predictor
from dsl_train.bench.statistics import Interval, Rates
from dsl_train.bench.tuned import SUFFIX, TunedRule, replay_spec, replay_tuned
from dsl_train.policies.registry import make_policy, needs_of
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces

BOUNDS = {"oracle": replay.replay_oracle, "oracle+": replay.replay_oracle_plus}
"""What no policy can reach: they see the future."""
LEARNED, TUNED_STATIC = "learned", f"static{SUFFIX}"
At = Callable[[Price], ReplayResult]
"""The rounds of a policy at a price; most policies do not look at it."""


@dataclass(frozen=True)
class ReplayRow:
    policy: str
    """`static:tuned` and the like: at its best setting on the prompts of --tune_on."""
    rates: tuple[Interval, ...]
    """Tokens per target step, one for each cost: the speedup over decoding without a draft."""
    vs_best_static: tuple[Interval, ...]
    """How many times the rate of the best static lookahead at that cost, paired by prompt; empty without any."""
    mean_lookahead: tuple[float, ...]
    """Drafts per round, one for each cost."""
    chosen: tuple[str, ...] = ()
    """Of a tuned rule: its setting at each cost."""


@dataclass(frozen=True)
class GapClosed:
    policy: str
    bound: str
    """`oracle+`, or `ceiling` for sampled texts."""
    shares: tuple[Interval, ...]
    """One for each cost: 0 is the best static lookahead, 1 the bound."""


@dataclass(frozen=True)
class ReplayTable:
    costs: tuple[float, ...]
    """Prices of one more draft token [target steps], rising."""
    rows: tuple[ReplayRow, ...]
    best_static: tuple[str, ...]
    """One for each cost: the one tuned on --tune_on; without that, the best of --policies on these very prompts."""
    warnings: tuple[str, ...]
    num_prompts: int
    gaps: tuple["GapClosed", ...] = ()
    """How far the learned policy goes from the best static lookahead towards each bound."""
    coupling_draws: int = 1
    """Draws averaged for each text; 1 is all there is when greedy."""

    def to_dict(self) -> dict[str, Any]:
        return {"mode": "replay", **asdict(self)}


def run_replay(config: BenchConfig) -> ReplayTable:
    """Raises DslError for traces or a predictor that cannot be read, or an unknown policy."""
    traces = open_traces([Path(folder) for folder in config.traces])
    names = [name for name in dict.fromkeys(config.policies) if name not in LIVE_ONLY]
    predictor = None
    if any(map(is_learned, names)):
        predictor = load_predictor(config.predictor or config.draft or traces.pair["draft"]["id"])
        predictor.check_pair(traces.pair["target"], traces.pair["draft"])
    prices: list[Price] = sorted([*set(config.c), *measured_price(config)], key=c_of)
    decided = decisions.build(traces, predictor.max_lookahead) if predictor else decisions.build(traces)
    sampled = any(sequence.temperature > 0 for sequence in decided.sequences)
    bounds = [*BOUNDS, *CEILINGS] if sampled else list(BOUNDS)
    replayers = {name: replayer(name, decided, predictor, config.threshold) for name in [*names, *bounds]}
    results = {name: [at(price_of(name, price)) for price in prices] for name, at in replayers.items()}
    tuned = _tuned(config, decided, prices)
    results |= {name: list(rule.results) for name, rule in tuned.items()}
    chosen = {name: rule.specs for name, rule in tuned.items()}
    return tabulate(results, prices, config.seed, coupling_draws(decided), chosen)


def _tuned(config: BenchConfig, decided: Decisions, prices: Sequence[Price]) -> dict[str, TunedRule]:
    if not config.tune_on:
        return {}
    tuning = decisions.build(open_traces([Path(folder) for folder in config.tune_on]), decided.max_lookahead)
    return replay_tuned(tuning, decided, prices)


def tabulate(
    results: Mapping[str, Sequence[ReplayResult]],
    prices: Sequence[Price],
    seed: int = 0,
    num_draws: int = 1,
    chosen: Mapping[str, tuple[str, ...]] | None = None,
) -> ReplayTable:
    """Rates of each policy at each price, bootstrapped by prompt and compared with the best static lookahead.

    `chosen` are the settings of rules that were tuned on other prompts.
    """
    chosen = chosen or {}
    rates = {
        name: [by_prompt(result, price_of(name, price)) for result, price in zip(of_name, prices, strict=True)]
        for name, of_name in results.items()
    }
    num_prompts = len(next(iter(rates.values()))[0].tokens)
    counts = statistics.draws(num_prompts, seed=seed)
    static = [TUNED_STATIC] if TUNED_STATIC in rates else [name for name in rates if name.startswith("static:")]
    best = [statistics.fastest({name: rates[name][i] for name in static}) for i in range(len(prices))]
    rows = [
        ReplayRow(
            policy=name,
            rates=tuple(statistics.rate(own, counts) for own in rates[name]),
            vs_best_static=tuple(
                statistics.ratio(own, rates[base][i], counts)
                for i, (own, base) in enumerate(zip(rates[name], best, strict=True))
                if base
            ),
            mean_lookahead=tuple(result.mean_lookahead for result in results[name]),
            chosen=chosen.get(name, ()),
        )
        for name in results
    ]
    worst = {name: max(of_name, key=lambda result: result.exhausted_share) for name, of_name in results.items()}
    warnings = [f"{name}: {result.warning}" for name, result in worst.items() if result.warning]
    return ReplayTable(
        costs=tuple(map(c_of, prices)),
        rows=tuple(rows),
        best_static=chosen.get(TUNED_STATIC) or tuple(filter(None, best)),
        warnings=tuple(warnings),
        num_prompts=num_prompts,
        gaps=tuple(_gaps(rates, best, counts)),
        coupling_draws=num_draws,
    )


def _gaps(
    rates: Mapping[str, Sequence[Rates]], best_static: Sequence[str | None], counts: np.ndarray
) -> Iterator[GapClosed]:
    bounds = [bound for bound in ("oracle+", "ceiling") if bound in rates]
    for policy in filter(is_learned, rates):
        for bound in bounds if all(best_static) else ():
            shares = [
                statistics.share(own, rates[base][i], rates[bound][i], counts)
                for i, (own, base) in enumerate(zip(rates[policy], filter(None, best_static), strict=True))
            ]
            yield GapClosed(policy, bound, tuple(shares))


def replayer(name: str, decided: Decisions, predictor: Predictor | None, threshold: float | None) -> At:
    """Each policy by the quickest way that is exact."""
    if name in BOUNDS:
        return _constant(BOUNDS[name](decided))
    if name in CEILINGS:
        return lambda price: replay_ceiling(decided, name, price)
    if is_learned(name) and predictor:
        survival = predictor.survival_batch(decided.features)

        def at(price: Price) -> ReplayResult:
            rule = rule_at(price, predictor.threshold) if threshold is None else StopRule.of(threshold)
            if name == LEARNED:
                return replay.replay_survival(decided, survival, rule)
            return replay.replay_policy(decided, make_policy(name, predictor, rule))

        return at
    return _constant(replay_spec(decided, name))


def _constant(result: ReplayResult) -> At:
    return lambda _: result


def price_of(name: str, price: Price) -> Price:
    """What `name` pays: each rule for what it looks at, a bound for nothing."""
    return price_for("position" if name in (*BOUNDS, *CEILINGS) else needs_of(name), price)


def by_prompt(result: ReplayResult, price: Price) -> Rates:
    """Tokens and cost [target steps] of each prompt, all its texts together."""
    _, prompt = np.unique(result.prompt_ids, return_inverse=True)
    total = partial(np.bincount, prompt)
    return Rates(total(result.tokens), total(result.cost_by_sequence(price)))


def coupling_draws(decided: Decisions) -> int:
    """How often each text was coupled with the draft: the least of all texts."""
    texts = Counter((text.prompt_id, text.response_token_ids.tobytes()) for text in decided.sequences)
    return min(texts.values())


def measured_price(config: BenchConfig) -> list[CostProfile]:
    """What rounds of the pair cost on this machine; nothing if no pair is given."""
    if not (config.target and config.draft):
        return []
    pair = open_pair(config)
    predictor = open_predictor(config, pair) if any(map(is_learned, config.policies)) else None
    return [calibrate(pair, predictor, config.sampling)]
