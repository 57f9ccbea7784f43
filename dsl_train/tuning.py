"""Baselines at their best: each tuned by replay, on whatever decisions it is given (the training prompts).

Knows replay and the rules' arguments; loads no model. Letters: N decisions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dsl_train.decisions import Decisions
from dsl_train.policies.factory import make_policy
from dsl_train.policies.signals import EPSILON, SvipPolicy, logistic_spec
from dsl_train.replay import ReplayResult, replay_answers, replay_policy, replay_static, solve_thresholds
from dsl_train.schema import FEATURE_NAMES

#: The published rules at their published settings.
AS_PUBLISHED = ("heuristic", "confidence", "confidence-roc", "draft-verify", "kangaroo", "svip", "adaedl")
PROBS = (0.02, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.98)
CAPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
INITIAL_THRESHOLDS = (0.3, 0.5, 0.7)
RIDGE = 1e-3

#: Rule -> what it compares with its threshold, [N]; it goes on where that is at least the threshold (`svip`: at most).
_SIGNALS: dict[str, Callable[[Decisions], np.ndarray]] = {
    "confidence": lambda decisions: np.exp(_column(decisions, "token_log_prob")),
    "kangaroo": lambda decisions: _column(decisions, "top_prob"),
    "svip": lambda decisions: np.sqrt(SvipPolicy.SCALE * np.maximum(0.0, _column(decisions, "entropy"))),
    "cumulative": lambda decisions: np.exp(_column(decisions, "block_log_prob")),
}


@dataclass(frozen=True)
class Tuned:
    """The best setting of one rule at one price."""

    spec: str
    """For `policies.factory.make_policy`."""
    rate: float
    """Tokens per target step on the decisions it was tuned on."""


def tune_baselines(decisions: Decisions, costs: Sequence[float]) -> list[dict[str, Tuned]]:
    """For each price of a draft [target steps], the best setting of every rule that has one, by rule name."""
    candidates = {"static": _statics(decisions), "adaedl": _adaedls(decisions)}
    candidates |= {name: _thresholds(decisions, name) for name in _SIGNALS}
    best = {name: _best(settings, costs) for name, settings in candidates.items()}
    best["logistic"] = tune_logistic(decisions, costs)
    return [{name: tuned[i] for name, tuned in best.items()} for i in range(len(costs))]


def tune_static(decisions: Decisions, costs: Sequence[float]) -> list[Tuned]:
    """The best fixed lookahead at each price; 0, plain decoding, is one of them."""
    return _best(_statics(decisions), costs)


def tune_logistic(decisions: Decisions, costs: Sequence[float]) -> list[Tuned]:
    """The fitted one-feature rule with the threshold that pays at each price."""
    slope, intercepts = fit_logistic(decisions)
    survival = _sigmoid(slope * _top_logits(decisions) + intercepts[decisions.position])
    tuned = []
    for c, threshold in zip(costs, solve_thresholds(decisions, survival, costs), strict=True):
        spec = logistic_spec(threshold, slope, intercepts.tolist())
        tuned.append(Tuned(spec, replay_answers(decisions, survival > threshold).rate(c)))
    return tuned


def fit_logistic(decisions: Decisions, iterations: int = 25) -> tuple[float, np.ndarray]:
    """Slope and intercepts [positions] of survival on logit(largest draft probability), by Newton's method."""
    signal, position = _top_logits(decisions), decisions.position.astype(np.int64)
    num_positions = decisions.max_lookahead
    slope, intercepts = 1.0, np.zeros(num_positions)
    for _ in range(iterations):
        prob = _sigmoid(slope * signal + intercepts[position])
        residual, weight = decisions.survival - prob, prob * (1.0 - prob)

        def by_position(values: np.ndarray) -> np.ndarray:
            return np.bincount(position, values, num_positions)

        hessian = np.diag(np.append(by_position(weight) + RIDGE, (weight * signal**2).sum() + RIDGE))
        hessian[-1, :-1] = hessian[:-1, -1] = by_position(weight * signal)
        gradient = np.append(by_position(residual) - RIDGE * intercepts, (residual * signal).sum() - RIDGE * slope)
        step = np.linalg.solve(hessian, gradient)
        slope, intercepts = slope + float(step[-1]), intercepts + step[:-1]
        if np.abs(step).max() < 1e-6:
            break
    return slope, intercepts


def _best(candidates: Iterator[tuple[str, ReplayResult]], costs: Sequence[float]) -> list[Tuned]:
    """The fastest candidate at each price; results are not kept."""
    rates = [(spec, [result.rate(c) for c in costs]) for spec, result in candidates]
    tops = [max(rates, key=lambda candidate: candidate[1][i]) for i in range(len(costs))]
    return [Tuned(spec, of_spec[i]) for i, (spec, of_spec) in enumerate(tops)]


def _statics(decisions: Decisions) -> Iterator[tuple[str, ReplayResult]]:
    for lookahead in range(decisions.max_lookahead + 1):
        yield f"static:{lookahead}", replay_static(decisions, lookahead)


def _thresholds(decisions: Decisions, name: str) -> Iterator[tuple[str, ReplayResult]]:
    signal, first = _SIGNALS[name](decisions), decisions.position == 0
    for prob in PROBS:
        threshold = round(1.0 - prob, 2) if name == "svip" else prob
        passed = signal <= threshold if name == "svip" else signal >= threshold
        for cap in CAPS:
            yield f"{name}:{threshold:g},{cap}", replay_answers(decisions, passed | first, cap)


def _adaedls(decisions: Decisions) -> Iterator[tuple[str, ReplayResult]]:
    for threshold in INITIAL_THRESHOLDS:
        spec = f"adaedl:{threshold:g}"
        yield spec, replay_policy(decisions, make_policy(spec))


def _column(decisions: Decisions, name: str) -> np.ndarray:
    return decisions.features[:, FEATURE_NAMES.index(name)].astype(np.float64)


def _top_logits(decisions: Decisions) -> np.ndarray:
    """[N] logit of the largest draft probability, clipped; 0 before the first draft."""
    prob = np.clip(_column(decisions, "top_prob"), EPSILON, 1.0 - EPSILON)
    return np.where(decisions.position == 0, 0.0, np.log(prob / (1.0 - prob)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.maximum(logits, -50.0)))
