"""How near to the ceiling under sampling any learner gets: larger models, and whatever a drafter could look at besides.

    python benchmarks/sampled_ceiling.py --num_prompts 400 --epochs 5 --output sampled_ceiling.md \\
        --train runs/reference/train_t08_tail15 --test runs/reference/test_t08_tail15 \\
        --target checkpoints/reference/target --draft checkpoints/reference/draft

Acceptance of a draft is min(1, target/draft): it hangs on the target's distribution at places the drafter has not seen.
`ceiling` knows it. The learners here know no more than a drafter could: the features; all primitives of the last three
draft steps; what the last verified positions showed (the target's entropy and largest probability, the acceptance
there, each now and on average); the last tokens by name; with --target and --draft also the draft's hidden state behind
its last token (what SpecDec++, 2405.19715, looks at) and the target's latest one. Each is trained on soft labels and
gets its own threshold at each price, the best one on the test texts, so its share of the gap is flattered.

Letters: N decisions of training and test texts together, S starts, E extra inputs.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hidden_states import of_draft, of_target
from learners import Learner, Rows, validation_sequences
from sklearn.ensemble import HistGradientBoostingRegressor
from study import some_prompts
from torch import nn

from dsl_train.base import files
from dsl_train.bench.ceiling import known_survival
from dsl_train.pair.loading import load_pair
from dsl_train.replay.rounds import draft_rows, replay_static, replay_survival, solve_thresholds
from dsl_train.replay.tuning import tune_static
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces
from dsl_train.train import metrics
from dsl_train.train.measure import REPORTED_C

STEPS_BACK = 3
PRIMITIVES = ("entropy", "log_prob_1", "log_prob_2", "log_prob_3", "log_prob_4", "log_prob_5", "token_log_prob")
VERIFIED = ("target_entropy", "target_top_prob", "accept_prob", "agreement", "entropy", "log_prob_1")
DECAY = 0.9
BATCH_SIZE, EMBEDDING, LEARNING_RATE = 2048, 16, 2e-3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="TRACES")
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="TRACES")
    parser.add_argument("--target", help="with --draft: learn from hidden states as well")
    parser.add_argument("--draft")
    parser.add_argument("--num_prompts", type=int, help="training prompts, drawn at random; default all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    known = some_prompts(decisions.build(open_traces(options.train)), options.num_prompts, options.seed)
    test = decisions.build(open_traces(options.test))
    rows = Rows.of(known, test, validation_sequences(known, options.seed))
    extra = np.concatenate([extra_inputs(known), extra_inputs(test)])
    tokens = np.concatenate([last_tokens(known), last_tokens(test)])
    states = known_states(options.target, options.draft, (known, test)) if options.target and options.draft else []
    static = [int(best.spec.partition(":")[2]) for best in tune_static(known, REPORTED_C)]
    floor = [replay_static(test, k).rate(c) for k, c in zip(static, REPORTED_C, strict=True)]
    top = [best_rate(test, known_survival(test), c) for c in REPORTED_C]
    head = ("what answers", "AUC", *(f"c {c:g}" for c in REPORTED_C))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, answer in learners(options.epochs, options.seed, states):
        began = time.perf_counter()
        survival = answer(rows, extra, tokens)[rows.test]
        auc = metrics.evaluate(survival, test.survival, test.position)["auc"]
        rates = [best_rate(test, survival, c) for c in REPORTED_C]
        lines.append(line(name, f"{auc:.4f}", rates, floor, top))
        print(lines[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    lines.append(line("`ceiling`: true acceptances", "", top, floor, top))
    print(lines[-1])
    files.write_text(options.output, "\n".join([*lines, ""]))


def learners(
    epochs: int, seed: int, states: "Sequence[States]"
) -> Iterator[tuple[str, Callable[[Rows, np.ndarray, np.ndarray], np.ndarray]]]:
    yield "recipe: 64-64 on the features", lambda rows, *_: Learner(epochs=epochs, seed=seed).direct(rows, rows.soft)
    wide = Learner(hidden=(512, 512), epochs=epochs, seed=seed)
    yield "512-512 on the features", lambda rows, *_: wide.direct(rows, rows.soft)
    yield "trees of 127 leaves, all inputs", lambda rows, extra, _: boosted(rows, extra, seed)
    yield "256-256, all inputs and tokens", lambda rows, extra, tokens: embedded(rows, extra, tokens, epochs, seed)
    names = ("the draft's hidden states", "the draft's and the target's")
    for name, given in zip(names, (states[:1], states) if states else (), strict=False):
        yield f"the same with {name}", partial(embedded, epochs=epochs, seed=seed, states=given)


def line(name: str, auc: str, rates: Sequence[float], floor: Sequence[float], top: Sequence[float]) -> str:
    cells = (
        f"{100 * (rate / low - 1):+.1f} % ({(rate - low) / (high - low):.0%})"
        for rate, low, high in zip(rates, floor, top, strict=True)
    )
    return f"| {' | '.join((name, auc, *cells))} |"


def best_rate(test: Decisions, survival: np.ndarray, c: float) -> float:
    """With the threshold that is best on the test texts themselves."""
    return replay_survival(test, survival, solve_thresholds(test, survival, [c])[0]).rate(c)


def extra_inputs(some: Decisions) -> np.ndarray:
    """[N, E] float32: primitives of the last draft steps, and what the verified text showed before the round."""
    of_start = np.repeat(np.arange(len(some.run)), some.num_decisions)
    columns = [primitive[of_start] for primitive in _verified(some)]
    rows = _drafted_rows(some)
    for back in range(1, STEPS_BACK + 1):
        at = rows[:, back - 1]
        columns += [np.where(at >= 0, some.traces.rows[name][at], 0.0) for name in PRIMITIVES]
    return np.column_stack(columns).astype(np.float32)


def _verified(some: Decisions) -> Iterator[np.ndarray]:
    """[S] each: of the last position before the start, and its exponential mean up to there."""
    sequence = some.start_sequence
    before = some.row[np.maximum(np.arange(len(sequence)) - 1, some.bounds[sequence])]
    for name in VERIFIED:
        values = some.traces.rows[name][before].astype(np.float64)
        means, mean, last = np.empty_like(values), 0.0, -1
        for i, (value, text) in enumerate(zip(values.tolist(), sequence.tolist(), strict=True)):
            mean = value if text != last else DECAY * mean + (1.0 - DECAY) * value
            means[i], last = mean, text
        yield values
        yield means


def _drafted_rows(some: Decisions) -> np.ndarray:
    """[N, STEPS_BACK] trace rows of the tokens drafted last; -1 where there is none."""
    rows = np.full((len(some), STEPS_BACK), -1, dtype=np.int64)
    counts = some.num_decisions
    for position in range(int(counts.max(initial=0))):
        starts = np.flatnonzero(counts > position)
        for back in range(1, min(STEPS_BACK, position) + 1):
            rows[some.offsets[starts] + position, back - 1] = draft_rows(some, starts, position - back)
    return rows


def last_tokens(some: Decisions) -> np.ndarray:
    """[N, 3] ids of the last committed token and of the last two drafted ones; 0 for none."""
    of_start = np.repeat(np.arange(len(some.run)), some.num_decisions)
    sequence = some.start_sequence
    before = some.row[np.maximum(np.arange(len(sequence)) - 1, some.bounds[sequence])]
    committed = some.traces.rows["text_token_id"][before][of_start]
    rows = _drafted_rows(some)[:, :2]
    drafted = np.where(rows >= 0, some.traces.rows["token_id"][rows] + 1, 0)
    return np.column_stack([committed + 1, drafted]).astype(np.int64)


def boosted(rows: Rows, extra: np.ndarray, seed: int) -> np.ndarray:
    inputs = np.column_stack([rows.features, extra])
    model = HistGradientBoostingRegressor(
        max_iter=300, max_leaf_nodes=127, learning_rate=0.06, min_samples_leaf=100, random_state=seed
    )
    model.fit(inputs[rows.train], rows.soft[rows.train])
    return np.clip(model.predict(inputs), 1e-6, 1.0 - 1e-6)


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of one model, and whose each decision sees."""

    values: torch.Tensor
    """[M + 1, H] float16; the last is nobody's."""
    at: torch.Tensor
    """[N] row of `values`."""

    def of(self, decisions: torch.Tensor) -> torch.Tensor:
        return self.values[self.at[decisions]].float()


def known_states(target: str, draft: str, sides: Sequence[Decisions]) -> list[States]:
    """Of the draft behind the token drafted last; of the target at the round's start."""
    pair = load_pair(target, draft, "float32", "cpu")
    drafted = [(of_draft(some, pair.draft), _drafted_rows(some)[:, 0]) for some in sides]
    started = [(of_target(some, pair.target), np.repeat(some.row, some.num_decisions)) for some in sides]
    return [_joined(drafted), _joined(started)]


def _joined(sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> States:
    values = np.concatenate([*(values for values, _ in sides), np.zeros((1, sides[0][0].shape[1]), np.float16)])
    nobody, first, at = len(values) - 1, 0, []
    for own, rows in sides:
        at.append(np.where(rows >= 0, rows + first, nobody))
        first += len(own)
    return States(torch.from_numpy(values), torch.from_numpy(np.concatenate(at)))


class _Embedded(nn.Module):
    def __init__(self, num_inputs: int, num_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, EMBEDDING)
        width = num_inputs + 3 * EMBEDDING
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 256), nn.SiLU(), nn.Dropout(0.1), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1))
        )

    def forward(self, inputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([inputs, self.embedding(tokens).flatten(1)], dim=1))[:, 0]


def embedded(
    rows: Rows, extra: np.ndarray, tokens: np.ndarray, epochs: int, seed: int, states: Sequence[States] = ()
) -> np.ndarray:
    """The epoch of the smallest validation loss."""
    torch.manual_seed(seed)
    values = np.column_stack([rows.features, extra]).astype(np.float32)
    mean, scale = values[rows.train].mean(0), values[rows.train].std(0) + 1e-6
    inputs = torch.from_numpy(np.clip((values - mean) / scale, -6.0, 6.0))
    ids, soft = torch.from_numpy(tokens), torch.from_numpy(rows.soft)
    network = _Embedded(inputs.shape[1] + sum(own.values.shape[1] for own in states), int(tokens.max()) + 1)

    def answer(some: torch.Tensor) -> torch.Tensor:
        return network(torch.cat([inputs[some], *(own.of(some) for own in states)], dim=1), ids[some])

    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    train, val = torch.from_numpy(rows.train), torch.from_numpy(rows.val)
    total = epochs * -(-len(train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=total)
    loss_of, best = nn.functional.binary_cross_entropy_with_logits, (np.inf, np.empty(0))
    for _ in range(epochs):
        network.train()
        for batch in train[torch.randperm(len(train))].split(BATCH_SIZE):
            loss = loss_of(answer(batch), soft[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            logits = torch.cat([answer(some) for some in torch.arange(len(inputs)).split(65_536)])
        loss = float(loss_of(logits[val], soft[val]))
        if loss < best[0]:
            best = loss, logits.sigmoid().numpy()
    return best[1]


if __name__ == "__main__":
    main()
