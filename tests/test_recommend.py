"""Settings for other engines: each engine's own way to stop, tuned on one set of texts and priced on another."""

import numpy as np
import pytest
from tiny_predictor import write_predictor
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile
from dsl_train.bench.recommend import recommend
from dsl_train.replay.rounds import replay_static
from dsl_train.traces.decisions import build


def texts(seed, num_texts=12, length=60):
    """A draft probability of 0.9 is accepted mostly and one of 0.2 hardly ever."""
    rng = np.random.default_rng(seed)
    found, probs, row = [], {}, 0
    for _ in range(num_texts):
        sure = rng.random(length) < 0.7
        accepted = rng.random(length) < np.where(sure, 0.95, 0.1)
        for i in range(length):
            probs[row] = 0.9 if sure[i] else 0.2
            row += 1 if accepted[i] else 16
        found.append("".join("a" if one else "r" for one in accepted))
    return build(make_traces(*found, tail=15, probs=probs), max_lookahead=16)


@pytest.fixture(scope="module")
def both():
    return texts(0), texts(1)


def by_engine(recommendations):
    return {recommendation.engine: recommendation for recommendation in recommendations}


def test_each_engine_gets_its_own_options_by_its_own_names(both):
    found = by_engine(recommend(*both, 0.1, None))
    assert {engine: set(one.settings) for engine, one in found.items()} == {
        "transformers": {"num_assistant_tokens", "assistant_confidence_threshold"},
        "vLLM": {"num_speculative_tokens"},
        "llama.cpp": {"--spec-draft-n-max", "--spec-draft-p-min"},
    }
    assert all(one.learned_gain is None for one in found.values())


def test_a_threshold_is_recommended_where_the_probability_tells_and_dropping_beats_keeping(both):
    found = by_engine(recommend(*both, 0.1, None))
    assert 0.2 < found["transformers"].settings["assistant_confidence_threshold"] <= 0.9
    assert 0.2 < found["llama.cpp"].settings["--spec-draft-p-min"] <= 0.9
    assert found["transformers"].speedup > found["vLLM"].speedup
    dear_verification = CostProfile(0.1, 1.0, 0.5, target_steps=(1.0, 1.5, 2.0, 2.5, 3.0))
    dear = by_engine(recommend(*both, dear_verification, None))
    assert dear["llama.cpp"].speedup > dear["transformers"].speedup  # the doubtful token is not verified


def test_the_static_lookahead_is_the_training_texts_best_at_the_test_texts_speed(both):
    train, test = both
    vllm = by_engine(recommend(train, test, 0.3, None))["vLLM"]
    lookahead = vllm.settings["num_speculative_tokens"]
    assert lookahead == max(range(17), key=lambda k: replay_static(train, k).rate(0.3))
    assert vllm.speedup == pytest.approx(replay_static(test, lookahead).rate(0.3))
    assert vllm.tokens_per_target_step == pytest.approx(replay_static(test, lookahead).mean_acceptance_length)


def test_llama_cpp_pays_for_the_token_it_drops():
    accepted = build(make_traces("a" * 12, tail=0, probs=dict.fromkeys(range(12), 0.07)), max_lookahead=16)
    rejected = build(make_traces("r" * 12, tail=15, probs=dict.fromkeys(range(16 * 12), 0.07)), max_lookahead=16)
    price = CostProfile(0.2, 1.0, 0.1, target_steps=(1.0, 1.1, 1.2))
    cpp = by_engine(recommend(rejected, accepted, price, None))["llama.cpp"]
    assert cpp.settings["--spec-draft-p-min"] > 0.07  # nothing is ever accepted in training: draft as little as it can
    rounds = 11  # 12 tokens but the first, one a round; each drafts and drops one token, the last has no room for it
    assert cpp.speedup == pytest.approx(11 / (rounds + 0.2 * (rounds - 1)))


def test_the_learned_policy_is_told_against_each_engine(both, tmp_path, pair_folders):
    from dsl_train.pair.loading import load_pair
    from dsl_train.predictor.runtime import Predictor

    predictor = Predictor.load(
        write_predictor(tmp_path, load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu"))
    )
    test = build(both[1].traces, predictor.max_lookahead)
    recommendations = recommend(test, test, 0.1, predictor)
    learned = {one.speedup * (1 + one.learned_gain) for one in recommendations}
    assert max(learned) == pytest.approx(min(learned))
