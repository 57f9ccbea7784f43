"""vLLM engines in this process, and what the tests ask of them."""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

from dsl_train.base.records import Round
from dsl_train.vllm.request import RequestText

ROOT = Path(__file__).parents[2]
TARGET, DRAFT = (str(ROOT / "checkpoints/reference" / role) for role in ("target", "draft"))


#: An engine that is collected ends torch.distributed for all others of its process.
KEPT: list[LLM] = []


def make_engine(target: str = TARGET, draft: str | None = DRAFT, spec: dict[str, Any] | None = None, **options: Any):
    """Float32 and eager: what is equal must be equal token by token."""
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "seed": 0}
    if draft:
        drafting = {"method": "draft_model", "model": draft, "num_speculative_tokens": 16, **(spec or {})}
        KEPT.append(LLM(target, speculative_config=drafting, **settings | options))
    else:
        KEPT.append(LLM(target, **settings | options))
    return KEPT[-1]


@lru_cache
def plain() -> LLM:
    """Without speculation."""
    return make_engine(draft=None)


@lru_cache
def drafting() -> LLM:
    """With the draft's own predictor; the decision is replaced by tests."""
    return make_engine()


def runner_of(engine: LLM) -> Any:
    return engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def prompts(number: int) -> list[str]:
    lines = (ROOT / "data/prompts/heldout_test.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:number]]


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def answers(engine: LLM, texts: Sequence[str], params: Any) -> list[tuple[int, ...]]:
    """Token ids of the answers."""
    done = engine.generate(list(texts), params, use_tqdm=False)
    return [tuple(answer.outputs[0].token_ids) for answer in done]


class Recorded:
    """A decision that keeps the rounds of each text."""

    def __init__(self, decision: Any) -> None:
        self._decision = decision
        self.rounds: dict[tuple[int, ...], list[Round]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decision, name)

    def observe(self, request: RequestText, finished: Round) -> None:
        prompt = tuple(request.tokens[: request.prompt_length])
        self.rounds.setdefault(prompt, []).append(finished)
        self._decision.observe(request, finished)


def decide(engine: LLM, decision: Any) -> Recorded:
    """From now on `decision` decides."""
    recorded = Recorded(decision)
    runner_of(engine).drafter.decision = recorded
    return recorded


@lru_cache
def draft_model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32).eval()


@torch.inference_mode()
def assert_drafts_are_what_the_draft_says(rounds: Sequence[Round], tokens: Sequence[int]) -> int:
    """Each block is the greedy continuation of the committed text by transformers' own draft model, as far as it was
    accepted and one token on; returns how many tokens were compared."""
    said = draft_model()(torch.tensor([list(tokens)])).logits[0].argmax(-1).tolist()  # [T] of the tokens after each
    compared = 0
    for each in rounds:
        for i, token_id in enumerate(each.drafted[: each.num_accepted + 1]):
            if each.start + i <= len(tokens):
                assert token_id == said[each.start + i - 1], (each, i)
                compared += 1
    return compared
