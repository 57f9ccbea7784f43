"""`dsl_train.generate` honours the target's `generation_config`, as the target's own `generate` does."""

import copy

import pytest
import torch
from collecting import make_pair
from conftest import make_model, perturb

from dsl_train.api.own_settings import under_own_settings
from dsl_train.api.speculator import Speculator
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import exact_distribution, fit
from dsl_train.pair.prompt import runner_of

PROMPT = [50, 27, 63, 6, 17]
HONOURED = [
    {"repetition_penalty": 1.4},
    {"min_new_tokens": 30, "no_repeat_ngram_size": 2, "eos_token_id": [0, 33, 45, 12]},
    {"min_length": 20, "eos_token_id": [33, 45, 12]},
    {"bad_words_ids": [[57, 5], [12]]},
    {"forced_eos_token_id": 7, "suppress_tokens": [3, 4, 12]},
    {"begin_suppress_tokens": list(range(2, 40))},
    {"encoder_repetition_penalty": 1.5},
    {"sequence_bias": [[[12], 3.0]]},
]


@pytest.fixture
def pair():
    """One whose settings the test may change."""
    target = make_model(seed=0)
    return make_pair(target, perturb(target, scale=0.15, seed=1))


@pytest.mark.parametrize("settings", HONOURED, ids=lambda settings: next(iter(settings)))
def test_greedy_text_is_the_targets_own(pair, settings):
    plain = Speculator(pair, "static:4").generate(PROMPT, max_new_tokens=40).result.token_ids
    pair.target.generation_config.update(**settings)
    expected = pair.target.generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False)[0, len(PROMPT) :]
    for policy in ("static:0", "static:4", "heuristic"):
        found = Speculator(pair, policy).generate(PROMPT, max_new_tokens=40).result.token_ids
        assert list(found) == expected.tolist()
    assert found != plain, "the setting changes nothing here: the test is empty"


def test_sampled_text_follows_the_law_under_the_settings(pair):
    """False alarm 1e-6 each."""
    pair.target.generation_config.update(repetition_penalty=1.6, min_p=0.05, bad_words_ids=[[12]])
    sampling, eos = Sampling(0.9, top_k=20), pair.eos_token_ids
    runners = runner_of(pair.target), runner_of(pair.draft)
    target, _, law = under_own_settings(pair, runners, PROMPT, sampling, 3)
    expected = exact_distribution(target, PROMPT, law, eos, 3, 2000)
    for policy in ("static:2", "random:0.7,1,7"):
        speculator = Speculator(pair, policy)
        texts = [speculator.generate(PROMPT, sampling, 3, seed).result.token_ids for seed in range(2000)]
        assert fit(expected, texts, 1e-6).p_value > 1e-6


def test_min_p_is_that_of_transformers(pair):
    pair.target.generation_config.update(min_p=0.3)
    runners = runner_of(pair.target), runner_of(pair.draft)
    _, _, law = under_own_settings(pair, runners, PROMPT, Sampling(1.0), 3)
    probs = law.probs(torch.tensor([[2.0, 1.5, -1.0, -3.0]]))
    assert (probs > 0).tolist() == [[True, True, False, False]]
    assert under_own_settings(pair, runners, PROMPT, Sampling(), 3)[2] == Sampling()


@pytest.mark.parametrize(
    "settings", [{"num_beams": 4}, {"stop_strings": ["x"]}, {"max_time": 3.0}, {"guidance_scale": 2.0}]
)
def test_what_cannot_be_honoured_is_refused_by_name_and_value(pair, settings):
    ((name, value),) = settings.items()
    pair.target.generation_config.update(**copy.deepcopy(settings))
    with pytest.raises(DslError, match=r"sets .*; set it") as raised:
        Speculator(pair, "static:4").generate(PROMPT)
    assert f"{name}={value!r}" in str(raised.value)


def test_a_target_without_settings_runs_as_it_is(pair):
    runners = runner_of(pair.target), runner_of(pair.draft)
    assert under_own_settings(pair, runners, PROMPT, Sampling(0.7), 3) == (*runners, Sampling(0.7))
