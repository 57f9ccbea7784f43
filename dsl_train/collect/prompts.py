"""Prompts from every layout people use. Knows columns and chat templates; loads no model.

{"prompt": …}  {"text": …}  {"question": …}      taken as they are, as is any `--column`
{"turns": [str, …]}                              the first user turn        } through the tokenizer's chat
{"messages" or "conversations": [{role, content} or {from, value}, …]}      } template if it has one, `tools` and
                                                 `chat_template_kwargs` of the row with it
{"prompt_token_ids": [int, …]}                   tokens, used as they are
{"audio": …}  {"input_features": …}              for a pair that reads audio (`audio.py`)

Rows of other tools are first given these names (`layouts.py`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dsl_train.base.records import DslError
from dsl_train.collect.audio import AUDIO_COLUMNS, Audio, audio_of
from dsl_train.collect.layouts import Columns, known_columns, unquoted
from dsl_train.collect.sources import Record, read_records
from dsl_train.pair.loading import Kind, Pair
from dsl_train.pair.prompt import PairPrompt, encode_audio, encode_tokens

TEXT_COLUMNS = ("prompt", "text", "question", "instruction")
CHAT_COLUMNS = ("messages", "conversations", "turns")
TOKEN_COLUMNS = ("prompt_token_ids", "token_ids")
#: Columns that only say how a chat template writes the messages.
RENDERING_COLUMNS = ("tools", "chat_template_kwargs")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
#: What a chat template may read of a message besides its role and content.
_MESSAGE_PARTS = ("name", "tool_calls", "tool_call_id", "reasoning_content")

Messages = list[dict[str, Any]]
"""Each with `role` and `content`, and what else a chat template reads."""


@dataclass(frozen=True)
class Prompt:
    """Text that still has to be tokenized, token ids, or audio."""

    prompt_id: str
    """16 hex digits of the content: the same prompt has the same id in every file and run."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    add_special_tokens: bool = True
    """False when a chat template has written them already."""
    audio: Audio | None = None
    group: str = ""
    """What the column `by` of :func:`read_prompts` says."""

    def encode_for(self, pair: Pair) -> PairPrompt:
        """What the pair is given. Raises DslError if it reads something else."""
        if self.audio is not None:
            return encode_audio(pair, *self.audio.load())
        if pair.kind != "encoder-decoder" or self.token_ids:
            return encode_tokens(pair, self.encode(pair.tokenizer))
        special = self.add_special_tokens  # encoders read the end-of-text token
        return encode_tokens(pair, pair.tokenizer(self.text, add_special_tokens=special, verbose=False)["input_ids"])

    def encode(self, tokenizer: PreTrainedTokenizerBase, more: str = "") -> list[int]:
        """Token ids of the prompt, `more` text behind it; may be empty. The end-of-text token that some tokenizers
        append is left out."""
        if self.token_ids and not more:
            return list(self.token_ids)
        text = (self.text or str(tokenizer.decode(list(self.token_ids)))) + more
        special = self.add_special_tokens and not self.token_ids
        ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids


def read_prompts(
    source: str,
    column: str | None = None,
    num_prompts: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "train",
    kind: Kind = "decoder-only",
    by: str | None = None,
) -> list[Prompt]:
    """The first `num_prompts` different prompts of a file, of standard input (`-`) or of a Hub dataset; with `by`, a
    column, the first so many of each of its values.

    Raises DslError for a missing or empty file, an unknown column or a line that cannot be read.
    """
    prompts: dict[str, Prompt] = {}
    counts: Counter[str] = Counter()
    for record in read_records(source, split):
        group = "" if by is None else group_of(record, by)
        if counts[group] == num_prompts:
            continue
        prompt = replace(prompt_of(record, column, tokenizer, kind), group=group)
        if prompt.prompt_id not in prompts:
            prompts[prompt.prompt_id] = prompt
            counts[group] += 1
        if by is None and len(prompts) == num_prompts:
            break
    if not prompts:
        raise no_prompts(source)
    return list(prompts.values())


def group_of(record: Record, by: str) -> str:
    """What the record's column `by` says, as text."""
    columns = record.columns()
    if columns.get(by) is None:
        found = ", ".join(map(str, columns)) or "none"
        raise DslError(f"{record.where}: no column {by!r} to group by; the columns are {found}")
    return encodable(record.where, str(columns[by]))


def read_turns(source: str, column: str | None = None, num_prompts: int | None = None) -> list[list[str]]:
    """The user turns of the first `num_prompts` records, all of each. Raises DslError as :func:`read_prompts`."""
    conversations = []
    for record in read_records(source, "train"):
        value = find_value(record.where, known_columns(record), column, (*CHAT_COLUMNS, *TEXT_COLUMNS))
        items = [value] if isinstance(value, str) else value
        messages = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items]
        conversations.append([m["content"] for m in as_messages(record.where, messages) if m["role"] == "user"])
        if len(conversations) == num_prompts:
            break
    if not any(conversations):
        raise no_prompts(source)
    return conversations


def no_prompts(source: str) -> DslError:
    return DslError(f'{source} has no prompts; give a file with at least one, for example a line {{"prompt": …}}')


def prompt_of(
    record: Record, column: str | None, tokenizer: PreTrainedTokenizerBase | None, kind: Kind = "decoder-only"
) -> Prompt:
    """Everything before the assistant's first word, so that the target answers the first user turn itself; the audio,
    if that is what a pair of this `kind` reads.

    Raises DslError, naming the record, if there is no prompt in it.
    """
    where, columns = record.where, known_columns(record)
    if kind == "speech":
        audio = audio_of(where, columns[find_column(where, columns, column, AUDIO_COLUMNS)])
        return Prompt(audio.content_hash, audio=audio)
    value = find_value(where, columns, column, (*TOKEN_COLUMNS, *CHAT_COLUMNS, *TEXT_COLUMNS))
    if isinstance(value, list) and isinstance(value[0], dict):
        messages = as_messages(where, value)
        first_answer = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
        return chat_prompt(where, messages[:first_answer], tokenizer, rendering(where, columns))
    return plain_prompt(where, value, tokenizer)


def find_value(where: str, columns: Columns, column: str | None, known: Sequence[str]) -> Any:
    """What the column named `column`, else the first known one, holds: a text or a list that is not empty."""
    name = find_column(where, columns, column, known)
    value = unquoted(columns[name]) if name in (*TOKEN_COLUMNS, *CHAT_COLUMNS) else columns[name]
    if not isinstance(value, str) and not (isinstance(value, list) and value):
        raise DslError(f"{where}: column {name!r} holds {str(value)[:60]!r}, not text, token ids, turns or messages")
    return value


def find_column(where: str, columns: Columns, column: str | None, known: Sequence[str]) -> str:
    """`column`, else the first known one that the record has. Raises DslError if there is none."""
    names = (column,) if column else known
    name = next((name for name in names if columns.get(name) is not None), None)
    if name is None:
        wanted = repr(column) if column else " or ".join(map(repr, known))
        found = ", ".join(map(str, columns)) or "none"
        raise DslError(f"{where}: no column {wanted}; the columns are {found}; choose one with --column")
    return name


def plain_prompt(where: str, value: Any, tokenizer: PreTrainedTokenizerBase | None) -> Prompt:
    """A text, token ids, or turns of which the first is asked."""
    if isinstance(value, str):
        return _text_prompt(where, value)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return Prompt(content_hash(value), token_ids=tuple(value))
    if isinstance(value[0], str):
        return chat_prompt(where, [{"role": "user", "content": value[0]}], tokenizer)
    raise DslError(f"{where}: {str(value)[:60]!r} is not text, token ids, turns or messages")


def as_messages(where: str, items: Sequence[Any]) -> Messages:
    """Messages under the names of chat templates. Raises DslError for an item that is none."""
    return [_message(where, item) for item in items]


def rendering(where: str, columns: Columns) -> Columns:
    """What the row tells the chat template: `tools`, a list of JSON schemas, and `chat_template_kwargs`.

    Raises DslError for tools that are no list of objects, and for arguments that are no object.
    """
    tools, arguments = (unquoted(columns.get(name)) for name in RENDERING_COLUMNS)
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DslError(f"{where}: tools holds {str(tools)[:60]!r}, not a list of JSON schemas")
    if arguments and not isinstance(arguments, dict):
        raise DslError(f"{where}: chat_template_kwargs holds {str(arguments)[:60]!r}, not an object")
    return {**(arguments or {}), **({"tools": tools} if tools else {})}


def chat_prompt(
    where: str, messages: Messages, tokenizer: PreTrainedTokenizerBase | None, rendering: Columns | None = None
) -> Prompt:
    """The messages through the tokenizer's chat template, which is given `rendering`; without a template, the first
    user message as plain text."""
    asked = next((message["content"] for message in messages if message["role"] == "user"), None)
    if asked is None:
        raise DslError(f"{where}: no user message before the assistant's; remove the entry or put the question first")
    if tokenizer is None or not tokenizer.chat_template:
        return _text_prompt(where, asked)
    arguments: Columns = {**(rendering or {}), "tokenize": False, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(messages, **arguments)
    except Exception as error:  # a template is a program: it may refuse roles and their order in its own way
        raise DslError(f"{where}: the tokenizer's chat template refuses the messages ({error}); mend them") from error
    content = [messages, rendering] if rendering else messages
    return Prompt(content_hash(content), encodable(where, str(text)), add_special_tokens=False)


def encodable(where: str, text: str) -> str:
    """The text itself. Raises DslError if it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DslError(
            f"{where}: character {error.start + 1} is {text[error.start]!a}, a lone surrogate: half a character, which "
            "no tokenizer reads; mend the encoding or remove the entry"
        ) from error
    return text


def content_hash(content: Any) -> str:
    """16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _message(where: str, item: Any) -> dict[str, Any]:
    columns = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
    role, content = columns.get("role", columns.get("from")), columns.get("content", columns.get("value"))
    parts = {name: columns[name] for name in _MESSAGE_PARTS if columns.get(name)}
    if "tool_calls" in parts:
        content = content or ""
        parts["tool_calls"] = [_with_parsed_arguments(call) for call in parts["tool_calls"]]
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DslError(
            f"{where}: a message needs 'role' and 'content' texts, this one has {', '.join(columns) or 'nothing'}"
        )
    return {"role": _ROLES.get(role, role), "content": content, **parts}


def _with_parsed_arguments(call: Any) -> Any:
    """Chat templates write a call's arguments as an object; OpenAI's servers send them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return {**call, "function": {**function, "arguments": unquoted(function.get("arguments"))}}


def _text_prompt(where: str, text: str) -> Prompt:
    if not text.strip():
        raise DslError(f"{where}: the prompt is empty; remove the entry")
    return Prompt(content_hash(text), encodable(where, text))
