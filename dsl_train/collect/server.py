"""A served target: an OpenAI-compatible server is asked for answers in token ids. The only door to urllib3.

What fails for a moment (a connection, a timeout, 429, 5xx) is tried again, later each time, by urllib3. A text on which
the server fails for good is put aside; a server that fails on all of them ends the run, whose finished parts stay.
"""

import json
import os
from dataclasses import replace
from threading import Lock
from typing import Any

from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from dsl_train.base.records import DslError, first_line
from dsl_train.collect.log_probs import read_log_probs
from dsl_train.collect.text import Request

#: Log-probabilities asked for; vLLM gives no more unless it is told to (`--max-logprobs`).
NUM_LOG_PROBS = 20
#: Attempts after the first, and the wait before the second of them, which doubles each time up to the longest [s].
_RETRIES, _FIRST_WAIT, _LONGEST_WAIT = 8, 1.0, 30.0
_FOR_A_MOMENT = (408, 425, 429, 500, 502, 503, 504)
_TIMEOUT = Timeout(connect=10.0, read=300.0)
#: Sent, since vLLM takes what is left out from the model's own generation_config.json.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class ServerFailedError(DslError):
    """There is no use in asking for the next text."""


class Server:
    """One model of a server. Several threads may ask at once."""

    def __init__(self, url: str, model: str | None = None, num_requests: int = 1) -> None:
        """`model` may be left out where there is but one. Raises DslError if the server does not answer or lacks it."""
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        key = os.environ.get("OPENAI_API_KEY")
        retries = Retry(
            _RETRIES,
            allowed_methods=None,
            status_forcelist=_FOR_A_MOMENT,
            backoff_factor=_FIRST_WAIT / 2,  # urllib3 waits twice as long before the second
            backoff_max=_LONGEST_WAIT,
        )
        self._http = PoolManager(
            maxsize=num_requests,
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=_TIMEOUT,
            retries=retries,
        )
        self._lock, self._most_failures = Lock(), 2 * num_requests + 8
        self._num_failures = 0  # since the last answer
        self._failed = ""
        self._is_processed: bool | None = None
        self.model, self.context = self._find(model)

    def answer(self, request: Request, max_new_tokens: int) -> Request:
        """The request with the target's response, and with log-probabilities where its labels need them.

        Raises DslError for a text that the server cannot or will not answer, ServerFailedError where none would be.
        """
        prompt, sampling = list(request.prompt_token_ids), request.sampling
        room = min(max_new_tokens, self.context - len(prompt)) if self.context else max_new_tokens
        if not prompt or room < 1:
            raise DslError(f"the prompt has {len(prompt)} tokens, the served model's context holds {self.context}")
        asked = {
            "prompt": prompt,
            "max_tokens": room,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        told = not sampling.greedy and self._tells_the_law(request)
        choice = self._complete({**asked, "logprobs": NUM_LOG_PROBS} if told else asked)
        token_ids = choice.get("token_ids")
        if not isinstance(token_ids, list) or not all(type(token_id) is int for token_id in token_ids):
            raise DslError(
                "the server's answer has no token ids; vLLM gives them (return_token_ids, from version 0.10.2 on)"
            )
        if choice.get("prompt_token_ids") not in (None, prompt):
            raise DslError(
                "the server read other tokens than the prompt's; do draft and served model share a tokenizer?"
            )
        if choice.get("finish_reason") not in ("stop", "length"):
            raise DslError(f"the server broke the answer off (finish_reason {choice.get('finish_reason')!r})")
        log_probs = read_log_probs("the server's answer", choice.get("logprobs"), token_ids) if told else None
        return replace(request, response_token_ids=tuple(token_ids), log_probs=log_probs)

    def _tells_the_law(self, request: Request) -> bool:
        """Whether the server's log-probabilities are those of the law that the text is drawn from. Raises
        ServerFailedError if they are not, and labels need them."""
        sampling = request.sampling
        if sampling.temperature == 1.0 and not sampling.truncates:
            return True
        with self._lock:
            if self._is_processed is None:
                self._is_processed = self._find_mode(list(request.prompt_token_ids))
        if not self._is_processed and not sampling.of_draft.greedy:
            self._failed = (
                f"server {self.url} gives log-probabilities before temperature, top-k and top-p, and labels of drafts "
                "that are drawn need those after; start it with --logprobs-mode processed_logprobs, or collect with "
                "--draft_sampling greedy, which is how vLLM drafts by default"
            )
            raise ServerFailedError(self._failed)
        return self._is_processed

    def _find_mode(self, prompt: list[int]) -> bool:
        """Log-probabilities after the temperature lie twice as far apart at half of it."""
        spreads = []
        for temperature in (1.0, 0.5):
            asked = {"prompt": prompt, "max_tokens": 1, "temperature": temperature, "logprobs": NUM_LOG_PROBS}
            choice = self._complete(asked)
            try:
                spreads.append(dict(choice["logprobs"]["top_logprobs"][0]))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DslError(f"the server's answer has no log-probabilities ({error!r})") from error
        whole, half = spreads
        shared = whole.keys() & half.keys()
        wide, narrow = (max(row[name] for name in shared) - min(row[name] for name in shared) for row in (half, whole))
        return bool(wide > 1.5 * narrow)

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The only choice of a completion."""
        if self._failed:
            raise ServerFailedError(self._failed)
        forms = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        body = json.dumps({"model": self.model, **_NEUTRAL, **asked, **forms})
        try:
            response = self._http.request("POST", f"{self.url}/completions", body=body)
        except HTTPError as error:
            raise self._failure(first_line(error)) from error
        self._num_failures = 0
        try:
            answer = json.loads(response.data)
            if response.status < 400:
                return dict(answer["choices"][0])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DslError(
                f"the server's answer (status {response.status}, {len(response.data)} bytes) cannot be read ({error!r})"
            ) from error
        raise DslError(f"the server refused the text (status {response.status}): {_message(answer)}")

    def _failure(self, reason: str) -> DslError:
        """Of a text that was tried often enough."""
        with self._lock:
            self._num_failures += 1
            if not self._failed and (self._num_failures >= self._most_failures or not self._is_alive()):
                self._failed = (
                    f"server {self.url} fails on every text ({reason}); finished parts are safe: mend it and run the "
                    "same command again"
                )
        if self._failed:
            return ServerFailedError(self._failed)
        return DslError(f"the server failed {_RETRIES + 1} times on this text ({reason})")

    def _is_alive(self) -> bool:
        try:
            return self._http.request("GET", f"{self.url}/models", retries=False).status == 200
        except (HTTPError, OSError):
            return False

    def _find(self, model: str | None) -> tuple[str, int | None]:
        """Name and context of the model."""
        try:
            response = self._http.request("GET", f"{self.url}/models", retries=False)
            answer = json.loads(response.data)
            if response.status >= 400:
                raise ValueError(f"status {response.status}: {_message(answer)}")
            contexts = {str(each["id"]): each.get("max_model_len") for each in answer["data"]}
        except (HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DslError(
                f"server {self.url} does not list its models ({type(error).__name__}: {first_line(error)}); start it, "
                "or check --server and OPENAI_API_KEY"
            ) from error
        if model not in contexts and (model is not None or len(contexts) != 1):
            raise DslError(
                f"server {self.url} has the models {', '.join(contexts) or 'none'}, "
                + (f"not {model}" if model else "more or less than one; choose with --server_model")
            )
        name = model or next(iter(contexts))
        return name, contexts[name]


def _message(answer: Any) -> str:
    """A server's own reason, in one line."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return " ".join(str(error.get("message", error) if isinstance(error, dict) else error).split())[:300]
