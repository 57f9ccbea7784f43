"""A draft that proposes only the first tokens of the vocabulary (`draft_head_tokens` in its config.json)."""

import copy

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, make_tokenizer
from transformers import LlamaForCausalLM

from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.text import Request
from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.policies.registry import make_policy
from dsl_train.runners.cached import CachedModel, LibraryDecoder
from dsl_train.runners.padded import PaddedModel

HEAD, PROMPT = 20, [5, 9, 33, 60, 7]


@pytest.fixture
def narrow(tiny_draft) -> LlamaForCausalLM:
    model = copy.deepcopy(tiny_draft)
    model.config.draft_head_tokens = HEAD
    return model


def library_logits(model: LlamaForCausalLM) -> torch.Tensor:
    runner = CachedModel(model)
    runner._decoder = LibraryDecoder(model)
    runner.reset()
    return runner.logits(PROMPT, keep=3)


def test_every_way_to_run_it_gives_the_same_narrow_logits(narrow, tiny_draft):
    direct = CachedModel(narrow).logits(PROMPT, keep=3)
    whole = CachedModel(tiny_draft).logits(PROMPT, keep=3)
    assert direct.shape == (3, VOCAB_SIZE)
    assert torch.isneginf(direct[:, HEAD:]).all()
    torch.testing.assert_close(direct[:, :HEAD], whole[:, :HEAD])
    torch.testing.assert_close(direct, library_logits(narrow))
    together = PaddedModel(narrow, [PROMPT[:2], PROMPT[:1]])
    with torch.inference_mode():
        assert torch.isneginf(together.feed(torch.tensor([[4], [5]]))[..., HEAD:]).all()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_the_targets_own(tiny_target, narrow, temperature):
    """Sampled: the token drafted is always below the head's end, and over many seeds the target's others still come."""
    target, draft, sampling = CachedModel(tiny_target), CachedModel(narrow), Sampling(temperature)
    engine = SpeculativeEngine(target, draft, make_policy("static:3"), sampling)
    texts = [engine.generate(PROMPT, 24, seed=seed) for seed in range(12)]
    assert all(token_id < HEAD for text in texts for r in text.rounds for token_id in r.drafted)
    if temperature == 0.0:
        assert texts[0].token_ids == autoregressive(target, PROMPT, 24).token_ids
    assert any(token_id >= HEAD for text in texts for token_id in text.token_ids)


def test_the_second_token_follows_the_targets_law(tiny_target, narrow):
    """Chi-square over 4,000 texts; at most 63 degrees of freedom, for which 121 is exceeded once in 100,000 times."""
    target, draft, sampling = CachedModel(tiny_target), CachedModel(narrow), Sampling(0.9)
    engine = SpeculativeEngine(target, draft, make_policy("static:2"), sampling)
    alone = CachedModel(tiny_target)
    first = sampling.probs(alone.logits(PROMPT, keep=1))[0]  # [V]
    second = torch.zeros(VOCAB_SIZE)
    for token_id in range(VOCAB_SIZE):
        alone.reset()
        second += first[token_id] * sampling.probs(alone.logits([*PROMPT, token_id], keep=1))[0]
    texts = [engine.generate(PROMPT, 3, seed=seed).token_ids for seed in range(4000)]
    found = torch.bincount(torch.tensor([text[1] for text in texts]), minlength=VOCAB_SIZE).float()
    expected = second * len(texts)
    often = expected >= 5.0
    found, expected = (torch.cat([counts[often], counts[~often].sum()[None]]) for counts in (found, expected))
    assert ((found - expected) ** 2 / expected.clamp_min(1.0)).sum() < 121.0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_both_collectors_see_the_same_narrow_draft(tiny_target, narrow, temperature):
    pair = Pair(tiny_target, narrow, make_tokenizer(), describe_model(tiny_target, "t"), describe_model(narrow, "d"))
    config = CollectConfig(target="t", draft="d", prompts="p", output="o", max_new_tokens=30, tail_length=4)
    requests = [Request((7, 8, 9), seed, Sampling(temperature)) for seed in range(4)]
    parallel = list(HindsightCollector(pair, config).collect(requests))
    for text in parallel:
        assert (text.rows["token_id"] < HEAD).all()
    if temperature == 0.0:
        for text, sequential in zip(parallel, OracleCollector(pair, config).collect(requests), strict=True):
            assert text.response_token_ids == sequential.response_token_ids
            for name, column in sequential.rows.items():
                np.testing.assert_allclose(text.rows[name], column, atol=1e-4, err_msg=name)
