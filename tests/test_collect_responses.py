"""Responses from a log: every layout, the tokens they become, and those that must not be used."""

import csv
import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import assert_same_rows, make_config, rows_by_text
from conftest import make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.logged import Response, ResponseReader, answers_of
from dsl_train.collect.prompts import Prompt
from dsl_train.collect.shards import collect
from dsl_train.collect.sources import Record
from dsl_train.traces.store import open_traces

END = frozenset({0})


@pytest.fixture(scope="module")
def tokenizer():
    made = make_tokenizer()
    made.name_or_path = "models/target"
    made.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[go]"
    return made


def read(tokenizer, row, **settings):
    reader = ResponseReader(tokenizer, frozenset({64}), settings.pop("sampling", Sampling()), **settings)
    return [reader.read(answer) for answer in answers_of(Record("log, line 1", row))]


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "ab", "response": "cd"}, "ab", Response("cd")),
        ({"question": "ab", "completion": "cd", "finish_reason": "length"}, "ab", Response("cd")),
        ({"text": "ab", "output": "cd", "finish_reason": "stop"}, "ab", Response("cd", ended=True)),
        ({"prompt": "ab", "response": "", "finish_reason": "eos"}, "ab", Response("", ended=True)),
        ({"prompt": "ab", "response": "cd", "finish_reason": "stop", "stop": ["\n"]}, "ab", Response("cd")),
        ({"prompt": "ab", "response_token_ids": [4, 5]}, "ab", Response(token_ids=(4, 5))),
        ({"prompt": "ab", "response": "cd", "token_ids": [4, 5]}, "ab", Response(token_ids=(4, 5))),
        (
            {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]},
            "[user]ab[go]",
            Response("cd"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "ab"}]}], "response": "cd"},
            "[user]ab[go]",
            Response("cd"),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "human", "value": "c"},
                    {"from": "gpt", "value": "d"},
                ]
            },
            "[user]a[assistant]b[user]c[go]",
            Response("d"),
        ),
    ],
)
def test_each_known_layout_gives_its_prompt_and_response(tokenizer, row, prompt, response):
    (found,) = read(tokenizer, row)
    assert (found.prompt.text, found.response) == (prompt, response)


def test_a_row_of_a_server_may_hold_several_answers(tokenizer):
    vllm = {
        "prompt": "ab",
        "prompt_token_ids": [2, 3],
        "sampling_params": {"temperature": 0.8, "top_k": -1, "n": 2},
        "outputs": [
            {"text": "cd", "token_ids": [4, 5], "finish_reason": "length", "stop_reason": None},
            {"text": "e", "token_ids": [6, 0], "finish_reason": "stop", "stop_reason": None},
        ],
    }
    found = read(tokenizer, vllm)
    assert [one.response.token_ids for one in found] == [(4, 5), (6, 0)]
    assert {one.prompt.token_ids for one in found} == {(2, 3)}
    assert {one.sampling for one in found} == {Sampling(0.8)}
    openai = {
        "messages": [{"role": "user", "content": "ab"}],
        "temperature": 1,
        "response": {"choices": [{"message": {"role": "assistant", "content": "cd"}, "finish_reason": "stop"}]},
    }
    (found,) = read(tokenizer, openai)
    assert (found.prompt.text, found.response) == ("[user]ab[go]", Response("cd", ended=True))


def test_tools_and_their_results_are_part_of_the_prompt():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ tools[0].name }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
    )
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "assistant", "content": "cd"},
    ]
    (found,) = read(tokenizer, {"messages": messages, "tools": [{"name": "weather"}]})
    assert (found.prompt.text, found.response) == ("weather[user]a[assistant]Rome[tool]sun", Response("cd"))
    with pytest.raises(DslError, match="tool_calls says that the text is not all"):
        read(tokenizer, {"messages": messages[:2], "tools": [{"name": "weather"}]})


LM_EVAL = {
    "doc_id": 0,
    "doc": {"question": "Why?"},
    "target": "42",
    "filter": "strict",
    "filtered_resps": ["d"],
    "exact_match": 1.0,
}


@pytest.mark.parametrize(
    ("arguments", "prompt", "sampling"),
    [
        ({"gen_args_0": {"arg_0": "ab", "arg_1": {"until": ["\n"], "do_sample": False}}}, "ab", Sampling(0.0, 5, 0.9)),
        ([["ab", {"until": ["\n"], "do_sample": True, "temperature": 0.6, "top_p": 1}]], "ab", Sampling(0.6, 5, 1.0)),
        (
            {"gen_args_0": {"arg_0": ['[{"role": "user", "content": "ab"}]'], "arg_1": {"max_gen_toks": 9}}},
            "[user]ab[go]",
            Sampling(0.0, 5, 0.9),
        ),
    ],
)
def test_samples_of_lm_eval_are_read(tokenizer, arguments, prompt, sampling):
    row = {**LM_EVAL, "arguments": arguments, "resps": [["cd", "e"]]}
    found = read(tokenizer, row, sampling=Sampling(0.7, 5, 0.9))
    assert [one.response for one in found] == [Response("cd"), Response("e")]
    assert {(one.prompt.text, one.sampling) for one in found} == {(prompt, sampling)}


def test_samples_of_likelihoods_are_refused(tokenizer):
    arguments = {f"gen_args_{i}": {"arg_0": "ab", "arg_1": " c"} for i in range(2)}
    with pytest.raises(DslError, match="log, line 1: an lm-eval sample in which nothing was generated"):
        read(tokenizer, {**LM_EVAL, "arguments": arguments, "resps": [[["-1.0", "False"]], [["-2.0", "True"]]]})


def batch_files(folder):
    """Both files of a batch, the answers in another order: two good ones, two failures, one to no request."""
    requests, answers = [], []
    for i in range(4):
        body = {"model": "m", "messages": [{"role": "user", "content": "ab"[i % 2]}], "temperature": 0.5}
        requests.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        choice = {"index": 0, "message": {"role": "assistant", "content": "cd"[i % 2]}, "finish_reason": "length"}
        response = {"status_code": 200, "request_id": "x", "body": {"id": "y", "choices": [choice]}}
        answers.append({"id": f"b{i}", "custom_id": f"r{i}", "response": response, "error": None})
    answers.append({**answers[0], "custom_id": "stranger"})
    answers[2]["response"] = {"status_code": 429, "body": {"error": {"message": "too many"}}}
    answers[3] |= {"response": None, "error": {"code": "batch_expired"}}
    for name, rows in (("in", requests), ("out", answers[::-1])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"prompts": str(folder / "in.jsonl"), "responses": str(folder / "out.jsonl"), "num_prompts": None}


def test_the_two_files_of_an_openai_batch_are_joined(pair_folders, tmp_path):
    found = collect(make_config(pair_folders, tmp_path / "traces", **batch_files(tmp_path)))
    sequences = open_traces([tmp_path / "traces"]).sequences
    texts = {make_tokenizer().decode([*s.prompt_token_ids, *s.response_token_ids]) for s in sequences}
    assert texts == {"ac", "bd"}
    assert {s.temperature for s in sequences} == {0.5}
    stranger, *failed = [reject.reason for reject in found.rejected]
    assert stranger == "custom_id 'stranger' is none of the 4 requests in --prompts"
    assert ["the server answered with an error" in reason for reason in failed] == [True, True]


def test_requests_that_cannot_be_told_apart_are_refused(pair_folders, tmp_path):
    files = batch_files(tmp_path)
    source = Path(files["prompts"])
    source.write_text(source.read_text().replace('"r1"', '"r0"'))
    with pytest.raises(DslError, match=r"in.jsonl: custom_id 'r0' stands for two requests"):
        collect(make_config(pair_folders, tmp_path / "traces", **files))
    source.write_text(json.dumps({"prompt": "a"}))
    with pytest.raises(DslError, match=r"in.jsonl, line 1: no column 'custom_id', which joins a request"):
        collect(make_config(pair_folders, tmp_path / "traces", **files))


def test_rows_of_broken_characters_are_put_aside(pair_folders, tmp_path):
    source = tmp_path / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, [{"prompt": "ab"}, {"prompt": "a\ud800"}, {"\udfff": "a"}])))
    config = make_config(pair_folders, tmp_path / "traces", prompts=str(source), num_prompts=None)
    found = collect(config)
    assert [reject.where for reject in found.rejected] == [f"{source}, line {i}" for i in (2, 3)]
    assert found.counts.num_sequences == 1
    assert collect(config).rejected == found.rejected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, Sampling(0.7, 5, 0.9)),
        ({"temperature": 0.2}, Sampling(0.2, 5, 0.9)),
        ({"temperature": "0.2", "top_k": "", "top_p": None}, Sampling(0.2, 5, 0.9)),
        ({"generation_config": {"do_sample": False, "temperature": 0.6}}, Sampling(0.0, 5, 0.9)),
        ({"sampling_params": {"temperature": 1.0, "top_k": -1, "top_p": 1}}, Sampling(1.0, 0, 1.0)),
    ],
)
def test_the_row_says_how_it_was_sampled_and_else_the_command_does(tokenizer, row, expected):
    (found,) = read(tokenizer, {"prompt": "a", "response": "b", **row}, sampling=Sampling(0.7, 5, 0.9))
    assert found.sampling == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"repetition_penalty": 1.1}, "drawn with repetition_penalty 1.1, which changes what the target says"),
        ({"sampling_params": {"presence_penalty": 0.5}}, "presence_penalty 0.5"),
        ({"frequency_penalty": "0.5"}, "frequency_penalty 0.5"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"min_p": 0.05}, "min_p 0.05"),
        ({"typical_p": 0.9}, "typical_p 0.9"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size 3"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids"),
        ({"sampling_params": {"guided_json": {"type": "object"}}}, "guided_json"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "a text was asked with tools"),
        ({"tools": "weather"}, "tools holds 'weather', not a list of JSON schemas"),
        ({"chat_template_kwargs": [1]}, r"chat_template_kwargs holds '\[1\]', not an object"),
        ({"tool_choice": "required"}, "tool_choice required"),
        ({"response": "b\ud800"}, r"character 2 is '\\ud800', a lone surrogate"),
        ({"min_tokens": 10}, "min_tokens 10"),
        ({"num_beams": 4}, "num_beams 4"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"top_k": "many"}, "no sampling parameters"),
        ({"sampling_params": "SamplingParams(n=1)"}, "sampling_params holds 'SamplingParams"),
        ({"tokenizer": "other/model"}, "tokenized by other/model, the target's tokenizer is models/target"),
        ({"vocab_size": 32000}, "a vocabulary of 32000, the target's has 64"),
        ({"response": None}, "no response; name it response or completion"),
        ({"response": 3}, "response holds '3', not text or token ids"),
        ({"prompt": None}, "no column 'prompt_token_ids' or"),
        ({"finish_reason": "content_filter"}, "content_filter says that the text is not all that the target said"),
        ({"reasoning_content": "hm"}, "reasoning_content says that the text is not all"),
        ({"response": None, "messages": [{"role": "user", "content": "a"}]}, "the last message is the user's"),
    ],
)
def test_what_would_be_labelled_wrongly_is_refused_by_name(tokenizer, row, reason):
    with pytest.raises(DslError, match=rf"log, line 1: .*{reason}"):
        read(tokenizer, {"prompt": "a", "response": "b", **row})


@pytest.mark.parametrize(
    "row",
    [
        {"repetition_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": "0.0", "logit_bias": {}, "min_p": None},
        {"generation_config": {"typical_p": 1.0, "num_beams": 1, "length_penalty": 1.0, "guidance_scale": None}},
        {
            "response_format": {"type": "text"},
            "bad_words": [],
            "watermark": False,
            "tools": None,
            "tool_choice": "auto",
        },
        {"tokenizer": "elsewhere/Target", "vocab_size": "64", "user": "me", "latency_ms": 12.5},
    ],
)
def test_settings_that_change_nothing_are_no_reason(tokenizer, row):
    assert len(read(tokenizer, {"prompt": "a", "response": "b", **row})) == 1


def test_several_messages_need_a_chat_template(tokenizer):
    messages = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
    with pytest.raises(DslError, match=r"2 messages before the response, but .* no chat template"):
        read(make_tokenizer(), {"messages": messages})


def test_text_becomes_the_tokens_behind_its_prompt_and_its_end_comes_back(tokenizer):
    prompt, ids = Prompt("", "ab"), [2, 3]
    assert Response("cd").encode(prompt, ids, tokenizer, END) == [4, 5]
    assert Response("cd", ended=True).encode(prompt, ids, tokenizer, END) == [4, 5, 0]
    assert Response("cd", ended=True).encode(prompt, ids, tokenizer, frozenset({0, 9})) == [4, 5, 0]
    assert Response("", ended=True).encode(prompt, ids, tokenizer, END) == [0]
    assert Response(token_ids=(4, 0, 5), ended=True).encode(prompt, ids, tokenizer, END) == [4, 0]
    assert Response("cd").encode(Prompt("", token_ids=(9, 9)), [9, 9], tokenizer, END) == [4, 5]


def trained(pre_tokenizer, decoder, text):
    """A BPE tokenizer that merges whatever it can of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(decoder, decoders.ByteLevel) else []
    tokenizer.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def test_the_prompts_own_tokens_stay_where_a_tokenizer_would_merge_across():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), "foobar")
    prompt = Prompt("", "foo")
    ids = prompt.encode(tokenizer)
    assert len(tokenizer("foobar")["input_ids"]) == 1  # one token, which the target never saw
    response = Response("bar").encode(prompt, ids, tokenizer, frozenset())
    assert tokenizer.decode([*ids, *response]) == "foobar"
    assert response == tokenizer("bar")["input_ids"]


def test_a_tokenizer_that_writes_a_leading_space_writes_none_inside_a_word():
    tokenizer = trained(pre_tokenizers.Metaspace(), decoders.Metaspace(), "a b c")
    prompt = Prompt("", "a b")
    response = Response("c").encode(prompt, prompt.encode(tokenizer), tokenizer, frozenset())
    assert tokenizer.convert_ids_to_tokens(response) == ["c"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("c")["input_ids"]) == ["▁c"]


def test_a_response_that_cannot_be_told_from_its_prompt_is_refused():
    tokenizer = trained(pre_tokenizers.Metaspace(), decoders.Metaspace(), "foobar")
    prompt = Prompt("", "foo")
    with pytest.raises(DslError, match="cannot be told from its prompt in tokens; give the response_token_ids"):
        Response("bar").encode(prompt, prompt.encode(tokenizer), tokenizer, frozenset())


def log(folder):
    """What the traces in a folder hold, as a server would have logged it."""
    tokenizer = make_tokenizer()
    rows = []
    for sequence in open_traces([folder]).sequences:
        prompt, response = (ids.tolist() for ids in (sequence.prompt_token_ids, sequence.response_token_ids))
        text = tokenizer.decode(response[:-1] if response[-1] == 0 else response)
        reason = "stop" if sequence.finish_reason == "eos" else "length"
        ids = response if 1 in response else None  # an unknown character has no text
        row = {"prompt_token_ids": prompt, "response": text, "response_token_ids": ids}
        rows.append({**row, "finish_reason": reason, "temperature": 0.0})
    return rows


def write(rows, file):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text(json.dumps(rows) if file.suffix == ".json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "json", "csv"])
def test_what_the_target_said_is_logged_gives_the_rows_of_asking_it(pair_folders, tmp_path, suffix):
    config = make_config(pair_folders, tmp_path / "asked")
    collect(config)
    source = tmp_path / f"log.{suffix}"
    write(log(tmp_path / "asked"), source)
    changes = {"prompts": None, "responses": str(source), "output": str(tmp_path / "brought"), "temperature": 0.7}
    found = collect(dataclasses.replace(config, **changes))
    assert found.rejected == ()
    assert_same_rows(rows_by_text(tmp_path / "brought"), rows_by_text(tmp_path / "asked"))


def test_rejects_are_counted_by_reason_and_named_by_row_and_answers_of_one_prompt_stay_together(pair_folders, tmp_path):
    good = [{"prompt": "ab", "response_token_ids": [5, 6 + i]} for i in range(3)]
    bad = [{"prompt": "ab", "response": "x", "repetition_penalty": penalty} for penalty in (1.1, 1.2)]
    repeated = [*good, *good[:1], *bad, {"prompt": "cd", "response_token_ids": [99]}, {"prompt": "ef", "response": "a"}]
    source = tmp_path / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, repeated)))
    settings = {"prompts": None, "responses": str(source), "temperature": 1.0, "num_prompts": None, "num_shards": 2}
    shards = [collect(make_config(pair_folders, tmp_path / "out", **settings, shard_index=index)) for index in range(2)]
    assert [shard.counts.num_sequences for shard in shards] == [4, 0]  # ab and ef, cd
    rejected = [
        json.loads(line)
        for shard in shards
        for file in sorted((shard.folder / "rejects").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert sorted(reject["where"] for reject in rejected) == [f"{source}, line {i}" for i in (5, 6, 7)]
    manifests = open_traces([tmp_path / "out"]).manifests
    assert sum(manifest["num_rejects"] for manifest in manifests) == 3
    assert "id 99 but the target's vocabulary holds 64" in json.dumps(rejected)
    whole = collect(make_config(pair_folders, tmp_path / "whole", **{**settings, "num_shards": None}))
    counts = json.loads((whole.folder / "manifest.json").read_text())["rejects_by_reason"]
    assert [count for reason, count in counts.items() if "repetition_penalty …" in reason] == [2]


def test_a_long_response_is_cut_where_the_context_ends(pair_folders, tmp_path):
    source = tmp_path / "log.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [5] * 200, "response_token_ids": [6] * 200}))
    changes = {"prompts": None, "responses": str(source), "temperature": 1.0}
    collect(make_config(pair_folders, tmp_path / "out", **changes))
    (sequence,) = open_traces([Path(tmp_path / "out")]).sequences
    assert len(sequence.response_token_ids) == 57
    assert sequence.finish_reason == "length"
