"""What matters for the predictor: its features, heads, labels, size, weights, class and temperatures, one at a time.

    python benchmarks/study.py --output study.md --cost cost.json --num_prompts 250 \\
        --train runs/reference/train_t0_tail15 runs/reference/train_t08_tail15 \\
        --test runs/reference/test_t0_tail15 runs/reference/test_t08_tail15

Every variant learns from the same texts and differs from the shipped recipe in what its name says. It gets its own
threshold table, solved on those texts, and is replayed on the test texts, temperature by temperature, against the
static lookahead that was best on the training texts of that temperature. `cost.json` is what `dsl-bench --mode profile`
wrote; every variant pays the predictor's price in it. Writes a page of Markdown, and prints it row by row.

Letters: N decisions of training and test texts together, as in `learners.Rows`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from learners import Learner, Rows, boosting, logistic, running_sum, validation_sequences

from dsl_train.base import files
from dsl_train.base.cost import CostProfile, Price, price_for, rule_at
from dsl_train.features import entries
from dsl_train.predictor.runtime import ThresholdTable
from dsl_train.replay.rounds import replay_static, replay_survival, solve_thresholds
from dsl_train.replay.tuning import tune_static
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces
from dsl_train.train import metrics
from dsl_train.train.config import C_GRID
from dsl_train.train.measure import REPORTED_C

#: Thresholds of the policies whose states count as visited.
VISITS = (0.15, 0.25, 0.35, 0.45)
#: Weight of a state that none of them visits, next to 1 where all do.
UNVISITED = 0.1


@dataclass(frozen=True)
class Variant:
    question: str
    name: str
    answer: Callable[[Rows], np.ndarray]
    """[N] survival."""


@dataclass(frozen=True)
class Contest:
    """The test texts of one temperature, and the static lookahead to beat at each price."""

    temperature: float
    test: Decisions
    rows: np.ndarray
    """Numbers of its decisions among those of all test texts."""
    prices: tuple[Price, ...]
    static_rates: tuple[float, ...]

    def row(self, variant: Variant, survival: np.ndarray, table: ThresholdTable) -> str:
        """`survival` is that of all test texts."""
        own = survival[self.rows]
        quality = metrics.evaluate(own, self.test.survival, self.test.position)
        worst = max(at["ece"] for at in quality["by_position"])
        rates = [replay_survival(self.test, own, rule_at(price, table.at)).rate(price) for price in self.prices]
        gains = (f"{100 * (rate / static - 1):+.1f}" for rate, static in zip(rates, self.static_rates, strict=True))
        cells = (variant.question, variant.name, f"{quality['auc']:.4f}", f"{quality['ece']:.3f}", f"{worst:.3f}")
        return f"| {' | '.join((*cells, *gains))} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="TRACES")
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="TRACES")
    parser.add_argument("--cost", type=Path, help="measured price, a column of its own")
    parser.add_argument("--num_prompts", type=int, help="training prompts, drawn at random; default all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    known = some_prompts(decisions.build(open_traces(options.train)), options.num_prompts, options.seed)
    unseen = decisions.build(open_traces(options.test))
    is_val = validation_sequences(known, options.seed)
    rows, solving = Rows.of(known, unseen, is_val), known.select(~is_val)
    prices: tuple[Price, ...] = REPORTED_C
    if options.cost:
        content = json.loads(options.cost.read_text("utf-8"))
        prices = (*prices, CostProfile.from_dict(content.get("cost", content)))
    contests = [Contest(value, *contest(known, unseen, value, prices)) for value in temperatures(unseen)]
    tables: list[list[str]] = [[] for _ in contests]
    for variant in variants(Learner(epochs=options.epochs, seed=options.seed)):
        began = time.perf_counter()
        survival = variant.answer(rows)
        table = ThresholdTable(C_GRID, tuple(solve_thresholds(solving, survival[rows.train], C_GRID)))
        for held, lines in zip(contests, tables, strict=True):
            lines.append(held.row(variant, survival[rows.test], table))
            print(f"T {held.temperature:g} {lines[-1]} {time.perf_counter() - began:.0f} s", flush=True)
    files.write_text(options.output, page(contests, tables, known, unseen))


def variants(plain: Learner) -> Iterator[Variant]:
    """The shipped recipe first, then whatever differs from it in one thing."""

    def direct(learner: Learner) -> Callable[[Rows], np.ndarray]:
        return lambda rows: learner.direct(rows, rows.soft)

    yield Variant("recipe", "direct, soft labels, 64-64, mixed temperatures", direct(plain))
    yield Variant("noise", "another seed", direct(replace(plain, seed=plain.seed + 1)))
    yield Variant("features", "core", direct(replace(plain, names=entries.CORE)))
    for group in entries.GROUPS:
        kept = set(entries.FEATURE_NAMES) - set(entries.select(group)) | {"position"}
        names = tuple(name for name in entries.FEATURE_NAMES if name in kept)
        yield Variant("features", f"without {group}", direct(replace(plain, names=names)))
    yield Variant("head", "product of acceptances", plain.product)
    yield Variant("head", "direct, the product as an input", plain.combined)
    yield Variant("head", "direct, acceptances as further tasks", plain.auxiliary)
    yield Variant("labels", "draws", lambda rows: plain.direct(rows, rows.hard.astype(np.float32)))
    for hidden in ((32,), (32, 32), (128, 128)):
        yield Variant("size", "-".join(map(str, hidden)), direct(replace(plain, hidden=hidden)))
    yield Variant(
        "weights", "states the policy visits", lambda rows: plain.direct(rows, rows.soft, visits(plain, rows))
    )
    yield Variant("temperatures", "a network for each", lambda rows: by_temperature(plain, rows))
    yield Variant("class", "logistic regression", lambda rows: logistic(rows, entries.FEATURE_NAMES, plain.seed))
    yield Variant("class", "boosted trees", lambda rows: boosting(rows, entries.FEATURE_NAMES, plain.seed))


def visits(learner: Learner, rows: Rows) -> np.ndarray:
    """[N] weight of a decision: in how many of a few policies of our own a round that starts there gets so far."""
    survival = learner.direct(rows, rows.soft)
    reached = [running_sum((survival <= threshold).astype(float), rows.position) == 0 for threshold in VISITS]
    return UNVISITED + (1.0 - UNVISITED) * np.mean(reached, axis=0)


def by_temperature(learner: Learner, rows: Rows) -> np.ndarray:
    """[N] each temperature answered for by a network that saw no other; what was not trained on, by none."""
    value = np.round(rows.features[:, entries.FEATURE_NAMES.index("temperature")], 3)
    survival = np.full(len(value), 0.5)
    for temperature in np.unique(value[rows.train]):
        same = value == temperature
        own = replace(rows, train=rows.train[same[rows.train]], val=rows.val[same[rows.val]])
        survival[same] = learner.direct(own, rows.soft)[same]
    return survival


def contest(
    known: Decisions, unseen: Decisions, temperature: float, prices: tuple[Price, ...]
) -> tuple[Decisions, np.ndarray, tuple[Price, ...], tuple[float, ...]]:
    """What a :class:`Contest` is made of. The static lookahead does not pay for the predictor."""
    train, test = (side.select(temperature_of(side) == temperature) for side in (known, unseen))
    paid = [price_for("position", price) for price in prices]
    lookaheads = [int(best.spec.partition(":")[2]) for best in tune_static(train, paid)]
    rates = (replay_static(test, k).rate(price) for k, price in zip(lookaheads, paid, strict=True))
    rows = np.flatnonzero((temperature_of(unseen) == temperature)[unseen.sequence])
    return test, rows, prices, tuple(rates)


def some_prompts(all_decisions: Decisions, number: int | None, seed: int) -> Decisions:
    prompts = np.unique(all_decisions.prompt_ids)
    chosen = np.random.default_rng(seed).permutation(prompts)[:number]
    return all_decisions.select(np.isin(all_decisions.prompt_ids, chosen))


def temperature_of(some: Decisions) -> np.ndarray:
    """[Q]"""
    return np.array([round(float(sequence.temperature), 3) for sequence in some.sequences])


def temperatures(some: Decisions) -> list[float]:
    return sorted(set(temperature_of(some).tolist()))


def page(contests: Sequence[Contest], tables: Sequence[Sequence[str]], known: Decisions, unseen: Decisions) -> str:
    """The tables in Markdown, under what they were made of."""
    sides = [f"{len(set(some.prompt_ids))} {name} prompts" for name, some in (("training", known), ("test", unseen))]
    learnt = ", ".join(f"{value:g}" for value in temperatures(known))
    parts = [f"{' and '.join(sides)}; learned at temperatures {learnt}. `{' '.join(files.command_line())}`\n"]
    for held, lines in zip(contests, tables, strict=True):
        prices = [f"c {price:g}" if isinstance(price, float) else "measured" for price in held.prices]
        head = ("question", "variant", "AUC", "ECE", "worst position", *prices)
        title = f"## Tested at temperature {held.temperature:g}\n\nGain over the tuned static lookahead [%]\n"
        parts.append("\n".join([title, f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
