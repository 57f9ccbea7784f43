"""The proof by replay: the learned policy against every tuned baseline and every bound, on texts it was not trained on.

    python benchmarks/proof.py --predictor runs/reference/predictor --output runs/reference/proof \\
        --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --contest greedy runs/reference/traces runs/reference/test_t0 \\
        --contest sampled runs/reference/train_t08 runs/reference/test_t08 \\
        --contest HumanEval runs/reference/traces runs/reference/humaneval_t0

`specdec++` is fitted on all features of this package, `specdec++:draft` on those of the draft's own distributions
alone: the nearest that traces have to the published one's input, the draft model's hidden state.

Each contest is a name, trace folders of the training prompts (comma-separated) and of the test prompts. Baselines are
tuned on the former at each price of a draft; everything is told of the latter, with 95 % intervals bootstrapped by
prompt. The prices are those of --c and, given a pair, the measured one. Writes proof.json and proof.md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dsl_train.api.calibration import measure
from dsl_train.api.serving import load_predictor
from dsl_train.base import files
from dsl_train.base.cost import CostProfile, Price, StopRule, c_of, rule_at
from dsl_train.base.sampling import Sampling
from dsl_train.bench import statistics
from dsl_train.bench.ceiling import replay_ceiling
from dsl_train.bench.replay import BOUNDS, by_prompt, coupling_draws, price_of
from dsl_train.bench.statistics import Interval, Rates
from dsl_train.bench.tuned import replay_spec
from dsl_train.features import entries
from dsl_train.pair.loading import load_pair
from dsl_train.pair.prompt import typical_runners
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.replay.tuning import AS_PUBLISHED, tune_baselines, tune_specdec
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces

LEARNED, CORRECTED, STATIC = "learned", "learned, corrected", "static"
OWN_SIGNALS = "specdec++:draft"
ORACLE_PLUS, CEILING, CLAIRVOYANT = "oracle+", "ceiling", "clairvoyant"
#: A long profile: where rules differ by a percent, so may two of the usual three seconds.
PROFILE_TURNS, PROFILE_SECONDS = 80, 25.0
GRID = tuple(i / 100 for i in range(1, 100))


@dataclass(frozen=True)
class Row:
    rule: str
    spec: str
    """With its arguments, as tuned."""
    rate: Interval
    """Tokens per target step; where the price was measured, per round of plain decoding."""
    vs_static: Interval
    """How many times the rate of the static lookahead tuned on the training prompts."""
    learned_vs: Interval
    """How many times this rule's rate the learned policy reaches."""
    mean_lookahead: float
    exhausted_share: float
    """Rounds in which the traces ended before the rule did."""

    @property
    def shown(self) -> str:
        """The specification without what cannot be read at a glance: files, fitted weights."""
        name, _, arguments = self.spec.partition(":")
        short = [argument for argument in arguments.split(",") if "/" not in argument][:2]
        return f"{name}:{','.join(short)}" if arguments else name


@dataclass(frozen=True)
class Contest:
    name: str
    c: float
    """Price of one more draft [target steps]; of the learned policy, where it was measured."""
    measured: bool
    num_prompts: int
    coupling_draws: int
    rows: tuple[Row, ...]
    """The fastest first."""
    gap_to_oracle_plus: Interval
    gap_to_ceiling: Interval | None
    """Sampling only."""
    threshold: float
    """The predictor's own."""
    brute_threshold: float
    """The best one on the test prompts."""
    brute_gain: float
    """What that one would add."""

    def __getitem__(self, rule: str) -> Row:
        return next(row for row in self.rows if row.rule == rule)

    @property
    def best_rule(self) -> Row:
        """The fastest of all that a user could pick instead."""
        return next(row for row in self.rows if row.rule not in (LEARNED, CORRECTED, CEILING, CLAIRVOYANT, *BOUNDS))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", required=True, help="folder of the trained predictor")
    parser.add_argument("--contest", nargs=3, action="append", required=True, metavar=("NAME", "TRAIN", "TEST"))
    parser.add_argument("--target", help="with --draft: measure what rounds cost here")
    parser.add_argument("--draft")
    parser.add_argument(
        "--cost",
        nargs="+",
        type=Path,
        help="or read it: JSON of `dsl-bench --mode profile --output`, one for each contest",
    )
    parser.add_argument("--c", nargs="*", type=float, default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    predictor = load_predictor(options.predictor)
    options.output.mkdir(parents=True, exist_ok=True)
    contests: list[Contest] = []
    if options.cost and len(options.cost) != len(options.contest):
        parser.error(f"{len(options.cost)} files of --cost for {len(options.contest)} contests; give one for each")
    for number, (name, train, test) in enumerate(options.contest):
        sides = [open_decisions(folders.split(","), predictor) for folders in (train, test)]
        prices = [*measured_prices(options, number, predictor, sides[1]), *options.c]
        file = options.output / f"acceptance-{name}.json"
        contests += contest(name, *sides, predictor, prices, file, options.seed)
        text = markdown(contests)
        print(text.split("\n\n## ")[-1], flush=True)
    files.write_text(options.output / "proof.md", text)
    origin = {"versions": files.software_versions(), "command": files.command_line()}
    document = {"contests": [asdict(held) for held in contests], **origin}
    files.write_json(options.output / "proof.json", document)


def open_decisions(folders: Sequence[str], predictor: Predictor) -> Decisions:
    traces = open_traces([Path(folder) for folder in folders])
    predictor.check_pair(traces.pair["target"], traces.pair["draft"])
    return decisions.build(traces, predictor.max_lookahead)


def measured_prices(options: argparse.Namespace, number: int, predictor: Predictor, test: Decisions) -> list[Price]:
    if options.cost:
        content = json.loads(options.cost[number].read_text("utf-8"))
        return [CostProfile.from_dict(content.get("cost", content))]
    if not (options.target and options.draft):
        return []
    text = test.sequences[0]
    sampling = Sampling(float(text.temperature), int(text.top_k), float(text.top_p))
    return [long_profile(options.target, options.draft, predictor, sampling)]


@cache
def long_profile(target: str, draft: str, predictor: Predictor, sampling: Sampling) -> CostProfile:
    """Once for all contests of one setting."""
    runners = typical_runners(load_pair(target, draft))
    return measure(*runners, predictor, sampling, turns=PROFILE_TURNS, max_seconds=PROFILE_SECONDS)


def contest(
    name: str, train: Decisions, test: Decisions, predictor: Predictor, prices: Sequence[Price], file: Path, seed: int
) -> Iterator[Contest]:
    """One for each price. Every rule pays for what it looks at."""
    counts = statistics.draws(len(set(test.prompt_ids)), seed=seed)
    survival = predictor.survival_batch(test.features)
    sampled = any(text.temperature > 0 for text in test.sequences)
    published = {spec: replay.replay_policy(test, make_policy(spec)) for spec in AS_PUBLISHED}
    bounds = {bound: replay_bound(test) for bound, replay_bound in BOUNDS.items()}
    own_file, own_names = file.with_stem(f"{file.stem}-draft"), entries.select("draft,block")
    own_signals = tune_specdec(train, prices, own_file, own_names)
    for price, tuned, own in zip(prices, tune_baselines(train, prices, file), own_signals, strict=True):
        tuned = {**tuned, OWN_SIGNALS: own}
        rule = rule_at(price, predictor.threshold)
        results = {
            (LEARNED, LEARNED): replay.replay_survival(test, survival, rule),
            (CORRECTED, CORRECTED): replay.replay_policy(test, LearnedPolicy(predictor, rule, corrected=True)),
            **{(rule_name, best.spec): replay_spec(test, best.spec) for rule_name, best in tuned.items()},
            **{(spec, spec): result for spec, result in published.items()},
            **{(bound, bound): result for bound, result in bounds.items()},
        }
        for ceiling in (CEILING, CLAIRVOYANT) if sampled else ():
            results[ceiling, ceiling] = replay_ceiling(test, ceiling, price_of(ceiling, price))
        rates = {
            key: by_prompt(result, price_of(LEARNED if key[0] == CORRECTED else key[0], price))
            for key, result in results.items()
        }
        static, learned = rates[STATIC, tuned[STATIC].spec], rates[LEARNED, LEARNED]
        brute, gain = brute_force(test, survival, price, learned)
        yield Contest(
            name=name,
            c=c_of(price),
            measured=isinstance(price, CostProfile),
            num_prompts=counts.shape[1],
            coupling_draws=coupling_draws(test),
            rows=rows(results, rates, static, learned, counts),
            gap_to_oracle_plus=statistics.share(learned, static, rates[ORACLE_PLUS, ORACLE_PLUS], counts),
            gap_to_ceiling=statistics.share(learned, static, rates[CEILING, CEILING], counts) if sampled else None,
            threshold=rule.another,
            brute_threshold=brute,
            brute_gain=gain,
        )


def rows(
    results: dict[tuple[str, str], ReplayResult],
    rates: dict[tuple[str, str], Rates],
    static: Rates,
    learned: Rates,
    counts: np.ndarray,
) -> tuple[Row, ...]:
    found = [
        Row(
            rule=rule,
            spec=spec,
            rate=statistics.rate(own, counts),
            vs_static=statistics.ratio(own, static, counts),
            learned_vs=statistics.ratio(learned, own, counts),
            mean_lookahead=results[rule, spec].mean_lookahead,
            exhausted_share=results[rule, spec].exhausted_share,
        )
        for (rule, spec), own in rates.items()
    ]
    return tuple(sorted(found, key=lambda row: -row.rate.estimate))


def brute_force(test: Decisions, survival: np.ndarray, price: Price, learned: Rates) -> tuple[float, float]:
    """The threshold that would have been best on the test prompts, and what it would have added."""
    reached = {t: replay.replay_survival(test, survival, StopRule.of(t)).rate(price) for t in GRID}
    best = max(reached, key=lambda threshold: reached[threshold])
    return best, reached[best] / (learned.tokens.sum() / learned.cost.sum()) - 1.0


def markdown(contests: Sequence[Contest]) -> str:
    return "# Proof by replay\n" + "".join(
        f"\n## {held.name}, c = {held.c:.3g}\n\n{described(held)}\n" for held in contests
    )


def described(held: Contest) -> str:
    price = "measured price" if held.measured else "price"
    learned = held[LEARNED]
    lines = [
        f"{held.num_prompts} prompts, {held.coupling_draws} coupling draw(s) a text, {price} c = {held.c:.3f}.",
        "",
        "| rule | tuned to | tokens per target step | over tuned static | learned over it | drafts a round |",
        "|---|---|---|---|---|---|",
        *(table_row(row) for row in held.rows),
        "",
        f"Learned over the tuned static lookahead {gain(learned.vs_static)}, over the best other rule "
        f"({held.best_rule.shown}) {gain(held.best_rule.learned_vs)}; gap to oracle+ closed "
        f"{share(held.gap_to_oracle_plus)}"
        + (f", to the ceiling {share(held.gap_to_ceiling)}" if held.gap_to_ceiling else "")
        + f". Threshold {held.threshold:.3f}; the best on these prompts, {held.brute_threshold:.2f}, would add "
        f"{held.brute_gain:+.2%}.",
    ]
    return "\n".join(lines)


def table_row(row: Row) -> str:
    rate = f"{row.rate.estimate:.3f} [{row.rate.lower:.3f}, {row.rate.upper:.3f}]"
    ran_out = f" ({row.exhausted_share:.1%} ran out of tail)" if row.exhausted_share > replay.MAX_EXHAUSTED else ""
    cells = (row.rule, row.shown, rate, gain(row.vs_static), gain(row.learned_vs), f"{row.mean_lookahead:.2f}{ran_out}")
    return f"| {' | '.join(cells)} |"


def gain(ratio: Interval) -> str:
    low, middle, high = (100 * (value - 1) for value in (ratio.lower, ratio.estimate, ratio.upper))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


def share(part: Interval) -> str:
    return f"{part.estimate:.0%} [{part.lower:.0%}, {part.upper:.0%}]"


if __name__ == "__main__":
    main()
