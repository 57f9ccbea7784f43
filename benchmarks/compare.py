"""Everything a user could pick on one pair, in one run: our loop, transformers' own, prompt lookup.

    python benchmarks/compare.py --target runs/smollm2/target --draft checkpoints/smollm2/draft \\
        --prompts PROMPTS.jsonl --by category --num_prompts 2 --tune_on data/prompts/chat_test.jsonl

`generate` of transformers, its assisted generation at its defaults and at the best of a few settings tried on other
prompts, prompt lookup, and our rule in transformers' loop (`attach`); with --gguf, for orientation, llama.cpp on a
quantized file of the same target; our loop without a draft, with constant
lookaheads (ratios are to the best on other prompts, and to the best on these), the heuristic, the confidence rule and
the learned one, with --compile the same compiled. Each loop learns costs of its own. Repeats are
interleaved; a rate is all tokens by all seconds of each prompt's median repeat; ratios are paired by prompt, brackets
are 95 % intervals bootstrapped over prompts. Greedy texts are compared token by token.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import dsl_train
from dsl_train.base import files
from dsl_train.base.records import AcceptanceStats
from dsl_train.bench import statistics
from dsl_train.bench.config import ASSISTED, AUTOREGRESSIVE, TRANSFORMERS, BenchConfig
from dsl_train.bench.hf import Generate, assisted_note, hf_generate
from dsl_train.bench.live import compare, contender, pool, time_all
from dsl_train.bench.setup import Setup, read_prompts_as_tokens
from dsl_train.bench.statistics import Interval
from dsl_train.costs.online import OnlineCosts
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import PairPrompt
from dsl_train.runners.compiled import warm_up

REFERENCE = Path("checkpoints/reference")
PROMPTS = "data/prompts/heldout_{}.jsonl"
LEARNED, TUNED, LOOKUP, ATTACHED = (
    "learned",
    "transformers-tuned",
    "transformers-prompt-lookup",
    "transformers-attached",
)
COMPILED, LLAMA_CPP = "compiled ", "llama.cpp"
STATICS = ("static:1", "static:2", "static:3", "static:4")
RULES = ("heuristic", "confidence", LEARNED)
#: Tried for transformers' assisted generation: so many tokens a round, or up to 20 while the draft is that sure.
TRIED: tuple[Mapping[str, Any], ...] = (
    *(
        {"num_assistant_tokens": k, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
        for k in (1, 2, 3, 4)
    ),
    *({"assistant_confidence_threshold": sure} for sure in (0.6, 0.8)),
)
LOOKUP_TOKENS = 10  # as transformers' documentation has it


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
    config = BenchConfig(
        target=args.target,
        draft=args.draft,
        predictor=args.predictor,
        prompts=args.prompts,
        by=args.by,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        dtype=args.dtype,
        device=args.device,
        num_threads=args.threads,
        policies=[LEARNED],
    )
    rows = compare_pair(Setup.of(config), args.tune_on, args.compile, args.gguf)
    if args.output:
        described = {"argv": vars(args), "versions": files.software_versions(), "threads": torch.get_num_threads()}
        files.write_json(Path(args.output), {**described, "rows": [asdict(row) for row in rows]})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(REFERENCE / "target"))
    parser.add_argument("--draft", default=str(REFERENCE / "draft"))
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", default=PROMPTS.format("test"))
    parser.add_argument("--by", help="column of the prompts: --num_prompts of each of its values")
    parser.add_argument("--tune_on", default=PROMPTS.format("train"), help="prompts for transformers' settings")
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="the compiled forwards too")
    parser.add_argument("--gguf", type=Path, help="the same target as a GGUF file, for llama.cpp; needs xllamacpp")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args(argv)


def compare_pair(setup: Setup, tune_on: str, compiled: bool, gguf: Path | None) -> list[Row]:
    config, pair = setup.config, setup.pair
    in_loop = (AUTOREGRESSIVE, *STATICS, *RULES)
    contenders = {name: contender(name, setup) for name in (*in_loop, TRANSFORMERS, ASSISTED)}
    others = replace(config, prompts=tune_on, num_prompts=4, by=None, max_new_tokens=48)
    settings, tuned_static = tune(pair, others), tune_static(setup, others)
    length, sampling = config.max_new_tokens, config.sampling
    contenders[TUNED] = hf_generate(pair, sampling, length, pair.draft, settings)
    contenders[LOOKUP] = hf_generate(pair, sampling, length, prompt_lookup=LOOKUP_TOKENS)
    contenders[ATTACHED] = hf_generate(
        pair, sampling, length, dsl_train.attach(pair.draft, policy=own_costs(setup).policy(LEARNED))
    )
    notes = {
        tuned_static: "the best on other prompts",
        ASSISTED: assisted_note(),
        TUNED: told(settings),
        LOOKUP: f"{LOOKUP_TOKENS} tokens",
    }
    if gguf:
        from peer_llama_cpp import llama_cpp_generate

        contenders[LLAMA_CPP] = llama_cpp_generate(gguf, length)
        contenders[f"{LLAMA_CPP}-ngrams"] = llama_cpp_generate(gguf, length, ngrams=True)
    if compiled:
        seconds = warm_up(pair.target, pair.draft)
        contenders |= {COMPILED + name: contender(name, own_costs(setup)) for name in in_loop}
        notes[COMPILED + LEARNED] = f"{seconds:.0f} s to compile both models, not counted"
    return table(contenders, [prompt for _, prompt in setup.prompts], config.repeats, notes, tuned_static)


def own_costs(setup: Setup) -> Setup:
    """For a loop in which a step costs something else: it begins with what is known so far."""
    assert setup.costs is not None
    return replace(setup, costs=OnlineCosts(setup.costs.profile))


def tune_static(setup: Setup, config: BenchConfig) -> str:
    """The fastest constant lookahead on these prompts."""
    prompts = read_prompts_as_tokens(config, setup.pair)
    tried = replace(setup, config=config, prompts=prompts)
    runs = time_all({name: contender(name, tried) for name in STATICS}, [prompt for _, prompt in prompts], 1)
    return statistics.fastest({name: pool(of_name) for name, of_name in runs.items()}) or STATICS[0]


def tune(pair: Pair, config: BenchConfig) -> Mapping[str, Any]:
    """The fastest of TRIED on these prompts."""
    tried = {
        told(settings): hf_generate(pair, config.sampling, config.max_new_tokens, pair.draft, settings)
        for settings in TRIED
    }
    runs = time_all(tried, [prompt for _, prompt in read_prompts_as_tokens(config, pair)], 1)
    best = statistics.fastest({name: pool(of_name) for name, of_name in runs.items()})
    return next(settings for settings in TRIED if told(settings) == best)


def told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def table(
    contenders: Mapping[str, Generate],
    prompts: Sequence[PairPrompt],
    repeats: int,
    notes: Mapping[str, str],
    tuned_static: str,
) -> list[Row]:
    """Time them all and print the rows."""
    results = time_all(contenders, prompts, repeats)
    rates = {name: pool(runs) for name, runs in results.items()}
    counts = statistics.draws(len(prompts))
    best_static = statistics.fastest({name: rates[name] for name in STATICS if name in rates})
    wanted = dict.fromkeys((AUTOREGRESSIVE, tuned_static, best_static, TRANSFORMERS, TUNED))
    bases = [name for name in wanted if name in rates]
    different = [mismatch.policy for mismatch in compare(results, [str(i) for i in range(len(prompts))])]
    rows = []
    headers = ["tokens/s", *(f"x {base}" for base in bases), "tokens a round", "differ"]
    print(f"\n| {len(prompts)} prompts | {' | '.join(headers)} |")
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
    cells = [row.name, f"{row.tokens_per_second.estimate:.1f}", *ratios, rounds, row.differing_prompts]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
