"""Calibration: every step gets a price, and a short context is measured as far as it goes."""

from dataclasses import replace

import pytest
from tiny_predictor import write_predictor
from transformers import LlamaConfig, LlamaForCausalLM

from dsl_train.api import calibration
from dsl_train.api.serving import choose_policy, costs_in_use, online_costs
from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.costs.online import OnlineCosts, TimedRound
from dsl_train.pair.loading import Pair, load_pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel


@pytest.fixture(scope="module")
def pair(pair_folders) -> Pair:
    return load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)])
def test_every_step_has_a_price_and_without_predictor_it_costs_nothing(pair, sampling):
    measured = calibration.measure(CachedModel(pair.target), CachedModel(pair.draft), None, sampling, turns=2)
    assert measured.draft_step > 0
    assert measured.target_step > 0
    assert measured.round_overhead > 0
    assert measured.predictor == measured.predictor_round == 0
    assert len(measured.target_steps) == 17
    assert list(measured.target_steps) == sorted(measured.target_steps)
    assert measured.target_steps[0] == pytest.approx(measured.target_step)
    assert {"draft", "target"} == set(measured.spread)
    assert all(low <= high for low, high in measured.spread.values())


@pytest.mark.parametrize("context", [4, 8, 16, 64, 128, 160])
def test_a_short_context_is_measured_as_far_as_it_goes(context):
    config = LlamaConfig(
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 32),
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1),
        max_position_embeddings=context,
    )
    model = LlamaForCausalLM(config).eval()
    measured = calibration.measure(CachedModel(model), CachedModel(model), turns=1)
    assert len(measured.target_steps) == 1 + max(1, context // 8 if context < 128 else 16)


def test_no_room_for_a_draft_is_said():
    config = LlamaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    config.max_position_embeddings = 2
    model = LlamaForCausalLM(config).eval()
    with pytest.raises(DslError, match="context of 2 tokens leaves no room"):
        calibration.measure(CachedModel(model), CachedModel(model), turns=1)


def test_a_measured_pair_can_go_on_generating(pair):
    target, draft = CachedModel(pair.target), CachedModel(pair.draft)
    calibration.measure(target, draft, turns=1)
    for model in (target, draft):
        model.reset()
        assert model.logits([5, 6, 7], keep=1).shape == (1, 64)


def test_who_looks_at_more_pays_the_difference():
    def known(draft: float, target: float) -> OnlineCosts:
        costs = OnlineCosts(CostProfile(1.0, 1.0), 3, prior_samples=0.0)
        for num_drafted in (0, 1, 2) * 3:
            costs.observe(TimedRound(num_drafted, num_drafted * draft or None, target + 0.1 * num_drafted, 0.25))
        return costs

    steps = {"position": known(0.25, 1.0), "confidence": known(0.3, 1.0), "primitives": known(0.35, 1.0)}
    cost = calibration._summarise(steps | {"features": known(0.5, 1.2)})
    assert cost.target_steps == pytest.approx((1.0, 1.1, 1.2))
    assert cost.draft_step == pytest.approx(0.25)
    assert (cost.confidence, cost.primitives, cost.predictor) == pytest.approx((0.05, 0.1, 0.25))
    assert cost.predictor_round == pytest.approx(0.2)
    assert calibration._summarise(steps).predictor == 0


@pytest.fixture
def predictor(pair, tmp_path) -> Predictor:
    return Predictor.load(write_predictor(tmp_path, pair))


def test_a_learned_policy_shows_the_costs_it_goes_by(pair, predictor):
    policy = choose_policy(pair, "learned", predictor)
    shown = costs_in_use(policy)
    assert shown["c"] == pytest.approx(shown["draft_step"] / shown["target_step"])
    assert shown["threshold"] == policy.rule.another
    assert len(shown["verification"]) == 17
    assert costs_in_use(choose_policy(pair, "static:4")) is None


def test_with_a_threshold_or_costs_given_nothing_is_timed(pair, predictor):
    costs = CostProfile.of_steps(0.2, [1.0, 1.1, 1.2])
    for policy in (
        choose_policy(pair, "learned", predictor, threshold=0.3),
        choose_policy(pair, "learned", predictor, costs=costs),
    ):
        rule = policy.rule
        for _ in range(200):
            policy.timed(2, 1e-3, 9.0, 9.1)
        assert policy.rule == rule
        assert costs_in_use(policy) is None
    assert policy.rule == costs.stop_rule(predictor.threshold)


def test_what_one_generation_learned_serves_the_next_of_the_same_models(pair, predictor):
    assert online_costs(pair, predictor) is online_costs(pair, predictor)
    assert online_costs(replace(pair, target=pair.draft), predictor) is not online_costs(pair, predictor)


def test_the_prior_is_what_was_recorded_with_the_predictor(predictor, tiny_target, pair):
    unseen = replace(pair, draft=LlamaForCausalLM(pair.draft.config))
    predictor.config["cost"] = CostProfile(0.3, 1.0).to_dict()
    assert online_costs(unseen, predictor).profile.c == pytest.approx(0.3)


def test_without_a_record_the_prior_is_the_ratio_of_bytes_read(predictor, pair):
    small = LlamaForCausalLM(pair.draft.config).bfloat16()
    costs = online_costs(replace(pair, target=LlamaForCausalLM(pair.draft.config).float(), draft=small), predictor)
    assert costs.profile.c == pytest.approx(0.5)


def test_a_damaged_record_is_refused(predictor, pair):
    predictor.config["cost"] = {"draft_step": []}
    with pytest.raises(DslError, match=r"config.json is damaged \(cost: .*copy it again"):
        online_costs(replace(pair, draft=LlamaForCausalLM(pair.draft.config)), predictor)
