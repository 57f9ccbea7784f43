"""Generation from Python: a pair, its predictor, one call.

    from dsl_train import generate, load_predictor

Everything here is a thin layer over `engine.SpeculativeEngine`, which is the thing to use for loops of your own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.batch_engine import BatchEngine
from dsl_train.batch_profile import batch_policy
from dsl_train.engine import OnRound, SpeculativeEngine
from dsl_train.hf.families import check_supported
from dsl_train.loading import Pair, describe_model, load_pair, load_tokenizer
from dsl_train.policies.base import Policy
from dsl_train.policies.batch import BatchPolicy
from dsl_train.policies.factory import make_policy
from dsl_train.predictor.runtime import Predictor, shipped_with
from dsl_train.profile import cached_profile
from dsl_train.records import DslError, GenerationResult, Round
from dsl_train.runner import CachedModel
from dsl_train.sampling import Sampling
from dsl_train.text_stream import TextStream


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


def load_predictor(source: str | Path) -> Predictor:
    """The predictor in a folder, or in the `dsl` subfolder of a draft model's folder.

    Raises DslError if there is none, if it is damaged or of another schema.
    """
    return Predictor.load(shipped_with(source) or source)


def generate(
    target: PreTrainedModel | str,
    draft: PreTrainedModel | str,
    prompt: str | Sequence[int],
    *,
    predictor: Predictor | str | Path | None = None,
    policy: str = "learned",
    threshold: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue `prompt` with exactly the target's tokens (greedy) or distribution (temperature > 0).

    `predictor` defaults to the one shipped in the draft's `dsl` folder; `policy` to the learned one, which measures
    what a draft token costs here and sets its own threshold. `on_text` receives the text as it grows. For many
    prompts build a :class:`Speculator` once.
    """
    speculator = Speculator(as_pair(target, draft, tokenizer), policy, predictor, threshold)
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
    ) -> None:
        self.pair, self.threshold = pair, threshold
        self.target, self.draft = CachedModel(pair.target), CachedModel(pair.draft)
        self.policy = choose_policy(pair, policy, predictor, threshold) if isinstance(policy, str) else policy
        self._batch_policies: dict[tuple[int, Sampling], BatchPolicy] = {}

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        on_round: OnRound | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        stream = TextStream(self.pair.tokenizer, on_text) if on_text else None
        engine = SpeculativeEngine(self.target, self.draft, self.policy, sampling, self.pair.eos_token_ids)
        listeners = [listen for listen in (on_round, stream and stream.on_round) if listen]

        def tell(finished: Round) -> None:
            for listen in listeners:
                listen(finished)

        result = engine.generate(self._encode(prompt), max_new_tokens, seed, on_round=tell)
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
        DslError for a model that cannot be run in batches.
        """
        policy = self._batch_policy(min(batch_size, len(prompts)), sampling or Sampling())
        engine = BatchEngine(self.pair.target, self.pair.draft, policy, sampling, self.pair.eos_token_ids)
        results: list[GenerationResult] = []
        for first in range(0, len(prompts), batch_size):
            ids = [self._encode(prompt) for prompt in prompts[first : first + batch_size]]
            results += engine.generate(ids, max_new_tokens, range(seed + first, seed + first + len(ids)))
        return [self._decode(result) for result in results]

    def _batch_policy(self, batch_size: int, sampling: Sampling) -> BatchPolicy:
        key = (batch_size, sampling)
        if key not in self._batch_policies:
            self._batch_policies[key] = batch_policy(self.policy, self.pair, batch_size, sampling, self.threshold)
        return self._batch_policies[key]

    def _encode(self, prompt: str | Sequence[int]) -> list[int]:
        return self.pair.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)

    def _decode(self, result: GenerationResult) -> Generation:
        return Generation(str(self.pair.tokenizer.decode(list(result.token_ids), skip_special_tokens=True)), result)


def choose_policy(
    pair: Pair, spec: str, predictor: Predictor | str | Path | None = None, threshold: float | None = None
) -> Policy:
    """The policy `NAME[:ARGS]`; the learned one with the draft's own predictor and the threshold that pays here, unless
    given. Raises DslError for a predictor of another pair."""
    if spec.partition(":")[0] != "learned":
        return make_policy(spec)
    found = predictor if isinstance(predictor, Predictor) else find_predictor(pair.draft_identity.id, predictor)
    found.check_pair(**pair.describe())
    if threshold is None:
        return make_policy(spec, found, cached_profile(pair, found).stop_rule(found.threshold))
    return make_policy(spec, found, threshold)


def find_predictor(draft_id: str, source: str | Path | None = None) -> Predictor:
    """The predictor at `source`, by default the one beside the draft."""
    if source is None and not shipped_with(draft_id):
        raise DslError(
            f"draft {draft_id} has no predictor in its dsl folder; train one with dsl-collect and dsl-train --ship_to, "
            "name one with --predictor, or choose other policies (heuristic, static:4, ...)"
        )
    return load_predictor(source if source is not None else draft_id)


def as_pair(
    target: PreTrainedModel | str, draft: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Pair:
    """Load a pair by name, or wrap two loaded models; the tokenizer defaults to the target's."""
    if isinstance(target, str) and isinstance(draft, str):
        return load_pair(target, draft)
    if isinstance(target, str) or isinstance(draft, str):
        raise TypeError("give target and draft both as names or both as loaded models")
    for model, role in ((target, "target"), (draft, "draft")):
        check_supported(model, role)
    found = tokenizer or load_tokenizer(str(target.name_or_path))
    identities = [describe_model(model, str(model.name_or_path)) for model in (target, draft)]
    return Pair(target.eval(), draft.eval(), found, *identities)
