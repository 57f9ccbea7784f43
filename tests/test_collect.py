"""The oracle collector on a tiny pair: which rows there are, that they follow the law, and what a folder survives."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONTEXT, make_model, make_tokenizer

from dsl_train.cli.collect import main
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.folder import locked
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.shards import collect
from dsl_train.collect.text import Request
from dsl_train.engine import autoregressive
from dsl_train.loading import Pair, describe_model
from dsl_train.records import DslError
from dsl_train.runner import CachedModel
from dsl_train.sampling import Sampling
from dsl_train.traces import completed_parts, open_traces

PROMPT = (22, 23, 24, 25)
PROMPTS = Path(__file__).parent.parent / "data" / "prompts" / "python.jsonl"


@pytest.fixture
def config(pair_folders, tmp_path):
    return CollectConfig(
        target=pair_folders.target,
        draft=pair_folders.draft,
        prompts=str(PROMPTS),
        output=str(tmp_path / "traces"),
        num_prompts=6,
        method="oracle",
        max_new_tokens=24,
        part_size=2,
    )


@pytest.fixture
def pair(tiny_target, tiny_draft):
    return make_pair(tiny_target, tiny_draft)


def make_pair(target, draft):
    tokenizer = make_tokenizer()
    return Pair(target, draft, tokenizer, describe_model(target, "target"), describe_model(draft, "draft"))


def collect_text(pair, config, prompt=PROMPT, seed=0, **changes):
    return OracleCollector(pair, dataclasses.replace(config, **changes)).collect_text(Request(prompt, seed))


def test_the_greedy_response_is_the_targets_own(pair, config):
    for seed in range(4):
        prompt = tuple(range(3 + seed, 20))
        text = collect_text(pair, config, prompt)
        alone = autoregressive(CachedModel(pair.target), prompt, 24, eos_token_ids=pair.eos_token_ids)
        assert (text.response_token_ids, text.finish_reason) == (alone.token_ids, alone.finish_reason)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_response_token_has_its_row_and_every_rejected_one_its_tail(pair, config, temperature):
    text = collect_text(pair, config, temperature=temperature, tail_length=3, max_lookahead=2)
    rows, start = text.rows, len(PROMPT)
    known = rows["depth"] == 0
    assert rows["index"][known].tolist() == list(range(start, start + len(text.response_token_ids)))
    assert rows["text_token_id"][known].tolist() == list(text.response_token_ids)
    assert 0 < rows["accepted"].sum() < known.sum()
    for i in np.flatnonzero(known):
        following = np.flatnonzero((rows["index"] == rows["index"][i]) & ~known)
        drafted = [rows["token_id"][i], *rows["token_id"][following]]
        length = 0 if rows["accepted"][i] else next((d for d, token in enumerate(drafted) if token == 0), 3)
        assert rows["depth"][following].tolist() == list(range(1, length + 1))
    assert np.isnan(rows["agreement"][~known]).all()
    assert np.isfinite(rows["agreement"][known]).all()


def test_greedy_rows_agree_with_one_forward_over_the_finished_text(pair, config):
    text = collect_text(pair, config)
    tokens, start = torch.tensor([[*PROMPT, *text.response_token_ids]]), len(PROMPT)
    with torch.inference_mode():
        draft, target = (model(tokens).logits[0, start - 1 : -1].log_softmax(-1) for model in (pair.draft, pair.target))
    known = text.rows["depth"] == 0
    row = {name: column[known] for name, column in text.rows.items()}
    assert row["token_id"].tolist() == draft.argmax(-1).tolist()
    assert row["accepted"].tolist() == (draft.argmax(-1) == target.argmax(-1)).tolist()
    for name, expected in {
        "entropy": -(draft.exp() * draft).sum(-1),
        "log_prob_1": draft.amax(-1),
        "token_log_prob": draft.amax(-1),
        "target_entropy": -(target.exp() * target).sum(-1),
        "target_top_prob": target.amax(-1).exp(),
        "accept_prob": row["accepted"],
        "agreement": row["accepted"],
    }.items():
        np.testing.assert_allclose(row[name], np.asarray(expected, np.float32), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("max_lookahead", [1, 3, 20])
def test_greedy_rows_do_not_depend_on_the_lookahead(pair, config, max_lookahead):
    expected, found = collect_text(pair, config), collect_text(pair, config, max_lookahead=max_lookahead)
    assert expected.response_token_ids == found.response_token_ids
    for name, column in expected.rows.items():
        np.testing.assert_allclose(found.rows[name], column, atol=1e-4, err_msg=name)


def test_a_text_ends_where_the_context_does(pair, config):
    text = collect_text(pair, config, prompt=tuple(range(3, 60)) * 4, max_new_tokens=1000, temperature=1.0)
    assert text.finish_reason == "eos" or len(text.response_token_ids) == CONTEXT + 1 - 57 * 4


def test_sampled_rows_follow_the_law_of_the_coupling(config):
    """Joint law of (drafted, committed) over 1,200 texts of one token; false alarms: one run in a million."""
    stats = pytest.importorskip("scipy.stats")
    target, draft = make_model(3, vocab_size=5), make_model(4, vocab_size=5)
    collector = OracleCollector(
        make_pair(target, draft), dataclasses.replace(config, temperature=2.0, max_new_tokens=1, tail_length=0)
    )
    counts = np.zeros((5, 5))
    for seed in range(1200):
        rows = collector.collect_text(Request((1, 2, 3), seed)).rows
        counts[rows["token_id"][0], rows["text_token_id"][0]] += 1
        assert rows["accepted"][0] == (rows["token_id"][0] == rows["text_token_id"][0])
    sampling, tokens = Sampling(2.0), torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        draft_probs, target_probs = (
            sampling.probs(model(tokens).logits[0, -1:])[0].double().numpy() for model in (draft, target)
        )
    residual = np.maximum(target_probs - draft_probs, 0)
    expected = np.outer(np.maximum(draft_probs - target_probs, 0), residual / residual.sum())
    expected += np.diag(np.minimum(draft_probs, target_probs))
    seen = expected * 1200 > 1
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[seen], expected[seen] / expected[seen].sum() * counts[seen].sum()).pvalue > 1e-6


def test_a_collection_opens_as_traces_and_says_what_it_is(config, capsys):
    assert main([*arguments(config), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    opened = open_traces([Path(config.output)])
    manifest = opened.manifests[0]
    assert printed["num_rows"] == len(opened) == manifest["counts"]["num_rows"]
    assert len(opened.sequences) == 6
    assert manifest["pair"]["target"]["vocab_size"] == 64
    assert manifest["sampling"]["max_new_tokens"] == 24
    assert manifest["parts"] == [0, 1, 2]


def test_rows_do_not_depend_on_order_or_parts(config, tmp_path):
    lines = PROMPTS.read_text().splitlines()[:6]
    (tmp_path / "reversed.jsonl").write_text("\n".join(reversed(lines)))
    changes = {"prompts": str(tmp_path / "reversed.jsonl"), "output": str(tmp_path / "other"), "part_size": 4}
    found = []
    for changed in (config, dataclasses.replace(config, **changes)):
        collect(dataclasses.replace(changed, temperature=1.0))
        opened = open_traces([Path(changed.output)])
        found.append({s.prompt_id: s.response_token_ids.tolist() for s in opened.sequences})
    assert found[0] == found[1]


SUICIDE = """
import os, signal, sys
from dsl_train import provenance
from dsl_train.cli.collect import main

replace = os.replace
def replace_or_die(source, destination):  # dies between the two files of part 2
    if str(destination).endswith("sequences/part-00002.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, destination)

provenance.os.replace = replace_or_die
main(sys.argv[1:])
"""


def test_a_killed_collection_resumes_to_the_same_bytes(config, tmp_path):
    config = dataclasses.replace(config, part_size=1, temperature=1.0)
    killed, whole = Path(config.output), tmp_path / "whole"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SUICIDE, *arguments(config)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert completed_parts(killed) == [0, 1]
    assert (killed / "rows" / "part-00002.parquet").exists()
    assert not (killed / "manifest.json").exists()
    collect(config)
    collect(dataclasses.replace(config, output=str(whole)))
    assert not list(killed.rglob("*.tmp"))
    for table in ("rows", "sequences"):
        contents = [{file.name: file.read_bytes() for file in (f / table).iterdir()} for f in (killed, whole)]
        assert len(contents[0]) == 6
        assert contents[0] == contents[1]


def test_a_finished_collection_is_left_alone(config):
    collect(config)
    before = {file: file.stat().st_mtime_ns for file in Path(config.output).rglob("*.*") if file.name != ".lock"}
    collect(config)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_folder_of_another_collection_is_refused_and_kept(config):
    collect(config)
    before = (Path(config.output) / "manifest.json").read_text()
    with pytest.raises(DslError, match=r"holds another collection: its temperature is 0.0, now 0.5; repeat .*--output"):
        collect(dataclasses.replace(config, temperature=0.5))
    with pytest.raises(DslError, match=r"its prompts' number is 6, now 3"):
        collect(dataclasses.replace(config, num_prompts=3))
    assert (Path(config.output) / "manifest.json").read_text() == before


def test_a_second_run_into_a_folder_in_use_is_refused(config):
    with locked(Path(config.output)), pytest.raises(DslError, match=r"another dsl-collect is writing into"):
        collect(config)


def test_a_prompt_longer_than_the_context_is_put_aside_and_the_rest_collected(config, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "x" * 300}) + '\n{"prompt": "short"}')
    assert main(arguments(dataclasses.replace(config, prompts=str(prompts), num_prompts=None))) == 0
    assert "1 prompts put aside" in capsys.readouterr().err
    manifest = open_traces([Path(config.output)]).manifests[0]
    assert manifest["counts"]["num_sequences"] == manifest["num_rejects"] == 1
    assert "has 300 tokens but the models' context holds 256" in manifest["rejects"][0]["reason"]


def test_a_collection_without_a_usable_prompt_fails(config, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "x" * 300}))
    assert main(arguments(dataclasses.replace(config, prompts=str(tmp_path / "p.jsonl")))) == 1
    assert "none of the 1 prompts could be used; the first: the prompt has 300 tokens" in capsys.readouterr().err
    assert not (Path(config.output) / "manifest.json").exists()


def test_a_model_that_gives_nan_has_its_texts_put_aside(config):
    broken = make_model(0)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    answers = list(OracleCollector(make_pair(make_model(0), broken), config).collect([Request(PROMPT, 0)]))
    assert "draft model's logits are not numbers" in answers[0].reason


def test_an_output_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DslError, match=r"output folder .*file/traces cannot be written .*--output"):
        collect(dataclasses.replace(config, output=str(tmp_path / "file" / "traces")))


def test_a_full_disk_keeps_the_parts_before(config, monkeypatch):
    from dsl_train import traces

    write = traces.write_part

    def full(folder, part, rows, sequences):
        if part == 1:
            raise OSError(28, "No space left on device")
        write(folder, part, rows, sequences)

    monkeypatch.setattr(traces, "write_part", full)
    with pytest.raises(DslError, match=r"part 1 could not be written .*No space left.* run the same command again"):
        collect(config)
    monkeypatch.undo()
    assert traces.completed_parts(Path(config.output)) == [0]
    assert collect(config).counts.num_sequences == 6


def arguments(config):
    named = dataclasses.asdict(config).items()
    return [f"--{name}={value}" for name, value in named if value is not None]
