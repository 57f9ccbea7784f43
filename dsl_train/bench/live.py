"""Policies on the clock: same prompts, interleaved repeats, one process; greedy outputs compared token by token.

Knows engine, policies and models; prints and draws nothing. Letters: N prompts, R repeats.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, compress
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from dsl_train.base.cost import CostProfile
from dsl_train.base.policy import Policy
from dsl_train.base.records import AcceptanceStats, DslError, GenerationResult
from dsl_train.bench import statistics
from dsl_train.bench.config import ASSISTED, AUTOREGRESSIVE, TRANSFORMERS, BenchConfig
from dsl_train.bench.hf import Generate, assisted_note, hf_generate
from dsl_train.bench.setup import Setup, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval, Rates
from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.pair.prompt import PairPrompt, begin, runner_of
from dsl_train.runners.cached import CachedModel

Item = TypeVar("Item")
Results = dict[str, list[list[GenerationResult]]]
"""Policy -> [N][R] finished generations."""


@dataclass(frozen=True)
class PolicyResult:
    name: str
    tokens_per_second: Interval
    """All tokens / all seconds, of each prompt's median repeat."""
    relative_to: Mapping[str, Interval]
    """Base -> how many times its tokens per second, paired by prompt."""
    stats: AcceptanceStats
    """Over all prompts and repeats; empty for transformers' own, which keeps none."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stats": self.stats.summary()}


@dataclass(frozen=True)
class GroupResult:
    """The prompts of one group alone."""

    name: str
    num_prompts: int
    policies: tuple[PolicyResult, ...]
    best_static: str | None
    """The fastest static lookahead on this group's prompts."""

    def __getitem__(self, name: str) -> PolicyResult:
        return next(policy for policy in self.policies if policy.name == name)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(replace(self, policies=())), "policies": [policy.to_dict() for policy in self.policies]}


@dataclass(frozen=True)
class Mismatch:
    """Where a greedy output first departs from the target's own."""

    policy: str
    prompt_id: str
    index: int
    """Response token, from 0."""
    expected: int | None
    """None where that text is over."""
    found: int | None


@dataclass(frozen=True)
class LiveResult:
    policies: tuple[PolicyResult, ...]
    best_static: str | None
    """The static lookahead with the most tokens per second: on `tune_prompts`, or else as `best_static_here`."""
    mismatches: tuple[Mismatch, ...]
    cost: CostProfile | None
    """What the costs that `learned` follows were in the end; None where its threshold was given."""
    threshold: float | None
    """What `learned` compared survival with in the end."""
    num_prompts: int
    dtype: str
    greedy: bool
    groups: tuple[GroupResult, ...] = ()
    """With --by: the same by group."""
    best_static_here: str | None = None
    """The static lookahead with the most tokens per second on these very prompts: the hardest one to beat."""

    def __getitem__(self, name: str) -> PolicyResult:
        return next(policy for policy in self.policies if policy.name == name)

    @property
    def failed(self) -> bool:
        """A greedy output in float32 differs; below that precision, ties between logits may fall either way."""
        return bool(self.mismatches) and self.dtype == "float32"

    def to_dict(self) -> dict[str, Any]:
        policies = [policy.to_dict() for policy in self.policies]
        cost = self.cost.to_dict() if self.cost else None
        plain = asdict(replace(self, policies=(), cost=None, groups=()))
        groups = [group.to_dict() for group in self.groups]
        return {"mode": "live", **plain, "policies": policies, "cost": cost, "groups": groups}


def run_live(config: BenchConfig) -> LiveResult:
    """Raises DslError for whatever cannot be loaded or does not fit, before anything is timed."""
    setup = Setup.of(config)
    names = list(dict.fromkeys([AUTOREGRESSIVE, *config.policies]))
    contenders = {name: contender(name, setup) for name in names}
    tuned = _tune_static(config, setup, names) if config.tune_prompts else None
    results = time_all(contenders, [ids for _, ids in setup.prompts], config.repeats, config.seed)
    whole = _summarise("all", results, config.seed, tuned)
    members = {group: [of == group for of in setup.groups] for group in dict.fromkeys(setup.groups)}
    by_group = {
        group: {name: list(compress(results[name], of_group)) for name in names} for group, of_group in members.items()
    }
    greedy, rule = config.sampling.greedy, setup.rule_now
    return LiveResult(
        policies=whole.policies,
        best_static=tuned or whole.best_static,
        best_static_here=whole.best_static,
        mismatches=tuple(compare(results, [prompt_id for prompt_id, _ in setup.prompts])) if greedy else (),
        cost=setup.costs.profile if setup.costs else None,
        threshold=rule.another if rule else None,
        num_prompts=len(setup.prompts),
        dtype=setup.pair.target_identity.dtype,
        greedy=greedy,
        groups=tuple(
            _summarise(group, of_group, config.seed, tuned or whole.best_static) for group, of_group in by_group.items()
        ),
    )


def _tune_static(config: BenchConfig, setup: Setup, names: Sequence[str]) -> str | None:
    """The fastest of the static lookaheads on other prompts. Raises DslError for a prompt that is also timed."""
    tuning = replace(config, prompts=config.tune_prompts or "", by=None)
    prompts = read_prompts_as_tokens(tuning, setup.pair)
    shared = {prompt_id for prompt_id, _ in prompts} & {prompt_id for prompt_id, _ in setup.prompts}
    if shared:
        raise DslError(
            f"{len(shared)} prompts are in --prompts {config.prompts} and in --tune_prompts {config.tune_prompts} "
            f"({min(shared)} first); a lookahead chosen on the prompts it is judged by looks better than it is: name "
            "a file of other prompts, or leave --tune_prompts out"
        )
    tried = {name: contender(name, setup) for name in names if name.startswith("static:")}
    if not tried:
        return None
    runs = time_all(tried, [prompt for _, prompt in prompts], 1, config.seed)
    return statistics.fastest({name: pool(of_name) for name, of_name in runs.items()})


def _summarise(group: str, results: Results, seed: int, best_static: str | None = None) -> GroupResult:
    """Rates with intervals, relative to the target alone, to transformers and to `best_static`, by default the fastest
    static lookahead on these prompts."""
    rates = {name: pool(runs) for name, runs in results.items()}
    num_prompts = len(results[AUTOREGRESSIVE])
    counts = statistics.draws(num_prompts, seed=seed)
    fastest = statistics.fastest({name: rates[name] for name in rates if name.startswith("static:")})
    bases = dict.fromkeys((AUTOREGRESSIVE, best_static or fastest, fastest, TRANSFORMERS, ASSISTED))
    policies = tuple(
        PolicyResult(
            name=name,
            tokens_per_second=statistics.rate(rates[name], counts),
            relative_to={base: statistics.ratio(rates[name], rates[base], counts) for base in bases if base in rates},
            stats=AcceptanceStats.of([r for result in chain(*results[name]) for r in result.rounds]),
            note=assisted_note() if name == ASSISTED else "",
        )
        for name in rates
    )
    return GroupResult(group, num_prompts, policies, fastest)


def contender(
    name: str | Policy, setup: Setup, target: CachedModel | None = None, draft: CachedModel | None = None
) -> Generate:
    """How `name`, or a policy made for this, continues a prompt, with caches of its own unless given. Raises DslError
    for an unknown policy, or a learned one without predictor."""
    pair, sampling, max_new_tokens = setup.pair, setup.config.sampling, setup.config.max_new_tokens
    if name in (TRANSFORMERS, ASSISTED):
        return hf_generate(pair, sampling, max_new_tokens, pair.draft if name == ASSISTED else None)
    target, eos = target or runner_of(pair.target), pair.eos_token_ids
    if name == AUTOREGRESSIVE:
        return lambda prompt, seed: autoregressive(target, begin(prompt, target), max_new_tokens, sampling, eos, seed)
    draft = draft or runner_of(pair.draft)
    policy = setup.policy(name) if isinstance(name, str) else name
    engine = SpeculativeEngine(target, draft, policy, sampling, eos, setup.config.verification)
    return lambda prompt, seed: engine.generate(begin(prompt, target, draft), max_new_tokens, seed)


def time_all(contenders: Mapping[str, Generate], prompts: Sequence[PairPrompt], repeats: int, seed: int = 0) -> Results:
    """Every contender on every prompt, `repeats` times, the order rotating; one untimed turn each first."""
    for generate in contenders.values():
        generate(prompts[0], seed)
    results: Results = {name: [[] for _ in prompts] for name in contenders}
    turns = list(schedule(list(contenders), len(prompts), repeats))
    for name, prompt, repeat in progress(turns, "timing"):
        generated = contenders[name](prompts[prompt], seed + repeat * len(prompts) + prompt)
        results[name][prompt].append(generated)
    return results


def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
    """The items, with a bar on stderr where that is a terminal."""
    return track(items, label, console=Console(stderr=True), disable=not sys.stderr.isatty())


def schedule(names: Sequence[str], num_prompts: int, repeats: int) -> Iterator[tuple[str, int, int]]:
    """(name, prompt, repeat): all names on one prompt before the next, each time from another one on."""
    for repeat in range(repeats):
        for prompt in range(num_prompts):
            first = (repeat * num_prompts + prompt) % len(names)
            for name in (*names[first:], *names[:first]):
                yield name, prompt, repeat


def pool(runs: Sequence[Sequence[GenerationResult]]) -> Rates:
    """Each prompt's mean length, at its median seconds per token."""
    tokens = [float(np.mean([run.num_tokens for run in repeats])) for repeats in runs]
    pace = [float(np.median([run.seconds / run.num_tokens for run in repeats])) for repeats in runs]
    return Rates(np.array(tokens), np.array(tokens) * np.array(pace))


def compare(results: Results, prompt_ids: Sequence[str]) -> Iterator[Mismatch]:
    """The first difference of every output that is not the target's own; once per policy and prompt."""
    for name, of_prompts in results.items():
        for prompt_id, runs, references in zip(prompt_ids, of_prompts, results[AUTOREGRESSIVE], strict=True):
            expected = references[0].token_ids
            different = next((run.token_ids for run in runs if run.token_ids != expected), None)
            if different is not None:
                yield first_difference(name, prompt_id, expected, different)


def first_difference(policy: str, prompt_id: str, expected: Sequence[int], found: Sequence[int]) -> Mismatch:
    """Where two different texts part."""
    shared = zip(expected, found, strict=False)
    index = next((i for i, (a, b) in enumerate(shared) if a != b), min(len(expected), len(found)))
    ours, theirs = (tokens[index] if index < len(tokens) else None for tokens in (expected, found))
    return Mismatch(policy, prompt_id, index, ours, theirs)
