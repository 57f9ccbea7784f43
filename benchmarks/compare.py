"""Our loop beside transformers' own ways to generate, on one pair, in one run: one table, one JSON file.

    python benchmarks/compare.py --output runs/compare.json
    python benchmarks/compare.py --target runs/smollm2/target --draft checkpoints/smollm2/draft \\
        --prompts spec_bench.jsonl --by category --num_prompts 1 --tune_on humaneval.jsonl --max_new_tokens 48

transformers: `generate`; assisted generation at its defaults; the same at the fastest of a few settings, tried on the
prompts of --tune_on; prompt lookup, likewise; our rule in its assisted generation (`dsl_train.attach`). Our loop:
without a draft, static lookaheads, of which one is the fastest on --tune_on, two rules of transformers, the learned
rule; with --compile some of them once more, compiled. Runs are interleaved; a rate is all tokens by all seconds of each
prompt's median repeat; ratios are paired by prompt, brackets are 95 % intervals bootstrapped over prompts. Greedy texts
are compared token by token.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsl_train.api.calibration import calibrate
from dsl_train.base import files
from dsl_train.base.records import AcceptanceStats
from dsl_train.bench import statistics
from dsl_train.bench.config import ASSISTED, AUTOREGRESSIVE, TRANSFORMERS, BenchConfig
from dsl_train.bench.hf import Generate, assisted_note, hf_generate
from dsl_train.bench.live import Results, compare, contender, pool, time_all
from dsl_train.bench.setup import Setup, open_pair, open_predictor, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval
from dsl_train.costs.online import OnlineCosts
from dsl_train.hf.attach import attach
from dsl_train.pair.loading import Pair
from dsl_train.runners.compiled import warm_up

REFERENCE = Path("checkpoints/reference")
PROMPTS = "data/prompts/heldout_{}.jsonl"
LEARNED, COMPILED = "learned", "compiled "
TUNED, LOOKUP, ATTACHED = (
    "transformers-assisted, tuned",
    "transformers, prompt lookup",
    "transformers-assisted, attached",
)
STATICS = ("static:1", "static:2", "static:3", "static:4", "static:6")
#: Tried for transformers' assisted generation: so many tokens a round, or up to 20 while the draft is that sure.
ASSISTED_TRIED: tuple[Mapping[str, Any], ...] = (
    *(
        {"num_assistant_tokens": k, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
        for k in (2, 3, 4)
    ),
    *({"assistant_confidence_threshold": sure} for sure in (0.6, 0.8)),
)
LOOKUP_TRIED: tuple[Mapping[str, Any], ...] = tuple({"prompt_lookup_num_tokens": k} for k in (3, 10))


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

    def __str__(self) -> str:
        ratios = [f"{r.estimate:.2f} [{r.lower:.2f}, {r.upper:.2f}]" for r in self.relative_to.values()]
        rounds = f"{self.tokens_per_round:.2f}" if self.tokens_per_round else ""
        cells = [
            self.name,
            f"{self.tokens_per_second.estimate:.1f}",
            *ratios,
            rounds,
            self.differing_prompts,
            self.note,
        ]
        return f"| {' | '.join(map(str, cells))} |"


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
        device=args.device,
        num_threads=args.threads,
    )
    pair = open_pair(config)
    predictor = open_predictor(config, pair)
    costs = OnlineCosts(calibrate(pair, predictor, config.sampling))
    setup = Setup(config, pair, read_prompts_as_tokens(config, pair), predictor, costs)
    others = replace(setup, prompts=read_prompts_as_tokens(tuning(config, args.tune_on, args.num_tuning_prompts), pair))
    contenders, notes = of_transformers(setup, others)
    best_static = fastest({name: contender(name, others) for name in STATICS}, others)
    notes[best_static] = "the fastest on other prompts"
    own = (AUTOREGRESSIVE, *STATICS, "heuristic", "confidence", LEARNED)
    contenders |= {name: contender(name, setup) for name in own}
    if args.compile:
        notes[COMPILED + LEARNED] = f"{warm_up(pair.target, pair.draft):.0f} s to compile, not counted"
        again = replace(setup, costs=OnlineCosts(costs.profile))
        contenders |= {COMPILED + name: contender(name, again) for name in (AUTOREGRESSIVE, best_static, LEARNED)}
    results = time_all(contenders, [prompt for _, prompt in setup.prompts], config.repeats)
    rows = tabulate(results, notes, best_static)
    show(rows)
    if args.output:
        described = {"argv": vars(args), "versions": files.software_versions(), "threads": torch.get_num_threads()}
        files.write_json(Path(args.output), {**described, "rows": [asdict(row) for row in rows]})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(REFERENCE / "target"))
    parser.add_argument("--draft", default=str(REFERENCE / "draft"))
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", default=PROMPTS.format("test"))
    parser.add_argument("--by", help="column of the prompts; --num_prompts are then taken of each of its values")
    parser.add_argument("--tune_on", default=PROMPTS.format("train"), help="other prompts, to choose settings on")
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--num_tuning_prompts", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true", help="the compiled forwards too")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args(argv)


def tuning(config: BenchConfig, prompts: str, num_prompts: int) -> BenchConfig:
    return replace(config, prompts=prompts, num_prompts=num_prompts, by=None)


def of_transformers(setup: Setup, others: Setup) -> tuple[dict[str, Generate], dict[str, str]]:
    """transformers' own ways to generate, and what there is to say of them; settings are chosen on `others`."""
    pair, config = setup.pair, setup.config
    assisted = {told(settings): _assisted(pair, config, settings) for settings in ASSISTED_TRIED}
    lookup = {told(options): _plain(pair, config, options) for options in LOOKUP_TRIED}
    best_assisted, best_lookup = fastest(assisted, others), fastest(lookup, others)
    attached = attach(pair.draft, setup.predictor)
    contenders = {
        TRANSFORMERS: _plain(pair, config, {}),
        ASSISTED: _assisted(pair, config, {}),
        TUNED: assisted[best_assisted],
        LOOKUP: lookup[best_lookup],
        ATTACHED: _plain(pair, config, {"assistant_model": attached}),
    }
    return contenders, {ASSISTED: assisted_note(), TUNED: best_assisted, LOOKUP: best_lookup}


def _assisted(pair: Pair, config: BenchConfig, settings: Mapping[str, Any]) -> Generate:
    return hf_generate(pair, config.sampling, config.max_new_tokens, True, settings)


def _plain(pair: Pair, config: BenchConfig, options: Mapping[str, Any]) -> Generate:
    return hf_generate(pair, config.sampling, config.max_new_tokens, False, **options)


def fastest(tried: Mapping[str, Generate], setup: Setup) -> str:
    runs = time_all(tried, [prompt for _, prompt in setup.prompts], 1)
    best = statistics.fastest({name: pool(of_name) for name, of_name in runs.items()})
    assert best
    return best


def told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def tabulate(results: Results, notes: Mapping[str, str], tuned_static: str) -> list[Row]:
    rates = {name: pool(runs) for name, runs in results.items()}
    num_prompts = len(results[AUTOREGRESSIVE])
    counts = statistics.draws(num_prompts)
    in_hindsight = statistics.fastest({name: rates[name] for name in STATICS}) or tuned_static
    bases = dict.fromkeys((AUTOREGRESSIVE, tuned_static, in_hindsight, LEARNED, TRANSFORMERS, TUNED))
    different = [mismatch.policy for mismatch in compare(results, [str(i) for i in range(num_prompts)])]
    return [
        Row(
            name,
            statistics.rate(rates[name], counts),
            {base: statistics.ratio(rates[name], rates[base], counts) for base in bases},
            _tokens_per_round(results, name),
            different.count(name),
            notes.get(name, ""),
        )
        for name in results
    ]


def _tokens_per_round(results: Results, name: str) -> float | None:
    rounds = [r for repeated in results[name] for result in repeated for r in result.rounds]
    return AcceptanceStats.of(rounds).mean_acceptance_length or None


def show(rows: Sequence[Row]) -> None:
    bases = [f"x {base}" for base in rows[0].relative_to]
    print(f"| | tokens/s | {' | '.join(bases)} | tokens a round | differ | |")
    print("|---" * (len(bases) + 5) + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
