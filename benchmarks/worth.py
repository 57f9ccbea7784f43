"""What each mechanism of the loop is worth on a pair: switched off one by one, interleaved, with intervals.

    python benchmarks/worth.py --target runs/smollm2/target --draft checkpoints/smollm2/draft \\
        --prompts data/prompts/chat_test.jsonl --num_prompts 12 --max_new_tokens 64

Live rows are the learned rule with one thing changed, in tokens per second relative to the learned rule as it is: where
that is below 1, the mechanism gains. Each learns costs of its own, since each runs the models in another way. With
--traces, replayed rows judge the features by group: predictors are trained without each group on --traces and compared
on --test_traces, at the measured costs. Brackets are 95 % intervals bootstrapped by prompt.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from dsl_train.base.cost import StopRule
from dsl_train.bench import statistics
from dsl_train.bench.config import AUTOREGRESSIVE, BenchConfig
from dsl_train.bench.hf import Generate
from dsl_train.bench.live import contender, pool, time_all
from dsl_train.bench.replay import by_prompt
from dsl_train.bench.setup import Setup
from dsl_train.costs.online import OnlineCosts
from dsl_train.features.entries import FEATURES
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.resting import Resting
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay.rounds import replay_survival
from dsl_train.runners import llama
from dsl_train.runners.compiled import warm_up
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

LEARNED = "learned"
WARM_UP = 3  # prompts that the costs are learned on before anything is fixed


class Awake(Resting):
    """Never rests."""

    @property
    def awake(self) -> bool:
        return True


def main() -> None:
    args = arguments()
    setup = Setup.of(
        BenchConfig(
            target=args.target,
            draft=args.draft,
            predictor=args.predictor,
            prompts=args.prompts,
            by=args.by,
            num_prompts=args.num_prompts,
            max_new_tokens=args.max_new_tokens,
            policies=[LEARNED],
        )
    )
    prompts = [prompt for _, prompt in setup.prompts]
    learned = contender(LEARNED, setup)
    for number, prompt in enumerate(prompts[:WARM_UP]):
        learned(prompt, number)
    contenders = variants(setup, learned, args.compile)
    results = time_all(contenders, prompts, args.repeats)
    rates = {name: pool(runs) for name, runs in results.items()}
    counts = statistics.draws(len(prompts))
    print(f"\n| {len(prompts)} prompts, live | tokens/s | x learned |\n|---|---|---|")
    for name, of_name in rates.items():
        ratio = statistics.ratio(of_name, rates[LEARNED], counts)
        speed = statistics.rate(of_name, counts).estimate
        print(f"| {name} | {speed:.1f} | {ratio.estimate:.3f} [{ratio.lower:.3f}, {ratio.upper:.3f}] |")
    if args.traces:
        assert setup.costs is not None
        replay_groups(setup, args.traces, args.test_traces)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="checkpoints/reference/target")
    parser.add_argument("--draft", default="checkpoints/reference/draft")
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", default="data/prompts/heldout_test.jsonl")
    parser.add_argument("--by", help="column of the prompts: --num_prompts of each of its values")
    parser.add_argument("--num_prompts", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the compiled forwards too")
    parser.add_argument("--traces", type=Path, nargs="*", default=[], help="to train on without each group of features")
    parser.add_argument("--test_traces", type=Path, nargs="*", default=[], help="of other prompts, to judge them on")
    return parser.parse_args()


def variants(setup: Setup, learned: Generate, compiled: bool) -> dict[str, Generate]:
    """The learned rule as it is, and with one thing changed each."""
    assert setup.predictor is not None
    assert setup.costs is not None
    rule = setup.costs.profile.stop_rule(setup.predictor.threshold)
    flat = StopRule.of(rule.another)
    found = {
        LEARNED: learned,
        "the target alone": contender(AUTOREGRESSIVE, setup),
        "costs fixed after the first prompts": contender(LearnedPolicy(setup.predictor, rule), setup),
        "and one threshold for all positions": contender(LearnedPolicy(setup.predictor, flat), setup),
        "not corrected by what is accepted": contender(learned_policy(setup, corrected=False), setup),
        "never at rest": contender(awake(learned_policy(setup)), setup),
        "rules that look at nothing: static:2": contender("static:2", setup),
        "rules that look at nothing: heuristic": contender("heuristic", setup),
        "the draft's confidence alone": contender("confidence", setup),
    }
    with without_own_layers():
        found["transformers' forward"] = contender(learned_policy(setup), setup)
    if compiled:
        seconds = warm_up(setup.pair.target, setup.pair.draft)
        found[f"compiled ({seconds:.0f} s before)"] = contender(learned_policy(setup), setup)
    return found


def learned_policy(setup: Setup, corrected: bool = True) -> LearnedPolicy:
    """With costs of its own, which begin with what is known so far."""
    assert setup.predictor is not None
    assert setup.costs is not None
    return LearnedPolicy(setup.predictor, OnlineCosts(setup.costs.profile), corrected=corrected)


def awake(policy: LearnedPolicy) -> LearnedPolicy:
    policy._resting = Awake()
    return policy


@contextmanager
def without_own_layers() -> Iterator[None]:
    """Runners made meanwhile run through transformers."""
    with patch.object(llama, "fits", lambda model: False):
        yield


def replay_groups(setup: Setup, traces: list[Path], test_traces: list[Path]) -> None:
    """Predictors without one group of features each, by replay at the costs in use."""
    assert setup.costs is not None
    judged = decisions.build(open_traces(test_traces))
    judged = judged.select(judged.replayable(np.ones(judged.num_sequences, dtype=bool)))
    counts = statistics.draws(len(set(judged.prompt_ids)))
    groups = list(dict.fromkeys(feature.group for feature in FEATURES))
    kept = {"all features": FEATURES}
    kept |= {f"without {group}": tuple(f for f in FEATURES if f.group != group) for group in groups}
    rates = {}
    for name, features in kept.items():
        with tempfile.TemporaryDirectory() as folder:
            names = ",".join(feature.name for feature in features)
            fit(TrainConfig(traces=traces, output=Path(folder) / "predictor", features=names))
            rates[name] = replayed(judged, Predictor.load(Path(folder) / "predictor"), setup)
    print("\n| features, by replay | x all features |\n|---|---|")
    for name, of_name in rates.items():
        ratio = statistics.ratio(of_name, rates["all features"], counts)
        print(f"| {name} | {ratio.estimate:.3f} [{ratio.lower:.3f}, {ratio.upper:.3f}] |")


def replayed(judged: Decisions, predictor: Predictor, setup: Setup) -> statistics.Rates:
    assert setup.costs is not None
    costs = setup.costs.profile
    survival = predictor.survival_batch(judged.features)
    return by_prompt(replay_survival(judged, survival, costs.stop_rule(predictor.threshold)), costs)


if __name__ == "__main__":
    main()
