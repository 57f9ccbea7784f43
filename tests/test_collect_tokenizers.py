"""Traces of a pair with two tokenizers: the target's answer in the draft's tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer, perturb
from test_hf_attach import Watched
from test_hf_tokenizers import TOKENIZER, generate, merging, shuffled
from transformers import AutoModelForCausalLM, AutoTokenizer

import dsl_train
from dsl_train.base.records import DslError
from dsl_train.cli.bench import main as bench_main
from dsl_train.cli.collect import main as collect_main
from dsl_train.cli.train import main as train_main
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.shards import collect
from dsl_train.collect.worker import Worker
from dsl_train.pair.loading import load_pair
from dsl_train.traces.decisions import build
from dsl_train.traces.store import open_traces

TEXTS = ["abc def", "hello ab", "fabcabc x", "0123 ab 0", "(abc)", "jig lab 9", "ma ba da", "x = abc"]


@pytest.fixture(scope="module")
def target():
    return make_model(seed=0)


@pytest.fixture(scope="module")
def folders(target, tmp_path_factory):
    """Folder by name: the target, and drafts of other tokenizers."""
    root = tmp_path_factory.mktemp("tokenizers")
    models = {"target": (target, make_tokenizer()), "merging": merging(target)}
    models |= {"itself": shuffled(target), "similar": shuffled(perturb(target, scale=0.15, seed=1))}
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    return root


def config_of(folders: Path, draft: str, output: Path, **changes) -> CollectConfig:
    given = {"prompts": str(folders / "prompts.jsonl"), "max_new_tokens": 40, "tail_length": 12, "device": "cpu"}
    return CollectConfig(str(folders / "target"), str(folders / draft), str(output), **{**given, **changes})


def greedy(target, prompt):
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    return target.generate(ids, max_new_tokens=40, do_sample=False)[0].tolist()


def test_a_draft_that_is_the_target_in_other_tokens_is_always_right(target, folders, tmp_path):
    collect(config_of(folders, "itself", tmp_path / "traces"))
    traces = open_traces([tmp_path / "traces"])
    _, its_tokenizer = shuffled(target)
    assert len(traces.sequences) == len(TEXTS)
    assert traces.rows["accepted"].all()
    for sequence, prompt in zip(traces.sequences, TEXTS, strict=True):
        text = [*sequence.prompt_token_ids, *sequence.response_token_ids]
        expected = TOKENIZER.decode(greedy(target, prompt), skip_special_tokens=True)
        assert its_tokenizer.decode(text) == expected
        assert its_tokenizer.decode(sequence.prompt_token_ids) == prompt


def test_labels_say_whether_the_drafts_own_choice_is_the_next_token(folders, target, tmp_path):
    collect(config_of(folders, "merging", tmp_path / "traces"))
    traces = open_traces([tmp_path / "traces"])
    draft, its_tokenizer = merging(target)
    assert traces.pair["tokenizer"] == str(folders / "merging")
    assert np.isnan(traces.rows["target_entropy"]).all()
    for sequence in traces.sequences:
        text = [*sequence.prompt_token_ids.tolist(), *sequence.response_token_ids.tolist()]
        assert its_tokenizer(its_tokenizer.decode(text))["input_ids"] == text
        with torch.inference_mode():
            choices = draft(torch.tensor([text])).logits[0].argmax(-1).tolist()
        own = (traces.rows["sequence_id"] == sequence.sequence_id) & (traces.rows["depth"] == 0)
        index, accepted = traces.rows["index"][own], traces.rows["accepted"][own]
        assert index.tolist() == list(range(len(sequence.prompt_token_ids), len(text)))
        assert accepted.tolist() == [choices[i - 1] == text[i] for i in index]


def test_features_of_the_traces_are_those_that_the_attached_draft_computes(target, folders, tmp_path):
    collect(config_of(folders, "similar", tmp_path / "traces"))
    decisions = build(open_traces([tmp_path / "traces"]))
    places = zip(decisions.sequence.tolist(), decisions.start.tolist(), decisions.position.tolist(), strict=True)
    recorded = dict(zip(places, decisions.features, strict=True))
    draft, its_tokenizer = shuffled(perturb(target, scale=0.15, seed=1))
    num_compared = 0
    for number, sequence in enumerate(decisions.sequences):
        prompt = torch.tensor([TOKENIZER(TEXTS[sequence.sequence_id])["input_ids"]])
        watched = Watched("static:5")
        generate(target, draft, its_tokenizer, prompt, watched)
        for step in watched.steps:
            expected = recorded.get((number, step.start, step.position))
            if expected is not None:
                assert step.features == pytest.approx(expected, abs=2e-4)
                num_compared += 1
    assert num_compared > 60


def test_what_it_is_for_works_from_the_command_line(target, folders, tmp_path):
    shared = ["--target", str(folders / "target"), "--draft", str(folders / "similar")]
    prompts = ["--prompts", str(folders / "prompts.jsonl"), "--max_new_tokens", "40", "--device", "cpu"]
    assert collect_main([*shared, *prompts, "--output", str(tmp_path / "traces")]) == 0
    trained = ["--traces", str(tmp_path / "traces"), "--output", str(tmp_path / "predictor"), "--epochs", "2"]
    assert train_main(trained) == 0
    replayed = ["--mode", "replay", "--traces", str(tmp_path / "traces"), "--predictor", str(tmp_path / "predictor")]
    assert bench_main([*replayed, "--policies", "static:2", "learned"]) == 0
    draft = AutoModelForCausalLM.from_pretrained(folders / "similar")
    its_tokenizer = AutoTokenizer.from_pretrained(folders / "similar")
    assistant = dsl_train.attach(draft, tmp_path / "predictor", threshold=0.4)
    prompt = torch.tensor([TOKENIZER(TEXTS[2])["input_ids"]])
    assert generate(target, assistant, its_tokenizer, prompt).tolist() == [greedy(target, TEXTS[2])]


@pytest.mark.parametrize("changes", [{"temperature": 0.7}, {"method": "oracle"}])
def test_what_cannot_be_collected_is_refused_before_anything_is_loaded(folders, tmp_path, changes):
    with pytest.raises(DslError, match=r"have different tokenizers: such a pair is collected by method hindsight at"):
        collect(config_of(folders, "merging", tmp_path / "traces", **changes))
    assert not (tmp_path / "traces").exists()


def test_a_response_is_logged_is_told_in_the_drafts_tokens(folders, target, tmp_path):
    answers = [greedy(target, text) for text in TEXTS[:3]]
    log = [
        {"prompt": text, "response_token_ids": ids[len(TOKENIZER(text)["input_ids"]) :]}
        for text, ids in zip(TEXTS, answers, strict=False)
    ]
    log.append({"prompt": "abc", "response": "def", "temperature": 0.7})
    log.append({"prompt": TEXTS[0], "response_token_ids": [*log[0]["response_token_ids"][:5], 3, 3]})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    config = config_of(folders, "merging", tmp_path / "traces", prompts=None, responses=str(tmp_path / "log.jsonl"))
    collection = collect(config)
    assert collection.counts.num_sequences == 3
    assert "only greedy texts can be collected then" in collection.rejected[0].reason
    assert "response token 5 (id 3) is not the target's greedy choice" in collection.rejected[1].reason
    asked = config_of(folders, "merging", tmp_path / "asked", num_prompts=3)
    collect(asked)
    told, expected = (open_traces([tmp_path / name]) for name in ("traces", "asked"))
    assert [s.response_token_ids.tolist() for s in told.sequences] == [
        s.response_token_ids.tolist() for s in expected.sequences
    ]


def test_who_needs_one_tokenizer_still_says_so(folders):
    with pytest.raises(DslError, match=r"have different vocabularies.*assistant_tokenizer="):
        load_pair(str(folders / "target"), str(folders / "merging"))


def test_the_user_is_told_what_the_traces_are_for(folders, tmp_path, caplog):
    Worker(config_of(folders, "merging", tmp_path / "traces"))
    assert "have different tokenizers: traces are in the draft's tokens" in caplog.text
