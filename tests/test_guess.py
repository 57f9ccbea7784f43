"""The predictor is asked where its answer may change something worth the price, and guessed elsewhere."""

import json
import math

import numpy as np
import pytest
from test_learned_policy import StubPredictor
from test_online import finished
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.guess import AskingPlan, GuessTable, nearest
from dsl_train.base.records import DraftPrimitives, DraftStep
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.replay.rounds import replay_policy
from dsl_train.traces.decisions import build
from dsl_train.train.guesses import fit_guesses

#: Guesses below 0.4 are answered 0.1 or 0.3, those up to 0.8 by 0.2 or 0.8, larger ones by 0.9; a first draft by 0.7.
TABLE = GuessTable(0.0, (0.4, 0.8), ((0.1, 0.3), (0.2, 0.8), (0.9, 0.9)), (0.7, 0.7))
RULE = StopRule((0.5,), question=0.05)


def test_a_question_is_worth_what_deciding_by_the_answer_gains():
    plan = AskingPlan(TABLE, RULE)
    assert plan.expected(1, 0.2) == pytest.approx(0.2)  # never above the threshold
    assert plan.expected(1, 0.95) == pytest.approx(0.9)  # never below it
    assert plan.expected(1, 0.6) is None  # 0.8 in one case of two: worth 0.15 tokens
    assert plan.first == pytest.approx(0.7)


def test_a_dear_question_is_not_asked_and_a_free_one_wherever_it_may_matter():
    assert AskingPlan(TABLE, StopRule((0.5,), question=0.16)).expected(1, 0.6) == pytest.approx(0.5)
    assert AskingPlan(TABLE, StopRule((0.2,), question=0.0)).expected(1, 0.2) is None
    assert AskingPlan(TABLE, StopRule((0.2,), question=0.06)).expected(1, 0.2) is not None


def test_each_position_is_asked_by_its_own_threshold():
    plan = AskingPlan(TABLE, StopRule((0.99, 0.5, 0.95), question=0.05))
    assert plan.expected(1, 0.6) is None
    assert plan.expected(2, 0.6) is plan.expected(9, 0.6) is not None


def test_the_nearest_temperature_answers_for_the_others():
    warm = GuessTable(1.0, TABLE.edges, TABLE.answers, TABLE.first)
    assert [nearest((TABLE, warm), temperature).temperature for temperature in (0.0, 0.3, 0.8)] == [0.0, 0.0, 1.0]


def test_a_table_survives_its_dictionary_and_a_damaged_one_is_refused():
    written = json.loads(json.dumps(TABLE.to_dict()))
    assert GuessTable.from_dict(written) == TABLE
    with pytest.raises(ValueError, match="do not part"):
        GuessTable.from_dict({**written, "edges": [0.4]})


class Predictor(StubPredictor):
    """Answers what it is told to, and counts."""

    guesses = (TABLE,)

    def __init__(self, answer: float) -> None:
        self.answer, self.num_asked = answer, 0

    def survival(self, vector: np.ndarray) -> float:
        self.num_asked += 1
        return self.answer


def step(position: int, prob: float = 1.0) -> DraftStep:
    draft = DraftPrimitives(3, math.nan, (-0.1, -2.0), math.log(prob)) if position else None
    return DraftStep(position, 10, draft, lambda: np.zeros(len(FEATURE_NAMES), np.float32))


def test_the_guess_follows_the_drafts_probabilities_from_the_last_answer_on():
    predictor = Predictor(0.95)
    policy = LearnedPolicy(predictor, RULE)
    assert policy.wants_another(step(0))  # asked: of this text nothing is known yet
    assert policy.wants_another(step(1))  # 0.95, no need
    assert policy.last_survival == pytest.approx(0.9)
    assert predictor.num_asked == 1
    assert policy.wants_another(step(2, prob=0.6))  # 0.57: asked
    assert predictor.num_asked == 2
    assert not policy.wants_another(step(3, prob=0.3))  # 0.285
    assert predictor.num_asked == 2


def test_before_the_first_draft_it_is_asked_until_first_drafts_are_accepted():
    predictor = Predictor(0.95)
    policy = LearnedPolicy(predictor, RULE)
    asked = []
    for accepted in (True, True, False, False, False, False, True):
        before = predictor.num_asked
        policy.wants_another(step(0))
        asked.append(predictor.num_asked - before)
        policy.observe(finished(1, int(accepted)))
    assert asked[:3] == [1, 0, 0]
    assert asked[-1] == 1


def test_without_a_price_it_is_always_asked():
    policy = LearnedPolicy(Predictor(0.95), 0.5)
    for position in range(4):
        policy.wants_another(step(position))
    assert policy.predictor.num_asked == 4


def test_only_answers_correct_the_thresholds_and_guesses_are_compared_with_those():
    policy = LearnedPolicy(Predictor(0.95), RULE, adapt=True)
    assert policy.wants_another(step(0))
    policy.observe(finished(1, 1))
    before = policy.rule
    for prob in (1.0, 0.6):  # behind 0.6 it asks, and is refuted
        for _ in range(100):
            policy.wants_another(step(0))
            policy.wants_another(step(1, prob))
            policy.observe(finished(2, 1))
        if prob == 1.0:
            assert policy.predictor.num_asked == 1
            assert policy.rule.another == pytest.approx(before.another, abs=0.05)
    assert policy.rule.another > before.another + 0.1
    assert policy.wants_another(step(1)) == (policy.rule.another < 0.9)
    assert policy.last_survival == pytest.approx(0.9)


def test_tables_are_fitted_for_each_temperature_from_what_was_answered():
    decisions = build(make_traces(*["aaaar" * 12] * 12, tail=15))
    survival = np.where(decisions.position == 0, 0.9, 0.5 / decisions.position.clip(1))
    (table,) = fit_guesses(decisions, survival, threshold=0.3)
    assert table.temperature == 0.0
    assert set(table.first) == {0.9}
    answers = [answer for of_bin in table.answers for answer in of_bin]
    assert (min(answers), max(answers)) == pytest.approx((0.5 / 15, 0.5), abs=1e-4)
    assert list(table.edges) == sorted(set(table.edges))


def test_replay_pays_for_the_questions_asked():
    decisions = build(make_traces(*["aaaar" * 12] * 4, tail=15))
    cost = CostProfile(0.1, 1.0, 0.1, predictor=0.05, predictor_round=0.04, question=0.03)
    always = replay_policy(decisions, LearnedPolicy(Predictor(0.95), 0.5))
    assert not always.unasked.any()
    guessed = replay_policy(decisions, LearnedPolicy(Predictor(0.95), RULE))
    assert guessed.unasked.any()
    saved = always.cost_by_sequence(cost).sum() - guessed.cost_by_sequence(cost).sum()
    assert guessed.num_drafted.tolist() == always.num_drafted.tolist()
    assert saved == pytest.approx(0.03 * guessed.unasked.sum())
