"""dsl-bench --mode replay: who pays what, how far the learned policy goes, how many draws were averaged."""

import numpy as np
import pytest
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.bench import statistics
from dsl_train.bench.replay import coupling_draws, price_of, tabulate
from dsl_train.bench.statistics import Rates
from dsl_train.bench.tuned import replay_tuned
from dsl_train.replay.rounds import ReplayResult, replay_oracle_plus, replay_static
from dsl_train.traces.decisions import build

PROFILE = CostProfile(
    0.1,
    1.0,
    0.02,
    predictor=0.05,
    confidence=0.01,
    primitives=0.02,
    predictor_round=0.01,
    target_steps=(1.0, 1.3, 1.32, 1.34),
)


def replayed(num_drafted: list[int], ids: tuple[str, ...] = ("p", "q")) -> ReplayResult:
    """Two texts of eight tokens, as many rounds each as are given in all."""
    drafted = np.array(num_drafted)
    rounds = np.repeat([0, 1], len(drafted) // 2)
    return ReplayResult(rounds, rounds, drafted, drafted, drafted < 0, np.array([8, 8]), ids)


def test_every_rule_pays_for_what_it_looks_at_and_a_bound_for_nothing():
    assert price_of("learned", PROFILE) == PROFILE
    assert price_of("specdec++:file,0.7,20", PROFILE) == PROFILE
    assert price_of("static:4", PROFILE) == PROFILE.without_predictor() != PROFILE
    assert price_of("oracle+", PROFILE) == price_of("ceiling", PROFILE) == PROFILE.without_predictor()
    assert price_of("confidence:0.4,20", PROFILE).predictor == PROFILE.confidence
    assert price_of("svip", PROFILE).predictor == PROFILE.primitives
    assert price_of("static:4", 0.1) == price_of("learned", 0.1) == 0.1


def test_a_measured_price_is_a_column_like_any_other():
    static, learned = replayed([3, 3, 3, 3]), replayed([2, 4, 3, 3])
    table = tabulate({"static:3": [static] * 2, "learned": [learned] * 2}, [0.1, PROFILE])
    assert table.costs == (0.1, PROFILE.c_eff)
    plain = PROFILE.without_predictor()
    assert table.rows[0].rates[1].estimate == pytest.approx(16 / (4 * plain.round_cost(3)))
    own = sum(PROFILE.round_cost(k) for k in (2, 4, 3, 3))
    assert table.rows[1].rates[1].estimate == pytest.approx(16 / own)


def test_the_gap_is_that_between_the_best_static_lookahead_and_the_bound():
    results = {"static:6": [replayed([6] * 4)], "learned": [replayed([4] * 4)], "oracle+": [replayed([2] * 4)]}
    table = tabulate(results, [0.25], num_draws=3)
    (gap,) = table.gaps
    static, learned, bound = (16 / (4 * (1 + 0.25 * k)) for k in (6, 4, 2))
    assert (gap.policy, gap.bound) == ("learned", "oracle+")
    assert gap.shares[0].estimate == pytest.approx((learned - static) / (bound - static))
    assert table.coupling_draws == 3


def test_without_a_static_lookahead_no_gap_is_told():
    assert tabulate({"learned": [replayed([4] * 4)], "oracle+": [replayed([2] * 4)]}, [0.25]).gaps == ()


def test_a_share_is_paired_by_prompt_and_zero_where_there_is_no_way_to_go():
    tokens = np.full(4, 10.0)
    base, bound = Rates(tokens, np.array([4.0, 8.0, 2.0, 5.0])), Rates(tokens, np.array([2.0, 4.0, 1.0, 2.5]))
    half = Rates(tokens, 1 / (1.5 / base.cost))  # half of the way, prompt by prompt
    counts = statistics.draws(4)
    share = statistics.share(half, base, bound, counts)
    np.testing.assert_allclose([share.estimate, share.lower, share.upper], 0.5)
    assert statistics.share(half, base, base, counts).estimate == 0.0


def test_texts_that_were_coupled_several_times_are_counted():
    once = build(make_traces("aara", "aaar"))
    assert coupling_draws(once) == 1  # two prompts
    twice = make_traces("aara", "arra")
    for text in twice.sequences:
        object.__setattr__(text, "prompt_id", "one")
    assert coupling_draws(build(twice)) == 2


def test_the_bounds_of_a_replay_are_priced_without_a_predictor():
    decisions = build(make_traces("aaarraaaar" * 3, tail=15))
    results = {"static:2": [replay_static(decisions, 2)], "oracle+": [replay_oracle_plus(decisions)]}
    table = tabulate(results, [PROFILE])
    bound = results["oracle+"][0].rate(PROFILE.without_predictor())
    assert table.rows[1].rates[0].estimate == pytest.approx(bound)


def test_with_texts_to_tune_on_every_rule_is_tuned_there_and_the_table_names_what_was_chosen():
    texts = ("aaarraaaar" * 3, "arraaaaara" * 3, "raaaraaaar" * 3)
    judged, tuning = build(make_traces(*texts, tail=15)), build(make_traces(*texts, tail=15))
    for text in tuning.sequences:
        object.__setattr__(text, "prompt_id", f"other-{text.prompt_id}")
    tuned = replay_tuned(tuning, judged, [0.05, 0.3])
    assert {"static:tuned", "confidence:tuned", "specdec++:tuned", "logistic:tuned"} <= set(tuned)
    for rule in tuned.values():
        assert not any("/" in spec for spec in rule.specs)  # model files are temporary
    everything = {"static:1": [replay_static(judged, 1)] * 2}
    everything |= {name: list(rule.results) for name, rule in tuned.items()}
    table = tabulate(everything, [0.05, 0.3], chosen={name: rule.specs for name, rule in tuned.items()})
    assert table.best_static == tuned["static:tuned"].specs
    for i, price in enumerate((0.05, 0.3)):
        best = max(range(17), key=lambda lookahead: replay_static(judged, lookahead).rate(price))
        assert table.best_static[i] == f"static:{best}"


def test_prompts_on_both_sides_are_refused():
    decisions = build(make_traces("aaar", "araa"))
    with pytest.raises(DslError, match=r"2 prompts are in --traces and in --tune_on \(prompt-0 first\)"):
        replay_tuned(decisions, decisions, [0.1])
