"""Is the output the target's own? Greedy texts are compared token by token, sampled ones with the target's exact law.

Any contender that can continue a prompt is tested, ours and transformers' alike; this module knows no policy. The
verdict comes with its false-alarm rate (Bonferroni over all laws tested) and with the smallest bias it would have seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from dsl_train.base.sampling import Sampling
from dsl_train.bench.config import AUTOREGRESSIVE, TRANSFORMERS, BenchConfig, all_contenders
from dsl_train.bench.distribution import Distribution, Fit, exact_distribution, fit
from dsl_train.bench.hf import Generate
from dsl_train.bench.live import Mismatch, contender, first_difference, progress
from dsl_train.bench.setup import Setup
from dsl_train.pair.prompt import EncodedPrompt, PairPrompt, begin, runner_of
from dsl_train.predictor.runtime import shipped_with
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.kv_cache import keeps_every_token

#: Chance that a run accuses a lossless loop, over all its laws together.
FALSE_ALARM = 1e-3
DEFAULT_POLICIES = ("static:4", "heuristic", "confidence", "random")
#: Tokens whose joint law is tested: the prompt's own first one and four that may be drafted.
NUM_TOKENS = 5


@dataclass(frozen=True)
class LawCheck:
    """Sampled texts of one policy after one prompt against the target's exact law."""

    policy: str
    prompt_id: str
    fit: Fit
    passed: bool
    """The p-value is not below `VerifyResult.level`."""


@dataclass(frozen=True)
class VerifyResult:
    policies: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    """Greedy texts that are not the target's own, the first difference of each."""
    laws: tuple[LawCheck, ...]
    num_prompts: int
    """Compared greedily."""
    level: float
    """False-alarm rate of each law's test."""
    sampling: Sampling
    """Of the laws."""
    dtype: str

    @property
    def biased(self) -> tuple[LawCheck, ...]:
        return tuple(check for check in self.laws if not check.passed)

    @property
    def lossless(self) -> bool:
        return not self.mismatches and not self.biased

    @property
    def failed(self) -> bool:
        """Not lossless in float32; below that precision rounding alone moves ties and probabilities."""
        return not self.lossless and self.dtype == "float32"

    def to_dict(self) -> dict[str, Any]:
        verdict = {"lossless": self.lossless, "false_alarm": FALSE_ALARM}
        return {"mode": "verify", **verdict, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Trial:
    """One policy after one prompt, ready to draw from."""

    policy: str
    prompt_id: str
    law: Distribution
    draw: Callable[[int], Sequence[int]]
    """Seed -> the first tokens of a sampled text."""


def run_verify(config: BenchConfig) -> VerifyResult:
    """Raises DslError for whatever cannot be loaded or does not fit."""
    setup = Setup.of(replace(config, policies=verified_policies(config)))
    policies = tuple(dict.fromkeys(setup.config.policies))
    sampled = replace(setup.config, temperature=config.temperature or 1.0, max_new_tokens=NUM_TOKENS)
    greedy = replace(setup, config=replace(config, temperature=0.0, top_k=0, top_p=1.0))
    names = dict.fromkeys((AUTOREGRESSIVE, TRANSFORMERS, *policies))
    contenders = {name: contender(name, greedy) for name in names}
    mismatches = tuple(compare_greedy(contenders, progress(setup.prompts, "greedy")))
    trials = list(make_trials(replace(setup, config=sampled), policies))
    level = FALSE_ALARM / len(trials)
    turns = progress(list(enumerate(trials)), "sampled")
    return VerifyResult(
        policies=policies,
        mismatches=mismatches,
        laws=tuple(check_law(trial, config.draws, config.seed + i * config.draws, level) for i, trial in turns),
        num_prompts=len(setup.prompts),
        level=level,
        sampling=sampled.sampling,
        dtype=setup.pair.target_identity.dtype,
    )


def verified_policies(config: BenchConfig) -> list[str]:
    """What was asked for; by default one rule of each kind, a coin, and the predictor if there is one."""
    if config.policies != all_contenders():
        return config.policies
    learned = config.predictor or shipped_with(config.draft)
    return [*DEFAULT_POLICIES, *(["learned"] if learned else [])]


def compare_greedy(contenders: Mapping[str, Generate], prompts: Iterable[tuple[str, PairPrompt]]) -> Iterator[Mismatch]:
    """Where a text first departs from the first contender's, the reference; `prompts` are (id, prompt)."""
    reference, *others = contenders
    for prompt_id, prompt in prompts:
        expected = contenders[reference](prompt, 0).token_ids
        for name in others:
            found = contenders[name](prompt, 0).token_ids
            if found != expected:
                yield first_difference(name, prompt_id, expected, found)


def check_law(trial: Trial, num_draws: int, seed: int, level: float) -> LawCheck:
    """Draw texts with seeds `seed`, `seed` + 1, ... and test them at a false-alarm rate of `level`."""
    tested = fit(trial.law, [trial.draw(seed + i) for i in range(num_draws)], level)
    return LawCheck(trial.policy, trial.prompt_id, tested, passed=tested.p_value >= level)


def make_trials(setup: Setup, policies: Sequence[str]) -> Iterator[Trial]:
    """Every policy after each of the first `law_prompts` prompts, at the configuration's sampling and length."""
    config, eos = setup.config, setup.pair.eos_token_ids
    for prompt_id, prompt in setup.prompts[: config.law_prompts]:
        target, draft = (_prompt_model(model, prompt) for model in (setup.pair.target, setup.pair.draft))
        law = exact_distribution(
            target, begin(prompt, target), config.sampling, eos, config.max_new_tokens, config.draws
        )
        for name in policies:
            generate = contender(name, setup, target, draft)
            yield Trial(name, prompt_id, law, partial(_draw, generate, prompt))


class PromptModel(CachedModel):
    """Begins every text with the prompt cached: a short text then costs little more than its own tokens. For models
    that keep every token; others cannot return to the prompt."""

    def __init__(self, model: PreTrainedModel, prompt_length: int) -> None:
        self._kept = 0
        super().__init__(model)
        self._kept = prompt_length - 1

    def reset(self) -> None:
        """Forget all but the prompt, whose last token is always fed anew."""
        if self._kept:
            self.truncate(self._kept)
        else:
            super().reset()


def _prompt_model(model: PreTrainedModel, prompt: PairPrompt) -> CachedModel:
    if isinstance(prompt, EncodedPrompt) or not keeps_every_token(model.config):
        return runner_of(model)
    return PromptModel(model, len(prompt))


def _draw(generate: Generate, prompt: PairPrompt, seed: int) -> Sequence[int]:
    return generate(prompt, seed).token_ids
