"""What a live run needs before the clock starts: models, prompts as tokens, predictor, costs, threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dsl_train.api.calibration import calibrate
from dsl_train.api.serving import find_predictor, online_costs
from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.bench.config import BenchConfig, is_learned
from dsl_train.collect.prompts import Prompt, read_prompts
from dsl_train.costs.online import OnlineCosts
from dsl_train.pair.loading import Pair, load_pair
from dsl_train.pair.prompt import PairPrompt, begin
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor, shipped_with
from dsl_train.runners.cached import context_length
from dsl_train.runners.compiled import warm_up

#: What a run is verified on if it is given no prompts.
OWN_PROMPTS = (
    "Once upon a time there was",
    "def main(arguments):\n    for name in arguments:\n        ",
    "The first law of thermodynamics states that",
    "1, 1, 2, 3, 5, 8,",
)


@dataclass(frozen=True, eq=False)
class Setup:
    config: BenchConfig
    pair: Pair
    prompts: tuple[tuple[str, PairPrompt], ...]
    """(prompt id, what the pair is given)"""
    predictor: Predictor | None
    """None unless a policy is `learned`."""
    costs: OnlineCosts | None = None
    """What the thresholds of `learned` follow, unless given."""
    rule: StopRule | None = None
    """What `learned` compares survival with, if given."""
    groups: tuple[str, ...] = ()
    """Of each prompt, what the column `by` says; empty without one."""

    @classmethod
    def of(cls, config: BenchConfig) -> "Setup":
        pair = open_pair(config)
        read = read_bench_prompts(config, pair)
        prompts = encode_prompts(read, pair)
        groups = tuple(prompt.group for prompt in read) if config.by else ()
        if not any(is_learned(name) for name in config.policies):
            return cls(config, pair, prompts, None, groups=groups)
        predictor = open_predictor(config, pair)
        if config.threshold is not None:
            return cls(config, pair, prompts, predictor, rule=StopRule.of(config.threshold), groups=groups)
        return cls(config, pair, prompts, predictor, online_costs(pair, predictor), groups=groups)

    def policy(self, spec: str) -> Policy:
        """Raises DslError if the specification is not understood."""
        if not is_learned(spec):
            return make_policy(spec)
        return make_policy(spec, self.predictor, self.rule or self.costs)

    @property
    def rule_now(self) -> StopRule | None:
        """What `learned` compares survival with at the moment; None without a predictor."""
        if self.predictor and self.costs:
            return self.costs.profile.stop_rule(self.predictor.threshold)
        return self.rule


def open_pair(config: BenchConfig) -> Pair:
    """Load the models, on as many threads as asked for."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    pair = load_pair(config.target, config.draft, config.dtype, config.device)
    if config.compile:
        warm_up(pair.target, pair.draft)
    return pair


def open_predictor(config: BenchConfig, pair: Pair) -> Predictor:
    """Raises DslError if there is none, or it belongs to another pair."""
    predictor = find_predictor(pair.draft_identity.id, config.predictor)
    predictor.check_pair(**pair.describe())
    return predictor


def measure_costs(config: BenchConfig) -> CostProfile:
    """What the pair's steps cost. The predictor is timed if there is one, or one is named."""
    pair = open_pair(config)
    predictor = open_predictor(config, pair) if config.predictor or shipped_with(config.draft) else None
    return calibrate(pair, predictor, config.sampling)


def read_prompts_as_tokens(config: BenchConfig, pair: Pair) -> tuple[tuple[str, PairPrompt], ...]:
    return encode_prompts(read_bench_prompts(config, pair), pair)


def read_bench_prompts(config: BenchConfig, pair: Pair) -> list[Prompt]:
    if not config.prompts:
        return [Prompt(f"own-{number}", text) for number, text in enumerate(OWN_PROMPTS)]
    return read_prompts(config.prompts, config.column, config.num_prompts, pair.tokenizer, kind=pair.kind, by=config.by)


def encode_prompts(prompts: Sequence[Prompt], pair: Pair) -> tuple[tuple[str, PairPrompt], ...]:
    """Ids and what the pair is given. Raises DslError for a prompt that does not fit the target's context."""
    encoded = tuple((prompt.prompt_id, prompt.encode_for(pair)) for prompt in prompts)
    for prompt_id, prompt in encoded:
        _check_length(prompt_id, begin(prompt), context_length(pair.target))
    return encoded


def _check_length(prompt_id: str, token_ids: Sequence[int], context: int) -> None:
    if not 0 < len(token_ids) <= context:
        raise DslError(
            f"prompt {prompt_id} has {len(token_ids)} tokens and the target's context holds 1 to {context}; "
            "remove or shorten it"
        )
