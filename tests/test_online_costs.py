"""Costs learned while generating: simulated machines with clocks of their own, no real time."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from test_learned_policy import StubPredictor, step

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.costs.online import BLOCK, FIRST_LOOKAHEADS, TRY_AFTER, OnlineCosts, TimedRound
from dsl_train.policies.learned import LearnedPolicy

CAP, OVERHEAD = 16, 0.0005
ACCEPTANCES = np.random.default_rng(1).beta(1.2, 0.6, 2000)
SURVIVALS = ACCEPTANCES[:, None] ** np.arange(1, CAP + 1)  # [rounds, CAP]
FLAT = [1.0] * 17
JUMP = [1.0, *(1.3 + 0.02 * k for k in range(16))]
RISING = [1.0 + 0.05 * k for k in range(17)]


def machine(c: float, widths: list[float], seconds: float = 0.01) -> CostProfile:
    return CostProfile.of_steps(c * seconds, [seconds * width for width in widths], OVERHEAD)


def lookaheads(survivals: np.ndarray, rule: StopRule) -> np.ndarray:
    return np.cumprod(survivals > [rule.at(position) for position in range(CAP)], axis=-1).sum(-1)


def rate(rule: StopRule, costs: CostProfile) -> float:
    """Tokens a second of the rule on all rounds, each survival known."""
    drafted = lookaheads(SURVIVALS, rule)
    seconds = np.array([costs.round_seconds(num_drafted) for num_drafted in range(CAP + 1)])
    survived = (SURVIVALS * (np.arange(CAP) < drafted[:, None])).sum()
    return float((len(drafted) + survived) / seconds[drafted].sum())


@cache
def solved() -> tuple[list[float], list[float]]:
    """Prices and the thresholds that are best there, found by brute force."""
    prices = np.geomspace(0.01, 1.2, 25).tolist()
    grid = np.linspace(0.01, 1.0, 50).tolist()
    return prices, [max(grid, key=lambda t: rate(StopRule.of(t), CostProfile(c, 1.0))) for c in prices]


class Predictor(StubPredictor):
    max_lookahead = CAP

    def threshold(self, c: float) -> float:
        return float(np.interp(c, *solved()))


class HalfSure(StubPredictor):
    def threshold(self, c: float) -> float:
        return 0.5


def serve(
    machine_at: Callable[[int], CostProfile], prior: CostProfile, num_rounds: int, seed: int = 0
) -> tuple[LearnedPolicy, OnlineCosts]:
    """A policy after so many rounds whose times vary by a tenth, one in twenty being ten times as long."""
    random, costs = np.random.default_rng(seed), OnlineCosts(prior)
    policy = LearnedPolicy(Predictor(), costs)
    for number in range(num_rounds):
        here, tried = machine_at(number), costs.lookahead_to_try
        survivals = random.choice(ACCEPTANCES) ** np.arange(1, CAP + 1)
        num_drafted = int(lookaheads(survivals, policy.rule)) if tried is None else tried
        factors = random.lognormal(0.0, 0.1, 2) * np.where(random.random(2) < 0.05, 10.0, 1.0)
        draft = num_drafted * here.draft_step * factors[0]
        verify = here.verification(num_drafted + 1) * factors[1]
        policy.timed(num_drafted, draft, verify, draft + verify + OVERHEAD)
    return policy, costs


def share_of_best(policy: LearnedPolicy, here: CostProfile) -> float:
    return rate(policy.rule, here) / rate(here.stop_rule(Predictor().threshold), here)


@pytest.mark.parametrize("prior", [0.33, 1.0, 3.0])
@pytest.mark.parametrize("widths", [FLAT, JUMP, RISING])
@pytest.mark.parametrize("c", [0.05, 0.1, 0.3])
def test_after_fifty_rounds_the_rule_is_as_fast_as_with_costs_that_are_known(c, widths, prior):
    here = machine(c, widths)
    shares = [share_of_best(serve(lambda _: here, CostProfile(c * prior, 1.0), 50, seed)[0], here) for seed in range(5)]
    assert np.mean(shares) > 0.99
    assert min(shares) > 0.98


@pytest.mark.parametrize("factors", [(2.0, 1.0), (1.0, 2.0), (2.0, 2.0)])
def test_a_step_that_takes_twice_as_long_from_half_way_on_is_followed(factors):
    before = machine(0.1, JUMP)
    after = CostProfile.of_steps(
        factors[0] * before.draft_step, [factors[1] * step for step in before.target_steps], OVERHEAD
    )
    prior = CostProfile(0.1, 1.0)
    policy, costs = serve(lambda number: before if number < 200 else after, prior, 200 + 3 * BLOCK)
    assert share_of_best(policy, after) > 0.99
    assert costs.profile.draft_step == pytest.approx(after.draft_step, rel=0.15)
    assert costs.profile.target_step == pytest.approx(after.target_step, rel=0.15)


def test_a_slower_machine_slows_all_steps_and_leaves_the_rule_alone():
    here = machine(0.2, FLAT)
    slow = machine(0.2, FLAT, seconds=0.05)
    fast_policy, _ = serve(lambda _: here, CostProfile(0.2, 1.0), 100)
    slow_policy, costs = serve(lambda _: slow, CostProfile(0.2, 1.0), 100)
    assert costs.profile.target_step == pytest.approx(0.05, rel=0.1)
    assert slow_policy.rule.another == pytest.approx(fast_policy.rule.another, rel=0.15)


def test_a_single_outlier_leaves_no_trace():
    def known(longest: float) -> CostProfile:
        costs = OnlineCosts(CostProfile(0.1, 1.0))
        for number in range(len(FIRST_LOOKAHEADS) + BLOCK):
            costs.observe(TimedRound(4, 0.4, longest if number == 20 else 1.0, 0.0))
        return costs.profile

    assert known(1000.0) == known(1.0)


def test_verifying_more_tokens_never_takes_less_time():
    costs = OnlineCosts(CostProfile(1e-4, 1e-3))
    for number in range(20 * BLOCK):
        num_drafted = 16 * (number % 2)
        costs.observe(TimedRound(num_drafted, 0.0002 * num_drafted or None, 0.0033 if num_drafted else 0.0063, 0.0))
    steps = costs.profile.target_steps
    assert list(steps) == sorted(steps)
    rule = costs.profile.stop_rule(lambda c: min(1.0, 1.5 * c))
    assert min(rule.thresholds) > 0.01


def test_the_first_rounds_meet_every_kind_of_step_and_later_ones_follow_the_rule():
    policy = LearnedPolicy(HalfSure(), OnlineCosts(CostProfile(0.1, 1.0)))
    caps = []
    for _ in FIRST_LOOKAHEADS:
        caps.append(policy.max_lookahead)
        position = 0
        while position < caps[-1] and policy.wants_another(step(0.9, position)):
            position += 1
        policy.timed(position, 0.1 * position, 1.0, 1.1)
    assert caps == [12, *FIRST_LOOKAHEADS[1:]]
    assert policy.max_lookahead == 12


def test_what_is_not_met_is_tried_ever_more_seldom():
    costs, tried = OnlineCosts(CostProfile(5.0, 1.0)), []
    for number in range(3000):
        num_drafted = costs.lookahead_to_try or 0
        if num_drafted and number >= len(FIRST_LOOKAHEADS):
            tried.append(number)
        costs.observe(TimedRound(num_drafted, 5.0 * num_drafted or None, 1.0, 0.0))
    assert tried[0] <= len(FIRST_LOOKAHEADS) + TRY_AFTER
    assert len(tried) < 12
    assert tried[-1] > 2000


def test_a_draft_with_more_to_read_than_its_last_tokens_is_not_timed():
    here = LearnedPolicy(Predictor(), OnlineCosts(CostProfile(0.1, 1.0)))
    for _ in range(6 * BLOCK):
        here.reset()  # a new text: the draft reads the prompt
        here.timed(4, 99.0, 1.0, 100.0)
        here.timed(4, 0.4, 1.0, 1.4)
        here.timed(0, 0.0, 1.0, 1.0)
        here.timed(4, 99.0, 1.0, 100.0)  # the token of the round before, too
    assert here.costs.draft_step == pytest.approx(0.1)


def test_a_loop_that_times_nothing_is_told_to_try_nothing():
    policy = LearnedPolicy(HalfSure(), OnlineCosts(CostProfile(0.1, 1.0)))
    for _ in range(100):
        assert policy.max_lookahead == StubPredictor.max_lookahead
        assert not policy.wants_another(step(0.1))


def test_a_corrected_rule_shifts_the_thresholds_of_the_costs_of_now():
    costs = OnlineCosts(CostProfile(0.1, 1.0))
    policy = LearnedPolicy(Predictor(), costs)
    policy._shift.shift = 0.8
    before = policy.given_rule
    for number in range(3 * BLOCK):
        policy.timed(number % 5, 0.3 * (number % 5), 1.0, 1.0 + 0.3 * (number % 5))
    assert policy.given_rule == costs.profile.stop_rule(policy.predictor.threshold) != before
    assert policy.rule == policy._shift.rule(policy.given_rule) != policy.given_rule


def test_the_same_times_give_the_same_costs():
    here = machine(0.1, RISING)
    one, two = (serve(lambda _: here, CostProfile(0.1, 1.0), 100)[1].profile for _ in range(2))
    assert one == two
