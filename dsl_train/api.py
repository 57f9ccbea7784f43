"""Generation from Python: a pair, its predictor, one call.

    from dsl_train import generate, load_predictor

Everything here is a thin layer over `engine.SpeculativeEngine`, which is the thing to use for loops of your own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.batch_engine import BatchEngine
from dsl_train.batch_profile import batch_policy
from dsl_train.compiled import warm_up
from dsl_train.engine import OnRound, SpeculativeEngine
from dsl_train.hf.families import check_pair_supported
from dsl_train.hf.own_settings import check_plain, under_own_settings
from dsl_train.inputs import EncodedPrompt, PairPrompt, begin, encode_audio, encode_text, encode_tokens, runner_of
from dsl_train.loading import Pair, load_pair, load_tokenizer
from dsl_train.model_identity import describe_model
from dsl_train.policies.base import Policy
from dsl_train.policies.batch import BatchPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import GenerationResult, Round
from dsl_train.sampling import Sampling
from dsl_train.serving import choose_policy
from dsl_train.text_stream import TextStream

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
    adapt: bool = False,
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
) -> Generation:
    """Continue `prompt`, or answer it if the pair has encoders, with exactly the target's tokens (greedy) or
    distribution (temperature > 0).

    `predictor` defaults to the one shipped in the draft's `dsl` folder; `policy` to the learned one, which measures
    what a draft token costs here and sets its own threshold; `adapt` corrects it by what was accepted, which one text
    is short for. `on_text` receives the text as it grows. `compile` takes a minute before the first token and makes
    every later one quicker (`compiled.py`), until the process ends. For many prompts build a :class:`Speculator` once.

    The target's `generation_config` is honoured where it changes probabilities (repetition penalty, forbidden or forced
    tokens, least length, min_p, ...). Length, temperature, top_k and top_p are this call's alone. Raises DslError for
    other ways to generate that it asks for, beams and stop strings among them.
    """
    spec = f"{policy}:adapt" if adapt else policy
    speculator = Speculator(as_pair(target, draft, tokenizer), spec, predictor, threshold, max_lookahead, compile)
    sampling = Sampling(temperature, top_k, top_p)
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
    ) -> None:
        self.pair, self.threshold = pair, threshold
        self.warm_up_seconds = warm_up(pair.target, pair.draft) if compile else 0.0
        self.target, self.draft = runner_of(pair.target), runner_of(pair.draft)
        self.policy = choose_policy(pair, policy, predictor, threshold) if isinstance(policy, str) else policy
        if max_lookahead is not None:
            self.policy.max_lookahead = min(self.policy.max_lookahead, max_lookahead)
        self._batch_policies: dict[tuple[int, Sampling], BatchPolicy] = {}

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        on_round: OnRound | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        stream = TextStream(self.pair.tokenizer, on_text) if on_text else None
        encoded, runners = self._encode(prompt), (self.target, self.draft)
        token_ids = begin(encoded, *runners)
        target, draft, law = under_own_settings(self.pair, runners, encoded, sampling or Sampling(), max_new_tokens)
        engine = SpeculativeEngine(target, draft, self.policy, law, self.pair.eos_token_ids)
        listeners = [listen for listen in (on_round, stream and stream.on_round) if listen]

        def tell(finished: Round) -> None:
            for listen in listeners:
                listen(finished)

        result = engine.generate(token_ids, max_new_tokens, seed, on_round=tell)
        if stream:
            stream.end()
        return self._decode(result)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        batch_size: int = 8,
    ) -> list[Generation]:
        """Continue all prompts, `batch_size` at a time; prompt i draws from `seed` + i. Each text is what it is alone.

        The learned policy decides for a batch together, at prices measured for its size when it is first used. Raises
        DslError for a model that cannot be run in batches, and for a `generation_config` that asks for more than
        sampling.
        """
        check_plain(self.pair, sampling or Sampling())
        if min(batch_size, len(prompts)) <= 1:  # the loop for one text is the faster
            pairs = zip(range(seed, seed + len(prompts)), prompts, strict=True)
            return [self.generate(prompt, sampling, max_new_tokens, number) for number, prompt in pairs]
        policy = self._batch_policy(min(batch_size, len(prompts)), sampling or Sampling())
        engine = BatchEngine(self.pair.target, self.pair.draft, policy, sampling, self.pair.eos_token_ids)
        results: list[GenerationResult] = []
        for first in range(0, len(prompts), batch_size):
            ids = [begin(self._encode(prompt)) for prompt in prompts[first : first + batch_size]]
            results += engine.generate(ids, max_new_tokens, range(seed + first, seed + first + len(ids)))
        return [self._decode(result) for result in results]

    def _batch_policy(self, batch_size: int, sampling: Sampling) -> BatchPolicy:
        key = (batch_size, sampling)
        if key not in self._batch_policies:
            self._batch_policies[key] = batch_policy(self.policy, self.pair, batch_size, sampling, self.threshold)
        return self._batch_policies[key]

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
    return Pair(target.eval(), draft.eval(), found, *identities)
