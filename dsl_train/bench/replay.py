"""Policies over traces, priced by a cost model; no model runs unless its costs are to be measured.

Exact for greedy traces (the rounds are those of the live loop), exact in distribution for sampled ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsl_train import decisions, replay, statistics
from dsl_train.api import load_predictor
from dsl_train.bench.config import LIVE_ONLY, BenchConfig, is_learned
from dsl_train.bench.setup import open_pair, open_predictor
from dsl_train.decisions import Decisions
from dsl_train.policies.factory import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.profile import cached_profile
from dsl_train.replay import ReplayResult
from dsl_train.statistics import Interval, Rates
from dsl_train.traces import open_traces

BOUNDS = {"oracle": replay.replay_oracle, "oracle+": replay.replay_oracle_plus}
"""What no policy can reach: they see the future."""
At = Callable[[float], ReplayResult]
"""The rounds of a policy where a draft costs so many target steps; only the learned one looks at it."""


@dataclass(frozen=True)
class ReplayRow:
    policy: str
    rates: tuple[Interval, ...]
    """Tokens per target step, one for each cost: the speedup over decoding without a draft."""
    vs_best_static: tuple[Interval, ...]
    """How many times the rate of the best static lookahead at that cost, paired by prompt; empty without any."""
    mean_lookahead: tuple[float, ...]
    """Drafts per round, one for each cost."""


@dataclass(frozen=True)
class ReplayTable:
    costs: tuple[float, ...]
    """Prices of one more draft token [target steps], rising."""
    rows: tuple[ReplayRow, ...]
    best_static: tuple[str, ...]
    """One for each cost, chosen on these very prompts: the hardest to beat."""
    warnings: tuple[str, ...]
    num_prompts: int

    def to_dict(self) -> dict[str, Any]:
        return {"mode": "replay", **asdict(self)}


def run_replay(config: BenchConfig) -> ReplayTable:
    """Raises DslError for traces or a predictor that cannot be read, or an unknown policy."""
    traces = open_traces([Path(folder) for folder in config.traces])
    names = [name for name in dict.fromkeys(config.policies) if name not in LIVE_ONLY]
    predictor = None
    if any(map(is_learned, names)):
        predictor = load_predictor(config.predictor or config.draft or traces.pair["draft"]["id"])
        predictor.check_pair(**traces.pair)
    costs = sorted({*config.c, *measured_cost(config)})
    walked = decisions.build(traces, predictor.max_lookahead) if predictor else decisions.build(traces)
    contenders = {name: contender(name, walked, predictor, config.threshold) for name in [*names, *BOUNDS]}
    return tabulate({name: [at(c) for c in costs] for name, at in contenders.items()}, costs, config.seed)


def tabulate(results: Mapping[str, Sequence[ReplayResult]], costs: Sequence[float], seed: int = 0) -> ReplayTable:
    """Rates of each policy at each cost, bootstrapped by prompt and compared with the best static lookahead."""
    rates = {name: list(map(by_prompt, of_name, costs)) for name, of_name in results.items()}
    num_prompts = len(next(iter(rates.values()))[0].tokens)
    counts = statistics.draws(num_prompts, seed=seed)
    static = [name for name in rates if name.startswith("static:")]
    best = [statistics.fastest({name: rates[name][i] for name in static}) for i in range(len(costs))]
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
        )
        for name in results
    ]
    warnings = [f"{name}: {of_name[0].warning}" for name, of_name in results.items() if of_name[0].warning]
    return ReplayTable(tuple(costs), tuple(rows), tuple(filter(None, best)), tuple(warnings), num_prompts)


def contender(name: str, walked: Decisions, predictor: Predictor | None, threshold: float | None) -> At:
    """Each policy by the quickest way that is exact."""
    if name in BOUNDS:
        return _constant(BOUNDS[name](walked))
    if is_learned(name) and predictor:
        survival = predictor.survival_batch(walked.features)
        table = predictor.threshold if threshold is None else lambda _: threshold
        return lambda c: replay.replay_survival(walked, survival, table(c))
    return _constant(replay.replay_policy(walked, make_policy(name)))


def _constant(result: ReplayResult) -> At:
    return lambda _: result


def by_prompt(result: ReplayResult, c: float) -> Rates:
    """Tokens and cost [target steps] of each prompt, all its texts together."""
    _, prompt = np.unique(result.prompt_ids, return_inverse=True)
    total = partial(np.bincount, prompt)
    return Rates(total(result.tokens), total(result.cost_by_sequence(c)))


def measured_cost(config: BenchConfig) -> list[float]:
    """c_eff of the pair on this machine, the predictor's own price included; nothing if no pair is given."""
    if not (config.target and config.draft):
        return []
    pair = open_pair(config)
    predictor = open_predictor(config, pair) if any(map(is_learned, config.policies)) else None
    return [cached_profile(pair, predictor, config.sampling).c_eff]
