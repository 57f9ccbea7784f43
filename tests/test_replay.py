"""Replay of hand-written traces: exact rounds, exact prices, the threshold rule against brute force."""

import numpy as np
import pytest
from tiny_traces import make_traces

from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, Round
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.registry import make_policy
from dsl_train.replay.rounds import (
    replay_answers,
    replay_oracle,
    replay_oracle_plus,
    replay_policy,
    replay_static,
    replay_survival,
    solve_thresholds,
)
from dsl_train.traces.decisions import build


def rounds_of(result):
    """(text, start, drafted, accepted) of every round."""
    columns = (result.sequence, result.start, result.num_drafted, result.num_accepted)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def random_decisions(num_texts=12, length=60, tail=20, seed=0):
    """Texts whose acceptance comes in stretches."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(num_texts):
        easy = np.repeat(rng.random(length // 6) < 0.5, 6)
        texts.append("".join("a" if rng.random() < (0.95 if e else 0.4) else "r" for e in easy))
    return build(make_traces(*texts, tail=tail), max_lookahead=8)


def test_static_rounds_are_those_counted_by_hand():
    decisions = build(make_traces("aaaraaaa"))  # indices 3 .. 10, first round at 4
    result = replay_static(decisions, 3)
    assert rounds_of(result) == [(0, 4, 3, 2), (0, 7, 3, 3)]
    assert result.num_tokens == 7
    assert result.rate(0.1) == pytest.approx(7 / (2 + 0.6))
    assert result.mean_acceptance_length == 3.5
    assert result.mean_lookahead == 3.0
    assert result.draft_acceptance_rate == pytest.approx(5 / 6)


def test_a_round_near_the_end_drafts_no_more_than_the_text_has_room_for():
    decisions = build(make_traces("aaaa", "aaaE"))
    assert rounds_of(replay_static(decisions, 8)) == [(0, 4, 2, 2), (1, 4, 3, 3)]


def test_drafting_nothing_is_plain_decoding():
    decisions = build(make_traces("aaraa", "raE"))
    for result in (
        replay_static(decisions, 0),
        replay_survival(decisions, np.ones(len(decisions)), threshold=1.0),
        replay_policy(decisions, make_policy("static:0")),
    ):
        assert result.rounds_by_sequence.tolist() == result.tokens.tolist() == [4, 2]
        assert result.rate(0.3) == 1.0


def test_the_oracles_stop_before_and_behind_the_rejected_draft():
    decisions = build(make_traces("aaarraa"))
    assert rounds_of(replay_oracle(decisions)) == [(0, 4, 2, 2), (0, 7, 0, 0), (0, 8, 1, 1)]
    assert rounds_of(replay_oracle_plus(decisions)) == [(0, 4, 3, 2), (0, 7, 1, 0), (0, 8, 1, 1)]


def test_oracles_on_independent_acceptance_follow_their_formulas():
    rng, alpha, c = np.random.default_rng(1), 0.7, 0.1
    texts = ["".join("a" if coin < alpha else "r" for coin in rng.random(2000)) for _ in range(20)]
    decisions = build(make_traces(*texts, tail=0), max_lookahead=64)
    assert replay_oracle(decisions).rate(c) == pytest.approx(1 / ((1 - alpha) + c * alpha), rel=0.02)
    assert replay_oracle_plus(decisions).rate(c) == pytest.approx(1 / ((1 - alpha) + c), rel=0.02)
    static = (1 - alpha**5) / ((1 - alpha) * (4 * c + 1))
    assert replay_static(decisions, 4).rate(c) == pytest.approx(static, rel=0.02)


class SignalPolicy(Policy):
    """The survival rule on one feature, asked live."""

    name = "signal"
    needs: Needs = "features"
    max_lookahead = 8

    def wants_another(self, step: DraftStep) -> bool:
        return bool(step.features[FEATURE_NAMES.index("top_prob")] < 0.5)


class PositionPolicy(Policy):
    name = "three"
    needs: Needs = "position"
    max_lookahead = 12

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.steps: list[DraftStep] = []
        self.num_resets = 0

    def wants_another(self, step: DraftStep) -> bool:
        self.steps.append(step)
        return step.position < 3

    def observe(self, finished: Round) -> None:
        self.rounds.append(finished)

    def reset(self) -> None:
        self.num_resets += 1


def test_walking_a_stateless_policy_gives_the_rounds_of_the_vectorised_replay():
    decisions = random_decisions()
    answers = decisions.features[:, FEATURE_NAMES.index("top_prob")] < 0.5
    walked, vectorised = replay_policy(decisions, SignalPolicy()), replay_answers(decisions, answers)
    assert rounds_of(walked) == rounds_of(vectorised)
    assert walked.exhausted.tolist() == vectorised.exhausted.tolist()
    assert rounds_of(replay_policy(decisions, make_policy("static:5"))) == rounds_of(replay_static(decisions, 5))


def test_a_walked_policy_is_told_the_rounds_of_the_text():
    policy = PositionPolicy()
    result = replay_policy(build(make_traces("aaaraaaa", "aa")), policy)
    assert policy.num_resets == 2
    assert policy.rounds == [
        Round(4, (11, 12, 100), 2, (11, 12, 13)),
        Round(7, (14, 15, 16), 3, (14, 15, 16, 17)),
        Round(4, (), 0, (11,)),
    ]
    assert result.rounds == (tuple(policy.rounds[:2]), tuple(policy.rounds[2:]))
    assert [(step.start, step.position) for step in policy.steps] == [(4, k) for k in range(4)] + [
        (7, k) for k in range(3)
    ]  # nobody asks once the text has room for the extra token only


def test_a_policy_that_outruns_the_tail_is_counted_and_warned_of():
    decisions = build(make_traces("a" + "r" * 9, tail=1), max_lookahead=8)
    result = replay_survival(decisions, np.ones(len(decisions)), threshold=0.5)
    assert result.num_drafted.tolist() == [3, 3, 3, 3, 3, 3, 2, 1, 0]  # rejected, tail, and one more without a record
    assert result.exhausted.tolist() == [True] * 5 + [False] * 4
    assert "55.6% of 9 rounds" in result.warning
    assert "--tail_length" in result.warning
    walked = replay_policy(decisions, make_policy("confidence:0,8"))
    assert rounds_of(walked) == rounds_of(result)
    assert walked.exhausted.sum() == 5
    assert walked.rounds[0][0].drafted == (100, 101, -1)


def test_a_rule_on_positions_never_runs_out_of_tail():
    decisions = build(make_traces("a" + "r" * 9, tail=1), max_lookahead=2)
    result = replay_policy(decisions, make_policy("static:6"))
    assert result.num_drafted.tolist() == [6, 6, 6, 5, 4, 3, 2, 1, 0]
    assert result.warning is None


def test_costs_by_text_add_up_to_the_rate():
    result = replay_static(random_decisions(), 4)
    assert result.num_tokens / result.cost_by_sequence(0.2).sum() == pytest.approx(result.rate(0.2))


@pytest.mark.parametrize("c", [0.02, 0.1, 0.3, 0.9])
def test_the_solved_threshold_is_as_good_as_brute_force_for_a_calibrated_survival(c):
    decisions = random_decisions(num_texts=60)
    rng = np.random.default_rng(3)
    runs = np.repeat(decisions.run, decisions.num_decisions)
    signal = np.minimum(runs - decisions.position, 3) + rng.normal(0, 1.5, len(decisions))
    bins = np.digitize(signal, np.quantile(signal, np.linspace(0, 1, 30)[1:-1]))
    shares = np.bincount(bins, decisions.survival) / np.bincount(bins)
    survival = shares[bins]  # calibrated by construction
    (threshold,) = solve_thresholds(decisions, survival, [c])
    brute = max(replay_survival(decisions, survival, t).rate(c) for t in np.linspace(0, 1, 101))
    assert replay_survival(decisions, survival, threshold).rate(c) >= 0.995 * brute


def test_a_survival_that_is_always_too_high_is_corrected_by_the_thresholds_nearby():
    decisions = random_decisions(num_texts=30)
    honest = np.where(decisions.survival, 0.8, 0.3)
    boasting = honest**0.25
    rates = [
        replay_survival(decisions, survival, solve_thresholds(decisions, survival, [0.3])[0]).rate(0.3)
        for survival in (honest, boasting)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=0.02)


def test_a_useless_draft_is_never_asked():
    decisions = build(make_traces("r" * 40, tail=8))
    thresholds = solve_thresholds(decisions, np.full(len(decisions), 0.02), [0.05, 0.1, 0.3])
    for threshold in thresholds:
        assert replay_survival(decisions, np.full(len(decisions), 0.02), threshold).rate(0.1) == 1.0
    liar = np.full(len(decisions), 0.999)
    assert replay_survival(decisions, liar, solve_thresholds(decisions, liar, [0.1])[0]).rate(0.1) == 1.0


def test_a_perfect_draft_is_asked_up_to_the_cap():
    decisions = build(make_traces("a" * 101), max_lookahead=9)
    survival = np.ones(len(decisions))
    (threshold,) = solve_thresholds(decisions, survival, [0.1])
    assert replay_survival(decisions, survival, threshold).rate(0.1) == pytest.approx(10 / 1.9)


def test_replaying_selected_texts_equals_replaying_them_alone():
    decisions = random_decisions(num_texts=5)
    keep = np.array([True, False, True, True, False])
    whole, part = replay_static(decisions, 4), replay_static(decisions.select(keep), 4)
    assert part.rounds_by_sequence.tolist() == whole.rounds_by_sequence[keep].tolist()
    assert part.drafted_by_sequence.tolist() == whole.drafted_by_sequence[keep].tolist()
