"""Generation from Python: a pair, its predictor, one call.

    from dsl_train import generate, load_predictor

Everything here is a thin layer over `loop.engine.SpeculativeEngine`, which is the thing to use for loops of your own.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.api.own_settings import under_own_settings
from dsl_train.api.serving import choose_policy
from dsl_train.api.text_stream import TextStream
from dsl_train.base.cost import CostProfile
from dsl_train.base.policy import Policy
from dsl_train.base.records import GenerationResult, Round
from dsl_train.base.sampling import Sampling
from dsl_train.loop.block import Verification, checked
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair, load_pair, load_tokenizer
from dsl_train.pair.prompt import EncodedPrompt, PairPrompt, begin, encode_audio, encode_text, encode_tokens, runner_of
from dsl_train.policies.capped import Capped
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.compiled import warm_up
from dsl_train.runners.supported import check_pair_supported

Prompt = str | Sequence[int] | np.ndarray | torch.Tensor | EncodedPrompt
"""Text or token ids, which an encoder-decoder reads with its encoder; samples [T] or features [M, T] of audio."""


@dataclass(frozen=True)
class Generation:
    text: str
    """The response, special tokens left out; empty without a tokenizer."""
    result: GenerationResult

    @property
    def stats(self) -> dict[str, object]:
        """Acceptance statistics and speed, by vLLM's names."""
        return {
            **self.result.stats.summary(),
            "num_tokens": self.result.num_tokens,
            "finish_reason": self.result.finish_reason,
            "seconds": self.result.seconds,
            "tokens_per_second": self.result.tokens_per_second,
        }


def generate(
    target: PreTrainedModel | str,
    draft: PreTrainedModel | str,
    prompt: Prompt,
    *,
    predictor: Predictor | str | Path | None = None,
    policy: str = "learned",
    threshold: float | None = None,
    max_lookahead: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    compile: bool = False,
    verification: Verification = "block",
) -> Generation:
    """Continue `prompt`, or answer it if the pair has encoders, with exactly the target's tokens (greedy) or
    distribution (temperature > 0).

    `predictor` defaults to the one shipped in the draft's `dsl` folder; `policy` to the learned one, which learns what
    a draft token costs here and what is accepted, and sets its own threshold. `on_text` receives the text as it grows.
    `compile` takes a minute before the first token and makes every later one quicker (`compiled.py`), until the process
    ends. `verification` judges sampled blocks as a whole or token by token: the same law, other texts
    (docs/sampling.md). For many prompts build a :class:`Speculator` once.

    The target's `generation_config` is honoured where it changes probabilities (repetition penalty, forbidden or forced
    tokens, least length, min_p, ...). Length, temperature, top_k and top_p are this call's alone. Raises DslError for
    other ways to generate that it asks for, beams and stop strings among them.
    """
    sampling = Sampling(temperature, top_k, top_p)  # before anything is loaded
    pair = as_pair(target, draft, tokenizer)
    speculator = Speculator(pair, policy, predictor, threshold, max_lookahead, compile, verification=verification)
    return speculator.generate(prompt, sampling, max_new_tokens, seed, on_text=on_text)


class Speculator:
    """A pair with its policy, ready to continue any number of prompts."""

    def __init__(
        self,
        pair: Pair,
        policy: str | Policy = "learned",
        predictor: Predictor | str | Path | None = None,
        threshold: float | None = None,
        max_lookahead: int | None = None,
        compile: bool = False,
        costs: CostProfile | None = None,
        verification: Verification = "block",
    ) -> None:
        """Given a `threshold`, or `costs` that it follows from, the learned policy times nothing, and its rounds are
        reproducible; else it follows the costs that it meets and what is accepted."""
        self.pair, self._lock, self.verification = pair, threading.Lock(), checked(verification)
        self.warm_up_seconds = warm_up(pair.target, pair.draft) if compile else 0.0
        self.target, self.draft = runner_of(pair.target), runner_of(pair.draft)
        self.policy = choose_policy(pair, policy, predictor, threshold, costs) if isinstance(policy, str) else policy
        if max_lookahead is not None:
            self.policy = cast(Policy, Capped(self.policy, max_lookahead))

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        on_round: Callable[[Round], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        resume: bool = False,
    ) -> Generation:
        """Continue one prompt. `resume` keeps what the caches share with it, as from turn to turn of a conversation.
        One text is generated at a time: other threads wait."""
        with self._lock, in_evaluation(self.pair.target, self.pair.draft):
            return self._generate(prompt, sampling, max_new_tokens, seed, on_round, on_text, resume)

    def _generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None,
        max_new_tokens: int,
        seed: int,
        on_round: Callable[[Round], None] | None,
        on_text: Callable[[str], None] | None,
        resume: bool,
    ) -> Generation:
        stream = TextStream(self.pair.tokenizer, on_text) if on_text else None
        encoded, runners = self._encode(prompt), (self.target, self.draft)
        token_ids = begin(encoded, *runners)
        target, draft, law = under_own_settings(self.pair, runners, encoded, sampling or Sampling(), max_new_tokens)
        engine = SpeculativeEngine(target, draft, self.policy, law, self.pair.eos_token_ids, self.verification)
        began, rounds = time.perf_counter(), []
        text = engine.begin(token_ids, max_new_tokens, seed, resume)
        for finished in engine.rounds(text):
            rounds.append(finished)
            if on_round:
                on_round(finished)
            if stream:
                stream.push(finished.committed)
        result = text.result(rounds[1:], time.perf_counter() - began)
        if stream:
            stream.end()
        return self._decode(result)

    def _encode(self, prompt: Prompt) -> PairPrompt:
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if isinstance(prompt, str):
            return encode_text(self.pair, prompt)
        if isinstance(prompt, np.ndarray | torch.Tensor) and torch.as_tensor(prompt).is_floating_point():
            return encode_audio(self.pair, prompt)
        return encode_tokens(self.pair, [int(token_id) for token_id in prompt])

    def _decode(self, result: GenerationResult) -> Generation:
        return Generation(str(self.pair.tokenizer.decode(list(result.token_ids), skip_special_tokens=True)), result)


def as_pair(
    target: PreTrainedModel | str, draft: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Pair:
    """Load a pair by name, or wrap two loaded models; the tokenizer defaults to the target's."""
    if isinstance(target, str) and isinstance(draft, str):
        return load_pair(target, draft)
    if isinstance(target, str) or isinstance(draft, str):
        raise TypeError("give target and draft both as names or both as loaded models")
    check_pair_supported(target, draft)
    found = tokenizer or load_tokenizer(str(target.name_or_path))
    identities = [describe_model(model, str(model.name_or_path)) for model in (target, draft)]
    return Pair(target, draft, found, *identities)


@contextmanager
def in_evaluation(*models: PreTrainedModel) -> Iterator[None]:
    """Without dropout; afterwards every module is in the mode it was in."""
    training = [module for model in models for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
