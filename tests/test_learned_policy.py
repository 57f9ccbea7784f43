"""The learned policy asks its predictor and compares."""

from pathlib import Path

import numpy as np

from dsl_train.api.serving import load_predictor
from dsl_train.base.records import DraftStep
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.learned import LearnedPolicy


class StubPredictor:
    """Survival is the first feature."""

    max_lookahead = 12

    def survival(self, vector: np.ndarray) -> float:
        return float(vector[0])


def step(survival: float, position: int = 1) -> DraftStep:
    vector = np.zeros(len(FEATURE_NAMES), dtype=np.float32)
    vector[0] = survival
    return DraftStep(position=position, start=4, draft=None, read_features=lambda: vector)


def test_another_is_wanted_only_where_survival_is_above_the_threshold():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5)
    assert policy.wants_another(step(0.75))
    assert not policy.wants_another(step(0.5))
    assert not policy.wants_another(step(0.25))


def test_the_last_survival_is_kept_for_display_and_forgotten_at_the_next_text():
    policy = LearnedPolicy(StubPredictor(), threshold=0.5)
    policy.wants_another(step(0.75))
    assert policy.last_survival == 0.75
    policy.reset()
    assert policy.last_survival is None


def test_the_cap_is_the_predictors_unless_given():
    assert LearnedPolicy(StubPredictor(), 0.5).max_lookahead == 12
    assert LearnedPolicy(StubPredictor(), 0.5, max_lookahead=3).max_lookahead == 3


def test_a_threshold_of_one_never_drafts_and_looks_at_nothing():
    policy = LearnedPolicy(StubPredictor(), threshold=1.0)
    assert not policy.wants_another(step(1.0))
    assert (policy.needs, policy.max_lookahead) == ("position", 0)


def test_the_shipped_predictor_answers_one_by_one_what_it_answers_at_once():
    predictor = load_predictor(Path(__file__).parent.parent / "checkpoints" / "reference" / "draft")
    vectors = np.random.default_rng(0).normal(scale=5.0, size=(64, len(FEATURE_NAMES))).astype(np.float32)
    found = [predictor.survival(vector) for vector in vectors]
    np.testing.assert_allclose(found, predictor.survival_batch(vectors), rtol=0, atol=2e-6)
