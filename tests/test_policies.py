"""Every rule as it is defined, step by step; the factory; tuning."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile, price_for
from dsl_train.base.records import DraftPrimitives, DraftStep, DslError, Round
from dsl_train.features import entries
from dsl_train.policies import register, registry, signals
from dsl_train.policies.adaptive import AdaEdlPolicy, ConfidenceRocPolicy, DraftVerifyPolicy, roc_threshold
from dsl_train.policies.registry import POLICIES, make_policy, needs_of
from dsl_train.policies.rules import HeuristicPolicy
from dsl_train.policies.signals import SignalPolicy
from dsl_train.policies.specdec import AcceptanceModel
from dsl_train.replay import tuning
from dsl_train.replay.acceptance import acceptance_products, fit_acceptance
from dsl_train.replay.rounds import replay_answers, replay_policy, replay_static
from dsl_train.replay.tuning import AS_PUBLISHED, fit_logistic, tune_baselines, tune_static
from dsl_train.traces.decisions import build


def step(position: int, prob: float = 0.5, entropy: float = 1.0, top_prob: float | None = None) -> DraftStep:
    top = math.log(prob if top_prob is None else top_prob)
    draft = DraftPrimitives(3, entropy, (top, -3.0, -4.0, -5.0, -6.0), math.log(prob)) if position else None
    return DraftStep(position, 10, draft)


def finished(num_drafted: int, num_accepted: int) -> Round:
    return Round(10, tuple(range(num_drafted)), num_accepted, tuple(range(num_accepted + 1)))


def num_drafted(policy, probs) -> int:
    """Tokens the policy drafts if their probabilities are these."""
    position = 0
    while position < len(probs) and policy.wants_another(step(position, probs[position - 1])):
        position += 1
    return position


def test_static_drafts_its_number_and_zero_drafts_nothing():
    assert num_drafted(make_policy("static:4"), [0.1] * 9) == 4
    assert num_drafted(make_policy("static:0"), [0.9] * 9) == 0


def test_the_heuristic_adds_two_after_full_acceptance_and_else_takes_one():
    policy, seen = HeuristicPolicy(), []
    for accepted_share in (1, 0, 0, 1, 0.5):
        lookahead = num_drafted(policy, [0.5] * 50)
        seen.append(lookahead)
        policy.observe(finished(lookahead, int(lookahead * accepted_share)))
    assert [*seen, policy.lookahead] == [5, 7, 6, 5, 7, 6]


def test_the_heuristic_never_falls_under_one_and_is_kept_across_texts():
    policy = HeuristicPolicy(lookahead=2)
    for _ in range(5):
        policy.observe(finished(2, 0))
    policy.reset()
    assert num_drafted(policy, [0.5] * 9) == 1


def test_confidence_stops_behind_the_first_token_under_its_threshold():
    policy = make_policy("confidence")
    assert num_drafted(policy, [0.9, 0.41, 0.39, 0.9, 0.9]) == 3  # the doubtful third is verified, too
    assert policy.max_lookahead == 20


def test_kangaroo_reads_the_largest_probability_and_confidence_the_token_s():
    doubtful_token = step(1, prob=0.1, top_prob=0.7)
    assert make_policy("kangaroo").wants_another(doubtful_token)
    assert not make_policy("confidence").wants_another(doubtful_token)
    assert not make_policy("kangaroo").wants_another(step(1, prob=0.59))


def test_svip_stops_where_the_root_of_scaled_entropy_is_over_its_threshold():
    policy = make_policy("svip")
    assert policy.max_lookahead == 40
    assert policy.wants_another(step(1, entropy=0.59))  # sqrt(0.15 * 0.6) = 0.3
    assert not policy.wants_another(step(1, entropy=0.61))


def test_cumulative_multiplies_within_a_block_and_starts_anew_with_the_next():
    policy = make_policy("cumulative:0.3")
    assert num_drafted(policy, [0.7, 0.7, 0.7, 0.7, 0.7]) == 4  # 0.7 ** 3 = 0.343, 0.7 ** 4 = 0.24
    assert num_drafted(policy, [0.9, 0.9, 0.3, 0.9]) == 3


def test_logistic_weighs_one_feature_and_an_intercept_per_position():
    policy = make_policy("logistic:0.5,1,-1,0,-2")
    assert policy.max_lookahead == 3
    assert not policy.wants_another(step(0))
    assert policy.wants_another(step(1, 0.6))
    assert not policy.wants_another(step(1, 0.4))
    assert policy.wants_another(step(2, 0.9))
    assert not policy.wants_another(step(2, 0.8))


def test_the_roc_threshold_is_that_of_scikit_learn_with_the_costs_of_transformers():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(50):
        probs = np.round(rng.random(rng.integers(6, 40)), 2)
        matches = rng.random(len(probs)) < probs
        matches[:2] = [True, False]
        false_positives, true_positives, thresholds = metrics.roc_curve(matches, probs)
        expected = thresholds[np.argmin(false_positives + 3 * (1 - true_positives))]
        assert roc_threshold(probs.tolist(), matches.tolist()) == expected


def test_confidence_roc_moves_its_threshold_to_where_matches_part_from_misses():
    policy = ConfidenceRocPolicy()
    for _ in range(2):
        assert num_drafted(policy, [0.9, 0.8, 0.45, 0.3, 0.9]) == 4
        policy.observe(finished(4, 2))  # 0.9 and 0.8 matched, 0.45 did not, 0.3 was not judged
    assert policy.threshold == pytest.approx(0.8)
    assert num_drafted(policy, [0.9, 0.79, 0.9]) == 2
    policy.reset()
    assert policy.threshold == 0.4


def test_confidence_roc_waits_for_six_samples_of_both_kinds():
    policy = ConfidenceRocPolicy()
    for _ in range(4):
        num_drafted(policy, [0.9, 0.8, 0.3])
        policy.observe(finished(3, 3))
    assert policy.threshold == 0.4
    num_drafted(policy, [0.5, 0.3])
    policy.observe(finished(2, 0))
    assert policy.threshold == pytest.approx(0.8)  # 0.3 was accepted four times: the last of each block is its worst


@pytest.mark.parametrize("policy", [DraftVerifyPolicy(), AdaEdlPolicy()])
def test_adaptive_thresholds_creep_up_while_too_few_are_accepted_and_down_otherwise(policy):
    first = policy.threshold
    policy.observe(finished(4, 0))
    assert policy.threshold == pytest.approx(first + 0.001)  # 0.9 old + 0.1 (old + 0.01)
    for _ in range(10):
        policy.observe(finished(4, 4))
    assert policy.threshold < first
    at_rest = policy.threshold
    policy.observe(finished(policy.max_lookahead, policy.max_lookahead))
    assert policy.threshold == pytest.approx(at_rest)  # drafting at the cap: nothing to gain
    policy.observe(finished(0, 0))
    assert policy.threshold == pytest.approx(at_rest)
    policy.reset()
    assert policy.threshold == first


def test_draft_verify_and_adaedl_stop_under_their_thresholds():
    assert num_drafted(make_policy("draft-verify"), [0.9, 0.81, 0.79, 0.9]) == 3
    policy = make_policy("adaedl:0.5")
    assert policy.wants_another(step(1, entropy=1.24))  # 1 - sqrt(0.2 * 1.25) = 0.5
    assert not policy.wants_another(step(1, entropy=1.26))


def test_every_baseline_but_lookahead_zero_drafts_a_first_token():
    for name in (*AS_PUBLISHED, "static", "cumulative"):
        assert make_policy(name).wants_another(step(0)), name


def test_random_repeats_itself_with_its_seed():
    one, other, third = (make_policy(spec) for spec in ("random:0.5,7", "random:0.5,7", "random:0.5,8"))
    answers = [[policy.wants_another(step(0)) for _ in range(64)] for policy in (one, other, third)]
    assert answers[0] == answers[1] != answers[2]


def test_every_rule_of_the_factory_has_a_help_line_and_a_name():
    for name in POLICIES:
        if name not in ("learned", "logistic", "specdec++"):
            policy = make_policy(name)
            assert policy.name.startswith(name)
            assert policy.needs in ("position", "confidence", "primitives")
            assert policy.max_lookahead >= 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("heurisitc", r"unknown policy 'heurisitc'; did you mean 'heuristic'\? Choose one of learned, static"),
        ("static:four", r"'static:four': lookahead must be a whole number, not 'four'; write static:LOOKAHEAD"),
        ("static:-1", r"lookahead must be 0 or more, not -1"),
        ("static:1,2", r"has 2 arguments, static takes 1 at most"),
        ("confidence:high", r"threshold must be a number, not 'high'; write confidence:THRESHOLD,CAP"),
        ("logistic", r"'logistic' has 0 arguments but needs 3"),
        ("learned", r"'learned' has no predictor; train a predictor with dsl-train"),
        ("learned:3", r"the learned policy has no arguments"),
    ],
)
def test_a_policy_that_cannot_be_made_is_explained(spec, message):
    with pytest.raises(DslError, match=message):
        make_policy(spec)


def test_a_threshold_is_only_for_the_learned_policy():
    with pytest.raises(DslError, match=r"0\.3 is for the learned policy; write static:LOOKAHEAD instead"):
        make_policy("static", threshold=0.3)


def telling_decisions(num_texts: int = 20, length: int = 60):
    """Texts in which a draft probability of 0.9 is accepted mostly and one of 0.2 hardly ever."""
    rng = np.random.default_rng(5)
    texts, probs, row = [], {}, 0
    for _ in range(num_texts):
        sure = rng.random(length) < 0.7
        accepted = rng.random(length) < np.where(sure, 0.95, 0.1)
        for i in range(length):
            probs[row] = 0.9 if sure[i] else 0.2
            row += 1 if accepted[i] else 9
        texts.append("".join("a" if one else "r" for one in accepted))
    return build(make_traces(*texts, tail=8, probs=probs), max_lookahead=8)


EVERY_RULE = {
    "static", "confidence", "kangaroo", "svip", "cumulative", "logistic", "adaedl", "draft-verify", "specdec++"
}  # fmt: skip


def test_tuned_settings_reach_on_a_walk_the_rate_they_were_chosen_for(tmp_path):
    decisions = telling_decisions()
    prices = (0.05, 0.3, CostProfile(0.1, 1.0, 0.02, 0.05, primitives=0.02, target_steps=(1.0, 1.2, 1.22, 1.24)))
    for price, tuned in zip(prices, tune_baselines(decisions, prices, tmp_path / "acceptance.json"), strict=True):
        assert set(tuned) == EVERY_RULE
        for name, setting in tuned.items():
            assert setting.spec.startswith(name)
            walked = replay_policy(decisions, make_policy(setting.spec))
            paid = price_for(needs_of(name), price)
            assert walked.rate(paid) == pytest.approx(setting.rate, rel=1e-3), setting.spec


def test_the_tuned_static_lookahead_is_the_best_of_all():
    decisions = telling_decisions()
    costs = (0.05, 0.3, 3.0)
    for c, tuned in zip(costs, tune_static(decisions, costs), strict=True):
        rates = [replay_static(decisions, lookahead).rate(c) for lookahead in range(9)]
        assert tuned.rate == max(rates)
        assert tuned.spec == f"static:{int(np.argmax(rates))}"
    assert tuned.spec == "static:0"


def test_tuned_rules_that_see_the_telling_signal_beat_the_static_lookahead():
    (tuned,) = tune_baselines(telling_decisions(), [0.2])
    for name in ("confidence", "kangaroo", "logistic"):
        assert tuned[name].rate > tuned["static"].rate


def test_the_acceptance_model_knows_which_reached_drafts_are_accepted():
    decisions = telling_decisions()
    model = fit_acceptance(decisions)
    run = np.repeat(decisions.run, decisions.num_decisions)
    reached = (decisions.position >= 1) & (decisions.position <= run + 1)
    probs, accepted = model.probs(decisions.features[reached]), (decisions.position <= run)[reached]
    sure = decisions.features[reached, entries.FEATURE_NAMES.index("top_prob")] > 0.5
    assert probs[sure].mean() == pytest.approx(accepted[sure].mean(), abs=0.06)
    assert probs[~sure].mean() == pytest.approx(accepted[~sure].mean(), abs=0.06)


def test_acceptances_are_multiplied_within_each_start():
    decisions = telling_decisions(num_texts=2)
    model = fit_acceptance(decisions)
    probs, product = model.probs(decisions.features), acceptance_products(decisions, model)
    for start in (0, 5, 80):
        here = slice(*decisions.offsets[start : start + 2])
        expected = np.cumprod(np.append(1.0, probs[here][1:]))
        np.testing.assert_allclose(product[here], expected)


def test_an_acceptance_model_survives_its_file_and_a_foreign_one_is_refused(tmp_path):
    decisions, file = telling_decisions(num_texts=2), tmp_path / "model.json"
    model = fit_acceptance(decisions)
    model.save(file)
    np.testing.assert_array_equal(AcceptanceModel.load(file).probs(decisions.features), model.probs(decisions.features))
    file.write_text(file.read_text().replace(entries.fingerprint(), "0" * 16))
    with pytest.raises(DslError, match=r"fitted for features 0000.*; fit it again"):
        make_policy(f"specdec++:{file}")
    with pytest.raises(DslError, match="holds no acceptance model"):
        make_policy(f"specdec++:{tmp_path / 'none.json'}")


def test_the_logistic_fit_does_not_overshoot_where_the_draft_is_very_sure():
    rng = np.random.default_rng(0)
    texts = ["".join("a" if coin < 0.9 else "r" for coin in rng.random(80)) for _ in range(6)]
    sure = {row: (1 - 1e-6 if rng.random() < 0.7 else 0.01) for row in range(3000)}
    slope, intercepts = fit_logistic(build(make_traces(*texts, tail=8, probs=sure), max_lookahead=8))
    assert abs(slope) < 1.0
    assert np.abs(intercepts).max() < 20.0


@pytest.mark.parametrize("survives", [True, False])
def test_the_logistic_fit_of_drafts_that_all_end_alike_is_sure_of_it(survives):
    decisions = telling_decisions()
    slope, intercepts = fit_logistic(replace(decisions, survival=np.full(len(decisions), survives)))
    assert slope == 0.0
    assert set(intercepts > 0) == {survives}


def test_the_logistic_fit_is_calibrated_at_every_position():
    decisions = telling_decisions()
    slope, intercepts = fit_logistic(decisions)
    policy = make_policy("logistic:0," + ",".join(map(str, (slope, *intercepts))))
    assert slope > 0
    assert policy.max_lookahead == decisions.max_lookahead
    probs = np.clip(decisions.features[:, entries.FEATURE_NAMES.index("top_prob")].astype(float), 1e-6, 1 - 1e-6)
    signal = np.where(decisions.position == 0, 0.0, np.log(probs / (1 - probs)))
    predicted = 1 / (1 + np.exp(-(slope * signal + intercepts[decisions.position])))
    for position in range(4):
        at = decisions.position == position
        assert predicted[at].mean() == pytest.approx(decisions.survival[at].mean(), abs=1e-3)


def test_a_class_is_a_policy_by_one_decorator(monkeypatch):
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))
    monkeypatch.setattr(register, "RULES", dict(register.RULES))
    for module in (registry, tuning):
        monkeypatch.setattr(module, "RULES", register.RULES)

    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")
    diff = guide.partition("## Add a policy")[2].partition("```diff\n")[2].partition("```")[0]
    added = [line[1:] for line in diff.splitlines()]
    source = "\n".join(added)
    assert source.startswith('@register("margin"')
    exec(source, dict(vars(signals)))
    assert make_policy("margin:0.3").wants_another(step(1, top_prob=0.9))
    assert not make_policy("margin:0.3").wants_another(step(1, top_prob=math.exp(-3.1)))
    (tuned,) = tune_baselines(telling_decisions(), [0.2])
    assert tuned["margin"].spec.startswith("margin:")


def test_every_signal_is_on_traces_what_it_is_while_drafting():
    decisions = telling_decisions(num_texts=3)
    for name, rule in register.RULES.items():
        if isinstance(rule.policy, type) and issubclass(rule.policy, SignalPolicy):
            spec = f"{name}:{make_policy(name).threshold},8"
            policy = make_policy(spec)
            quick = policy.passes(policy.signal(tuning._Drafted.of(decisions))) | (decisions.position == 0)
            expected = replay_policy(decisions, make_policy(spec)).num_drafted
            np.testing.assert_array_equal(
                replay_answers(decisions, quick, policy.max_lookahead).num_drafted, expected, err_msg=name
            )


def test_a_file_with_commas_in_its_path_is_one_argument(tmp_path):
    file = tmp_path / "a,b" / "model,0.9"
    file.parent.mkdir()
    fit_acceptance(telling_decisions(num_texts=2)).save(file)
    assert make_policy(f"specdec++:{file}").name == "specdec++:0.7,20"
    assert make_policy(f"specdec++:{file},0.5,4").name == "specdec++:0.5,4"


@pytest.mark.parametrize("spec", ["cumulative:0.3", "specdec++"])
def test_products_begin_anew_where_no_decision_comes_before_the_first_draft(spec, tmp_path):
    """As with transformers, which drafts a first token without asking."""
    if spec == "specdec++":
        file = tmp_path / "model"
        fit_acceptance(telling_decisions(num_texts=2)).save(file)
        spec = f"specdec++:{file}"
    policy = make_policy(spec)
    vector = np.zeros(len(entries.FEATURE_NAMES), np.float32)
    blocks = []
    for _ in range(3):
        position = 1
        while position < 20 and policy.wants_another(step(position, 0.7)._replace(read_features=lambda: vector)):
            position += 1
        blocks.append(position)
    assert blocks[0] == blocks[1] == blocks[2] < 20
