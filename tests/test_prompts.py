"""Prompts from every format, and what is said about bad ones."""

import io
import json

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
