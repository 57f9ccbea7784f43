"""A batch against each of its texts alone: same tokens, same rounds, same features, same law."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from conftest import seen
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from dsl_train.batch_engine import BatchEngine, autoregressive_batch
from dsl_train.batch_profile import BatchCost
from dsl_train.bench.law import exact_law, fit
from dsl_train.cost import StopRule
from dsl_train.engine import SpeculativeEngine, autoregressive
from dsl_train.policies.batch import EachItsOwn, LearnedBatchPolicy
from dsl_train.policies.factory import make_policy
from dsl_train.ragged import RaggedModel, check_ragged
from dsl_train.records import DraftStep, DslError, Round
from dsl_train.runner import CachedModel
from dsl_train.sampling import Sampling

VOCAB, CONTEXT = 32, 96
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [9, 8, 7], [3, 1, 4, 1, 5]]
COMMON = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
ROTARY = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
GPT2 = {**COMMON, "tie_word_embeddings": False, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
OPT = {
    "tie_word_embeddings": False,
    **COMMON,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
FAMILIES = {
    "llama": LlamaConfig(**ROTARY),
    "qwen2": Qwen2Config(**ROTARY),
    "gpt2, learned positions": GPT2Config(**GPT2),
    "opt, offset positions": OPTConfig(**OPT),
    "mistral, sliding window": MistralConfig(**ROTARY, sliding_window=6),
    "gemma3, mixed layers": Gemma3TextConfig(
        **{**ROTARY, "head_dim": 8}, tie_word_embeddings=False, sliding_window=6, sliding_window_pattern=2
    ),
}


def make_pair(config, noise=0.15):
    """Random weights, large enough for texts that vary; the draft is the target, disturbed."""
    torch.manual_seed(0)
    target, draft = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    with torch.no_grad():
        for weight in target.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
        draft.load_state_dict(target.state_dict())
        generator = torch.Generator().manual_seed(1)
        for weight in draft.parameters():
            spread = weight.std().nan_to_num() if weight.numel() > 1 else 0.0
            weight.add_(torch.randn(weight.shape, generator=generator) * spread * noise)
    return target, draft


@pytest.fixture(scope="module")
def pair():
    return make_pair(FAMILIES["llama"])


def each(spec):
    return EachItsOwn(lambda: make_policy(spec))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_are_the_targets_own_texts_for_every_family(family):
    """Prompts of 1 to 11 tokens, texts that outgrow the sliding window, a coin of its own for every row."""
    target, draft = make_pair(FAMILIES[family])
    alone = [autoregressive(CachedModel(target), prompt, 40).token_ids for prompt in PROMPTS]
    assert [r.token_ids for r in autoregressive_batch(target, PROMPTS, 40)] == alone
    results = BatchEngine(target, draft, each("random:0.7")).generate(PROMPTS, 40)
    assert [result.token_ids for result in results] == alone
    rates = [result.stats.draft_acceptance_rate for result in results]
    assert 0 < np.mean(rates) < 1, "acceptance must be mixed for the equality to mean something"


@pytest.mark.parametrize("spec", ["static:3", "heuristic", "confidence-roc:0.3,8", "adaedl", "random:0.6"])
def test_rows_have_the_very_rounds_they_have_alone(pair, spec):
    results = BatchEngine(*pair, each(spec)).generate(PROMPTS, 40)
    for prompt, result in zip(PROMPTS, results, strict=True):
        engine = SpeculativeEngine(*map(CachedModel, pair), make_policy(spec))
        assert result.rounds == engine.generate(prompt, 40).rounds


def test_a_sampled_row_is_the_text_that_its_seed_gives_alone(pair):
    sampling, seeds = Sampling(0.8, top_k=20), [7, 8, 9, 10]
    results = BatchEngine(*pair, each("static:2"), sampling).generate(PROMPTS, 30, seeds)
    for prompt, seed, result in zip(PROMPTS, seeds, results, strict=True):
        engine = SpeculativeEngine(*map(CachedModel, pair), make_policy("static:2"), sampling)
        assert result.token_ids == engine.generate(prompt, 30, seed=seed).token_ids


class Coin:
    """One policy for one text; remembers what it was shown."""

    name, needs, max_lookahead = "coin", "features", 5

    def __init__(self):
        self.steps = []
        self.reset()

    def reset(self):
        self.rng = random.Random(3)

    def wants_another(self, step):
        self.steps.append(seen(step))
        return self.rng.random() < 0.75

    def observe(self, finished): ...


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_policy_sees_the_features_it_sees_alone(pair, temperature):
    made, sampling = [], Sampling(temperature)

    def make():
        made.append(Coin())
        return made[-1]

    BatchEngine(*pair, EachItsOwn(make), sampling).generate(PROMPTS, 40)
    for number, prompt in enumerate(PROMPTS):
        coin = Coin()
        SpeculativeEngine(*map(CachedModel, pair), coin, sampling).generate(prompt, 40, seed=number)
        ours, theirs = made[number].steps, coin.steps
        assert [(s.start, s.position) for s in ours] == [(s.start, s.position) for s in theirs]
        np.testing.assert_allclose([s.features for s in ours], [s.features for s in theirs], atol=1e-4)


class DraftsLate(Coin):
    """Not at all at first, so that the draft falls behind by more tokens than are read at a time."""

    def wants_another(self, step):
        self.steps.append(seen(step))
        return step.start > 30


def test_a_draft_far_behind_catches_up_with_the_features_it_has_alone(pair):
    made = []

    def make():
        made.append(DraftsLate())
        return made[-1]

    BatchEngine(*pair, EachItsOwn(make)).generate(PROMPTS, 45)
    for number, prompt in enumerate(PROMPTS):
        policy = DraftsLate()
        SpeculativeEngine(*map(CachedModel, pair), policy).generate(prompt, 45)
        found, expected = ([s.features for s in p.steps] for p in (made[number], policy))
        np.testing.assert_allclose(found, expected, atol=1e-4)


class StopsOnValue(Coin):
    """Hostile: stops by the identity of the token just drafted."""

    needs = "primitives"

    def wants_another(self, step):
        return step.draft is None or step.draft.token_id % 2 == 0


@pytest.mark.parametrize("make", [StopsOnValue, lambda: make_policy("static:2")])
def test_sampled_rows_follow_the_targets_law(make):
    """1,600 texts in batches of 200 against the exact law; false alarm 1e-4 for each of two policies."""
    config = LlamaConfig(**{**ROTARY, "vocab_size": 5, "num_hidden_layers": 1})
    target, draft = make_pair(config, noise=0.5)
    sampling, prompt, num_draws = Sampling(0.9), [1, 2], 1600
    engine = BatchEngine(target, draft, EachItsOwn(make), sampling)
    batches = (engine.generate([prompt] * 200, 4, range(seed, seed + 200)) for seed in range(0, num_draws, 200))
    texts = [result.token_ids for batch in batches for result in batch]
    tested = fit(exact_law(CachedModel(target), prompt, sampling, (), 4, num_draws), texts, level=1e-4)
    assert tested.num_cells > 20
    assert tested.p_value > 1e-4


def test_texts_end_each_in_its_own_time(pair):
    target, draft = pair
    texts = [autoregressive(CachedModel(target), prompt, 40).token_ids for prompt in PROMPTS]
    eos = texts[1][9]  # ends the second text inside a block, the others elsewhere or never
    expected = [autoregressive(CachedModel(target), prompt, 40, eos_token_ids=[eos]) for prompt in PROMPTS]
    results = BatchEngine(target, draft, each("static:4"), eos_token_ids=[eos]).generate(PROMPTS, 40)
    assert [(r.token_ids, r.finish_reason) for r in results] == [(r.token_ids, r.finish_reason) for r in expected]
    assert len({len(result.token_ids) for result in results}) > 1


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3])
def test_short_responses_have_their_length(pair, max_new_tokens):
    results = BatchEngine(*pair, each("static:4")).generate(PROMPTS, max_new_tokens)
    assert [len(result.token_ids) for result in results] == [max_new_tokens] * len(PROMPTS)


def test_texts_may_fill_the_context_to_its_last_position():
    target, draft = make_pair(FAMILIES["gpt2, learned positions"])
    prompts = [[1] * (CONTEXT - 3), [2] * CONTEXT, [3, 4]]
    expected = [autoregressive(CachedModel(target), prompt, 200).token_ids for prompt in prompts]
    results = BatchEngine(target, draft, each("static:4")).generate(prompts, 200)
    assert [result.token_ids for result in results] == expected
    assert [len(text) for text in expected] == [4, 1, CONTEXT - 1]


def test_rows_are_cut_back_and_removed_one_by_one(pair):
    texts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    model = RaggedModel(pair[0], 3)
    model.logits(texts, keep=1)
    model.truncate(0, 2)
    model.keep([0, 2])
    texts = [[1, 2, 30, 31], [8, 9, 10, 11]]
    found = model.logits(texts, keep=2)  # row 0 has two new tokens, row 1 one
    for row, text in enumerate(texts):
        expected = pair[0](torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(found[row, -1], expected, atol=1e-4, rtol=1e-4)


class Survival:
    """Stands in for a predictor: the first feature is the survival."""

    max_lookahead = 8

    def survival_batch(self, vectors):
        return vectors[:, 0]


def steps_with(survivals, position=1):
    return [DraftStep(position, 10, None, partial(np.full, 1, s, np.float32)) for s in survivals]


def test_a_batch_drafts_on_while_the_mean_survival_of_all_its_texts_pays():
    policy = LearnedBatchPolicy(Survival(), lambda batch_size: StopRule((0.7, 0.5)))
    assert policy.wants_another([0, 1], steps_with([0.9, 0.2]), 2) == [True, True]
    assert policy.wants_another([0, 1], steps_with([0.9, 0.05]), 2) == [False, False]
    assert policy.wants_another([0, 1], steps_with([0.9, 0.2]), 3) == [False, False]  # the third can draft no more
    assert policy.wants_another([0, 1], steps_with([0.9, 0.2], position=0), 2) == [False, False]


def test_a_batch_for_which_no_draft_can_pay_asks_nobody():
    policy = LearnedBatchPolicy(Survival(), lambda batch_size: StopRule.of(1.0))
    assert policy.max_lookahead(16) == 0


def finished(drafted, committed):
    return Round(10, (1,) * drafted, max(0, committed - 1), (1,) * committed)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def rounds_asked(num_rounds, seconds_asked, tokens_asked):
    """How many of the rounds ask; the others take a second for a token of each text."""
    clock = Clock()
    policy = LearnedBatchPolicy(Survival(), lambda _: StopRule.of(0.5), clock)
    asked = 0
    for _ in range(num_rounds):
        asks = policy.max_lookahead(2) > 0
        asked += asks
        clock.now += seconds_asked if asks else 1.0
        for text in range(2):
            policy.observe(text, finished(tokens_asked - 1, tokens_asked) if asks else finished(0, 1))
    return asked


def test_the_faster_kind_of_round_by_the_clock_gets_nearly_all_of_them():
    assert rounds_asked(2000, seconds_asked=2.1, tokens_asked=2) < 0.05 * 2000
    assert rounds_asked(2000, seconds_asked=1.9, tokens_asked=2) > 0.95 * 2000
    assert rounds_asked(2000, seconds_asked=1.1, tokens_asked=1) < 0.05 * 2000


def test_a_threshold_of_the_users_own_is_asked_in_every_round():
    policy = LearnedBatchPolicy(Survival(), lambda _: StopRule.of(0.5), clock=None)
    for _ in range(100):
        assert policy.max_lookahead(2) > 0
        policy.observe(0, finished(0, 1))


def test_a_batch_that_never_drafts_computes_no_features():
    policy = LearnedBatchPolicy(Survival(), lambda batch_size: StopRule.of(1.0 if batch_size > 2 else 0.5))
    policy.begin(2)
    assert policy.needs == "features"
    never = LearnedBatchPolicy(Survival(), lambda batch_size: StopRule.of(1.0))
    never.begin(8)
    assert never.needs == "position"


def test_prices_between_measured_batch_sizes_are_interpolated_and_give_the_rule():
    cost = BatchCost((1, 5), (1.0, 2.0), ((1.0, 1.1, 1.2, 1.4, 1.8), (2.0, 3.5, 5.0, 8.0, 14.0)))

    class Table:
        def threshold(self, c_eff):
            return min(1.0, 1.5 * c_eff)

    assert cost.rounds(3) == pytest.approx([seconds / 1.5 for seconds in (1.5, 2.3, 3.1, 4.7, 7.9)])
    assert cost.prices(1) == pytest.approx([1.0 + 0.1 * k for k in range(9)])
    cheap = cost.stop_rule(Table(), 1)
    assert (cheap.first, cheap.another) == pytest.approx((0.15, 0.15))
    assert cost.stop_rule(Table(), 5).first == 1.0  # a step of 1.5 in rounds of 2.0: c = 0.75


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            FalconConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True),
            "with a mask of its own .* one at a time",
        ),
        (
            MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4),
            "a state that cannot go back",
        ),
    ],
)
def test_a_model_that_cannot_be_batched_is_refused_by_name(config, why):
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(DslError, match=rf"{config.model_type}.*{why}"):
        check_ragged(model)


def test_impossible_prompts_are_named(pair):
    engine = BatchEngine(*pair, each("static:2"))
    with pytest.raises(DslError, match="no tokens"):
        engine.generate([[1], []])
    assert engine.generate([]) == []
