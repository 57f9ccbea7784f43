"""Rows as other tools write them, given the column names that `prompts.py` and `logged.py` know.

OpenAI batch, input   {"custom_id": str, "url": …, "body": {"messages": […], "temperature": …}}
OpenAI batch, output  {"custom_id": str, "response": {"status_code": 200, "body": {"choices": […]}}, "error": null}
lm-eval samples       {"doc": …, "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": settings}}, "resps": [[str, …]]}
Alpaca, Dolly, …      {"instruction" or "question": str, "input" or "context": str, "system" or "system_prompt": str}

Knows no tokenizer and no file.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from dsl_train.base.records import DslError
from dsl_train.collect.sources import Record

Columns = dict[str, Any]
JOINED_BY = "custom_id"
_BEFORE, _AFTER = ("system", "system_prompt"), ("input", "context")


def known_columns(record: Record) -> Columns:
    """The record's columns by the names known here. Doing it again changes nothing.

    Raises DslError for a record that is no object, and for one that says itself that it holds no answer.
    """
    columns = record.columns()
    for translate in (_batch_input, _batch_output, _lm_eval, _instruction):
        columns = translate(record.where, columns)
    return columns


def unquoted(value: Any) -> Any:
    """A list or object that a CSV could only hold as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # a text that begins with a bracket
    return value


def requests_by_id(source: str, records: Iterable[Record]) -> dict[str, Columns]:
    """`custom_id` -> what was asked under it; all requests are held in memory.

    Raises DslError for a request without one, and for two with the same.
    """
    requests: dict[str, Columns] = {}
    for record in records:
        columns = known_columns(record)
        name = columns.get(JOINED_BY)
        if name is None:
            raise DslError(
                f"{record.where}: no column {JOINED_BY!r}, which joins a request to its response; add one, or give "
                "responses whose rows hold their prompts"
            )
        if str(name) in requests:
            raise DslError(f"{source}: {JOINED_BY} {name!r} stands for two requests; give each one of its own")
        requests[str(name)] = columns
    return requests


def joined(record: Record, requests: dict[str, Columns]) -> Columns:
    """The response's columns with the request that it answers. Raises DslError if that is not among them."""
    answer = known_columns(record)
    name = answer.get(JOINED_BY)
    if str(name) not in requests:
        raise DslError(f"{record.where}: {JOINED_BY} {name!r} is none of the {len(requests)} requests in --prompts")
    return {**requests[str(name)], **answer}


def _batch_input(where: str, columns: Columns) -> Columns:
    body = unquoted(columns.get("body"))
    return {**_without(columns, "body"), **body} if isinstance(body, dict) else columns


def _batch_output(where: str, columns: Columns) -> Columns:
    response = unquoted(columns.get("response"))
    failed = columns.get("error")
    if isinstance(response, dict) and response.get("status_code", 200) != 200:
        failed = failed or response.get("body") or f"status {response['status_code']}"
    if failed and JOINED_BY in columns:
        raise DslError(f"{where}: the server answered with an error, {str(failed)[:60]!r}; ask it again")
    if not isinstance(response, dict):
        return columns
    body = response.get("body")
    return {**_without(columns, "response"), **(body if isinstance(body, dict) else response)}


def _lm_eval(where: str, columns: Columns) -> Columns:
    """One request and its answers, cut by lm-eval at the stop strings; greedy unless its settings say otherwise."""
    arguments, answers = unquoted(columns.get("arguments")), unquoted(columns.get("resps"))
    if not (arguments and isinstance(arguments, dict | list) and isinstance(answers, list)):
        return columns
    requests = [list(_values(request)) for request in _values(arguments)]
    prompt, settings = (*requests[0], None, None)[:2]
    if len(requests) != 1 or not isinstance(settings, dict) or not answers:
        raise DslError(
            f"{where}: an lm-eval sample in which nothing was generated, only likelihoods compared; give the samples "
            "of a task whose output_type is generate_until"
        )
    asked = unquoted(prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt)  # a chat as JSON text
    name = "messages" if isinstance(asked, list) else "prompt"
    return {
        **{key: value for key, value in settings.items() if key != "until"},
        "temperature": settings.get("temperature") or 0.0,
        "stop": settings.get("until"),
        name: asked,
        "outputs": [{"text": text} for text in ([answers[0]] if isinstance(answers[0], str) else answers[0])],
    }


def _instruction(where: str, columns: Columns) -> Columns:
    """The whole task as `prompt`: system message, instruction and input, an empty line between them."""
    name = next((name for name in ("instruction", "question") if _text(columns, name)), None)
    taken = ("prompt",) if name == "instruction" else ("prompt", "text")  # Alpaca's own `text` holds the answer, too
    if name is None or any(columns.get(other) is not None for other in taken):
        return columns
    parts = [next(filter(None, (_text(columns, n) for n in names)), "") for names in (_BEFORE, (name,), _AFTER)]
    return {**columns, "prompt": "\n\n".join(filter(None, parts))}


def _values(collection: Any) -> Iterator[Any]:
    return iter(collection.values() if isinstance(collection, dict) else collection)


def _text(columns: Columns, name: str) -> str:
    value = columns.get(name)
    return value if isinstance(value, str) and value.strip() else ""


def _without(columns: Columns, name: str) -> Columns:
    return {key: value for key, value in columns.items() if key != name}
