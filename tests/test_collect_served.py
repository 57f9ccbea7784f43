"""Collecting from a served target, and from logs, with the draft alone: labels, failures, resume."""

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
from collecting import DIES_IN_PART, arguments, assert_same_rows, make_config, rows_by_text, tables
from served_target import FAULTS, ServedTarget

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.cli.collect import main
from dsl_train.collect import server as server_module
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_alone import _chances, _Known
from dsl_train.collect.log_probs import completed, read_log_probs
from dsl_train.collect.shards import collect
from dsl_train.traces.decisions import build
from dsl_train.traces.store import completed_parts, open_traces

OF_TARGET = ("target_entropy", "target_top_prob")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)


def from_server(folders, url, output, **changes) -> CollectConfig:
    return dataclasses.replace(make_config(folders, output, **changes), target=None, server=url)


def without_target(rows):
    """Labels and the draft's columns; those of the target alone are empty or left out."""
    return {text: {name: x for name, x in columns.items() if name not in OF_TARGET} for text, columns in rows.items()}


def log_of(folder, target, file, num_told, **more):
    """What a server would have logged of the traces in a folder, with so many of the target's log-probabilities."""
    rows = []
    for sequence in open_traces([folder]).sequences:
        prompt, said = (ids.tolist() for ids in (sequence.prompt_token_ids, sequence.response_token_ids))
        sampling = Sampling(round(float(sequence.temperature), 6), int(sequence.top_k), round(float(sequence.top_p), 6))
        with torch.inference_mode():
            law = sampling.probs(target(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1])
        told = law.log().clamp_min(-9999)
        best = [[*row, token_id] for row, token_id in zip(told.topk(num_told).indices.tolist(), said, strict=True)]
        tops = [{str(i): float(told[j, i]) for i in dict.fromkeys(row)} for j, row in enumerate(best)]
        settings = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        row = {"prompt_token_ids": prompt, "response_token_ids": said, **settings, **more}
        rows.append({**row, **({"logprobs": tops} if num_told else {})})
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"prompts": None, "responses": str(file)}


def test_greedy_answers_have_the_labels_of_both_models_though_every_second_request_fails(
    pair_folders, tiny_target, tmp_path
):
    both = make_config(pair_folders, tmp_path / "both")
    collect(both)
    with ServedTarget(tiny_target, lambda number: FAULTS[number % 6] if number % 6 < 4 else "") as served:
        found = collect(from_server(pair_folders, served.url, tmp_path / "served", server_requests=2))
    assert found.rejected == ()
    assert set(served.met) == set(FAULTS)
    assert served.most_at_once <= 2
    assert all(asked["repetition_penalty"] == 1.0 and asked["model"] == "tiny" for asked in served.asked)
    rows = rows_by_text(tmp_path / "served")
    assert all(np.isnan(columns[name]).all() for columns in rows.values() for name in OF_TARGET)
    assert_same_rows(without_target(rows), without_target(rows_by_text(tmp_path / "both")))
    manifest = open_traces([tmp_path / "served"]).manifests[0]
    assert manifest["pair"]["target"] == {"id": "tiny", "served_as": "tiny"}
    assert manifest["cost"] is None


@pytest.mark.parametrize("mode", ["processed", "raw"])
def test_sampled_answers_to_greedy_drafts_have_the_labels_of_both_models(pair_folders, tiny_target, tmp_path, mode):
    """With and without log-probabilities that can be used; with them the chances are the target's, too."""
    sampled = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "draft_sampling": "greedy"}
    with ServedTarget(tiny_target, mode=mode) as served:
        collect(from_server(pair_folders, served.url, tmp_path / "served", **sampled))
    told = [asked for asked in served.asked if asked["max_tokens"] > 1 and asked.get("logprobs")]
    assert len(told) == (6 if mode == "processed" else 0)
    source = log_of(tmp_path / "served", tiny_target, tmp_path / "log.jsonl", 0)
    collect(make_config(pair_folders, tmp_path / "both", **source, draft_sampling="greedy"))
    found, expected = (without_target(rows_by_text(tmp_path / name)) for name in ("served", "both"))
    chances = [name for name in ("accept_prob", "accept_ratio") if mode == "raw"]
    for columns in found.values():
        for name in chances:
            assert set(columns.pop(name)[columns["depth"] == 0].tolist()) <= {0.0, 1.0}
    for columns in expected.values():
        for name in chances:
            del columns[name]
    assert_same_rows(found, expected)
    assert build(open_traces([tmp_path / "served"])).draft_sampling == "greedy"


@pytest.mark.parametrize(
    ("num_told", "sampling"), [(64, {}), (64, {"top_k": 9, "top_p": 0.8}), (20, {}), (20, {"top_k": 9, "top_p": 0.8})]
)
def test_a_log_with_log_probabilities_is_labelled_without_the_target(
    pair_folders, tiny_target, tmp_path, num_told, sampling
):
    """Drafts that are drawn. Exact where all is told: of the whole vocabulary, or of a truncated law."""
    collect(make_config(pair_folders, tmp_path / "asked", temperature=0.8, num_prompts=12, **sampling))
    mode = {"logprobs_mode": "processed_logprobs"}
    source = log_of(tmp_path / "asked", tiny_target, tmp_path / "log.jsonl", num_told, **mode)
    both = make_config(pair_folders, tmp_path / "both", **source, num_prompts=None, tail_length=0)
    collect(both)
    assert collect(dataclasses.replace(both, target=None, output=str(tmp_path / "alone"))).rejected == ()
    found, expected = (without_target(rows_by_text(tmp_path / name)) for name in ("alone", "both"))
    if num_told == 64 or sampling:
        assert_same_rows(found, expected)
        return
    for text, columns in expected.items():
        for name in ("accepted", "text_token_id", "index"):
            np.testing.assert_array_equal(found[text][name], columns[name])
        same = found[text]["token_id"] == columns["token_id"]
        assert same[columns["accepted"]].all()
        assert same.mean() > 0.5
        np.testing.assert_allclose(found[text]["agreement"], columns["agreement"], atol=1e-4)
        assert ((found[text]["accept_prob"] >= 0) & (found[text]["accept_prob"] <= 1 + 1e-6)).all()


def test_a_sampled_log_without_the_law_it_was_drawn_from_is_put_aside_unless_drafts_are_greedy(
    pair_folders, tiny_target, tmp_path
):
    collect(make_config(pair_folders, tmp_path / "asked", temperature=0.8))
    source = log_of(tmp_path / "asked", tiny_target, tmp_path / "log.jsonl", 20)  # before or after the temperature?
    alone = dataclasses.replace(make_config(pair_folders, tmp_path / "alone", **source), target=None)
    with pytest.raises(DslError, match=r"none of the 6 texts .*came without log-probabilities of the law"):
        collect(alone)
    greedy = dataclasses.replace(alone, draft_sampling="greedy", output=str(tmp_path / "greedy"))
    assert collect(greedy).rejected == ()
    assert main([*arguments(greedy), "--dry_run=true"]) == 0


def test_a_spoilt_answer_costs_its_row_and_no_other(pair_folders, tiny_target, tmp_path):
    """Not JSON, no choices, a refusal, no token ids, other tokens read, an answer broken off, strange ids, none."""
    spoilers = [
        lambda answer: "<html>",
        lambda answer: {"error": None},
        lambda answer: 400,
        lambda answer: {"choices": [{**answer["choices"][0], "token_ids": None}]},
        lambda answer: {"choices": [{**answer["choices"][0], "prompt_token_ids": [1]}]},
        lambda answer: {"choices": [{**answer["choices"][0], "finish_reason": "abort"}]},
        lambda answer: {"choices": [{**answer["choices"][0], "token_ids": [5, 64]}]},
        lambda answer: {"choices": [{**answer["choices"][0], "token_ids": []}]},
    ]
    prompts: dict[tuple[int, ...], int] = {}

    def spoil(asked, answer):
        number = prompts.setdefault(tuple(asked["prompt"]), len(prompts))
        return spoilers[number](answer) if number < len(spoilers) else answer

    config = make_config(pair_folders, tmp_path / "traces", num_prompts=10)
    with ServedTarget(tiny_target) as served:
        served.spoil = spoil
        config = dataclasses.replace(config, target=None, server=served.url, server_requests=1)
        assert main(arguments(config)) == 3
        found = collect(config)
    assert found.counts.num_sequences == 2
    reasons = sorted(reject.reason for reject in found.rejected)
    for expected in (
        "cannot be read",
        "status 400): this text is refused",
        "no token ids",
        "other tokens",
        "broke the",
    ):
        assert any(expected in reason for reason in reasons), (expected, reasons)
    assert len(reasons) == 8


def test_a_server_that_is_gone_ends_the_run_and_the_same_command_goes_on(
    pair_folders, tiny_target, tmp_path, monkeypatch
):
    monkeypatch.setattr(server_module, "_RETRIES", 1)
    changes = {"temperature": 0.8, "draft_sampling": "greedy", "server_requests": 2, "part_size": 1, "num_prompts": 8}
    with ServedTarget(tiny_target, lambda number: "busy" if number >= 9 else "") as served:
        config = from_server(pair_folders, served.url, tmp_path / "traces", **changes)
        monkeypatch.setattr(server_module.Server, "_is_alive", lambda server: False)
        with pytest.raises(DslError, match=r"fails on every text .*finished parts are safe: mend it and run the same"):
            collect(config)
        assert 0 < len(completed_parts(tmp_path / "traces")) < 8
        served.fault = lambda number: ""
        assert collect(config).rejected == ()
        whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
        collect(whole)
    assert tables(tmp_path / "traces") == tables(tmp_path / "whole")
    with pytest.raises(DslError, match="does not list its models"):
        collect(config)


def test_a_server_that_lives_and_fails_on_everything_is_no_reason_to_put_everything_aside(
    pair_folders, tiny_target, tmp_path, monkeypatch
):
    monkeypatch.setattr(server_module, "_RETRIES", 0)
    with ServedTarget(tiny_target, lambda number: "busy") as served:
        config = from_server(pair_folders, served.url, tmp_path / "traces", server_requests=1, num_prompts=20)
        with pytest.raises(DslError, match="fails on every text"):
            collect(config)
    assert len(served.asked) == 10


def test_a_killed_collection_goes_on_and_comes_out_the_same(pair_folders, tiny_target, tmp_path):
    with ServedTarget(tiny_target) as served:
        config = from_server(pair_folders, served.url, tmp_path / "killed", temperature=1.0, num_threads=1)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", DIES_IN_PART.format(part=1), *arguments(config)]
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert completed_parts(Path(config.output)) == [0]
        collect(config)
        collect(dataclasses.replace(config, output=str(tmp_path / "whole")))
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")


def test_log_probabilities_before_the_temperature_are_refused_where_drafts_are_drawn(
    pair_folders, tiny_target, tmp_path
):
    with ServedTarget(tiny_target, mode="raw") as served:
        config = from_server(pair_folders, served.url, tmp_path / "traces", temperature=0.8)
        with pytest.raises(DslError, match=r"start it with --logprobs-mode processed_logprobs, or .*greedy"):
            collect(config)
        plain = dataclasses.replace(config, temperature=1.0, output=str(tmp_path / "plain"))
        assert collect(plain).rejected == ()  # before and after are the same


def test_a_collection_of_another_served_model_is_another_collection(pair_folders, tiny_target, tmp_path, monkeypatch):
    with ServedTarget(tiny_target) as served:
        config = from_server(pair_folders, served.url, tmp_path / "traces")
        collect(config)
        with pytest.raises(DslError, match="has the models tiny, not other"):
            collect(dataclasses.replace(config, server_model="other"))
        monkeypatch.setattr(server_module.Server, "_find", lambda server, model: ("other", None))
        with pytest.raises(DslError, match="its target's served_as is 'tiny', now 'other'"):
            collect(config)


@pytest.mark.parametrize(
    "value",
    [
        {
            "top_logprobs": [{"token_id:7": -1.0, "token_id:9": -2.0}],
            "tokens": ["token_id:5"],
            "token_logprobs": [-3.0],
        },
        {
            "content": [
                {
                    "token": "token_id:5",
                    "logprob": -3.0,
                    "top_logprobs": [
                        {"token": "token_id:7", "logprob": -1.0},
                        {"token": "token_id:9", "logprob": -2.0},
                    ],
                }
            ]
        },
        [{"7": {"logprob": -1.0, "rank": 1}, "9": {"logprob": -2.0}, "5": {"logprob": -3.0}}],
        [{"7": -1.0, "9": -2.0, "5": -3.0}],
    ],
)
def test_log_probabilities_are_read_in_every_form(value):
    found = read_log_probs("row", value, [5])
    assert found.token_ids.tolist() == [[7, 9, 5]]
    assert found.log_probs.tolist() == [[-1.0, -2.0, -3.0]]


def test_a_token_is_told_because_it_is_likely_or_because_it_was_said():
    found = read_log_probs("row", [{"7": -1.0, "9": -2.0, "5": -3.0}, {"7": -1.0, "9": -2.0}], [5, 9])
    assert found.is_top.tolist() == [[True, True, False], [True, True, False]]
    alone = read_log_probs("row", [{"7": -1.0, "5": -3.0}, {"7": -1.0}], [5, 7])
    assert not alone.is_top.any()


@pytest.mark.parametrize("greedy", [False, True])
def test_the_chance_of_acceptance_has_the_right_mean_whatever_is_told(greedy):
    """Over all that the target may say, each with its own probability."""
    generator = torch.Generator().manual_seed(0)
    target, draft = torch.rand(2, 1, 9, generator=generator).pow(3)
    target, draft = (probs / probs.sum() for probs in (target, draft))
    if greedy:
        draft = Sampling().probs(draft)
    expected = float(torch.minimum(target, draft).sum())
    for num_told in (0, 2, 4, 9):
        top = target.topk(num_told).indices[0].tolist()
        mean = 0.0
        for said in range(9):
            ids = torch.tensor([[*top, *({said} - set(top))]])
            known = _Known(ids, target.gather(-1, ids).log(), torch.isin(ids, torch.tensor(top)))
            agreement = (draft / target).clamp_max(1.0)[:, said]
            chance = float(_chances(known, torch.tensor([said]), draft, agreement, greedy))
            assert -1e-6 < chance < 1 + 1e-6
            mean += float(target[0, said]) * chance
        assert mean == pytest.approx(expected, abs=1e-6)
    assert chance == pytest.approx(expected, abs=1e-6)  # all is told


def test_log_probabilities_that_belong_to_another_text_are_refused():
    assert read_log_probs("row", None, [5]) is None
    assert read_log_probs("row", [{" a": -1.0}], [5]) is None  # named by their texts
    with pytest.raises(DslError, match="row: log-probabilities of 2 tokens for a response of 1"):
        read_log_probs("row", [{"5": -1.0}, {"5": -1.0}], [5])
    with pytest.raises(DslError, match=r"no log-probability of response token 0 \(id 6\)"):
        read_log_probs("row", [{"5": -1.0}], [6])
    with pytest.raises(DslError, match="in a form that is not known"):
        read_log_probs("row", {"tokens": 3}, [6])


def test_what_is_not_told_is_shared_as_the_draft_would():
    draft = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    told = torch.tensor([[0.5, 0.2]]).log()
    found = completed(torch.tensor([[3, 1]]), told, draft.log())
    torch.testing.assert_close(found, torch.tensor([[0.075, 0.2, 0.225, 0.5]]))
    whole = completed(torch.tensor([[0, 1, 2, 3]]), draft.log(), draft.log())
    torch.testing.assert_close(whole, draft)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "give target, or server where it is served, or responses"),
        ({"server": "http://a"}, "a server answers prompts in the target's place"),
        ({"target": None, "server": "http://a", "method": "oracle"}, "method oracle asks the target itself"),
        ({"server_model": "m"}, "server_model names a model of a server"),
        ({"target": None, "server": "http://a", "temperature": 1.0, "draft_temperature": "auto"}, "give target, or a"),
        ({"target": None, "server": "http://a", "quantization": "8bit"}, "are for the target, and none is given"),
        ({"temperature": 1.0, "draft_temperature": 0.5, "draft_sampling": "greedy"}, "greedy, which draws nothing"),
        ({"draft": ""}, "give draft"),
        ({"server_requests": 0}, "server_requests must be at least 1"),
    ],
)
def test_commands_that_contradict_themselves_are_refused(pair_folders, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_config(pair_folders, tmp_path), **changes)
