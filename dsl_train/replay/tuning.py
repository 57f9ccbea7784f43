"""Tunes the baselines: for each, the setting that replays fastest on the given decisions (the training prompts).

Knows replay and the rules' arguments; loads no model. Letters: N decisions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from dsl_train.base.cost import Price, price_for
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.registry import make_policy, needs_of
from dsl_train.policies.signals import EPSILON, SvipPolicy, logistic_spec
from dsl_train.replay.acceptance import acceptance_products, fit_acceptance
from dsl_train.replay.rounds import ReplayResult, replay_answers, replay_policy, replay_static, solve_thresholds
from dsl_train.traces.decisions import Decisions

#: The published rules at their published settings.
AS_PUBLISHED = ("heuristic", "confidence", "confidence-roc", "draft-verify", "kangaroo", "svip", "adaedl")
PROBS = (0.02, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.98)
CAPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
INITIAL_THRESHOLDS = {"adaedl": (0.3, 0.5, 0.7), "draft-verify": (0.2, 0.5, 0.8)}
#: 1 - h of `specdec++`: products of acceptances below which drafting stops.
PRODUCTS = (0.02, 0.05, *(i / 20 for i in range(2, 20)), 0.98)
RIDGE, TOLERANCE = 1e-3, 1e-6
#: Logit of a survival that never, or always, happened.
_CERTAIN = 10.0

#: Rule -> what it compares with its threshold, [N]; it goes on where that is at least the threshold; `svip`, at most.
_SIGNALS: dict[str, Callable[[Decisions], np.ndarray]] = {
    "confidence": lambda decisions: np.exp(_column(decisions, "token_log_prob")),
    "kangaroo": lambda decisions: _column(decisions, "top_prob"),
    "svip": lambda decisions: np.sqrt(SvipPolicy.SCALE * np.maximum(0.0, decisions.drafted("entropy"))),
    "cumulative": lambda decisions: np.exp(_column(decisions, "block_log_prob")),
}


@dataclass(frozen=True)
class Tuned:
    """The best setting of one rule at one price."""

    spec: str
    """For `policies.registry.make_policy`."""
    rate: float
    """Tokens per target step on the decisions it was tuned on."""


def tune_baselines(
    decisions: Decisions, costs: Sequence[Price], acceptance_file: Path | None = None
) -> list[dict[str, Tuned]]:
    """For each price, the best setting of every rule that has settings, by rule name. Rules pay for what they read.

    `specdec++` needs a model, which is fitted on the same decisions and written to `acceptance_file`; without a file it
    is left out.
    """
    candidates = {"static": _statics(decisions)}
    candidates |= {name: _adaptives(decisions, name) for name in INITIAL_THRESHOLDS}
    candidates |= {name: _thresholds(decisions, name) for name in _SIGNALS}

    def paid_by(name: str) -> list[Price]:
        return [price_for(needs_of(name), price) for price in costs]

    best = {name: _best(settings, paid_by(name)) for name, settings in candidates.items()}
    best["logistic"] = tune_logistic(decisions, paid_by("logistic"))
    if acceptance_file:
        best["specdec++"] = tune_specdec(decisions, costs, acceptance_file)
    return [{name: tuned[i] for name, tuned in best.items()} for i in range(len(costs))]


def tune_static(decisions: Decisions, costs: Sequence[Price]) -> list[Tuned]:
    """The best fixed lookahead at each price; 0, plain decoding, is one of them."""
    return _best(_statics(decisions), costs)


def tune_specdec(
    decisions: Decisions, costs: Sequence[Price], file: Path, names: Sequence[str] = FEATURE_NAMES
) -> list[Tuned]:
    """The best setting of `specdec++` at each price, its model fitted on the features `names` and written to `file`."""
    return _best(_acceptances(decisions, file, names), [price_for(needs_of("specdec++"), price) for price in costs])


def tune_logistic(decisions: Decisions, costs: Sequence[Price]) -> list[Tuned]:
    """The fitted rule on one feature, with the best threshold at each price."""
    slope, intercepts = fit_logistic(decisions)
    survival = expit(slope * _top_logits(decisions) + intercepts[decisions.position])
    tuned = []
    for c, threshold in zip(costs, solve_thresholds(decisions, survival, costs), strict=True):
        spec = logistic_spec(threshold, slope, intercepts.tolist())
        tuned.append(Tuned(spec, replay_answers(decisions, survival > threshold).rate(c)))
    return tuned


def fit_logistic(decisions: Decisions) -> tuple[float, np.ndarray]:
    """Slope and intercepts [positions] of survival on logit(largest draft probability), by logistic regression."""
    from scipy.sparse import csr_array, hstack
    from sklearn.linear_model import LogisticRegression

    num_rows, num_positions, labels = len(decisions), decisions.max_lookahead, decisions.survival
    if labels.all() or not labels.any():
        return 0.0, np.full(num_positions, _CERTAIN if labels.any() else -_CERTAIN)
    of_position = csr_array((np.ones(num_rows), (np.arange(num_rows), decisions.position)), (num_rows, num_positions))
    inputs = hstack([of_position, csr_array(_top_logits(decisions)[:, None])], format="csr")  # [N, positions + 1]
    model = LogisticRegression(C=1.0 / RIDGE, fit_intercept=False, tol=TOLERANCE, solver="newton-cholesky")
    *intercepts, slope = model.fit(inputs, labels).coef_[0].tolist()
    return slope, np.array(intercepts)


def _best(candidates: Iterator[tuple[str, ReplayResult]], costs: Sequence[Price]) -> list[Tuned]:
    """The fastest candidate at each price."""
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


def _adaptives(decisions: Decisions, name: str) -> Iterator[tuple[str, ReplayResult]]:
    for threshold in INITIAL_THRESHOLDS[name]:
        spec = f"{name}:{threshold:g}"
        yield spec, replay_policy(decisions, make_policy(spec))


def _acceptances(decisions: Decisions, file: Path, names: Sequence[str]) -> Iterator[tuple[str, ReplayResult]]:
    model = fit_acceptance(decisions, names=names)
    model.save(file)
    product, first = acceptance_products(decisions, model), decisions.position == 0
    for least in PRODUCTS:
        for cap in CAPS:
            spec = f"specdec++:{file},{round(1.0 - least, 4):g},{cap}"
            yield spec, replay_answers(decisions, (product >= least) | first, cap)


def _column(decisions: Decisions, name: str) -> np.ndarray:
    return decisions.features[:, FEATURE_NAMES.index(name)].astype(np.float64)


def _top_logits(decisions: Decisions) -> np.ndarray:
    """[N] logit of the largest draft probability, clipped; 0 before the first draft."""
    prob = np.clip(_column(decisions, "top_prob"), EPSILON, 1.0 - EPSILON)
    return np.where(decisions.position == 0, 0.0, np.log(prob / (1.0 - prob)))
