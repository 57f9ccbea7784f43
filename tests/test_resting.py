"""A useless draft is left alone, a good one never, and a draft that becomes good is found again."""

import numpy as np
import pytest
from test_learned_policy import StubPredictor, step
from test_online import finished
from tiny_traces import make_traces

from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.resting import Resting
from dsl_train.replay.rounds import replay_policy
from dsl_train.traces.decisions import build


class Sure(StubPredictor):
    def survival(self, vector: np.ndarray) -> float:
        return 0.8


@pytest.mark.parametrize("survival", [0.3, 0.6, 0.99])
def test_a_draft_that_is_never_accepted_is_soon_tried_in_one_round_of_a_hundred(survival):
    resting, awake = Resting(), []
    for _ in range(2000):
        awake.append(resting.awake)
        resting.observe(survival if resting.awake else None, accepted=False)
    assert all(awake[:5])
    assert sum(awake[60:]) < 0.03 * len(awake)
    assert any(awake[-200:])


@pytest.mark.parametrize("survival", [0.3, 0.6, 0.9])
def test_an_estimate_that_is_right_is_never_doubted(survival):
    """20,000 rounds, each of which would end it with a chance of e^-15: a false alarm in 160 runs at most."""
    resting, random = Resting(), np.random.default_rng(0)
    for _ in range(20_000):
        resting.observe(survival, accepted=bool(random.random() < survival))
        assert resting.awake


def test_the_first_draft_accepted_on_trial_ends_the_rests():
    resting = Resting()
    while resting.awake:
        resting.observe(0.6, accepted=False)
    while not resting.awake:
        resting.observe(None, accepted=False)
    resting.observe(0.6, accepted=True)
    for _ in range(5):
        resting.observe(0.6, accepted=False)
        assert resting.awake


def test_rounds_without_draft_prove_nothing():
    resting = Resting()
    for _ in range(1000):
        resting.observe(None, accepted=False)
    assert resting.awake


def test_a_resting_policy_has_no_lookahead_and_its_cap_comes_back():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5, max_lookahead=5)
    caps = []
    for _ in range(100):
        caps.append(policy.max_lookahead)
        drafted = policy.max_lookahead > 0 and policy.wants_another(step(0.8))
        policy.observe(finished(drafted, 0))
    assert set(caps) == {0, 5}
    assert caps[:5] == [5] * 5


def test_tokens_drafted_without_an_estimate_are_no_evidence():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5)
    for _ in range(200):
        policy.observe(finished(1, 0))
    assert policy.max_lookahead == StubPredictor.max_lookahead


def test_who_never_wants_a_draft_is_asked_in_one_round_of_five():
    policy, asked = LearnedPolicy(StubPredictor(), threshold=0.5), []
    for _ in range(200):
        asked.append(policy.max_lookahead > 0)
        assert not (asked[-1] and policy.wants_another(step(0.2, position=0)))
        policy.observe(finished(0, 0))
    assert all(asked[:16])
    assert sum(asked[100:]) == 20


def test_one_draft_wanted_ends_that():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5)
    for number in range(200):
        assert policy.max_lookahead > 0
        wanted = policy.wants_another(step(0.8 if number % 16 == 15 else 0.2, position=0))
        policy.observe(finished(wanted, wanted))


def test_replay_rests_as_the_policy_does():
    never = build(make_traces(*["r" * 60] * 8, tail=15))
    result = replay_policy(never, LearnedPolicy(Sure(), threshold=0.5))
    assert 0 < result.mean_lookahead < 2
    assert (result.num_drafted[-100:] == 0).mean() > 0.9
