"""The online correction of the survival estimate: what it learns, from what, and that it changes no text."""

import numpy as np
from test_learned_policy import StubPredictor, step
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.records import Round
from dsl_train.costs.online import FIRST_LOOKAHEADS, OnlineCosts
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.online import OnlineShift, moved
from dsl_train.policies.registry import make_policy
from dsl_train.replay.rounds import replay_policy, replay_survival
from dsl_train.traces.decisions import build


class Sure:
    """Always the same survival."""

    max_lookahead = 16

    @staticmethod
    def threshold(c: float) -> float:
        return c

    def __init__(self, survival: float) -> None:
        self._survival = survival

    def survival(self, vector: np.ndarray) -> float:
        return self._survival


def finished(num_drafted: int, num_accepted: int) -> Round:
    return Round(4, tuple(range(num_drafted)), num_accepted, tuple(range(num_accepted + 1)))


def test_drafts_that_never_survive_end_the_drafting_and_it_is_tried_again_later():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5, corrected=True)
    drafted = []
    for _ in range(2000):
        drafted.append(policy.wants_another(step(0.9)))
        policy.observe(finished(drafted[-1], 0))
    assert all(drafted[:3])
    assert sum(drafted) < 0.05 * len(drafted)
    assert any(drafted[1000:])


def test_drafts_that_always_survive_are_trusted_further():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5, corrected=True)
    assert not policy.wants_another(step(0.4))
    policy.observe(finished(0, 0))
    for _ in range(200):
        assert policy.wants_another(step(0.7))
        policy.observe(finished(1, 1))
    assert policy.wants_another(step(0.4))


def test_an_estimate_that_is_right_is_left_alone():
    """The shift of 4,000 rounds stays within 0.5: five of its standard deviations, a false alarm in a million."""
    online, random = OnlineShift(), np.random.default_rng(0)
    for survival in random.uniform(0.5, 0.95, size=4000).tolist():
        online.observe([survival], int(random.random() < survival))
    assert abs(online.shift) < 0.5


def test_decisions_behind_the_first_rejection_count_as_not_survived():
    behind, first = OnlineShift(), OnlineShift()
    behind.observe([0.8, 0.7], 0)
    first.observe([0.8], 0)
    assert behind.shift < first.shift < 0


def test_shifting_the_threshold_is_shifting_the_estimate():
    for survival in (0.1, 0.5, 0.9):
        for shift in (-1.5, 0.0, 0.7):
            online = OnlineShift()
            online.shift = shift
            rule = online.rule(StopRule((0.6, 0.3)))
            assert (survival > rule.another) == (moved(survival, shift) > 0.3)
            assert (survival > rule.first) == (moved(survival, shift) > 0.6)


def test_a_threshold_of_one_stays_one():
    assert moved(1.0, 3.0) == 1.0
    assert moved(0.0, -3.0) == 0.0


def test_replay_of_the_corrected_policy_corrects_as_well():
    never = build(make_traces(*["r" * 60] * 8, tail=15))
    predictor, rule = Sure(0.9), StopRule.of(0.5)
    plain = replay_survival(never, np.full(len(never), 0.9), rule)
    corrected = replay_policy(never, LearnedPolicy(predictor, rule, corrected=True))
    assert plain.mean_lookahead > 10
    assert corrected.mean_lookahead < 2
    assert corrected.num_tokens == plain.num_tokens


def test_what_was_learned_outlives_a_text():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5, corrected=True)
    policy.wants_another(step(0.9))
    policy.observe(finished(1, 0))
    moved_rule = policy.rule
    policy.reset()
    assert policy.rule == moved_rule != policy.given_rule


def test_thresholds_that_were_given_stay_and_those_that_follow_costs_are_corrected():
    costs = OnlineCosts(CostProfile(0.1, 1.0))
    costs.num_rounds = len(FIRST_LOOKAHEADS)  # the first ones draft what makes costs known
    for threshold, is_corrected in ((0.5, False), (StopRule.of(0.5), False), (costs, True)):
        policy = make_policy("learned", Sure(0.9), threshold)
        policy.wants_another(step(0.9))
        policy.observe(finished(1, 0))
        assert (policy.rule != policy.given_rule) == is_corrected
