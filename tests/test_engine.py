"""The loop against its slow twin, on tiny models of real architecture, in float32."""

import itertools
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dsl_train.base.policy import Policy
from dsl_train.base.records import AcceptanceStats, DslError, Round
from dsl_train.base.sampling import Sampling
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.runners.cached import CachedModel

VOCAB = 32


def tiny_model(seed, noise=0.0, context=256):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
        generator = torch.Generator().manual_seed(99)
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std().nan_to_num() * noise)
    return model


@pytest.fixture(scope="module")
def target():
    return CachedModel(tiny_model(0))


@pytest.fixture(scope="module")
def draft():
    return CachedModel(tiny_model(0, noise=0.15))


class Coin(Policy):
    """Wants another with a probability of its own, whatever the step says."""

    name, max_lookahead = "coin", 7

    def __init__(self, needs="position", probability=0.7, seed=0):
        self.needs, self.probability, self.rng, self.rounds = needs, probability, random.Random(seed), []

    def wants_another(self, step):
        if self.needs == "features" and self.rng.random() < 0.5:
            assert len(step.features) == len(FEATURE_NAMES)
        return self.rng.random() < self.probability

    def observe(self, finished):
        self.rounds.append(finished)

    def reset(self):
        self.rounds.clear()


class StopsOnValue(Coin):
    """Hostile: decides by the drafted token's identity."""

    def wants_another(self, step):
        return step.draft is None or step.draft.token_id % 2 == 0


@pytest.mark.parametrize("needs", ["position", "confidence", "primitives", "features"])
@pytest.mark.parametrize("prompt", [[5], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_greedy_output_equals_the_targets_for_a_random_policy(target, draft, needs, prompt):
    alone = autoregressive(target, prompt, 120, eos_token_ids=[0])
    for seed in range(4):
        result = SpeculativeEngine(target, draft, Coin(needs, seed=seed), eos_token_ids=[0]).generate(prompt, 120)
        assert result.token_ids == alone.token_ids
        assert result.finish_reason == alone.finish_reason


def test_acceptance_is_mixed_so_that_the_equality_means_something(target, draft):
    result = SpeculativeEngine(target, draft, Coin()).generate([3, 1, 4], 150)
    assert 0.1 < result.stats.draft_acceptance_rate < 0.95


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 9])
def test_generation_stops_at_max_new_tokens(target, draft, max_new_tokens):
    result = SpeculativeEngine(target, draft, Coin(probability=1.0)).generate([3, 1, 4], max_new_tokens)
    assert result.token_ids == autoregressive(target, [3, 1, 4], max_new_tokens).token_ids
    assert len(result.token_ids) == max_new_tokens
    assert all(r.start + len(r.drafted) + 1 <= 3 + max_new_tokens for r in result.rounds)


def test_an_end_of_text_inside_an_accepted_block_ends_the_text_there(target):
    text = autoregressive(target, [3, 1, 4], 40).token_ids
    eos = text[12]
    result = SpeculativeEngine(target, CachedModel(target.model), Coin(probability=1.0), eos_token_ids=[eos]).generate(
        [3, 1, 4], 40
    )
    assert result.token_ids == text[: text.index(eos) + 1]
    assert result.finish_reason == "eos"


def test_a_perfect_draft_is_accepted_whole(target):
    result = SpeculativeEngine(target, CachedModel(target.model), Coin(probability=1.0)).generate([3, 1, 4], 41)
    assert result.stats.draft_acceptance_rate == 1.0
    assert [len(r.committed) for r in result.rounds] == [8] * 5


def test_a_policy_that_never_drafts_leaves_the_target_alone(target, draft):
    result = SpeculativeEngine(target, draft, Coin(probability=0.0)).generate([3, 1, 4], 30)
    assert result.token_ids == autoregressive(target, [3, 1, 4], 30).token_ids
    assert result.stats.num_draft_tokens == 0
    assert len(result.rounds) == 29


def test_a_text_may_fill_the_context_to_its_last_position():
    model = tiny_model(0, context=24)
    target, draft = CachedModel(model), CachedModel(tiny_model(0, noise=0.15, context=24))
    result = SpeculativeEngine(target, draft, Coin(probability=0.9)).generate([1] * 20, 100)
    assert result.token_ids == autoregressive(target, [1] * 20, 100).token_ids
    assert len(result.token_ids) == 5
    assert result.finish_reason == "length"


def test_a_draft_with_a_shorter_context_stops_drafting_where_it_ends(target):
    draft = CachedModel(tiny_model(0, noise=0.15, context=16))
    result = SpeculativeEngine(target, draft, Coin(probability=1.0)).generate([3, 1, 4], 60)
    assert result.token_ids == autoregressive(target, [3, 1, 4], 60).token_ids
    assert all(not r.drafted for r in result.rounds if r.start >= 16)


def test_the_policy_observes_every_round_and_rounds_join_without_gaps(target, draft):
    policy = Coin()
    result = SpeculativeEngine(target, draft, policy).generate([3, 1, 4], 60)
    assert policy.rounds == list(result.rounds)
    for earlier, later in itertools.pairwise(result.rounds):
        assert later.start == earlier.start + earlier.num_accepted + 1


@pytest.mark.parametrize("policy_type", [Coin, StopsOnValue])
def test_sampling_follows_the_targets_law_under_a_hostile_policy(policy_type):
    """Joint law of the 2nd and 3rd token of 3,000 texts against the exact one; chi-square over the cells expected at
    least 5 times, the rest pooled; false alarm probability 1e-4 by the Wilson-Hilferty approximation."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    models = [LlamaForCausalLM(config).eval() for _ in range(2)]
    for model in models:
        model.lm_head.weight.data.mul_(15)
    target, draft = (CachedModel(model) for model in models)
    sampling, prompt, num_texts = Sampling(0.9), [1, 2], 3000
    exact = exact_distribution(models[0], prompt, sampling)
    engine = SpeculativeEngine(target, draft, policy_type("features", seed=1), sampling)
    counts = torch.zeros(5, 5)
    for seed in range(num_texts):
        _, second, third = engine.generate(prompt, 3, seed=seed).token_ids
        counts[second, third] += 1
    expected = exact * num_texts
    large = expected >= 5
    cells = torch.stack([torch.cat([c[large], c[~large].sum()[None]]) for c in (counts, expected)])
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1].clamp_min(1e-9))[cells[1] > 0].sum().item()
    freedom = int((cells[1] > 0).sum()) - 1
    critical = freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < critical


@torch.inference_mode()
def exact_distribution(model, prompt, sampling):  # [5, 5]: joint law of the 2nd and 3rd new token
    law = torch.zeros(5, 5)
    first = sampling.probs(model(torch.tensor([prompt])).logits[:, -1])[0]
    for a in range(5):
        second = sampling.probs(model(torch.tensor([[*prompt, a]])).logits[:, -1])[0]
        for b in range(5):
            third = sampling.probs(model(torch.tensor([[*prompt, a, b]])).logits[:, -1])[0]
            law[b] += first[a] * second[b] * third
    return law


def test_the_same_seed_gives_the_same_sampled_text(target, draft):
    engine = SpeculativeEngine(target, draft, Coin(probability=1.0), Sampling(1.0))
    assert engine.generate([3, 1], 40, seed=7).token_ids == engine.generate([3, 1], 40, seed=7).token_ids
    assert engine.generate([3, 1], 40, seed=7).token_ids != engine.generate([3, 1], 40, seed=8).token_ids


def test_impossible_prompts_are_named_with_both_values(target, draft):
    engine = SpeculativeEngine(target, draft, Coin())
    with pytest.raises(DslError, match="no tokens"):
        engine.generate([], 5)
    with pytest.raises(DslError, match=r"300 tokens.*holds 256"):
        engine.generate([1] * 300, 5)
    with pytest.raises(DslError, match="max_new_tokens"):
        engine.generate([1], 0)


def test_statistics_are_counts_over_rounds():
    rounds = [Round(5, (1, 2, 3), 2, (1, 2, 9)), Round(8, (4,), 1, (4, 6)), Round(10, (), 0, (7,))]
    stats = AcceptanceStats.of(rounds)
    assert (stats.num_spec_steps, stats.num_draft_tokens, stats.num_accepted_draft_tokens) == (3, 4, 3)
    assert stats.mean_acceptance_length == 2.0
    assert stats.draft_acceptance_rate == 0.75
    assert stats.acceptance_by_position == (1.0, 1.0, 0.0)
