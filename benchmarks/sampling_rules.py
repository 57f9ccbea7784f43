"""All rules under sampling, each with both ways to verify, by replay: no clock.

    python benchmarks/sampling_rules.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --tune_on data/prompts/heldout_train.jsonl --prompts data/prompts/heldout_test.jsonl --work runs/sampling

Every rule is tuned on the traces of `--tune_on` and judged on those of `--prompts`, at the price `--c` of a draft token
in target steps, where reading features and predictor is free. The texts are the same with both ways to verify.
`learned` is trained on the traces of `--tune_on`, one predictor for each temperature and each way; `ceiling` knows
every ratio of what is drafted. Numbers are tokens per target step. Collections in `--work` are used again.
"""

import argparse
from pathlib import Path

from dsl_train.base.sampling import Sampling
from dsl_train.bench.replay import replayer
from dsl_train.bench.tuned import replay_tuned
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.shards import collect
from dsl_train.predictor.runtime import Predictor
from dsl_train.traces.decisions import Decisions, build
from dsl_train.traces.store import open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

SETTINGS = (Sampling(0.3), Sampling(0.6), Sampling(0.8), Sampling(1.0), Sampling(0.8, top_p=0.9))
WAYS = ("token", "block")


def main() -> None:
    args = arguments()
    columns, rates = [], {}
    for sampling in SETTINGS if args.temperature is None else (Sampling(args.temperature),):
        for way in WAYS:
            name = f"{sampling.temperature:g}" + (f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else "")
            columns.append(f"{name}, {way}")
            rates[columns[-1]] = rates_of(args, sampling, way)
    print(f"Tokens per target step at c = {args.c:g}, {args.num_prompts} prompts; the setting in brackets\n")
    print(f"| rule | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for rule in rates[columns[0]]:
        print(f"| {rule} | {' | '.join(rates[column][rule] for column in columns)} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "draft", "tune_on", "prompts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the collections and predictors")
    parser.add_argument("--num_tuning", type=int, default=200, help="prompts of --tune_on")
    parser.add_argument("--num_prompts", type=int, default=40, help="prompts of --prompts")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--c", type=float, default=0.15)
    parser.add_argument("--temperature", type=float, help="only this one, without top-p")
    return parser.parse_args()


def rates_of(args: argparse.Namespace, sampling: Sampling, way: str) -> dict[str, str]:
    """By rule."""
    kind = f"{sampling.temperature:g}-{sampling.top_p:g}-{way}"
    tuning = traced(args, sampling, way, args.tune_on, args.num_tuning, args.work / f"tuning-{kind}")
    judged = traced(args, sampling, way, args.prompts, args.num_prompts, args.work / f"judged-{kind}")
    tuned = replay_tuned(tuning, judged, [args.c])
    rates = {
        rule: f"{found.results[0].rate(args.c):.3f} ({found.specs[0].partition(':')[2]})"
        if rule.startswith("static")
        else f"{found.results[0].rate(args.c):.3f}"
        for rule, found in tuned.items()
    }
    output = args.work / f"predictor-{kind}"
    fit(TrainConfig([args.work / f"tuning-{kind}"], output, overwrite=True))
    predictor = Predictor.load(output)
    for name in ("learned", "ceiling"):
        rates[name] = f"{replayer(name, judged, predictor, None)(args.c).rate(args.c):.3f}"
    return rates


def traced(
    args: argparse.Namespace, sampling: Sampling, way: str, prompts: str, num_prompts: int, folder: Path
) -> Decisions:
    collect(
        CollectConfig(
            args.target,
            args.draft,
            str(folder),
            prompts=prompts,
            num_prompts=num_prompts,
            max_new_tokens=args.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            verification=way,
            batch_size=32,
            tail_length=10,
            device="cpu",
        )
    )
    return build(open_traces([folder]))


if __name__ == "__main__":
    main()
