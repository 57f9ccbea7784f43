"""The best settings of other engines for this pair, from traces: what to type, how fast, what learning would add.

Tuned on one set of texts, priced on another, at the costs of this pair on this machine; an engine's own overhead is its
own. How the engines stop:

    transformers   after the first token under `assistant_confidence_threshold`, or after `num_assistant_tokens`
    vLLM           after `num_speculative_tokens`
    llama.cpp      before the first token whose draft probability is under `--spec-draft-p-min`, or after
                   `--spec-draft-n-max`; the token dropped was computed all the same. llama.cpp drafts the likeliest
                   token; a draft that samples must not drop a token for its own value, that would bias the text.

Knows replay and prices; loads no model. Letters: S starts, K drafts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dsl_train.base.cost import CostProfile, Price, rule_at
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay.rounds import (
    ReplayResult,
    replay_answers,
    replay_lookahead,
    replay_static,
    replay_survival,
    start_numbers,
)
from dsl_train.traces.blocks import draft_rows
from dsl_train.traces.decisions import Decisions

PROBS = (0.0, *(i / 20 for i in range(1, 20)))
CAPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)


@dataclass(frozen=True)
class Recommendation:
    engine: str
    settings: dict[str, float | int]
    """Option -> value, named as the engine names it."""
    tokens_per_target_step: float
    """Tokens committed per verification, on texts it was not tuned on."""
    speedup: float
    """Over decoding without a draft, on those texts."""
    learned_gain: float | None
    """What the learned policy, its predictor paid for, adds to that: 0.1 is a tenth. None without a predictor."""


@dataclass(frozen=True, eq=False)
class _Setting:
    options: dict[str, float | int]
    result: ReplayResult
    num_dropped: int = 0
    """Tokens drafted and dropped before verification."""

    def rate(self, price: Price) -> float:
        cost = float(self.result.cost_by_sequence(price).sum())
        draft = price.draft_step / price.round_base if isinstance(price, CostProfile) else price
        return self.result.num_tokens / (cost + draft * self.num_dropped) if cost else 0.0


def recommend(train: Decisions, test: Decisions, cost: Price, predictor: Predictor | None) -> list[Recommendation]:
    """One per engine. `cost` is the learned policy's; the engines pay no predictor."""
    price = cost.without_predictor() if isinstance(cost, CostProfile) else cost
    learned = None
    if predictor is not None:
        rule = rule_at(cost, predictor.threshold)
        learned = replay_survival(test, predictor.survival_batch(test.features), rule).rate(cost)
    recommendations = []
    for engine, settings in (("transformers", _transformers), ("vLLM", _vllm), ("llama.cpp", _llama_cpp)):
        best = max(settings(train), key=lambda setting: setting.rate(price)).options
        there = next(setting for setting in settings(test) if setting.options == best)
        speedup = there.rate(price)
        gain = None if learned is None else learned / speedup - 1.0
        recommendations.append(Recommendation(engine, best, there.result.mean_acceptance_length, speedup, gain))
    return recommendations


def _vllm(decisions: Decisions) -> Iterator[_Setting]:
    for lookahead in range(decisions.max_lookahead + 1):
        yield _Setting({"num_speculative_tokens": lookahead}, replay_static(decisions, lookahead))


def _transformers(decisions: Decisions) -> Iterator[_Setting]:
    prob = np.exp(decisions.drafted("token_log_prob").astype(np.float64))  # 1 before the first draft
    for cap in CAPS:
        for least in PROBS:
            options = {"num_assistant_tokens": cap, "assistant_confidence_threshold": least}
            yield _Setting(options, replay_answers(decisions, prob >= least, cap))


def _llama_cpp(decisions: Decisions) -> Iterator[_Setting]:
    prob = _top_probs(decisions)
    for least in PROBS:
        under = prob < least
        unlikely = np.where(under.any(1), under.argmax(1), prob.shape[1])  # [S] drafts before the first under p-min
        for cap in CAPS:
            result = replay_lookahead(decisions, np.minimum(unlikely, cap))
            num_dropped = int((unlikely[start_numbers(decisions, result)] < cap).sum())
            yield _Setting({"--spec-draft-n-max": cap, "--spec-draft-p-min": least}, result, num_dropped)


def _top_probs(decisions: Decisions) -> np.ndarray:
    """[S, K] largest probability of the distribution each draft comes from; 1 where it is not recorded."""
    probs = np.ones((len(decisions.run), max(CAPS)))
    log_probs = decisions.traces.rows["log_prob_1"].astype(np.float64)
    for position in range(max(CAPS)):
        starts = np.flatnonzero(decisions.limit > position)
        rows = draft_rows(decisions, starts, position)
        probs[starts, position] = np.where(rows >= 0, np.exp(log_probs[rows]), 1.0)
    return probs
