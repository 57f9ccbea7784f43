"""Our loop against transformers' own, in one run: one table, one JSON file.

    python benchmarks/compare.py --compile --output runs/compare.json

The pair first: the target alone, constant lookaheads, the learned one, with --compile the same compiled; `generate` of
transformers, its assisted generation at its defaults, and at the best of a few settings, tried on other prompts. Then
pairs with random weights, from tiny to larger: what they say means nothing, so all draft four tokens a round and only
the loops differ; `asked:4` asks the pair's predictor each time. Repeats are interleaved; a rate is all tokens by all
seconds of each prompt's median repeat; ratios are paired by prompt, brackets are 95 % intervals bootstrapped over
prompts. Greedy texts are compared token by token.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from geometries import GEOMETRIES, random_pair, random_prompts
from transformers import PreTrainedTokenizerBase

from dsl_train.api.calibration import measure
from dsl_train.base import files
from dsl_train.base.cost import StopRule
from dsl_train.base.records import AcceptanceStats
from dsl_train.bench import statistics
from dsl_train.bench.config import ASSISTED, AUTOREGRESSIVE, TRANSFORMERS, BenchConfig
from dsl_train.bench.hf import Generate, assisted_note, hf_generate
from dsl_train.bench.live import compare, contender, pool, time_all
from dsl_train.bench.setup import Setup, open_pair, open_predictor, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import PairPrompt, begin
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.compiled import warm_up

REFERENCE = Path("checkpoints/reference")
PROMPTS = "data/prompts/heldout_{}.jsonl"
LEARNED, TUNED, ASKED, COMPILED = "learned", "transformers-tuned", "asked:4", "compiled "
STATICS = ("static:1", "static:2", "static:3", "static:4")
#: Tried for transformers' assisted generation: so many tokens a round, or up to 20 while the draft is that sure.
TRIED: tuple[Mapping[str, Any], ...] = (
    *(
        {"num_assistant_tokens": k, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
        for k in (2, 3, 4)
    ),
    *({"assistant_confidence_threshold": sure} for sure in (0.6, 0.8)),
)
RANDOM_TOKENS = 48  # of a text by random weights


@dataclass(frozen=True)
class Row:
    name: str
    tokens_per_second: Interval
    relative_to: Mapping[str, Interval]
    """Base -> how many times its tokens per second."""
    tokens_per_round: float | None
    """None of transformers' own, which keeps no rounds."""
    differing_prompts: int
    """Greedy texts that are not the target's own."""
    note: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    config = BenchConfig(
        target=args.target,
        draft=args.draft,
        predictor=args.predictor,
        prompts=args.prompts,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        dtype=args.dtype,
        device=args.device,
    )
    pair = open_pair(config)
    predictor = open_predictor(config, pair)
    tables = {"pair": compare_pair(config, pair, predictor, args)}
    for name in args.geometries:
        tables[name] = compare_random(name, pair.tokenizer, predictor, args.repeats)
    if args.output:
        described = {"argv": vars(args), "versions": files.software_versions(), "threads": torch.get_num_threads()}
        rows = {name: [asdict(row) for row in table] for name, table in tables.items()}
        files.write_json(Path(args.output), {**described, "tables": rows})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(REFERENCE / "target"))
    parser.add_argument("--draft", default=str(REFERENCE / "draft"))
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", default=PROMPTS.format("test"))
    parser.add_argument("--tune_on", default=PROMPTS.format("train"), help="prompts for transformers' settings")
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="the compiled forwards too")
    parser.add_argument("--geometries", nargs="*", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args(argv)


def compare_pair(config: BenchConfig, pair: Pair, predictor: Predictor, args: argparse.Namespace) -> list[Row]:
    prompts = read_prompts_as_tokens(config, pair)
    setup = price(Setup(config, pair, prompts, predictor))
    contenders = {name: contender(name, setup) for name in (AUTOREGRESSIVE, *STATICS, LEARNED, TRANSFORMERS, ASSISTED)}
    settings = tune(pair, replace(config, prompts=args.tune_on, num_prompts=4))
    contenders[TUNED] = hf_generate(pair, config.sampling, config.max_new_tokens, True, settings)
    notes = {ASSISTED: assisted_note(), TUNED: told(settings)}
    if args.compile:
        seconds = warm_up(pair.target, pair.draft)
        setup = price(setup)
        compiled = {COMPILED + name: contender(name, setup) for name in (AUTOREGRESSIVE, *STATICS, LEARNED)}
        notes[COMPILED + LEARNED] = f"{seconds:.0f} s to compile both models, not counted"
        contenders |= compiled
    return table("pair", contenders, [prompt for _, prompt in prompts], config.repeats, notes)


def price(setup: Setup) -> Setup:
    """With the costs of now, and the thresholds that follow."""
    assert setup.predictor is not None
    models = CachedModel(setup.pair.target), CachedModel(setup.pair.draft)
    cost = measure(*models, setup.predictor, setup.config.sampling)
    return replace(setup, rule=cost.stop_rule(setup.predictor.threshold))


def tune(pair: Pair, config: BenchConfig) -> Mapping[str, Any]:
    """The fastest of TRIED on these prompts."""
    tried = {
        told(settings): hf_generate(pair, config.sampling, config.max_new_tokens, True, settings) for settings in TRIED
    }
    runs = time_all(tried, [prompt for _, prompt in read_prompts_as_tokens(config, pair)], 1)
    best = statistics.fastest({name: pool(of_name) for name, of_name in runs.items()})
    return next(settings for settings in TRIED if told(settings) == best)


def told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def compare_random(name: str, tokenizer: PreTrainedTokenizerBase, predictor: Predictor, repeats: int) -> list[Row]:
    """The loops alone, on models that know nothing."""
    geometry = GEOMETRIES[name]
    pair = random_pair(geometry, tokenizer)
    config = BenchConfig("live", "-", "-", prompts="-", max_new_tokens=RANDOM_TOKENS)
    setup = Setup(config, pair, (), predictor, rule=StopRule.of(-1.0))
    asked = make_policy(LEARNED, predictor, -1.0)
    asked.max_lookahead = 4
    target = CachedModel(pair.target)
    engine = SpeculativeEngine(target, CachedModel(pair.draft), asked, config.sampling)
    contenders = {other: contender(other, setup) for other in (AUTOREGRESSIVE, STATICS[-1], TRANSFORMERS)}
    contenders[ASKED] = lambda prompt, seed: engine.generate(begin(prompt, target), RANDOM_TOKENS, seed)
    contenders[ASSISTED] = hf_generate(pair, config.sampling, RANDOM_TOKENS, True, TRIED[2])
    size = f"{pair.target.num_parameters() / 1e6:.1f} M and {pair.draft.num_parameters() / 1e6:.1f} M parameters"
    return table(f"{name}: {size}", contenders, random_prompts(geometry, 3, 32), repeats, {ASSISTED: told(TRIED[2])})


def table(
    title: str,
    contenders: Mapping[str, Generate],
    prompts: Sequence[PairPrompt],
    repeats: int,
    notes: Mapping[str, str],
) -> list[Row]:
    """Time them all and print the rows."""
    results = time_all(contenders, prompts, repeats)
    rates = {name: pool(runs) for name, runs in results.items()}
    counts = statistics.draws(len(prompts))
    best_static = statistics.fastest({name: rates[name] for name in STATICS if name in rates})
    bases = [name for name in (AUTOREGRESSIVE, best_static, LEARNED, TRANSFORMERS, ASSISTED) if name in rates]
    different = [mismatch.policy for mismatch in compare(results, [str(i) for i in range(len(prompts))])]
    rows = []
    print(f"\n{title}\n| | tokens/s | {' | '.join(f'x {base}' for base in bases)} | tokens a round | differ |")
    print("|---" * (len(bases) + 4) + "|")
    for name, runs in results.items():
        stats = AcceptanceStats.of([r for repeated in runs for result in repeated for r in result.rounds])
        rows.append(
            Row(
                name,
                statistics.rate(rates[name], counts),
                {base: statistics.ratio(rates[name], rates[base], counts) for base in bases if base},
                stats.mean_acceptance_length or None,
                different.count(name),
                notes.get(name, ""),
            )
        )
        print(line(rows[-1]), flush=True)
    for name, note in notes.items():
        print(f"{name}: {note}")
    return rows


def line(row: Row) -> str:
    ratios = [f"{r.estimate:.2f} [{r.lower:.2f}, {r.upper:.2f}]" for r in row.relative_to.values()]
    rounds = f"{row.tokens_per_round:.2f}" if row.tokens_per_round else ""
    cells = [row.name, f"{row.tokens_per_second.estimate:.0f}", *ratios, rounds, row.differing_prompts]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
