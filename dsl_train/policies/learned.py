"""The trained stop rule: another token while its survival is worth its price."""

import math

from dsl_train.base.cost import StopRule
from dsl_train.base.guess import AskingPlan, GuessTable, nearest
from dsl_train.base.policy import Needs
from dsl_train.base.records import DraftStep, Round
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.alertness import Alertness
from dsl_train.policies.online import OnlineShift
from dsl_train.predictor.runtime import Predictor

_TEMPERATURE = FEATURE_NAMES.index("temperature")
#: Rounds that the share of accepted first drafts is averaged over, and those that its beginning counts as.
_ROUNDS, _BEGINNING = 64, 8


class LearnedPolicy:
    """Another iff survival > threshold; `CostProfile.stop_rule(predictor.threshold)` gives it for measured costs, one
    for each position. With `adapt` they follow what was accepted, from text to text.

    Where a question costs more than its answer is likely to be worth, the answer is guessed (`guess.py`), before the
    first draft only while first drafts are accepted. While a draft proves useless the policy rests: it wants no token,
    so the engine does not even ask.
    """

    needs: Needs = "features"  # of the class; of one that never drafts, "position"

    def __init__(
        self,
        predictor: Predictor,
        threshold: float | StopRule,
        max_lookahead: int | None = None,
        adapt: bool = False,
    ) -> None:
        self.name = "learned:adapt" if adapt else "learned"
        self.predictor = predictor
        self.given_rule = self.rule = StopRule.of(threshold)
        self._cap = predictor.max_lookahead if max_lookahead is None else max_lookahead
        if self.rule.first >= 1.0:  # no survival is above it: spare the loop the question and its features
            self._cap, self.needs = 0, "position"
        self.last_survival: float | None = None
        """Of the latest decision, for display: an answer, or what was taken for it."""
        self._alertness = Alertness()
        self._online = OnlineShift() if adapt else None
        self._wanted: list[tuple[float, bool]] = []  # survivals that wanted this round's tokens; whether guessed
        self._tables = predictor.guesses if self.rule.question > 0.0 else ()
        self._plans: dict[GuessTable, AskingPlan] = {}  # made once, for all texts
        self._plan: AskingPlan | None = None  # of this text, once its temperature is known
        self._guess = 1.0
        self._accepted, self._num_rounds = self.rule.first, _BEGINNING  # share of first drafts

    @property
    def max_lookahead(self) -> int:
        """Of the coming round."""
        return self._cap if self._alertness.awake else 0

    @max_lookahead.setter
    def max_lookahead(self, cap: int) -> None:
        self._cap = cap

    def wants_another(self, step: DraftStep) -> bool:
        guessed = self._guessed(step)
        self.last_survival = survival = self._ask(step) if guessed is None else guessed
        wanted = survival > self.rule.at(step.position)
        if wanted:
            self._wanted.append((survival, guessed is not None))
        elif step.position == 0:
            self._alertness.refuse()
        return wanted

    def observe(self, finished: Round) -> None:
        first = self._wanted[0][0] if len(self._wanted) == len(finished.drafted) > 0 else None
        self._alertness.observe(first, finished.num_accepted > 0)
        if self._online:
            answers = [None if was_guessed else survival for survival, was_guessed in self._wanted]
            self._online.observe(answers, finished.num_accepted)
            self.rule = self._online.rule(self.given_rule)
        if finished.drafted:
            self._num_rounds = min(_ROUNDS, self._num_rounds + 1)
            self._accepted += ((finished.num_accepted > 0) - self._accepted) / self._num_rounds
        self._begin_round()

    def reset(self) -> None:
        self.last_survival = self._plan = None
        self._begin_round()

    def _begin_round(self) -> None:
        self._wanted, self._guess = [], 1.0

    def _guessed(self, step: DraftStep) -> float | None:
        """What to take for the answer; None if it is worth asking for."""
        if self._plan is None:
            return None
        if step.draft is None:
            lacking = self.rule.first - self._accepted  # tokens that deciding otherwise would save, if all were refused
            return self._plan.first if lacking < self.rule.question else None
        self._guess *= math.exp(step.draft.token_log_prob)
        return self._plan.expected(step.position, self._guess)

    def _ask(self, step: DraftStep) -> float:
        features = step.features
        if self._tables and self._plan is None:
            table = nearest(self._tables, float(features[_TEMPERATURE]))
            if table not in self._plans:
                self._plans[table] = AskingPlan(table, self.given_rule)
            self._plan = self._plans[table]
        self._guess = survival = self.predictor.survival(features)
        return survival
