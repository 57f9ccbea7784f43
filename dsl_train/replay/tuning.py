"""Tunes the baselines: for each, the setting that replays fastest on the given decisions (the training prompts).

Knows replay and the registered rules; loads no model. Letters: N decisions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from dsl_train.base.cost import Price, price_for
from dsl_train.base.schema import TOP
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.register import RULES
from dsl_train.policies.registry import make_policy, needs_of
from dsl_train.policies.rules import StaticPolicy
from dsl_train.policies.signals import CAPS, EPSILON, SignalPolicy, logistic_spec
from dsl_train.replay.acceptance import acceptance_products, fit_acceptance
from dsl_train.replay.rounds import ReplayResult, replay_answers, replay_policy, replay_static, solve_thresholds
from dsl_train.traces.decisions import Decisions

#: The published rules at their published settings.
AS_PUBLISHED = tuple(name for name, rule in RULES.items() if rule.published)
#: 1 - h of `specdec++`: products of acceptances below which drafting stops.
PRODUCTS = (0.02, 0.05, *(i / 20 for i in range(2, 20)), 0.98)
RIDGE, TOLERANCE = 1e-3, 1e-6
#: Logit of a survival that never, or always, happened.
_CERTAIN = 10.0


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

    def paid_by(name: str) -> list[Price]:
        return [price_for(needs_of(name), price) for price in costs]

    best = {
        name: _best(_settings(decisions, name, rule.settings(decisions.max_lookahead)), paid_by(name))
        for name, rule in RULES.items()
        if rule.settings
    }
    best["logistic"] = tune_logistic(decisions, paid_by("logistic"))
    if acceptance_file:
        best["specdec++"] = tune_specdec(decisions, costs, acceptance_file)
    return [{name: tuned[i] for name, tuned in best.items()} for i in range(len(costs))]


def tune_static(decisions: Decisions, costs: Sequence[Price]) -> list[Tuned]:
    """The best fixed lookahead at each price; 0, plain decoding, is one of them."""
    return _best(_settings(decisions, "static", map(str, range(decisions.max_lookahead + 1))), costs)


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


def _settings(decisions: Decisions, name: str, settings: Iterable[str]) -> Iterator[tuple[str, ReplayResult]]:
    """Each setting of a rule, replayed by the quickest way that is exact."""
    first, signal = decisions.position == 0, None
    for arguments in settings:
        spec = f"{name}:{arguments}"
        policy = make_policy(spec)
        if isinstance(policy, SignalPolicy):
            signal = policy.signal(_Drafted.of(decisions)) if signal is None else signal
            yield spec, replay_answers(decisions, policy.passes(signal) | first, policy.max_lookahead)
        elif isinstance(policy, StaticPolicy):
            yield spec, replay_static(decisions, policy.max_lookahead)
        else:
            yield spec, replay_policy(decisions, policy)


@dataclass(frozen=True)
class _Drafted:
    """What signals read of the token drafted last, for all decisions: each [N]."""

    token_log_prob: np.ndarray
    log_probs: tuple[np.ndarray, ...]
    entropy: np.ndarray
    block_log_prob: np.ndarray

    @classmethod
    def of(cls, decisions: Decisions) -> "_Drafted":
        return cls(
            _column(decisions, "token_log_prob"),
            tuple(decisions.drafted(f"log_prob_{rank}") for rank in range(1, TOP + 1)),
            decisions.drafted("entropy"),
            _column(decisions, "block_log_prob"),
        )


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
