"""The learned policy replayed by the quickest way that is exact."""

import numpy as np

from dsl_train.base.cost import StopRule
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.traces.decisions import Decisions


def replay_learned(decisions: Decisions, predictor: Predictor, survival: np.ndarray, rule: StopRule) -> ReplayResult:
    """`survival` [N] is the predictor's. Where it is always asked, all starts at once; where it may be guessed, which
    goes by what was accepted before, text by text."""
    if not (rule.question and predictor.guesses):
        return replay.replay_survival(decisions, survival, rule)
    return replay.replay_policy(decisions, LearnedPolicy(predictor, rule, decisions.max_lookahead))
