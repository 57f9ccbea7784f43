"""What perfect knowledge of the acceptance probabilities is worth: by hand, when greedy, and under sampling."""

import numpy as np
import pytest
from tiny_traces import make_traces

from dsl_train.bench.ceiling import known_survival, replay_ceiling
from dsl_train.replay.rounds import replay_oracle, replay_survival, solve_thresholds
from dsl_train.traces.decisions import build
from dsl_train.traces.store import Traces


def sampled_decisions(num_texts=40, length=100, tail=15, seed=0):
    """Each token is accepted with a probability of its own, which is recorded; the drafted token does not matter."""
    rng = np.random.default_rng(seed)
    texts, probs = [], []
    for _ in range(num_texts):
        prob = rng.beta(2.0, 0.7, length)
        texts.append("".join("a" if coin < p else "r" for coin, p in zip(rng.random(length), prob, strict=True)))
        probs.append(prob)
    traces = make_traces(*texts, tail=tail)
    on_text = traces.rows["depth"] == 0
    for column in ("accept_prob", "accept_ratio"):
        traces.rows[column][on_text] = np.concatenate(probs)
    return build(traces, max_lookahead=8)


def test_the_known_survival_of_a_small_text_is_that_worked_out_by_hand():
    traces = make_traces("aarra", tail=1)
    on_text = traces.rows["depth"] == 0
    traces.rows["accept_ratio"][on_text] = [0.9, 0.8, 0.6, 0.5, 0.7]
    traces.rows["accept_prob"][on_text] = [0.9, 0.75, 0.65, 0.55, 0.7]
    decisions = build(traces, max_lookahead=4)
    mean = np.mean([0.9, 0.75, 0.65, 0.55, 0.7])  # behind a rejection: all rows have one top probability, so one mean
    first = slice(*decisions.offsets[:2])  # from the second token on: accepted, rejected, tail
    assert known_survival(decisions)[first] == pytest.approx([0.75, 0.8 * 0.65, 0.8 * 0.6 * mean])
    assert known_survival(decisions, foresees=True)[first] == pytest.approx([0.8, 0.8 * 0.6, 0.8 * 0.6 * mean])


def test_when_greedy_the_ceiling_is_the_oracle():
    rng = np.random.default_rng(1)
    texts = ["".join("a" if coin < 0.8 else "r" for coin in rng.random(50)) for _ in range(5)]
    decisions = build(make_traces(*texts, tail=15), max_lookahead=16)
    oracle = replay_oracle(decisions)
    for name in ("ceiling", "clairvoyant"):
        ceiling = replay_ceiling(decisions, name, 0.2)
        np.testing.assert_array_equal(ceiling.num_drafted, oracle.num_drafted)


def test_the_known_survival_is_that_of_the_coins():
    decisions = sampled_decisions()
    survival, first = known_survival(decisions), decisions.position == 0
    assert survival.mean() == pytest.approx(decisions.survival.mean(), abs=0.02)
    for low in (0.1, 0.4, 0.7):
        near = first & (survival > low) & (survival < low + 0.2)
        assert decisions.survival[near].mean() == pytest.approx(survival[near].mean(), abs=0.06)


@pytest.mark.parametrize("c", [0.05, 0.2, 0.4])
def test_the_ceiling_lies_above_who_knows_less_and_below_who_knows_more(c):
    decisions = sampled_decisions()
    known = known_survival(decisions)
    blurred = np.clip(known + np.random.default_rng(2).normal(0, 0.15, len(known)), 0, 1)
    less = replay_survival(decisions, blurred, solve_thresholds(decisions, blurred, [c])[0]).rate(c)
    ceiling = replay_ceiling(decisions, "ceiling", c).rate(c)
    more = replay_ceiling(decisions, "clairvoyant", c).rate(c)
    assert less < ceiling <= more * 1.001 < replay_oracle(decisions).rate(c)


def test_selected_texts_keep_their_rows():
    decisions = sampled_decisions(num_texts=4)
    keep = np.array([False, True, False, True])
    np.testing.assert_allclose(
        known_survival(decisions)[keep[decisions.sequence]], known_survival(decisions.select(keep))
    )


def test_tails_are_as_likely_accepted_as_text_of_the_same_top_probability():
    traces = make_traces("aar" * 4, tail=1, probs={3: 0.3})
    assert isinstance(traces, Traces)
    on_text = traces.rows["depth"] == 0
    top = np.exp(traces.rows["log_prob_1"])
    traces.rows["accept_prob"][on_text] = np.where(top[on_text] < 0.4, 0.2, 0.9)
    traces.rows["accept_ratio"][on_text] = 1.0
    traces.rows["log_prob_1"][~on_text] = np.log(0.3)
    decisions = build(traces, max_lookahead=4)
    behind = decisions.position > np.repeat(decisions.run, decisions.num_decisions)
    one_behind = behind & (decisions.position == np.repeat(decisions.run, decisions.num_decisions) + 1)
    survival = known_survival(decisions)[one_behind]
    assert set(np.round(survival, 2)) <= {0.2, 0.9, round(float(traces.rows["accept_prob"][on_text].mean()), 2)}
