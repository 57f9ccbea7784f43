"""Prompts from every format people keep them in. Knows files and chat templates; loads no model.

    {"prompt": …}  {"text": …}  {"question": …}      taken as they are, as is any `--column`
    {"turns": [str, …]}                              the first user turn        } through the tokenizer's chat
    {"messages" or "conversations": [{role, content} or {from, value}, …]}      } template if it has one
    {"prompt_token_ids": [int, …]}                   tokens, used as they are

in JSONL, JSON, Parquet, CSV, a Hub dataset, a text file (one prompt) or standard input (`-`: JSONL or one text).
"""

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dsl_train import traces
from dsl_train.records import DslError

_TEXT_COLUMNS = ("prompt", "text", "question", "instruction")
_CHAT_COLUMNS = ("messages", "conversations", "turns")
_TOKEN_COLUMNS = ("prompt_token_ids", "token_ids")
_ROLES = {"human": "user", "gpt": "assistant"}

Record = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and its columns."""


@dataclass(frozen=True)
class Prompt:
    """Text that still has to be tokenized, or token ids."""

    prompt_id: str
    """16 hex digits of the content: the same prompt has the same id in every file and run."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    add_special_tokens: bool = True
    """False when a chat template has written them already."""

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids; may be empty. The end-of-text token that some tokenizers append is left out."""
        if self.token_ids:
            return list(self.token_ids)
        ids: list[int] = tokenizer(self.text, add_special_tokens=self.add_special_tokens, verbose=False)["input_ids"]
        return ids[:-1] if self.add_special_tokens and ids and ids[-1] == tokenizer.eos_token_id else ids


def read_prompts(
    source: str,
    column: str | None = None,
    num_prompts: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "train",
) -> list[Prompt]:
    """The first `num_prompts` different prompts of a file, of standard input (`-`) or of a Hub dataset.

    Raises DslError for a missing or empty file, an unknown column or a line that cannot be read.
    """
    prompts: dict[str, Prompt] = {}
    for where, record in _records(source, num_prompts, split):
        if num_prompts is not None and len(prompts) >= num_prompts:
            break
        prompt = _prompt(where, record, column, tokenizer)
        prompts.setdefault(prompt.prompt_id, prompt)
    if not prompts:
        raise DslError(f'{source} has no prompts; give a file with at least one, for example a line {{"prompt": …}}')
    return list(prompts.values())


def _records(source: str, num_prompts: int | None, split: str) -> Iterator[Record]:
    path = Path(source)
    suffix = path.suffix.lower()
    if source == "-":
        yield from _from_text("standard input", sys.stdin.read(), "")
    elif path.is_file() and suffix == ".parquet":
        yield from _numbered(source, traces.read_records(path))
    elif path.is_file():
        yield from _from_text(source, _read(path), suffix)
    elif path.exists() or suffix or source.startswith((".", "/", "~")):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DslError(
            f"prompt file {source} {what}; give a JSONL, JSON, Parquet, CSV or text file, '-' or a Hub dataset"
        )
    else:
        yield from _numbered(source, _hub_records(source, split, num_prompts))


def _hub_records(dataset_id: str, split: str, limit: int | None) -> Iterable[dict[str, Any]]:
    """The first rows of a dataset on the Hub, streamed; `id:configuration` picks a configuration.

    Raises DslError with the library's own reason if it cannot be read.
    """
    import datasets

    name, _, configuration = dataset_id.partition(":")
    try:
        stream = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
        return list(stream if limit is None else stream.take(limit))
    except Exception as error:  # whatever the network, the Hub or a loading script raises
        raise DslError(
            f"{dataset_id!r} is neither a file here nor a readable dataset on the Hub, split {split!r} "
            f"({type(error).__name__}: {error}); check the path or the name, or give a JSONL, Parquet, CSV or text file"
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DslError(
            f"prompt file {path} cannot be read as UTF-8 text ({error}); convert it or check its rights"
        ) from error


def _from_text(source: str, text: str, suffix: str) -> Iterator[Record]:
    """Records of a file's content; without a telling suffix, JSONL if the first line is a JSON object."""
    if suffix == ".csv":
        yield from _numbered(source, list(csv.DictReader(io.StringIO(text))))
    elif suffix == ".json":
        yield from _from_json(source, text)
    elif suffix in (".jsonl", ".ndjson") or (not suffix and text.lstrip().startswith('{"')):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                where = f"{source}, line {number}"
                yield where, _object(where, _parse(where, line))
    elif text.strip():
        yield source, {"text": text}


def _from_json(source: str, text: str) -> Iterator[Record]:
    if not text.strip():
        return
    content = _parse(source, text)
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        rows = lists[0] if len(lists) == 1 and not set(content) & set(_CHAT_COLUMNS) else [content]
    else:
        rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        where = f"{source}, entry {number}"
        yield where, _object(where, row)


def _numbered(source: str, rows: Any) -> Iterator[Record]:
    return ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DslError(
            f'{where}: not JSON ({error}); write one object a line, for example {{"prompt": "…"}}'
        ) from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise DslError(f'{where}: a {type(value).__name__}, not an object; write for example {{"prompt": "…"}}')
    return value


def _prompt(
    where: str, record: dict[str, Any], column: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> Prompt:
    known = (column,) if column else (*_TOKEN_COLUMNS, *_CHAT_COLUMNS, *_TEXT_COLUMNS)
    name = next((name for name in known if record.get(name) is not None), None)
    if name is None:
        wanted = repr(column) if column else " or ".join(map(repr, known))
        columns = ", ".join(map(str, record)) or "none"
        raise DslError(f"{where}: no column {wanted}; the columns are {columns}; choose one with --column")
    value = record[name]
    if isinstance(value, str):
        return _text_prompt(where, value)
    items = value if isinstance(value, list) else []
    if items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return Prompt(_hash(items), token_ids=tuple(items))
    if items and isinstance(items[0], str):
        return _chat_prompt(where, [{"role": "user", "content": items[0]}], tokenizer)
    if items and all(isinstance(item, dict) for item in items):
        return _chat_prompt(where, [_message(where, item) for item in items], tokenizer)
    raise DslError(f"{where}: column {name!r} holds {str(value)[:60]!r}, not text, token ids, turns or messages")


def _message(where: str, item: dict[str, Any]) -> dict[str, str]:
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DslError(
            f"{where}: a message needs 'role' and 'content' texts, this one has {', '.join(item) or 'nothing'}"
        )
    return {"role": _ROLES.get(role, role), "content": content}


def _chat_prompt(where: str, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase | None) -> Prompt:
    """Everything before the assistant's first word, so that the target answers the first user turn itself."""
    first_answer = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    asked = messages[:first_answer]
    if not any(message["role"] == "user" for message in asked):
        raise DslError(f"{where}: no user message before the assistant's; remove the entry or put the question first")
    if tokenizer is None or not tokenizer.chat_template:
        return _text_prompt(where, next(m["content"] for m in asked if m["role"] == "user"))
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return Prompt(_hash(asked), str(text), add_special_tokens=False)


def _text_prompt(where: str, text: str) -> Prompt:
    if not text.strip():
        raise DslError(f"{where}: the prompt is empty; remove the entry")
    return Prompt(_hash(text), text)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
