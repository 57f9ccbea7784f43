"""Compiled decoding against the same models run as they are. Most tests compile with torch's own kernels, which takes a
second; one has code generated, where there is a compiler."""

import logging
import shutil
from copy import deepcopy

import pytest
import torch
from conftest import make_model, perturb
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from dsl_train.base.sampling import Sampling
from dsl_train.features.primitives import read_draft
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.policies.registry import make_policy
from dsl_train.runners import compiled
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.compiled import CompiledDecoder, Graphs, NotCompilableError
from dsl_train.runners.compiled_call import GraphCall

PROMPT = [5, 9, 3, 22, 41, 7, 7, 12]
WIDTHS = (1, 2, 4)


@pytest.fixture(scope="module", autouse=True)
def small_widths():
    """Each graph takes a second: a few show what there is to show."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "WIDTHS", WIDTHS)
        yield


@pytest.fixture(scope="module")
def pairs():
    """The same pair as it is and compiled, (target, draft) each."""
    target = make_model(seed=0)
    plain = target, perturb(target, scale=0.15, seed=1)
    fast = deepcopy(plain)
    compiled.warm_up(*fast, backend="aot_eager")
    assert all(isinstance(CachedModel(model)._decoder, CompiledDecoder) for model in fast)
    return plain, fast


def generated(models, sampling, policy="static:3", prompt=PROMPT, max_new_tokens=60):
    engine = SpeculativeEngine(*map(CachedModel, models), make_policy(policy), sampling)
    return engine.generate(prompt, max_new_tokens, seed=3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt", [PROMPT, [5]], ids=["prompt", "one token"])
def test_tokens_and_rounds_are_those_of_the_models_as_they_are(pairs, temperature, prompt):
    plain, fast = (generated(models, Sampling(temperature), prompt=prompt) for models in pairs)
    assert plain.token_ids == fast.token_ids
    assert plain.rounds == fast.rounds


def test_more_drafts_than_any_graph_is_wide_are_verified_all_the_same(pairs):
    plain, fast = (generated(models, Sampling(), policy="static:9") for models in pairs)
    assert max(len(r.drafted) for r in fast.rounds) > max(WIDTHS)
    assert plain.token_ids == fast.token_ids


def test_logits_agree_at_every_width_and_keep(pairs):
    plain, fast = (CachedModel(models[0]) for models in pairs)
    text = torch.randint(64, (80,), generator=torch.Generator().manual_seed(0)).tolist()
    fed = 0
    for width in (9, 1, 2, 3, 4, 5, 18, 30):
        fed += width
        for keep in {1, width}:
            expected, found = (model.logits(text[:fed], keep) for model in (plain, fast))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            if keep == 1:
                for model in (plain, fast):
                    model.truncate(fed - width)


def test_what_is_taken_back_leaves_no_trace(pairs):
    _, (target, _) = pairs
    model = CachedModel(target)
    model.logits(PROMPT, keep=1)
    expected = model.logits([*PROMPT, 4, 5], keep=2).clone()
    model.truncate(len(PROMPT))
    model.logits([*PROMPT, 60, 61, 62], keep=3)
    model.truncate(len(PROMPT))
    torch.testing.assert_close(model.logits([*PROMPT, 4, 5], keep=2), expected)


def test_a_text_that_outgrows_its_buffers_goes_on(pairs):
    (target, _), (fast, _) = pairs
    text = torch.randint(64, (250,), generator=torch.Generator().manual_seed(1)).tolist()
    model, small = CachedModel(fast), []
    model.logits(text[:3], keep=1)
    for end in range(4, len(text) + 1):
        small.append(len(model._decoder._buffers.positions))
        found = model.logits(text[:end], keep=1)
    assert len(set(small)) > 1 or small[0] >= len(text)
    torch.testing.assert_close(found, CachedModel(target).logits(text, keep=1), rtol=1e-3, atol=1e-3)


def test_a_family_that_cannot_be_compiled_runs_as_it_is_and_says_why_once(caplog):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    models = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    before = generated(models, Sampling(), max_new_tokens=20)
    with caplog.at_level(logging.WARNING, logger="dsl_train.runners.compiled"):
        compiled.warm_up(*models, backend="aot_eager")
    assert [record.getMessage() for record in caplog.records] == [
        "GPT2LMHeadModel is not compiled and runs as it is: gpt2 is not of Llama's shape, or was altered"
    ] * 2
    assert generated(models, Sampling(), max_new_tokens=20).rounds == before.rounds


def test_graphs_that_compute_something_else_are_refused(monkeypatch):
    def compile_wrongly(forward, isolate_recompiles, **options):
        return lambda *args, **kwargs: [1.01 * rows for rows in forward(*args, **kwargs)]

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    with pytest.raises(NotCompilableError, match="compiled logits over 1 tokens are off by 1e-02"):
        Graphs(make_model(seed=2), WIDTHS)


def test_a_model_compiled_twice_is_compiled_once(pairs):
    _, fast = pairs
    graphs = [compiled.graphs_of(model) for model in fast]
    compiled.warm_up(*fast, backend="aot_eager")
    assert [compiled.graphs_of(model) for model in fast] == graphs


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, on its way in
def test_generated_code_gives_the_same_tokens_and_is_called_directly():
    plain = make_model(seed=0), make_model(seed=0, num_layers=1)
    fast = deepcopy(plain)
    compiled.warm_up(*fast)
    graphs = [graph for model in fast for graph in compiled.graphs_of(model)._graphs.values()]
    assert {type(graph) for graph in graphs} == {GraphCall}
    for sampling in (Sampling(), Sampling(0.8)):
        expected, found = (generated(models, sampling, max_new_tokens=240) for models in (plain, fast))
        assert expected.token_ids == found.token_ids


@torch.inference_mode()
def test_choices_and_primitives_are_those_of_the_logits(pairs):
    _, (_, draft) = pairs
    model = CachedModel(draft)
    model.logits(PROMPT, keep=1)
    for num_fed in (1, 2, 3):
        text = [*PROMPT, 4, 5, 6][: len(PROMPT) + num_fed]
        expected_ids, expected = read_draft(model.logits(text, num_fed).clone(), without_entropy=True)
        model.truncate(len(PROMPT))
        ids, found = model.choose(text, num_fed)
        model.truncate(len(PROMPT))
        assert (ids, found.token_id) == (expected_ids, expected.token_id)
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
        assert found.token_log_prob == pytest.approx(expected.token_log_prob, abs=1e-5)


def test_a_narrow_head_and_normalised_heads_are_compiled_as_they_are():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=64, num_key_value_heads=2, head_dim=8, initializer_range=0.3, **shape)
    ).eval()
    model.config.draft_head_tokens = 40
    fast = deepcopy(model)
    compiled.warm_up(fast, fast, backend="aot_eager")
    plain, found = CachedModel(model), CachedModel(fast)
    assert isinstance(found._decoder, CompiledDecoder)
    for length, keep in ((8, 1), (9, 1), (12, 3)):
        text = [*PROMPT, 4, 5, 6, 7][:length]
        torch.testing.assert_close(found.logits(text, keep), plain.logits(text, keep), rtol=1e-4, atol=1e-4)
