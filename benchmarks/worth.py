"""What each mechanism of the loop is worth on a pair: switched off one by one, in one run.

    python benchmarks/worth.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --prompts data/prompts/heldout_test.jsonl --traces runs/reference/traces --held_out runs/reference/test_t0 \\
        --compile --output runs/worth.md

Live rows are timed in turn on the same prompts, each with costs of its own that it learns while generating. Rows of
features are replayed on --held_out at the costs measured here, with predictors trained on --traces without one group
each; without --traces they are left out. A worth is the tokens per second with the mechanism by those without it, with
its 95 % interval, bootstrapped by prompt. Prints a Markdown table.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from dsl_train.api.calibration import calibrate
from dsl_train.base import files
from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.policy import Policy
from dsl_train.bench import statistics
from dsl_train.bench.config import AUTOREGRESSIVE, BenchConfig
from dsl_train.bench.hf import Generate
from dsl_train.bench.live import compare, contender, pool, time_all
from dsl_train.bench.replay import by_prompt, price_of
from dsl_train.bench.replay import contender as replayed
from dsl_train.bench.setup import Setup, open_pair, open_predictor, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval, Rates
from dsl_train.costs.online import OnlineCosts
from dsl_train.features.entries import FEATURE_NAMES, FEATURES, GROUPS
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.prompt import begin
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.resting import Resting
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel, LibraryDecoder
from dsl_train.runners.compiled import warm_up
from dsl_train.traces import decisions
from dsl_train.traces.store import open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

LEARNED, ADAPT, COMPILED = "learned", "learned:adapt", "compiled "
LIBRARY, AWAKE, FLAT, FIXED = "transformers' forward", "no resting", "one threshold", "costs measured once"
STATICS = ("static:1", "static:2", "static:3", "static:4")
RULES = ("heuristic", "confidence")
COLUMNS = ("mechanism", "with", "without", "worth", "95 %", "how")


@dataclass(frozen=True)
class Row:
    mechanism: str
    name: str
    """Of what is timed with the mechanism."""
    base: str
    """Of what is timed without it."""
    worth: Interval
    how: str
    """live or replay"""

    def __str__(self) -> str:
        worth, lower, upper = (f"{value - 1:+.1%}" for value in self.worth.to_dict().values())
        return f"| {self.mechanism} | {self.name} | {self.base} | {worth} | {lower} to {upper} | {self.how} |"


class LibraryModel(CachedModel):
    """Through transformers' forward, whatever the model is."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._decoder, self._compiled = LibraryDecoder(model), None
        self.reset()


class NeverResting(Resting):
    @property
    def awake(self) -> bool:
        return True


class OneThreshold(LearnedPolicy):
    """The same threshold at all positions: that of a draft's price in rounds that draft."""

    def _price(self, costs: CostProfile) -> None:
        super()._price(costs)
        self.given_rule = self.rule = StopRule.of(self.predictor.threshold(costs.c_eff))


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    config = BenchConfig(
        target=args.target,
        draft=args.draft,
        predictor=args.predictor,
        prompts=args.prompts,
        num_prompts=args.num_prompts,
        by=args.by,
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        temperature=args.temperature,
        dtype=args.dtype,
        num_threads=args.threads,
    )
    pair = open_pair(config)
    setup = Setup(config, pair, read_prompts_as_tokens(config, pair), open_predictor(config, pair))
    costs = calibrate(pair, setup.predictor, config.sampling)
    rows = list(time_mechanisms(setup, costs, args.compile))
    if args.traces and args.held_out:
        rows += replay_groups(args.traces, args.held_out, costs)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(str, rows)]
    print("\n".join(lines))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(Path(args.output), "\n".join([*lines, ""]))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--by", help="column of the prompts; --num_prompts are then taken of each of its values")
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--compile", action="store_true", help="the compiled forwards too")
    parser.add_argument("--traces", type=Path, nargs="*", help="trace folders to train predictors on")
    parser.add_argument("--held_out", type=Path, nargs="*", help="trace folders to replay them on")
    parser.add_argument("--output", help="Markdown file")
    return parser.parse_args(argv)


def time_mechanisms(setup: Setup, costs: CostProfile, compiled: bool) -> Iterator[Row]:
    contenders = live_contenders(setup, costs)
    if compiled:
        warm_up(setup.pair.target, setup.pair.draft)  # whoever was made before runs as before
        names = (AUTOREGRESSIVE, LEARNED)
        contenders |= {COMPILED + name: contender(name, with_costs(setup, costs)) for name in names}
    results = time_all(contenders, [prompt for _, prompt in setup.prompts], setup.config.repeats)
    if setup.config.sampling.greedy:
        for mismatch in compare(results, [prompt_id for prompt_id, _ in setup.prompts]):
            print(mismatch)
    rates = {name: pool(runs) for name, runs in results.items()}
    best_static = statistics.fastest({name: rates[name] for name in STATICS})
    assert best_static
    yield from (
        row(mechanism, rates, name, base, "live")
        for mechanism, name, base in (
            ("drafting, by the learned rule", LEARNED, AUTOREGRESSIVE),
            ("drafting, by the best static lookahead in hindsight", best_static, AUTOREGRESSIVE),
            ("looking, against rules that do not", LEARNED, best_static),
            *(("features and predictor, against another rule", LEARNED, rule) for rule in RULES),
            ("own Llama layers", LEARNED, LIBRARY),
            ("thresholds by position", LEARNED, FLAT),
            ("costs learned while generating", LEARNED, FIXED),
            ("resting", LEARNED, AWAKE),
            ("adapt", ADAPT, LEARNED),
            *(("compiled path", COMPILED + name, name) for name in (AUTOREGRESSIVE, LEARNED) if compiled),
        )
    )


def live_contenders(setup: Setup, costs: CostProfile) -> dict[str, Generate]:
    pair, predictor = setup.pair, setup.predictor
    assert predictor
    never_resting = LearnedPolicy(predictor, OnlineCosts(costs))
    never_resting._resting = NeverResting()
    library = LibraryModel(pair.target), LibraryModel(pair.draft)
    named = {
        name: contender(name, with_costs(setup, costs)) for name in (AUTOREGRESSIVE, *STATICS, *RULES, LEARNED, ADAPT)
    }
    return {
        **named,
        LIBRARY: contender(LEARNED, with_costs(setup, costs), *library),
        AWAKE: generate_by(never_resting, setup),
        FLAT: generate_by(OneThreshold(predictor, OnlineCosts(costs)), setup),
        FIXED: generate_by(LearnedPolicy(predictor, costs.stop_rule(predictor.threshold)), setup),
    }


def with_costs(setup: Setup, costs: CostProfile) -> Setup:
    """Of its own: another way to run the models costs something else."""
    return replace(setup, costs=OnlineCosts(costs))


def generate_by(policy: Policy, setup: Setup) -> Generate:
    pair, config = setup.pair, setup.config
    models = CachedModel(pair.target), CachedModel(pair.draft)
    engine = SpeculativeEngine(*models, policy, config.sampling, pair.eos_token_ids)
    return lambda prompt, seed: engine.generate(begin(prompt, *models), config.max_new_tokens, seed)


def replay_groups(traces: Sequence[Path], held_out: Sequence[Path], costs: CostProfile) -> list[Row]:
    """The learned rule on all features against the same without one group each, and without any look at the draft."""
    judged = decisions.build(open_traces(held_out))
    features = {f"without {group}": [f.name for f in FEATURES if f.group != group] for group in GROUPS}
    with TemporaryDirectory() as folder:
        rates = {}
        for name, chosen in {"all features": FEATURE_NAMES, **features}.items():
            output = Path(folder) / name.replace(" ", "_")
            fit(TrainConfig(list(traces), output, features=",".join(chosen)))
            result = replayed(LEARNED, judged, Predictor.load(output), None)(price_of(LEARNED, costs))
            rates[name] = by_prompt(result, costs)
    return [row(f"features: {group}", rates, "all features", f"without {group}", "replay") for group in GROUPS]


def row(mechanism: str, rates: Mapping[str, Rates], name: str, base: str, how: str) -> Row:
    counts = statistics.draws(len(rates[name].tokens))
    return Row(mechanism, name, base, statistics.ratio(rates[name], rates[base], counts), how)


if __name__ == "__main__":
    main()
