"""`dsl-generate --chat`: the chat template, turns in sequence, caches shared between them."""

import json

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoModelForCausalLM

from dsl_train.api.speculator import Speculator
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.cli.chat import Conversation, converse
from dsl_train.cli.generate import main
from dsl_train.cli.generating import Writer
from dsl_train.pair.loading import load_pair
from dsl_train.runners.cached import CachedModel

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


@pytest.fixture
def chat_folders(pair_folders, tmp_path):
    """The tiny pair with a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for role in ("target", "draft"):
        AutoModelForCausalLM.from_pretrained(getattr(pair_folders, role)).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    return str(tmp_path / "target"), str(tmp_path / "draft")


def arguments(folders, *more):
    target, draft = folders
    return ["--target", target, "--draft", draft, "--policy", "static:2", "--max_new_tokens", "8", *more]


@pytest.fixture
def writer(chat_folders):
    speculator = Speculator(load_pair(*chat_folders, "float32", "cpu"), "static:2")
    return Writer(speculator, Sampling(), 8, 0, False)


def expected_answers(folders, turns, system=None):
    """What the target alone says, turn by turn."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders[0]), make_tokenizer()
    text, answers = f"s:{system}\n" if system else "", []
    for turn in turns:
        text += f"u:{turn}\na:"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        found = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(found, skip_special_tokens=True))
        text += f"{answers[-1]}\n"
    return answers


def test_a_prompt_goes_through_the_template_and_its_system_message(chat_folders, capsys):
    assert main(arguments(chat_folders, "--chat", "--system", "be", "--prompt", "abc", "--json")) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [g["text"] for g in document["generations"]] == expected_answers(chat_folders, ["abc"], "be")


def test_all_turns_of_a_row_are_answered_in_sequence(chat_folders, tmp_path, capsys):
    rows = [{"turns": ["ab", "cd"]}, {"messages": [{"role": "user", "content": "ef"}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(arguments(chat_folders, "--chat", "--prompts", str(tmp_path / "rows.jsonl"), "--json")) == 0
    found = [g["text"] for g in json.loads(capsys.readouterr().out.splitlines()[-1])["generations"]]
    assert found == [*expected_answers(chat_folders, ["ab", "cd"]), *expected_answers(chat_folders, ["ef"])]


def test_a_conversation_ends_with_the_input_and_its_turns_share_the_caches(chat_folders, writer):
    lines = iter(["ab", "", "cd"])

    def read_line(prompt):
        for line in lines:
            return line
        raise EOFError

    fed, feed = [], CachedModel.logits

    def recorded(runner, token_ids, keep):
        fed.append(len(token_ids) - runner.length)
        return feed(runner, token_ids, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedModel, "logits", recorded)
        answers = converse(writer, None, read_line)
    assert [answer.text for answer in answers] == expected_answers(chat_folders, ["ab", "cd"])
    assert max(fed) < len(answers[1].result.prompt_token_ids) - len(answers[0].result.prompt_token_ids) + 3


def test_an_interrupted_answer_ends_the_conversation_politely(writer):
    def read_line(prompt):
        raise KeyboardInterrupt

    assert converse(writer, None, read_line) == []


def test_without_a_template_a_chat_is_refused_by_name(pair_folders):
    pair = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    with pytest.raises(DslError, match=r"target .* has no chat template; leave --chat out"):
        Conversation(Writer(Speculator(pair, "static:2"), Sampling(), 8, 0, False), None)


def test_an_instruct_model_says_that_chat_exists(chat_folders, capsys):
    assert main(arguments(chat_folders, "--prompt", "abc")) == 0
    assert "has a chat template: --chat asks it" in capsys.readouterr().err.replace("\n", " ")


def test_a_system_message_without_chat_is_wrong_usage(chat_folders, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments(chat_folders, "--system", "be", "--prompt", "abc"))
    assert stopped.value.code == 2
    assert "add --chat" in capsys.readouterr().err


def test_a_runner_resumes_after_what_two_texts_share(tiny_target):
    runner, fresh = CachedModel(tiny_target), CachedModel(tiny_target)
    runner.logits([5, 6, 7, 8, 9], keep=1)
    runner.resume([5, 6, 7, 3, 4])
    assert runner.length == 3
    torch.testing.assert_close(runner.logits([5, 6, 7, 3, 4], keep=1), fresh.logits([5, 6, 7, 3, 4], keep=1))
    runner.resume([5, 6, 7, 3, 4])
    assert runner.length == 4
    runner.resume([1, 2])
    assert runner.length == 0


@pytest.mark.parametrize("option", [("--temperature", "-1"), ("--top_p", "2"), ("--max_new_tokens", "0")])
def test_values_that_no_sampler_has_are_wrong_usage(chat_folders, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments(chat_folders, "--prompt", "abc"), *option])
    assert stopped.value.code == 2
    assert option[1] in capsys.readouterr().err
