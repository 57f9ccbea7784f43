"""What learning is worth under sampling with each way to verify, timed side by side.

    python benchmarks/sampling_live.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --prompts data/prompts/heldout_test.jsonl --by_block runs/sampling/predictor-0.8-1-block \\
        --by_token runs/sampling/predictor-0.8-1-token

All contenders take turns on every prompt: constant lookaheads, and the learned rule with a predictor trained on rounds
judged by block and with one trained on rounds judged token by token; each with both ways to verify. Brackets are 95 %
intervals, bootstrapped by prompt, of the ratio to the best constant lookahead that is judged token by token.
"""

import argparse
from dataclasses import replace

from dsl_train.bench import statistics
from dsl_train.bench.config import BenchConfig
from dsl_train.bench.live import contender, pool, time_all
from dsl_train.bench.setup import Setup
from dsl_train.bench.statistics import Rates

WAYS = ("token", "block")


def main() -> None:
    args = arguments()
    config = BenchConfig(
        target=args.target,
        draft=args.draft,
        prompts=args.prompts,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        predictor=args.by_block,
        policies=["learned"],
        num_threads=args.num_threads,
        device="cpu",
    )
    setup = Setup.of(config)
    contenders = {}
    for way in WAYS:
        judged = replace(setup, config=replace(config, verification=way))
        for lookahead in args.lookaheads:
            contenders[f"static:{lookahead}, {way}"] = contender(f"static:{lookahead}", judged)
        for label, predictor in (("block", args.by_block), ("token", args.by_token)):
            trained = Setup.of(replace(config, verification=way, predictor=predictor))
            contenders[f"learned on {label}, {way}"] = contender("learned", replace(trained, pair=setup.pair))
    results = time_all(contenders, [prompt for _, prompt in setup.prompts], args.repeats)
    rates = {name: pool(runs) for name, runs in results.items()}
    counts = statistics.draws(len(setup.prompts))
    best = {
        way: fastest({name: rates[name] for name in rates if name.startswith("static") and way in name}) for way in WAYS
    }
    print(
        "| rule, verification | tokens/s | tokens a round | against the best static, token | block |\n|---|---|---|---|---|"
    )
    for name, own in rates.items():
        rounds = [finished for runs in results[name] for run in runs for finished in run.rounds]
        committed = sum(len(finished.committed) for finished in rounds) / len(rounds)
        pace = own.tokens.sum() / own.cost.sum()
        cells = [interval(statistics.ratio(own, rates[best[way]], counts)) for way in WAYS]
        print(f"| {name} | {pace:.0f} | {committed:.3f} | {' | '.join(cells)} |")


def fastest(rates: dict[str, Rates]) -> str:
    return max(rates, key=lambda name: float(rates[name].tokens.sum() / rates[name].cost.sum()))


def interval(ratio: statistics.Interval) -> str:
    return f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}]"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "draft", "prompts", "by_block", "by_token"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_prompts", type=int, default=24)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--lookaheads", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
