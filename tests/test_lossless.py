"""`dsl-bench --mode verify`: right loops pass, a biased one is caught, and the verdict says how sure it is."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dsl_train.base.records import GenerationResult
from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import exact_distribution
from dsl_train.bench.lossless import FALSE_ALARM, PromptModel, Trial, check_law, compare_greedy
from dsl_train.cli.bench import main
from dsl_train.loop.drafter import DraftBlock, Drafter
from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.policies.registry import make_policy
from dsl_train.policies.rules import StaticPolicy
from dsl_train.runners.cached import CachedModel

PROMPT, SAMPLING, NUM_DRAWS, LEVEL = [1, 2], Sampling(0.9), 1500, 1e-4


def five_tokens(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(15)
    return model


@pytest.fixture(scope="module")
def models():
    return five_tokens(5), five_tokens(6)


class StopsOnValue(StaticPolicy):
    """Hostile: stops by the identity of the token just drafted."""

    needs = "primitives"

    def wants_another(self, step):
        return step.draft is None or step.draft.token_id % 2 == 0


def check(models, policy, sampling=SAMPLING, eos=(), verification="block"):
    target, draft = (PromptModel(model, len(PROMPT)) for model in models)
    engine = SpeculativeEngine(target, draft, policy, sampling, eos, verification)
    law = exact_distribution(PromptModel(models[0], len(PROMPT)), PROMPT, sampling, eos, 4, NUM_DRAWS)
    trial = Trial("tested", "prompt", law, lambda seed: engine.generate(PROMPT, 4, seed=seed).token_ids)
    return check_law(trial, NUM_DRAWS, 0, LEVEL)


@pytest.mark.parametrize("policy", [make_policy("random:0.7"), make_policy("static:3"), StopsOnValue(3)])
def test_the_loop_passes_under_a_hostile_policy(models, policy):
    """Three tests, each with a false-alarm probability of 1e-4 (simulated: up to 2e-4)."""
    checked = check(models, policy)
    assert checked.passed
    assert checked.fit.num_cells > 20
    assert checked.fit.detectable < 0.15


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.9, draft_temperature=0.5),
        Sampling(0.9, top_k=3, draft_temperature=1.3),
        Sampling(1.2, top_p=0.8),
        Sampling(1.2, draft_temperature=0.0),
    ],
)
def test_truncation_the_drafts_temperature_and_an_end_of_text_keep_the_law(models, sampling, verification):
    """Eight tests under the hostile policy, each with a false-alarm probability of 1e-4 (simulated: up to 2e-4)."""
    checked = check(models, StopsOnValue(3), sampling, eos=(4,), verification=verification)
    assert checked.passed
    assert checked.fit.num_cells > 10
    assert checked.fit.detectable < 0.15


def test_dropping_a_drafted_token_for_its_small_probability_is_caught(models, monkeypatch):
    """The bias that losslessness forbids: the token is looked at, found unlikely, and never verified."""
    honest = Drafter.draft_block

    def drops(self, *arguments):
        block = honest(self, *arguments)
        kept = len(block.token_ids)
        while kept and block.probs[kept - 1, block.token_ids[kept - 1]] < 0.5:
            kept -= 1
        return DraftBlock(block.token_ids[:kept], block.probs[:kept] if kept else None)

    monkeypatch.setattr(Drafter, "draft_block", drops)
    checked = check(models, make_policy("static:2"))
    assert not checked.passed
    assert checked.fit.p_value < 1e-6


def test_a_prompt_model_gives_the_texts_of_a_plain_one(models):
    prompted, plain = PromptModel(models[0], len(PROMPT)), CachedModel(models[0])
    for seed in range(5):
        texts = [autoregressive(model, PROMPT, 8, SAMPLING, seed=seed).token_ids for model in (prompted, plain)]
        assert texts[0] == texts[1]


def test_a_greedy_text_that_differs_is_named_with_the_place():
    def always(token_ids):
        return lambda prompt, seed: GenerationResult(tuple(prompt), token_ids, "length", (), 1.0)

    contenders = {"alone": always((1, 2, 3)), "good": always((1, 2, 3)), "bad": always((1, 9, 3))}
    (mismatch,) = compare_greedy(contenders, [("first", [0])])
    assert (mismatch.policy, mismatch.prompt_id, mismatch.index) == ("bad", "first", 1)
    assert (mismatch.expected, mismatch.found) == (2, 9)


def test_the_command_prints_a_verdict_with_its_false_alarm_rate_and_ends_with_json(pair_folders, capsys):
    """Six laws, accused together with probability 1e-3."""
    options = "--max_new_tokens 12 --draws 80 --law_prompts 2 --policies random static:3 transformers-assisted --json"
    folders = ["--target", pair_folders.target, "--draft", pair_folders.draft]
    assert main(["--mode", "verify", *folders, *options.split()]) == 0
    shown = capsys.readouterr().out
    assert "LOSSLESS" in shown
    assert "once in 1000 times" in shown
    result = json.loads(shown.splitlines()[-1])
    assert result["lossless"] is True
    assert result["false_alarm"] == FALSE_ALARM
    assert result["level"] == pytest.approx(FALSE_ALARM / 6)
    assert [law["fit"]["num_draws"] for law in result["laws"]] == [80] * 6
