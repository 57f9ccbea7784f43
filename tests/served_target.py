"""A stand-in for `vllm serve`: a tiny target behind the OpenAI-compatible interface, which fails as real ones do."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from dsl_train.base.sampling import Sampling

#: What goes wrong with a request: nothing, an error for a moment, a dropped connection, half an answer.
FAULTS = ("", "busy", "drop", "truncate")


class ServedTarget(ThreadingHTTPServer):
    """Serves from `with` on. `fault` says what goes wrong with a request, by the number of requests before it."""

    daemon_threads = True

    def __init__(self, model: Any, fault: Callable[[int], str] = lambda number: "", mode: str = "processed") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.fault, self.mode = model, fault, mode
        self.spoil: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda asked, answer: answer
        """What becomes of an answer; a text is sent as it is, a number as a status."""
        self.asked: list[dict[str, Any]] = []
        self.met: Counter[str] = Counter()
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "ServedTarget":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed hangs up."""

    @torch.inference_mode()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One token a forward, as `autoregressive`, each text from a generator of its own."""
        sampling = Sampling(asked["temperature"], max(0, asked.get("top_k", -1)), asked.get("top_p", 1.0))
        generator = torch.Generator().manual_seed(asked.get("seed", 0))
        tokens, tops = list(asked["prompt"]), []
        while len(tokens) < len(asked["prompt"]) + asked["max_tokens"] and (not tops or tokens[-1] != 0):
            logits = self.model(torch.tensor([tokens])).logits[0, -1:]
            law = sampling.probs(logits)[0]
            tokens.append(int(torch.multinomial(law, 1, generator=generator)))
            told = (law if self.mode == "processed" else logits[0].softmax(-1)).log().clamp_min(-9999)
            best = dict.fromkeys([tokens[-1], *told.topk(min(asked.get("logprobs") or 1, len(told))).indices.tolist()])
            tops.append({f"token_id:{token_id}": float(told[token_id]) for token_id in best})
        said = tokens[len(asked["prompt"]) :]
        names = [f"token_id:{token_id}" for token_id in said]
        told_of = [top[name] for top, name in zip(tops, names, strict=True)]
        choice = {
            "finish_reason": "stop" if said[-1] == 0 else "length",
            "prompt_token_ids": asked["prompt"],
            "token_ids": said,
            "logprobs": {"tokens": names, "token_logprobs": told_of, "top_logprobs": tops},
        }
        return {"choices": [choice if asked.get("logprobs") else {**choice, "logprobs": None}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ServedTarget

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "tiny", "max_model_len": 256}]}))

    def do_POST(self) -> None:
        asked, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        with server.lock:
            fault = server.fault(len(server.asked))
            server.asked.append(asked)
            server.met[fault] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer = server.spoil(asked, server.complete(asked)) if fault in ("", "truncate") else None
        finally:
            with server.lock:
                server.at_once -= 1
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "busy":
            self._send(503, "{}")
        elif isinstance(answer, int):
            self._send(answer, json.dumps({"error": {"message": "this text is refused"}}))
        else:
            self._send(200, answer if isinstance(answer, str) else json.dumps(answer), fault == "truncate")

    def _send(self, status: int, text: str, truncate: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2].encode() if truncate else text.encode())
        self.close_connection = self.close_connection or truncate
