"""Prompts from every format, and what is said about bad ones."""

import bz2
import gzip
import io
import json
import lzma

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tokenizer

from dsl_train.base.records import DslError
from dsl_train.collect.prompts import read_prompts

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"


def jsonl(tmp_path, *entries):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return str(path)


def texts(source, **options):
    return [prompt.text for prompt in read_prompts(source, **options)]


@pytest.mark.parametrize(
    "entry",
    [
        {"prompt": "hello"},
        {"text": "hello"},
        {"question": "hello"},
        {"question_id": 1, "category": "math", "turns": ["hello", "later"]},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "no"}]},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "no"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
    ],
)
def test_each_known_layout_gives_its_first_user_text(tmp_path, entry):
    assert texts(jsonl(tmp_path, entry)) == ["hello"]


def test_a_chat_template_is_used_for_turns_and_messages_but_not_for_plain_prompts(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    system = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    source = jsonl(tmp_path, {"turns": ["hi"]}, {"messages": system}, {"prompt": "plain"})
    prompts = read_prompts(source, tokenizer=tokenizer)
    assert [prompt.text for prompt in prompts] == ["[user]hi[go]", "[system]s[user]u[go]", "plain"]
    assert [prompt.add_special_tokens for prompt in prompts] == [False, False, True]


def test_tables_lists_and_texts_are_read_by_their_suffix(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "p.parquet")
    (tmp_path / "p.csv").write_text('prompt,n\n"a",1\n"b",2\n')
    (tmp_path / "p.json").write_text('[{"prompt": "a"}, "b"]')
    (tmp_path / "wrapped.json").write_text('{"data": [{"prompt": "a"}, {"prompt": "b"}]}')
    for name in ("p.parquet", "p.csv", "p.json", "wrapped.json"):
        assert texts(str(tmp_path / name)) == ["a", "b"], name
    (tmp_path / "p.py").write_text("def f():\n    pass\n")
    assert texts(str(tmp_path / "p.py")) == ["def f():\n    pass\n"]


@pytest.mark.parametrize(
    ("content", "expected"), [('{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]), ("one\ntwo", ["one\ntwo"])]
)
def test_standard_input_is_jsonl_or_one_text(monkeypatch, content, expected):
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert texts("-") == expected


def test_token_ids_are_used_as_they_are_and_text_is_encoded(tmp_path):
    tokens, text = read_prompts(jsonl(tmp_path, {"prompt_token_ids": [5, 6]}, {"prompt": "ab"}))
    assert tokens.encode(make_tokenizer()) == [5, 6]
    assert text.encode(make_tokenizer()) == [2, 3]


def test_ids_depend_on_the_content_only_and_repeats_are_dropped(tmp_path):
    first = read_prompts(jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}))
    assert [prompt.text for prompt in first] == ["a", "b"]
    again = read_prompts(jsonl(tmp_path, {"text": "b"}))
    assert again[0].prompt_id == first[1].prompt_id


def test_num_prompts_counts_different_prompts_and_reads_no_further(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\nbroken')
    assert texts(str(path), num_prompts=2) == ["a", "b"]


def test_a_chosen_column_wins(tmp_path):
    assert texts(jsonl(tmp_path, {"prompt": "a", "body": "b"}), column="body") == ["b"]


def test_an_unknown_column_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(
        DslError, match=r"line 1: no column 'nope'; the columns are prompt, n; choose one with --column"
    ):
        read_prompts(jsonl(tmp_path, {"prompt": "a", "n": 1}), column="nope")


def test_a_broken_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": \n')
    with pytest.raises(DslError, match=r"p.jsonl, line 3: not JSON .*write one object a line"):
        read_prompts(str(path))


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.txt"])
def test_an_empty_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("\n")
    with pytest.raises(DslError, match=rf"{name} has no prompts"):
        read_prompts(str(tmp_path / name))


def test_a_missing_file_and_a_folder_of_nothing_are_named(tmp_path):
    with pytest.raises(DslError, match=r"nowhere.jsonl does not exist"):
        read_prompts(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DslError, match=r"cannot be read as a dataset, here or on the Hub, split 'train'"):
        read_prompts(str(tmp_path))


def test_a_folder_of_files_is_a_dataset(tmp_path):
    for name, prompt in (("a", "one"), ("b", "two")):
        pq.write_table(pa.table({"prompt": [prompt]}), tmp_path / f"{name}.parquet")
    assert texts(str(tmp_path)) == ["one", "two"]


def test_a_hub_dataset_is_streamed_no_further_than_needed(monkeypatch):
    asked, read = [], []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return (read.append(i) or {"body": text} for i, text in enumerate(["a", "a", "b", "c"]))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert texts("owner/name:part", column="body", num_prompts=2, split="test") == ["a", "b"]
    assert asked == [(("owner/name", "part"), {"split": "test", "streaming": True})]
    assert len(read) == 3


def test_a_hub_dataset_that_cannot_be_reached_is_named(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DslError, match=r"'owner/name' cannot be read .*ConnectionError: no route.*check the name"):
        read_prompts("owner/name")


def test_a_line_ends_at_its_newline_alone_and_a_field_may_be_long(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert texts(str(tmp_path / "p.jsonl")) == ["a\u2028b"]
    (tmp_path / "p.csv").write_text("prompt\n" + "a" * 200_000)
    assert texts(str(tmp_path / "p.csv")) == ["a" * 200_000]


def test_lists_that_a_csv_holds_as_text_are_read(tmp_path):
    (tmp_path / "p.csv").write_text('prompt_token_ids\n"[5, 6]"\n')
    assert read_prompts(str(tmp_path / "p.csv"))[0].token_ids == (5, 6)
    (tmp_path / "q.csv").write_text('messages\n"[{""role"": ""user"", ""content"": ""hi""}]"\n')
    assert texts(str(tmp_path / "q.csv")) == ["hi"]


def test_a_chat_template_that_refuses_is_named(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DslError, match=r"line 1: .*chat template refuses the messages \(roles must alternate\)"):
        read_prompts(jsonl(tmp_path, {"turns": ["hi"]}), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": 3.5}, "holds '3.5', not text"),
        (["a"], "a list, not an object"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no user message"),
        ({"messages": [{"who": "me"}]}, "needs 'role' and 'content'"),
    ],
)
def test_an_entry_that_is_no_prompt_is_named_by_its_line(tmp_path, entry, message):
    with pytest.raises(DslError, match=rf"line 2: .*{message}"):
        read_prompts(jsonl(tmp_path, {"prompt": "fine"}, entry))


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DslError, match=r"p.jsonl cannot be read as UTF-8"):
        read_prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xc3\xa9"}\n'),
        ("p.csv", "prompt,n\na,1\n\u00e9,2\n".encode()),
        ("p.json", b'["a", "\\u00e9"]'),
    ],
)
def test_a_compressed_file_is_read_as_the_file_in_it(tmp_path, suffix, pack, name, content):
    (tmp_path / f"{name}.{suffix}").write_bytes(pack(content))
    assert texts(str(tmp_path / f"{name}.{suffix}")) == ["a", "\u00e9"]


def test_a_compressed_parquet_file_and_one_at_a_url_are_read(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "p.parquet")
    content = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet.gz").write_bytes(gzip.compress(content))
    assert texts(str(tmp_path / "p.parquet.gz")) == ["a", "b"]
    remote = fsspec.filesystem("memory")
    remote.pipe("/there/p.parquet", content)
    remote.pipe("/there/p.jsonl.gz", gzip.compress(b'{"prompt": "a"}'))
    assert texts("memory://there/p.parquet") == ["a", "b"]
    assert texts("memory://there/p.jsonl.gz") == ["a"]


def test_a_damaged_archive_a_missing_package_and_a_url_that_leads_nowhere_are_named(tmp_path, monkeypatch):
    packed = gzip.compress(b'{"prompt": "a"}\n' * 1000)
    for name, content in (
        ("short.jsonl.gz", packed[:-20]),
        ("none.jsonl.gz", b"plain"),
        ("short.jsonl.xz", b"\xfd7zXZ"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DslError, match=rf"{name} cannot be read \(.*copy it again"):
            read_prompts(str(tmp_path / name))
    monkeypatch.delitem(fsspec.utils.compressions, "zst", raising=False)
    (tmp_path / "p.jsonl.zst").write_bytes(b"")
    with pytest.raises(DslError, match=r"p.jsonl.zst needs zstandard, which is not installed"):
        read_prompts(str(tmp_path / "p.jsonl.zst"))
    for url in ("memory://nowhere.jsonl", "strange://x/p.jsonl"):
        with pytest.raises(DslError, match=rf"{url} cannot be read"):
            read_prompts(url)


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TOOL_CHAT = (
    "{% if tools %}{% for t in tools %}<{{ t.function.name }}>{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[go{{ mood }}]{% endif %}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_a_chat_with_tools_and_calls_is_asked_as_its_template_says(tmp_path, tools):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOL_CHAT
    question = {"role": "user", "content": "hi"}
    called = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, question]
    entry = {"messages": [question, *called], "tools": tools, "chat_template_kwargs": {"mood": "!"}}
    plain = {"messages": [question, *called]}
    prompts = read_prompts(jsonl(tmp_path, entry, plain), tokenizer=tokenizer)
    assert [prompt.text for prompt in prompts] == ["<weather>[user]hi[go!]", "[user]hi[go]"]


def test_a_batch_of_openai_is_read_by_what_each_request_asks(tmp_path):
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
    assert texts(jsonl(tmp_path, {**request, "body": body})) == ["hello"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n\n1, 2"),
        ({"instruction": "Add.", "input": "", "output": "3", "text": "Add. ### Response: 3"}, "Add."),
        ({"instruction": "Who?", "context": "Ann did.", "response": "Ann", "category": "qa"}, "Who?\n\nAnn did."),
        ({"system_prompt": "Be brief.", "question": "Who?", "response": "Ann"}, "Be brief.\n\nWho?"),
        ({"instruction": "Add.", "input": "1", "prompt": "as it is"}, "as it is"),
    ],
)
def test_an_instruction_keeps_its_input_and_its_system_message(tmp_path, entry, text):
    assert texts(jsonl(tmp_path, entry)) == [text]


def test_a_chosen_instruction_column_stands_alone(tmp_path):
    assert texts(jsonl(tmp_path, {"instruction": "Add.", "input": "1"}), column="instruction") == ["Add."]


@pytest.mark.parametrize(
    "entry",
    [{"prompt": "a\ud800"}, {"turns": ["a\ud800"]}, {"messages": [{"role": "user", "content": "a\ud800"}]}],
)
def test_a_lone_surrogate_is_named(tmp_path, entry):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    with pytest.raises(DslError, match=r"line 1: character \d+ is '\\ud800', a lone surrogate"):
        read_prompts(jsonl(tmp_path, entry), tokenizer=tokenizer)


def test_endless_brackets_are_no_json(tmp_path):
    (tmp_path / "p.jsonl").write_text("[" * 100_000)
    with pytest.raises(DslError, match="line 1: not JSON"):
        read_prompts(str(tmp_path / "p.jsonl"))
