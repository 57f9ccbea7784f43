"""Cost model and stop rule on the clock: the pair itself, a useless draft (random weights), a perfect one (the target).

    python benchmarks/live_checks.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --prompts data/prompts/heldout_test.jsonl

Times policies against plain decoding, interleaved, and prints the speedup beside the one that measured costs predict
for the very rounds made. The predictor knows neither the useless draft nor the perfect one: `learned` with given
thresholds believes what it was trained on, `corrected` hears what was accepted, as in service. With the useless draft
it must stop drafting and cost next to nothing. The perfect draft costs a target step per token, so at its measured
price drafting gains nothing and the rule must say so; told that a draft costs --cheap target steps, it must draft up to
its cap.

With --own FOLDER and --train_prompts both get predictors of their own as well, as a user of such a pair would: traces
of 60 prompts, trained for four epochs, kept there.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from dsl_train.api.calibration import measure
from dsl_train.base import files
from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.records import AcceptanceStats
from dsl_train.bench import statistics
from dsl_train.bench.config import AUTOREGRESSIVE, BenchConfig
from dsl_train.bench.live import contender, pool, time_all
from dsl_train.bench.replay import price_of
from dsl_train.bench.setup import Setup, open_pair, open_predictor, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.shards import collect
from dsl_train.pair.loading import Pair
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

PROMPT_REPEATS = 3
LEARNED, CORRECTED = "learned", "corrected"


@dataclass(frozen=True)
class Check:
    draft: str
    policy: str
    c_eff: float
    """Price of a draft token that the rule was given [target steps]."""
    rule: StopRule
    """What `learned` compares survival with."""
    speedup: Interval
    """Times the speed of plain decoding, measured; paired by prompt."""
    predicted: float
    """The same from the rounds it made, the measured costs and the forwards over the prompts."""
    mean_lookahead: float
    """Drafts per round."""
    acceptance: float
    """Share of the drafts accepted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--predictor", help="default: the one beside the draft")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cheap", type=float, default=0.1, help="price that the perfect draft is said to have")
    parser.add_argument("--own", type=Path, help="folder of the predictors trained for the extreme drafts")
    parser.add_argument("--train_prompts", help="what they are trained on")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    names = ("target", "draft", "predictor", "prompts", "num_prompts", "repeats")
    config = BenchConfig(**{name: getattr(options, name) for name in names}, policies=[LEARNED])
    pair = open_pair(config)
    predictor = open_predictor(config, pair)
    useless, perfect = replace(pair, draft=random_weights(pair)), replace(pair, draft=pair.target)
    checks: list[Check] = []
    cases: list[tuple[str, Pair, Predictor, float | None, tuple[str, ...]]] = [
        ("trained", pair, predictor, None, ("static:0", "static:2", "static:4", "cumulative", LEARNED, CORRECTED)),
        ("useless", useless, predictor, None, (LEARNED, CORRECTED)),
        ("perfect", perfect, predictor, None, (LEARNED, CORRECTED)),
        ("perfect", perfect, predictor, options.cheap, (LEARNED, CORRECTED)),
    ]
    if options.own:
        for_useless, for_perfect = (
            own_predictor(options, extreme, options.own / name)
            for name, extreme in (("useless", useless), ("perfect", perfect))
        )
        cases += [
            ("useless, its own predictor:", useless, for_useless, None, (LEARNED,)),
            ("perfect, its own predictor:", perfect, for_perfect, None, (LEARNED,)),
            ("perfect, its own predictor:", perfect, for_perfect, options.cheap, (LEARNED,)),
        ]
    for name, extreme, predictor, price, policies in cases:
        cost = measure(CachedModel(extreme.target), CachedModel(extreme.draft), predictor)
        rule = cost.stop_rule(predictor.threshold) if price is None else StopRule.of(predictor.threshold(price))
        setup = Setup(config, extreme, read_prompts_as_tokens(config, extreme), predictor, rule=rule)
        for check in run(name, setup, cost, cost.c_eff if price is None else price, policies):
            checks.append(check)
            print(told(check), flush=True)
    if options.output:
        origin = {"versions": files.software_versions(), "command": files.command_line()}
        files.write_json(options.output, {"checks": [asdict(check) for check in checks], **origin})


def own_predictor(options: argparse.Namespace, pair: Pair, folder: Path) -> Predictor:
    """Collected and trained for this very draft."""
    draft = folder / "draft"
    pair.draft.save_pretrained(draft)
    pair.tokenizer.save_pretrained(draft)
    collect(
        CollectConfig(
            target=options.target,
            draft=str(draft),
            output=str(folder / "traces"),
            prompts=options.train_prompts,
            num_prompts=60,
            tail_length=15,
        )
    )
    fit(TrainConfig(traces=(folder / "traces",), output=folder / "predictor", epochs=4))
    return Predictor.load(folder / "predictor")


def random_weights(pair: Pair) -> torch.nn.Module:
    """A draft of the same architecture that has learned nothing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pair.draft.config)
    return model.to(pair.draft.device, pair.draft.dtype).eval()


def run(name: str, setup: Setup, cost: CostProfile, c_eff: float, policies: Sequence[str]) -> Iterator[Check]:
    contenders = {policy: contender(policy, setup) for policy in (AUTOREGRESSIVE, *policies) if policy != CORRECTED}
    if CORRECTED in policies:
        assert setup.predictor is not None
        assert setup.rule is not None
        contenders[CORRECTED] = contender(LearnedPolicy(setup.predictor, setup.rule, corrected=True), setup)
    runs = time_all(contenders, [ids for _, ids in setup.prompts], setup.config.repeats)
    rates = {policy: pool(of_policy) for policy, of_policy in runs.items()}
    counts = statistics.draws(len(setup.prompts))
    target_prompts, draft_prompts = (
        setup.config.repeats * prompt_seconds(model, setup) for model in (setup.pair.target, setup.pair.draft)
    )
    for policy in policies:
        rounds = [r for result in chain(*runs[policy]) for r in result.rounds]
        stats, price = AcceptanceStats.of(rounds), price_of(LEARNED if policy == CORRECTED else policy, cost)
        plain = target_prompts + stats.num_committed_tokens * price.round_base
        drafting = draft_prompts if stats.num_draft_tokens else 0.0
        own = target_prompts + drafting + sum(price.round_seconds(len(r.drafted)) for r in rounds)
        yield Check(
            draft=name,
            policy=policy,
            c_eff=c_eff,
            rule=setup.rule or StopRule.of(1.0),
            speedup=statistics.ratio(rates[policy], rates[AUTOREGRESSIVE], counts),
            predicted=plain / own,
            mean_lookahead=stats.num_draft_tokens / stats.num_spec_steps,
            acceptance=stats.draft_acceptance_rate,
        )


@torch.inference_mode()
def prompt_seconds(model: torch.nn.Module, setup: Setup) -> float:
    """Forwards over all prompts, each the quickest of some."""
    runner, total = CachedModel(model), 0.0
    for _, prompt in setup.prompts:
        seconds = []
        for _ in range(PROMPT_REPEATS):
            runner.reset()
            began = time.perf_counter()
            runner.logits(prompt, keep=1).argmax(-1).tolist()
            seconds.append(time.perf_counter() - began)
        total += min(seconds)
    return total


def told(check: Check) -> str:
    speed = check.speedup
    return (
        f"{check.draft} draft, {check.policy} at c = {check.c_eff:.3f} (thresholds {check.rule.first:.3f}, "
        f"{check.rule.another:.3f}): {check.mean_lookahead:.2f} drafts a round, {check.acceptance:.0%} accepted; "
        f"{speed.estimate:.3f} x [{speed.lower:.3f}, {speed.upper:.3f}] plain decoding, "
        f"predicted {check.predicted:.3f} x"
    )


if __name__ == "__main__":
    main()
