"""Prices of rounds, and the two thresholds that follow from them, checked against brute force."""

import numpy as np
import pytest

from dsl_train.base.cost import CostProfile, StopRule, marginal, never_falling, price_for, round_costs

TABLE = CostProfile(
    draft_step=0.1,
    target_step=1.0,
    target_step_per_token=0.05,
    predictor=0.02,
    round_overhead=0.25,
    predictor_round=0.03,
    primitives=0.01,
    target_steps=(1.0, 1.45, 1.5, 1.55),
)
FIRST_VERSION = {
    "draft_step": 0.25,
    "target_step": 2.0,
    "target_step_per_token": 0.5,
    "predictor": 0.125,
    "round_overhead": 0.5,
    "c": 0.125,
    "c_eff": 0.35,
}


def test_a_number_prices_every_draft_alike():
    assert round_costs(0.2, 3) == pytest.approx([1.0, 1.2, 1.4, 1.6])
    assert marginal(0.2) == 0.2


def test_a_profile_prices_a_round_by_the_measured_width_and_goes_on_in_a_line():
    assert [TABLE.verification(width) for width in range(1, 7)] == pytest.approx([1.0, 1.45, 1.5, 1.55, 1.6, 1.65])
    assert TABLE.round_seconds(2) == pytest.approx(1.5 + 0.25 + 0.03 + 2 * 0.12)
    assert TABLE.round_cost(2) == pytest.approx(2.02 / 1.25)
    assert round_costs(TABLE, 2)[0] == pytest.approx(1.28 / 1.25)
    assert round_costs(TABLE.without_predictor(), 1) == pytest.approx([1.0, (1.45 + 0.25 + 0.1) / 1.25])


def test_each_rule_pays_for_what_it_looks_at():
    assert TABLE.for_needs("features") == TABLE
    assert TABLE.for_needs("primitives").round_seconds(2) == pytest.approx(1.5 + 0.25 + 2 * 0.11)
    assert TABLE.for_needs("position") == TABLE.without_predictor()
    assert price_for("position", 0.3) == 0.3


def test_the_jump_is_what_lies_above_the_line_of_the_wider_steps():
    assert TABLE.verification_jump == pytest.approx(0.4)
    assert TABLE.c_eff == pytest.approx(0.17 / 1.68)
    assert TABLE.jump == pytest.approx(0.4 / 1.68)
    for drafts in (1, 2, 5):
        drafting_round = 1.68 * (1.0 + drafts * TABLE.c_eff)
        assert TABLE.round_seconds(drafts) == pytest.approx(drafting_round)


def test_a_line_without_jump_has_none():
    straight = CostProfile(0.1, 1.0, 0.1, target_steps=(1.0, 1.1, 1.2, 1.3))
    assert straight.jump == pytest.approx(0.0)
    assert CostProfile(0.1, 1.0, 0.1, target_steps=(1.0, 1.0, 1.1, 1.2)).jump == 0.0


def test_the_first_version_of_a_profile_is_read_as_the_line_it_meant():
    old = CostProfile.from_dict(FIRST_VERSION)
    assert old.c_eff == pytest.approx(FIRST_VERSION["c_eff"])
    assert old.jump == 0.0
    assert [old.round_cost(k) for k in range(4)] == pytest.approx([1 + 0.35 * k for k in range(4)])


def test_a_profile_survives_its_dictionary():
    assert CostProfile.from_dict(TABLE.to_dict()) == TABLE


def test_where_every_draft_costs_the_same_all_positions_have_the_solved_threshold():
    rule = StopRule.solve(lambda c: 2 * c, round_costs(0.1, 30))
    assert rule.thresholds == pytest.approx([0.2] * 30)
    assert StopRule.of(0.3).at(7) == 0.3


def test_a_jump_is_paid_by_all_the_drafts_that_may_follow():
    costs = [1.0, *(1.3 + 0.1 * k for k in range(1, 30))]
    rule = StopRule.solve(lambda c: 2 * c, costs)
    assert rule.thresholds[1:] == pytest.approx([0.2] * 28)
    assert 0.2 < rule.first < 2 * (0.3 + 0.1)  # dearer than what follows, cheaper than if it paid alone


def test_a_step_is_not_refused_for_its_price_if_cheap_ones_follow():
    steps = [0.4, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    rule = StopRule.solve(lambda c: 2 * c, np.append(1.0, 1.0 + np.cumsum(steps)).tolist())
    assert 0.8 > rule.thresholds[0] > rule.thresholds[1] > rule.thresholds[2] == pytest.approx(0.2)


def test_a_draft_dearer_than_a_target_step_is_never_asked():
    assert StopRule.solve(lambda c: c, round_costs(1.5, 30)).first >= 1.0


def expected_rate(acceptances, rule, c, jump, cap=16):
    """Tokens per unit of time of the rule on rounds whose drafts are accepted with these probabilities, each known."""
    survivals = acceptances[:, None] ** np.arange(1, cap + 1)  # [rounds, cap]
    drafts = np.cumprod(survivals > [rule.at(position) for position in range(cap)], axis=1)
    cost = 1.0 + drafts[:, 0] * jump + drafts.sum(1) * c
    return (1.0 + (survivals * drafts).sum(1)).sum() / cost.sum()


@pytest.mark.parametrize(("c", "jump"), [(0.05, 0.1), (0.1, 0.3), (0.3, 0.2), (0.1, 0.0)])
@pytest.mark.parametrize("ease", [0.4, 1.2, 4.0])
def test_the_solved_rule_is_as_fast_as_the_best_pair_of_thresholds_found_by_brute_force(c, jump, ease):
    acceptances = np.random.default_rng(0).beta(ease, 0.8, 400)

    def best_without_jump(c):
        return max(np.linspace(0.01, 0.99, 99), key=lambda t: expected_rate(acceptances, StopRule.of(t), c, 0.0))

    rule = StopRule.solve(best_without_jump, [1.0, *(1.0 + jump + c * k for k in range(1, 30))])
    grid = np.linspace(0.02, 1.0, 50)
    brute = max(expected_rate(acceptances, StopRule((one, two)), c, jump) for one in grid for two in grid)
    assert expected_rate(acceptances, rule, c, jump) >= 0.98 * brute


def test_costs_in_which_verifying_more_takes_less_time_never_price_a_draft_at_nothing():
    """`make demo` on a busy machine measured 6.3 ms for one token and 3.3 ms for 17."""
    steps = np.linspace(6.3e-3, 3.3e-3, 17).tolist()
    busy = CostProfile(0.6e-3, steps[0], target_steps=tuple(steps))
    assert list(busy.target_steps) == sorted(busy.target_steps)
    assert [busy.round_cost(k + 1) > busy.round_cost(k) for k in range(16)] == [True] * 16
    rule = busy.stop_rule(lambda c: min(1.0, 2 * c))
    assert min(rule.thresholds) > 0.05
    assert CostProfile.from_dict(busy.to_dict()) == busy


def test_steps_that_fall_are_pooled_and_others_left_alone():
    assert never_falling([1.0, 3.0, 2.0, 4.0]) == (1.0, 2.5, 2.5, 4.0)
    assert never_falling([3.0, 2.0, 1.0]) == (2.0, 2.0, 2.0)
    assert never_falling([1.0, 3.0, 2.0], [1.0, 3.0, 1.0]) == pytest.approx((1.0, 2.75, 2.75))
    assert never_falling([]) == ()


def test_the_slope_is_that_after_the_jump_to_two_tokens():
    def slope(*steps: float) -> float:
        return CostProfile.of_steps(0.1, steps).target_step_per_token

    assert slope(1.0, 1.5, 2.0, 2.5) == pytest.approx(0.5)
    assert slope(1.0, 9.0, 9.5, 10.0) == pytest.approx(0.5)
    assert slope(1.0, *(2.0 + 0.5 * k for k in range(8)), 99.0, 99.0) == pytest.approx(0.5)
    assert slope(1.0, 1.0, 0.9) == 0
    assert slope(1.0, 1.25) == 0.25
    assert slope(1.0) == 0
