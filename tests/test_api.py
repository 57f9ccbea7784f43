"""Generation from Python and from the shell: the README's ways in."""

import copy
import io
import json
import pickle
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from tiny_predictor import write_predictor

import dsl_train
from dsl_train import generate, load_predictor
from dsl_train.api.serving import costs_in_use
from dsl_train.api.speculator import Speculator
from dsl_train.api.text_stream import TextStream
from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.cli.generate import main
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.loop.engine import autoregressive
from dsl_train.pair.loading import load_pair
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.predictor.runtime import ThresholdTable
from dsl_train.runners.cached import CachedModel

PROMPT = "def f(a, b):"


@pytest.fixture(scope="module")
def shipped(pair_folders, tmp_path_factory) -> dict[str, str]:
    """A pair whose draft has a predictor in its dsl folder."""
    draft = tmp_path_factory.mktemp("shipped") / "draft"
    shutil.copytree(pair_folders.draft, draft)
    (draft / "dsl").mkdir()
    write_predictor(draft / "dsl", load_pair(pair_folders.target, str(draft), "float32", "cpu"))
    return {"target": pair_folders.target, "draft": str(draft)}


@pytest.fixture(scope="module")
def alone(pair_folders) -> tuple[int, ...]:
    """The target's own greedy continuation."""
    pair = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    prompt = pair.tokenizer(PROMPT)["input_ids"]
    return autoregressive(CachedModel(pair.target), prompt, 30, eos_token_ids=pair.eos_token_ids).token_ids


def test_the_readmes_five_lines_give_the_targets_own_text(shipped, alone):
    predictor = load_predictor(shipped["draft"])
    result = generate(shipped["target"], shipped["draft"], PROMPT, predictor=predictor, max_new_tokens=30)
    assert result.result.token_ids == alone
    assert result.text == make_tokenizer().decode(list(alone), skip_special_tokens=True)
    assert result.stats["tokens_per_second"] > 0


def test_loaded_models_and_token_ids_do_as_well_as_names(shipped, alone):
    pair = load_pair(**shipped, dtype="float32", device="cpu")
    prompt = pair.tokenizer(PROMPT)["input_ids"]
    for policy in ("learned", "heuristic", "static:3"):
        result = generate(pair.target, pair.draft, prompt, policy=policy, max_new_tokens=30)
        assert result.result.token_ids == alone


def test_a_name_and_a_model_are_not_mixed(shipped):
    pair = load_pair(**shipped)
    with pytest.raises(TypeError, match="both as names or both as loaded models"):
        generate(pair.target, shipped["draft"], PROMPT)


def test_streamed_text_is_the_text_of_the_result(shipped):
    pieces: list[str] = []
    result = generate(**shipped, prompt=PROMPT, max_new_tokens=30, temperature=1.0, seed=3, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert len(pieces) > 3


def test_a_draft_without_a_predictor_says_how_to_get_one(pair_folders):
    with pytest.raises(DslError, match=r"no predictor in its dsl folder.*dsl-train --ship_to"):
        generate(pair_folders.target, pair_folders.draft, PROMPT)


def test_a_threshold_is_taken_as_given(shipped):
    pair = load_pair(**shipped)
    never = Speculator(pair, "learned", threshold=1.1).generate(PROMPT, Sampling(), 20)
    always = Speculator(pair, "learned", threshold=-1.0).generate(PROMPT, Sampling(), 20)
    assert never.result.stats.num_draft_tokens == 0
    assert always.result.stats.num_draft_tokens > 0
    assert never.result.token_ids == always.result.token_ids


def test_costs_given_are_priced_once_and_rounds_repeat(shipped):
    pair, costs = load_pair(**shipped), CostProfile(0.1, 1.0)
    one, two = (Speculator(pair, costs=costs).generate(PROMPT, Sampling(0.9), 40, seed=3).result for _ in range(2))
    assert one.rounds == two.rounds
    assert one.token_ids == two.token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_costs_are_those_of_the_rounds_that_are_generated(shipped, temperature):
    pair = load_pair(**shipped)
    speculator = Speculator(pair)
    before = costs_in_use(speculator.policy)
    for seed in range(4):
        speculator.generate(PROMPT, Sampling(temperature), 40, seed)
    assert costs_in_use(speculator.policy) != before


def test_a_policy_of_the_caller_is_not_changed_by_a_cap(shipped):
    pair = load_pair(**shipped)
    policy = LearnedPolicy(load_predictor(shipped["draft"]), -1.0, max_lookahead=6)
    capped = Speculator(pair, policy, max_lookahead=2).generate(PROMPT, Sampling(), 20).result
    assert max(len(finished.drafted) for finished in capped.rounds) == 2
    assert policy.max_lookahead == 6
    policy._resting._left = 2  # at rest for a round more
    speculator = Speculator(pair, policy, max_lookahead=2)
    assert speculator.policy.max_lookahead == policy.max_lookahead == 0
    speculator.generate(PROMPT, Sampling(), 20)
    assert speculator.policy.max_lookahead == 2
    assert policy.max_lookahead == 6


def test_characters_of_several_tokens_are_streamed_whole():
    class Bytes:
        """One token a byte."""

        def decode(self, token_ids, skip_special_tokens):
            return bytes(token_ids).decode("utf-8", errors="replace")

    pieces: list[str] = []
    stream = TextStream(Bytes(), pieces.append)
    stream.push("naïve €5".encode())
    stream.end()
    assert "".join(pieces) == "naïve €5"
    assert "ï" in pieces
    assert "€" in pieces


def command(shipped, *more):
    return ["--target", shipped["target"], "--draft", shipped["draft"], "--max_new_tokens", "20", *more]


def test_dsl_generate_streams_prompt_and_text_and_ends_with_json(shipped, capsys):
    assert main(command(shipped, "--prompt", PROMPT, "--json")) == 0
    captured = capsys.readouterr()
    *text, last = captured.out.splitlines()
    generation = json.loads(last)["generations"][0]
    assert "\n".join(text) == PROMPT + generation["text"]
    assert {"num_spec_steps", "draft_acceptance_rate", "mean_acceptance_length"} <= generation.keys()
    assert "tokens/s" in captured.err


def test_dsl_generate_ends_with_the_costs_in_use(shipped, capsys):
    assert main(command(shipped, "--prompt", PROMPT, "--json")) == 0
    printed = capsys.readouterr()
    costs = json.loads(printed.out.splitlines()[-1])["costs"]
    step = f"a draft step {1e3 * costs['draft_step']:.2f} ms, a target step {1e3 * costs['target_step']:.2f} ms"
    *_, last = printed.err.splitlines()
    assert last.startswith(f"costs in use: {step} (c = {costs['c']:.3f}), 17 tokens verified in")
    assert last.endswith(f"survival > {costs['threshold']:.3f}")
    assert costs["verification"] == sorted(costs["verification"])
    for rule in (["--policy", "static:2"], ["--threshold", "0.5"]):
        assert main(command(shipped, "--prompt", PROMPT, "--json", *rule)) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out.splitlines()[-1])["costs"] is None
        assert "costs in use" not in printed.err


def test_a_command_shows_no_loading_bars_and_leaves_those_of_downloads(shipped, capsys):
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    assert main(command(shipped, "--prompt", PROMPT)) == 0
    assert "Loading weights" not in capsys.readouterr().err
    assert are_progress_bars_disabled() == before


def test_dsl_generate_names_a_prompt_that_is_no_utf_8(shipped, capsys, monkeypatch):
    assert main(command(shipped, "--prompt", "a\udcff")) == 1
    assert "--prompt: character 2 is '\\udcff', a lone surrogate" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), "utf-8"))
    assert main(command(shipped)) == 1
    assert "standard input cannot be read as UTF-8 text" in capsys.readouterr().err


def test_dsl_generate_reads_files_and_standard_input(shipped, tmp_path, capsys, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a = 1", "b = 2", "c = 3")))
    assert main(command(shipped, "--prompts", str(prompts), "--num_prompts", "2", "--show_lookahead")) == 0
    printed = capsys.readouterr()
    assert "a = 1" in printed.out
    assert "b = 2" in printed.out
    assert "c = 3" not in printed.out
    assert "corrected" in printed.err
    monkeypatch.setattr("sys.stdin", io.StringIO(prompts.read_text()))
    assert main(command(shipped, "--policy", "confidence:0.4,20")) == 0
    assert "confidence" in capsys.readouterr().err


def test_dsl_generate_names_an_unknown_policy_and_an_empty_prompt(shipped, capsys):
    assert main(command(shipped, "--prompt", PROMPT, "--policy", "statik:3")) == 1
    assert "did you mean 'static'" in capsys.readouterr().err
    assert main(command(shipped, "--prompt", "")) == 1
    assert "the prompt has no tokens" in capsys.readouterr().err


def test_sampling_from_the_shell_is_repeatable(shipped, capsys):
    texts, options = [], ["--temperature", "0.9", "--seed", "5", "--threshold", "0.5", "--json"]
    for _ in range(2):
        assert main(command(shipped, "--prompt", PROMPT, *options)) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[-1])["generations"][0]["text"])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("more", "draft_more"), [(0, 16), (16, 0)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_loaded_models_that_pad_one_vocabulary_differently_go_together(more, draft_more, temperature):
    target, draft = make_model(seed=0), make_model(seed=0)
    size = target.config.vocab_size
    for model, rows in ((target, more), (draft, draft_more)):
        if rows:
            model.resize_token_embeddings(size + rows, mean_resizing=False)
            with torch.no_grad():
                model.lm_head.weight[size:] = 0
    settings = {"tokenizer": make_tokenizer(), "policy": "static:3", "max_new_tokens": 20, "temperature": temperature}
    result = generate(target, draft, [50, 27, 63, 6, 17], **settings).result
    assert any(one.num_accepted for one in result.rounds)
    if not temperature:
        assert result.token_ids == autoregressive(CachedModel(target), [50, 27, 63, 6, 17], 20).token_ids


def test_models_come_back_in_the_mode_they_were_in():
    target, draft = make_model(seed=0), make_model(seed=1)
    target.train()
    target.model.layers[0].eval()
    before = [module.training for module in target.modules()]
    generate(target, draft, [5, 9, 13], tokenizer=make_tokenizer(), policy="static:2", max_new_tokens=5)
    assert [module.training for module in target.modules()] == before
    assert not any(module.training for module in draft.modules())


def test_a_negative_temperature_is_one_sentence_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"temperature must be 0 .* not -1"):
        generate("nowhere", "nowhere", "a", temperature=-1)


def test_the_class_is_found_at_the_root():
    assert dsl_train.Speculator is Speculator


def test_a_predictor_is_pickled_and_copied(shipped):
    predictor = load_predictor(shipped["draft"])
    vector = np.zeros(len(FEATURE_NAMES), np.float32)
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert other.survival(vector) == predictor.survival(vector)


@pytest.mark.parametrize("given", [{"threshold": 0.2}, {"costs": CostProfile(1.0, 8.0)}])
def test_a_sampled_text_repeats_with_its_seed_whatever_the_machines_speed(shipped, monkeypatch, given):
    """Same seed, models and thresholds: other times, measured ones included, change nothing."""
    pair, predictor = load_pair(**shipped, dtype="float32", device="cpu"), load_predictor(shipped["draft"])
    predictor.table = ThresholdTable((0.1, 0.3), (0.2, 0.2))
    quick, texts = CachedModel.logits, []
    for pause in (0.0, 0.01):

        def slow(model, *arguments, _pause=pause, **options):
            time.sleep(_pause if model.model is pair.draft else 0.0)
            return quick(model, *arguments, **options)

        monkeypatch.setattr(CachedModel, "logits", slow)
        speculator = Speculator(pair, predictor=predictor, **given)
        results = [speculator.generate(PROMPT, Sampling(0.9), 25, seed=seed).result for seed in (1, 2)]
        texts.append([(result.token_ids, result.rounds) for result in results])
    assert texts[0] == texts[1]
    assert max(len(one.drafted) for _, rounds in texts[0] for one in rounds) > 1


def test_verification_by_token_is_a_choice_and_other_words_are_refused(shipped):
    options = {"temperature": 0.9, "policy": "static:4", "max_new_tokens": 40, "seed": 3}
    texts = {
        name: generate(**shipped, prompt=PROMPT, verification=name, **options).result for name in ("block", "token")
    }
    assert texts["block"].rounds != texts["token"].rounds
    with pytest.raises(DslError, match="'blok'; choose one of block, token"):
        generate(**shipped, prompt=PROMPT, verification="blok", **options)
