"""Responses from a log: what a target said elsewhere, labelled without asking it again. No model is loaded here.

    a prompt, as `prompts.py` knows them, and
    {"response" or "completion" or "output" or "generated_text": str}      the text behind it, or
    {"response_token_ids" or "output_token_ids" or "token_ids": [int, …]}  its tokens, or
    {"messages": [… {"role": "assistant", …}]}                             the assistant's last word, or
    {"choices" or "outputs": [{…}, …]}                                     several of them (OpenAI, vLLM)

with `temperature`, `top_k`, `top_p` beside them or inside `sampling_params`, and `finish_reason`. Token ids are what
the target said; text is tokenized again, which gives the tokens that the target usually, not always, chose. Beside
token ids there may be `logprobs` (`log_probs.py`), and `logprobs_mode` as vLLM names it.
Rows of other tools are first given these names (`layouts.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.layouts import Columns, joined, known_columns, unquoted
from dsl_train.collect.log_probs import TopLogProbs, read_log_probs
from dsl_train.collect.prompts import (
    CHAT_COLUMNS,
    RENDERING_COLUMNS,
    TEXT_COLUMNS,
    Prompt,
    as_messages,
    chat_prompt,
    encodable,
    find_value,
    plain_prompt,
    rendering,
)
from dsl_train.collect.sources import Record
from dsl_train.collect.transforms import NESTED, refuse_transforms, settings_of, stated_sampling

_TOKEN_COLUMNS = ("response_token_ids", "output_token_ids", "token_ids")
_TEXT_COLUMNS = ("response", "completion", "output", "generated_text")
_ANSWER_LISTS = ("choices", "outputs")
#: What a CSV can only hold as JSON text.
_STRUCTURED = (
    *(*_TOKEN_COLUMNS, *CHAT_COLUMNS, *NESTED, *RENDERING_COLUMNS),
    *("prompt_token_ids", "logit_bias", "response_format", "logprobs"),
)
#: What servers call an end-of-text token, as against a stop string, a limit or a filter.
_ENDED = ("stop", "eos", "eos_token", "end_turn")
#: The text was replaced or rewritten.
_CHANGED = ("content_filter", "tool_calls", "function_call", "error")
#: Parts of the answer that a server took out of its text.
_TAKEN_OUT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal")


@dataclass(frozen=True)
class Response:
    """Text that still has to be tokenized, or token ids."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    ended: bool = False
    """By an end-of-text token, which is not in the text."""
    log_probs: TopLogProbs | None = field(default=None, compare=False)
    """Of the token ids, in the law that they were drawn from."""

    @property
    def said(self) -> dict[str, Any]:
        """What it is, without what is known of it."""
        return {"text": self.text, "token_ids": self.token_ids, "ended": self.ended}

    def encode(
        self,
        prompt: Prompt | None,
        prompt_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
    ) -> list[int]:
        """Token ids up to the first end-of-text token, that one included. Without `prompt` they stand by themselves, as
        those of a decoder do whose encoder read the prompt.

        Raises DslError for a text that this tokenizer cannot write behind its prompt.
        """
        ids = list(self.token_ids) or _behind(prompt, prompt_ids, self.text, tokenizer)
        if self.ended and not self.token_ids and eos_ids:
            ids.append(tokenizer.eos_token_id if tokenizer.eos_token_id in eos_ids else min(eos_ids))
        ends = [i for i, token_id in enumerate(ids) if token_id in eos_ids]
        return ids[: ends[0] + 1] if ends else ids


@dataclass(frozen=True)
class LoggedResponse:
    """A prompt with what the target said, and how it was drawn."""

    prompt: Prompt
    response: Response
    sampling: Sampling


@dataclass(frozen=True)
class ResponseReader:
    """Reads one log."""

    tokenizer: PreTrainedTokenizerBase
    """The target's."""
    vocab_sizes: frozenset[int]
    """Numbers that a log may call the target's vocabulary: its tokens, its logits."""
    sampling: Sampling
    """Of rows that do not say."""
    column: str | None = None
    """Of the prompts, if it has a name of its own."""

    def read(self, record: Record) -> LoggedResponse:
        """Raises DslError, naming the record, if it cannot be used or its labels would be wrong."""
        where = record.where
        columns = {
            name: unquoted(value) or None if name in _STRUCTURED else value
            for name, value in known_columns(record).items()
        }
        settings = settings_of(where, columns)
        refuse_transforms(where, settings)
        self._check_tokenizer(where, settings)
        response, sampling = _response(where, columns, settings), stated_sampling(where, settings, self.sampling)
        if response.token_ids and _tells_the_law(settings, sampling):
            log_probs = read_log_probs(where, columns.get("logprobs"), response.token_ids)
            response = replace(response, log_probs=log_probs)
        return LoggedResponse(self._prompt(where, columns), response, sampling)

    def _prompt(self, where: str, columns: dict[str, Any]) -> Prompt:
        value = find_value(where, columns, self.column, ("prompt_token_ids", *CHAT_COLUMNS, *TEXT_COLUMNS))
        told = rendering(where, columns)
        if not (isinstance(value, list) and isinstance(value[0], dict)):
            if isinstance(value, str) and "tools" in told:
                raise DslError(f"{where}: a text was asked with tools, which it may not show; give prompt_token_ids")
            return plain_prompt(where, value, self.tokenizer)
        messages = as_messages(where, value)
        if messages[-1]["role"] == "assistant" and not _has_response(columns):
            messages = messages[:-1]
        if (len(messages) > 1 or told) and not self.tokenizer.chat_template:
            what = f"{len(messages)} messages" if len(messages) > 1 else " and ".join(told)
            raise DslError(
                f"{where}: {what} before the response, but the target's tokenizer has no chat "
                "template to join them; give the prompt_token_ids"
            )
        return chat_prompt(where, messages, self.tokenizer, told)

    def _check_tokenizer(self, where: str, settings: dict[str, Any]) -> None:
        stated, ours = settings.get("tokenizer"), self.tokenizer.name_or_path
        if isinstance(stated, str) and Path(stated).name.lower() != Path(ours).name.lower():
            raise DslError(f"{where}: tokenized by {stated}, the target's tokenizer is {ours}")
        size = settings.get("vocab_size")
        if size is not None and str(size) not in map(str, self.vocab_sizes):
            wanted = " or ".join(map(str, sorted(self.vocab_sizes)))
            raise DslError(f"{where}: a vocabulary of {size}, the target's has {wanted}")


def _tells_the_law(settings: dict[str, Any], sampling: Sampling) -> bool:
    """Whether log-probabilities are those of the law that the text was drawn from."""
    plain = sampling.temperature == 1.0 and not sampling.truncates
    return not sampling.greedy and (plain or settings.get("logprobs_mode") == "processed_logprobs")


def answers_of(record: Record, requests: dict[str, Columns] | None = None) -> list[Record]:
    """A record for each answer in it: a row of a served target may hold several. With `requests` (`requests_by_id`) the
    row holds only the answers.

    Raises DslError for a row that is no object, answers none of the requests, or says that it holds no answer.
    """
    columns = known_columns(record) if requests is None else joined(record, requests)
    name = next((name for name in _ANSWER_LISTS if isinstance(unquoted(columns.get(name)), list)), None)
    if name is None:
        return [Record(record.where, columns)]
    rest = {key: value for key, value in columns.items() if key != name}
    return [
        Record(f"{record.where}, answer {number}", {**rest, **_flat(answer)})
        for number, answer in enumerate(unquoted(columns[name]), start=1)
    ]


def _flat(answer: Any) -> dict[str, Any]:
    """One of `choices` or `outputs`: its text is the response, not a prompt."""
    if not isinstance(answer, dict):
        return {"response": answer}
    message = answer.get("message")
    flat = {**answer, **(message if isinstance(message, dict) else {})}
    text = flat.pop("text", flat.pop("content", None))
    return {**flat, "response": flat.get("response", text)}


def _has_response(columns: dict[str, Any]) -> bool:
    return any(columns.get(name) is not None for name in (*_TOKEN_COLUMNS, *_TEXT_COLUMNS))


def _response(where: str, columns: dict[str, Any], settings: dict[str, Any]) -> Response:
    name = next((n for n in (*_TOKEN_COLUMNS, *_TEXT_COLUMNS) if columns.get(n) is not None), None)
    message = columns if name else _last_message(where, columns)
    said = columns[name] if name else as_messages(where, [message])[0]["content"]
    if isinstance(said, list) and said and all(isinstance(i, int) and not isinstance(i, bool) for i in said):
        return Response(token_ids=tuple(said))
    if not isinstance(said, str):
        raise DslError(f"{where}: {name} holds {str(said)[:60]!r}, not text or token ids")
    taken = next((part for part in _TAKEN_OUT if message.get(part)), None)
    reason = str(settings.get("finish_reason") or "").lower()
    if taken or reason in _CHANGED:
        raise DslError(
            f"{where}: {taken or reason} says that the text is not all that the target said; give response_token_ids"
        )
    stopped_by_text = settings.get("stop") or settings.get("stop_strings") or settings.get("stop_reason")
    return Response(encodable(where, said), ended=reason in _ENDED and not stopped_by_text)


def _last_message(where: str, columns: dict[str, Any]) -> dict[str, Any]:
    """The assistant's, at the end of the conversation."""
    name = next((n for n in CHAT_COLUMNS if isinstance(columns.get(n), list) and columns[n]), None)
    last = columns[name][-1] if name else None
    if not isinstance(last, dict):
        raise DslError(
            f"{where}: no response; name it {' or '.join((*_TEXT_COLUMNS, *_TOKEN_COLUMNS))}, or end the messages "
            "with the assistant's"
        )
    role = as_messages(where, [last])[0]["role"]
    if role != "assistant":
        raise DslError(f"{where}: the last message is the {role}'s, not the assistant's: no response")
    return last


def _behind(
    prompt: Prompt | None, prompt_ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Tokens of a text behind its prompt, whose own tokens stay: that is where the target began."""
    alone: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if prompt is None:
        return alone
    together = prompt.encode(tokenizer, text)
    if together[: len(prompt_ids)] == list(prompt_ids):
        return together[len(prompt_ids) :]  # right for tokenizers that write a leading space, too
    before, after = (str(tokenizer.decode(ids)) for ids in (list(prompt_ids), [*prompt_ids, *alone]))
    if after != before + text:
        raise DslError("the response cannot be told from its prompt in tokens; give the response_token_ids")
    return alone
